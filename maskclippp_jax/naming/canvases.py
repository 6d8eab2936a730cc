"""On which canvas an image tower sees a picture: one that needs no program of its own, if it pays.

Padding changes no result, so any canvas that holds a picture will do. The tower is compiled for
each, which takes seconds; a larger canvas that it was compiled for already costs more arithmetic.
What is cheaper depends on how many pictures of that size are still to come, which nobody knows. So
a picture takes a larger canvas until all that this has cost is a compilation, as one rents skis
until the rent has reached their price: never more than twice what hindsight would have spent.
A strip (`layers`) holds every picture of as many cells, whatever its shape.
"""

import collections
import math
import typing

import jax
import numpy as np

from maskclippp_jax.models import layers, resample

# Operations that take as long as to compile a tower: 3 s on two cores of a CPU, which do 5e10 a
# second. Accelerators compile for longer and compute for much less; but a large canvas also wants
# memory there. Theirs is a guess that no accelerator was at hand to check.
_WORTH = {"cpu": 1.5e11}
_WORTH_ELSEWHERE = 3e13
# A new canvas may be larger than its picture needs by as much as is regained in so many pictures.
_PICTURES = 50
_LONGEST = 3  # sides of such a canvas, as multiples of the shorter side of a picture
_MOST_CELLS = 4  # of such a strip, as multiples of those of a picture


class Canvases:
    """The canvases a tower was compiled for; all in pixels (height, width)."""

    def __init__(self, image: typing.Any, num_params: int):
        """Nothing is compiled yet.

        Args:
          image: sizes of the image tower.
          num_params: numbers in its parameters.
        """
        self._image, self._num_params = image, num_params
        self._worth = _WORTH.get(jax.default_backend(), _WORTH_ELSEWHERE)
        self._compiled: list[tuple[int, int]] = []
        self._paid = collections.Counter()  # operations, by the canvas that was done without

    def choose(self, own: typing.Sequence[int]) -> tuple[int, int]:
        """The canvas for a picture whose smallest one is `own`."""
        own = tuple(own)
        holding = [c for c in self._compiled if c[0] >= own[0] and c[1] >= own[1]]
        if holding:
            best = min(holding, key=self._operations)
            if best == own or self._paid[own] + self._more(best, own) <= self._worth:
                return best
        canvas = own
        if not holding:
            if layers.is_strip(self._cells(own)):
                canvas = self._generous_strip(own)
            elif self._compiled:
                canvas = self._generous(own)
        self._compiled.append(canvas)
        return canvas

    def used(self, canvas: tuple[int, int], own: typing.Sequence[tuple[int, int]]) -> None:
        """Pictures whose smallest canvases are `own` were seen on this one."""
        for one in own:
            self._paid[one] += self._more(canvas, one)

    def _generous(self, own: tuple[int, int]) -> tuple[int, int]:
        """A canvas for `own` and what may come after it, as sizes differ: the largest square, or
        sides of which there are few, if they cost little more."""
        patch = self._image.patch_size
        few = tuple(resample.few(side // patch) * patch for side in own)
        side, squares = max(few), []
        while side <= max(_LONGEST * min(own), max(few)):
            squares.append((side, side))
            side = resample.few(side // patch + 1) * patch
        for canvas in (*reversed(squares), few):
            if self._more(canvas, own) <= self._worth / _PICTURES:
                return canvas
        return own

    def _generous_strip(self, own: tuple[int, int]) -> tuple[int, int]:
        """A strip for `own` and what may come after it: the longest that costs little more."""
        patch, strips = self._image.patch_size, [own]
        cells = resample.few(own[1] // patch)
        while cells * patch <= _MOST_CELLS * own[1]:
            strips.append((patch, cells * patch))
            cells = resample.few(cells + 1)
        return next(s for s in reversed(strips) if self._more(s, own) <= self._worth / _PICTURES)

    def _more(self, canvas: tuple[int, int], own: tuple[int, int]) -> float:
        return self._operations(canvas) - self._operations(own)

    def _operations(self, canvas: tuple[int, int]) -> float:
        """About what a picture takes: of towers of convolutions it is less than the truth."""
        cells = math.prod(self._cells(canvas))
        channels = getattr(self._image, "width", 0) * np.sum(getattr(self._image, "depth", 0))
        return 2.0 * cells * self._num_params + 4.0 * cells**2 * float(channels)

    def _cells(self, canvas: tuple[int, int]) -> tuple[int, int]:
        return tuple(side // self._image.patch_size for side in canvas)
