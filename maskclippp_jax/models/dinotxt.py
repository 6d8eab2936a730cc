"""dino.txt on DINOv3: an image tower of a backbone and a head of two blocks, with masks in both.

The plain tower is the one of github.com/facebookresearch/dinov3 (arXiv 2412.16334, 2508.10104). An
image is its class token beside the mean of its patches, after the head; the first half of a text's
embedding speaks to the one, the second half to the other. So a mask is a mask token (`vit`), beside
the mean of the patches under it. The text tower is CLIP's, without biases of queries, keys and
values (`text_config`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax.models import layers, positions, vit
from maskclippp_jax.models.text import TextConfig


@dataclasses.dataclass(frozen=True)
class DinoTxtConfig:
    image_size: int      # pixels; side of the pictures of pre-training, nothing depends on it
    patch_size: int      # pixels
    width: int           # channels of a token
    depth: int           # blocks of the backbone
    num_heads: int
    mlp_width: int       # hidden channels of the backbone
    head_mlp_width: int  # hidden channels of the head
    head_depth: int = 2  # blocks of the head
    num_registers: int = 4  # tokens behind the class token, which nothing reads at the end
    # Last blocks in which mask tokens run, counted back from the head's last one, into the backbone
    # if there are more.
    mask_layers: int = 2
    prefix_visible: bool = False  # whether masks see class token and registers too
    mask_threshold: float | None = None  # None: half of each mask's largest value
    norm_epsilon: float = 1e-5
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet's, on 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    @property
    def embed_dim(self) -> int:
        """Joint image-text width: class part and patch part."""
        return 2 * self.width

    @classmethod
    def l16(cls) -> "DinoTxtConfig":
        """dinov3_vitl16 with the head of dino.txt, 328.5 M parameters."""
        return cls(224, 16, width=1024, depth=24, num_heads=16, mlp_width=4096,
                   head_mlp_width=2752)

    def make(self, **settings) -> "DinoTxtImageTower":
        return DinoTxtImageTower(self, **settings)


def text_config() -> TextConfig:
    """The text tower of dino.txt on L/16, 538.1 M parameters."""
    return TextConfig(context_length=77, vocab_size=49408, width=1280, depth=24, num_heads=20,
                      embed_dim=2048, qkv_bias=False)


class DinoTxtImageTower(nnx.Module):
    """The image tower; `remat` as in `layers.rematerialize`."""

    def __init__(self, config: DinoTxtConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat, self.layout = dtype, remat, layout
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        self.patch_embed = layers.PatchConv(
            c.patch_size, 3, c.width, use_bias=True, dtype=dtype, rngs=rngs)
        self.class_token, self.registers = normal(c.width), normal(c.num_registers, c.width)
        mlp = lambda: layers.MLP(c.width, c.mlp_width, layers.exact_gelu, dtype=dtype, rngs=rngs)
        self.blocks = vit.make_blocks(
            c.depth, c.width, c.num_heads, c.norm_epsilon, mlp, biased=("query", "value"),
            prefix_tokens=1 + c.num_registers, quarter=positions.quarter_halves, layer_scale=True,
            dtype=dtype, heads=heads, rngs=rngs)
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.head = VisionHead(c, dtype=dtype, heads=heads, rngs=rngs)
        # As in `EvaViT`.
        self.mask_logit_scale = nnx.Param(jnp.full((c.mask_layers, c.num_heads), -5.0))

    grid = layers.token_grid

    def __call__(self, image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None = None,
                 *, dense: bool = False, key: jax.Array | None = None) -> layers.ImageFeatures:
        """Embeds images, and every mask in them; see `EvaViT.__call__`.

        The patch part of an empty mask is the image's. A dense embedding is a patch token, in the
        patch part; its class part is 0.
        """
        c = self.config
        grid = layers.lay_grid(image, image_size, grid_masks, c.patch_size)
        rotary = rotary_table(grid.size, grid.canvas, c.width // c.num_heads)
        scale = self.mask_logit_scale[...]
        in_backbone = c.mask_layers > c.head_depth
        run = lambda blocks, tokens, grid, scale, **more: vit.pass_blocks(
            blocks, tokens, grid, mask_logit_scale=scale, mask_threshold=c.mask_threshold,
            remat=self.remat, layout=self.layout, prefix_visible=c.prefix_visible, **more)
        passed = run(self.blocks, self.embed(image, image_size),
                     grid if in_backbone else grid._replace(masks=None), scale[c.head_depth:],
                     rotary=rotary)
        masks = passed.mask_tokens  # None: they start as the class token that enters the head
        passed = run(self.head.blocks, self.norm(passed.tokens), grid, scale[:c.head_depth],
                     mask_tokens=None if masks is None else self.norm(masks))
        tokens = self.head.norm(passed.tokens)
        patches = tokens[:, 1 + c.num_registers:].astype(jnp.float32)  # [B, L, D]
        whole = jnp.zeros((image.shape[0], 1, patches.shape[1]))  # an empty mask
        both = lambda tokens, masks: jnp.concatenate([tokens, mean_under(
            patches, masks, grid.valid, c.mask_threshold).astype(tokens.dtype)], -1)
        return layers.ImageFeatures(
            mask_embeddings=None if grid_masks is None else both(
                self.head.norm(passed.mask_tokens), grid.masks),
            image_embedding=both(tokens[:, :1], whole)[:, 0],
            patch_embeddings=jnp.pad(patches, ((0, 0), (0, 0), (c.width, 0))).astype(self.dtype)
            if dense else None, patch_valid=grid.valid)

    def embed(self, image: jax.Array, image_size: jax.Array) -> jax.Array:
        """The tokens that enter the first block: [B, P+L, D]; nothing is added for positions."""
        c = self.config
        tokens = vit.prepend([self.class_token[...], self.registers[...]], vit.embed_patches(
            self.patch_embed, image, image_size, c.pixel_mean, c.pixel_std))
        return self.layout.rows(tokens.astype(self.dtype))


class VisionHead(nnx.Module):
    """The blocks that were trained together with the text tower, on a backbone that was not."""

    def __init__(self, c: DinoTxtConfig, *, dtype, heads: str, rngs: nnx.Rngs):
        mlp = lambda: layers.SwiGLU(c.width, c.head_mlp_width, dtype=dtype, rngs=rngs)
        self.blocks = vit.make_blocks(
            c.head_depth, c.width, c.num_heads, c.norm_epsilon, mlp, biased=(),
            prefix_tokens=1 + c.num_registers, layer_scale=True, dtype=dtype, heads=heads,
            rngs=rngs)
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)


def mean_under(patches: jax.Array, grid_masks: jax.Array, valid: jax.Array,
               threshold: float | None) -> jax.Array:
    """Means of the patches inside each mask, weighted by its values.

    Args:
      patches: [B, L, D] float32.
      grid_masks: [B, N, L] float32.
      valid: [B, L] bool, the cells of each image's own grid.
      threshold: see `layers.inside_masks`.

    Returns:
      [B, N, D] float32; of an empty mask the mean of the whole image.
    """
    inside = layers.inside_masks(grid_masks, threshold)
    weights = jnp.where(inside.any(-1, keepdims=True), jnp.where(inside, grid_masks, 0.0), 1.0)
    weights = jnp.where(valid[:, None], weights, 0.0)  # [B, N, L]
    total = jnp.einsum("bnl,bld->bnd", weights, patches, precision="highest")
    return total / weights.sum(-1, keepdims=True)


def rotary_table(grid: jax.Array, canvas: tuple[int, int], head_width: int
                 ) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles that patches are turned by (`positions.Rotation`).

    Each axis of an image runs from -1 to 1, whatever its size. Periods go from 1 to almost 100.

    Args:
      grid: [B, 2] int32, true (gh, gw) of each image.
      canvas: (h, w), cells of the padded canvas.
      head_width: K, a multiple of 4.

    Returns:
      cos and sin, each [B, h*w, K] float32.
    """
    quarter = head_width // 4
    turns = 2 * np.pi * 100.0 ** (-np.arange(quarter) / quarter)  # a period is a whole turn

    def angles(cell, true_cells):  # [B, L], [B] -> [B, L, K/4]
        place = 2 * (cell + 0.5) / true_cells[:, None] - 1
        return place[..., None] * turns.astype(np.float32)[None, None]

    half = jnp.concatenate([angles(cell, grid[:, axis].astype(jnp.float32))
                            for axis, cell in enumerate(layers.cells_of(grid, canvas))], -1)
    table = jnp.concatenate([half, half], -1)
    return jnp.cos(table), jnp.sin(table)
