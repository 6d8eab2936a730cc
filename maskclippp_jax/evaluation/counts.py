"""What an evaluation counts, picture by picture, and how it goes on after a stop."""

import json
import time
import typing

import jax
import numpy as np
from etils import epath

from maskclippp_jax import metrics
from maskclippp_jax.data import coco_files, images
from maskclippp_jax.drawing import report
from maskclippp_jax.evaluation import predictions
from maskclippp_jax.evaluation.truth import IGNORE, Truth
from maskclippp_jax.metrics import mask_recall, run_lengths
from maskclippp_jax.metrics.boundary import BoundaryIoU
from maskclippp_jax.metrics.instance import InstanceSegmentation
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy
from maskclippp_jax.metrics.mask_recall import MaskRecall, Overlaps
from maskclippp_jax.metrics.panoptic import PanopticQuality
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.naming.segmenter import Found
from maskclippp_jax.runtime import hosts, storage, typed

_SAVE_EVERY = 60  # seconds


class Evaluation:
    """All metrics of one model on one ground truth."""

    def __init__(self, truth: Truth, seen: np.ndarray | None, parts: typing.Sequence[str], *,
                 writer: predictions.Writer | None = None):
        """Starts with nothing counted.

        Args:
          truth: what predictions are compared with.
          seen: [C] bool, classes known from training; None: not told apart.
          parts: what is measured, of "mask_accuracy", "mask_recall", "semantic", "panoptic",
            "instances".
          writer: keeps the predictions, if given.
        """
        self.truth, self.parts, self.writer = truth, parts, writer
        vocabulary = truth.vocabulary
        known = truth.ids_of(seen)
        make = dict(
            mask_accuracy=lambda: dict(mask_accuracy=MaskAccuracy(
                vocabulary.num_classes, seen, vocabulary.is_thing)),
            mask_recall=lambda: dict(mask_recall=MaskRecall(
                vocabulary.num_classes, seen, vocabulary.is_thing)),
            semantic=lambda: dict(
                semantic=SemanticSegmentation(vocabulary.num_classes, IGNORE, seen),
                boundary=BoundaryIoU(vocabulary.num_classes, IGNORE)),
            panoptic=lambda: dict(panoptic=PanopticQuality(truth.categories, known)),
            instances=lambda: dict(instances=InstanceSegmentation(
                truth.instance_categories, truth.instance_frequency, seen=known)))
        self.metrics: dict[str, metrics.Metric] = {}
        for part in parts:
            self.metrics |= make[part]()

    def add(self, image_id: str, found: Found, labels: np.ndarray | None = None,
            overlaps: Overlaps | None = None) -> None:
        """Counts a picture, and writes its predictions.

        Args:
          image_id: of the picture.
          found: its results.
          labels: [N] true classes of its masks, -1 for slots without a mask; where the masks are
            the ground truth's.
          overlaps: of its masks with the true segments, for "mask_recall".
        """
        m, dataset_ids = self.metrics, self.truth.vocabulary.dataset_ids
        if labels is not None and "mask_accuracy" in m:
            used = labels >= 0
            if used.any():  # a picture without any class says nothing
                m["mask_accuracy"].process(found.mask_classes[:len(labels)][used], labels[used])
        if "mask_recall" in m:
            m["mask_recall"].process(overlaps)
        if not self.truth.tiles:
            self.add_labels(image_id, found.labels)
        if "panoptic" in m:
            ids, segments = found.panoptic
            renamed = [dict(s, category_id=dataset_ids[s["category_id"]]) for s in segments]
            m["panoptic"].process(ids, renamed, *self.truth.panoptic(image_id))
            if self.writer:
                self.writer.panoptic(image_id, ids, segments)
        if "instances" in m:
            known = np.isin(np.array(dataset_ids)[found.instances.classes],
                            self.truth.instance_categories)
            scores, classes, masks = (x[known] for x in found.instances)
            rows = [dict(category_id=dataset_ids[c], score=float(score),
                         segmentation=run_lengths.encode(mask))
                    for score, c, mask in zip(scores, classes, masks)]
            m["instances"].process(image_id, rows, **self.truth.instances(image_id))
            if self.writer:
                self.writer.instances(image_id, scores, classes, masks)

    def add_labels(self, image_id: str, labels: np.ndarray | None) -> None:
        """Counts the label map [H, W] of a picture, and writes it; `add` does it where pictures
        are whole."""
        if "semantic" in self.metrics:
            self._add_semantic(image_id, labels)
            if self.writer:
                self.writer.semantic(image_id, labels)

    def add_missing(self, image_id: str) -> None:
        """Counts a picture without masks: everything in it is missed."""
        m = self.metrics
        if "mask_recall" in m:
            m["mask_recall"].process(overlaps_of(self.truth, image_id, None))
        if "semantic" in m:
            self._add_semantic(image_id, None)
        if "panoptic" in m:
            ids, segments = self.truth.panoptic(image_id)
            m["panoptic"].process(np.zeros_like(ids), [], ids, segments)
        if "instances" in m:
            m["instances"].process(image_id, [], **self.truth.instances(image_id))

    def results(self, samples: int, seed: int) -> dict:
        """Values of all metrics; ranges of `samples` draws of pictures, confusions if offered."""
        results = {}
        for name, metric in self.metrics.items():
            results[name] = metric.evaluate()
            if samples and hasattr(metric, "intervals"):
                results[name]["intervals"] = metric.intervals(samples=samples, seed=seed)
            if name in ("mask_accuracy", "semantic"):
                classes = self.truth.vocabulary.num_classes
                results[name]["confusions"] = metrics.confusions(metric.counts[:classes, :classes])
        return results

    def sum_over_hosts(self) -> None:
        """Gives every host what all of them have counted together."""
        if jax.process_count() > 1:
            for metric in self.metrics.values():
                hosts.sum_metric(metric)

    def _add_semantic(self, image_id: str, labels: np.ndarray | None) -> None:
        truth = self.truth.semantic(image_id)
        self.metrics["semantic"].process(labels, truth)
        self.metrics["boundary"].process(labels, truth)


def overlaps_of(truth: Truth, image_id: str, masks: np.ndarray | None) -> Overlaps:
    """How well masks [n, H, W] bool fit the true segments of a picture; None: there are none."""
    true = truth.segments(image_id)
    if masks is None:
        masks = np.zeros((0, *true.counted.shape), bool)
    return Overlaps(mask_recall.best_iou(masks, true.masks, true.counted),
                    true.masks.sum((1, 2)), true.classes, len(masks))


class Extremes:
    """The pictures that went best and worst so far, with their label maps, in a folder."""

    def __init__(self, folder: epath.Path, count: int):
        """Starts, or takes up what the folder holds.

        Args:
          folder: made if it is not there.
          count: how many of the best, and of the worst.
        """
        self.folder, self.count, self._file = folder, count, folder / "scores.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.scores: dict[str, float] = {}
        if self._file.exists():
            self.scores = typed.read(self._file, dict[str, float])

    def add(self, image_id: str, score: float, labels: np.ndarray) -> None:
        """Takes a picture into account: its score, and the label map [H, W] it got."""
        if len(self.scores) >= 2 * self.count:
            middle = sorted(self.scores.values())[self.count - 1:self.count + 1]
            if not self.count or middle[0] <= score <= middle[1]:
                return
        self.scores[image_id] = score
        coco_files.write_png(self._map(image_id), labels.astype(np.uint16))
        while len(self.scores) > 2 * self.count:
            dropped = sorted(self.scores, key=self.scores.__getitem__)[self.count]
            del self.scores[dropped]
            self._map(dropped).unlink()
        report.write_json(self._file, self.scores)

    def ranked(self) -> list[tuple[str, float, np.ndarray]]:
        """Id, score and label map of each, the best first."""
        return [(name, self.scores[name], images.read_label_map(str(self._map(name))))
                for name in sorted(self.scores, key=lambda name: -self.scores[name])]

    def _map(self, image_id: str) -> epath.Path:
        return self.folder / coco_files.file_of(image_id, ".png")


def picture_score(labels: np.ndarray, truth: np.ndarray) -> float | None:
    """Mean IoU in percent over the classes of one picture's truth; None if it has none."""
    used = truth != IGNORE
    both = np.bincount(truth[used & (labels == truth)])
    true, found = np.bincount(truth[used]), np.bincount(labels[used])
    present = np.flatnonzero(true)
    at = lambda counts: np.pad(counts, (0, max(0, len(true) - len(counts))))[present]
    if not len(present):
        return None
    return float(100 * (at(both) / (true[present] + at(found) - at(both))).mean())


class Progress:
    """What one model's evaluation has counted so far, kept so that it can go on after a stop.

    Every host has a file of its own.
    """

    def __init__(self, folder: epath.Path, evaluation: Evaluation, protocol: dict):
        """Starts, or takes up what was counted before.

        Raises:
          ValueError: what is there was counted under another protocol, or by another number of
            hosts.
        """
        self.folder, self.evaluation = folder, evaluation
        self.hosts = jax.process_count()
        self.file = folder / f"{jax.process_index()}-of-{self.hosts}.npz"
        self.mine: list[str] = []
        self._check(protocol)
        if self.file.exists():
            self.mine = metrics.load([self.file], evaluation.metrics)
        self.done = set()  # by any host
        for file in folder.glob("[0-9]*.npz"):
            self.done |= set(metrics.read(file)[0])
        if self.hosts > 1:  # nobody may write before everybody has read
            hosts.wait_for_all("progress was read")
        self._saved = time.monotonic()

    def add(self, *image_ids: str) -> None:
        """Pictures have been counted."""
        self.mine += image_ids
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        storage.write(self.file, metrics.dump(self.evaluation.metrics, self.mine))
        self._saved = time.monotonic()

    def _check(self, protocol: dict) -> None:
        file = self.folder / "protocol.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        now = json.loads(json.dumps(protocol))
        if file.exists():
            then = typed.read(file, dict[str, typing.Any])
            changed = [k for k in {**then, **now} if then.get(k) != now.get(k)]
            if changed:
                raise ValueError(
                    f"{self.folder} holds an unfinished evaluation with {changed[0]} "
                    f"{then.get(changed[0])!r}, now it is {now.get(changed[0])!r}; give another "
                    "--workdir, or remove that folder")
        others = [f.name for f in self.folder.glob("[0-9]*.npz")
                  if not f.name.endswith(f"-of-{self.hosts}.npz")]
        if others:
            raise ValueError(f"{self.folder} holds {others[0]}, but there are {self.hosts} hosts "
                             "now; go on with as many as before, or remove that folder")
        if jax.process_index() == 0 and not file.exists():
            report.write_json(file, protocol)
