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

    None as well if COCO's rasteriser makes another mask of them (`ALIKE`), as of tiny ones.
    """
    parts = parts_of(mask)
    if not parts or any(part.holes for part in parts):
        return None
    return _fewest_corners(mask, [part.outer for part in parts], lambda rings: rings)


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
    if not rings:
        return None

    def join(rings: list[np.ndarray]) -> list[np.ndarray]:
        rest = iter(rings)
        whole = [_enter(next(rest), [next(rest) for _ in part.holes]) for part in parts]
        return [_enter(whole[0], whole[1:])]

    found = _fewest_corners(mask, rings, join)
    return found[0] if found else None


def _fewest_corners(mask: np.ndarray, rings: list[np.ndarray],
                    made_of: typing.Callable[[list[np.ndarray]], list[np.ndarray]]
                    ) -> list[np.ndarray] | None:
    """The polygons made of rings, straightened if they still give the mask.

    Corners of pixels are right for boxes, middles of edges for what is round: a straight line
    through the corners of stairs lies outside of them.
    """
    for way in ([_straight(r, _BESIDE) for r in rings],
                [_straight(_middles(r), _BETWEEN) for r in rings], rings):
        if any(len(ring) < 3 for ring in way):
            continue
        made = made_of(way)
        drawn = run_lengths.decode(run_lengths.of_polygons([r.tolist() for r in made], mask.shape))
        if (drawn & mask).sum() >= ALIKE * (drawn | mask).sum():
            return made
    return None


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
