"""Makes one page of a run, of its training or of an evaluation.

    maskclippp report --workdir=runs/x
    maskclippp report --workdir=runs/comparison --output=page.html

The page is one file of HTML that needs no network and runs nothing: curves of loss, learning rate
and validation, where the time went, speed; tables of results with their ranges, bars of the classes
(seen and unseen), confusions, the best and the worst pictures, protocol and configuration, as far
as `train` and `evaluate` have left them in the folder, or `evaluate` in one folder below it.
"""

from absl import flags

POSITIONAL, BUCKETS = "", ("workdir", "output")

WORKDIR = flags.DEFINE_string("workdir", None, "folder that `train` or `evaluate` wrote to")
OUTPUT = flags.DEFINE_string("output", None, "file of HTML; its folder is made (default: "
                             "report.html in --workdir)")


def main(arguments):
    from absl import logging

    from maskclippp_jax.publishing import run_page
    from maskclippp_jax.runtime import storage

    del arguments
    if not WORKDIR.value:
        raise ValueError("got no --workdir; give the folder of a run or of an evaluation")
    workdir = storage.path(WORKDIR.value)
    output = storage.path(OUTPUT.value) if OUTPUT.value else workdir / "report.html"
    if output.suffix != ".html" or output.is_dir():
        raise ValueError(f"--output is {output}, wanted a file that ends in .html")
    run_page.write(workdir, output)
    logging.info("wrote %s", output)
