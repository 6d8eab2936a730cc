"""Predictions in files, scored without a model; `score` on the command line."""

import contextlib
import typing

import numpy as np

from maskclippp_jax.data import bundles, coco_files, images
from maskclippp_jax.evaluation import predictions
from maskclippp_jax.evaluation.truth import IGNORE, Truth, open_truth
from maskclippp_jax.metrics.boundary import BoundaryIoU
from maskclippp_jax.metrics.instance import InstanceSegmentation
from maskclippp_jax.metrics.panoptic import PanopticQuality
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.runtime import progress, storage
from maskclippp_jax.vocabulary import Vocabulary

# Where the predictions of each kind lie in their folder, see `predictions`.
_PLACES = dict(semantic="semantic/", panoptic="panoptic.json", instances="instances.json")


class Request(typing.NamedTuple):
    """What is scored against what; None: not wanted."""

    predictions: str                  # folder, see `predictions`
    dataset: str | None = None        # prepared data set, or several with commas
    data_dir: str = "data"
    split: str = "validation"
    seen_vocabulary: str | None = None  # known from training, to tell apart; see `Vocabulary.load`
    panoptic_json: str | None = None  # true panoptic segments in COCO's form ...
    panoptic_dir: str | None = None   # ... and the folder of their PNG files
    instances_json: str | None = None  # true instances in COCO's or LVIS' form
    allow_missing: bool = False       # pictures without a prediction count as missed
    samples: int = 0                  # of the bootstrap over pictures; 0: no ranges
    seed: int = 0                     # of the bootstrap


def score(request: Request) -> tuple[dict, dict]:
    """Scores what there are predictions and truth of.

    Returns:
      Results by metric, and the protocol they were measured under.

    Raises:
      FileNotFoundError, ValueError: files are missing, or predictions and truth do not fit.
    """
    if bool(request.panoptic_json) != bool(request.panoptic_dir):
        raise ValueError("give both --panoptic_json and --panoptic_dir, or neither")
    manifest = predictions.read_manifest(request.predictions)
    results, without = {}, []
    if request.dataset:
        results, without = score_dataset(request, manifest)
    if request.panoptic_json:
        categories, pictures = coco_files.read_panoptic(
            request.panoptic_json, request.panoptic_dir)
        read = {p.name: p for p in pictures}
        results["panoptic"] = score_panoptic(request, categories, list(read), lambda name: (
            coco_files.read_ids(read[name].file), read[name].segments))
    if request.instances_json:
        categories, frequency, pictures = coco_files.read_instances(request.instances_json)
        names = {p.name: p.name for p in pictures.values()}
        names |= {i: p.name for i, p in pictures.items()}
        # In the order of their ids, as COCO's scorer takes them: of equal scores the first counts.
        facts = {p.name: dict(image_id=i, true=p.segments, negative=p.negative,
                              not_exhaustive=p.not_exhaustive) for i, p in pictures.items()}
        results["instances"] = score_instances(
            request, manifest, InstanceSegmentation(categories, frequency), names,
            facts.__getitem__, request.instances_json)
    if not results:
        raise ValueError("got no ground truth; give --dataset, --panoptic_json with "
                         "--panoptic_dir, or --instances_json")
    protocol = dict(
        predictions=request.predictions, made_with=(manifest or {}).get("protocol", "unknown"),
        dataset=request.dataset and f"{request.dataset} {request.split}",
        panoptic_truth=request.panoptic_json, instance_truth=request.instances_json,
        not_scored=", ".join(without) or None,
        missing_pictures="count as missed" if request.allow_missing else "none",
        ranges=(f"95 % of {request.samples} draws of pictures, seed {request.seed}"
                if any("intervals" in result for result in results.values()) else "none"))
    return results, {k: v for k, v in protocol.items() if v is not None}


def score_dataset(request: Request, manifest: dict | None) -> tuple[dict, list[str]]:
    """Results against prepared data sets, of all kinds that there are predictions of, and what they
    are the truth of without any.

    Raises:
      FileNotFoundError: there are none of any kind.
    """
    truth = open_truth(request.data_dir, request.dataset, request.split)
    vocabulary = truth.vocabulary
    if manifest and manifest["classes"] != [list(c) for c in vocabulary.classes]:
        raise ValueError(f"{request.predictions} holds classes of {manifest['vocabulary']}, but "
                         f"{request.dataset} has those of {vocabulary.name}; score them against "
                         "their own data set")
    folder = storage.path(request.predictions)
    there = {part: (folder / name).exists() for part, name in _PLACES.items()}
    parts = [part for part in truth.parts if there[part]]
    without = [f"{part} (no {_PLACES[part]})" for part in truth.parts if not there[part]]
    if not parts:
        raise FileNotFoundError(f"no {' and no '.join(_PLACES[p] for p in truth.parts)} in "
                                f"{request.predictions}, which {request.dataset} is the truth of; "
                                "give the folder that holds them")
    results, seen = {}, None
    if request.seen_vocabulary:
        seen = vocabulary.seen_in(Vocabulary.load(request.seen_vocabulary))
    if "semantic" in parts:
        results |= score_semantic(request, truth, seen)
    if "panoptic" in parts:
        results["panoptic"] = score_panoptic(
            request, truth.categories, truth.ids, truth.panoptic, truth.ids_of(seen))
    if "instances" in parts:
        ids = manifest["pictures"] if manifest else predictions.coco_ids(truth.ids)
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"{request.predictions}/predictions.json has pictures of one id, as "
                             "an earlier version gave to 1 and 01; make the predictions anew")
        names = {n: n for n in truth.ids} | {i: n for n, i in ids.items() if n in truth.ids}
        results["instances"] = score_instances(
            request, manifest,
            InstanceSegmentation(truth.instance_categories, truth.instance_frequency,
                                 seen=truth.ids_of(seen)), names,
            truth.instances, request.dataset)
    return results, without


def score_semantic(request: Request, truth: Truth, seen: np.ndarray | None) -> dict:
    """Results of label maps under `semantic` and `boundary`; `seen` [C] bool."""
    vocabulary = truth.vocabulary
    files = predictions.semantic_files(request.predictions)
    check_pictures(files, truth.pictures, f"{request.predictions}/semantic", request.allow_missing)
    semantic = SemanticSegmentation(vocabulary.num_classes, IGNORE, seen)
    boundary = BoundaryIoU(vocabulary.num_classes, IGNORE)
    for name in progress.track(truth.pictures, "label maps"):
        prediction = images.read_label_map(str(files[name])) if name in files else None
        true = truth.semantic(name)
        with named(files.get(name)):
            for metric in (semantic, boundary):
                metric.process(prediction, true)
    return dict(semantic=with_ranges(semantic, request),
                boundary=with_ranges(boundary, request))


def score_panoptic(request: Request, categories: dict[int, bool], names: list[str],
                   read_truth: typing.Callable[[str], tuple[np.ndarray, list[dict]]],
                   seen: list[int] | None = None) -> dict:
    """Results of panoptic segments.

    Args:
      request: names the folder of the predictions.
      categories: for each id whether it is a thing.
      names: of all pictures.
      read_truth: ids and segments of a picture, as `PanopticQuality` wants them.
      seen: ids of the categories known from training; None: not told apart.
    """
    found = predictions.panoptic_pictures(request.predictions)
    check_pictures(found, names, f"{request.predictions}/panoptic.json", request.allow_missing)
    metric = PanopticQuality(categories, seen)
    for name in progress.track(names, "panoptic segments"):
        true_ids, true_segments = read_truth(name)
        ids, segments = np.zeros_like(true_ids), []
        if name in found:
            ids, segments = coco_files.read_ids(found[name].file), found[name].segments
        with named(name):
            metric.process(ids, segments, true_ids, true_segments)
    return with_ranges(metric, request)


def score_instances(request: Request, manifest: dict | None, metric: InstanceSegmentation,
                    names: dict[int | str, str], read_truth: typing.Callable[[str], dict],
                    truth: str) -> dict:
    """Results of instances. Draws of pictures are not offered: each would be a whole scoring.

    Args:
      request: names the folder of the predictions.
      manifest: of the predictions, if they are ours.
      metric: without pictures.
      names: of all pictures, by whatever a prediction may call them.
      read_truth: what `InstanceSegmentation.process` wants to know of a picture; without an
        `image_id` its name is one.
      truth: where the truth is from, for messages.
    """
    file = str(storage.path(request.predictions) / "instances.json")
    rows = coco_files.read_results(file)
    found: dict[str, list[dict]] = {name: [] for name in names.values()}
    if manifest:  # elsewhere a picture without instances and one without results look the same
        check_pictures(manifest["pictures"], list(found), file, request.allow_missing)
    for row in rows:
        if row["image_id"] not in names:
            raise ValueError(f"{file} has the picture {row['image_id']}, which {truth} lacks; "
                             "score it against its own truth")
        found[names[row["image_id"]]].append(row)
    for name in found:
        metric.process(**dict(image_id=name) | read_truth(name), predicted=found[name])
    return metric.evaluate()


def check_pictures(found: typing.Collection[str], wanted: typing.Sequence[str], where: str,
                   allow_missing: bool) -> None:
    """Predictions must be of the pictures of the truth.

    Raises:
      ValueError: of others; or of fewer, unless that is allowed.
    """
    other = sorted(set(found) - set(wanted))
    if other:
        raise ValueError(f"{where} has {bundles.some(other)}, which the ground truth lacks; score "
                         "it against its own data set and split")
    missing = sorted(set(wanted) - set(found))
    if missing and not allow_missing:
        raise ValueError(f"{where} lacks {bundles.some(missing)} of the ground truth's "
                         f"{len(wanted)}; predict them, or count them as missed with "
                         "--allow_missing")


def with_ranges(metric, request: Request) -> dict:
    """The values of a metric and, if wanted, their ranges on other pictures."""
    result = metric.evaluate()
    if request.samples:
        result["intervals"] = metric.intervals(samples=request.samples, seed=request.seed)
    return result


@contextlib.contextmanager
def named(what):
    """Errors say which file or picture they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
