"""EoMT, a plain Vision Transformer that proposes masks (Kerssies et al. 2025, arXiv 2503.19108).

Class, register and patch tokens of a DINOv2 trunk pass its first blocks alone. Before the last few
blocks learnt queries join them, and all tokens attend to all. Two small heads then make of every
query a mask and logits of classes; there is no decoder.

The public code is github.com/tue-mps/eomt, and EoMT in transformers. Published results are without
masked attention, which training begins with and fades out; so is this unless it is asked for.
"""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.models import layers

# ImageNet's statistics of RGB on 0..255.
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class EoMTConfig:
    image_size: tuple[int, int]  # pixels; height and width of the input, which is padded to it
    width: int                   # channels of a token
    depth: int                   # blocks
    num_heads: int
    mlp_width: int               # hidden channels
    num_classes: int             # without "no object"
    num_queries: int
    query_blocks: int            # last blocks, in which the queries run
    swiglu: bool = False         # a gated MLP, else GELU
    patch_size: int = 16         # pixels
    num_registers: int = 4       # DINOv2's extra tokens
    upscale_blocks: int = 2      # each doubles the sides of the mask features
    norm_epsilon: float = 1e-6
    pixel_mean: tuple[float, float, float] = _PIXEL_MEAN  # of RGB on 0..255
    pixel_std: tuple[float, float, float] = _PIXEL_STD

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches of the input."""
        return tuple(side // self.patch_size for side in self.image_size)

    @property
    def stride(self) -> int:
        """Pixels of the input to a cell of the masks."""
        return self.patch_size // 2**self.upscale_blocks

    @classmethod
    def small(cls, side: int, num_classes: int, num_queries: int = 200) -> "EoMTConfig":
        """DINOv2 ViT-S with queries in three blocks."""
        return cls((side, side), width=384, depth=12, num_heads=6, mlp_width=1536,
                   num_classes=num_classes, num_queries=num_queries, query_blocks=3)

    @classmethod
    def base(cls, side: int, num_classes: int, num_queries: int = 200) -> "EoMTConfig":
        """DINOv2 ViT-B with queries in three blocks."""
        return cls((side, side), width=768, depth=12, num_heads=12, mlp_width=3072,
                   num_classes=num_classes, num_queries=num_queries, query_blocks=3)

    @classmethod
    def large(cls, side: int, num_classes: int, num_queries: int = 200) -> "EoMTConfig":
        """DINOv2 ViT-L with queries in four blocks."""
        return cls((side, side), width=1024, depth=24, num_heads=16, mlp_width=4096,
                   num_classes=num_classes, num_queries=num_queries, query_blocks=4)

    @classmethod
    def giant(cls, side: int, num_classes: int, num_queries: int = 200) -> "EoMTConfig":
        """DINOv2 ViT-g with queries in five blocks."""
        return cls((side, side), width=1536, depth=40, num_heads=24, mlp_width=4096, swiglu=True,
                   num_classes=num_classes, num_queries=num_queries, query_blocks=5)

    @classmethod
    def coco_panoptic_small_640_2x(cls) -> "EoMTConfig":
        """23.98 M parameters."""
        return cls.small(640, 133)

    @classmethod
    def coco_panoptic_base_640_2x(cls) -> "EoMTConfig":
        """93.66 M parameters."""
        return cls.base(640, 133)

    @classmethod
    def coco_panoptic_large_640(cls) -> "EoMTConfig":
        """316.70 M parameters."""
        return cls.large(640, 133)

    @classmethod
    def coco_panoptic_large_1280(cls) -> "EoMTConfig":
        """321.61 M parameters."""
        return cls.large(1280, 133)

    @classmethod
    def coco_panoptic_giant_640(cls) -> "EoMTConfig":
        """1163.62 M parameters."""
        return cls.giant(640, 133)

    @classmethod
    def coco_panoptic_giant_1280(cls) -> "EoMTConfig":
        """1170.99 M parameters."""
        return cls.giant(1280, 133)

    @classmethod
    def ade20k_panoptic_large_640(cls) -> "EoMTConfig":
        """316.71 M parameters."""
        return cls.large(640, 150)

    @classmethod
    def ade20k_panoptic_large_1280(cls) -> "EoMTConfig":
        """321.63 M parameters."""
        return cls.large(1280, 150)

    @classmethod
    def ade20k_panoptic_giant_640(cls) -> "EoMTConfig":
        """1163.65 M parameters."""
        return cls.giant(640, 150)

    @classmethod
    def ade20k_panoptic_giant_1280(cls) -> "EoMTConfig":
        """1171.02 M parameters."""
        return cls.giant(1280, 150)

    @classmethod
    def ade20k_semantic_large_512(cls) -> "EoMTConfig":
        """316.02 M parameters."""
        return cls.large(512, 150, num_queries=100)

    @classmethod
    def cityscapes_semantic_large_1024(cls) -> "EoMTConfig":
        """319.03 M parameters."""
        return cls.large(1024, 19, num_queries=100)

    @classmethod
    def coco_instance_large_640(cls) -> "EoMTConfig":
        """316.64 M parameters."""
        return cls.large(640, 80)

    @classmethod
    def coco_instance_large_1280(cls) -> "EoMTConfig":
        """321.56 M parameters."""
        return cls.large(1280, 80)

    @classmethod
    def quickstart(cls) -> "EoMTConfig":
        """The one that ships with the project, of `launch/pretrain_quickstart_generator.py`."""
        return cls((64, 64), width=128, depth=5, num_heads=2, mlp_width=512, num_classes=59,
                   num_queries=20, query_blocks=3, patch_size=8, upscale_blocks=1)

    def make(self, **settings) -> "EoMT":
        return EoMT(self, **settings)


class Predictions(typing.NamedTuple):
    """What every query says, in float32."""

    mask_logits: jax.Array   # [B, Q, H / stride, W / stride], of the whole padded input
    class_logits: jax.Array  # [B, Q, C + 1], "no object" last


# What a block with queries does: every query sees all patches; or those its own mask, as it is
# before the block, lies on; or those of the last block that cut.
QueryAttention = typing.Literal["open", "cut", "keep"]


class EoMT(nnx.Module):
    """The network.

    The stream of tokens is float32 whatever the arithmetic; it is never normalised itself, not even
    before intermediate predictions.
    """

    def __init__(self, config: EoMTConfig, *, dtype=jnp.float32, heads: str = "apart",
                 rngs: nnx.Rngs):
        """See `layers.attend` for `heads`; `dtype` is that of the arithmetic."""
        c = self.config = config
        self.dtype = dtype
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        linear = lambda width: nnx.Linear(c.width, width, dtype=dtype, rngs=rngs)
        self.patch_embed = layers.PatchConv(
            c.patch_size, 3, c.width, use_bias=True, dtype=dtype, rngs=rngs)
        self.class_token = normal(c.width)
        self.registers = normal(c.num_registers, c.width)
        self.position_table = normal(math.prod(c.grid), c.width)
        self.blocks = nnx.List([
            Block(c, dtype=dtype, heads=heads, rngs=rngs) for _ in range(c.depth)])
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.queries = normal(c.num_queries, c.width)
        self.class_head = linear(c.num_classes + 1)
        self.mask_head = nnx.List([linear(c.width) for _ in range(3)])
        self.upscale = nnx.List([
            Upscale(c.width, c.norm_epsilon, dtype=dtype, rngs=rngs)
            for _ in range(c.upscale_blocks)])

    def __call__(self, image: jax.Array,
                 attention: typing.Sequence[QueryAttention] | None = None) -> Predictions:
        """Masks and classes of pictures; none of them depends on the others in its batch.

        Args:
          image: [B, H, W, 3] RGB in 0..255 of the size of the configuration. What is padding takes
            part like everything else: the published models want it black (0) here.
          attention: what each of the blocks with queries does, first one first; None: all are open.

        Raises:
          ValueError: another size, or another number of blocks.
        """
        c = self.config
        attention = attention or ("open",) * c.query_blocks
        if len(attention) != c.query_blocks:
            raise ValueError(f"got attention of {len(attention)} blocks, wanted "
                             f"{c.query_blocks}: one for each block with queries")
        tokens = self.embed(image)
        for block in self.blocks[:-c.query_blocks]:
            tokens = block(tokens)
        tokens, allowed = self.with_queries(tokens), None
        for block, kind in zip(self.blocks[-c.query_blocks:], attention):
            if kind != "keep":
                allowed = self.allowed(tokens) if kind == "cut" else None
            tokens = block(tokens, allowed)
        return self.predict(tokens)

    def embed(self, image: jax.Array) -> jax.Array:
        """Class token, registers and patches [B, 1+R+L, D] of pictures (see `__call__`)."""
        c = self.config
        if image.shape[1:3] != c.image_size:
            raise ValueError(f"got pictures of {image.shape[1]}x{image.shape[2]} pixels, wanted "
                             f"{c.image_size[0]}x{c.image_size[1]}; a network of this kind has one "
                             "size")
        mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3)
                     for x in (c.pixel_mean, c.pixel_std))
        patches = self.patch_embed((image.astype(jnp.float32) - mean) / std)  # [B, h, w, D]
        patches = patches.reshape(image.shape[0], -1, c.width).astype(jnp.float32)
        first = jnp.concatenate([self.class_token[...][None], self.registers[...]])
        return jnp.concatenate([_for_each(image, first),
                                patches + self.position_table[...][None]], 1)

    def with_queries(self, tokens: jax.Array) -> jax.Array:
        """Puts the queries in front: [B, 1+R+L, D] -> [B, Q+1+R+L, D]."""
        return jnp.concatenate([_for_each(tokens, self.queries[...]), tokens], 1)

    def predict(self, tokens: jax.Array) -> Predictions:
        """The predictions from tokens [B, Q+1+R+L, D], before or behind any block with queries."""
        normal = self.norm(tokens)
        queries = normal[:, :self.config.num_queries]
        features = self._features(self._map_of(normal))
        return Predictions(self._masks(self.mask_embeddings(queries), features),
                           self.class_head(queries).astype(jnp.float32))

    def allowed(self, tokens: jax.Array) -> jax.Array:
        """Which patches lie in the mask of each query, as the tokens [B, Q+1+R+L, D] predict it.

        The masks' bilinear resize to the grid is the mean of the four pixels in the middle of each
        patch. It is linear, so it may be done to the features before they meet the queries.

        Returns:
          [B, Q, L] bool; all False where a query has no patch.
        """
        normal, factor = self.norm(tokens), 2**self.config.upscale_blocks
        features = self._features(self._map_of(normal))  # [B, f h, f w, D]
        batch, height, width, channels = features.shape
        cells = features.reshape(batch, height // factor, factor, width // factor, factor, channels)
        middle = slice(factor // 2 - 1, factor // 2 + 1)
        cells = cells[:, :, middle, :, middle].mean((2, 4))  # [B, h, w, D]
        masks = self._masks(self.mask_embeddings(normal[:, :self.config.num_queries]), cells)
        return (masks > 0).reshape(batch, self.config.num_queries, -1)

    def mask_embeddings(self, queries: jax.Array) -> jax.Array:
        """[B, Q, D] normalised queries -> [B, Q, D], to be multiplied with features of pixels."""
        first, second, third = self.mask_head
        return third(layers.exact_gelu(second(layers.exact_gelu(first(queries)))))

    def upscaled(self, features: jax.Array) -> jax.Array:
        """Features of pixels, from those of patches: [B, h, w, D] -> [B, f h, f w, D]."""
        last = self.upscale[-1].norm
        return self._features(features) * _of_map(last.scale) + _of_map(last.bias)

    def _features(self, features):
        """`upscaled`, but for the scale and bias of the last norm, which `_masks` applies."""
        for block in self.upscale[:-1]:
            features = block.norm(block(features))
        return _standardize(self.upscale[-1](features), self.config.norm_epsilon)

    def _masks(self, embeddings, features):
        """[B, Q, D] and [B, h', w', D] of `_features` -> logits [B, Q, h', w'] float32.

        The last norm's scale and bias go into the embeddings: a pass less over the features.
        """
        last = self.upscale[-1].norm
        embeddings = embeddings.astype(jnp.float32)
        offset = jnp.einsum("bqd,d->bq", embeddings, last.bias[...])
        scaled = (embeddings * last.scale[...][None, None]).astype(self.dtype)
        masks = jnp.einsum("bqd,bhwd->bqhw", scaled, features.astype(self.dtype),
                           preferred_element_type=jnp.float32)
        return masks + offset[..., None, None]

    def _map_of(self, normal):
        """The patches among normalised tokens, as a map [B, h, w, D]."""
        height, width = self.config.grid
        return normal[:, -height * width:].reshape(normal.shape[0], height, width, -1)


class Block(nnx.Module):
    """A pre-norm block whose branches have a learnt scale for each channel (LayerScale)."""

    def __init__(self, c: EoMTConfig, *, dtype, heads: str, rngs: nnx.Rngs):
        norm = lambda: layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.norm1 = norm()
        self.attention = SelfAttention(c.width, c.num_heads, dtype=dtype, heads=heads,
                                       rngs=rngs)
        self.scale1 = nnx.Param(jnp.ones(c.width))
        self.norm2 = norm()
        self.mlp = (layers.SwiGLU(c.width, c.mlp_width, inner_norm=None, dtype=dtype, rngs=rngs)
                    if c.swiglu else
                    layers.MLP(c.width, c.mlp_width, layers.exact_gelu, dtype=dtype, rngs=rngs))
        self.scale2 = nnx.Param(jnp.ones(c.width))

    def __call__(self, tokens, allowed=None):
        """[B, T, D] float32 -> the same; `allowed`: see `SelfAttention`."""
        branch = self.attention(self.norm1(tokens), allowed).astype(jnp.float32)
        tokens = tokens + self.scale1[...][None, None] * branch
        branch = self.mlp(self.norm2(tokens)).astype(jnp.float32)
        return tokens + self.scale2[...][None, None] * branch


class SelfAttention(nnx.Module):
    """Attention of all tokens to all."""

    def __init__(self, width: int, num_heads: int, *, dtype, heads: str, rngs: nnx.Rngs):
        linear = lambda: nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.num_heads, self.heads = num_heads, heads
        self.query, self.key, self.value, self.out = (linear() for _ in range(4))

    def __call__(self, x, allowed=None):
        """[B, T, D] -> the same.

        Args:
          x: tokens, queries first and patches last.
          allowed: [B, Q, L] bool, the patches that each query may see, or None: all. Nothing else
            is ever cut, so a query without any patch still sees queries, class and registers.
        """
        queries, keys, values = (layers.split_heads(f(x), self.num_heads)
                                 for f in (self.query, self.key, self.value))  # [B, T, A, K]
        attend = lambda q, allowed=None: layers.attend(
            q, keys, values, allowed=allowed, heads=self.heads)
        if allowed is None:
            mixed = attend(queries)
        else:  # the other tokens apart, for which no table of [T, T] is needed
            count, patches = allowed.shape[1:]
            seen = jnp.pad(allowed, ((0, 0), (0, 0), (x.shape[1] - patches, 0)),
                           constant_values=True)  # [B, Q, T]
            mixed = jnp.concatenate([attend(queries[:, :count], seen),
                                     attend(queries[:, count:])], 1)
        return self.out(layers.merge_heads(mixed))


class Upscale(nnx.Module):
    """Doubles the sides of a map; what calls it applies `norm`, the block's last layer."""

    def __init__(self, width: int, epsilon: float, *, dtype, rngs: nnx.Rngs):
        self.conv1 = DoublingConv(width, dtype=dtype, rngs=rngs)
        self.conv2 = DepthwiseConv(width, dtype=dtype, rngs=rngs)
        self.norm = layers.layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        """[B, h, w, D] -> [B, 2 h, 2 w, D]."""
        return self.conv2(self.conv1(x, layers.exact_gelu))


class DoublingConv(nnx.Module):
    """A transposed 2x2 convolution of stride 2: no overlap, so one matrix product a cell."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(nnx.initializers.lecun_normal(in_axis=0, out_axis=(1, 2, 3))(
            rngs.params(), (width, 2, 2, width)))  # in, row, column, out
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x, activation: typing.Callable):
        """[B, h, w, D] -> [B, 2 h, 2 w, D], each number passed through the activation.

        That is done before pixels come to their places, in one pass with the product.
        """
        batch, height, width, channels = x.shape
        cells = jnp.einsum("bhwi,iyxo->bhwyxo", x.astype(self.dtype),
                           self.kernel[...].astype(self.dtype))
        cells = activation(cells + self.bias[...].astype(self.dtype)[None, None, None, None, None])
        return cells.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, channels)


class DepthwiseConv(nnx.Module):
    """A 3x3 convolution of every channel by itself, without bias; outside the map is 0.

    Written as nine shifted products, in one pass over the map; XLA's convolution by groups takes
    seven times as long on a CPU.
    """

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 3, width)) / 3)

    def __call__(self, x):
        """[B, h, w, D] -> the same."""
        height, width = x.shape[1:3]
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        kernel = self.kernel[...].astype(self.dtype)
        return sum(padded[:, i:i + height, j:j + width] * kernel[i, j][None, None, None]
                   for i in range(3) for j in range(3))


def resize_position_table(table: jax.Array, old: tuple[int, int], new: tuple[int, int]
                          ) -> jax.Array:
    """A position table for pictures of another size, as timm resizes it.

    The published tables were made so from DINOv2's. Nobody published results at other sizes than a
    model was trained at.

    Args:
      table: [h w, D] float32, rows of patches after each other.
      old: (h, w).
      new: (h', w').

    Returns:
      [h' w', D] float32: bicubic (a = -0.5), antialiased where it shrinks.
    """
    image = jax.image.resize(table.reshape(*old, -1), (*new, table.shape[-1]), "cubic",
                             antialias=True, precision="highest")
    return image.reshape(-1, table.shape[-1])


def _for_each(batch, rows):
    """The same rows [n, D] for each of a batch: [B, n, D] float32."""
    return jnp.broadcast_to(rows.astype(jnp.float32), (batch.shape[0], *rows.shape))


def _of_map(x):
    """[D] -> [1, 1, 1, D]."""
    return x[...][None, None, None]


def _standardize(x, epsilon: float):
    """A layer norm over the channels of a map without scale and bias, in float32.

    The mean is a product: to a sum XLA's CPU compiler joins the convolution before it, and writes
    each of its shifted maps to memory (at 160x160x768: 0.69 s and 629 MB; so 0.28 s and 159 MB).
    """
    x = x.astype(jnp.float32)
    x = x - jnp.einsum("bhwd,d->bhw", x, jnp.full(x.shape[-1], 1 / x.shape[-1]),
                       precision="highest")[..., None]
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon)
