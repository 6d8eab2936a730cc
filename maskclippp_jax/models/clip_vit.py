"""CLIP's own Vision Transformer with mask tokens: OpenAI's and OpenCLIP's weights.

The plain tower is the one of Radford et al. 2021 (arXiv 2103.00020); mask tokens as in `vit`.
OpenAI's weights, and some of OpenCLIP's, want QuickGELU, the others the exact GELU.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers, positions, vit


@dataclasses.dataclass(frozen=True)
class ClipViTConfig:
    image_size: int    # pixels; side of the square the position table was learnt on
    patch_size: int    # pixels
    width: int         # channels of a token
    depth: int         # blocks
    num_heads: int
    mlp_width: int     # hidden channels
    embed_dim: int     # joint image-text width
    mask_layers: int = 3   # last blocks in which mask tokens run, as many as in the EVA models
    quick_gelu: bool = False
    mask_threshold: float | None = None  # None: half of each mask's largest value
    norm_epsilon: float = 1e-5
    pixel_mean: tuple[float, float, float] = layers.PIXEL_MEAN  # of RGB on 0..255
    pixel_std: tuple[float, float, float] = layers.PIXEL_STD

    @classmethod
    def b32(cls) -> "ClipViTConfig":
        """ViT-B-32, 87.85 M parameters."""
        return cls(image_size=224, patch_size=32, width=768, depth=12, num_heads=12, mlp_width=3072,
                   embed_dim=512)

    @classmethod
    def b16(cls) -> "ClipViTConfig":
        """ViT-B-16, 86.19 M parameters."""
        return dataclasses.replace(cls.b32(), patch_size=16)

    @classmethod
    def l14(cls) -> "ClipViTConfig":
        """ViT-L-14, 303.97 M parameters."""
        return cls(image_size=224, patch_size=14, width=1024, depth=24, num_heads=16,
                   mlp_width=4096, embed_dim=768)

    @classmethod
    def l14_336(cls) -> "ClipViTConfig":
        """ViT-L-14-336, 304.29 M parameters."""
        return dataclasses.replace(cls.l14(), image_size=336)

    @classmethod
    def h14(cls) -> "ClipViTConfig":
        """ViT-H-14, 632.08 M parameters."""
        return cls(image_size=224, patch_size=14, width=1280, depth=32, num_heads=16,
                   mlp_width=5120, embed_dim=1024)

    @classmethod
    def g14(cls) -> "ClipViTConfig":
        """ViT-g-14, 1012.65 M parameters."""
        return cls(image_size=224, patch_size=14, width=1408, depth=40, num_heads=16,
                   mlp_width=6144, embed_dim=1024)

    @classmethod
    def big_g14(cls) -> "ClipViTConfig":
        """ViT-bigG-14, 1844.91 M parameters."""
        return cls(image_size=224, patch_size=14, width=1664, depth=48, num_heads=16,
                   mlp_width=8192, embed_dim=1280)

    def make(self, **settings) -> "ClipViT":
        return ClipViT(self, **settings)


class ClipViT(nnx.Module):
    """The image tower; `remat` as in `layers.rematerialize`."""

    def __init__(self, config: ClipViTConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat, self.layout = dtype, remat, layout
        normal = lambda *shape: nnx.Param(c.width**-0.5 * jax.random.normal(rngs.params(), shape))
        norm = lambda: layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        grid = c.image_size // c.patch_size
        self.patch_embed = layers.PatchConv(
            c.patch_size, 3, c.width, use_bias=False, dtype=dtype, rngs=rngs)
        self.class_token = normal(c.width)
        self.position_table = normal(1 + grid * grid, c.width)
        self.pre_norm = norm()
        activation = layers.quick_gelu if c.quick_gelu else layers.exact_gelu
        mlp = lambda: layers.MLP(c.width, c.mlp_width, activation, dtype=dtype, rngs=rngs)
        self.blocks = vit.make_blocks(c.depth, c.width, c.num_heads, c.norm_epsilon, mlp,
                                      dtype=dtype, heads=heads, rngs=rngs)
        self.norm = norm()
        self.projection = normal(c.width, c.embed_dim)
        # As in `EvaViT`.
        self.mask_logit_scale = nnx.Param(jnp.full((c.mask_layers, c.num_heads), -5.0))

    grid = layers.token_grid

    def __call__(self, image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None = None,
                 *, dense: bool = False, key: jax.Array | None = None) -> layers.ImageFeatures:
        """Embeds images, and every mask in them; see `EvaViT.__call__`."""
        c = self.config
        grid = layers.lay_grid(image, image_size, grid_masks, c.patch_size)
        tokens = vit.prepend([self.class_token[...]], vit.embed_patches(
            self.patch_embed, image, image_size, c.pixel_mean, c.pixel_std))  # [B, 1+L, D]
        tokens = tokens + positions.resize_position_table(
            self.position_table[...], grid.size, grid.canvas)
        tokens = self.layout.rows(self.pre_norm(tokens))
        passed = vit.pass_blocks(
            self.blocks, tokens, grid, remat=self.remat,
            mask_logit_scale=self.mask_logit_scale[...], mask_threshold=c.mask_threshold,
            layout=self.layout, read=1)
        embed = lambda x: self.norm(x) @ self.projection[...].astype(self.dtype)
        return layers.ImageFeatures(
            mask_embeddings=None if grid_masks is None else embed(passed.mask_tokens),
            image_embedding=embed(passed.tokens[:, 0]),
            patch_embeddings=embed(self.blocks[-1].value_path(passed.entering[:, 1:]))
            if dense else None, patch_valid=grid.valid)
