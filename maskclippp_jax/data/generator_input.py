"""How pictures go into a generator: resized and padded; or as a square, letterbox or windows.

Sizes and pixels of squares are those of EoMT's own code (github.com/tue-mps/eomt). transformers'
processor makes one picture in twenty a pixel smaller, and some not smaller at all.
"""

import math
import typing

import numpy as np

from maskclippp_jax.data import transforms

_CANVAS = 64  # sides of canvases of loaded pictures that are resized again are multiples of it
_MOST_PIXELS = 2**23  # of an input: 800 x 10485; published pictures have a third of it at most


class Way(typing.NamedTuple):
    """Sizes (height, width) of a picture on its way into a generator."""

    loaded: tuple[int, int]   # after the loader's resize, which antialiases
    resized: tuple[int, int]  # after another one without; as loaded, if there is none
    padded: tuple[int, int]   # at the right and below, what the network sees


class Preparation(typing.NamedTuple):
    """How pictures were brought into a generator."""

    loader_min: int | None  # shorter side after the loader's resize, pixels; None: as stored
    loader_max: int | None
    short_side: int | None  # after the generator's own resize, without antialiasing; None: no such
    multiple: int           # its input was padded to a multiple of this
    letterbox: int | None = None  # side of a square they were made to fit at last

    def facts(self) -> dict[str, int | None]:
        """As a manifest has it; most generators have no letterbox."""
        return {k: v for k, v in self._asdict().items() if v is not None or k != "letterbox"}


class Windows(typing.NamedTuple):
    """Squares along the longer side of a resized picture, which together cover it."""

    images: np.ndarray        # [m, S, S, 3] uint8
    origins: np.ndarray       # [m, 2] int64, first pixel along the longer side and the one behind
    resized: tuple[int, int]  # height and width of the picture they were cut from


def way_of(size: typing.Sequence[int], preparation: Preparation, what: str) -> Way:
    """The sizes of a picture of a size that is prepared in a way; no side vanishes.

    Args:
      size: height and width of the picture.
      preparation: see there.
      what: the generator, for messages.

    Raises:
      ValueError: the input would be too large.
    """
    p, loaded = preparation, tuple(size)
    if p.loader_min is not None:
        loaded = transforms.shortest_edge(*size, p.loader_min, p.loader_max)
    resized = loaded = tuple(max(side, 1) for side in loaded)
    if p.short_side is not None:
        resized = tuple(side * p.short_side // min(loaded) for side in loaded)
    padded = tuple(-(-side // p.multiple) * p.multiple for side in resized)
    if math.prod(padded) > _MOST_PIXELS:
        raise ValueError(f"a picture of {size[1]}x{size[0]} pixels becomes {padded[1]}x{padded[0]} "
                         f"in {what}, more than {_MOST_PIXELS} in all; cut it into pieces, or make "
                         "it smaller")
    return Way(loaded, resized, padded)


def enter(image: np.ndarray, way: Way) -> np.ndarray:
    """[H, W, 3] uint8 -> [h, w, 3] uint8: as loaded, then 0 at the right and below.

    Its canvas is that of the network's input, unless it is resized once more.
    """
    canvas = way.padded
    if way.loaded != way.resized:
        canvas = tuple(-(-side // _CANVAS) * _CANVAS for side in way.loaded)
    return transforms.pad_to_canvas(transforms.resize_image(image, way.loaded), canvas)


def letterbox_way(size: typing.Sequence[int], side: int) -> Way:
    """The sizes of a picture in a square."""
    inner = letterbox_size(size, side)
    return Way(inner, inner, (side, side))


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
    return enter(image, letterbox_way(image.shape[:2], side))


def windows_size(size: typing.Sequence[int], side: int) -> tuple[int, int]:
    """Size (height, width) with the shorter side `side`; halves are rounded to even."""
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
