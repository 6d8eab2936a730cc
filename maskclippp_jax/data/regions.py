"""Regions of a picture for which nobody gave masks."""

import cv2
import numpy as np

_LARGEST = 512  # pixels; larger pictures are cut on a smaller copy (4000x3000 took 11 s)


def superpixels(image: np.ndarray, num_regions: int = 24) -> np.ndarray:
    """Regions of like colour (SLIC, Achanta et al. 2012).

    Args:
      image: [H, W, 3] uint8.
      num_regions: about how many.

    Returns:
      [H, W] int32, 1, 2, ... without 255; one region if the picture is too small to cut.

    Raises:
      ValueError: fewer than one region.
    """
    from skimage.segmentation import slic  # slow to import, and rarely needed

    if num_regions < 1:
        raise ValueError(f"got num_regions={num_regions}, wanted at least 1")
    height, width = image.shape[:2]
    if min(height, width) < 8:
        return np.ones((height, width), np.int32)
    factor = min(1.0, _LARGEST / max(height, width))
    small = cv2.resize(image, (max(8, round(width * factor)), max(8, round(height * factor))),
                       interpolation=cv2.INTER_AREA)
    # Looser regions follow objects more closely, but fall apart on textures and noise.
    regions = slic(small, n_segments=num_regions, compactness=20, sigma=2, start_label=1)
    rows = np.arange(height) * regions.shape[0] // height
    columns = np.arange(width) * regions.shape[1] // width
    return _numbered(regions[rows][:, columns])


def grid(image: np.ndarray, cells: int = 4) -> np.ndarray:
    """Equal rectangles, `cells` along each side (or one a pixel): [H, W] int32.

    Raises:
      ValueError: fewer than one cell.
    """
    if cells < 1:
        raise ValueError(f"got cells={cells}, wanted at least 1")
    height, width = image.shape[:2]
    rows = np.arange(height) * min(cells, height) // max(height, 1)
    columns = np.arange(width) * min(cells, width) // max(width, 1)
    return _numbered(rows[:, None] * min(cells, width) + columns + 1)


def _numbered(regions: np.ndarray) -> np.ndarray:
    """Without 255, which means nothing in label maps."""
    return (regions + (regions >= 255)).astype(np.int32)
