"""The masked-attention decoder of Mask2Former and FC-CLIP (Cheng et al. 2022, arXiv 2112.01527).

Learnt queries become masks. In every layer a query sees the cells of one map that lie in its own
mask, as it is predicted before the layer, and then the other queries. All is float32, since masks
are cut at 0.

Two things of the public code are left out, and the results are the same. Classes are never fed
back, so nobody predicts them between layers. And masks between layers are formed at the size of the
map that is looked at: their resize is linear, so it may be done once to the mask features, before
they meet the queries.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.generators import pixel_decoder
from maskclippp_jax.generators.pixel_decoder import NORM_EPSILON, PixelFeatures
from maskclippp_jax.models import layers


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
    num_queries: int
    width: int = 256       # channels of a query
    mask_width: int = 256  # channels of the mask features
    num_heads: int = 8
    depth: int = 9         # layers; the public settings count one more
    mlp_width: int = 2048  # hidden channels
    num_levels: int = 3    # maps, which the layers look at in turn


class DecodedMasks(typing.NamedTuple):
    queries: jax.Array      # [B, Q, C], normalised
    mask_logits: jax.Array  # [B, Q, H/4, W/4]


class MaskDecoder(nnx.Module):
    """`heads`: see `layers.attend`."""

    def __init__(self, config: MaskDecoderConfig, *, heads: str = "apart", rngs: nnx.Rngs):
        c = self.config = config
        normal = lambda count: nnx.Param(jax.random.normal(rngs.params(), (count, c.width)))
        self.queries, self.query_positions = normal(c.num_queries), normal(c.num_queries)
        self.level_embed = normal(c.num_levels)
        self.layers = nnx.List([
            DecoderLayer(c, heads=heads, rngs=rngs) for _ in range(c.depth)])
        self.norm = _norm(c.width, rngs)
        self.mask_head = ThreeLayers(c.width, c.mask_width, rngs=rngs)

    def __call__(self, features: PixelFeatures) -> DecodedMasks:
        """Masks of the whole padded input.

        Raises:
          ValueError: another number of maps than the decoder was made for.
        """
        c, levels = self.config, features.levels
        if len(levels) != c.num_levels:
            raise ValueError(f"got {len(levels)} maps, wanted {c.num_levels}: give all of the "
                             "pixel decoder")
        shapes = [level.shape[1:3] for level in levels]
        small = [pixel_decoder.resize(features.mask_features, shape) for shape in shapes]
        values = [level.reshape(len(level), -1, c.width) + self.level_embed[i][None, None]
                  for i, level in enumerate(levels)]  # [B, h w, C]
        positions = [pixel_decoder.position_encoding(shape, c.width).reshape(1, -1, c.width)
                     for shape in shapes]
        batch = len(features.mask_features)
        queries = jnp.broadcast_to(self.queries[...][None], (batch, c.num_queries, c.width))
        for i, layer in enumerate(self.layers):
            level = i % c.num_levels
            allowed = self.allowed(queries, small[level])
            queries = layer(queries, self.query_positions[...][None],
                            values[level] + positions[level], values[level], allowed)
        return DecodedMasks(self.norm(queries), self.mask_logits(queries, features.mask_features))

    def mask_logits(self, queries: jax.Array, mask_features: jax.Array) -> jax.Array:
        """[B, Q, C] queries and features [B, h, w, mask_width] -> [B, Q, h, w]."""
        # In reduced precision a logit near 0 may change its sign, and all layers behind differ.
        return jnp.einsum("bqd,bhwd->bqhw", self.mask_head(self.norm(queries)), mask_features,
                          precision="highest")

    def allowed(self, queries: jax.Array, mask_features: jax.Array) -> jax.Array:
        """The cells that lie in the mask of each query, [B, Q, h w] bool; all where none does."""
        inside = self.mask_logits(queries, mask_features) >= 0
        inside = inside.reshape(*queries.shape[:2], -1)
        return inside | ~inside.any(-1, keepdims=True)


class DecoderLayer(nnx.Module):
    """Attention to a map, attention of the queries to each other, an MLP; a norm behind each."""

    def __init__(self, c: MaskDecoderConfig, *, heads: str, rngs: nnx.Rngs):
        self.cross = Attention(c.width, c.num_heads, heads=heads, rngs=rngs)
        self.cross_norm = _norm(c.width, rngs)
        self.own = Attention(c.width, c.num_heads, heads=heads, rngs=rngs)
        self.own_norm = _norm(c.width, rngs)
        self.mlp = layers.MLP(c.width, c.mlp_width, jax.nn.relu, dtype=jnp.float32, rngs=rngs)
        self.mlp_norm = _norm(c.width, rngs)

    def __call__(self, queries, positions, keys, values, allowed):
        """[B, Q, C] queries, [1, Q, C], [B, S, C], [B, S, C], [B, Q, S] bool -> like queries."""
        mixed = self.cross(queries + positions, keys, values, allowed)
        queries = self.cross_norm(queries + mixed)
        placed = queries + positions
        queries = self.own_norm(queries + self.own(placed, placed, queries))
        return self.mlp_norm(queries + self.mlp(queries))


class Attention(nnx.Module):
    def __init__(self, width: int, num_heads: int, *, heads: str, rngs: nnx.Rngs):
        linear = lambda: nnx.Linear(width, width, rngs=rngs)
        self.num_heads, self.heads = num_heads, heads
        self.query, self.key, self.value, self.out = (linear() for _ in range(4))

    def __call__(self, queries, keys, values, allowed=None):
        """[B, Q, C], [B, S, C], [B, S, C] and [B, Q, S] bool -> [B, Q, C]."""
        heads = (layers.split_heads(linear(x), self.num_heads) for linear, x in (
            (self.query, queries), (self.key, keys), (self.value, values)))
        mixed = layers.attend(*heads, allowed=allowed, heads=self.heads)
        return self.out(layers.merge_heads(mixed))


class ThreeLayers(nnx.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width: int, width_out: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(width, n, rngs=rngs)
                                for n in (width, width, width_out)])

    def __call__(self, x):
        first, second, third = self.layers
        return third(jax.nn.relu(second(jax.nn.relu(first(x)))))


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return layers.layer_norm(width, epsilon=NORM_EPSILON, dtype=jnp.float32, rngs=rngs)
