"""Swin, the trunk of Mask2Former (Liu et al. 2021, arXiv 2103.14030), with the maps of all stages.

Attention stays within windows, which every second block shifts by half. The public code is that of
Swin for detection: maps are padded with zeros to whole windows behind the norm, and these zeros are
seen; every map that leaves the trunk has a norm of its own.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax.models import layers

_NORM_EPSILON = 1e-5
_OTHER_REGION = -100.0  # added to the logit of a cell from another part of the map


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    width: int                # channels of the first stage; each other has twice as many
    depths: tuple[int, ...]   # blocks of each stage
    num_heads: tuple[int, ...]
    window: int               # cells; side of a window
    patch_size: int = 4       # pixels
    mlp_ratio: int = 4

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the maps."""
        return tuple(self.width * 2**i for i in range(len(self.depths)))

    @classmethod
    def tiny(cls) -> "SwinConfig":
        """27.52 M parameters."""
        return cls(96, (2, 2, 6, 2), (3, 6, 12, 24), window=7)

    @classmethod
    def small(cls) -> "SwinConfig":
        """48.84 M parameters."""
        return cls(96, (2, 2, 18, 2), (3, 6, 12, 24), window=7)

    @classmethod
    def base(cls) -> "SwinConfig":
        """86.88 M parameters."""
        return cls(128, (2, 2, 18, 2), (4, 8, 16, 32), window=12)

    @classmethod
    def large(cls) -> "SwinConfig":
        """195.20 M parameters."""
        return cls(192, (2, 2, 18, 2), (6, 12, 24, 48), window=12)


class Swin(nnx.Module):
    """The stream of tokens is float32; `dtype` is the arithmetic of the layers.

    `heads` is the way for a CPU, as in `layers.attend`: here some windows are looked at, and some
    cells pass through an MLP, at a time.
    """

    def __init__(self, config: SwinConfig, *, dtype=jnp.float32, heads: str = "apart",
                 rngs: nnx.Rngs):
        c = self.config = config
        self.patch_embed = layers.PatchConv(c.patch_size, 3, c.width, use_bias=True, dtype=dtype,
                                            rngs=rngs)
        self.patch_norm = _norm(c.width, dtype, rngs)
        self.stages = nnx.List([
            Stage(c, i, dtype=dtype, heads=heads, rngs=rngs) for i in range(len(c.depths))])
        self.norms = nnx.List([_norm(width, dtype, rngs) for width in c.widths])

    def __call__(self, pixels: jax.Array) -> list[jax.Array]:
        """Normalised pixels [B, H, W, 3] of any size -> [B, h, w, D] of each stage, finest first.

        A side of h cells halves to ceil(h / 2).
        """
        x = self.patch_norm(self.patch_embed(_pad(pixels, self.config.patch_size)))
        x, maps = x.astype(jnp.float32), []
        for stage, norm in zip(self.stages, self.norms):
            x = stage(x)
            maps.append(norm(x))
        return maps


class Stage(nnx.Module):
    """Joins four cells to one (but in the first stage), and runs blocks."""

    def __init__(self, c: SwinConfig, index: int, *, dtype, heads: str, rngs: nnx.Rngs):
        width = c.widths[index]
        self.merge = Merge(width // 2, dtype=dtype, rngs=rngs) if index else None
        self.blocks = nnx.List([
            Block(width, c.num_heads[index], c.window, c.window // 2 if i % 2 else 0,
                  c.mlp_ratio * width, dtype=dtype, heads=heads, rngs=rngs)
            for i in range(c.depths[index])])

    def __call__(self, x):
        x = x if self.merge is None else self.merge(x)
        for block in self.blocks:
            x = block(x)
        return x


class Merge(nnx.Module):
    """[B, h, w, D] -> [B, h / 2, w / 2, 2 D], with a row or column of zeros added to odd sides."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        self.norm = _norm(4 * width, dtype, rngs)
        self.linear = nnx.Linear(4 * width, 2 * width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = _pad(x, 2)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.linear(self.norm(jnp.concatenate(corners, -1))).astype(jnp.float32)


class Block(nnx.Module):
    """Attention within windows and an MLP, each behind a norm."""

    def __init__(self, width: int, num_heads: int, window: int, shift: int, hidden: int, *, dtype,
                 heads: str, rngs: nnx.Rngs):
        self.window, self.shift, self.hidden, self.heads = window, shift, hidden, heads
        self.norm1 = _norm(width, dtype, rngs)
        self.attention = WindowAttention(width, num_heads, window, dtype=dtype, rngs=rngs)
        self.norm2 = _norm(width, dtype, rngs)
        self.mlp = layers.MLP(width, hidden, layers.exact_gelu, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        """[B, h, w, D] float32 -> the same."""
        batch, height, width, channels = x.shape
        w, shift = self.window, self.shift
        y = _pad(self.norm1(x), w)  # [B, h', w', D]
        rows, columns = y.shape[1] // w, y.shape[2] // w
        y = jnp.roll(y, (-shift, -shift), (1, 2))
        windows = y.reshape(batch, rows, w, columns, w, channels).swapaxes(2, 3)
        windows = windows.reshape(-1, w * w, channels)  # [B n, w w, D]
        regions = np.tile(_regions(rows, columns, w, shift), (batch, 1)) if shift else None
        y = self._attend(windows, regions).reshape(batch, rows, columns, w, w, channels)
        y = y.swapaxes(2, 3).reshape(batch, rows * w, columns * w, channels)
        y = jnp.roll(y, (shift, shift), (1, 2))[:, :height, :width]
        x = x + y.astype(jnp.float32)
        y = layers.each_cell(lambda x: self.mlp(self.norm2(x)), x, self.hidden, self.heads)
        return x + y.astype(jnp.float32)

    def _attend(self, windows, regions):
        """`WindowAttention`; on a CPU of as many windows at a time as keep logits in cache."""
        if self.heads != "apart":
            return self.attention(windows, regions)
        size = max(1, layers.IN_CACHE // (self.attention.num_heads * self.window**4))
        return layers.in_parts(lambda part: self.attention(*part), (windows, regions), size)


class WindowAttention(nnx.Module):
    """Attention of the cells of a window, with a learnt bias for each distance."""

    def __init__(self, width: int, num_heads: int, window: int, *, dtype, rngs: nnx.Rngs):
        linear = lambda width_out: nnx.Linear(width, width_out, dtype=dtype, rngs=rngs)
        self.num_heads, self.window = num_heads, window
        self.qkv, self.out = linear(3 * width), linear(width)
        self.bias_table = nnx.Param(0.02 * jax.random.normal(
            rngs.params(), ((2 * window - 1)**2, num_heads)))

    def __call__(self, x, regions):
        """Windows [B n, w w, D], and the part of the map that each cell is of [B n, w w] or None:
        all are of one -> like x."""
        queries, keys, values = (layers.split_heads(part, self.num_heads)
                                 for part in jnp.split(self.qkv(x), 3, -1))  # [B n, w w, A, K]
        logits = jnp.einsum("btak,bsak->bats", queries * queries.shape[-1]**-0.5, keys,
                            preferred_element_type=jnp.float32)
        bias = jnp.moveaxis(self.bias_table[...][distances(self.window)], -1, 0)  # [A, w w, w w]
        logits = logits + bias[None]
        if regions is not None:
            apart = regions[:, :, None] != regions[:, None]
            logits = logits + jnp.where(apart, _OTHER_REGION, 0.0)[:, None]
        weights = jax.nn.softmax(logits, -1).astype(values.dtype)
        return self.out(layers.merge_heads(jnp.einsum("bats,bsak->btak", weights, values)))


def distances(window: int) -> np.ndarray:
    """The row of the bias table for query and key of a window, [w w, w w]."""
    row, column = np.divmod(np.arange(window**2), window)
    apart = lambda x: x[:, None] - x[None] + window - 1
    return apart(row) * (2 * window - 1) + apart(column)


def _regions(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
    """The part of the map that each cell of shifted windows comes from: [n, w w] int32."""
    part = lambda count: np.repeat(np.arange(3, dtype=np.int32),
                                   [(count - 1) * window, window - shift, shift])
    regions = part(rows)[:, None] * 3 + part(columns)[None]  # [h', w']
    regions = regions.reshape(rows, window, columns, window).swapaxes(1, 2)
    return regions.reshape(-1, window**2)


def _pad(x: jax.Array, multiple: int) -> jax.Array:
    """Zeros below and at the right, to multiples of a number of cells."""
    height, width = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))


def _norm(width: int, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return layers.layer_norm(width, epsilon=_NORM_EPSILON, dtype=dtype, rngs=rngs)
