"""Masks as COCO's run lengths: dict(size=[height, width], counts), checked before they are used.

A code counts pixels column by column: so many outside, so many inside, and so on. It comes as a
list, or as a string of five bits a character. pycocotools trusts both: where the runs end before
the picture does, its masks hold whatever was in the memory. Every code of a file comes through
here.
"""

import typing

import numpy as np
from pycocotools import mask as coco

MOST_PIXELS = 2**28  # of a mask; 16384 x 16384
_FAR = 2             # pixels beyond a picture's edge, where polygons that leave it far are cut


def encode(mask: np.ndarray) -> dict:
    """A mask [H, W] of 0 and 1 as run lengths, fit for JSON."""
    return _plain(coco.encode(np.asfortranarray(mask, np.uint8)))


def decode(code: typing.Mapping) -> np.ndarray:
    """Run lengths as a mask [H, W] bool.

    Raises:
      ValueError: they are none, see `read`.
    """
    return coco.decode(read(code)).astype(bool)


def area(code: typing.Mapping) -> int:
    """How many pixels run lengths have inside."""
    return int(coco.area(dict(code)))


def box(code: typing.Mapping) -> np.ndarray:
    """[4] float64: left, top, width, height of the pixels inside."""
    return coco.toBbox(dict(code))


def read(segmentation: typing.Any, size: tuple[int, int] | None = None) -> dict:
    """What COCO calls a segmentation, as compressed run lengths.

    Args:
      segmentation: run lengths, the counts a list or a string; or polygons, see `of_polygons`.
      size: height and width of the picture, which run lengths have to have; None: any, and no
        polygons.

    Returns:
      dict(size=[height, width], counts=str), whose runs fill the size.

    Raises:
      ValueError: it is neither, of another size, or damaged. The text starts in the middle of a
        sentence ("is for ...") that the caller begins with the mask's name.
    """
    if isinstance(segmentation, typing.Mapping):
        return _read_code(segmentation, size)
    if size is not None and isinstance(segmentation, list | tuple | np.ndarray):
        return of_polygons(segmentation, size)
    raise ValueError("is neither run lengths (an object with size and counts) nor a list of "
                     "polygons")


def of_polygons(polygons: typing.Sequence, size: tuple[int, int]) -> dict:
    """The pixels inside any of some polygons, by the rasteriser of COCO's package.

    Args:
      polygons: each [x, y, x, y, ...] or [[x, y], [x, y], ...] in pixels; or one such polygon
        alone. Those of less than three points have no inside. Parts beyond the picture are cut.
      size: height and width of the picture.

    Returns:
      As `read`.

    Raises:
      ValueError: something else, as `read` says it; also where a list could mean two things.
    """
    height, width = (int(side) for side in _size(size))
    rings = [ring for ring in map(_ring, _separate(polygons)) if len(ring) >= 3]
    rings = [_near(ring, height, width) for ring in rings]
    codes = [[float(n) for n in ring.ravel()] for ring in rings if len(ring) >= 3]
    if not codes:
        return encode(np.zeros((height, width), np.uint8))
    return _plain(coco.merge(coco.frPyObjects(codes, height, width)))


def _read_code(code: typing.Mapping, wanted: tuple[int, int] | None) -> dict:
    if not {"size", "counts"} <= set(code):
        raise ValueError(f"has {', '.join(map(str, code)) or 'nothing'}, wanted run lengths with "
                         "size and counts")
    height, width = _size(code["size"])
    if wanted is not None and (height, width) != tuple(wanted):
        raise ValueError(f"is for {width}x{height} pixels, the picture has "
                         f"{wanted[1]}x{wanted[0]}")
    counts = code["counts"]
    if isinstance(counts, str | bytes):
        runs = _runs_of(counts.encode("utf-8", "replace") if isinstance(counts, str) else counts)
    else:
        runs = _numbers(counts, "its counts hold")
        if runs.ndim != 1 or (runs != np.floor(runs)).any():
            raise ValueError("has counts that are no whole numbers")
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"has runs of {runs.sum():.0f} pixels in all" + (
            ", some below 0," if runs.min(initial=0) < 0 else ",")
            + f" wanted the {height * width} of {width}x{height}; is it cut short?")
    if isinstance(counts, str | bytes):
        return _plain(dict(size=[height, width], counts=counts))
    return _plain(coco.frPyObjects(dict(size=[height, width],
                                        counts=runs.astype(np.int64).tolist()), height, width))


def _runs_of(text: bytes) -> np.ndarray:
    """The runs of a compressed code, [n] int64, as pycocotools (rleFrString) reads them.

    Each number is written in groups of five bits, low ones first, with a sixth that says whether
    more follow; the last one's fifth is the sign. From the fourth run on it is the difference to
    the run two before.
    """
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((groups & 32) == 0)
    if ((groups < 0) | (groups > 63)).any() or not len(ends) or ends[-1] != len(groups) - 1:
        raise ValueError(f"has counts {text[:20]!r} that are no compressed run lengths, or are cut "
                         "short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits; pycocotools counts in 32
        raise ValueError("has counts with a run that is larger than any picture")
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups & 31) << (5 * places), starts)
    values -= np.where(groups[ends] & 16, 1 << (5 * lengths), 0)
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs


def _size(size: typing.Any) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in size)
        whole = all(side == int(side) for side in size)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"has the size {size!r}, wanted height and width") from None
    if not whole or height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise ValueError(f"has the size {size!r}, wanted height and width of 1 ... {MOST_PIXELS} "
                         "pixels in all")
    return height, width


def _separate(polygons: typing.Sequence) -> list:
    """One polygon alone, or points apart, as a list of polygons."""
    if isinstance(polygons, np.ndarray):
        polygons = polygons.tolist()
    is_list = [isinstance(p, list | tuple | np.ndarray) for p in polygons]
    if not any(is_list) and len(polygons):
        return [polygons]
    if not all(is_list):
        raise ValueError("mixes lists and numbers, wanted polygons [x, y, x, y, ...]")
    points = [len(p) == 2 and not any(isinstance(n, list | tuple) for n in p) for p in polygons]
    return [polygons] if len(points) >= 3 and all(points) else list(polygons)


def _ring(polygon: typing.Sequence) -> np.ndarray:
    """[n, 2] float64, x and y."""
    numbers = _numbers(polygon, "its polygons hold")
    if numbers.ndim == 2 and numbers.shape[1] == 2:
        return numbers
    if numbers.ndim != 1:
        raise ValueError(f"has a polygon of shape {numbers.shape}, wanted [x, y, x, y, ...]")
    if len(numbers) % 2:
        raise ValueError(f"has a polygon of {len(numbers)} numbers, wanted an even count: x and y "
                         "of each point")
    return numbers.reshape(-1, 2)


def _numbers(values: typing.Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        array = np.array("lists of different lengths")
    if array.size == 0:
        return np.zeros(0)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"is damaged: {what} {str(values)[:40]}, wanted numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"is damaged: {what} NaN or infinity, wanted finite numbers")
    return array.astype(np.float64)


def _near(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """A polygon, without what lies far beyond the picture.

    The rasteriser walks along edges in fifths of a pixel, in whole numbers of 32 bits. A polygon
    that leaves the picture by less than its size goes through as it is, as in every published
    number; others are cut (Sutherland and Hodgman) at lines just outside, which changes no pixel
    but for the rounding of a far point.
    """
    if (ring >= (-width, -height)).all() and (ring <= (2 * width, 2 * height)).all():
        return ring
    for axis, side in ((0, width), (1, height)):
        for sign, limit in ((1, side + _FAR), (-1, _FAR)):  # sign * coordinate <= limit is kept
            if not len(ring):
                return ring
            following = np.roll(ring, -1, axis=0)
            here, there = (limit - sign * p[:, axis] for p in (ring, following))
            kept = []
            for point, after, a, b in zip(ring, following, here, there):
                if a >= 0:
                    kept.append(point)
                if (a >= 0) != (b >= 0):
                    crossing = point + (after - point) * (a / (a - b))
                    crossing[axis] = sign * limit
                    kept.append(crossing)
            ring = np.array(kept).reshape(-1, 2)
    return ring


def _plain(code: typing.Mapping) -> dict:
    counts = code["counts"]
    return dict(size=[int(side) for side in code["size"]],
                counts=counts.decode("ascii") if isinstance(counts, bytes) else counts)
