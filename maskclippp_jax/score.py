"""Scores predictions in files, without a model.

    python -m maskclippp_jax.score --predictions=D --dataset=ade20k_150 --data_dir=data

`--predictions` is a folder as maskclippp_jax.predictions describes it, ours or another tool's.
Label maps are scored against a prepared data set (`--dataset`), panoptic segments against COCO's
JSON and PNG files (`--panoptic_json`, `--panoptic_dir`), instances against COCO's JSON
(`--instances_json`); what is given is scored.
"""

import contextlib
import pathlib
import typing

import numpy as np
from absl import flags, logging
from rich.progress import track

from maskclippp_jax import cli, predictions, report
from maskclippp_jax.data import coco_files, images, records
from maskclippp_jax.metrics.boundary import BoundaryIoU
from maskclippp_jax.metrics.instance import InstanceSegmentation
from maskclippp_jax.metrics.panoptic import PanopticQuality
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.vocabulary import Vocabulary

PREDICTIONS = flags.DEFINE_string("predictions", None, "folder of the predictions")
DATASET = flags.DEFINE_string("dataset", None, "prepared data set, for label maps")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "folder of the prepared data sets")
SPLIT = flags.DEFINE_string("split", "validation", "of the data set")
SEEN = flags.DEFINE_string("seen_vocabulary", None, "names known from training, to tell apart")
PANOPTIC_JSON = flags.DEFINE_string("panoptic_json", None, "true panoptic segments")
PANOPTIC_DIR = flags.DEFINE_string("panoptic_dir", None, "folder of their PNG files")
INSTANCES_JSON = flags.DEFINE_string("instances_json", None, "true instances")
ALLOW_MISSING = flags.DEFINE_bool("allow_missing", False,
                                  "pictures without a prediction count as missed")
SAMPLES = flags.DEFINE_integer("samples", 1000, "of the bootstrap over pictures; 0: no ranges")
SEED = flags.DEFINE_integer("seed", 0, "of the bootstrap")
OUTPUT = flags.DEFINE_string("output", None, "file for the results as JSON")

_IGNORE = 65535  # truth of pixels without a class


def main(argv):
    del argv
    if not PREDICTIONS.value:
        raise ValueError("got no --predictions; see --help")
    if bool(PANOPTIC_JSON.value) != bool(PANOPTIC_DIR.value):
        raise ValueError("give both --panoptic_json and --panoptic_dir, or neither")
    manifest = predictions.read_manifest(PREDICTIONS.value)
    results = {}
    if DATASET.value:
        results |= score_semantic(PREDICTIONS.value, manifest)
    if PANOPTIC_JSON.value:
        results["panoptic"] = score_panoptic(PREDICTIONS.value)
    if INSTANCES_JSON.value:
        results["instances"] = score_instances(PREDICTIONS.value, manifest)
    if not results:
        raise ValueError("got no ground truth; give --dataset, --panoptic_json with "
                         "--panoptic_dir, or --instances_json")
    protocol = dict(
        predictions=PREDICTIONS.value, made_with=(manifest or {}).get("protocol", "unknown"),
        dataset=DATASET.value and f"{DATASET.value} {SPLIT.value}",
        panoptic_truth=PANOPTIC_JSON.value, instance_truth=INSTANCES_JSON.value,
        missing_pictures="count as missed" if ALLOW_MISSING.value else "none",
        ranges=(f"95 % of {SAMPLES.value} draws of pictures, seed {SEED.value}" if SAMPLES.value
                else "none"))
    protocol = {k: v for k, v in protocol.items() if v is not None}
    report.print_results([dict(name=pathlib.Path(PREDICTIONS.value).name, **results)], protocol)
    if OUTPUT.value:
        report.write_json(pathlib.Path(OUTPUT.value), dict(protocol=protocol, **results))
        logging.info("wrote %s", OUTPUT.value)


def score_semantic(folder: str, manifest: dict | None) -> dict:
    """Results of label maps under `semantic` and `boundary`."""
    source = records.open_source(DATA_DIR.value, DATASET.value, SPLIT.value)
    vocabulary = source.vocabulary
    if manifest and manifest["classes"] != [list(c) for c in vocabulary.classes]:
        raise ValueError(f"{folder} holds classes of {manifest['vocabulary']}, but "
                         f"{DATASET.value} has those of {vocabulary.name}; score them against "
                         "their own data set")
    seen = vocabulary.seen_in(Vocabulary.shipped(SEEN.value)) if SEEN.value else None
    files = predictions.semantic_files(folder)
    ids = [_text(source.records[i]["image_id"]) for i in range(len(source.records))]
    check_pictures(files, ids, f"{folder}/semantic")
    semantic = SemanticSegmentation(vocabulary.num_classes, _IGNORE, seen)
    boundary = BoundaryIoU(vocabulary.num_classes, _IGNORE)
    for i, name in enumerate(track(ids, "label maps", transient=True)):
        truth = true_labels(source.records[i])
        prediction = images.read_label_map(str(files[name])) if name in files else None
        with named(files.get(name)):
            for metric in (semantic, boundary):
                metric.process(prediction, truth)
    return dict(semantic=with_ranges(semantic), boundary=with_ranges(boundary))


def score_panoptic(folder: str) -> dict:
    """Results of panoptic segments."""
    categories, truth = coco_files.read_panoptic(PANOPTIC_JSON.value, PANOPTIC_DIR.value)
    found = predictions.panoptic_pictures(folder)
    check_pictures(found, [p.name for p in truth], f"{folder}/panoptic.json")
    metric = PanopticQuality(categories)
    for picture in track(truth, "panoptic segments", transient=True):
        true_ids = coco_files.read_ids(picture.file)
        predicted = found.get(picture.name)
        ids, segments = np.zeros_like(true_ids), []
        if predicted:
            ids, segments = coco_files.read_ids(predicted.file), predicted.segments
        with named(picture.name):
            metric.process(ids, segments, true_ids, picture.segments)
    return with_ranges(metric)


def score_instances(folder: str, manifest: dict | None) -> dict:
    """Results of instances. Draws of pictures are not offered: each would be a whole scoring."""
    categories, truth = coco_files.read_instances(INSTANCES_JSON.value)
    file = str(pathlib.Path(folder) / "instances.json")
    rows = coco_files.read_results(file)
    if manifest:  # elsewhere a picture without instances and one without results look the same
        check_pictures(manifest["pictures"], [p.name for p in truth.values()], file)
    names = {p.name: p.name for p in truth.values()} | {i: p.name for i, p in truth.items()}
    found: dict[str, list[dict]] = {p.name: [] for p in truth.values()}
    for row in rows:
        if row["image_id"] not in names:
            raise ValueError(f"{file} has the picture {row['image_id']}, which "
                             f"{INSTANCES_JSON.value} lacks; score it against its own truth")
        found[names[row["image_id"]]].append(row)
    metric = InstanceSegmentation(categories)
    for picture in truth.values():
        metric.process(picture.name, found[picture.name], picture.segments)
    return metric.evaluate()


def check_pictures(found: typing.Collection[str], wanted: typing.Sequence[str], where: str) -> None:
    """Predictions must be of the pictures of the truth.

    Raises:
      ValueError: of others; or of fewer, unless --allow_missing.
    """
    other = sorted(set(found) - set(wanted))
    if other:
        raise ValueError(f"{where} has {_some(other)}, which the ground truth lacks; score it "
                         "against its own data set and split")
    missing = sorted(set(wanted) - set(found))
    if missing and not ALLOW_MISSING.value:
        raise ValueError(f"{where} lacks {_some(missing)} of the ground truth's {len(wanted)}; "
                         "predict them, or count them as missed with --allow_missing")


def true_labels(record: dict) -> np.ndarray:
    """The label map of a record: [H, W] int64 classes, `_IGNORE` where nothing is."""
    segments = records.decode_segments(record["segments"])
    table = np.full(int(max(segments.max(initial=0), *record["table"]["id"], 0)) + 1, _IGNORE)
    table[record["table"]["id"]] = record["table"]["class_id"]
    return table[segments]


def with_ranges(metric) -> dict:
    """The values of a metric and, if wanted, their ranges on other pictures."""
    result = metric.evaluate()
    if SAMPLES.value:
        result["intervals"] = metric.intervals(samples=SAMPLES.value, seed=SEED.value)
    return result


@contextlib.contextmanager
def named(what):
    """Errors say which file or picture they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} picture{'s' * (len(names) != 1)} ({shown})"


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


if __name__ == "__main__":
    cli.run(main)
