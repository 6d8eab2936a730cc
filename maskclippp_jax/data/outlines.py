"""Masks as polygons, as annotation tools draw them."""

import typing

import cv2
import numpy as np
from etils import epy

from maskclippp_jax.metrics import run_lengths

with epy.lazy_imports():  # slow to import, and needed for masks with holes in YOLO's files alone
    from scipy import spatial

ALIKE = 0.99      # the least IoU of a mask and what stands for it in a file
_BESIDE = 1.0      # pixels that a polygon of fewer corners may lie beside the exact one ...
_BETWEEN = 0.5     # ... or beside the middles of its edges
# Pixels by which polygons stay inside the edges of a mask's last pixels: COCO's tools fill what has
# its centre inside, others (OpenCV and Pillow, so Ultralytics, supervision, LabelMe) cut numbers to
# whole pixels and draw the outline as well. Both give the same mask then.
_INSIDE = 0.25


class Part(typing.NamedTuple):
    """A connected part of a mask (also at a corner); polygons [n, 2] of x and y in pixels."""

    outer: np.ndarray
    holes: list[np.ndarray]


def parts_of(mask: np.ndarray) -> list[Part]:
    """The parts of a mask [H, W] bool, along the edges of its pixels: a pixel has four corners.

    OpenCV's contours go through the centres of pixels. Where each pixel is drawn as four, these
    centres lie on both sides of every edge, and half of their numbers, rounded up, is the edge.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    inside = mask[top:rows[-1] + 1, left:columns[-1] + 1]
    fine = np.pad(inside.astype(np.uint8).repeat(2, 0).repeat(2, 1), 2)
    contours, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts: dict[int, Part] = {}
    for number, contour in enumerate(contours):
        ring = _corners((contour[:, 0] + 1) // 2 + [left - 1, top - 1])
        parent = tree[0, number, 3]
        if parent < 0:
            parts[number] = Part(ring, [])
        else:
            parts[parent].holes.append(ring)
    return list(parts.values())


def polygons(mask: np.ndarray) -> list[np.ndarray] | None:
    """One polygon for each part of a mask [H, W] bool, with few corners; None if it has holes.

    None as well if the rasteriser of COCO or that of OpenCV makes another mask of them (`ALIKE`),
    as of tiny ones.
    """
    parts = parts_of(mask)
    if not parts or any(part.holes for part in parts):
        return None
    return _fewest_corners(mask, [part.outer for part in parts], lambda rings: [
        _inset(ring) for ring in rings], (_by_coco, _by_opencv))


def polygon(mask: np.ndarray) -> np.ndarray | None:
    """The one polygon of a mask; None as in `polygons`, or if the mask has several parts."""
    rings = polygons(mask)
    return rings[0] if rings and len(rings) == 1 else None


def joined_polygon(mask: np.ndarray) -> np.ndarray | None:
    """One polygon for a mask [H, W] bool, whose parts and holes lines without width join.

    A line goes there and back, so that rasterisers find nothing between; those that draw outlines
    as well make it one pixel wide. None if the mask is empty, or see `polygons`.
    """
    parts = parts_of(mask)
    parts.sort(key=lambda part: -cv2.contourArea(part.outer.astype(np.int32)))
    rings = [ring for part in parts for ring in (part.outer, *part.holes)]
    are_holes = [is_hole for part in parts for is_hole in (False, *[True] * len(part.holes))]
    if not rings:
        return None

    def join(rings: list[np.ndarray]) -> list[np.ndarray]:
        rest = iter([_inset(ring, is_hole) for ring, is_hole in zip(rings, are_holes)])
        whole = [_enter(next(rest), [next(rest) for _ in part.holes]) for part in parts]
        return [_enter(whole[0], whole[1:])]

    found = _fewest_corners(mask, rings, join, (_by_coco,))
    return found[0] if found else None


def _fewest_corners(mask: np.ndarray, rings: list[np.ndarray],
                    made_of: typing.Callable[[list[np.ndarray]], list[np.ndarray]],
                    rasterisers: typing.Sequence[typing.Callable]) -> list[np.ndarray] | None:
    """The polygons made of rings, straightened if all rasterisers still give the mask.

    Corners of pixels are right for boxes, middles of edges for what is round: a straight line
    through the corners of stairs lies outside of them.
    """
    # Looked at alone, as the picture may be large.
    low, high = (np.concatenate(rings).astype(int).min(0) - 2,
                 np.concatenate(rings).astype(int).max(0) + 2)
    first = np.maximum(low, 0)
    mask = np.pad(mask[first[1]:high[1], first[0]:high[0]], [
        (n, 0) for n in (first - low)[::-1]])
    for way in ([_straight(r, _BESIDE) for r in rings],
                [_straight(_middles(r), _BETWEEN) for r in rings], rings):
        if any(len(ring) < 3 for ring in way):
            continue
        made = made_of(way)
        if all(_alike(draw([r - low for r in made], mask.shape), mask) for draw in rasterisers):
            return made
    return None


def _by_coco(rings: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return run_lengths.decode(run_lengths.of_polygons([r.tolist() for r in rings], size))


def _by_opencv(rings: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    drawn = np.zeros(size, np.uint8)
    for ring in rings:
        cv2.fillPoly(drawn, [ring.astype(np.int32)], 1)
    return drawn > 0


def _alike(one: np.ndarray, two: np.ndarray) -> bool:
    return (one & two).sum() >= ALIKE * (one | two).sum()


def _inset(ring: np.ndarray, is_hole: bool = False) -> np.ndarray:
    """A ring whose edges are `_INSIDE` farther into the mask; that of a hole becomes larger."""
    ring = ring.astype(np.float64)
    edges = np.roll(ring, -1, 0) - ring
    lengths = np.linalg.norm(edges, axis=1, keepdims=True)
    area = (ring[:, 0] * np.roll(ring[:, 1], -1) - ring[:, 1] * np.roll(ring[:, 0], -1)).sum()
    side = np.sign(area) * (-1 if is_hole else 1)
    after = side * np.stack([-edges[:, 1], edges[:, 0]], 1) / np.maximum(lengths, 1e-9)
    before = np.roll(after, 1, 0)
    # Where two edges meet, both move; a sharp corner does not run away.
    meets = np.maximum(1 + (before * after).sum(1, keepdims=True), 0.5)
    return ring + _INSIDE * (before + after) / meets


def _enter(ring: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """A ring that leaves at its nearest point for each of the others, and comes back to it."""
    if not others:
        return ring
    tree, visits = spatial.cKDTree(ring), []
    for other in others:
        distances, places = tree.query(other)
        first = distances.argmin()
        around = np.roll(other, -first, axis=0)
        visits.append((int(places[first]), np.concatenate([around, around[:1]])))
    pieces, done = [], 0
    for place, around in sorted(visits, key=lambda visit: visit[0]):
        pieces += [ring[done:place + 1], around, ring[place:place + 1]]
        done = place + 1
    return np.concatenate([*pieces, ring[done:]])


def _straight(ring: np.ndarray, beside: float) -> np.ndarray:
    return cv2.approxPolyDP(ring.astype(np.float32), beside, True)[:, 0].astype(np.float64)


def _middles(ring: np.ndarray) -> np.ndarray:
    """The middles of the edges of pixels along a ring of corners."""
    steps = np.roll(ring, -1, 0) - ring
    lengths = np.abs(steps).sum(1)
    units = np.sign(steps).repeat(lengths, 0)
    starts = ring.repeat(lengths, 0)
    place = np.arange(lengths.sum()) - (np.cumsum(lengths) - lengths).repeat(lengths)
    return starts + units * (place[:, None] + 0.5)


def _corners(ring: np.ndarray) -> np.ndarray:
    """A closed ring without points that are given twice or lie between two others."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[turns]
