"""The sizes masks pass through, from where they are stored to where they are used.

A mask is resized several times on its way, bilinearly each time; published numbers rest on every
one of these steps, so none may be left out. But they are linear: an output row reads a handful of
stored rows, and the whole way is one set of taps (`models.resample`).
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax.models import resample
from maskclippp_jax.models.resample import Stage, Taps


class MaskSizes(typing.NamedTuple):
    """Sizes of masks before they are used, each [..., 2] int32 (height, width).

    Masks are resized from `stored` to `enlarged` and cropped to `kept` (at the top left). All that
    uses them starts there.
    """

    stored: np.ndarray
    enlarged: np.ndarray
    kept: np.ndarray


def generated_mask_sizes(generator_size: np.ndarray, multiple: int, stride: int = 4) -> MaskSizes:
    """Sizes of masks that a generator made at a fraction of its padded input.

    Args:
      generator_size: [..., 2] int, the generator's input before it was padded.
      multiple: pixels its sides were padded to a multiple of.
      stride: pixels of the padded input to a cell of the masks.
    """
    kept = np.asarray(generator_size, np.int32)
    padded = -(-kept // multiple) * multiple
    return MaskSizes(padded // stride, padded, kept)


def given_mask_sizes(stored: np.ndarray, generator_size: np.ndarray) -> MaskSizes:
    """Sizes of masks from files, or of the ground truth.

    They go straight to the size a generator would have worked at.
    """
    generator_size = np.asarray(generator_size, np.int32)
    return MaskSizes(np.asarray(stored, np.int32), generator_size, generator_size)


def probabilities(masks: jax.Array) -> jax.Array:
    """Stored masks as float32 in [0, 1]: floats are logits, other dtypes see `resample.soft`.

    A generator's own code enlarges logits and takes the sigmoid last; here it comes first.
    """
    if jnp.issubdtype(masks.dtype, jnp.floating):
        return jax.nn.sigmoid(masks.astype(jnp.float32))
    return resample.soft(masks)


def mask_taps(sizes: MaskSizes, target: jax.Array, canvas: tuple[int, int],
              corner: jax.Array | tuple[int, int] = (0, 0)) -> tuple[Taps, Taps]:
    """Rows and columns of one picture's masks on a canvas, at the true size `target` [2].

    Beyond `target` the canvas is zero. It may be a part of the picture, from the pixel `corner` on.
    """
    return tuple(resample.bilinear_taps(canvas[i], *_stages(sizes, target, i), first=corner[i])
                 for i in range(2))


def window_of(sizes: MaskSizes, target: typing.Sequence[int], tile: tuple[int, int]
              ) -> tuple[int, int]:
    """Rows and columns of stored masks that a tile of these pixels reads at most.

    Args:
      sizes: of one picture's masks, numbers.
      target: true size of the result.
      tile: its height and width.
    """
    return tuple(resample.window_of(tile[i], *_stages(sizes, target, i)) for i in range(2))


def _stages(sizes: MaskSizes, target, axis: int) -> tuple[Stage, Stage]:
    return (Stage(sizes.kept[axis], target[axis]),
            Stage(sizes.stored[axis], sizes.enlarged[axis]))


def mirrored(taps: Taps, size: jax.Array, flip: jax.Array) -> Taps:
    """The same for a mirrored picture: its first row (or column) is the last of `size` ones.

    Args:
      taps: of one axis.
      size: true number of output rows.
      flip: bool scalar; false gives `taps` back.
    """
    row = jnp.arange(len(taps.index))
    source = jnp.where(flip, jnp.maximum(size - 1 - row, 0), row)
    return Taps(taps.index[source], taps.weight[source] * (row < size)[:, None])


def to_grid(masks: jax.Array, sizes: MaskSizes, network: jax.Array, patch: int,
            canvas: tuple[int, int]) -> jax.Array:
    """One picture's soft masks on the token grid of the image tower.

    Args:
      masks: [N, h, w] in [0, 1] (or uint8, see `resample.soft`), zero beyond the stored size.
      sizes: of this picture, [2] each.
      network: [2] int32, true size of the picture as the image tower sees it.
      patch: side of a patch in pixels.
      canvas: (height, width) of the tower's input, multiples of `patch`.

    Returns:
      [N, L] float32 in [0, 1].
    """
    return resample.resize_masks(
        resample.soft(masks), *_grid_taps(sizes, network, patch, canvas)).reshape(
            masks.shape[0], -1)


def to_grid_on_host(masks: np.ndarray, sizes: MaskSizes, network: typing.Sequence[int], patch: int,
                    canvas: tuple[int, int]) -> np.ndarray:
    """What `to_grid` gives of stored masks [N, h, w] (floats: logits), by numpy.

    Only what the grid reads of them is looked at, so that large ones take little time.
    """
    (rows, row_taps), (columns, column_taps) = map(
        _read, _grid_taps(sizes, network, patch, canvas))
    read = probabilities_on_host(masks[:, rows][:, :, columns])
    across = resample.resize_on_host(read, row_taps, 1)
    grid = resample.resize_on_host(across, column_taps, 2)
    return grid.reshape(len(grid), grid.shape[1] * grid.shape[2])


def probabilities_on_host(masks: np.ndarray) -> np.ndarray:
    """What `probabilities` gives, by numpy."""
    if masks.dtype.kind == "f":
        with np.errstate(over="ignore"):  # exp(89) is infinite: a probability of 0
            return 1 / (1 + np.exp(-masks.astype(np.float32)))
    return masks.astype(np.float32) / np.float32(255 if masks.dtype == np.uint8 else 1)


def _grid_taps(sizes: MaskSizes, network, patch: int, canvas: tuple[int, int]
               ) -> tuple[Taps, Taps]:
    return tuple(
        resample.grid_taps(canvas[i] // patch, patch, Stage(sizes.kept[i], network[i]),
                           Stage(sizes.stored[i], sizes.enlarged[i])) for i in range(2))


def _read(taps: Taps) -> tuple[np.ndarray, Taps]:
    """The rows that taps read, and the same taps over nothing but these."""
    rows, place = np.unique(taps.index, return_inverse=True)
    return rows, Taps(place.reshape(taps.index.shape), taps.weight)
