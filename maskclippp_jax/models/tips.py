"""TIPS and TIPSv2: both towers, with mask tokens that start as one of two class tokens.

The plain towers are those of github.com/google-deepmind/tips (arXiv 2410.16512): a DINOv2 with two
class tokens, the first trained with captions of the web, the second, which has no position, with
made ones; and a text tower whose prompt is the mean of its words. Neither maps to another width.
Mask tokens as in `vit`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax.models import layers, positions, vit
from maskclippp_jax.models.text import cut_after

# Width, blocks and heads of both towers, but for the text tower's blocks.
_B = dict(width=768, depth=12, num_heads=12)
_L = dict(width=1024, depth=24, num_heads=16)
_SO400M = dict(width=1152, depth=27, num_heads=16)
_G = dict(width=1536, depth=40, num_heads=24)


@dataclasses.dataclass(frozen=True)
class TIPSConfig:
    image_size: int   # pixels; side of the square the position table was learnt on
    patch_size: int   # pixels
    width: int        # channels of a token, and joint image-text width
    depth: int        # blocks
    num_heads: int
    mlp_width: int    # hidden channels
    swiglu: bool = False  # a gated MLP, else GELU
    mask_layers: int = 3  # last blocks in which mask tokens run, as many as in the EVA models
    class_token: int = 1  # 1 or 2: which one is the image's embedding, and masks start as
    prefix_visible: bool = False  # whether masks see the class tokens, see `vit.masks_on_keys`
    # Else the tanh form, which the authors' JAX code has, their PyTorch code not; it moves
    # embeddings by 5e-4.
    exact_gelu: bool = True
    mask_threshold: float | None = None  # None: half of each mask's largest value
    norm_epsilon: float = 1e-6
    pixel_mean: tuple[float, float, float] = (0.0,) * 3  # of RGB on 0..255
    pixel_std: tuple[float, float, float] = (255.0,) * 3

    @property
    def embed_dim(self) -> int:
        return self.width

    @classmethod
    def b14(cls) -> "TIPSConfig":
        """TIPSv2 B/14, 86.3 M parameters."""
        return cls(448, 14, **_B, mlp_width=3072)

    @classmethod
    def l14(cls) -> "TIPSConfig":
        """TIPSv2 L/14, 304.0 M parameters."""
        return cls(448, 14, **_L, mlp_width=4096)

    @classmethod
    def so400m14(cls) -> "TIPSConfig":
        """TIPSv2 So400m/14, 413.4 M parameters."""
        return cls(448, 14, **_SO400M, mlp_width=4304)

    @classmethod
    def g14(cls) -> "TIPSConfig":
        """TIPSv2 g/14, 1136.0 M parameters."""
        return cls(448, 14, **_G, mlp_width=4096, swiglu=True)

    def make(self, **settings) -> "TIPSImageTower":
        return TIPSImageTower(self, **settings)


@dataclasses.dataclass(frozen=True)
class TIPSTextConfig:
    context_length: int  # tokens; a shorter prompt may be padded to any length up to it
    vocab_size: int
    width: int           # channels of a token, and joint image-text width
    depth: int           # blocks
    num_heads: int
    mlp_width: int       # hidden channels
    norm_epsilon: float = 1e-5  # 1e-6 in the authors' JAX code; it moves embeddings by 3e-5

    @property
    def embed_dim(self) -> int:
        return self.width

    @classmethod
    def b14(cls) -> "TIPSTextConfig":
        """109.6 M parameters."""
        return cls(64, 32_000, **_B, mlp_width=3072)

    @classmethod
    def l14(cls) -> "TIPSTextConfig":
        """183.9 M parameters."""
        return cls(64, 32_000, **(_L | dict(depth=12)), mlp_width=4096)

    @classmethod
    def so400m14(cls) -> "TIPSTextConfig":
        """448.3 M parameters."""
        return cls(64, 32_000, **_SO400M, mlp_width=4304)

    @classmethod
    def g14(cls) -> "TIPSTextConfig":
        """389.1 M parameters."""
        return cls(64, 32_000, **(_G | dict(depth=12)), mlp_width=6144)

    def make(self, **settings) -> "TIPSTextTower":
        return TIPSTextTower(self, **settings)


class TIPSImageTower(nnx.Module):
    """The image tower; `remat` as in `layers.rematerialize`."""

    def __init__(self, config: TIPSConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        c = self.config = config
        if c.class_token not in (1, 2):
            raise ValueError(f"class_token is {c.class_token}; a TIPS has the class tokens 1 and 2")
        self.dtype, self.remat, self.layout = dtype, remat, layout
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        grid = c.image_size // c.patch_size
        self.patch_embed = layers.PatchConv(
            c.patch_size, 3, c.width, use_bias=True, dtype=dtype, rngs=rngs)
        self.class_token, self.second_class_token = normal(c.width), normal(c.width)
        self.position_table = normal(1 + grid * grid, c.width)
        mlp = lambda: (layers.SwiGLU(c.width, c.mlp_width, dtype=dtype, rngs=rngs) if c.swiglu
                       else layers.MLP(c.width, c.mlp_width, layers.gelu(c.exact_gelu),
                                       dtype=dtype, rngs=rngs))
        self.blocks = vit.make_blocks(
            c.depth, c.width, c.num_heads, c.norm_epsilon, mlp, prefix_tokens=2, layer_scale=True,
            dtype=dtype, heads=heads, rngs=rngs)
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        # As in `EvaViT`.
        self.mask_logit_scale = nnx.Param(jnp.full((c.mask_layers, c.num_heads), -5.0))

    grid = layers.token_grid

    def __call__(self, image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None = None,
                 *, dense: bool = False, key: jax.Array | None = None) -> layers.ImageFeatures:
        """Embeds images, and every mask in them; see `EvaViT.__call__`."""
        c = self.config
        grid = layers.lay_grid(image, image_size, grid_masks, c.patch_size)
        passed = vit.pass_blocks(
            self.blocks, self.embed(image, image_size, grid), grid, remat=self.remat,
            mask_logit_scale=self.mask_logit_scale[...], mask_threshold=c.mask_threshold,
            layout=self.layout, start=c.class_token - 1, prefix_visible=c.prefix_visible, read=2)
        return layers.ImageFeatures(
            mask_embeddings=None if grid_masks is None else self.norm(passed.mask_tokens),
            image_embedding=self.norm(passed.tokens[:, c.class_token - 1]),
            patch_embeddings=self.norm(self.blocks[-1].value_path(passed.entering[:, 2:]))
            if dense else None, patch_valid=grid.valid)

    def embed(self, image: jax.Array, image_size: jax.Array, grid: layers.Grid) -> jax.Array:
        """The tokens that enter the first block: [B, 2+L, D]."""
        c = self.config
        patches = vit.embed_patches(
            self.patch_embed, image, image_size, c.pixel_mean, c.pixel_std)  # [B, L, D]
        table = positions.resize_position_table(
            self.position_table[...], grid.size, grid.canvas, positions.antialiased_matrix)
        first = self.class_token[...][None, None] + table[:, :1]  # [B, 1, D]
        rest = vit.prepend([self.second_class_token[...]], patches + table[:, 1:])
        return self.layout.rows(jnp.concatenate([first, rest], 1).astype(self.dtype))


class TIPSTextTower(nnx.Module):
    """The text tower: words see each other both ways, padding is not seen.

    `remat` as in `layers.rematerialize`.
    """

    def __init__(self, config: TIPSTextConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat = dtype, remat
        self.token_embedding = nnx.Param(
            c.width**-0.5 * jax.random.normal(rngs.params(), (c.vocab_size, c.width)))
        mlp = lambda: layers.MLP(c.width, c.mlp_width, jax.nn.relu, dtype=dtype, rngs=rngs)
        self.blocks = vit.make_blocks(
            c.depth, c.width, c.num_heads, c.norm_epsilon, mlp, prefix_tokens=0, dtype=dtype,
            heads=heads, rngs=rngs)
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Embeds prompts.

        Args:
          token_ids: [n, X] int32 with X at most the context length; 0 is padding.

        Returns:
          [n, E] in the tower's dtype, not normalised; 0 for a prompt without a token.
        """
        c, length = self.config, token_ids.shape[-1]
        if length > c.context_length:
            raise ValueError(f"prompts have {length} tokens, the text tower takes at most "
                             f"{c.context_length}")
        tokens = self.token_embedding[...][token_ids] * c.width**0.5  # [n, X, D]
        tokens = (tokens + sinusoids(length, c.width)[None]).astype(self.dtype)
        is_word = token_ids != 0  # [n, X]
        run = layers.rematerialize(self.remat)
        for block in self.blocks:
            tokens, _ = run(block, tokens, None, is_word, None, None, None)
        words = jnp.where(is_word[..., None], self.norm(tokens).astype(jnp.float32), 0.0)
        mean = words.sum(1) / (is_word.sum(1, keepdims=True) + 1e-8)
        return mean.astype(self.dtype)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Positions of words, [length, width] float32: sines, then cosines, of as many frequencies.

    The last frequency is 1 / 10000, as in "Attention is all you need", arXiv 1706.03762.
    """
    count = width // 2
    frequencies = 10000.0 ** (-np.arange(count) / (count - 1))
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)


def truncate_prompts(token_ids: np.ndarray) -> np.ndarray:
    """Cuts padding [n, X] that no prompt needs (`text.truncate_prompts`); a prompt keeps a token.
    """
    return cut_after(token_ids, max(1, int((token_ids != 0).sum(-1).max())))
