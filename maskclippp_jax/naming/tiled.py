"""Pictures too large to be looked at whole: named tile by tile, and put together again.

A tile's masks come from a generator that sees the tile, or are those of the whole picture cut to
it. Each is named in its tile. What two neighbours found is one mask if both agree where they
overlap (IoU above 0.5 there); its scores are the mean over its pieces, weighted by their pixels,
and its shape, where tiles overlap, is the mean of what they say, weighted by the distance from
their edges. So what a mask is called does not change at a seam.

Pieces are kept packed, and all that needs masks at full size looks at a block of pixels at a time:
memory grows with the picture's pixels, not with the number of masks times them.
"""

import collections
import functools
import typing
import zlib

import numpy as np

from maskclippp_jax.data import tiling
from maskclippp_jax.data.bundles import PictureMasks
from maskclippp_jax.data.label_maps import Nothing
from maskclippp_jax.data.tiling import Tiles, Window
from maskclippp_jax.naming import given, postprocess
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.given import Given, ImageLike, MasksLike

if typing.TYPE_CHECKING:
    from maskclippp_jax.naming.result import Result

_BLOCK = 512     # pixels of a side that are looked at together
_SCORES = 2**25  # of classes and pixels together, at most
_SAME = 0.5      # IoU where tiles overlap, above which two masks are one


class _Piece(typing.NamedTuple):
    """What a tile shows of a mask in a block."""

    tile: int        # number of its window
    box: Window      # around it, in the picture
    packed: bytes    # [h, w] uint8 in 255ths, inside the box

    def values(self) -> np.ndarray:
        """[h, w] float32 in 0 ... 1, inside the box."""
        array = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        return array.reshape(self.box.shape).astype(np.float32) / 255

    @property
    def block(self) -> tuple[int, int]:
        """Row and column of the block it lies in."""
        return self.box.top // _BLOCK, self.box.left // _BLOCK


class LargeMasks:
    """N soft masks of a picture, of which only parts are ever unpacked."""

    def __init__(self, size: tuple[int, int], windows: typing.Sequence[Window],
                 pieces: typing.Sequence[typing.Sequence[_Piece]]):
        """Args: size: of the picture. windows: its tiles. pieces: of each mask."""
        self.size, self._windows = size, windows
        self._count = len(pieces)
        self._in_block: dict[tuple[int, int], list[tuple[int, _Piece]]] = collections.defaultdict(
            list)
        for n, of_mask in enumerate(pieces):
            for piece in of_mask:
                self._in_block[piece.block].append((n, piece))

    def __len__(self) -> int:
        return self._count

    def blocks(self) -> typing.Iterator[tuple[Window, list[int], np.ndarray]]:
        """Each block that shows a mask, the numbers of these masks, and their values there:
        [k, h, w] float32 in 0 ... 1."""
        for place in sorted(self._in_block):
            yield self._open(place, self._in_block[place])

    def mask(self, number: int) -> np.ndarray:
        """[H, W] bool, a mask where it is above 0.5."""
        found = np.zeros(self.size, bool)
        for place in self._blocks_of[number]:
            pieces = [(n, piece) for n, piece in self._in_block[place] if n == number]
            block, _, values = self._open(place, pieces)
            found[block.slices] = values[0] > 0.5
        return found

    def soft(self) -> np.ndarray:
        """[N, H, W] float32, all of them whole."""
        full = np.zeros((len(self), *self.size), np.float32)
        for block, numbers, values in self.blocks():
            full[(numbers, *block.slices)] = values
        return full

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """[N] int64, how many each mask has."""
        counts = np.zeros(len(self), np.int64)
        for _, numbers, values in self.blocks():
            counts[numbers] += (values > 0.5).sum((1, 2))
        return counts

    def labels(self, scores: np.ndarray) -> np.ndarray:
        """[H, W] int32, the class with the largest sum of score times mask, the first one on ties;
        -1 where no mask with a score is. `scores` [N, C] float32."""
        labels, useful = np.full(self.size, -1, np.int32), scores.any(-1)
        for block, numbers, values in self.blocks():
            values, of_masks = values[useful[numbers]], scores[numbers][useful[numbers]]
            if not len(values):
                continue
            classes = np.flatnonzero(of_masks.max(0) > 0)  # the others win nowhere
            of_masks = np.ascontiguousarray(of_masks[:, classes])
            flat, part = values.reshape(len(values), -1), labels[block.slices]
            best = np.full(flat.shape[1], -1, np.int32)
            step = max(1, _SCORES // len(classes))
            for start in range(0, flat.shape[1], step):
                some = slice(start, start + step)
                best[some] = classes[(flat[:, some].T @ of_masks).argmax(-1)]
            best[~(flat > 0).any(0)] = -1
            part[:] = best.reshape(part.shape)
        return labels

    def panoptic(self, scores: MaskScores, is_thing: typing.Sequence[bool],
                 object_threshold: float, overlap_threshold: float
                 ) -> tuple[np.ndarray, list[dict]]:
        """Segments by the rule of `postprocess`, see `postprocess.panoptic_segments`."""
        best = scores.classes.max(-1, initial=0)
        competes = (best >= scores.void) & (best > object_threshold)
        winner, covered = np.zeros(self.size, np.int32), np.zeros(len(self), np.int64)
        for block, numbers, values in self.blocks():
            numbers = np.array(numbers)
            covered[numbers] += (values >= 0.5).sum((1, 2))
            values, numbers = values[competes[numbers]], numbers[competes[numbers]]
            if len(numbers):
                first = (values * best[numbers][:, None, None]).argmax(0)
                inside = np.take_along_axis(values, first[None], 0)[0]
                winner[block.slices] = np.where(inside >= 0.5, 1, -1) * (numbers[first] + 1) * (
                    inside > 0)
        return postprocess.panoptic_segments(
            winner, covered, scores.classes.argmax(-1), is_thing, overlap_threshold)

    @functools.cached_property
    def _blocks_of(self) -> list[list[tuple[int, int]]]:
        """Where each mask has pieces."""
        places: list[dict] = [{} for _ in range(len(self))]
        for place, pieces in self._in_block.items():
            for n, _ in pieces:
                places[n][place] = None
        return [list(of_mask) for of_mask in places]

    def _open(self, place: tuple[int, int], pieces: typing.Sequence[tuple[int, _Piece]]
              ) -> tuple[Window, list[int], np.ndarray]:
        """A block with some of its pieces, see `blocks`."""
        top, left = (n * _BLOCK for n in place)
        block = Window(top, left, min(top + _BLOCK, self.size[0]),
                       min(left + _BLOCK, self.size[1]))
        shares = self._shares(block)
        numbers = sorted({n for n, _ in pieces})
        row_of = dict(zip(numbers, range(len(numbers))))
        values = np.zeros((len(numbers), *block.shape), np.float32)
        for n, piece in pieces:
            inside = piece.box.inside(block)
            values[row_of[n]][inside] += piece.values() * shares[piece.tile][inside]
        return block, numbers, values

    def _shares(self, block: Window) -> dict[int, np.ndarray]:
        """[h, w] float32 for each tile in a block, what its word counts there; together 1."""
        depths = {}
        for tile, window in enumerate(self._windows):
            common = window.common(block)
            if common:
                depths[tile] = np.zeros(block.shape, np.float32)
                depths[tile][common.inside(block)] = _depth(window, self.size)[
                    common.inside(window)]
        total = sum(depths.values())
        # A tile alone counts 1, which a share of itself may miss by its rounding.
        return {tile: np.where(depth == total, np.float32(1), depth / total)
                for tile, depth in depths.items()}


_depth = functools.lru_cache(maxsize=32)(tiling.depth)


class SomeMasks:
    """Some of large masks, as [n, H, W] bool of which one at a time exists."""

    def __init__(self, masks: LargeMasks, numbers: typing.Sequence[int]):
        self._masks, self._numbers = masks, numbers
        self.shape = (len(numbers), *masks.size)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> np.ndarray:
        return self._masks.mask(self._numbers[place])


class Cut:
    """A picture in tiles, whose masks are put together as the tiles are named."""

    def __init__(self, image: ImageLike, masks: MasksLike, nothing: Nothing, tiles: Tiles):
        """Reads the picture, and its masks unless they are to be made of each tile.

        Raises:
          FileNotFoundError, ValueError: see `given.read`; or masks that cannot be cut.
        """
        tiling.check(tiles)
        self._of_tile = masks if callable(masks) else None
        if self._of_tile:
            pixels, path = given.read_image(image), given.path_of(image)
            self._whole = Given(pixels, np.zeros(0, int), None, None, path=path)
        else:
            self._whole = given.read(image, masks, nothing, in_tiles=True)
            if self._whole.bundle is not None:
                raise ValueError("masks of a bundle have classes of the whole picture, which tiles "
                                 "have not; leave --tiles out, or let the generator look at them")
        self._size = self._whole.image.shape[:2]
        self.windows = tiling.windows(self._size, tiles)
        self._groups = _Groups()
        self._pieces: list[list[list[_Piece]]] = []  # of each mask of each named tile
        self._scores: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def alone(self) -> Given:
        """The picture with its masks as it is given without tiles, of which it is one."""
        if not self._of_tile:
            return self._whole
        given_back = given.read(self._whole.image, self._of_tile)
        return given_back._replace(path=self._whole.path)

    def parts(self) -> typing.Iterator[Given | tuple[ImageLike, MasksLike]]:
        """The tiles with their masks, or with what makes them, as `add` wants them named."""
        limits = None if self._whole.masks is None else _limits(self._whole.masks.masks)
        for window in self.windows:
            pixels = np.ascontiguousarray(self._whole.image[window.slices])
            if self._of_tile:
                yield pixels, self._of_tile
            else:
                yield _part_of(self._whole, window, pixels, limits)

    def add(self, result: "Result") -> None:
        """Takes the next tile with its named masks."""
        tile, pixels = len(self._pieces), result.pixels
        self._scores.append((result.scores, result.void, np.maximum(pixels, 1)))
        if not self._of_tile:
            self._pieces.append([])
            for n, i in enumerate(result.ids):
                self._groups.join((tile, n), ("mask", int(i)))
            return
        window = self.windows[tile]
        self._pieces.append([_pack(mask, tile, window) for mask in result.soft_masks])
        for other in range(tile):
            common = window.common(self.windows[other])
            if common:
                for pair in self._same(other, tile, common):
                    self._groups.join(*pair)

    def finish(self) -> tuple[Given, MaskScores]:
        """The picture with its masks, once all tiles were added, and their scores."""
        names = [(tile, n) for tile, (scores, _, _) in enumerate(self._scores)
                 for n in range(len(scores))]
        groups = self._groups.members(names)
        if self._of_tile:
            masks = LargeMasks(self._size, self.windows, [
                [p for tile, n in members for p in self._pieces[tile][n]] for members in groups])
            ids = np.arange(1, len(groups) + 1)
            return self._whole._replace(ids=ids, large=masks), self._mean_scores(groups)
        # Every mask of the whole is somewhere, but for those without a pixel.
        shown = [self._groups.name_of(members[0]) for members in groups]
        place = {int(i): n for n, i in enumerate(self._whole.ids)}
        order = [place[i] for _, i in shown]
        found, count = self._mean_scores(groups), len(self._whole.ids)
        classes = np.zeros((count, found.classes.shape[1]), np.float32)
        void = np.ones(count, np.float32)  # as of a slot without a mask
        classes[order], void[order] = found
        whole = self._whole
        if whole.segments is None:
            whole = whole._replace(masks=None, large=_packed(whole.masks.masks, self._size))
        return whole, MaskScores(classes, void)

    def _mean_scores(self, groups: list[list[tuple[int, int]]]) -> MaskScores:
        width = self._scores[0][0].shape[1]
        classes, void = np.zeros((len(groups), width), np.float32), np.zeros(
            len(groups), np.float32)
        for g, members in enumerate(groups):
            weights = np.array([self._scores[tile][2][n] for tile, n in members], np.float64)
            weights /= weights.sum()
            for (tile, n), weight in zip(members, weights):
                classes[g] += self._scores[tile][0][n] * weight
                void[g] += self._scores[tile][1][n] * weight
        return MaskScores(classes, void)

    def _same(self, one: int, two: int, common: Window
              ) -> typing.Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Pairs of masks of two tiles that agree where these overlap, the best ones first."""
        numbers, flat = zip(*(_inside(self._pieces[tile], common) for tile in (one, two)))
        if not all(map(len, numbers)):
            return
        both = flat[0] @ flat[1].T
        iou = both / np.maximum(flat[0].sum(1)[:, None] + flat[1].sum(1)[None] - both, 1)
        while iou.max() > _SAME:
            a, b = np.unravel_index(iou.argmax(), iou.shape)
            yield (one, numbers[0][a]), (two, numbers[1][b])
            iou[a], iou[:, b] = 0, 0


class _Groups:
    """Which pieces are one mask (a forest of sets, Tarjan 1975)."""

    def __init__(self):
        self._above: dict = {}

    def name_of(self, member):
        """What stands for all that are one with it."""
        while member in self._above:
            member = self._above[member]
        return member

    def join(self, one, two) -> None:
        one, two = self.name_of(one), self.name_of(two)
        if one != two:
            self._above[one] = two

    def members(self, names: list) -> list[list]:
        """The names in groups, in the order of the first of each."""
        groups: dict = {}
        for name in names:
            groups.setdefault(self.name_of(name), []).append(name)
        return list(groups.values())


def _limits(masks: np.ndarray) -> np.ndarray:
    """[N, 1, 1] what masks [N, H, W], bool or logits, exceed where they have a pixel: a share of
    0.5; of one that is nowhere above it, half its largest odds."""
    highest = masks.max((1, 2), keepdims=True)
    return np.where((highest > 0) | (masks.dtype == bool), 0, highest - np.log(2, dtype=np.float32))


def _part_of(whole: Given, window: Window, pixels: np.ndarray, limits: np.ndarray | None) -> Given:
    """A tile with those masks of the whole that have a pixel in it, see `_limits`."""
    if whole.segments is not None:
        segments = whole.segments[window.slices]
        shown = np.unique(segments[segments > 0])
        table = np.zeros(len(whole.ids) + 1, np.int32)
        table[shown] = np.arange(1, len(shown) + 1)
        return Given(pixels, whole.ids[shown - 1], table[segments], None)
    masks = whole.masks.masks[(slice(None), *window.slices)]
    shown = (masks > limits).any((1, 2))
    return Given(pixels, whole.ids[shown], None, PictureMasks(masks[shown], None, None, None))


def _pack(mask: np.ndarray, tile: int, window: Window) -> list[_Piece]:
    """A soft mask [h, w] of a tile, a piece for each block where it is."""
    values, pieces = np.rint(mask * 255).astype(np.uint8), []
    for top in range(window.top // _BLOCK * _BLOCK, window.bottom, _BLOCK):
        for left in range(window.left // _BLOCK * _BLOCK, window.right, _BLOCK):
            part = window.common(Window(top, left, top + _BLOCK, left + _BLOCK))
            inside = values[part.inside(window)]
            rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
            if not len(rows):
                continue
            rows, columns = (slice(int(x[0]), int(x[-1]) + 1) for x in (rows, columns))
            box = Window(part.top + rows.start, part.left + columns.start,
                         part.top + rows.stop, part.left + columns.stop)
            packed = zlib.compress(np.ascontiguousarray(inside[rows, columns]), 1)
            pieces.append(_Piece(tile, box, packed))
    return pieces


def _packed(masks: np.ndarray, size: tuple[int, int]) -> LargeMasks:
    """Masks [N, H, W] of a whole picture, bool or logits."""
    whole = Window(0, 0, *size)
    shares = (mask if mask.dtype == bool else 1 / (1 + np.exp(-mask)) for mask in masks)
    return LargeMasks(size, [whole], [_pack(mask, 0, whole) for mask in shares])


def _inside(masks: typing.Sequence[typing.Sequence[_Piece]], window: Window
            ) -> tuple[list[int], np.ndarray]:
    """The numbers of the masks in a window, and where they are there: [k, h * w] of 0 and 1."""
    numbers, flat = [], []
    for n, pieces in enumerate(masks):
        values = np.zeros(window.shape, np.float32)
        for piece in pieces:
            part = piece.box.common(window)
            if part:
                values[part.inside(window)] = piece.values()[part.inside(piece.box)] > 0.5
        if values.any():
            numbers.append(n)
            flat.append(values.ravel())
    return numbers, np.array(flat)
