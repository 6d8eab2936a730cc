"""Semantic segmentation: mean intersection over union in both definitions in use, and accuracies."""

import numpy as np


class SemanticSegmentation:
    """Counts pixels.

    `counts` [K+1, K+1] int64 (row = prediction, column = truth; the last column holds ignored pixels,
    the last row stays empty) may be summed over hosts.
    """

    def __init__(self, num_classes: int, ignore_label: int, seen: np.ndarray | None = None):
        """Args: num_classes: K. ignore_label: truth that counts nowhere. seen: [K] bool or None."""
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.seen = None if seen is None else np.asarray(seen, bool)
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((self.num_classes + 1,) * 2, np.int64)

    def process(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Adds a picture: integer maps [H, W] of predicted (0 ... K-1) and true classes.

        Raises:
          ValueError: other shapes, or classes out of range.
        """
        prediction, truth = np.asarray(prediction), np.asarray(truth)
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction is {prediction.shape}, the ground truth {truth.shape}; "
                             "bring the prediction to the stored size of the picture")
        truth = np.where(truth == self.ignore_label, self.num_classes, truth).astype(np.int64)
        prediction = prediction.astype(np.int64)
        for name, values, limit in (("predicted", prediction, self.num_classes),
                                    ("true", truth, self.num_classes + 1)):
            if values.size and not (0 <= values.min() and values.max() < limit):
                raise ValueError(f"{name} classes lie in {values.min()} ... {values.max()}, wanted "
                                 f"0 ... {self.num_classes - 1} (or {self.ignore_label} to ignore)")
        width = self.num_classes + 1
        pairs = np.bincount((prediction * width + truth).ravel(), minlength=width * width)
        self.counts += pairs.reshape(width, width)

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `mIoU`: mean over classes in the ground truth (all published numbers of MaskCLIP++).
        `mIoU_counting_absent_predicted`: classes that are predicted but absent count as 0 (detectron2
        up to 0.6). `mIoU_seen`, `mIoU_unseen`, their harmonic mean, `fwIoU`, `mACC`, `pACC`, and per
        class `IoU` and `ACC`.
        """
        counts = self.counts[:-1, :-1].astype(np.float64)
        hit, truth, predicted = np.diagonal(counts), counts.sum(0), counts.sum(1)
        occurs = truth > 0
        divide = lambda a, b: np.divide(a, b, out=np.full(self.num_classes, np.nan), where=occurs)
        iou = divide(hit, truth + predicted - hit) * 100
        accuracy = divide(hit, truth) * 100
        absent = int(((predicted > 0) & ~occurs).sum())
        seen = unseen = harmonic = None
        if self.seen is not None and self.seen.any() and not self.seen.all():
            seen, unseen = _mean(iou[occurs & self.seen]), _mean(iou[occurs & ~self.seen])
            if seen and unseen:
                harmonic = 2 * seen * unseen / (seen + unseen)
        some = occurs.any()
        return dict(
            mIoU=_mean(iou[occurs]),
            mIoU_counting_absent_predicted=(
                float(iou[occurs].sum() / (occurs.sum() + absent)) if occurs.sum() + absent else None),
            mIoU_seen=seen, mIoU_unseen=unseen, mIoU_harmonic=harmonic,
            fwIoU=float((iou[occurs] * truth[occurs]).sum() / truth.sum()) if some else None,
            mACC=_mean(accuracy[occurs]),
            pACC=float(100 * hit.sum() / truth.sum()) if some else None,
            classes_in_ground_truth=int(occurs.sum()), classes_predicted_but_absent=absent,
            num_classes=self.num_classes,
            IoU=[None if np.isnan(x) else float(x) for x in iou],
            ACC=[None if np.isnan(x) else float(x) for x in accuracy])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
