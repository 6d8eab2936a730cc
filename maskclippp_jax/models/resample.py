"""Bilinear resampling of pictures and masks on the device, with true sizes known only at run time.

All resizes of the method are bilinear without antialiasing, with half-pixel centres (torch's
`interpolate(mode="bilinear", align_corners=False)`). One output cell reads two rows and two
columns; several resizes in a row read a few more. So a label map of segments is brought to the
token grid by looking at the few pixels that matter, and masks never exist at pixel resolution.

Indices and weights come from whole-number arithmetic: `(2i + 1) * n_in / (2 * n_out) - 1/2` is
split into floor and remainder exactly, for sides up to 30 000 pixels.
"""

import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax.models import positions

# Cells of the smallest window that is told from larger ones: less work than another program.
_SMALLEST_WINDOW = 16
# Windows that `map_tiles` has a program for, as multiples of what suits the ratio of the canvases.
_SLACKS = (1, 1.5)


class Taps(typing.NamedTuple):
    """Which source rows (or columns) an output row reads, and how much of each."""

    index: jax.Array | np.ndarray   # [n, k] int32
    weight: jax.Array | np.ndarray  # [n, k] float32; 0 for rows that do not exist


class Stage(typing.NamedTuple):
    """One resize of an axis from `num_in` to `num_out` cells (int32 scalars or ints)."""

    num_in: jax.Array | int
    num_out: jax.Array | int


def bilinear_taps(num_rows: int, *stages: Stage, first: jax.Array | int = 0) -> Taps:
    """What each of `num_rows` output rows reads after one or more resizes.

    Args:
      num_rows: rows of the output canvas; rows beyond a stage's true `num_out` get weight 0, as if
        that stage's result had been padded with zeros.
      stages: the resizes, the *last* one first.
      first: number of the first output row, for a part of them.

    Returns:
      Taps with k = 2 ** len(stages) (k = 1 without stages: the identity); arrays of numpy if all
      sizes are numbers, which compiles nothing.
    """
    sizes = (first, *(side for stage in stages for side in stage))
    xp = jnp if any(isinstance(size, jax.Array) for size in sizes) else np
    index = first + xp.arange(num_rows)[:, None]  # [n, 1]
    weight = xp.ones((num_rows, 1), xp.float32)
    for num_in, num_out in stages:
        twice = xp.maximum((2 * index + 1) * num_in - num_out, 0)  # 2 * num_out * coordinate
        first = twice // (2 * num_out)
        part = (twice % (2 * num_out)) / (2 * num_out)  # [n, k] in [0, 1)
        part = part.astype(xp.float32)
        exists = (index < num_out).astype(xp.float32)
        both = xp.stack([first, xp.minimum(first + 1, num_in - 1)], -1)
        index = xp.minimum(both, num_in - 1).reshape(num_rows, -1)
        weight = (xp.stack([1 - part, part], -1) * (weight * exists)[..., None])
        weight = weight.reshape(num_rows, -1)
    return Taps(index.astype(xp.int32), weight)


def scaled_taps(num_rows: int, num_in: int, scale: float) -> Taps:
    """Bilinear taps that step exactly `1 / scale` source rows, whatever `num_rows` is.

    The reference resizes pictures so by a relative size: rows are cut to whole pixels, but the step
    is not stretched to fit (masks are resized to the size, by `bilinear_taps`).
    """
    source = np.maximum((np.arange(num_rows) + 0.5) / scale - 0.5, 0)
    first = np.minimum(np.floor(source).astype(np.int32), num_in - 1)
    part = (source - first).astype(np.float32)
    return Taps(jnp.asarray(np.stack([first, np.minimum(first + 1, num_in - 1)], -1)),
                jnp.asarray(np.stack([1 - part, part], -1)))


def taps_matrix(taps: Taps, num_in: int) -> jax.Array:
    """The same as a dense matrix [n, num_in] float32, for matrix units."""
    hot = jax.nn.one_hot(taps.index, num_in, dtype=jnp.float32)  # [n, k, num_in]
    return jnp.einsum("nk,nki->ni", taps.weight, hot, precision="highest")


def soft(masks: jax.Array) -> jax.Array:
    """Masks of any dtype as float32 in [0, 1]: uint8 counts in 255ths, bool is 0 or 1."""
    masks, whole = masks.astype(jnp.float32), 255 if masks.dtype == jnp.uint8 else 1
    return masks / whole


def resize_image(image: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    """Resizes one picture [H, W, 3] (any number dtype) to float32 [n_rows, n_columns, 3]."""
    height, width = image.shape[:2]
    return jnp.einsum("hi,ijc,wj->hwc", taps_matrix(rows, height), image.astype(jnp.float32),
                      taps_matrix(columns, width), precision="highest")


def resize_masks(masks: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    """Resizes one image's soft masks, [N, H, W] in [0, 1], to float32 [N, n_rows, n_columns]."""
    height, width = masks.shape[-2:]
    return jnp.einsum("hi,nij,wj->nhw", taps_matrix(rows, height), masks.astype(jnp.float32),
                      taps_matrix(columns, width), precision="highest")


def segment_shares(segments: jax.Array, rows: Taps, columns: Taps) -> tuple[jax.Array, jax.Array]:
    """The pixels of a label map each output cell reads, with their weights.

    Args:
      segments: [H, W] integer, 0 = nothing, n = mask slot n - 1.
      rows: taps of the output rows.
      columns: taps of the output columns.

    Returns:
      segment ids [n_rows, n_columns, k] int32 and weights [n_rows, n_columns, k] float32.
    """
    found = segments[rows.index][:, :, columns.index]  # [h, kr, w, kc]
    found = jnp.swapaxes(found, 1, 2).astype(jnp.int32)  # [h, w, kr, kc]
    weight = rows.weight[:, None, :, None] * columns.weight[None, :, None, :]
    return found.reshape(*found.shape[:2], -1), weight.reshape(*found.shape[:2], -1)


def segments_to_masks(segments: jax.Array, rows: Taps, columns: Taps, num_masks: int) -> jax.Array:
    """Resizes all masks of a label map at once, without ever forming them at full size.

    Returns:
      [num_masks, n_rows, n_columns] float32 in [0, 1]: the bilinear resize of each slot's mask. An
      empty slot gives zeros.
    """
    found, weight = segment_shares(segments, rows, columns)
    slots = jnp.arange(1, num_masks + 1)[:, None, None, None]
    return jnp.where(found[None] == slots, weight[None], 0.0).sum(-1)


def resize_on_host(maps: np.ndarray, taps: Taps, axis: int) -> np.ndarray:
    """Resizes one axis of an array by taps of numpy, to float32 with n cells along that axis.

    For what one picture of any size asks for: little work, for which nothing is compiled.
    """
    maps = np.moveaxis(maps, axis, 0)
    resized = np.zeros((len(taps.index), *maps.shape[1:]), np.float32)
    for number, share in zip(taps.index.T, taps.weight.T):
        resized += share.reshape(-1, *[1] * (maps.ndim - 1)) * maps[number]
    return np.moveaxis(resized, 0, axis)


def segments_to_masks_on_host(segments: np.ndarray, rows: Taps, columns: Taps, num_masks: int
                              ) -> np.ndarray:
    """What `segments_to_masks` gives, by taps of numpy."""
    found = segments[rows.index][:, :, columns.index]  # [h, kr, w, kc]
    height, _, width, _ = found.shape
    cells = np.arange(height * width).reshape(height, 1, width, 1)
    weight = rows.weight[:, :, None, None] * columns.weight[None, None]
    sums = np.bincount((found.astype(np.int64) * cells.size + cells).ravel(), weight.ravel(),
                       minlength=(1 + num_masks) * cells.size)  # of segment 0 first
    return sums[cells.size:].reshape(num_masks, height, width).astype(np.float32)


def grid_taps(cells: int, patch: int, *stages: Stage) -> Taps:
    """Taps of `cells` token-grid rows over an image of `cells * patch` rows, after `stages`."""
    return bilinear_taps(cells, Stage(cells * patch, cells), *stages)


def segments_to_grid(segments: jax.Array, patch: int, num_masks: int) -> jax.Array:
    """Brings ground-truth masks to the token grid: four pixels per patch.

    Because the canvas is a multiple of the patch, the result does not depend on an image's own size
    inside the canvas.

    Args:
      segments: [B, H, W] integer, 0 = nothing, n = mask slot n - 1; H and W multiples of `patch`.
      patch: side of a patch in pixels.
      num_masks: N.

    Returns:
      [B, N, L] float32 in [0, 1].
    """
    rows, columns = (grid_taps(side // patch, patch) for side in segments.shape[1:])
    masks = jax.vmap(lambda s: segments_to_masks(s, rows, columns, num_masks))(segments)
    return masks.reshape(*masks.shape[:2], -1)


def masks_to_grid(masks: jax.Array, patch: int, method: str = "bilinear") -> jax.Array:
    """The same for soft masks [B, N, H, W] in [0, 1], H and W multiples of `patch`: [B, N, L].

    All published models take the bilinear method; the others are those of `masks_to_size`.
    """
    size = tuple(side // patch for side in masks.shape[2:])
    grid = jax.vmap(lambda m: masks_to_size(m, size, method))(masks)
    return grid.reshape(*grid.shape[:2], -1)


class Tile(typing.NamedTuple):
    """A rectangle of T x U enlarged pixels, and the window of h' x w' cells it is made from.

    There may be several versions of the maps, each with a window of its own; V = 1 otherwise.
    """

    corners: jax.Array  # [V, 2] int32, first row and column of the window
    rows: jax.Array     # [V, T, h'] float32
    columns: jax.Array  # [V, U, w'] float32

    def cut(self, maps: jax.Array) -> jax.Array:
        """The window of maps: [V, N, h, w] -> [V, N, h', w']."""
        shape = (maps.shape[1], self.rows.shape[-1], self.columns.shape[-1])
        return jnp.stack([jax.lax.dynamic_slice(one, (0, *corner), shape)
                          for one, corner in zip(maps, self.corners)])

    def enlarge(self, windows: jax.Array) -> jax.Array:
        """Windows [V, N, h', w'] at the size of the tile, summed over versions: [N, T, U]."""
        # Rows first and maps in the middle: both are one large product without turning anything.
        down = jnp.einsum("vti,vnij->vtnj", self.rows, windows, precision="highest")
        large = jnp.einsum("vtnj,vuj->tnu", down, self.columns, precision="highest")
        return jnp.moveaxis(large, 1, 0)


def map_tiles(function: typing.Callable[[Tile, jax.Array], typing.Any], rows: Taps, columns: Taps,
              map_size: tuple[int, int], tile: tuple[int, int],
              window: tuple[int, int] | None = None) -> typing.Any:
    """Runs a function on every tile of enlarged maps, one after the other.

    Enlarging in tiles is both cheap (an output tile reads a small window of the maps, so the
    matrices are small) and small: no map exists at full size.

    Args:
      function: `(tile, corner) -> pytree`, corner [2] int32 the tile's first row and column.
      rows: [V, H, k], of all output rows.
      columns: [V, W, k].
      map_size: (h, w) of the maps.
      tile: (T, U), pixels.
      window: cells of the maps that a tile reads at most, where that is known (`window_of`).

    Returns:
      What `function` returns, stacked on leading axes [ceil(H / T), ceil(W / U)].
    """
    axes = [_Axis.of(taps, size, block) for taps, size, block in zip((rows, columns), map_size,
                                                                     tile)]

    def run(windows):
        (tops, row_matrices), (lefts, column_matrices) = (
            axis.blocks(window) for axis, window in zip(axes, windows))
        counts = len(tops), len(lefts)

        def one(number):
            i, j = number // counts[1], number % counts[1]
            corners = jnp.stack([tops[i], lefts[j]], -1)  # [V, 2]
            return function(Tile(corners, row_matrices[i], column_matrices[j]),
                            jnp.stack([i * tile[0], j * tile[1]]))

        results = jax.lax.map(one, jnp.arange(counts[0] * counts[1]))
        return jax.tree.map(lambda x: x.reshape(*counts, *x.shape[1:]), results)

    if window is not None:
        return run(tuple(map(min, window, map_size)))
    # True sizes are known at run time only, so there are windows of several sizes. Should a tile
    # fit none of them, every tile reads whole maps: as right, and slow; so canvases should be
    # little larger than what they hold.
    windows = [tuple(axis.window(slack) for axis in axes) for slack in _SLACKS]
    windows = [w for w in dict.fromkeys(windows) if w != tuple(map_size)]
    larger = sum((~(axes[0].fits(w[0]) & axes[1].fits(w[1]))).astype(jnp.int32) for w in windows)
    return jax.lax.switch(larger, [functools.partial(run, w) for w in (*windows, map_size)])


def window_of(block: int, *stages: Stage) -> int:
    """Source rows that `block` output rows next to each other read at most; one of few numbers.

    Args:
      block: how many.
      stages: as of `bilinear_taps`, with numbers.
    """
    rows = block
    for num_in, num_out in stages:
        # Between the coordinates of the first and the last; and a neighbour on either side.
        rows = (rows - 1) * num_in // num_out + 3
    return few(max(rows, _SMALLEST_WINDOW))


def few(number: int) -> int:
    """The smallest number not below it that is a power of two, or one and a half of one."""
    power = 1 << max(0, number - 1).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= number else power


class _Axis(typing.NamedTuple):
    """The taps of an axis, in blocks of output rows."""

    taps: Taps   # [blocks, V, block, k]
    num_in: int
    num_out: int

    @classmethod
    def of(cls, taps: Taps, num_in: int, block: int) -> "_Axis":
        """Cuts taps [V, n, k] into blocks; rows added at the end have weight 0."""
        num_out = taps.index.shape[1]
        widths = [(0, 0), (0, -num_out % block), (0, 0)]
        index, weight = jnp.pad(taps.index, widths, "edge"), jnp.pad(taps.weight, widths)
        blocks = lambda x: jnp.swapaxes(x.reshape(len(x), -1, block, x.shape[-1]), 0, 1)
        return cls(Taps(blocks(index), blocks(weight)), num_in, num_out)

    def window(self, slack: float) -> int:
        """Source rows a block reads if true sizes are in the ratio of their canvases, or in one
        that is so many times larger."""
        block = self.taps.index.shape[2]
        return min(self.num_in, math.ceil(slack * block * self.num_in / self.num_out) + 3)

    def fits(self, window: int) -> jax.Array:
        index = self.taps.index
        return (index.max((2, 3)) - index.min((2, 3)) < window).all()

    def blocks(self, window: int) -> tuple[jax.Array, jax.Array]:
        """First source row [blocks, V] and matrix [blocks, V, block, window] of every block."""
        index, weight = self.taps
        start = jnp.minimum(index.min((2, 3)), self.num_in - window)  # [blocks, V]
        hot = jax.nn.one_hot(index - start[:, :, None, None], window, dtype=jnp.float32)
        return start, jnp.einsum("bvnk,bvnki->bvni", weight, hot, precision="highest")


def masks_to_size(masks: jax.Array, size: tuple[int, int], method: str) -> jax.Array:
    """Brings soft masks [N, H, W] to `size`: [N, *size] float32.

    Args:
      masks: in [0, 1].
      size: (h, w).
      method: "bilinear" (2x2 pixels a cell), "bicubic" (4x4; may leave [0, 1]), "nearest" (one
        pixel), "avg" and "max" (all pixels a cell touches), as torch's resizes and adaptive pools.
    """
    if method == "max":
        rows, columns = (_windows(n_in, n) for n_in, n in zip(masks.shape[1:], size))
        return masks.astype(jnp.float32)[:, rows].max(2)[:, :, columns].max(3)
    taps = {"bilinear": lambda n_in, n: bilinear_taps(n, Stage(n_in, n)), "bicubic": _bicubic_taps,
            "nearest": _nearest_taps, "avg": _mean_taps}
    if method not in taps:
        raise ValueError(f"got the method {method!r} for masks, wanted {', '.join(taps)} or max")
    return resize_masks(masks, *(taps[method](n_in, n) for n_in, n in zip(masks.shape[1:], size)))


def _bicubic_taps(num_in: int, num_out: int) -> Taps:
    source = (np.arange(num_out) + 0.5) * num_in / num_out - 0.5
    first = np.floor(source).astype(np.int32)
    near = np.arange(-1, 3)  # the four rows around
    part = jnp.asarray((source - first).astype(np.float32))
    weight = positions.cubic(jnp.asarray(near, jnp.float32)[None] - part[:, None])
    return Taps(jnp.asarray(np.clip(first[:, None] + near, 0, num_in - 1)), weight)


def _nearest_taps(num_in: int, num_out: int) -> Taps:
    return Taps(jnp.asarray(np.arange(num_out) * num_in // num_out)[:, None],
                jnp.ones((num_out, 1), jnp.float32))


def _mean_taps(num_in: int, num_out: int) -> Taps:
    window = _windows(num_in, num_out)  # [n, k]
    first = np.arange(num_out) * num_in // num_out
    exists = first[:, None] + np.arange(window.shape[1]) == window
    weight = exists / exists.sum(1, keepdims=True)
    return Taps(jnp.asarray(window), jnp.asarray(weight, jnp.float32))


def _windows(num_in: int, num_out: int) -> np.ndarray:
    """Rows that each output row covers, whole or in part, [num_out, k]; the last is repeated."""
    first = np.arange(num_out) * num_in // num_out
    last = -(-np.arange(1, num_out + 1) * num_in // num_out) - 1
    return np.minimum(first[:, None] + np.arange((last - first).max() + 1), last[:, None])
