"""The pixel decoder of Mask2Former and FC-CLIP: attention among the cells of maps of three strides.

Each cell looks at a few points around it in every map (deformable attention, Zhu et al. 2021, arXiv
2010.04159); then the finest of these maps is joined with one of stride 4 (Cheng et al. 2022, arXiv
2112.01527). All is float32, whatever the arithmetic of the trunk, as in the public code: points lie
between cells, and masks are cut at 0.

There are no masks of padding here: it takes part like everything else. So a picture on a larger
canvas gives other results, and published numbers are those of one picture at a time.
"""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers, resample

NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    channels: tuple[int, ...]  # of the trunk's maps, finest first; deformable attention skips it
    width: int = 256           # channels of a cell
    mask_width: int = 256      # channels of the mask features
    num_heads: int = 8
    depth: int = 6             # layers of deformable attention
    mlp_width: int = 1024      # hidden channels
    num_points: int = 4        # points of a head in each map
    num_groups: int = 32       # of the group norms

    @property
    def num_levels(self) -> int:
        return len(self.channels) - 1


class PixelFeatures(typing.NamedTuple):
    mask_features: jax.Array    # [B, H/4, W/4, mask_width]
    levels: list[jax.Array]     # [B, h, w, width] each, coarsest first


class PixelDecoder(nnx.Module):
    """`heads`: see `layers.each_cell`."""

    def __init__(self, config: PixelDecoderConfig, *, heads: str = "apart", rngs: nnx.Rngs):
        c = self.config = config
        groups = lambda: nnx.GroupNorm(c.width, c.num_groups, epsilon=NORM_EPSILON,
                                       use_fast_variance=False, rngs=rngs)
        flat = lambda width_in, width, use_bias: layers.PatchConv(
            1, width_in, width, use_bias=use_bias, dtype=jnp.float32, rngs=rngs)
        coarse = c.channels[:0:-1]  # coarsest first
        self.projections = nnx.List([flat(channels, c.width, True) for channels in coarse])
        self.projection_norms = nnx.List([groups() for _ in coarse])
        self.level_embed = nnx.Param(jax.random.normal(rngs.params(), (c.num_levels, c.width)))
        self.layers = nnx.List([
            EncoderLayer(c, heads=heads, rngs=rngs) for _ in range(c.depth)])
        self.lateral = flat(c.channels[0], c.width, False)
        self.lateral_norm = groups()
        self.output = nnx.Conv(c.width, c.width, (3, 3), use_bias=False, rngs=rngs)
        self.output_norm = groups()
        self.mask_features = flat(c.width, c.mask_width, True)

    def __call__(self, maps: typing.Sequence[jax.Array]) -> PixelFeatures:
        """Features of pixels from a trunk's maps.

        Args:
          maps: [B, h, w, D] each, finest first; padding in them is seen like all else.

        Raises:
          ValueError: another number of maps, or of their channels.
        """
        found = tuple(m.shape[-1] for m in maps)
        if found != self.config.channels:
            raise ValueError(f"got maps of {found} channels, wanted {self.config.channels}: give "
                             "all maps of the trunk, finest first")
        finest, *others = (m.astype(jnp.float32) for m in maps)
        coarse = [norm(project(m)) for project, norm, m in zip(
            self.projections, self.projection_norms, others[::-1])]
        shapes = tuple(m.shape[1:3] for m in coarse)
        tokens, positions = join(coarse), self._positions(shapes)
        points = reference_points(shapes)
        for layer in self.layers:
            tokens = layer(tokens, positions, points, shapes)
        levels = cut(tokens, shapes)
        pixels = self.lateral_norm(self.lateral(finest)) + resize(levels[-1], finest.shape[1:3])
        pixels = jax.nn.relu(self.output_norm(self.output(pixels)))
        return PixelFeatures(self.mask_features(pixels), levels)

    def _positions(self, shapes):
        """Where a cell lies and in which map, [S, C]."""
        return jnp.concatenate([
            position_encoding(shape, self.config.width).reshape(-1, self.config.width)
            + self.level_embed[i][None] for i, shape in enumerate(shapes)])


class EncoderLayer(nnx.Module):
    """Deformable attention and an MLP, each followed by a norm."""

    def __init__(self, c: PixelDecoderConfig, *, heads: str, rngs: nnx.Rngs):
        self.hidden, self.heads = c.mlp_width, heads
        norm = lambda: layers.layer_norm(c.width, epsilon=NORM_EPSILON, dtype=jnp.float32,
                                         rngs=rngs)
        self.attention = DeformableAttention(c.width, c.num_heads, c.num_levels, c.num_points,
                                             rngs=rngs)
        self.norm1 = norm()
        self.mlp = layers.MLP(c.width, c.mlp_width, jax.nn.relu, dtype=jnp.float32, rngs=rngs)
        self.norm2 = norm()

    def __call__(self, tokens, positions, points, shapes):
        """tokens [B, S, C], positions [S, C], points [S, 2] -> like tokens."""
        mixed = self.attention(tokens + positions[None], tokens, points, shapes)
        tokens = self.norm1(tokens + mixed)
        mix = lambda x: self.norm2(x + self.mlp(x))
        return layers.each_cell(mix, tokens, self.hidden, self.heads)


# ---- Deformable attention -----------------------------------------------------------------------


class DeformableAttention(nnx.Module):
    """Every query says where around its own place to look, and how much of each point it takes."""

    def __init__(self, width: int, num_heads: int, num_levels: int, num_points: int, *,
                 rngs: nnx.Rngs):
        linear = lambda width_out: nnx.Linear(width, width_out, rngs=rngs)
        self.samples = (num_heads, num_levels, num_points)  # A, V, P
        self.offsets = linear(2 * math.prod(self.samples))
        self.weights = linear(math.prod(self.samples))
        self.values, self.out = linear(width), linear(width)

    def __call__(self, queries: jax.Array, tokens: jax.Array, points: jax.Array,
                 shapes: typing.Sequence[tuple[int, int]]) -> jax.Array:
        """[B, T, C] queries -> [B, T, C].

        Args:
          queries: with their positions added.
          tokens: [B, S, C], cells of all maps, rows after each other, without positions.
          points: [T, 2] (x, y) in [0, 1] of a map's width and height: where each query lies.
          shapes: (h, w) of each map.
        """
        offsets, weights = self.where(queries)
        locations = points[None, :, None, None, None] + offsets / cells(shapes)
        values = layers.split_heads(self.values(tokens), self.samples[0])
        return self.out(layers.merge_heads(sample(values, shapes, locations, weights)))

    def where(self, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Offsets [B, T, A, V, P, 2] (x, y) in cells of each map, and the points' shares.

        The shares [B, T, A, V, P] of a head add up to 1 over all maps together.
        """
        shape = queries.shape[:2] + self.samples
        shares = self.weights(queries).reshape(*shape[:3], -1)
        return (self.offsets(queries).reshape(*shape, 2),
                jax.nn.softmax(shares, -1).reshape(shape))


def sample(values: jax.Array, shapes: typing.Sequence[tuple[int, int]], locations: jax.Array,
           weights: jax.Array) -> jax.Array:
    """Sums of points between the cells of maps, each read bilinearly; outside a map is 0.

    The four neighbours of a point lie beside each other in one row of a table, so that a point is
    one look-up, and heads take turns. By the compiler's count a TPU reads and writes less than half
    of what four look-ups a point need; on a CPU both take as long, and heads together twice as long
    with six times the memory (benchmarks/deformable.py).

    Args:
      values: [B, S, A, K], cells of all maps, rows after each other.
      shapes: (h, w) of each map.
      locations: [B, T, A, V, P, 2] (x, y) in shares of a map's width and height, anywhere.
      weights: [B, T, A, V, P].

    Returns:
      [B, T, A, K] float32.
    """
    heads = [jnp.moveaxis(x, 2, 0) for x in (values, locations, weights)]
    return jnp.moveaxis(jax.lax.map(lambda head: sample_head(*head, shapes), heads), 0, 2)


def sample_head(values: jax.Array, locations: jax.Array, weights: jax.Array,
                shapes: typing.Sequence[tuple[int, int]]) -> jax.Array:
    """`sample` of one head: [B, S, K], [B, T, V, P, 2] and [B, T, V, P] -> [B, T, K]."""
    return sum(_sample_map(grid, locations[:, :, level], weights[:, :, level])
               for level, grid in enumerate(cut(values, shapes)))


def _sample_map(grid, locations, weights):
    """[B, h, w, K], [B, T, P, 2] and [B, T, P] -> [B, T, K]."""
    (batch, height, width, _), (num_queries, num_points) = grid.shape, weights.shape[1:]
    padded = jnp.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)))
    table = jnp.concatenate([padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1],
                             padded[:, 1:, 1:]], -1)  # [B, h+1, w+1, 4 K]
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5  # [B, T, P]
    left, top = jnp.floor(x), jnp.floor(y)  # -1 is the first cell of the table
    right, low = x - left, y - top
    inside = (left >= -1) & (left < width) & (top >= -1) & (top < height)
    row, column = jnp.clip(top + 1, 0, height), jnp.clip(left + 1, 0, width)
    index = (row * (width + 1) + column).astype(jnp.int32).reshape(batch, -1, 1)
    found = jnp.take_along_axis(table.reshape(batch, (height + 1) * (width + 1), -1), index, 1,
                                mode="clip")  # [B, T P, 4 K]
    share = jnp.stack([(1 - low) * (1 - right), (1 - low) * right, low * (1 - right),
                       low * right], -1) * jnp.where(inside, weights, 0.0)[..., None]
    corners = lambda x: x.reshape(batch, num_queries, 4 * num_points, -1)
    # Three times as fast on a CPU as a sum over products.
    return jnp.einsum("btpi,btpk->btk", corners(share), corners(found), precision="highest")


def cells(shapes: typing.Sequence[tuple[int, int]]) -> jax.Array:
    """Widths and heights of maps, (x, y), to divide offsets by: [1, 1, 1, V, 1, 2] float32."""
    sizes = jnp.asarray([(width, height) for height, width in shapes], jnp.float32)
    return sizes[None, None, None, :, None]


def reference_points(shapes: typing.Sequence[tuple[int, int]]) -> jax.Array:
    """The middles of all cells, (x, y) in [0, 1]: [S, 2]."""
    middles = lambda count: (jnp.arange(count) + 0.5) / count
    return jnp.concatenate([
        jnp.stack(jnp.meshgrid(middles(width), middles(height)), -1).reshape(-1, 2)
        for height, width in shapes])


# ---- Maps and positions -------------------------------------------------------------------------


def join(maps: typing.Sequence[jax.Array]) -> jax.Array:
    """Maps [B, h, w, C] as one list of cells [B, S, C], rows after each other."""
    return jnp.concatenate([m.reshape(len(m), -1, m.shape[-1]) for m in maps], 1)


def cut(tokens: jax.Array, shapes: typing.Sequence[tuple[int, int]]) -> list[jax.Array]:
    """The inverse of `join`."""
    sizes, maps, start = [height * width for height, width in shapes], [], 0
    for shape, size in zip(shapes, sizes):
        maps.append(tokens[:, start:start + size].reshape(len(tokens), *shape, -1))
        start += size
    return maps


def full_precision():
    """Makes products of float32 exact on accelerators too, which else round their factors.

    A mask logit near 0 that changes its sign changes what its query sees, and all that follows.
    """
    return jax.default_matmul_precision("float32")


def check_padded(image: jax.Array, multiple: int):
    """Refuses pictures [B, H, W, 3] whose sides are no multiples of so many pixels."""
    height, width = image.shape[1:3]
    if height % multiple or width % multiple:
        raise ValueError(f"got pictures of {height}x{width} pixels, wanted sides that are "
                         f"multiples of {multiple}: pad them below and at the right")


def resize(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, h, w, C] -> [B, *size, C], bilinear and never antialiased."""
    rows, columns = (resample.bilinear_taps(n, resample.Stage(n_in, n))
                     for n_in, n in zip(maps.shape[1:3], size))
    return jax.vmap(lambda one: resample.resize_image(one, rows, columns))(maps)


def position_encoding(shape: tuple[int, int], width: int) -> jax.Array:
    """Sines of the row, then of the column, of a map's cells: [h, w, width] float32.

    Cells are counted from 1, and the last is a whole turn (Carion et al. 2020, arXiv 2005.12872).
    """
    height, columns = shape
    turn = lambda count: (jnp.arange(count) + 1) / (count + 1e-6) * (2 * math.pi)
    angles = jnp.broadcast_arrays(turn(height)[:, None], turn(columns)[None])
    return jnp.concatenate([sines(angle, width // 2) for angle in angles], -1)


def sines(angles: jax.Array, width: int) -> jax.Array:
    """Sine and cosine in turn of angles and ever smaller shares of them: [...] -> [..., width]."""
    divisor = 10000.0 ** (2 * jnp.arange(width // 2) / width)
    shares = angles[..., None] / divisor.reshape((1,) * angles.ndim + (-1,))
    return jnp.stack([jnp.sin(shares), jnp.cos(shares)], -1).reshape(*angles.shape, width)
