"""Boundary IoU of label maps (Cheng et al. 2021, arXiv 2103.16562), one class at a time.

The boundary of a mask is what of it lies within d pixels of its rim: the mask without its erosion
by a square of 2 d + 1 pixels. (detectron2 prints a "boundary IoU" that erodes the label map as if
it were a grey picture; those figures mean nothing.)
"""

import typing

import cv2
import numpy as np

from maskclippp_jax import metrics
from maskclippp_jax.metrics.bootstrap import PerPicture


class BoundaryIoU:
    """Counts pixels of boundaries.

    `counts` [K, 3] int64, a row for each class (pixels of both boundaries, of the true and of the
    predicted one), may be summed over hosts.
    """

    def __init__(self, num_classes: int, ignore_label: int, *, dilation_ratio: float = 0.02):
        """Starts with nothing counted.

        Args:
          num_classes: K.
          ignore_label: truth that counts nowhere.
          dilation_ratio: d as a share of the picture's diagonal; d is at least 1 pixel.
        """
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.dilation_ratio = dilation_ratio
        self.pictures = PerPicture(num_classes, 3)
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((self.num_classes, 3), np.int64)
        self.pictures.reset()

    def process(self, prediction: np.ndarray | None, truth: np.ndarray) -> None:
        """Adds a picture: maps [H, W] of any integer dtype of predicted and true classes.

        Without a prediction (None) every boundary is missed. Pixels of ignored truth belong to
        no class in either map, so what touches them is boundary in both; so is what touches the
        edge of the picture.

        Raises:
          ValueError: other shapes, no integers, or classes out of range; nothing is counted then.
        """
        truth, none = np.asarray(truth), self.num_classes
        if prediction is None:
            prediction = np.full(truth.shape, none)
        else:
            prediction = metrics.check_classes(prediction, none, "predicted")
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction is {prediction.shape}, the truth {truth.shape}; "
                             "bring the prediction to the stored size of the picture")
        ignored = truth == self.ignore_label
        truth, prediction = np.where(ignored, none, truth), np.where(ignored, none, prediction)
        truth = metrics.check_classes(truth, none + 1, "true")
        distance = max(1, round(self.dilation_ratio * float(np.hypot(*truth.shape))))
        true_rim, predicted_rim = (boundary(x, distance) for x in (truth, prediction))
        count = lambda classes: np.bincount(classes, minlength=none + 1)[:none]
        counts = np.stack([
            count(truth[true_rim & predicted_rim & (truth == prediction)]),
            count(truth[true_rim]), count(prediction[predicted_rim])], -1)
        self.counts += counts
        self.pictures.add(counts)

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `mBIoU`: mean over classes in the ground truth; `BIoU` [K]; `classes_in_ground_truth`.
        """
        iou, occurs = _per_class(self.counts)
        return dict(mBIoU=metrics.mean(iou[occurs]), BIoU=metrics.as_list(iou, occurs),
                    classes_in_ground_truth=int(occurs.sum()))

    def intervals(self, **how) -> dict:
        """Range of `mBIoU` (`PerPicture.intervals`)."""
        def numbers(counts):
            iou, occurs = _per_class(counts)
            return dict(mBIoU=metrics.mean(iou[occurs]))

        return self.pictures.intervals(numbers, **how)

    def state(self) -> dict[str, np.ndarray]:
        return dict(counts=self.counts, **self.pictures.state())

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        self.counts = self.counts + metrics.same_shape(state["counts"], self.counts)
        self.pictures.add_state(state)


def boundary(labels: np.ndarray, distance: int) -> np.ndarray:
    """[H, W] bool: pixels with another label, or none, within a square of `distance` around them.

    These are the boundaries of all masks of a label map at once: a pixel survives the erosion of
    its mask if the square around it holds one label only.
    """
    values = cv2.copyMakeBorder(labels.astype(np.float32), *[distance] * 4, cv2.BORDER_CONSTANT,
                                value=-1)
    square = np.ones((2 * distance + 1,) * 2, np.uint8)
    inner = (slice(distance, -distance),) * 2
    return (cv2.erode(values, square) != cv2.dilate(values, square))[inner]


def _per_class(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both, truth, predicted = counts.T
    return 100 * both / np.maximum(truth + predicted - both, 1), truth > 0
