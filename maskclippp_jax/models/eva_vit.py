"""EVA02-CLIP image tower with mask tokens.

The plain tower is the one of EVA-CLIP (Sun et al. 2023, arXiv 2303.15389). Mask tokens join in the
last `mask_layers` blocks (MaskCLIP++, arXiv 2412.11464): each starts as a copy of its own image's
class token and attends only to the patches under its mask. Class and patch tokens never attend to
mask tokens, so the image features are the same with and without masks; hence two attentions that
share their projections take the place of one over all tokens with a dense bias.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers

# EVA-CLIP as the public MaskCLIP++ reference feeds it: RGB on 0..255.
PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)
PIXEL_STD = (68.5005327, 66.6321579, 70.32316305)


@dataclasses.dataclass(frozen=True)
class EvaViTConfig:
    image_size: int    # pixels; side of the square the position table was learnt on
    patch_size: int    # pixels
    width: int         # channels of a token
    depth: int         # blocks
    num_heads: int
    mlp_width: int     # hidden channels of the SwiGLU
    embed_dim: int     # joint image-text width
    mask_layers: int   # last blocks in which mask tokens run
    rotary_grid: int = 16               # cells; the grid the rotary angles are scaled to
    mask_threshold: float | None = None  # None: half of each mask's largest value
    norm_epsilon: float = 1e-6

    @classmethod
    def eva02_b16(cls) -> "EvaViTConfig":
        """EVA02-CLIP-B-16, 86.3 M parameters."""
        return cls(image_size=224, patch_size=16, width=768, depth=12, num_heads=12, mlp_width=2048,
                   embed_dim=512, mask_layers=3)

    @classmethod
    def eva02_l14_336(cls) -> "EvaViTConfig":
        """EVA02-CLIP-L-14-336, 304.4 M parameters."""
        return cls(image_size=336, patch_size=14, width=1024, depth=24, num_heads=16,
                   mlp_width=2730, embed_dim=768, mask_layers=3)

    @classmethod
    def quickstart(cls) -> "EvaViTConfig":
        """The small tower that ships with the project, for 64 pixel scenes."""
        return cls(image_size=64, patch_size=8, width=128, depth=6, num_heads=4, mlp_width=341,
                   embed_dim=128, mask_layers=3)


class ImageFeatures(typing.NamedTuple):
    """What an image tower returns; nothing is normalised."""

    mask_embeddings: jax.Array | None   # [B, N, E]
    image_embedding: jax.Array          # [B, E]
    patch_embeddings: jax.Array | None  # [B, L, E]; cells outside an image's grid mean nothing
    patch_valid: jax.Array              # [B, L] bool, the cells of each image's own grid


class EvaViT(nnx.Module):
    """The image tower.

    `remat` recomputes each block in the backward pass, to save memory: "none", "full", or "dots"
    (which keeps the results of matrix products without batch dimensions).
    """

    def __init__(self, config: EvaViTConfig, *, dtype=jnp.float32, by_head: bool = True,
                 remat: str = "none", constrain: typing.Callable = lambda x: x, rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat, self.constrain = dtype, remat, constrain
        normal = nnx.initializers.truncated_normal(0.02)
        grid = c.image_size // c.patch_size
        self.patch_embed = PatchEmbed(c, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs.params(), (c.width,)))
        self.position_table = nnx.Param(normal(rngs.params(), (1 + grid * grid, c.width)))
        self.blocks = nnx.List(
            [Block(c, dtype=dtype, by_head=by_head, rngs=rngs) for _ in range(c.depth)])
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(c.width, c.embed_dim, dtype=dtype, rngs=rngs)
        # exp(-5) is close to 0: training starts from a nearly binary mask. Row 0 is the last block.
        self.mask_logit_scale = nnx.Param(jnp.full((c.mask_layers, c.num_heads), -5.0))

    def grid(self, image_size: jax.Array) -> jax.Array:
        """True token grid [B, 2] of images of true size [B, 2] pixels: next multiple of a patch."""
        return -(-image_size // self.config.patch_size)

    def __call__(self, image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None = None,
                 *, dense: bool = False, key: jax.Array | None = None) -> ImageFeatures:
        """Embeds images, and every mask in them.

        Args:
          image: [B, H, W, 3] RGB in 0..255, uint8 or float, padded at the bottom and right to
            multiples of the patch; what the padding holds does not matter.
          image_size: [B, 2] int32, true height and width in pixels, at least 1.
          grid_masks: [B, N, L] float in [0, 1] on the canvas' token grid (`resample`); zeros make
            an empty mask, which attends to the whole image. None: no masks.
          dense: also embed every patch (its own value path, MaskCLIP's way).
          key: of randomness in training, of which this tower has none.

        Returns:
          ImageFeatures in the tower's dtype.

        Raises:
          ValueError: canvas not a multiple of the patch, or masks on another grid.
        """
        c = self.config
        canvas = tuple(side // c.patch_size for side in image.shape[1:3])  # (h, w)
        if any(side % c.patch_size for side in image.shape[1:3]):
            raise ValueError(f"the canvas is {image.shape[1]}x{image.shape[2]} pixels; pad it to "
                             f"multiples of the patch, {c.patch_size}")
        num_patches = canvas[0] * canvas[1]
        if grid_masks is not None and grid_masks.shape[-1] != num_patches:
            raise ValueError(f"masks lie on a grid of {grid_masks.shape[-1]} cells, tokens on "
                             f"{num_patches}; bring the masks to the token grid first")

        grid = self.grid(image_size)  # [B, 2]
        patches = self.patch_embed(normalize(image, image_size))  # [B, L, D]
        first = jnp.broadcast_to(self.class_token[...], (len(image), 1, c.width))
        tokens = jnp.concatenate([first, patches.astype(jnp.float32)], 1)  # [B, 1+L, D]
        tokens = tokens + layers.resize_position_table(self.position_table[...], grid, canvas)
        tokens = self.constrain(tokens.astype(self.dtype))

        head_width = c.width // c.num_heads
        rotary = layers.rotary_table(grid, canvas, head_width, c.rotary_grid)
        rows, columns = jnp.arange(canvas[0]), jnp.arange(canvas[1])
        patch_valid = ((rows[None, :, None] < grid[:, 0, None, None])
                       & (columns[None, None] < grid[:, 1, None, None]))
        patch_valid = patch_valid.reshape(-1, num_patches)  # [B, L]

        masks = None
        if grid_masks is not None:
            grid_masks = grid_masks.astype(jnp.float32)
            masks = (grid_masks, layers.inside_masks(grid_masks, c.mask_threshold))
        mask_tokens = None
        for i, block in enumerate(self.blocks):
            if i >= c.depth - c.mask_layers and masks is not None:
                if mask_tokens is None:
                    mask_tokens = jnp.broadcast_to(
                        tokens[:, :1], (len(image), grid_masks.shape[1], c.width))
                scale = jnp.exp(self.mask_logit_scale[c.depth - 1 - i])  # [A]
            else:
                scale = None
            entering = tokens
            tokens, mask_tokens = self._run(block, tokens, rotary, patch_valid, mask_tokens,
                                            masks if mask_tokens is not None else None, scale)
            tokens = self.constrain(tokens)

        embed = lambda x: self.head(self.norm(x))
        return ImageFeatures(
            mask_embeddings=None if mask_tokens is None else embed(mask_tokens),
            image_embedding=embed(tokens[:, 0]),
            patch_embeddings=embed(self.blocks[-1].value_path(entering[:, 1:])) if dense else None,
            patch_valid=patch_valid)

    def _run(self, block, *arguments):
        if self.remat == "none":
            return block(*arguments)
        policy = (jax.checkpoint_policies.dots_with_no_batch_dims_saveable
                  if self.remat == "dots" else None)
        return jax.checkpoint(lambda b, *a: b(*a), policy=policy)(block, *arguments)


def normalize(image: jax.Array, image_size: jax.Array) -> jax.Array:
    """Subtracts the mean, divides by the deviation, and sets everything outside the image to 0.

    Args:
      image: [B, H, W, 3] RGB in 0..255.
      image_size: [B, 2] true height and width.

    Returns:
      [B, H, W, 3] float32.
    """
    mean, std = (jnp.asarray(x).reshape(1, 1, 1, 3) for x in (PIXEL_MEAN, PIXEL_STD))
    scaled = (image.astype(jnp.float32) - mean) / std
    height, width = image_size[:, 0, None, None], image_size[:, 1, None, None]
    inside = ((jnp.arange(image.shape[1])[None, :, None] < height)
              & (jnp.arange(image.shape[2])[None, None] < width))  # [B, H, W]
    return jnp.where(inside[..., None], scaled, 0.0)


class PatchEmbed(nnx.Module):
    """The patch convolution; as kernel and stride agree it is one matrix product."""

    def __init__(self, c: EvaViTConfig, *, dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        shape = (c.patch_size, c.patch_size, 3, c.width)  # HWIO
        self.kernel = nnx.Param(nnx.initializers.lecun_normal(in_axis=(0, 1, 2))(
            rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(c.width))

    def __call__(self, image):  # [B, H, W, 3] -> [B, L, D]
        p, _, channels, width = self.kernel.shape
        batch, height, columns, _ = image.shape
        patches = image.reshape(batch, height // p, p, columns // p, p, channels)
        patches = patches.swapaxes(2, 3).reshape(batch, -1, p * p * channels).astype(self.dtype)
        kernel = self.kernel[...].reshape(-1, width).astype(self.dtype)
        return patches @ kernel + self.bias[None, None].astype(self.dtype)


class Block(nnx.Module):
    """A pre-norm block. Mask tokens ride along as extra rows of the same matrix products."""

    def __init__(self, c: EvaViTConfig, *, dtype, by_head: bool, rngs: nnx.Rngs):
        norm = lambda: layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.norm1 = norm()
        self.attention = Attention(c, dtype=dtype, by_head=by_head, rngs=rngs)
        self.norm2 = norm()
        self.mlp = SwiGLU(c, dtype=dtype, rngs=rngs)

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
    """Self-attention of the image tokens, and attention of mask tokens to patches."""

    def __init__(self, c: EvaViTConfig, *, dtype, by_head: bool, rngs: nnx.Rngs):
        linear = lambda **kw: nnx.Linear(c.width, c.width, dtype=dtype, rngs=rngs, **kw)
        self.num_heads, self.by_head = c.num_heads, by_head
        self.query, self.key, self.value = linear(), linear(use_bias=False), linear()
        self.inner_norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.out = linear()

    def __call__(self, x, num_image_tokens, rotary, patch_valid, masks, mask_scale):
        image = x[:, :num_image_tokens]
        queries = layers.split_heads(self.query(x), self.num_heads)  # [B, 1+L(+N), A, K]
        keys = layers.split_heads(self.key(image), self.num_heads)  # [B, 1+L, A, K]
        values = layers.split_heads(self.value(image), self.num_heads)
        turn = lambda t: jnp.concatenate([t[:, :1], layers.rotate(t[:, 1:], rotary)], 1)
        keys = turn(keys)
        seen = jnp.pad(patch_valid, ((0, 0), (1, 0)), constant_values=True)[:, None]  # [B, 1, 1+L]
        mixed = layers.attend(turn(queries[:, :num_image_tokens]), keys, values, allowed=seen,
                              by_head=self.by_head)
        if masks is not None:
            pooled = layers.attend(
                queries[:, num_image_tokens:], keys[:, 1:], values[:, 1:], allowed=seen[..., 1:],
                masks=masks[0], inside=masks[1], mask_scale=mask_scale, by_head=self.by_head)
            mixed = jnp.concatenate([mixed, pooled], 1)
        return self.out(self.inner_norm(layers.merge_heads(mixed)))

    def value_path(self, x):
        return self.out(self.inner_norm(self.value(x)))


class SwiGLU(nnx.Module):
    """w3(norm(silu(w1 x) * w2 x))."""

    def __init__(self, c: EvaViTConfig, *, dtype, rngs: nnx.Rngs):
        self.w1 = nnx.Linear(c.width, c.mlp_width, dtype=dtype, rngs=rngs)
        self.w2 = nnx.Linear(c.width, c.mlp_width, dtype=dtype, rngs=rngs)
        self.norm = layers.layer_norm(c.mlp_width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.w3 = nnx.Linear(c.mlp_width, c.width, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.w3(self.norm(jax.nn.silu(self.w1(x)) * self.w2(x)))
