"""What the transformer towers over images share: pre-norm blocks that mask tokens pass through.

Mask tokens join in the last blocks of a tower (MaskCLIP++, arXiv 2412.11464): each starts as a copy
of its own image's class token and attends only to the patches under its mask. Class and patch
tokens never attend to mask tokens, so the image features are the same with and without masks; hence
two attentions that share their projections take the place of one over all tokens with a dense bias.
"""

import typing

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers


class Block(nnx.Module):
    """A pre-norm block. Mask tokens ride along as extra rows of the same matrix products."""

    def __init__(self, width: int, epsilon: float, make_attention: typing.Callable[[], nnx.Module],
                 make_mlp: typing.Callable[[], nnx.Module], *, dtype, rngs: nnx.Rngs):
        norm = lambda: layers.layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.norm1 = norm()
        self.attention = make_attention()
        self.norm2 = norm()
        self.mlp = make_mlp()

    def __call__(self, tokens, rotary, patch_valid, mask_tokens, masks, mask_scale):
        """[B, 1+L, D], [B, N, D] or None -> the same."""
        num_image_tokens = tokens.shape[1]
        both = tokens if mask_tokens is None else jnp.concatenate([tokens, mask_tokens], 1)
        both = both + self.attention(self.norm1(both), num_image_tokens, rotary, patch_valid, masks,
                                     mask_scale)
        both = both + self.mlp(self.norm2(both))
        if mask_tokens is None:
            return both, None
        return both[:, :num_image_tokens], both[:, num_image_tokens:]

    def value_path(self, tokens):
        """The block with attention replaced by every token's own value: [B, L, D] -> [B, L, D]."""
        tokens = tokens + self.attention.value_path(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Attention(nnx.Module):
    """Self-attention of the image tokens, and attention of mask tokens to patches.

    Args:
      width: D.
      num_heads: A.
      key_bias: whether keys have a bias, as queries and values have.
      inner_norm: epsilon of a norm over the mixed heads, before the output; None: no such norm.
      class_tokens: tokens in front of the patches, which every token of the image sees.
    """

    def __init__(self, width: int, num_heads: int, *, key_bias: bool, inner_norm: float | None,
                 class_tokens: int = 1, dtype, by_head: bool, rngs: nnx.Rngs):
        linear = lambda **kw: nnx.Linear(width, width, dtype=dtype, rngs=rngs, **kw)
        self.num_heads, self.by_head, self.class_tokens = num_heads, by_head, class_tokens
        self.query, self.key, self.value = linear(), linear(use_bias=key_bias), linear()
        self.inner_norm = None if inner_norm is None else layers.layer_norm(
            width, epsilon=inner_norm, dtype=dtype, rngs=rngs)
        self.out = linear()

    def __call__(self, x, num_image_tokens, rotary, patch_valid, masks, mask_scale):
        image = x[:, :num_image_tokens]
        queries = layers.split_heads(self.query(x), self.num_heads)  # [B, 1+L(+N), A, K]
        keys = layers.split_heads(self.key(image), self.num_heads)  # [B, 1+L, A, K]
        values = layers.split_heads(self.value(image), self.num_heads)
        of_image, of_masks = queries[:, :num_image_tokens], queries[:, num_image_tokens:]
        if rotary is not None:
            turn = lambda t: jnp.concatenate([t[:, :1], layers.rotate(t[:, 1:], rotary)], 1)
            of_image, keys = turn(of_image), turn(keys)
        seen = jnp.pad(patch_valid, ((0, 0), (self.class_tokens, 0)),
                       constant_values=True)[:, None]  # [B, 1, 1+L]
        mixed = layers.attend(of_image, keys, values, allowed=seen, by_head=self.by_head)
        if masks is not None:
            pooled = layers.attend(
                of_masks, keys[:, 1:], values[:, 1:], allowed=seen[..., 1:], masks=masks[0],
                inside=masks[1], mask_scale=mask_scale, by_head=self.by_head)
            mixed = jnp.concatenate([mixed, pooled], 1)
        return self._output(layers.merge_heads(mixed))

    def value_path(self, x):
        return self._output(self.value(x))

    def _output(self, mixed):
        return self.out(mixed if self.inner_norm is None else self.inner_norm(mixed))


class Passed(typing.NamedTuple):
    """Tokens that passed all blocks; nothing is normalised."""

    tokens: jax.Array              # [B, 1+L, D]
    mask_tokens: jax.Array | None  # [B, N, D]
    entering: jax.Array            # [B, 1+L, D], what entered the last block


def pass_blocks(blocks: typing.Sequence[Block], tokens: jax.Array, grid: layers.Grid, *,
                mask_logit_scale: jax.Array, mask_threshold: float | None, rotary=None, remat: str,
                layout: layers.Layout) -> Passed:
    """Runs all blocks; mask tokens join in the last ones.

    Args:
      blocks: all blocks of the tower.
      tokens: [B, 1+L, D], class token first.
      grid: where images and masks lie.
      mask_logit_scale: [blocks with mask tokens, A], logarithm of the factor of the values inside a
        mask. Row 0 belongs to the last block.
      mask_threshold: see `layers.inside_masks`.
      rotary: cosines and sines of the patches (`layers.rotary_table`), or None.
      remat: see `layers.rematerialize`.
      layout: of tokens and parameters.
    """
    run = layers.rematerialize(remat, layout)
    masks, mask_tokens, scale = None, None, None
    for left, block in zip(reversed(range(len(blocks))), blocks):  # left: blocks after this one
        if grid.masks is not None and left < len(mask_logit_scale):
            if mask_tokens is None:
                masks = (grid.masks, layers.inside_masks(grid.masks, mask_threshold))
                mask_tokens = jnp.broadcast_to(
                    tokens[:, :1], (len(tokens), grid.masks.shape[1], tokens.shape[-1]))
            scale = jnp.exp(mask_logit_scale[left])  # [A]
        entering = tokens
        tokens, mask_tokens = run(block, tokens, rotary, grid.valid, mask_tokens, masks, scale)
        tokens = layout.rows(tokens)
    return Passed(tokens, mask_tokens, entering)
