"""Mask accuracy: one prediction for each ground-truth mask (MaskCLIP++, arXiv 2412.11464).

The published number is the mean over the classes that occur of the share of their masks named
right: every class weighs the same, however many masks it has, and every mask, however large it is.
"""

import numpy as np

from maskclippp_jax import metrics


class MaskAccuracy:
    """Counts predictions of masks.

    `counts` [K, K] int64 (row = prediction, column = truth) may be summed over hosts.
    """

    def __init__(self, num_classes: int, seen: np.ndarray | None = None):
        """Args: num_classes: K. seen: [K] bool, known from training; None: not told apart."""
        self.num_classes = num_classes
        self.seen = metrics.check_seen(seen, num_classes)
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((self.num_classes, self.num_classes), np.int64)

    def process(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Adds masks.

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

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `mMaskAcc`: mean over classes that occur; `seen`, `unseen`: the same over these classes
        (None if all or none of the classes are seen); `micro`: share of all masks; `per_class` [K];
        `masks`, `classes`: how many there were; `num_classes`: K.
        """
        masks = self.counts.sum(0)
        right = np.diagonal(self.counts)
        occurs = masks > 0
        share = 100 * right / np.maximum(masks, 1)
        seen, unseen = metrics.seen_and_unseen(share, occurs, self.seen)
        return dict(
            mMaskAcc=metrics.mean(share[occurs]), seen=seen, unseen=unseen,
            micro=float(100 * right.sum() / masks.sum()) if occurs.any() else None,
            masks=int(masks.sum()), classes=int(occurs.sum()), num_classes=self.num_classes,
            per_class=metrics.as_list(share, occurs))


def classes_present(label_map: np.ndarray, ignore_label: int | None) -> np.ndarray:
    """The classes of a label map's masks, ascending: what the semantic form asks about."""
    present = np.unique(label_map)
    return present[present != ignore_label] if ignore_label is not None else present
