"""Semantic segmentation: mean intersection over union in both definitions in use; accuracies."""

import numpy as np

from maskclippp_jax import metrics


class SemanticSegmentation:
    """Counts pixels.

    `counts` [K+1, K+1] int64 (row = prediction, column = truth; the last column holds ignored
    pixels, the last row stays empty) may be summed over hosts.
    """

    def __init__(self, num_classes: int, ignore_label: int, seen: np.ndarray | None = None):
        """Args: num_classes: K. ignore_label: truth that counts nowhere. seen: [K] bool or None."""
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.seen = metrics.check_seen(seen, num_classes)
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((self.num_classes + 1,) * 2, np.int64)

    def process(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Adds a picture: maps [H, W] of any integer dtype of predicted and true classes.

        Predictions lie in 0 ... K-1 everywhere, also where the truth is ignored.

        Raises:
          ValueError: other shapes, no integers, or classes out of range; nothing is counted then.
        """
        prediction, truth = np.asarray(prediction), np.asarray(truth)
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction is {prediction.shape}, the truth {truth.shape}; "
                             "bring the prediction to the stored size of the picture")
        ignored = truth == self.ignore_label
        prediction = metrics.check_classes(prediction, self.num_classes, "predicted")
        column = np.full(truth.shape, self.num_classes, np.int64)
        column[~ignored] = metrics.check_classes(
            truth[~ignored], self.num_classes, f"true (apart from {self.ignore_label}, ignored)")
        width = self.num_classes + 1
        pairs = np.bincount((prediction * width + column).ravel(), minlength=width * width)
        self.counts += pairs.reshape(width, width)

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `mIoU`: mean over classes in the ground truth (all published numbers of MaskCLIP++).
        `mIoU_counting_absent_predicted`: classes that are predicted but absent count as 0
        (detectron2 up to 0.6). `mIoU_seen`, `mIoU_unseen`, their harmonic mean, `fwIoU`, `mACC`,
        `pACC`, and per class `IoU` and `ACC`.
        """
        counts = self.counts[:-1, :-1].astype(np.float64)
        hit, truth, predicted = np.diagonal(counts), counts.sum(0), counts.sum(1)
        occurs = truth > 0
        iou = 100 * hit / np.maximum(truth + predicted - hit, 1)
        accuracy = 100 * hit / np.maximum(truth, 1)
        absent = int(((predicted > 0) & ~occurs).sum())
        seen, unseen = metrics.seen_and_unseen(iou, occurs, self.seen)
        some = occurs.any()
        return dict(
            mIoU=metrics.mean(iou[occurs]),
            mIoU_counting_absent_predicted=(
                float(iou[occurs].sum() / (occurs.sum() + absent)) if some else None),
            mIoU_seen=seen, mIoU_unseen=unseen, mIoU_harmonic=_harmonic(seen, unseen),
            fwIoU=float((iou * truth).sum() / truth.sum()) if some else None,
            mACC=metrics.mean(accuracy[occurs]),
            pACC=float(100 * hit.sum() / truth.sum()) if some else None,
            classes_in_ground_truth=int(occurs.sum()), classes_predicted_but_absent=absent,
            num_classes=self.num_classes,
            IoU=metrics.as_list(iou, occurs), ACC=metrics.as_list(accuracy, occurs))


def _harmonic(a: float | None, b: float | None) -> float | None:
    """0 where one of them is: all is lost on one side."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a and b else 0.0
