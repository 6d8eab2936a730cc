"""Metrics in numpy; they know no model. All have `reset`, `process` and `evaluate`.

Here is what they share: checks of what they are given, and means that may be undefined (None).
"""

import numpy as np


def check_classes(values: np.ndarray, num_classes: int, what: str) -> np.ndarray:
    """Integer classes as int64.

    Args:
      values: any shape and any integer dtype.
      num_classes: K; classes lie in 0 ... K-1.
      what: "predicted" or "true", for the message.

    Raises:
      ValueError: no integers, or out of range.
    """
    values = np.asarray(values)
    if values.size and values.dtype.kind not in "iub":
        raise ValueError(f"{what} classes are {values.dtype}, wanted integers")
    if values.size and not (0 <= values.min() and values.max() < num_classes):
        raise ValueError(f"{what} classes lie in {values.min()} ... {values.max()}, wanted "
                         f"0 ... {num_classes - 1}")
    return values.astype(np.int64)


def check_seen(seen: np.ndarray | None, num_classes: int) -> np.ndarray | None:
    """The classes known from training as [K] bool.

    Raises:
      ValueError: not one for each class.
    """
    if seen is None:
        return None
    seen = np.asarray(seen, bool)
    if seen.shape != (num_classes,):
        raise ValueError(f"`seen` has the shape {seen.shape}, wanted one bool for each of the "
                         f"{num_classes} classes")
    return seen


def mean(values: np.ndarray) -> float | None:
    """The mean, None of nothing."""
    return float(values.mean()) if values.size else None


def seen_and_unseen(values: np.ndarray, occurs: np.ndarray, seen: np.ndarray | None
                    ) -> tuple[float | None, float | None]:
    """Means of [K] values over the seen and the unseen classes that occur.

    Both are None where all or none of the classes are seen: there is nothing to tell apart.
    """
    if seen is None or seen.all() or not seen.any():
        return None, None
    return mean(values[occurs & seen]), mean(values[occurs & ~seen])


def as_list(values: np.ndarray, defined: np.ndarray) -> list[float | None]:
    """[K] values as a list, None where they are not defined."""
    return [float(x) if ok else None for x, ok in zip(values, defined)]
