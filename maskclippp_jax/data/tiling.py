"""Large pictures as tiles: where they lie, records cut into them, and which tile a pixel is of.

Tiles of one picture have one size and lie at equal distances, so that neighbours overlap by at
least what is asked for and none is padded; a picture that is smaller than a tile is one. What lies
near the edge of a tile its network sees without its surroundings: there a neighbour knows better.
"""

import numbers
import re
import typing

import numpy as np

from maskclippp_jax.data import images, records
from maskclippp_jax.metrics import run_lengths

_ID = re.compile(r"(.+)@(\d+),(\d+) of (\d+)x(\d+)", re.DOTALL)


class Tiles(typing.NamedTuple):
    """How pictures are cut, in pixels."""

    side: int
    overlap: int


class Window(typing.NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def common(self, other: "Window") -> "Window | None":
        """What two windows have in common, if anything."""
        both = Window(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))
        return both if both.top < both.bottom and both.left < both.right else None

    def inside(self, other: "Window") -> tuple[slice, slice]:
        """The slices of an array over `other` that are this window."""
        rows, columns = (slice(a - start, b - start) for a, b, start in zip(
            self[:2], self[2:], other[:2]))
        return rows, columns


def check(tiles: Tiles) -> None:
    """Raises ValueError if tiles have no size, or more overlap than that."""
    for name, value in zip(("tiles", "overlap"), tiles):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ValueError(f"got {value!r} for {name}, wanted a whole number of pixels")
    if tiles.side < 16:
        raise ValueError(f"got --tiles={tiles.side}, wanted their side in pixels, such as 1024")
    if not 0 <= tiles.overlap < tiles.side:
        raise ValueError(f"got --overlap={tiles.overlap}, wanted 0 ... {tiles.side - 1} pixels, "
                         "less than the side of a tile")


def windows(size: tuple[int, int], tiles: Tiles) -> list[Window]:
    """The tiles of a picture of a size (height, width), row by row."""
    starts = [_starts(side, tiles) for side in size]
    height, width = (min(side, tiles.side) for side in size)
    return [Window(top, left, top + height, left + width)
            for top in starts[0] for left in starts[1]]


def _starts(side: int, tiles: Tiles) -> list[int]:
    if side <= tiles.side:
        return [0]
    count = -(-(side - tiles.overlap) // (tiles.side - tiles.overlap))
    return [n * (side - tiles.side) // (count - 1) for n in range(count)]


def depth(window: Window, size: tuple[int, int]) -> np.ndarray:
    """How far pixels of a tile lie from its edges, but for those of the picture: [h, w] float32.

    Above 0; everywhere the same in a tile that is the whole picture.
    """
    far = float(max(size))
    of_axis = []
    for start, end, side in zip(window[:2], window[2:], size):
        place = np.arange(end - start, dtype=np.float32) + 0.5
        before = place if start > 0 else np.full_like(place, far)
        after = place[::-1] if end < side else np.full_like(place, far)
        of_axis.append(np.minimum(before, after))
    return np.minimum(of_axis[0][:, None], of_axis[1][None])


def id_of(image_id: str, window: Window, size: tuple[int, int]) -> str:
    """"x@1024,0 of 3000x2000": picture, left and top of the tile, width and height of the whole."""
    return f"{image_id}@{window.left},{window.top} of {size[1]}x{size[0]}"


def place_of(tile_id: str) -> tuple[str, tuple[int, int], tuple[int, int]] | None:
    """The picture of a tile, its (top, left) there, and the picture's size; None: it is whole."""
    match = _ID.fullmatch(tile_id)
    if match is None:
        return None
    left, top, width, height = map(int, match.groups()[1:])
    return match[1], (top, left), (height, width)


def cut(make_records: typing.Callable[[typing.Any], list[dict]], tiles: Tiles,
        item: tuple[bool, typing.Any]) -> list[dict]:
    """The tiles of the records of an item: (whether tiles without a mask are kept, the item)."""
    keep_bare, item = item
    return [tile for record in make_records(item) for tile in _tiles_of(record, tiles)
            if keep_bare or len(tile["table"]["id"])]


def _tiles_of(record: dict, tiles: Tiles) -> typing.Iterator[dict]:
    size = images.size_of(record["segments"])
    parts = windows(size, tiles)
    if len(parts) == 1:
        yield record
        return
    picture = images.decode_image(record["image"], record["image_id"])
    segments, covered = records.decode_segments(record["segments"]), {}
    for n, counts in enumerate(record["table"]["rle"]):
        if counts:  # another mask lies on it
            covered[n] = run_lengths.decode(dict(size=size, counts=counts))
    for window in parts:
        yield _tile(record, window, size, picture[window.slices], segments[window.slices],
                    {n: mask[window.slices] for n, mask in covered.items()})


def _tile(record: dict, window: Window, size: tuple[int, int], picture: np.ndarray,
          segments: np.ndarray, covered: dict[int, np.ndarray]) -> dict:
    """The record of a window: rows keep their ids, areas and boxes are those inside."""
    rows, ids, rles = [], [], []
    table = record["table"]
    seen = np.bincount(segments.ravel(), minlength=int(max(table["id"], default=0)) + 1)
    for n, (i, class_id, is_thing, is_crowd, source_id) in enumerate(zip(*(
            table[key] for key in ("id", "class_id", "is_thing", "is_crowd", "source_id")))):
        whole = covered.get(n)
        area = int(seen[i] if whole is None else whole.sum())
        if not area:
            continue
        code = None if whole is None else run_lengths.encode(whole)
        rows.append(records.Segment(
            int(class_id), bool(is_thing), bool(is_crowd), int(source_id), float(area),
            None if code is None else run_lengths.box(code)))
        ids.append(int(i))
        rles.append(code["counts"] if code and area != seen[i] else b"")
    return records.assemble(
        images.encode_png(picture), id_of(record["image_id"], window, size), segments, rows,
        ids=ids, rles=rles, negative_classes=record["negative_classes"],
        not_exhaustive_classes=record["not_exhaustive_classes"])
