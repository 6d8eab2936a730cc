"""Semantic segmentation: mean intersection over union in both definitions in use; accuracies."""

import typing

import numpy as np

from maskclippp_jax import metrics
from maskclippp_jax.metrics.bootstrap import PerPicture


class SemanticSegmentation:
    """Counts pixels.

    `counts` [K+1, K+1] int64 (row = prediction, column = truth; the last column holds ignored
    pixels, the last row pixels of pictures without a prediction) may be summed over hosts.
    """

    def __init__(self, num_classes: int, ignore_label: int, seen: np.ndarray | None = None):
        """Args: num_classes: K. ignore_label: truth that counts nowhere. seen: [K] bool or None."""
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.seen = metrics.check_flags(seen, num_classes, "seen")
        self.pictures = PerPicture(num_classes, 3)  # hits, truth, predicted
        self.reset()

    def reset(self) -> None:
        self.counts = metrics.pairs(self.num_classes + 1)
        self.pictures.reset()

    def process(self, prediction: np.ndarray | None, truth: np.ndarray) -> None:
        """Adds a picture: maps [H, W] of any integer dtype of predicted and true classes.

        Predictions lie in 0 ... K-1 everywhere, also where the truth is ignored. None: there is no
        prediction, and every pixel is missed.

        Raises:
          ValueError: other shapes, no integers, or classes out of range; nothing is counted then.
        """
        truth, none = np.asarray(truth), self.num_classes
        if prediction is None:
            prediction = np.full(truth.shape, none, np.int64)
        else:
            prediction = metrics.check_classes(prediction, none, "predicted")
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction is {prediction.shape}, the truth {truth.shape}; "
                             "bring the prediction to the stored size of the picture")
        ignored = truth == self.ignore_label
        column = np.full(truth.shape, none, np.int64)
        column[~ignored] = metrics.check_classes(
            truth[~ignored], none, f"true (apart from {self.ignore_label}, ignored)")
        # A histogram of its own would be as large as `counts`, which 10 000 classes make large.
        np.add.at(self.counts.reshape(-1), (prediction * (none + 1) + column).ravel(), 1)
        prediction, column = prediction[~ignored], column[~ignored]
        count = lambda classes: np.bincount(classes, minlength=none + 1)[:none]
        self.pictures.add(np.stack(
            [count(column[prediction == column]), count(column), count(prediction)], -1))

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `mIoU`: mean over classes in the ground truth (all published numbers of MaskCLIP++).
        `mIoU_counting_absent_predicted`: classes that are predicted but absent count as 0
        (detectron2 up to 0.6). `mIoU_seen`, `mIoU_unseen`, their harmonic mean, `fwIoU`, `mACC`,
        `pACC`, and per class `IoU` and `ACC`.
        """
        counts = self.counts[:, :-1]
        hit, truth, predicted = np.diagonal(counts), counts.sum(0), counts.sum(1)[:-1]
        occurs = truth > 0
        iou, accuracy = _per_class(hit, truth, predicted)
        return dict(
            self._means(hit, truth, predicted), classes_in_ground_truth=int(occurs.sum()),
            classes_predicted_but_absent=int(((predicted > 0) & ~occurs).sum()),
            num_classes=self.num_classes,
            IoU=metrics.as_list(iou, occurs), ACC=metrics.as_list(accuracy, occurs))

    def intervals(self, **how) -> dict:
        """Ranges of the means of `evaluate` (`PerPicture.intervals`)."""
        return self.pictures.intervals(lambda sums: self._means(*sums.T), **how)

    def state(self) -> dict[str, np.ndarray]:
        return dict(counts=self.counts, **self.pictures.state())

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        self.counts = self.counts + metrics.same_shape(state["counts"], self.counts)
        self.pictures.add_state(state)

    def _means(self, hit: np.ndarray, truth: np.ndarray, predicted: np.ndarray
               ) -> dict[str, float | None]:
        """All but the values of single classes, from pixels of each class [K]."""
        occurs = truth > 0
        iou, accuracy = _per_class(hit, truth, predicted)
        absent = int(((predicted > 0) & ~occurs).sum())
        seen, unseen = metrics.mean_of_two(iou, occurs, self.seen)
        some = occurs.any()
        return dict(
            mIoU=metrics.mean(iou[occurs]),
            mIoU_counting_absent_predicted=(
                float(iou[occurs].sum() / (occurs.sum() + absent)) if some else None),
            mIoU_seen=seen, mIoU_unseen=unseen, mIoU_harmonic=_harmonic(seen, unseen),
            fwIoU=float((iou * truth).sum() / truth.sum()) if some else None,
            mACC=metrics.mean(accuracy[occurs]),
            pACC=float(100 * hit.sum() / truth.sum()) if some else None)


def _per_class(hit: np.ndarray, truth: np.ndarray, predicted: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy of each class in percent, 0 where the class is nowhere."""
    return (100 * hit / np.maximum(truth + predicted - hit, 1),
            100 * hit / np.maximum(truth, 1))


def _harmonic(a: float | None, b: float | None) -> float | None:
    """0 where one of them is: all is lost on one side."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a and b else 0.0
