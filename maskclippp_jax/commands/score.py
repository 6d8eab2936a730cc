"""Scores predictions in files, without a model.

    python -m maskclippp_jax.score --predictions=D --dataset=ade20k_150 --data_dir=data

`--predictions` is a folder as maskclippp_jax.predictions describes it, ours or another tool's.
Label maps, panoptic segments and instances are scored against prepared data sets of their kinds
(`--dataset`, several separated by commas); segments and instances also against COCO's own files
(`--panoptic_json`, `--panoptic_dir`, `--instances_json`). What is given is scored.
"""

import contextlib
import pathlib
import typing

import numpy as np
from absl import flags, logging
from rich.progress import track

from maskclippp_jax import cli, predictions, report, storage
from maskclippp_jax.data import bundles, coco_files, images
from maskclippp_jax.metrics.boundary import BoundaryIoU
from maskclippp_jax.metrics.instance import InstanceSegmentation
from maskclippp_jax.metrics.panoptic import PanopticQuality
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.evaluation.truth import IGNORE, Truth, open_truth
from maskclippp_jax.vocabulary import Vocabulary

PREDICTIONS = flags.DEFINE_string("predictions", None, "folder of the predictions")
DATASET = flags.DEFINE_string("dataset", None, "prepared data set, or several with commas")
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

def main(argv):
    del argv
    if not PREDICTIONS.value:
        raise ValueError("got no --predictions; see --help")
    if bool(PANOPTIC_JSON.value) != bool(PANOPTIC_DIR.value):
        raise ValueError("give both --panoptic_json and --panoptic_dir, or neither")
    manifest = predictions.read_manifest(PREDICTIONS.value)
    results = {}
    folder = PREDICTIONS.value
    if DATASET.value:
        results |= score_dataset(folder, manifest)
    if PANOPTIC_JSON.value:
        categories, pictures = coco_files.read_panoptic(PANOPTIC_JSON.value, PANOPTIC_DIR.value)
        read = {p.name: p for p in pictures}
        results["panoptic"] = score_panoptic(folder, categories, list(read), lambda name: (
            coco_files.read_ids(read[name].file), read[name].segments))
    if INSTANCES_JSON.value:
        categories, frequency, pictures = coco_files.read_instances(INSTANCES_JSON.value)
        names = {p.name: p.name for p in pictures.values()}
        names |= {i: p.name for i, p in pictures.items()}
        facts = {p.name: dict(true=p.segments, negative=p.negative,
                              not_exhaustive=p.not_exhaustive) for p in pictures.values()}
        results["instances"] = score_instances(
            folder, manifest, InstanceSegmentation(categories, frequency), names,
            facts.__getitem__, INSTANCES_JSON.value)
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
        report.write_json(OUTPUT.value, dict(protocol=protocol, **results))
        logging.info("wrote %s", OUTPUT.value)


def score_dataset(folder: str, manifest: dict | None) -> dict:
    """Results against prepared data sets, of all kinds they are the truth of."""
    truth = open_truth(DATA_DIR.value, DATASET.value, SPLIT.value)
    vocabulary = truth.vocabulary
    if manifest and manifest["classes"] != [list(c) for c in vocabulary.classes]:
        raise ValueError(f"{folder} holds classes of {manifest['vocabulary']}, but "
                         f"{DATASET.value} has those of {vocabulary.name}; score them against "
                         "their own data set")
    results = {}
    if "semantic" in truth.parts:
        results |= score_semantic(folder, truth)
    if "panoptic" in truth.parts:
        results["panoptic"] = score_panoptic(folder, truth.categories, truth.ids, truth.panoptic)
    if "instances" in truth.parts:
        ids = manifest["pictures"] if manifest else {n: int(n) for n in truth.ids if n.isdigit()}
        names = {n: n for n in truth.ids} | {i: n for n, i in ids.items() if n in truth.ids}
        results["instances"] = score_instances(
            folder, manifest,
            InstanceSegmentation(truth.instance_categories, truth.instance_frequency), names,
            truth.instances, DATASET.value)
    return results


def score_semantic(folder: str, truth: Truth) -> dict:
    """Results of label maps under `semantic` and `boundary`."""
    vocabulary = truth.vocabulary
    seen = vocabulary.seen_in(Vocabulary.shipped(SEEN.value)) if SEEN.value else None
    files = predictions.semantic_files(folder)
    check_pictures(files, truth.ids, f"{folder}/semantic")
    semantic = SemanticSegmentation(vocabulary.num_classes, IGNORE, seen)
    boundary = BoundaryIoU(vocabulary.num_classes, IGNORE)
    for name in track(truth.ids, "label maps", transient=True):
        prediction = images.read_label_map(str(files[name])) if name in files else None
        true = truth.semantic(name)
        with named(files.get(name)):
            for metric in (semantic, boundary):
                metric.process(prediction, true)
    return dict(semantic=with_ranges(semantic), boundary=with_ranges(boundary))


def score_panoptic(folder: str, categories: dict[int, bool], names: list[str],
                   read_truth: typing.Callable[[str], tuple[np.ndarray, list[dict]]]) -> dict:
    """Results of panoptic segments.

    Args:
      folder: of the predictions.
      categories: for each id whether it is a thing.
      names: of all pictures.
      read_truth: ids and segments of a picture, as `PanopticQuality` wants them.
    """
    found = predictions.panoptic_pictures(folder)
    check_pictures(found, names, f"{folder}/panoptic.json")
    metric = PanopticQuality(categories)
    for name in track(names, "panoptic segments", transient=True):
        true_ids, true_segments = read_truth(name)
        ids, segments = np.zeros_like(true_ids), []
        if name in found:
            ids, segments = coco_files.read_ids(found[name].file), found[name].segments
        with named(name):
            metric.process(ids, segments, true_ids, true_segments)
    return with_ranges(metric)


def score_instances(folder: str, manifest: dict | None, metric: InstanceSegmentation,
                    names: dict[int | str, str], read_truth: typing.Callable[[str], dict],
                    truth: str) -> dict:
    """Results of instances. Draws of pictures are not offered: each would be a whole scoring.

    Args:
      folder: of the predictions.
      manifest: of the predictions, if they are ours.
      metric: without pictures.
      names: of all pictures, by whatever a prediction may call them.
      read_truth: what `InstanceSegmentation.process` wants to know of a picture.
      truth: where the truth is from, for messages.
    """
    file = str(storage.path(folder) / "instances.json")
    rows = coco_files.read_results(file)
    found: dict[str, list[dict]] = {name: [] for name in names.values()}
    if manifest:  # elsewhere a picture without instances and one without results look the same
        check_pictures(manifest["pictures"], list(found), file)
    for row in rows:
        if row["image_id"] not in names:
            raise ValueError(f"{file} has the picture {row['image_id']}, which {truth} lacks; "
                             "score it against its own truth")
        found[names[row["image_id"]]].append(row)
    for name in found:
        metric.process(name, found[name], **read_truth(name))
    return metric.evaluate()


def check_pictures(found: typing.Collection[str], wanted: typing.Sequence[str], where: str) -> None:
    """Predictions must be of the pictures of the truth.

    Raises:
      ValueError: of others; or of fewer, unless --allow_missing.
    """
    other = sorted(set(found) - set(wanted))
    if other:
        raise ValueError(f"{where} has {bundles.some(other)}, which the ground truth lacks; score "
                         "it against its own data set and split")
    missing = sorted(set(wanted) - set(found))
    if missing and not ALLOW_MISSING.value:
        raise ValueError(f"{where} lacks {bundles.some(missing)} of the ground truth's "
                         f"{len(wanted)}; predict them, or count them as missed with "
                         "--allow_missing")


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


if __name__ == "__main__":
    cli.run(main, buckets=("predictions", "data_dir", "output"))
