"""ConvNeXt image towers of OpenCLIP, with masks pooled on the last feature map.

The trunk is the one of Liu et al. 2022 (arXiv 2201.03545), as OpenCLIP trained it on LAION-2B.
MaskCLIP++ averages the last map under each soft mask and sends the mean through CLIP's own head;
there is no threshold and nothing learned in between (arXiv 2412.11464).

Only the 7x7 convolutions and the global mean look sideways. What lies beyond an image's own next
multiple of 32 pixels is set to zero before each of them, so the canvas does not matter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax.models import layers

_STRIDE = 32  # pixels; side of a cell of the last feature map


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    image_size: int                      # pixels; side of the square images of pre-training
    widths: tuple[int, int, int, int]    # channels of each stage
    depths: tuple[int, int, int, int]    # blocks of each stage
    embed_dim: int                       # joint image-text width
    head_width: int | None = None        # hidden channels of an MLP head; None: a linear head
    norm_epsilon: float = 1e-6
    drop_path: float = 0.1  # share of images that skip the last block in training; 0 at the first

    @classmethod
    def base_w(cls) -> "ConvNeXtConfig":
        """convnext_base_w, 88.22 M parameters."""
        return cls(image_size=256, widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3),
                   embed_dim=640)

    @classmethod
    def base_w_320(cls) -> "ConvNeXtConfig":
        """convnext_base_w_320: the same, trained on larger images."""
        return dataclasses.replace(cls.base_w(), image_size=320)

    @classmethod
    def large_d(cls) -> "ConvNeXtConfig":
        """convnext_large_d, 199.77 M parameters."""
        return cls(image_size=256, widths=(192, 384, 768, 1536), depths=(3, 3, 27, 3),
                   embed_dim=768, head_width=1536)

    @classmethod
    def large_d_320(cls) -> "ConvNeXtConfig":
        """convnext_large_d_320: the same, trained on larger images."""
        return dataclasses.replace(cls.large_d(), image_size=320)

    @classmethod
    def xxlarge(cls) -> "ConvNeXtConfig":
        """convnext_xxlarge, 846.54 M parameters."""
        return cls(image_size=256, widths=(384, 768, 1536, 3072), depths=(3, 4, 30, 3),
                   embed_dim=1024, norm_epsilon=1e-5)

    @property
    def patch_size(self) -> int:
        """Side of a grid cell in pixels; canvases are multiples of it."""
        return _STRIDE

    def make(self, **settings) -> "ConvNeXt":
        return ConvNeXt(self, **settings)


class ConvNeXt(nnx.Module):
    """The image tower.

    `remat` as in `layers.rematerialize`, for every block. `heads` is the way for a CPU, as in
    `layers.attend`: here it takes each 7x7 convolution as a sum of shifted maps, ten times faster
    there.
    """

    def __init__(self, config: ConvNeXtConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat, self.layout = dtype, remat, layout
        rates = iter(np.linspace(0.0, c.drop_path, sum(c.depths)).tolist())
        self.stem = Stem(c, dtype=dtype, rngs=rngs)
        self.stages = nnx.List([])
        for i, (width, depth) in enumerate(zip(c.widths, c.depths)):
            self.stages.append(Stage(
                c.widths[i - 1] if i else None, width, c.norm_epsilon,
                [next(rates) for _ in range(depth)], dtype=dtype, heads=heads, rngs=rngs))
        width = c.widths[-1]
        self.norm = layers.layer_norm(width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.head = Head(width, c.head_width, c.embed_dim, dtype=dtype, rngs=rngs)

    def grid(self, image_size: jax.Array) -> jax.Array:
        """True grid [B, 2] of images of true size [B, 2] pixels: next multiple of 32 pixels."""
        return -(-image_size // _STRIDE)

    def __call__(self, image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None = None,
                 *, dense: bool = False, key: jax.Array | None = None) -> layers.ImageFeatures:
        """Embeds images, and every mask in them.

        Args:
          image: [B, H, W, 3] RGB in 0..255, uint8 or float, padded at the bottom and right to
            multiples of 32; what the padding holds does not matter.
          image_size: [B, 2] int32, true height and width in pixels, at least 1.
          grid_masks: [B, N, L] float in [0, 1] on the canvas' grid of 32 pixels (`resample`); zeros
            make an empty mask, whose embedding is a constant. None: no masks.
          dense: also embed every cell.
          key: of stochastic depth in training; None: every block acts.

        Returns:
          ImageFeatures in the tower's dtype.

        Raises:
          ValueError: canvas not a multiple of 32, or masks on another grid.
        """
        grid = layers.lay_grid(image, image_size, grid_masks, _STRIDE)
        run = layers.rematerialize(self.remat, self.layout)
        x = self.layout.rows(self.stem(layers.normalize(image, image_size)))
        keys = None if key is None else iter(jax.random.split(key, sum(self.config.depths)))
        for stage in self.stages:
            x = stage.enter(x)  # [B, h, w, D]
            inside = layers.inside_map(x, grid)
            for block in stage.blocks:
                x = self.layout.rows(run(block, x, inside, None if keys is None else next(keys)))

        cells = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, L, D]
        embed = lambda x: self.head(self.norm(x))
        masks = None if grid.masks is None else embed(_average(cells, grid.masks, 1e-6))
        return layers.ImageFeatures(
            mask_embeddings=masks,
            image_embedding=embed(_average(cells, grid.valid[:, None]))[:, 0],
            patch_embeddings=embed(cells) if dense else None, patch_valid=grid.valid)


def _average(cells: jax.Array, weights: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """Weighted means of cells [B, L, D] with weights [B, N, L]: [B, N, D], summed in float32.

    `epsilon` is added to the weights' sum, so that an empty mask gives zeros.
    """
    weights = weights.astype(jnp.float32)
    total = jnp.einsum("bnl,bld->bnd", weights, cells.astype(jnp.float32))
    return (total / (weights.sum(-1, keepdims=True) + epsilon)).astype(cells.dtype)


class Stem(nnx.Module):
    """[B, H, W, 3] -> [B, H/4, W/4, D]."""

    def __init__(self, c: ConvNeXtConfig, *, dtype, rngs: nnx.Rngs):
        self.conv = layers.PatchConv(4, 3, c.widths[0], use_bias=True, dtype=dtype, rngs=rngs)
        self.norm = layers.layer_norm(c.widths[0], epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class Stage(nnx.Module):
    """A halving of the map (but in the first stage, `width_in` None), and blocks."""

    def __init__(self, width_in: int | None, width: int, epsilon: float, rates: list[float], *,
                 dtype, heads: str, rngs: nnx.Rngs):
        self.downsample = None if width_in is None else Downsample(
            width_in, width, epsilon, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([
            Block(width, epsilon, rate, dtype=dtype, heads=heads, rngs=rngs) for rate in rates])

    def enter(self, x):
        return x if self.downsample is None else self.downsample(x)


class Downsample(nnx.Module):
    def __init__(self, width_in: int, width: int, epsilon: float, *, dtype, rngs: nnx.Rngs):
        self.norm = layers.layer_norm(width_in, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.conv = layers.PatchConv(2, width_in, width, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.conv(self.norm(x))


class Block(nnx.Module):
    def __init__(self, width: int, epsilon: float, drop_path: float, *, dtype, heads: str,
                 rngs: nnx.Rngs):
        self.dtype, self.drop_path, self.heads = dtype, drop_path, heads
        self.kernel = nnx.Param(nnx.initializers.truncated_normal(0.02)(
            rngs.params(), (7, 7, 1, width)))  # HWIO, one filter a channel
        self.bias = nnx.Param(jnp.zeros(width))
        self.norm = layers.layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = layers.MLP(width, 4 * width, layers.exact_gelu, dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(width, 1e-6))

    def __call__(self, x, inside, key):
        """x [B, h, w, D], inside [B, h, w] bool, key of stochastic depth or None -> like x."""
        convolve = shifted_convolution if self.heads == "apart" else depthwise_convolution
        branch = convolve(jnp.where(inside[..., None], x, 0.0), self.kernel[...].astype(self.dtype))
        branch = branch + self.bias[None, None, None].astype(self.dtype)
        branch = layers.each_cell(lambda x: self.mlp(self.norm(x)), branch, 4 * x.shape[-1],
                                  self.heads)
        branch = branch * self.gamma[None, None, None].astype(self.dtype)
        if key is not None:
            branch = drop_path(branch, self.drop_path, key)
        return x + branch


class Head(nnx.Module):
    """To the joint width E: one matrix, or two layers; the last has no bias."""

    def __init__(self, width: int, hidden: int | None, embed_dim: int, *, dtype, rngs: nnx.Rngs):
        self.fc1 = None if hidden is None else nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(width if hidden is None else hidden, embed_dim, use_bias=False,
                              dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.fc2(x if self.fc1 is None else layers.exact_gelu(self.fc1(x)))


def drop_path(branch: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Stochastic depth: takes the branch [B, ...] away from a share of the images.

    The other images' branches are scaled up, so that the mean stays.
    """
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, branch / (1 - rate), 0.0).astype(branch.dtype)


def depthwise_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Every channel of x [B, h, w, D] with its own filter of kernel [7, 7, 1, D], zeros around."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1])


def shifted_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as a sum of 49 shifted maps, which a CPU runs in one pass."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    total = jnp.zeros_like(x)
    for i in range(7):
        for j in range(7):
            total = total + padded[:, i:i + height, j:j + width] * kernel[i, j][None, None]
    return total
