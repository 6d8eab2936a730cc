"""Writes a model under other people's names, and lists the published models that can be read.

    maskclippp convert --source=P --output=tuned.safetensors --layout=maskclippp
    maskclippp convert --list

`--source` is the folder of a training run, or a checkpoint file together with its --config. The
result loads in the public PyTorch reference (layout maskclippp), as a plain CLIP (layout eva_clip
or open_clip, whichever the model came from), in OpenCLIP where it has timm's image towers (an
EVA-CLIP, SigLIP or PE-Core; layout timm), in transformers (hugging_face), in big_vision (a SigLIP
as .npz; layout big_vision, or big_vision_scan where its configuration sets scan), as a TIPS on the
hub (tips), a dino.txt of one file (dinotxt), or here under our own names (layout ours).
"""

import pathlib

from absl import flags, logging

from maskclippp_jax.runtime import cli

POSITIONAL, BUCKETS = "", ("source",)

CONFIG = cli.define_config("the experiment a file belongs to; a run knows its own")
SOURCE = flags.DEFINE_string("source", None, "run folder or checkpoint file")
OUTPUT = flags.DEFINE_string("output", None, "file to write, .safetensors or .npz")
LAYOUT = flags.DEFINE_string("layout", "maskclippp", "whose names: maskclippp, eva_clip, "
                             "open_clip, timm, hugging_face, big_vision, big_vision_scan, tips, "
                             "dinotxt, or ours")
LIST = flags.DEFINE_bool("list", False, "print the published models that can be read")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace a file that exists")


def main(arguments):
    from maskclippp_jax import weights
    from maskclippp_jax.naming import loading

    del arguments
    if LIST.value:
        print_published()
        return
    for flag in ("source", "output"):
        if not flags.FLAGS[flag].value:
            raise ValueError(f"got no --{flag}; see --help")
    layout, output = LAYOUT.value, pathlib.Path(OUTPUT.value)
    if layout not in weights.LAYOUTS:
        raise ValueError(f"--layout is {layout!r}, wanted one of {', '.join(weights.LAYOUTS)}")
    suffix = ".npz" if layout.startswith("big_vision") else ".safetensors"
    if output.suffix != suffix:
        raise ValueError(f"--output is {output}, wanted a file that ends in {suffix}")
    if output.is_dir():
        raise ValueError(f"--output is the folder {output}, wanted a file")
    if output.exists() and not OVERWRITE.value:
        raise FileExistsError(f"{output} exists; give another --output, or --overwrite")
    config = loading.experiment_of(SOURCE.value, CONFIG.value)
    model, params, what = loading.load_checkpoint(SOURCE.value, config)
    named = weights.export(params, model, layout)
    weights.write(output, named)
    logging.info("wrote %s: %d tensors, %.1f MB, from %s", output, len(named),
                 output.stat().st_size / 1e6, what)


def print_published() -> None:
    """One row a file: what `config.weights` can name, or where to get it; then the generators."""
    from rich.table import Table

    from maskclippp_jax.runtime import console
    from maskclippp_jax.weights import published, published_generators

    table = Table(box=None, pad_edge=False)
    for column in ("model", "training", "M parameters", "image", "mean", "deviation", "licence",
                   "file"):
        table.add_column(column, no_wrap=True)
    for entry in published.MODELS:
        statistics = (" ".join(f"{x / 255:.3f}" for x in row) for row in entry.pixels)
        millions = " + ".join(f"{n:.1f}" for n in published.MILLIONS[entry.name])
        table.add_row(entry.name, entry.training, millions, str(entry.image.image_size),
                      *statistics, entry.licence, entry.source)
    generators = Table(box=None, pad_edge=False)
    for column in ("generator", "task", "M parameters", "image", "classes", "published", "licence",
                   "file"):
        generators.add_column(column, no_wrap=True)
    for entry in published_generators.GENERATORS:
        side = getattr(entry.config, "image_size", ("any",))[0]
        generators.add_row(
            entry.name, entry.task, f"{entry.millions:.1f}", f"{side}", entry.vocabulary,
            entry.quality, entry.licence, entry.source)
    console.show(table)
    console.say()
    console.show(generators)
