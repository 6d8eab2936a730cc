"""Panoptic quality (Kirillov et al. 2019, arXiv 1801.00868), by the rules of COCO's scorer."""

import typing

import numpy as np

from maskclippp_jax import metrics
from maskclippp_jax.metrics.bootstrap import PerPicture

_VOID = 0


class PanopticQuality:
    """Matches segments.

    `counts` [K, 4] float64, a row for each category, may be summed over hosts: true positives,
    false positives, false negatives, and the sum of the IoU of true positives.
    """

    def __init__(self, categories: typing.Mapping[int, bool],
                 seen: typing.Collection[int] | None = None):
        """Starts with nothing counted.

        Args:
          categories: for each id of a category whether it is a thing, in any order.
          seen: ids of the categories known from training; None: not told apart.
        """
        self.is_thing = dict(sorted(categories.items()))
        self.seen = None if seen is None else np.isin(list(self.is_thing), list(seen))
        self._row = {category: row for row, category in enumerate(self.is_thing)}
        self.pictures = PerPicture(len(self.is_thing), 4)
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((len(self.is_thing), 4))
        self.pictures.reset()

    def process(self, prediction: np.ndarray, predicted: typing.Sequence[dict], truth: np.ndarray,
                true: typing.Sequence[dict]) -> None:
        """Adds a picture.

        A segment of the prediction and one of the truth match if they are of one category and their
        IoU is above 0.5, where pixels of the prediction on void are left out of the union. Crowds
        of the truth match nothing and are never missed. An unmatched segment of the prediction is
        not counted if more than half of it lies on void and on the crowd of its category; of
        several such crowds the last one listed counts.

        Args:
          prediction: [H, W] ids of segments, 0 = void.
          predicted: dict(id, category_id) of each segment.
          truth: [H, W] ids of segments, 0 = void.
          true: dict(id, category_id, iscrowd, area) of each segment; the area *as recorded*, which
            may be more than its pixels. If it is less, or there is none, its pixels are counted.

        Raises:
          ValueError: other shapes, ids in a map that are not listed (or, of the prediction, listed
            and not in the map), or an unknown category; nothing is counted then.
        """
        prediction, truth = np.asarray(prediction), np.asarray(truth)
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction is {prediction.shape}, the truth {truth.shape}; "
                             "bring the prediction to the stored size of the picture")
        if prediction.dtype.kind not in "iu" or truth.dtype.kind not in "iu":
            raise ValueError(f"ids are {prediction.dtype} and {truth.dtype}, wanted integers")
        predicted = self._by_id(predicted, "predicted")
        true = self._by_id(true, "true")
        pairs = (truth.astype(np.int64) << 32) + prediction
        pairs, overlap = np.unique(pairs, return_counts=True)
        shared = {divmod(pair, 2**32): n for pair, n in zip(pairs.tolist(), overlap.tolist())}
        areas: dict[int, int] = {}
        true_areas: dict[int, float] = {}
        for (g, p), n in shared.items():
            areas[p] = areas.get(p, 0) + n
            true_areas[g] = true_areas.get(g, 0) + n
        _check_ids(areas, predicted, "predicted")
        _check_ids(true_areas, true, "true")
        empty = sorted(set(predicted) - set(areas))
        if empty:
            raise ValueError(f"predicted segments {empty[:3]} have no pixel; leave them out")
        for g, segment in true.items():
            recorded, pixels = segment.get("area"), true_areas.get(g, 0)
            if not recorded or segment.get("iscrowd"):  # the area of a crowd is never asked for
                continue
            true_areas[g] = max(recorded, pixels)  # that of a polygon may be a little less

        counts = np.zeros_like(self.counts)
        found_true, found_predicted = set(), set()
        for (g, p), n in shared.items():
            if g == _VOID or p == _VOID or true[g].get("iscrowd"):
                continue
            category = true[g]["category_id"]
            if predicted[p]["category_id"] != category:
                continue
            iou = n / (true_areas[g] + areas[p] - n - shared.get((_VOID, p), 0))
            if iou > 0.5:
                counts[self._row[category]] += 1, 0, 0, iou
                found_true.add(g)
                found_predicted.add(p)
        crowds = {s["category_id"]: g for g, s in true.items() if s.get("iscrowd")}
        for g, segment in true.items():
            if g not in found_true and not segment.get("iscrowd"):
                counts[self._row[segment["category_id"]], 2] += 1
        for p, segment in predicted.items():
            if p in found_predicted:
                continue
            excused = shared.get((_VOID, p), 0)
            excused += shared.get((crowds.get(segment["category_id"]), p), 0)
            if excused / areas[p] <= 0.5:
                counts[self._row[segment["category_id"]], 1] += 1
        self.counts += counts
        self.pictures.add(counts)

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `all`, `things`, `stuff`: dict(PQ, SQ, RQ, categories), means over the categories that
        occur in truth or prediction; a category that is never matched counts as 0 in all three, so
        that PQ is not SQ * RQ here. `seen` and `unseen` are such, too, where there are both.
        `per_category`: dict(PQ, SQ, RQ) or None for each id;
        `counts`: dict(tp, fp, fn, iou_sum) for each id.
        """
        quality, occurs = _quality(self.counts)
        things = np.array(list(self.is_thing.values()), bool)
        result = {}
        parts = dict(all=occurs, things=occurs & things, stuff=occurs & ~things)
        if self.seen is not None and self.seen.any() and not self.seen.all():
            parts |= dict(seen=occurs & self.seen, unseen=occurs & ~self.seen)
        for name, chosen in parts.items():
            result[name] = dict(zip(("PQ", "SQ", "RQ"), map(metrics.mean, quality[:, chosen])),
                                categories=int(chosen.sum()))
        result["per_category"] = {
            category: (dict(zip(("PQ", "SQ", "RQ"), quality[:, row].tolist())) if occurs[row]
                       else None) for category, row in self._row.items()}
        result["counts"] = {
            category: dict(zip(("tp", "fp", "fn"), map(int, self.counts[row])),
                           iou_sum=float(self.counts[row, 3]))
            for category, row in self._row.items()}
        return result

    def intervals(self, **how) -> dict:
        """Ranges of PQ, SQ, RQ and of PQ of things and stuff (`PerPicture.intervals`)."""
        things = np.array(list(self.is_thing.values()), bool)

        def numbers(counts):
            quality, occurs = _quality(counts)
            means = dict(zip(("PQ", "SQ", "RQ"), map(metrics.mean, quality[:, occurs])))
            return means | dict(PQ_things=metrics.mean(quality[0, occurs & things]),
                                PQ_stuff=metrics.mean(quality[0, occurs & ~things]))

        return self.pictures.intervals(numbers, **how)

    def state(self) -> dict[str, np.ndarray]:
        return dict(counts=self.counts, **self.pictures.state())

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        self.counts = self.counts + metrics.same_shape(state["counts"], self.counts)
        self.pictures.add_state(state)

    def _by_id(self, segments: typing.Sequence[dict], what: str) -> dict[int, dict]:
        result = {int(s["id"]): s for s in segments}
        if len(result) != len(segments) or _VOID in result:
            raise ValueError(f"ids of {what} segments are {[s['id'] for s in segments]}, wanted "
                             "different ones, and none of 0 (void)")
        unknown = sorted({s["category_id"] for s in segments} - set(self._row))
        if unknown:
            raise ValueError(f"{what} segments are of the unknown categories {unknown[:3]}; the "
                             f"data set has {min(self._row)} ... {max(self._row)}")
        return result


def _quality(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts [K, 4] -> PQ, SQ, RQ as [3, K] percent, and which categories occur [K]."""
    tp, fp, fn, iou = counts.T
    total = tp + fp / 2 + fn / 2
    occurs = total > 0
    divide = lambda a, b: 100 * a / np.where(b > 0, b, 1)
    return np.stack([divide(iou, total), divide(iou, tp), divide(tp, total)]), occurs


def _check_ids(ids: typing.Iterable[int], segments: typing.Mapping[int, dict], what: str) -> None:
    unknown = sorted(set(ids) - set(segments) - {_VOID})
    if unknown:
        raise ValueError(f"the {what} map holds the ids {unknown[:3]}, which no {what} segment has")
