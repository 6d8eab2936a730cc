"""PE-Core image towers with masks in their pooling head (Perception Encoder, arXiv 2504.13181).

The plain towers are those of github.com/facebookresearch/perception_models: CLIP's Vision
Transformer with rotary positions beside its table, and a learnt query that pools all tokens after
the last block, the class token included. Masks are pooled by the same query (`pooling`). No token
pools inside the blocks, so masks do not go through them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers, positions, vit
from maskclippp_jax.models.pooling import AttentionPool, PoolConfig


@dataclasses.dataclass(frozen=True)
class PEConfig:
    image_size: int   # pixels; side of the square the position table was learnt on
    patch_size: int   # pixels
    width: int        # channels of a token
    depth: int        # blocks
    num_heads: int
    mlp_width: int    # hidden channels
    embed_dim: int    # joint image-text width
    has_class_token: bool = True
    prefix_visible: bool = False  # whether masks pool the class token too, see `vit.masks_on_keys`
    mask_threshold: float | None = None  # None: half of each mask's largest value
    norm_epsilon: float = 1e-5
    pixel_mean: tuple[float, float, float] = (127.5,) * 3  # of RGB on 0..255
    pixel_std: tuple[float, float, float] = (127.5,) * 3

    @property
    def pool(self) -> PoolConfig:
        """Eight heads, whatever the blocks have."""
        return PoolConfig(self.width, 8, 4 * self.width, self.norm_epsilon, True,
                          self.mask_threshold)

    @classmethod
    def t16_384(cls) -> "PEConfig":
        """PE-Core-T16-384, 6.14 M parameters."""
        return cls(384, 16, width=192, depth=12, num_heads=3, mlp_width=768, embed_dim=512)

    @classmethod
    def s16_384(cls) -> "PEConfig":
        """PE-Core-S16-384, 23.78 M parameters."""
        return cls(384, 16, width=384, depth=12, num_heads=6, mlp_width=1536, embed_dim=512)

    @classmethod
    def b16(cls) -> "PEConfig":
        """PE-Core-B16-224, 93.67 M parameters."""
        return cls(224, 16, width=768, depth=12, num_heads=12, mlp_width=3072, embed_dim=1024)

    @classmethod
    def l14_336(cls) -> "PEConfig":
        """PE-Core-L14-336, 317.15 M parameters."""
        return cls(336, 14, width=1024, depth=24, num_heads=16, mlp_width=4096, embed_dim=1024)

    @classmethod
    def g14_448(cls) -> "PEConfig":
        """PE-Core-G14-448, 1882.03 M parameters; it has no class token."""
        return cls(448, 14, width=1536, depth=50, num_heads=16, mlp_width=8960, embed_dim=1280,
                   has_class_token=False)

    def make(self, **settings) -> "PEImageTower":
        return PEImageTower(self, **settings)


class PEImageTower(nnx.Module):
    """The image tower; `remat` as in `layers.rematerialize`.

    Norm after the blocks, pooling and head are float32 whatever `dtype` is, as in SigLIP's tower.
    """

    def __init__(self, config: PEConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat, self.layout = dtype, remat, layout
        normal = lambda *shape: nnx.Param(c.width**-0.5 * jax.random.normal(rngs.params(), shape))
        norm = lambda dtype: layers.layer_norm(
            c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        grid, prefix = c.image_size // c.patch_size, int(c.has_class_token)
        self.patch_embed = layers.PatchConv(
            c.patch_size, 3, c.width, use_bias=False, dtype=dtype, rngs=rngs)
        self.class_token = normal(c.width) if c.has_class_token else None
        self.position_table = normal(prefix + grid * grid, c.width)
        self.pre_norm = norm(dtype)
        mlp = lambda: layers.MLP(c.width, c.mlp_width, layers.exact_gelu, dtype=dtype, rngs=rngs)
        self.blocks = vit.make_blocks(c.depth, c.width, c.num_heads, c.norm_epsilon, mlp,
                                      prefix_tokens=prefix, dtype=dtype, heads=heads, rngs=rngs)
        self.norm = norm(jnp.float32)
        self.pool = AttentionPool(c.pool, heads=heads, rngs=rngs)
        self.head = nnx.Linear(c.width, c.embed_dim, rngs=rngs)
        # One row, as masks are pooled in one place; its start as in `EvaViT`.
        self.mask_logit_scale = nnx.Param(jnp.full((1, c.pool.num_heads), -5.0))

    grid = layers.token_grid

    def __call__(self, image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None = None,
                 *, dense: bool = False, key: jax.Array | None = None) -> layers.ImageFeatures:
        """Embeds images, and every mask in them; see `EvaViT.__call__`.

        Of a tower without class token an empty mask gives the image's own embedding.
        """
        c = self.config
        grid = layers.lay_grid(image, image_size, grid_masks, c.patch_size)
        passed = vit.pass_blocks(
            self.blocks, self.embed(image, image_size, grid), grid._replace(masks=None),
            rotary=rotary_table(grid.size, grid.canvas, c.width // c.num_heads), remat=self.remat,
            mask_logit_scale=self.mask_logit_scale[...], mask_threshold=None, layout=self.layout)
        encoded = self.norm(passed.tokens)  # [B, P+L, D] float32
        embed = lambda x: self.head(x).astype(self.dtype)
        pooled = embed(self.pool(encoded, grid, jnp.exp(self.mask_logit_scale[0]),
                                 prefix_visible=c.prefix_visible))  # [B, 1+N, E]
        patches = encoded[:, int(c.has_class_token):]
        return layers.ImageFeatures(
            mask_embeddings=None if grid_masks is None else pooled[:, 1:],
            image_embedding=pooled[:, 0],
            patch_embeddings=embed(self.pool.value_path(patches)) if dense else None,
            patch_valid=grid.valid)

    def embed(self, image: jax.Array, image_size: jax.Array, grid: layers.Grid) -> jax.Array:
        """The tokens that enter the first block: [B, P+L, D]."""
        c, table = self.config, self.position_table[...]
        tokens = vit.embed_patches(
            self.patch_embed, image, image_size, c.pixel_mean, c.pixel_std)  # [B, L, D]
        if c.has_class_token:
            tokens = vit.prepend([self.class_token[...]], tokens) + positions.resize_position_table(
                table, grid.size, grid.canvas, positions.half_pixel_matrix)
        else:
            tokens = tokens + positions.resize_table(
                table, grid.size, grid.canvas, positions.half_pixel_matrix)
        return self.layout.rows(self.pre_norm(tokens))


def rotary_table(grid: jax.Array, canvas: tuple[int, int], head_width: int
                 ) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles that patches are turned by.

    Positions are whole numbers from 1 on at every size, and 0 is the class token's, which is not
    turned; without one, where they begin does not matter. The first half of a head's channels turns
    with the column, the second half with the row; neighbours share an angle.

    Args:
      grid: [B, 2] int32, true (gh, gw) of each image.
      canvas: (h, w) cells.
      head_width: K, a multiple of 4.

    Returns:
      cos and sin, each [B, h*w, K] float32, or [1, h*w, K] but for a strip.
    """
    half = head_width // 2
    frequencies = 10000.0 ** (-2.0 * jnp.arange(half // 2, dtype=jnp.float32) / half)
    rows, columns = (
        jnp.repeat((cell + 1.0)[..., None] * frequencies[None, None], 2, axis=-1)
        for cell in layers.cells_of(grid, canvas))  # [1, h*w, K/2]
    table = jnp.concatenate([columns, rows], -1)
    return jnp.cos(table), jnp.sin(table)
