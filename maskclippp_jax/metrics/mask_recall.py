"""How many true segments a generator finds, whatever it calls them: average recall (AR).

A segment is found at a threshold if some mask overlaps it by that IoU or more. As in COCO's scorer
of proposals (Lin et al. 2014, arXiv 1405.0312) the thresholds are 0.50, 0.55, ..., 0.95 and AR is
the mean over them; every segment weighs the same. Masks have no order and none is left out, so more
masks find more: `masks_per_picture` stands beside it. One mask may count for several segments; of
segments that do not overlap it cannot reach half of two.
"""

import typing

import numpy as np

from maskclippp_jax import metrics
from maskclippp_jax.metrics.bootstrap import PerPicture

THRESHOLDS = np.arange(50, 100, 5) / 100
_AREAS = (32**2, 96**2)  # pixels; up to them segments are small (below), medium (up to)
_WIDTH = 1 + len(THRESHOLDS)  # of a class and size: segments, and those found at each threshold


class Overlaps(typing.NamedTuple):
    """The true segments of a picture, and how well its masks fit them."""

    best: np.ndarray     # [m] float, IoU of each segment with the mask that fits best
    areas: np.ndarray    # [m] pixels of each
    classes: np.ndarray  # [m] ints
    masks: int           # how many masks the picture has


def best_iou(masks: np.ndarray, segments: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """IoU of every segment with the mask that fits it best.

    Args:
      masks: [n, H, W] bool.
      segments: [m, H, W] bool, each with a pixel that is counted.
      counted: [H, W] bool; what masks cover elsewhere does them no harm.

    Returns:
      [m] float64 in 0 ... 1; 0 if there are no masks.
    """
    flat, used = masks.reshape(len(masks), counted.size), np.flatnonzero(counted)
    sizes, best = flat[:, used].sum(1), np.zeros(len(segments))
    for n, segment in enumerate(segments):
        pixels = np.flatnonzero(segment & counted)
        both = flat[:, pixels].sum(1)
        best[n] = (both / (sizes + len(pixels) - both)).max(initial=0)
    return best


class MaskRecall:
    """Counts segments, and those that are found.

    `counts` [K, 3, 1 + thresholds] int64 (small, medium and large segments: how many there are, and
    how many are found at each threshold) may be summed over hosts.
    """

    def __init__(self, num_classes: int, seen: np.ndarray | None = None,
                 is_thing: np.ndarray | None = None):
        """Starts with nothing counted.

        Args:
          num_classes: K.
          seen: [K] bool, known from training; None: not told apart.
          is_thing: [K] bool, things against stuff; None: not told apart.
        """
        self.num_classes = num_classes
        self.seen = metrics.check_flags(seen, num_classes, "seen")
        self.is_thing = metrics.check_flags(is_thing, num_classes, "is_thing")
        self.pictures = PerPicture(num_classes, 3 * _WIDTH)
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((self.num_classes, 3, _WIDTH), np.int64)
        self.masks = 0
        self.pictures.reset()

    def process(self, overlaps: Overlaps) -> None:
        """Adds a picture.

        Raises:
          ValueError: classes out of range, or not one IoU and area for each; nothing is counted
            then.
        """
        classes = metrics.check_classes(overlaps.classes, self.num_classes, "true")
        best, areas = np.asarray(overlaps.best), np.asarray(overlaps.areas)
        if not best.shape == areas.shape == classes.shape:
            raise ValueError(f"got {best.shape} overlaps and {areas.shape} areas of "
                             f"{classes.shape} segments, wanted one of each")
        size = np.where(areas < _AREAS[0], 0, np.where(areas <= _AREAS[1], 1, 2))
        sums, found = np.zeros_like(self.counts), best[:, None] >= THRESHOLDS
        np.add.at(sums, (classes, size), np.pad(found, [(0, 0), (1, 0)], constant_values=True))
        self.counts += sums
        self.pictures.add(sums.reshape(self.num_classes, -1))
        self.masks += overlaps.masks

    def evaluate(self) -> dict:
        """Percentages; None where there is no such segment.

        `AR`, and `AR50`, `AR75` at one threshold; `ARs`, `ARm`, `ARl` of segments below 32 x 32
        pixels, up to 96 x 96, and larger; `things`, `stuff`, `seen`, `unseen` (None if not told
        apart, or all or none of the classes); `by_threshold` of `THRESHOLDS`; `per_class` [K];
        `segments`, `masks_per_picture`.
        """
        by_class, total = self.counts.sum(1), self.counts.sum((0, 1))
        return dict(
            self._recalls(self.counts), by_threshold=[_percent(total[k + 1], total[0])
                                               for k in range(len(THRESHOLDS))],
            per_class=[_recall(row) for row in by_class], segments=int(total[0]),
            masks_per_picture=(self.masks / self.pictures.count if self.pictures.count else None))

    def intervals(self, **how) -> dict:
        """Ranges of the recalls of `evaluate` (`PerPicture.intervals`)."""
        return self.pictures.intervals(
            lambda sums: self._recalls(sums.reshape(self.num_classes, 3, _WIDTH)), **how)

    def state(self) -> dict[str, np.ndarray]:
        return dict(counts=self.counts, masks=np.array(self.masks), **self.pictures.state())

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        self.counts = self.counts + metrics.same_shape(state["counts"], self.counts)
        self.masks += int(state["masks"])
        self.pictures.add_state(state)

    def _recalls(self, sums: np.ndarray) -> dict[str, float | None]:
        by_class, total = sums.sum(1), sums.sum((0, 1))
        at = lambda threshold: _percent(
            total[1 + int(np.argmax(threshold == THRESHOLDS))], total[0])
        seen, unseen = self._two(by_class, self.seen)
        things, stuff = self._two(by_class, self.is_thing)
        return dict(AR=_recall(total), AR50=at(0.5), AR75=at(0.75),
                    **{name: _recall(sums[:, k].sum(0))
                       for k, name in enumerate(("ARs", "ARm", "ARl"))},
                    things=things, stuff=stuff, seen=seen, unseen=unseen)

    def _two(self, by_class: np.ndarray, flags: np.ndarray | None
             ) -> tuple[float | None, float | None]:
        if flags is None or flags.all() or not flags.any():
            return None, None
        return _recall(by_class[flags].sum(0)), _recall(by_class[~flags].sum(0))


def _recall(sums: np.ndarray) -> float | None:
    """Mean over thresholds, from [_WIDTH]."""
    return _percent(sums[1:].mean(), sums[0])


def _percent(found: float, segments: float) -> float | None:
    return float(100 * found / segments) if segments else None
