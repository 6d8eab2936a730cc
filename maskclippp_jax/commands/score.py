"""Scores predictions in files, without a model.

    maskclippp score --predictions=D --dataset=ade20k_150 --data_dir=data

`--predictions` is a folder as evaluation/predictions.py describes it, ours or another tool's.
Label maps, panoptic segments and instances are scored against prepared data sets of their kinds
(`--dataset`, several separated by commas); segments and instances also against COCO's own files
(`--panoptic_json`, `--panoptic_dir`, `--instances_json`). Of a data set that is the truth of
several kinds (a panoptic one has label maps too) those are scored that the folder has, and the
protocol says which it lacks.
"""

import pathlib

from absl import flags, logging

from maskclippp_jax.runtime import cli

POSITIONAL, BUCKETS = "", ("predictions", "data_dir", "seen_vocabulary", "output")

PREDICTIONS = flags.DEFINE_string("predictions", None, "folder of the predictions")
DATASET = flags.DEFINE_string("dataset", None, "prepared data set, or several with commas")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "folder of the prepared data sets")
SPLIT = flags.DEFINE_string("split", "validation", "of the data set")
SEEN = flags.DEFINE_string("seen_vocabulary", None, "names known from training, to "
                            "tell apart: a shipped vocabulary, or a names file")
PANOPTIC_JSON = flags.DEFINE_string("panoptic_json", None, "true panoptic segments")
PANOPTIC_DIR = flags.DEFINE_string("panoptic_dir", None, "folder of their PNG files")
INSTANCES_JSON = flags.DEFINE_string("instances_json", None, "true instances")
ALLOW_MISSING = flags.DEFINE_bool("allow_missing", False,
                                  "pictures without a prediction count as missed")
SAMPLES = flags.DEFINE_integer("samples", 1000, "of the bootstrap over pictures; 0: no ranges",
                               lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "of the bootstrap", lower_bound=0)
MAX_PIXELS = cli.define_max_pixels()
OUTPUT = flags.DEFINE_string("output", None, "file for the results as JSON; its folder is made")


def main(arguments):
    from maskclippp_jax.data import images
    from maskclippp_jax.drawing import report
    from maskclippp_jax.evaluation import scoring
    from maskclippp_jax.runtime import storage

    del arguments
    images.limit_pixels(MAX_PIXELS.value)
    if not PREDICTIONS.value:
        raise ValueError("got no --predictions; see --help")
    if OUTPUT.value and pathlib.Path(OUTPUT.value).is_dir():
        raise ValueError(f"--output is the folder {OUTPUT.value}, wanted a file")
    results, protocol = scoring.score(scoring.Request(
        PREDICTIONS.value, DATASET.value, DATA_DIR.value, SPLIT.value, SEEN.value,
        PANOPTIC_JSON.value, PANOPTIC_DIR.value, INSTANCES_JSON.value, ALLOW_MISSING.value,
        SAMPLES.value, SEED.value))
    report.print_results([dict(name=pathlib.Path(PREDICTIONS.value).name, **results)], protocol)
    if OUTPUT.value:
        storage.path(OUTPUT.value).parent.mkdir(parents=True, exist_ok=True)
        report.write_json(OUTPUT.value, dict(protocol=protocol, **results))
        logging.info("wrote %s", OUTPUT.value)
