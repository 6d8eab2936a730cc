"""Regions of a picture for which nobody gave masks."""

import numpy as np


def superpixels(image: np.ndarray, count: int = 24) -> np.ndarray:
    """Regions of like colour (SLIC, Achanta et al. 2012).

    Args:
      image: [H, W, 3] uint8.
      count: about how many regions.

    Returns:
      [H, W] int32, 1 ... n.
    """
    from skimage.segmentation import slic  # slow to import, and rarely needed

    if min(image.shape[:2]) < 8:
        return np.ones(image.shape[:2], np.int32)
    regions = slic(image, n_segments=count, compactness=12, sigma=1, start_label=1)
    return regions.astype(np.int32)


def grid(image: np.ndarray, cells: int = 4) -> np.ndarray:
    """Equal rectangles, `cells` along each side: [H, W] int32, 1 ... n."""
    rows, columns = (np.minimum(np.arange(n) * cells // n, cells - 1) for n in image.shape[:2])
    flat = rows[:, None] * cells + columns
    return (np.unique(flat, return_inverse=True)[1].reshape(flat.shape) + 1).astype(np.int32)
