"""Puts a tuned model on the hub, with a card that tells its numbers.

    maskclippp publish --checkpoint=runs/x --repo=owner/name --results=runs/comparison
    maskclippp publish --checkpoint=runs/x --repo=owner/name --dry_run --output=FOLDER

`mc.load("hf://owner/name")` and `--checkpoint=hf://owner/name` read it back. What goes there: the
weights under our names and, where it has any, under those of the public reference; the
configuration as data, which runs nothing; the names it was tuned on; a card with what it was tuned
from and on, its licence, the recipe, and what `evaluate` measured, with its protocol. Results are
those in the run's folder and in those that --results names (several times, if need be). Folders of
this machine and what looks like a token do not go there.

It is one commit: all of it, or nothing. `hf auth login`, or HF_TOKEN, must give a token that may
write. --dry_run needs none: it shows the files and the card.
"""

from absl import flags

POSITIONAL, BUCKETS = "", ("checkpoint", "results")
FOLDERS = ("output",)

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "folder of a training run (its newest "
                                 "checkpoint), or of one checkpoint in it")
REPO = flags.DEFINE_string("repo", None, "owner/name on the hub; it is made, if it is not there")
RESULTS = flags.DEFINE_multi_string("results", [], "folder or results.json of an `evaluate` with "
                                    "this checkpoint")
LICENCE = flags.DEFINE_string("licence", None, "of the model, by the hub's name of it, such as "
                              "mit (default: that of the weights it was tuned from)")
PICTURES = flags.DEFINE_bool("pictures", True, "send the evaluations' comparison.png along")
PRIVATE = flags.DEFINE_bool("private", False, "a new repository is seen by its owner only")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "send nothing, show what would be sent")
OUTPUT = flags.DEFINE_string("output", None, "of a dry run: new folder for all that would be sent")


def main(arguments):
    from maskclippp_jax.publishing import release

    del arguments
    for flag in ("checkpoint", "repo"):
        if not flags.FLAGS[flag].value:
            raise ValueError(f"got no --{flag}; see maskclippp publish --help")
    release.publish(CHECKPOINT.value, release.Options(
        REPO.value, RESULTS.value, LICENCE.value, PICTURES.value, PRIVATE.value, DRY_RUN.value,
        OUTPUT.value))
