"""SigLIP and SigLIP 2: both towers, with masks pooled in the attention head of the image tower.

The plain towers are those of Zhai et al. 2023 (arXiv 2303.15343) and Tschannen et al. 2025 (arXiv
2502.14786), as google-research/big_vision has them. There is no class token: a learnt query, the
probe, pools the patches after the last block, and so do masks (`pooling`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers, positions, vit
from maskclippp_jax.models.pooling import AttentionPool

# How a position table is laid over another grid than its own.
RESIZE = {"linear": positions.linear_matrix, "bicubic": positions.bicubic_matrix,
           "antialiased": positions.antialiased_matrix}

# Width, blocks, heads, hidden channels of the MLP; both towers take them from here.
_B = dict(width=768, depth=12, num_heads=12, mlp_width=3072)
_L = dict(width=1024, depth=24, num_heads=16, mlp_width=4096)
_SO400M = dict(width=1152, depth=27, num_heads=16, mlp_width=4304)
_G_OPT = dict(width=1536, depth=40, num_heads=16, mlp_width=6144)


@dataclasses.dataclass(frozen=True)
class SigLIPConfig:
    image_size: int   # pixels; side of the square the position table was learnt on
    patch_size: int   # pixels
    width: int        # channels of a token
    depth: int        # blocks
    num_heads: int
    mlp_width: int    # hidden channels
    embed_dim: int    # joint image-text width
    has_head: bool = False  # a linear map after pooling, from the width to the joint one
    # "linear": corners aligned, as fixed-resolution models are resized; "antialiased": half-pixel
    # centres, what NaFlex models do in training; "bicubic": corners aligned, as CLIP's tables.
    position_resize: str = "linear"
    exact_gelu: bool = False  # else the tanh form, which all published weights were trained with
    mask_threshold: float | None = None  # None: half of each mask's largest value
    norm_epsilon: float = 1e-6
    pixel_mean: tuple[float, float, float] = (127.5,) * 3  # of RGB on 0..255
    pixel_std: tuple[float, float, float] = (127.5,) * 3

    @classmethod
    def b32(cls, image_size: int = 256) -> "SigLIPConfig":
        """B/32, 94.6 M parameters."""
        return cls(image_size, 32, **_B, embed_dim=768)

    @classmethod
    def b16(cls, image_size: int) -> "SigLIPConfig":
        """B/16 of 224, 256, 384 or 512 pixels, 92.9 to 93.5 M parameters."""
        return cls(image_size, 16, **_B, embed_dim=768)

    @classmethod
    def l16(cls, image_size: int) -> "SigLIPConfig":
        """L/16 of 256, 384 or 512 pixels, 316.0 to 316.7 M parameters."""
        return cls(image_size, 16, **_L, embed_dim=1024)

    @classmethod
    def so400m14(cls, image_size: int) -> "SigLIPConfig":
        """So400m/14 of 224 or 384 pixels (of which it used 378), 427.7 or 428.2 M parameters."""
        return cls(image_size, 14, **_SO400M, embed_dim=1152)

    @classmethod
    def so400m16(cls, image_size: int) -> "SigLIPConfig":
        """So400m/16 of 256, 384 or 512 pixels, 427.9 to 428.8 M parameters."""
        return cls(image_size, 16, **_SO400M, embed_dim=1152)

    @classmethod
    def g_opt16(cls, image_size: int) -> "SigLIPConfig":
        """g-opt/16 of 256 or 384 pixels, 1163.2 or 1163.7 M parameters."""
        return cls(image_size, 16, **_G_OPT, embed_dim=1536)

    @classmethod
    def b16_naflex(cls) -> "SigLIPConfig":
        """B/16 for pictures of any shape, 92.9 M parameters; its table is 16 cells wide."""
        return dataclasses.replace(cls.b16(256), position_resize="antialiased")

    @classmethod
    def so400m16_naflex(cls) -> "SigLIPConfig":
        """So400m/16 for pictures of any shape, 427.9 M parameters."""
        return dataclasses.replace(cls.so400m16(256), position_resize="antialiased")

    def make(self, **settings) -> "SigLIPImageTower":
        return SigLIPImageTower(self, **settings)


@dataclasses.dataclass(frozen=True)
class SigLIPTextConfig:
    context_length: int  # tokens of every prompt: padding is seen, so it is a part of the model
    vocab_size: int
    width: int           # channels of a token
    depth: int           # blocks
    num_heads: int
    mlp_width: int       # hidden channels
    embed_dim: int       # joint image-text width
    padding: int         # id that fills a prompt after its end: 1 in SigLIP, 0 in SigLIP 2
    has_head: bool = True  # a linear map from the width to the joint one
    exact_gelu: bool = False  # as in `SigLIPConfig`
    norm_epsilon: float = 1e-6

    @classmethod
    def siglip(cls, size: str, *, context_length: int = 64, vocab_size: int = 32_000,
               has_head: bool = True) -> "SigLIPTextConfig":
        """A text tower of SigLIP: "B" (110.3 M parameters), "L" (336.2) or "So400m" (449.7).

        Args:
          size: which of them.
          context_length: tokens; 16 in So400m/14 of 224 pixels.
          vocab_size: 250 000 in the models for many languages.
          has_head: not in So400m/16 for many languages.
        """
        sizes = {"B": _B, "L": _L, "So400m": _SO400M}[size]
        return cls(context_length, vocab_size, **sizes, embed_dim=sizes["width"], padding=1,
                   has_head=has_head)

    @classmethod
    def siglip2(cls, size: str, embed_dim: int | None = None) -> "SigLIPTextConfig":
        """A text tower of SigLIP 2: "B" (282.3 M parameters), "L" (565.6) or "So400m" (707.8).

        Args:
          size: which of them.
          embed_dim: joint width, if it is not the tower's own; 1536 beside g-opt/16.
        """
        sizes = {"B": _B, "L": _L, "So400m": _SO400M}[size]
        return cls(64, 256_000, **sizes, embed_dim=embed_dim or sizes["width"], padding=0)

    def make(self, **settings) -> "SigLIPTextTower":
        return SigLIPTextTower(self, **settings)


def _make_blocks(c: SigLIPConfig | SigLIPTextConfig, *, dtype, heads: str,
                 rngs: nnx.Rngs) -> nnx.List:
    """The blocks of either tower; all tokens of one picture or prompt see each other."""
    mlp = lambda: layers.MLP(c.width, c.mlp_width, layers.gelu(c.exact_gelu), dtype=dtype,
                             rngs=rngs)
    return vit.make_blocks(c.depth, c.width, c.num_heads, c.norm_epsilon, mlp, prefix_tokens=0,
                           dtype=dtype, heads=heads, rngs=rngs)


class SigLIPImageTower(nnx.Module):
    """The image tower; `remat` as in `layers.rematerialize`.

    Norm after the blocks, pooling and head are float32 whatever `dtype` is, as in big_vision.
    """

    def __init__(self, config: SigLIPConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat, self.layout = dtype, remat, layout
        if c.position_resize not in RESIZE:
            raise ValueError(f"position_resize is {c.position_resize!r}; it can be "
                             f"{', '.join(RESIZE)}")
        cells = (c.image_size // c.patch_size)**2
        self.patch_embed = layers.PatchConv(
            c.patch_size, 3, c.width, use_bias=True, dtype=dtype, rngs=rngs)
        self.position_table = nnx.Param(
            c.width**-0.5 * jax.random.normal(rngs.params(), (cells, c.width)))
        self.blocks = _make_blocks(c, dtype=dtype, heads=heads, rngs=rngs)
        self.norm = layers.layer_norm(
            c.width, epsilon=c.norm_epsilon, dtype=jnp.float32, rngs=rngs)
        self.pool = AttentionPool(c, heads=heads, rngs=rngs)
        self.head = nnx.Linear(c.width, c.embed_dim, rngs=rngs) if c.has_head else None
        # One row, as masks are pooled in one place; its start as in `EvaViT`.
        self.mask_logit_scale = nnx.Param(jnp.full((1, c.num_heads), -5.0))

    grid = layers.token_grid

    def __call__(self, image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None = None,
                 *, dense: bool = False, key: jax.Array | None = None) -> layers.ImageFeatures:
        """Embeds images, and every mask in them; see `EvaViT.__call__`.

        An empty mask gives the image's own embedding.
        """
        c = self.config
        grid = layers.lay_grid(image, image_size, grid_masks, c.patch_size)
        patches = vit.embed_patches(
            self.patch_embed, image, image_size, c.pixel_mean, c.pixel_std)  # [B, L, D]
        tokens = patches + positions.resize_table(
            self.position_table[...], grid.size, grid.canvas, RESIZE[c.position_resize])
        encoded = self.encode(tokens, grid.valid)
        embed = lambda x: (x if self.head is None else self.head(x)).astype(self.dtype)
        pooled = embed(self.pool(encoded, grid, jnp.exp(self.mask_logit_scale[0])))  # [B, 1+N, E]
        return layers.ImageFeatures(
            mask_embeddings=None if grid_masks is None else pooled[:, 1:],
            image_embedding=pooled[:, 0],
            patch_embeddings=embed(self.pool.value_path(encoded)) if dense else None,
            patch_valid=grid.valid)

    def encode(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        """Blocks and the norm after them: [B, L, D], [B, L] bool -> [B, L, D] float32."""
        run = layers.rematerialize(self.remat, self.layout)
        tokens = self.layout.rows(tokens.astype(self.dtype))
        for block in self.blocks:
            tokens = self.layout.rows(run(block, tokens, None, valid, None, None, None)[0])
        return self.norm(tokens)


class SigLIPTextTower(nnx.Module):
    """The text tower: nothing is causal, padding is seen, and the last position is the prompt's.

    `remat` as in `layers.rematerialize`.
    """

    def __init__(self, config: SigLIPTextConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat = dtype, remat
        normal = lambda *shape: nnx.Param(
            c.width**-0.5 * jax.random.normal(rngs.params(), shape))
        self.token_embedding = normal(c.vocab_size, c.width)
        self.position_table = normal(c.context_length, c.width)
        self.blocks = _make_blocks(c, dtype=dtype, heads=heads, rngs=rngs)
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(
            c.width, c.embed_dim, dtype=dtype, rngs=rngs) if c.has_head else None

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Embeds prompts.

        Args:
          token_ids: [n, X] int32 with X the context length; each ends with the end token, then
            padding.

        Returns:
          [n, E] in the tower's dtype, not normalised.

        Raises:
          ValueError: prompts of another length.
        """
        num, length = token_ids.shape
        if length != self.config.context_length:
            raise ValueError(f"prompts have {length} tokens, this text tower takes "
                             f"{self.config.context_length}, padding included")
        tokens = self.token_embedding[...][token_ids] + self.position_table[None]
        tokens = tokens.astype(self.dtype)  # [n, X, D]
        seen = jnp.ones((num, length), bool)
        run = layers.rematerialize(self.remat)
        for block in self.blocks:
            tokens, _ = run(block, tokens, None, seen, None, None, None)
        last = self.norm(tokens[:, -1])  # [n, D]
        return last if self.head is None else self.head(last)
