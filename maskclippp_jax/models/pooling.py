"""Attention pooling after the last block, with one learnt query and masks (SigLIP, PE-Core).

A mask needs no token in the blocks: each mask pools the same patches with the same query and a bias
of its own, the one of MaskCLIP++ (arXiv 2412.11464): patches outside lie 100 lower. How much the
query likes a patch is computed once for all masks.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers, vit


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    width: int      # channels of a token
    num_heads: int
    mlp_width: int  # hidden channels
    norm_epsilon: float
    exact_gelu: bool  # else the tanh form
    mask_threshold: float | None  # None: half of each mask's largest value


class AttentionPool(nnx.Module):
    """Attention with one learnt query, the probe, then an MLP; in float32 ("MAP head").

    The probe itself is not added to what it pools, and nothing is normalised at the end.
    """

    def __init__(self, c: PoolConfig, *, heads: str, rngs: nnx.Rngs):
        """`c` may be the configuration of a tower that has these fields."""
        linear = lambda: nnx.Linear(c.width, c.width, rngs=rngs)
        self.config, self.heads = c, heads
        self.probe = nnx.Param(c.width**-0.5 * jax.random.normal(rngs.params(), (c.width,)))
        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()
        self.norm = layers.layer_norm(
            c.width, epsilon=c.norm_epsilon, dtype=jnp.float32, rngs=rngs)
        self.mlp = layers.MLP(
            c.width, c.mlp_width, layers.gelu(c.exact_gelu), dtype=jnp.float32, rngs=rngs)

    def __call__(self, tokens: jax.Array, grid: layers.Grid, mask_scale: jax.Array, *,
                 prefix_visible: bool = False) -> jax.Array:
        """Pools every image, and every mask in it.

        Args:
          tokens: [B, P+L, D] float32, encoded patches and what stands in front of them.
          grid: where images and masks lie.
          mask_scale: [A], factor of the values inside a mask.
          prefix_visible: whether masks see the tokens in front too (`vit.masks_on_keys`); the image
            always does.

        Returns:
          [B, 1+N, D] float32, the whole image first; masks that are empty give the same as it if
          they see the same tokens.
        """
        heads = lambda x: layers.split_heads(x, self.config.num_heads)
        query = heads(self.query(self.probe[...])) * (tokens.shape[-1] // len(mask_scale))**-0.5
        scores = jnp.einsum("ak,blak->bal", query, heads(self.key(tokens)))
        values = heads(self.value(tokens))  # [B, P+L, A, K]
        prefix = tokens.shape[1] - grid.valid.shape[1]
        seen = vit.behind_prefix(grid.valid, prefix)[:, None]  # [B, 1, P+L]
        masks, inside = grid.masks, None
        if masks is not None:
            masks, inside = vit.masks_on_keys(masks, self.config.mask_threshold, prefix)
            if prefix and not prefix_visible:
                is_image = jnp.arange(1 + masks.shape[1]) == 0
                is_patch = jnp.arange(masks.shape[-1]) >= prefix
                seen = seen & (is_image[:, None] | is_patch[None])[None]  # [B, 1+N, P+L]
            # The whole image is one more row, without a bias.
            masks = jnp.pad(masks, ((0, 0), (1, 0), (0, 0)))  # [B, 1+N, P+L]
            inside = jnp.pad(inside, ((0, 0), (1, 0), (0, 0)), constant_values=True)

        def one_head(head):
            scores, values, factor = head
            logits = scores[:, None]  # [B, 1, P+L]
            if masks is not None:
                logits = logits + jnp.where(inside, masks * factor, layers.OUTSIDE_BIAS)
            logits = jnp.where(seen, logits, layers.NO_KEY)
            return jnp.einsum("bnl,blk->bnk", jax.nn.softmax(logits), values)

        each = (jnp.moveaxis(scores, 1, 0), jnp.moveaxis(values, 2, 0), mask_scale)
        mixed = jax.lax.map(one_head, each) if self.heads == "apart" else jax.vmap(one_head)(each)
        return self._finish(layers.merge_heads(jnp.moveaxis(mixed, 0, 2)))

    def value_path(self, tokens: jax.Array) -> jax.Array:
        """What a mask of one patch pools, for every patch: [B, L, D] -> [B, L, D]."""
        return self._finish(self.value(tokens))

    def _finish(self, mixed):
        pooled = self.out(mixed)
        return pooled + self.mlp(self.norm(pooled))
