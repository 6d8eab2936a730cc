"""How good masks are by themselves: each is given the best true class it could have.

Masks and ground truth are assigned one to one so that the total IoU is largest, and each assigned
mask takes the class of its truth. What the metrics then say is what a generator allows.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

_STEP = 4  # IoU is measured on every fourth row and column, floor(side / 4) of them


def mask_iou(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU at a quarter of the size: [n, H, W] and [m, H, W] bool -> [n, m] float64."""
    height, width = (side // _STEP for side in masks.shape[1:])
    small = [x[:, ::_STEP, ::_STEP][:, :height, :width].reshape(len(x), height * width)
             .astype(np.float64) for x in (masks, truth)]
    both = small[0] @ small[1].T
    return both / (small[0].sum(1)[:, None] + small[1].sum(1)[None] - both + 1e-6)


def assign(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of masks and truths with the largest total IoU, pairs without overlap included.

    Args:
      iou: [n, m].

    Returns:
      Numbers of the masks, ascending, and of their truths, [min(n, m)] each.
    """
    return linear_sum_assignment(iou, maximize=True)


def semantic(masks: np.ndarray, truth: np.ndarray, ignore_label: int) -> np.ndarray:
    """The label map that perfectly classified masks give.

    Args:
      masks: [n, H, W] bool.
      truth: [H, W] classes.
      ignore_label: truth without a class.

    Returns:
      [H, W] int64: where masks overlap the smaller class, where there is none class 0.
    """
    classes = np.unique(truth)
    classes = classes[classes != ignore_label].astype(np.int64)
    found = assign(mask_iou(masks, truth[None] == classes[:, None, None]))
    labels = np.full(truth.shape, np.iinfo(np.int64).max)
    for n, m in zip(*found):
        labels = np.where(masks[n], np.minimum(labels, classes[m]), labels)
    return np.where(labels == np.iinfo(np.int64).max, 0, labels)


def panoptic(masks: np.ndarray, truth: np.ndarray, segments: list[dict]
             ) -> tuple[np.ndarray, list[dict]]:
    """The panoptic segments that perfectly classified masks give.

    Args:
      masks: [n, H, W] bool.
      truth: [H, W] ids of segments.
      segments: dict(id, category_id, ...) of each.

    Returns:
      [H, W] int32 ids counted from 1, later masks over earlier ones, and dict(id, category_id) of
      each segment that is still visible.
    """
    targets = truth[None] == np.array([s["id"] for s in segments], np.int64)[:, None, None]
    ids, found = np.zeros(truth.shape, np.int32), []
    for number, (n, m) in enumerate(zip(*assign(mask_iou(masks, targets))), start=1):
        ids[masks[n]] = number
        found.append(dict(id=number, category_id=segments[m]["category_id"]))
    visible = set(np.unique(ids).tolist())
    return ids, [s for s in found if s["id"] in visible]


def instances(masks: np.ndarray, truth: np.ndarray, classes: np.ndarray
              ) -> tuple[np.ndarray, np.ndarray]:
    """The masks that get a class, and their classes; each counts with score 1.

    Args:
      masks: [n, H, W] bool.
      truth: [m, H, W] bool, things only.
      classes: [m].

    Returns:
      Numbers of the masks and their classes, [min(n, m)] each.
    """
    found, target = assign(mask_iou(masks, truth))
    return found, np.asarray(classes)[target]
