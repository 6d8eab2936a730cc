"""Where a token lies: learnt tables laid over any grid, and rotary angles.

An image's table is laid over its own grid, in the top left corner of a padded canvas, see `layers`.
"""

import typing

import jax
import jax.numpy as jnp

from maskclippp_jax.models import layers

# ---- Position tables ----------------------------------------------------------------------------


def cubic(x: jax.Array) -> jax.Array:
    """The cubic convolution kernel with a = -0.75, as torch's bicubic interpolation has it."""
    a = -0.75
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0.0))


def bicubic_matrix(num_in: int, num_out: jax.Array, canvas: int) -> jax.Array:
    """Weights of a bicubic resize with aligned corners, for a true size known only at run time.

    Args:
      num_in: cells of the learnt table.
      num_out: int32 scalar, cells of the true grid.
      canvas: rows of the result; rows from `num_out` on repeat the border and mean nothing.

    Returns:
      [canvas, num_in] float32. The identity where `num_out == num_in`.
    """
    row = jnp.minimum(jnp.arange(canvas), num_out - 1)
    steps = jnp.maximum(num_out - 1, 1)
    first = row * (num_in - 1) // steps  # exact: the whole part in integers
    part = (row * (num_in - 1) % steps) / steps  # [canvas] float32 in [0, 1)
    matrix = jnp.zeros((canvas, num_in), jnp.float32)
    for tap in (-1, 0, 1, 2):
        column = jnp.clip(first + tap, 0, num_in - 1)
        weight = cubic(tap - part.astype(jnp.float32))
        matrix = matrix + weight[:, None] * jax.nn.one_hot(column, num_in, dtype=jnp.float32)
    return matrix


def linear_matrix(num_in: int, num_out: jax.Array, canvas: int) -> jax.Array:
    """Weights of a linear resize with aligned corners; shapes as in `bicubic_matrix`."""
    row = jnp.minimum(jnp.arange(canvas), num_out - 1)
    steps = jnp.maximum(num_out - 1, 1)
    first = row * (num_in - 1) // steps
    part = (row * (num_in - 1) % steps) / steps  # [canvas] float32 in [0, 1)
    one_hot = lambda column: jax.nn.one_hot(jnp.minimum(column, num_in - 1), num_in)
    return one_hot(first) * (1 - part)[:, None] + one_hot(first + 1) * part[:, None]


def antialiased_matrix(num_in: int, num_out: jax.Array, canvas: int) -> jax.Array:
    """Weights of a linear resize with half-pixel centres that averages where it shrinks.

    Shapes as in `bicubic_matrix`.
    """
    step = num_in / num_out.astype(jnp.float32)
    row = jnp.minimum(jnp.arange(canvas), num_out - 1)
    centre = (row + 0.5) * step - 0.5  # [canvas]
    apart = jnp.abs(centre[:, None] - jnp.arange(num_in)[None])
    weights = jnp.maximum(0.0, 1.0 - apart / jnp.maximum(step, 1.0))
    return weights / weights.sum(-1, keepdims=True)


def half_pixel_matrix(num_in: int, num_out: jax.Array, canvas: int) -> jax.Array:
    """Weights of a linear resize with half-pixel centres that averages nothing.

    Shapes as in `bicubic_matrix`.
    """
    row = jnp.minimum(jnp.arange(canvas), num_out - 1)
    # Twice num_out times the source coordinate: whole numbers, so that its parts are exact.
    twice = jnp.maximum((2 * row + 1) * num_in - num_out, 0)
    first, part = twice // (2 * num_out), (twice % (2 * num_out)) / (2 * num_out)
    one_hot = lambda column: jax.nn.one_hot(jnp.minimum(column, num_in - 1), num_in)
    return one_hot(first) * (1 - part)[:, None] + one_hot(first + 1) * part[:, None]


def resize_position_table(table: jax.Array, grid: jax.Array, canvas: tuple[int, int],
                          matrix: typing.Callable = bicubic_matrix) -> jax.Array:
    """Lays a learnt square position table over the true grid of every image.

    Args:
      table: [1 + g*g, D] float32; row 0 belongs to the class token and is never resized.
      grid: [B, 2] int32, true (gh, gw) of each image, at least 1.
      canvas: (h, w), cells of the padded canvas.
      matrix: weights of the resize along one axis.

    Returns:
      [B, 1 + h*w, D] float32; cells outside the true grid repeat the border.
    """
    patches = resize_table(table[1:], grid, canvas, matrix)
    first = jnp.broadcast_to(table[:1], (patches.shape[0], 1, table.shape[-1]))
    return jnp.concatenate([first, patches], 1)


def resize_table(table: jax.Array, grid: jax.Array, canvas: tuple[int, int],
                 matrix: typing.Callable) -> jax.Array:
    """Lays a learnt square table over the true grid of every image.

    Args:
      table: [g*g, D] float32.
      grid: [B, 2] int32, true (gh, gw) of each image, at least 1.
      canvas: (h, w), cells of the padded canvas.
      matrix: weights of the resize along one axis, e.g. `bicubic_matrix`.

    Returns:
      [B, h*w, D] float32; cells outside the true grid mean nothing.
    """
    side = int(round(table.shape[0] ** 0.5))
    square = table.reshape(side, side, -1)

    def one_image(size):
        rows, columns = (matrix(side, size[i], canvas[i]) for i in range(2))
        patches = jnp.einsum("hi,ijd,wj->hwd", rows, square, columns, precision="highest")
        return patches.reshape(-1, table.shape[-1])

    def one_image_on_a_strip(size, row, column):
        rows, columns = (matrix(side, size[i], canvas[1])[cell]
                         for i, cell in enumerate((row, column)))  # [L, g]
        weights = (rows[:, :, None] * columns[:, None]).reshape(-1, side * side)
        return jnp.dot(weights, table, precision="highest")

    if layers.is_strip(canvas):
        return jax.vmap(one_image_on_a_strip)(grid, *layers.cells_of(grid, canvas))
    return jax.vmap(one_image)(grid)


# ---- Rotary angles ------------------------------------------------------------------------------


def rotary_table(grid: jax.Array, canvas: tuple[int, int], head_width: int,
                 base_grid: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary position angles of EVA-02 (arXiv 2303.11331).

    Positions are rescaled so that every image spans `base_grid` cells. The first half of a head's
    channels turns with the row, the second half with the column; neighbours share an angle.

    Args:
      grid: [B, 2] int32, true (gh, gw) of each image.
      canvas: (h, w), cells of the padded canvas.
      head_width: K, a multiple of 4.
      base_grid: side of the grid the angles were made for (16 in both published models).

    Returns:
      cos and sin, each [B, h*w, K] float32.
    """
    half = head_width // 2
    frequencies = 10000.0 ** (-2.0 * jnp.arange(half // 2, dtype=jnp.float32) / half)

    def angles(cell, true_cells):  # [B, L], [B] -> [B, L, K/2]
        position = cell.astype(jnp.float32) / true_cells[:, None] * base_grid
        return jnp.repeat(position[..., None] * frequencies[None, None], 2, axis=-1)

    table = jnp.concatenate([angles(cell, grid[:, axis].astype(jnp.float32))
                             for axis, cell in enumerate(layers.cells_of(grid, canvas))], -1)
    return jnp.cos(table), jnp.sin(table)


class Rotation(typing.NamedTuple):
    """Turns pairs of channels of queries and keys by the angles of their positions."""

    cos: jax.Array  # [B, T, K] float32, or [1, T, K] of all images; 1 where nothing turns
    sin: jax.Array  # the same
    quarter: typing.Callable  # turns all pairs by a right angle: `quarter_pairs`, `quarter_halves`

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, T, A, K] -> the same, in the dtype of `tokens`."""
        if tokens.dtype == jnp.bfloat16:
            # As exact, and moving channels about writes them to memory several times. By the count
            # of a TPU v5e, that takes three times as long.
            turned = jnp.einsum("btak,kj->btaj", tokens, self.matrix(tokens.dtype))
        else:
            turned = self.quarter(tokens)
        cos, sin = self.cos[:, :, None], self.sin[:, :, None]
        return (tokens * cos + turned * sin).astype(tokens.dtype)

    def matrix(self, dtype) -> jax.Array:
        """The turn by a right angle as a matrix [K, K] of 0, 1 and -1, for products from the
        right."""
        return self.quarter(jnp.eye(self.cos.shape[-1], dtype=dtype))


def quarter_pairs(tokens: jax.Array) -> jax.Array:
    """Turns each pair of neighbouring channels [..., K] by a right angle."""
    pairs = tokens.reshape(*tokens.shape[:-1], -1, 2)
    return jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(tokens.shape)


def quarter_halves(tokens: jax.Array) -> jax.Array:
    """The same for channels paired across the two halves of a head: 0 with K/2, 1 with K/2 + 1."""
    first, second = jnp.split(tokens, 2, -1)
    return jnp.concatenate([-second, first], -1)
