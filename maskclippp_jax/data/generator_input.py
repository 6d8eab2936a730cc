"""How pictures go into a generator whose input is a square: letterbox, or windows.

Sizes and pixels are those of EoMT's own code (github.com/tue-mps/eomt). transformers' processor
makes one picture in twenty a pixel smaller, and some not smaller at all.
"""

import math
import typing

import numpy as np

from maskclippp_jax.data import transforms


class Windows(typing.NamedTuple):
    """Squares along the longer side of a resized picture, which together cover it."""

    images: np.ndarray        # [m, S, S, 3] uint8
    origins: np.ndarray       # [m, 2] int64, first pixel along the longer side and the one behind
    resized: tuple[int, int]  # height and width of the picture they were cut from


def letterbox_size(size: typing.Sequence[int], side: int) -> tuple[int, int]:
    """Size (height, width) with the longer side `side`; halves are rounded to even.

    The shorter side of an extreme picture is one pixel, where the public code would have none.
    """
    factor = min(side / size[0], side / size[1])
    return tuple(max(1, round(n * factor)) for n in size)


def letterbox(image: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [side, side, 3] uint8: resized to fit, then black at the right and below.

    Small pictures are enlarged. Normalised later, the padding is what black is, and not 0.
    """
    resized = transforms.resize_image(image, letterbox_size(image.shape[:2], side))
    return transforms.pad_to_canvas(resized, (side, side))


def windows_size(size: typing.Sequence[int], side: int) -> tuple[int, int]:
    """Size (height, width) with the shorter side `side`; halves are rounded to even."""
    transforms.check_ratio(size, "the picture")
    factor = max(side / size[0], side / size[1])
    return tuple(round(n * factor) for n in size)


def windows(image: np.ndarray, side: int) -> Windows:
    """As many squares [side, side] as a picture [H, W, 3] uint8 needs, evenly spread.

    Its shorter side becomes `side`; nothing is padded.
    """
    resized = transforms.resize_image(image, windows_size(image.shape[:2], side))
    longer = max(resized.shape[:2])
    count = math.ceil(longer / side)
    step = side - (count * side - longer) / max(count - 1, 1)
    starts = [int(j * step) for j in range(count)]
    cut = (lambda a: resized[a:a + side]) if len(resized) > side else (
        lambda a: resized[:, a:a + side])
    return Windows(np.stack([cut(a) for a in starts]),
                   np.array([(a, a + side) for a in starts]), resized.shape[:2])
