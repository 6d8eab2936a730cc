"""Names in pictures: in their segments where there is room, and never on one another."""

import math
import typing

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskclippp_jax.drawing.colors import Color, text_color
from maskclippp_jax.drawing.fonts import fit, font_for

_NAMED = 200           # segments of a picture that may get a name, largest first
_WORTH_A_NAME = 0.001  # share of a picture from which on a segment gets one
_GRID = 640            # cells of the longer side, in which places are sought
_REACH = 2.5     # heights of a name that it may stand away from its segment's middle
_COVERED = 0.25  # share of the picture that names may cover when one more is put outside


_INK, _WRONG, _RIM = (30, 30, 30), (200, 30, 45), (255, 255, 255)


class Name(typing.NamedTuple):
    """What is written on a segment."""

    text: str
    right: bool | None = None   # a wrong one is red and has a cross
    color: Color | None = None  # of its ground; None: dark


def ordinary_side(width: int, height: int) -> float:
    """Pixels of the longer side of a picture 4:3 with as many pixels, to which things are fitted:
    a strip is as long as a large picture, but has no more room than a small one."""
    return math.sqrt(width * height * 4 / 3)


def text_size(width: int, height: int) -> int:
    """Height of letters, pixels: 12 in small pictures, 62 in one of 4000x3000 pixels."""
    return max(12, round(6 + ordinary_side(width, height) / 72))


def write(view: Image.Image, segments: np.ndarray, names: typing.Mapping[int, Name]) -> None:
    """Writes the names of the largest segments on a drawing.

    Args:
      view: is drawn on.
      segments: [h, w] integers, at the size of the drawing.
      names: of segments; those of numbers below 1 or nowhere in the picture are left out.
    """
    areas = np.bincount(segments.ravel())
    numbers = sorted((n for n in names if 0 < n < len(areas)
                      and areas[n] >= max(1, _WORTH_A_NAME * segments.size)),
                     key=lambda n: (-areas[n], n))[:_NAMED]
    size = text_size(*view.size)
    cell = max(1, max(view.size) // _GRID)
    cells = segments[cell // 2::cell, cell // 2::cell][:view.height // cell, :view.width // cell]
    if not cells.size:  # a strip
        return
    written = {n: _Written.of(names[n], size, view.width) for n in numbers}
    places = place(cells, {n: (-(-w.width // cell), -(-w.height // cell))
                           for n, w in written.items()})
    draw = ImageDraw.Draw(view, "RGBA")
    boxes = {n: (spot.left * cell, spot.top * cell) for n, spot in places.items()}
    for n, spot in places.items():  # lines first, as names may lie on them
        if not spot.inside:
            written[n].draw_line(draw, *boxes[n], *((v + 0.5) * cell for v in spot.middle))
    for n, corner in boxes.items():
        written[n].draw(draw, *corner)


class _Written(typing.NamedTuple):
    """A name as it is drawn; sizes in pixels."""

    text: str
    font: ImageFont.FreeTypeFont
    ground: Color
    has_cross: bool
    size: int    # of letters
    width: int
    height: int

    @classmethod
    def of(cls, name: Name, size: int, widest: int) -> "_Written":
        """Cut to three fifths of a picture that is `widest` wide, to all of it if that is small."""
        font, has_cross = font_for(size, [name.text]), name.right is False
        beside = 2 * round(0.35 * size) + has_cross * size
        text = fit(name.text, font, min(widest, max(0.6 * widest, 9 * size)) - beside - 1)
        return cls(text, font, _WRONG if has_cross else name.color or _INK, has_cross, size,
                   math.ceil(font.getlength(text)) + beside, round(1.5 * size))

    def draw(self, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        ink, middle = text_color(self.ground), top + self.height / 2
        right = left + self.width
        draw.rounded_rectangle((left, top, right - 1, top + self.height - 1),
                               round(0.3 * self.size), fill=(*self.ground, 225))
        draw.text((left + round(0.35 * self.size), middle), self.text, fill=ink, font=self.font,
                  anchor="lm")
        if self.has_cross:  # it is drawn: not every font has such a sign
            x, reach = right - 0.65 * self.size, 0.25 * self.size
            for slope in (-1, 1):
                draw.line((x - reach, middle - slope * reach, x + reach, middle + slope * reach),
                          fill=ink, width=max(2, round(self.size / 8)))

    def draw_line(self, draw: ImageDraw.ImageDraw, left: int, top: int, x: float, y: float) -> None:
        """From a name that has its place at (left, top) to its segment, unless it lies there."""
        end = (min(max(x, left), left + self.width), min(max(y, top), top + self.height))
        if end == (x, y):
            return
        stroke = max(1, round(self.size / 9))
        for color, wide in ((_RIM, 3), (self.ground, 1)):
            draw.line((x, y, *end), fill=color, width=wide * stroke)
            reach = (wide + 1) / 2 * stroke
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=color)


class Place(typing.NamedTuple):
    """Of a name, in pixels."""

    left: int
    top: int
    middle: tuple[int, int]  # of the segment, (x, y): the pixel that is farthest from its border
    inside: bool             # whether all of the name lies in its segment


def place(segments: np.ndarray, sizes: typing.Mapping[int, tuple[int, int]]
          ) -> dict[int, Place]:
    """Places names so that none covers another, and all lie in the picture.

    A name stands where it is deepest in its segment; where it fits nowhere in it, as near as
    possible to its middle. If there is no room within `_REACH`, or names cover much of the picture
    already, it has no place.

    Args:
      segments: [h, w] integers.
      sizes: width and height, pixels, of the names of segments, first those that choose first.
    """
    free = np.ones(segments.shape, bool)
    height, width = segments.shape
    places = {}
    for number, (wide, high) in sizes.items():
        mask = segments == number
        left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
        if not rows or wide > width or high > height:
            continue
        rows, columns = slice(top, top + rows), slice(left, left + columns)
        mask = mask[rows, columns]
        y, x = _deepest(mask)
        middle = (x + columns.start, y + rows.start)
        room = _room(mask & free[rows, columns], wide, high)
        inside = bool(room.any())
        if inside:
            top, left = _deepest(room)
        elif (~free).sum() + wide * high > _COVERED * free.size:
            continue
        else:
            # All of the picture near the middle.
            far = round(_REACH * high)
            rows = slice(max(0, middle[1] - far - high), min(height, middle[1] + far + high))
            columns = slice(max(0, middle[0] - far - wide), min(width, middle[0] + far + wide))
            tops, lefts = np.nonzero(_room(free[rows, columns], wide, high))
            away = np.hypot(tops + rows.start + (high - 1) / 2 - middle[1],
                            lefts + columns.start + (wide - 1) / 2 - middle[0])
            if not away.size:
                continue
            best = away.argmin()
            top, left = int(tops[best]), int(lefts[best])
        left, top = left + columns.start, top + rows.start
        free[top:top + high, left:left + wide] = False
        places[number] = Place(left, top, middle, inside)
    return places


def _room(free: np.ndarray, wide: int, high: int) -> np.ndarray:
    """Of each left upper corner of a box inside, whether all of the box is free."""
    if free.shape[0] < high or free.shape[1] < wide:
        return np.zeros((0, 0), bool)
    total = cv2.integral(free.astype(np.uint8))
    below = total[high:] - total[:-high]  # of strips as high as the box
    return below[:, wide:] - below[:, :-wide] == wide * high


def _deepest(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (y, x) that is farthest from the border of a mask, which has at least one; of
    several that next to their mean."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    found = np.argwhere(depth == depth.max())
    y, x = found[np.square(found - found.mean(0)).sum(1).argmin()]
    return int(y), int(x)
