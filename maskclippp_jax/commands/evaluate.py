r"""Evaluates models: on ground-truth masks, or on the masks of a generator.

    maskclippp evaluate --config=NAME --checkpoint=P --workdir=D
    maskclippp evaluate --config=... --checkpoint=P --workdir=D --bundle=B \
        --config.eval.dataset=ade20k_150,ade20k_150_panoptic,ade20k_150_instance
    maskclippp evaluate --config=... --checkpoint=P --workdir=D --generator=eomt-l-640
    maskclippp evaluate --suite=published --bundles=DIR --checkpoints=DIR --workdir=D

Without `--bundle` every ground-truth mask is given to the model, which names it: mask accuracy, and
what follows from masks named so. With it the masks are those of a bundle (`maskclippp masks`,
launch/export); with `--generator` they are made of each picture as it is read, which comes to the
same as a bundle that `masks export` wrote. What is measured depends on the data sets (see
evaluation/truth.py): mIoU, panoptic quality, average precision. `--checkpoint` is the folder of a
training run (its newest checkpoint) or of one checkpoint in it (D/checkpoints/400), a checkpoint
file, or "untuned" (the pre-trained CLIP, mean over templates); given several times, all are
compared. An evaluation that was stopped goes on when the same command is given again.

`--config.eval.short_sides=400,500 --config.eval.flip=True` averages the scores of label maps over
versions of every picture (evaluation/augmented.py), of semantic data sets. `--bundle` is a folder
with a bundle for each version then, as launch/export writes them with --short_sides and --flip; a
`--generator` looks at each version.

`--interpolate=0,0.5,1` evaluates weights on the line from the pre-trained ones (0) to the tuned
ones (1), with the tuned similarity head.

`--names_file=better.txt` evaluates other names for the same labels, without preparing again: a line
for each class of the data set, in its order (`maskclippp names` shows it).

`--oracle=masks` is the first form, perfect masks, with all results the data sets allow, each on
masks of its own kind; `--oracle=classes` gives the masks of a generator perfect classes, without a
model: what the generator alone allows, and how many true segments its masks find, whatever they are
called (average recall at an IoU of 0.50 ... 0.95, by size, for things and stuff, seen and unseen).

`--suite=published` runs every published row (configs/eval) that has data, and prints our numbers
beside the published ones. Masks are those of a bundle or, where there is none, made by the row's
generator, and the model is in --checkpoints, if not their published files are in the folder weights
(`maskclippp weights`); `evaluation/suite.py` says what is looked for.
"""

from absl import flags

from maskclippp_jax.runtime import cli

POSITIONAL = ""
FOLDERS = ("save_predictions",)
MEMORY = ("--config.eval.batch_size=1 takes less, and so does a smaller --config.eval.short_side, "
          "which moves the results")
BUCKETS = ("workdir", "checkpoint", "bundle", "generator", "save_predictions", "bundles",
           "checkpoints", "data_dir", "names_file")

CONFIG = cli.define_config("the experiment")
DISTRIBUTED = cli.define_distributed()
WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results")
CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", [], "run folder, checkpoint file, or 'untuned'")
BUNDLE = flags.DEFINE_string("bundle", None, "folder of a generator's masks, or of such folders "
                             "for versions of the pictures")
GENERATOR = flags.DEFINE_string("generator", None, "makes the masks, in place of --bundle: "
                                "published name, file, folder, or hf://owner/name")
ALLOW_MISSING = flags.DEFINE_bool("allow_missing", False, "pictures that the bundle lacks count as "
                                  "missed")
ORACLE = flags.DEFINE_enum("oracle", None, ["masks", "classes"], "perfect masks named by the "
                           "model, or masks of the generator named perfectly")
SAVE_PREDICTIONS = flags.DEFINE_string("save_predictions", None, "folder for the predictions, "
                                       "which `maskclippp score` scores; with several models "
                                       "one below it for each, 0, 1, ...")
SAMPLES = flags.DEFINE_integer("samples", 1000, "of the bootstrap over pictures; 0: no ranges",
                               lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "of the bootstrap", lower_bound=0)
INTERPOLATE = flags.DEFINE_list(
    "interpolate", [], "shares of the tuned weights, such as 0,0.5,1; the rest is pre-trained")
PICTURES = flags.DEFINE_integer("pictures", 0, "show this many pictures with their named masks, "
                                "and as many of the best and of the worst", lower_bound=0)
NAMES_FILE = flags.DEFINE_string("names_file", None, "other names for the classes of the data set, "
                                 "a line for each; labels stay as they are")
SUITE = flags.DEFINE_enum("suite", None, ["published"], "run all rows of a table")
BUNDLES = flags.DEFINE_string("bundles", "bundles", "of a suite: folder of all bundles")
CHECKPOINTS = flags.DEFINE_string("checkpoints", "checkpoints", "of a suite: folder of all models")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "of a suite: folder of the prepared data sets")
ROWS = flags.DEFINE_list("rows", [], "of a suite: these rows only")

_SUITE = ("bundles", "checkpoints", "data_dir", "rows")
_NO_SUITE = ("config", "checkpoint", "bundle", "generator", "oracle", "interpolate",
             "save_predictions", "names_file")


def main(arguments):
    from maskclippp_jax.runtime import hosts

    del arguments
    for flag in _NO_SUITE if SUITE.value else _SUITE:
        if flags.FLAGS[flag].present:
            raise ValueError(f"--{flag} is not for a suite, whose rows decide that" if SUITE.value
                             else f"--{flag} is for --suite; an experiment takes --checkpoint, "
                             "--bundle or --generator, and --config.data_dir")
    return hosts.together(DISTRIBUTED.value, evaluate)


def evaluate() -> None:
    from maskclippp_jax.evaluation import comparison, suite
    from maskclippp_jax.runtime import storage

    options = comparison.Options(
        ORACLE.value, ALLOW_MISSING.value, SAVE_PREDICTIONS.value, SAMPLES.value, SEED.value,
        read_shares(INTERPOLATE.value), NAMES_FILE.value, PICTURES.value, GENERATOR.value)
    if not WORKDIR.value:
        raise ValueError("got no --workdir; give the folder for the results")
    workdir = storage.path(WORKDIR.value)
    if SUITE.value:
        suite.run(workdir, bundles=BUNDLES.value, checkpoints=CHECKPOINTS.value,
                  data_dir=DATA_DIR.value, rows=ROWS.value,
                  evaluate=lambda config, found, workdir: comparison.compare(
                      config, [found.checkpoint], found.bundle, workdir,
                      options._replace(generator=found.generator)))
        return
    comparison.compare(CONFIG.value, CHECKPOINT.value, BUNDLE.value, workdir, options)


def read_shares(given: list[str]) -> list[float]:
    """The numbers of --interpolate."""
    try:
        return [float(share) for share in given]
    except ValueError:
        raise ValueError(f"--interpolate is {','.join(given)!r}, wanted numbers such as 0,0.5,1"
                         ) from None
