"""Mask accuracy: one prediction for each ground-truth mask (MaskCLIP++, arXiv 2412.11464).

The published number is the mean over the classes that occur of the share of their masks named right:
every class weighs the same, however many masks it has, and every mask, however large it is.
"""

import numpy as np


class MaskAccuracy:
    """Counts predictions of masks.

    `counts` [K, K] int64 (row = prediction, column = truth) may be summed over hosts.
    """

    def __init__(self, num_classes: int, seen: np.ndarray | None = None):
        """Args: num_classes: K. seen: [K] bool, classes known from training; None: not told apart."""
        self.num_classes = num_classes
        self.seen = None if seen is None else np.asarray(seen, bool)
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((self.num_classes, self.num_classes), np.int64)

    def process(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Adds masks.

        Args:
          predicted: [n] integer classes in 0 ... K-1.
          labels: [n] integer true classes, in the same order.

        Raises:
          ValueError: other lengths, or classes out of range.
        """
        predicted, labels = np.asarray(predicted, np.int64), np.asarray(labels, np.int64)
        if predicted.shape != labels.shape:
            raise ValueError(f"got {predicted.shape} predictions for {labels.shape} masks")
        for name, values in (("predicted", predicted), ("true", labels)):
            if values.size and not (0 <= values.min() and values.max() < self.num_classes):
                raise ValueError(f"{name} classes lie in {values.min()} ... {values.max()}, wanted "
                                 f"0 ... {self.num_classes - 1}")
        np.add.at(self.counts, (predicted, labels), 1)

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `mMaskAcc`: mean over classes that occur; `seen`, `unseen`: the same over these classes (None
        if all or none of the classes are seen); `micro`: share of all masks; `per_class` [K].
        """
        masks = self.counts.sum(0)
        right = np.diagonal(self.counts)
        share = np.divide(right, masks, out=np.full(self.num_classes, np.nan), where=masks > 0) * 100
        occurs = masks > 0
        seen = unseen = None
        if self.seen is not None and self.seen.any() and not self.seen.all():
            seen, unseen = _mean(share[occurs & self.seen]), _mean(share[occurs & ~self.seen])
        return dict(
            mMaskAcc=_mean(share[occurs]), seen=seen, unseen=unseen,
            micro=_mean(np.array([100 * right.sum() / masks.sum()])) if masks.sum() else None,
            masks=int(masks.sum()), classes=int(occurs.sum()), num_classes=self.num_classes,
            per_class=[None if np.isnan(x) else float(x) for x in share])


def classes_present(label_map: np.ndarray, ignore_label: int | None) -> np.ndarray:
    """The classes of a label map's masks, ascending: what the semantic form asks about."""
    present = np.unique(label_map)
    return present[present != ignore_label] if ignore_label is not None else present


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
