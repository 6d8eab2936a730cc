"""EVA-CLIP image towers with mask tokens: EVA02 and EVA01.

The plain towers are the ones of EVA-CLIP (Sun et al. 2023, arXiv 2303.15389); mask tokens as in
`vit`. EVA02 has rotary positions beside the learnt table, norms inside attention and MLP, and a
SwiGLU; EVA01 has none of these.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers, positions, vit


@dataclasses.dataclass(frozen=True)
class EvaViTConfig:
    image_size: int    # pixels; side of the square the position table was learnt on
    patch_size: int    # pixels
    width: int         # channels of a token
    depth: int         # blocks
    num_heads: int
    mlp_width: int     # hidden channels
    embed_dim: int     # joint image-text width
    mask_layers: int   # last blocks in which mask tokens run
    rotary_grid: int | None = 16  # cells; the grid the rotary angles are scaled to; None: no angles
    inner_norms: bool = True      # a norm before the last matrix of attention and of MLP
    swiglu: bool = True           # else an MLP with the exact GELU
    # Published with queries, keys and values in one matrix, so that what tunes one tunes all three.
    fused_qkv: bool = False
    mask_threshold: float | None = None  # None: half of each mask's largest value
    norm_epsilon: float = 1e-6

    @classmethod
    def eva02_b16(cls) -> "EvaViTConfig":
        """EVA02-CLIP-B-16, 86.3 M parameters."""
        return cls(image_size=224, patch_size=16, width=768, depth=12, num_heads=12, mlp_width=2048,
                   embed_dim=512, mask_layers=3)

    @classmethod
    def eva02_l14(cls) -> "EvaViTConfig":
        """EVA02-CLIP-L-14, 304.1 M parameters."""
        return cls(image_size=224, patch_size=14, width=1024, depth=24, num_heads=16,
                   mlp_width=2730, embed_dim=768, mask_layers=3)

    @classmethod
    def eva02_l14_336(cls) -> "EvaViTConfig":
        """EVA02-CLIP-L-14-336, 304.4 M parameters."""
        return dataclasses.replace(cls.eva02_l14(), image_size=336)

    @classmethod
    def eva01_g14_plus(cls) -> "EvaViTConfig":
        """EVA01-CLIP-g-14-plus, 1012.6 M parameters."""
        return cls(image_size=224, patch_size=14, width=1408, depth=40, num_heads=16,
                   mlp_width=6144, embed_dim=1024, mask_layers=3, rotary_grid=None,
                   inner_norms=False, swiglu=False, fused_qkv=True)

    @classmethod
    def quickstart(cls) -> "EvaViTConfig":
        """The small tower that ships with the project, for 64 pixel scenes."""
        return cls(image_size=64, patch_size=8, width=128, depth=6, num_heads=4, mlp_width=341,
                   embed_dim=128, mask_layers=3)

    def make(self, **settings) -> "EvaViT":
        return EvaViT(self, **settings)


class EvaViT(nnx.Module):
    """The image tower; `remat` as in `layers.rematerialize`."""

    def __init__(self, config: EvaViTConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat, self.layout = dtype, remat, layout
        normal = nnx.initializers.truncated_normal(0.02)
        grid = c.image_size // c.patch_size
        self.patch_embed = layers.PatchConv(
            c.patch_size, 3, c.width, use_bias=True, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs.params(), (c.width,)))
        self.position_table = nnx.Param(normal(rngs.params(), (1 + grid * grid, c.width)))
        inner_norm = c.norm_epsilon if c.inner_norms else None
        mlp = lambda: (
            layers.SwiGLU(c.width, c.mlp_width, inner_norm=inner_norm, dtype=dtype, rngs=rngs)
            if c.swiglu
            else layers.MLP(c.width, c.mlp_width, layers.exact_gelu, dtype=dtype, rngs=rngs))
        self.blocks = vit.make_blocks(
            c.depth, c.width, c.num_heads, c.norm_epsilon, mlp, biased=("query", "value"),
            inner_norm=inner_norm, dtype=dtype, heads=heads, rngs=rngs)
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(c.width, c.embed_dim, dtype=dtype, rngs=rngs)
        # exp(-5) is close to 0: training starts from a nearly binary mask. Row 0 is the last block.
        self.mask_logit_scale = nnx.Param(jnp.full((c.mask_layers, c.num_heads), -5.0))

    grid = layers.token_grid

    def __call__(self, image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None = None,
                 *, dense: bool = False, key: jax.Array | None = None) -> layers.ImageFeatures:
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
        grid = layers.lay_grid(image, image_size, grid_masks, c.patch_size)
        tokens = vit.prepend([self.class_token[...]], vit.embed_patches(
            self.patch_embed, image, image_size))  # [B, 1+L, D]
        tokens = tokens + positions.resize_position_table(
            self.position_table[...], grid.size, grid.canvas)
        tokens = self.layout.rows(tokens.astype(self.dtype))
        rotary = None
        if c.rotary_grid is not None:
            rotary = positions.rotary_table(
                grid.size, grid.canvas, c.width // c.num_heads, c.rotary_grid)
        passed = vit.pass_blocks(
            self.blocks, tokens, grid, rotary=rotary, remat=self.remat,
            mask_logit_scale=self.mask_logit_scale[...], mask_threshold=c.mask_threshold,
            layout=self.layout, read=1)
        embed = lambda x: self.head(self.norm(x))
        return layers.ImageFeatures(
            mask_embeddings=None if grid_masks is None else embed(passed.mask_tokens),
            image_embedding=embed(passed.tokens[:, 0]),
            patch_embeddings=embed(self.blocks[-1].value_path(passed.entering[:, 1:]))
            if dense else None, patch_valid=grid.valid)
