"""What the transformer towers over images are made of; each tower's own file says how.

A tower is: pictures to patches (`embed_patches`), tokens in front of them (`prepend`), a position
rule (`positions.resize_position_table`, or angles that `Attention` turns by), pre-norm blocks
(`make_blocks`, `pass_blocks`), and what becomes of the tokens after them (`pooling`, or a norm and
a map).

Mask tokens join in the last blocks of a tower (MaskCLIP++, arXiv 2412.11464): each starts as a copy
of its own image's class token and attends only to the patches under its mask. Class and patch
tokens never attend to mask tokens, so the image features are the same with and without masks; hence
two attentions that share their projections take the place of one over all tokens with a dense bias.
"""

import typing

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers, positions

# ---- Before the blocks --------------------------------------------------------------------------


def embed_patches(convolution: layers.PatchConv, image: jax.Array, image_size: jax.Array,
                  mean: tuple = layers.PIXEL_MEAN, std: tuple = layers.PIXEL_STD) -> jax.Array:
    """Pictures [B, H, W, 3] of true sizes [B, 2], see `layers.normalize`, as patches [B, L, D]."""
    patches = convolution(layers.normalize(
        image, image_size, mean, std, cell=convolution.kernel.shape[0]))
    return patches.reshape(image.shape[0], -1, patches.shape[-1]).astype(jnp.float32)


def prepend(prefix: typing.Sequence[jax.Array], patches: jax.Array) -> jax.Array:
    """Puts the same tokens, each [D] or [number, D], in front of every picture's [B, L, D]."""
    first = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in prefix])[None]  # [1, P, D]
    first = jnp.broadcast_to(first, (patches.shape[0], *first.shape[1:]))
    return jnp.concatenate([first, patches], 1)


# ---- Blocks -------------------------------------------------------------------------------------


class Block(nnx.Module):
    """A pre-norm block. Mask tokens ride along as extra rows of the same matrix products."""

    def __init__(self, width: int, epsilon: float, make_attention: typing.Callable[[], nnx.Module],
                 make_mlp: typing.Callable[[], nnx.Module], *, layer_scale: bool = False, dtype,
                 rngs: nnx.Rngs):
        norm = lambda: layers.layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        scale = lambda: nnx.Param(jnp.ones(width)) if layer_scale else None
        self.norm1 = norm()
        self.attention = make_attention()
        self.scale1 = scale()
        self.norm2 = norm()
        self.mlp = make_mlp()
        self.scale2 = scale()

    def __call__(self, tokens, rotary, patch_valid, mask_tokens, masks, mask_scale, read=None):
        """[B, P+L, D], [B, N, D] or None -> the same; with `read`, that many of the first tokens,
        which are among the P in front of the patches, and mask tokens."""
        num_image_tokens = tokens.shape[1]
        both = tokens if mask_tokens is None else jnp.concatenate([tokens, mask_tokens], 1)
        mixed = self.attention(self.norm1(both), num_image_tokens, rotary, patch_valid, masks,
                               mask_scale, read)
        both = self._add_mlp(_add(rows_read(both, num_image_tokens, read), mixed, self.scale1))
        if mask_tokens is None:
            return both, None
        count = num_image_tokens if read is None else read
        return both[:, :count], both[:, count:]

    def value_path(self, tokens):
        """The block with attention replaced by every token's own value: [B, L, D] -> [B, L, D]."""
        return self._add_mlp(
            _add(tokens, self.attention.value_path(self.norm1(tokens)), self.scale1))

    def _add_mlp(self, tokens):
        return _add(tokens, self.mlp(self.norm2(tokens)), self.scale2)


def rows_read(both: jax.Array, num_image_tokens: int, read: int | None) -> jax.Array:
    """Of tokens of an image and of masks behind them, [B, P+L+N, D]: the first `read`, and those of
    masks; None: all."""
    if read is None:
        return both
    return jnp.concatenate([both[:, :read], both[:, num_image_tokens:]], 1)


def _add(tokens, change, scale: nnx.Param | None):
    """One half of a block: the tokens, and the change times a factor for each channel."""
    if scale is not None:
        change = change * scale[...].astype(change.dtype)[None, None]
    return tokens + change


class Attention(nnx.Module):
    """Self-attention of the image tokens, and attention of mask tokens to patches.

    Args:
      width: D.
      num_heads: A.
      biased: which of query, key and value have a bias.
      inner_norm: epsilon of a norm over the mixed heads, before the output; None: no such norm.
      prefix_tokens: tokens in front of the patches, which every token of the image sees and no
        rotation turns.
      quarter: which channels of queries and keys turn together; see `positions.Rotation`.
    """

    def __init__(self, width: int, num_heads: int, *,
                 biased: typing.Collection[str] = ("query", "key", "value"),
                 inner_norm: float | None = None, prefix_tokens: int = 1,
                 quarter: typing.Callable = positions.quarter_pairs, dtype, heads: str,
                 rngs: nnx.Rngs):
        linear = lambda name: nnx.Linear(width, width, use_bias=name in biased, dtype=dtype,
                                         rngs=rngs)
        self.num_heads, self.heads = num_heads, heads
        self.prefix_tokens, self.quarter = prefix_tokens, quarter
        self.query, self.key, self.value = linear("query"), linear("key"), linear("value")
        self.inner_norm = None if inner_norm is None else layers.layer_norm(
            width, epsilon=inner_norm, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x, num_image_tokens, rotary, patch_valid, masks, mask_scale, read=None):
        image, rows = x[:, :num_image_tokens], rows_read(x, num_image_tokens, read)
        count = num_image_tokens if read is None else read
        queries = layers.split_heads(self.query(rows), self.num_heads)  # [B, P+L(+N), A, K]
        keys = layers.split_heads(self.key(image), self.num_heads)  # [B, P+L, A, K]
        values = layers.split_heads(self.value(image), self.num_heads)
        of_image, of_masks = queries[:, :count], queries[:, count:]
        turn = None
        if rotary is not None:
            turn = positions.Rotation(*unturned_prefix(rotary, self.prefix_tokens), self.quarter)
        if turn is not None and read is not None:  # the queries left are in front: never turned
            keys, turn = turn(keys), None
        seen = behind_prefix(patch_valid, self.prefix_tokens)[:, None]  # [B, 1, P+L]
        mixed = layers.attend(of_image, keys, values, turn=turn, allowed=seen, heads=self.heads)
        if masks is not None:
            keys = keys if turn is None else turn(keys)
            skip = keys.shape[1] - masks[0].shape[-1]  # keys that masks do not see
            pooled = layers.attend(
                of_masks, keys[:, skip:], values[:, skip:], allowed=seen[..., skip:],
                masks=masks[0], inside=masks[1], mask_scale=mask_scale, heads=self.heads)
            mixed = jnp.concatenate([mixed, pooled], 1)
        return self._output(layers.merge_heads(mixed))

    def value_path(self, x):
        return self._output(self.value(x))

    def _output(self, mixed):
        return self.out(mixed if self.inner_norm is None else self.inner_norm(mixed))


def make_blocks(depth: int, width: int, num_heads: int, epsilon: float,
                make_mlp: typing.Callable[[], nnx.Module], *, layer_scale: bool = False, dtype,
                heads: str, rngs: nnx.Rngs, **attention) -> nnx.List:
    """All blocks of a tower; `attention` goes to `Attention`."""
    make_attention = lambda: Attention(width, num_heads, dtype=dtype, heads=heads, rngs=rngs,
                                       **attention)
    return nnx.List([Block(width, epsilon, make_attention, make_mlp, layer_scale=layer_scale,
                           dtype=dtype, rngs=rngs) for _ in range(depth)])


# ---- Masks on their way through the blocks ------------------------------------------------------


def behind_prefix(valid: jax.Array, prefix: int) -> jax.Array:
    """[B, L] bool of patches -> [B, P+L] of all tokens; those in front exist in every picture."""
    return jnp.pad(valid, ((0, 0), (prefix, 0)), constant_values=True)


def unturned_prefix(rotary: tuple[jax.Array, jax.Array], prefix: int
                    ) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of patches [B, L, K] -> of all tokens [B, P+L, K]: those in front stay."""
    cos, sin = rotary
    rows = ((0, 0), (prefix, 0), (0, 0))
    return jnp.pad(cos, rows, constant_values=1), jnp.pad(sin, rows)


def masks_on_keys(grid_masks: jax.Array, threshold: float | None, prefix: int = 0
                  ) -> tuple[jax.Array, jax.Array]:
    """Masks as attention takes them: values and which keys are inside, each [B, N, P+L].

    A prefix token counts as a patch of the mask's largest value; it is outside an empty mask. So
    a full mask that sees the prefix gives what the image's own class token gives.

    Args:
      grid_masks: [B, N, L] float32.
      threshold: see `layers.inside_masks`.
      prefix: P, tokens in front of the patches that masks see.
    """
    inside = layers.inside_masks(grid_masks, threshold)
    if not prefix:
        return grid_masks, inside
    of_prefix = lambda x: jnp.broadcast_to(x[..., None], (*x.shape, prefix))
    return (jnp.concatenate([of_prefix(grid_masks.max(-1)), grid_masks], -1),
            jnp.concatenate([of_prefix(inside.any(-1)), inside], -1))


class Passed(typing.NamedTuple):
    """Tokens that passed all blocks; nothing is normalised."""

    tokens: jax.Array              # [B, P+L, D], or the first of them that are read
    mask_tokens: jax.Array | None  # [B, N, D]
    entering: jax.Array            # [B, P+L, D], what entered the last block


def pass_blocks(blocks: typing.Sequence[Block], tokens: jax.Array, grid: layers.Grid, *,
                mask_logit_scale: jax.Array, mask_threshold: float | None, rotary=None, remat: str,
                layout: layers.Layout, start: int = 0, prefix_visible: bool = False,
                mask_tokens: jax.Array | None = None, read: int | None = None) -> Passed:
    """Runs all blocks; mask tokens join in the last ones.

    What nobody reads is not computed: of the last block, all rows but those of mask tokens and of
    the first image tokens; keys and values are still those of all.

    Args:
      blocks: all blocks of the tower, or a part of them.
      tokens: [B, P+L, D], class token first.
      grid: where images and masks lie.
      mask_logit_scale: [blocks with mask tokens, A], logarithm of the factor of the values inside a
        mask. Row 0 belongs to the last block. Without rows masks start after the last block.
      mask_threshold: see `layers.inside_masks`.
      rotary: angles of the patches, see `Attention`; None: no rotation.
      remat: see `layers.rematerialize`.
      layout: of tokens and parameters.
      start: which of the tokens in front of the patches a mask token starts as.
      prefix_visible: whether mask tokens see the tokens in front of the patches too
        (`masks_on_keys`); never so in the published models.
      mask_tokens: [B, N, D] of blocks before these; None: they start in these.
      read: how many of the tokens in front of the patches are read after the last block, and none
        behind them; None: all tokens are.
    """
    run = layers.rematerialize(remat, layout, static=(6,))
    masks = scale = None
    prefix = tokens.shape[1] - grid.valid.shape[1]
    begin = lambda tokens: jnp.broadcast_to(
        tokens[:, start, None], (tokens.shape[0], grid.masks.shape[1], tokens.shape[-1]))
    entering = tokens
    for left, block in zip(reversed(range(len(blocks))), blocks):  # left: blocks after this one
        if grid.masks is not None and left < len(mask_logit_scale):
            if mask_tokens is None:
                mask_tokens = begin(tokens)
            if masks is None:
                masks = masks_on_keys(grid.masks, mask_threshold, prefix if prefix_visible else 0)
            scale = jnp.exp(mask_logit_scale[left])  # [A]
        entering = tokens
        tokens, mask_tokens = run(block, tokens, rotary, grid.valid, mask_tokens, masks, scale,
                                  None if left else read)
        tokens = layout.rows(tokens)
    if grid.masks is not None and mask_tokens is None:
        mask_tokens = begin(tokens)
    return Passed(tokens, mask_tokens, entering)
