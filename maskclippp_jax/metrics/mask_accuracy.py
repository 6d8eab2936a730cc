"""Mask accuracy: one prediction for each ground-truth mask (MaskCLIP++, arXiv 2412.11464).

The published number is the mean over the classes that occur of the share of their masks named
right: every class weighs the same, however many masks it has, and every mask, however large it is.
"""

import typing

import numpy as np

from maskclippp_jax import metrics
from maskclippp_jax.metrics.bootstrap import PerPicture


class MaskAccuracy:
    """Counts predictions of masks.

    `counts` [K, K] int64 (row = prediction, column = truth) may be summed over hosts.
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
        self.pictures = PerPicture(num_classes, 2)  # right, masks
        self.reset()

    def reset(self) -> None:
        self.counts = metrics.pairs(self.num_classes)
        self.pictures.reset()

    def process(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Adds the masks of a picture.

        Which masks: in the semantic form one for each class of a label map (`classes_present`), in
        the panoptic form one for each segment, crowds included (`classes_of_segments`).

        Args:
          predicted: [n] integer classes in 0 ... K-1.
          labels: [n] integer true classes, in the same order.

        Raises:
          ValueError: other lengths, no integers, or classes out of range; nothing is counted then.
        """
        predicted = metrics.check_classes(predicted, self.num_classes, "predicted")
        labels = metrics.check_classes(labels, self.num_classes, "true")
        if predicted.shape != labels.shape:
            raise ValueError(f"got predictions of shape {predicted.shape} for masks of shape "
                             f"{labels.shape}, wanted one for each mask")
        np.add.at(self.counts, (predicted, labels), 1)
        right = np.bincount(labels[predicted == labels], minlength=self.num_classes)
        masks = np.bincount(labels, minlength=self.num_classes)
        self.pictures.add(np.stack([right, masks], -1))

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `mMaskAcc`: mean over classes that occur; `seen`, `unseen`, `things`, `stuff`: the same over
        these classes (None if they are not told apart, or are all or none of the classes); `micro`:
        share of all masks; `per_class` [K]; `masks`, `classes`: how many there were; `num_classes`.
        """
        masks, right = self.counts.sum(0), np.diagonal(self.counts)
        occurs = masks > 0
        return dict(
            self._means(right, masks), masks=int(masks.sum()), classes=int(occurs.sum()),
            num_classes=self.num_classes,
            per_class=metrics.as_list(100 * right / np.maximum(masks, 1), occurs))

    def intervals(self, **how) -> dict:
        """Ranges of the means of `evaluate` (`PerPicture.intervals`)."""
        return self.pictures.intervals(lambda sums: self._means(*sums.T), **how)

    def state(self) -> dict[str, np.ndarray]:
        return dict(counts=self.counts, **self.pictures.state())

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        self.counts = self.counts + metrics.same_shape(state["counts"], self.counts)
        self.pictures.add_state(state)

    def _means(self, right: np.ndarray, masks: np.ndarray) -> dict[str, float | None]:
        occurs = masks > 0
        share = 100 * right / np.maximum(masks, 1)
        seen, unseen = metrics.mean_of_two(share, occurs, self.seen)
        things, stuff = metrics.mean_of_two(share, occurs, self.is_thing)
        micro = float(100 * right.sum() / masks.sum()) if occurs.any() else None
        return dict(mMaskAcc=metrics.mean(share[occurs]), seen=seen, unseen=unseen, things=things,
                    stuff=stuff, micro=micro)


def classes_present(label_map: np.ndarray, ignore_label: int | None) -> np.ndarray:
    """The classes of a label map's masks, ascending: what the semantic form asks about."""
    present = np.unique(label_map)
    return present[present != ignore_label] if ignore_label is not None else present


def classes_of_segments(segments: typing.Sequence[dict], class_of: typing.Mapping[int, int]
                        ) -> np.ndarray:
    """The classes of a picture's listed segments in their order: what the panoptic form asks about.

    Args:
      segments: dict(category_id, ...) of each; crowds are masks as well.
      class_of: class of each id of a category.
    """
    return np.array([class_of[s["category_id"]] for s in segments], np.int64)
