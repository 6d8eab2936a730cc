"""CLIP's modified ResNets, with masks pooled by the attention head.

The trunk is the one of Radford et al. 2021 (arXiv 2103.00020, section 2.4): three convolutions in
the stem, means instead of strided convolutions, and attention pooling with one query, the mean of
the cells. For a mask the same query sees only the cells under it (MaskCLIP++, arXiv 2412.11464).

Only the 3x3 convolutions, the mean and the pooling look sideways. What lies beyond an image's own
next multiple of 32 pixels is set to zero, or hidden, before each of them, so the canvas does not
matter. Neither does it in training, where batch norms take mean and variance of all cells of all
images of the batch, on whatever devices: cells beyond an image do not count.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers, positions

_STRIDE = 32  # pixels; side of a cell of the last feature map
_EXPANSION = 4  # channels of a bottleneck's output, in widths of its middle


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    image_size: int                    # pixels; side of the square images of pre-training
    width: int                         # channels of the stem; stages have 1, 2, 4, 8 times as many
    depths: tuple[int, int, int, int]  # blocks of each stage
    num_heads: int                     # of the pooling
    embed_dim: int                     # joint image-text width
    mask_threshold: float | None = None  # None: half of each mask's largest value
    norm_epsilon: float = 1e-5

    @classmethod
    def rn50(cls) -> "ResNetConfig":
        """RN50, 38.32 M parameters."""
        return cls(image_size=224, width=64, depths=(3, 4, 6, 3), num_heads=32, embed_dim=1024)

    @classmethod
    def rn101(cls) -> "ResNetConfig":
        """RN101, 56.26 M parameters."""
        return cls(image_size=224, width=64, depths=(3, 4, 23, 3), num_heads=32, embed_dim=512)

    @classmethod
    def rn50x4(cls) -> "ResNetConfig":
        """RN50x4, 87.14 M parameters."""
        return cls(image_size=288, width=80, depths=(4, 6, 10, 6), num_heads=40, embed_dim=640)

    @classmethod
    def rn50x16(cls) -> "ResNetConfig":
        """RN50x16, 167.33 M parameters."""
        return cls(image_size=384, width=96, depths=(6, 8, 18, 8), num_heads=48, embed_dim=768)

    @classmethod
    def rn50x64(cls) -> "ResNetConfig":
        """RN50x64, 420.38 M parameters."""
        return cls(image_size=448, width=128, depths=(3, 15, 36, 10), num_heads=64, embed_dim=1024)

    @property
    def patch_size(self) -> int:
        """Side of a grid cell in pixels; canvases are multiples of it."""
        return _STRIDE

    def make(self, **settings) -> "ResNet":
        return ResNet(self, **settings)


class Statistic(nnx.Param):
    """Stored mean or variance of a batch norm: a parameter in every file, but never trained."""


class ResNet(nnx.Module):
    """The image tower; `remat` as in `layers.rematerialize`, for every bottleneck."""

    def __init__(self, config: ResNetConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat, self.layout = dtype, remat, layout
        self.stem = Stem(c, dtype=dtype, rngs=rngs)
        self.stages = nnx.List([])
        channels = c.width
        for i, depth in enumerate(c.depths):
            blocks = nnx.List([])
            for j in range(depth):
                blocks.append(Bottleneck(channels, c.width << i, 2 if i and not j else 1,
                                         c.norm_epsilon, dtype=dtype, rngs=rngs))
                channels = _EXPANSION * (c.width << i)
            self.stages.append(blocks)
        self.pool = AttentionPool(c, channels, dtype=dtype, heads=heads, rngs=rngs)
        # As in `EvaViT`, without blocks: the head pools once.
        self.mask_logit_scale = nnx.Param(jnp.full(c.num_heads, -5.0))

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
            make an empty mask, which sees the whole image. None: no masks.
          dense: also embed every cell (its own value, MaskCLIP's way).
          key: given in training: batch norms normalise by the batch, and its statistics are
            returned. Nothing is random. None: they normalise by the stored statistics.

        Returns:
          ImageFeatures in the tower's dtype.

        Raises:
          ValueError: canvas not a multiple of 32, or masks on another grid.
        """
        grid = layers.lay_grid(image, image_size, grid_masks, _STRIDE)
        by_batch = key is not None
        run = layers.rematerialize(self.remat, self.layout, static=(2,))
        x, stem = self.stem(layers.normalize(image, image_size), grid, by_batch)
        x = self.layout.rows(x)
        stages: dict = {}
        for i, blocks in enumerate(self.stages):
            for j, block in enumerate(blocks):
                x, found = run(block, x, layers.inside_map(x, grid), by_batch)
                x = self.layout.rows(x)
                stages.setdefault(i, {})[j] = found
        features = self.pool(x, grid, jnp.exp(self.mask_logit_scale[...]), dense=dense)
        return features._replace(statistics=dict(stem=stem, stages=stages) if by_batch else None)


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, in float32."""

    def __init__(self, channels: int, epsilon: float, *, dtype):
        self.dtype, self.epsilon = dtype, epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.running_mean = Statistic(jnp.zeros(channels))
        self.running_var = Statistic(jnp.ones(channels))

    def __call__(self, x, inside, by_batch: bool):
        """Normalises a map.

        Args:
          x: [B, h, w, D].
          inside: [B, h, w] bool, the cells that count.
          by_batch: by mean and variance of the batch, else by the stored ones.

        Returns:
          Like x; and with `by_batch` dict(running_mean, running_var) of the batch, each [D], the
          variance being the unbiased one, which is what is stored (torch's rule); else {}.
        """
        found = {}
        mean, variance = self.running_mean[...], self.running_var[...]
        x = x.astype(jnp.float32)
        if by_batch:
            weights = inside[..., None].astype(jnp.float32)
            count = weights.sum()
            mean = (x * weights).sum((0, 1, 2)) / count
            square = jnp.square(x - mean[None, None, None]) * weights
            variance = square.sum((0, 1, 2)) / count
            found = jax.lax.stop_gradient(dict(
                running_mean=mean, running_var=variance * count / jnp.maximum(count - 1, 1)))
        factor = self.scale[...] * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias[...] - mean * factor
        x = x * factor[None, None, None] + shift[None, None, None]
        return x.astype(self.dtype), found


def follow_statistics(stored: dict, batch: dict, momentum: float = 0.1) -> dict:
    """Running averages after a batch: both are nested dicts of the same arrays.

    The momentum is torch's, which the public models were trained with.
    """
    return jax.tree.map(lambda old, new: (1 - momentum) * old + momentum * new, stored, batch)


class Conv(nnx.Module):
    """A convolution without bias, 3x3 (zeros around) or 1x1."""

    def __init__(self, size: int, channels: int, width: int, stride: int = 1, *, dtype,
                 rngs: nnx.Rngs):
        self.dtype, self.stride = dtype, stride
        self.kernel = nnx.Param(nnx.initializers.he_normal()(
            rngs.params(), (size, size, channels, width)))  # HWIO

    def __call__(self, x):
        around = (self.kernel.shape[0] // 2,) * 2
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype), self.kernel[...].astype(self.dtype), (self.stride,) * 2,
            (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC"))


class Stem(nnx.Module):
    """[B, H, W, 3] -> [B, H/4, W/4, D]."""

    def __init__(self, c: ResNetConfig, *, dtype, rngs: nnx.Rngs):
        half = c.width // 2
        norm = lambda channels: BatchNorm(channels, c.norm_epsilon, dtype=dtype)
        self.conv1, self.norm1 = Conv(3, 3, half, 2, dtype=dtype, rngs=rngs), norm(half)
        self.conv2, self.norm2 = Conv(3, half, half, dtype=dtype, rngs=rngs), norm(half)
        self.conv3, self.norm3 = Conv(3, half, c.width, dtype=dtype, rngs=rngs), norm(c.width)

    def __call__(self, x, grid, by_batch):
        """The map, and statistics as of `BatchNorm`, by name."""
        x = self.conv1(x)
        inside, found = layers.inside_map(x, grid), {}
        x, found["norm1"] = self.norm1(x, inside, by_batch)
        x = self.conv2(_zero_outside(jax.nn.relu(x), inside))
        x, found["norm2"] = self.norm2(x, inside, by_batch)
        x = self.conv3(_zero_outside(jax.nn.relu(x), inside))
        x, found["norm3"] = self.norm3(x, inside, by_batch)
        return _halve(jax.nn.relu(x)), found


class Bottleneck(nnx.Module):
    def __init__(self, channels: int, width: int, stride: int, epsilon: float, *, dtype,
                 rngs: nnx.Rngs):
        norm = lambda channels: BatchNorm(channels, epsilon, dtype=dtype)
        self.stride = stride
        out = _EXPANSION * width
        self.conv1, self.norm1 = Conv(1, channels, width, dtype=dtype, rngs=rngs), norm(width)
        self.conv2, self.norm2 = Conv(3, width, width, dtype=dtype, rngs=rngs), norm(width)
        self.conv3, self.norm3 = Conv(1, width, out, dtype=dtype, rngs=rngs), norm(out)
        changes = stride > 1 or channels != out
        self.shortcut = Shortcut(channels, out, epsilon, dtype=dtype,
                                 rngs=rngs) if changes else None

    def __call__(self, x, inside, by_batch):
        """A block.

        Args:
          x: [B, h, w, D].
          inside: [B, h, w] bool, what of it lies inside of images.
          by_batch: see `BatchNorm`.

        Returns:
          The next map, and statistics as of `BatchNorm`, by name.
        """
        found = {}
        branch, found["norm1"] = self.norm1(self.conv1(x), inside, by_batch)
        branch = self.conv2(_zero_outside(jax.nn.relu(branch), inside))
        branch, found["norm2"] = self.norm2(branch, inside, by_batch)
        branch = jax.nn.relu(branch)
        if self.stride > 1:
            branch, x, inside = _halve(branch), _halve(x), inside[:, ::2, ::2]
        branch, found["norm3"] = self.norm3(self.conv3(branch), inside, by_batch)
        if self.shortcut is not None:
            x, found["shortcut"] = self.shortcut(x, inside, by_batch)
        return jax.nn.relu(branch + x), found


class Shortcut(nnx.Module):
    def __init__(self, channels: int, width: int, epsilon: float, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv(1, channels, width, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(width, epsilon, dtype=dtype)

    def __call__(self, x, inside, by_batch):
        x, found = self.norm(self.conv(x), inside, by_batch)
        return x, dict(norm=found)


class AttentionPool(nnx.Module):
    """Attention with the mean of all cells as the only query; masks hide cells from it."""

    def __init__(self, c: ResNetConfig, channels: int, *, dtype, heads: str, rngs: nnx.Rngs):
        linear = lambda width: nnx.Linear(channels, width, dtype=dtype, rngs=rngs)
        self.config, self.dtype, self.heads = c, dtype, heads
        cells = (c.image_size // _STRIDE)**2
        self.position_table = nnx.Param(
            channels**-0.5 * jax.random.normal(rngs.params(), (1 + cells, channels)))
        self.query, self.key, self.value = linear(channels), linear(channels), linear(channels)
        self.out = linear(c.embed_dim)

    def __call__(self, x, grid, mask_scale, *, dense):
        """x [B, h, w, D], where images and masks lie, mask_scale [A] -> ImageFeatures."""
        heads = lambda t: layers.split_heads(t, self.config.num_heads)
        cells = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)  # [B, L, D]
        weights = grid.valid.astype(jnp.float32)
        mean = jnp.einsum("bl,bld->bd", weights, cells) / weights.sum(-1, keepdims=True)
        tokens = jnp.concatenate([mean[:, None], cells], 1)  # [B, 1+L, D]
        tokens = tokens + positions.resize_position_table(
            self.position_table[...], grid.size, grid.canvas)
        tokens = tokens.astype(self.dtype)
        query, keys = heads(self.query(tokens[:, :1])), heads(self.key(tokens))
        values = self.value(tokens)  # [B, 1+L, D]

        def pool(queries, first, valid, **masks):
            mixed = layers.attend(queries, keys[:, first:], heads(values[:, first:]),
                                  allowed=valid[:, None], heads=self.heads, **masks)
            return self.out(layers.merge_heads(mixed))

        image = pool(query, 0, jnp.pad(grid.valid, ((0, 0), (1, 0)), constant_values=True))
        masks = None
        if grid.masks is not None:
            shape = x.shape[0], grid.masks.shape[1], *query.shape[2:]
            queries = jnp.broadcast_to(query, shape)  # the same for all masks
            masks = pool(queries, 1, grid.valid, masks=grid.masks, mask_scale=mask_scale,
                         inside=layers.inside_masks(grid.masks, self.config.mask_threshold))
        patches = None
        if dense:  # a cell sees itself; all others lie 100 lower, which logits may exceed
            itself = jnp.eye(cells.shape[1], dtype=bool)[None]
            patches = pool(heads(self.query(tokens[:, 1:])), 1, grid.valid, masks=jnp.zeros_like(
                itself, jnp.float32), inside=itself, mask_scale=jnp.ones_like(mask_scale))
        return layers.ImageFeatures(mask_embeddings=masks, image_embedding=image[:, 0],
                                    patch_embeddings=patches, patch_valid=grid.valid)


def _zero_outside(x: jax.Array, inside: jax.Array) -> jax.Array:
    return jnp.where(inside[..., None], x, 0)


def _halve(x: jax.Array) -> jax.Array:
    """Means of 2x2 cells."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
