"""FC-CLIP, a generator of masks with classes by any names (Yu et al. 2023, arXiv 2308.02487).

A frozen ConvNeXt of CLIP, the pixel decoder and the mask decoder of Mask2Former, and a head that
gives each mask an embedding to be compared with those of names. MAFT+ (Jiao et al. 2024, arXiv
2408.00744) is the same network with other weights and a trunk of its own.

Masks do not depend on names, so one run serves every vocabulary. FC-CLIP's second opinion, CLIP's
features pooled under the masks, is what MaskCLIP++ takes the place of; it is not here.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax.generators.mask_decoder import MaskDecoder, MaskDecoderConfig, ThreeLayers
from maskclippp_jax.generators.pixel_decoder import (
    NORM_EPSILON,
    PixelDecoder,
    PixelDecoderConfig,
    check_padded,
    full_precision,
)
from maskclippp_jax.models import clip_convnext, layers, similarity
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig

_LARGEST_SCALE = 100.0  # of similarities, as in CLIP


@dataclasses.dataclass(frozen=True)
class FCCLIPConfig:
    image: ConvNeXtConfig  # of the CLIP whose trunk it is, and whose texts it compares with
    pixel_decoder: PixelDecoderConfig
    decoder: MaskDecoderConfig
    short_side: int = 800  # pixels; pictures are resized so

    patch_size = 32  # pixels; sides of the input are multiples of it
    stride = 4       # pixels of the input to a cell of the masks

    @classmethod
    def of(cls, image: ConvNeXtConfig, num_queries: int) -> "FCCLIPConfig":
        return cls(image, PixelDecoderConfig(image.widths), MaskDecoderConfig(num_queries))

    @classmethod
    def fcclip_base(cls) -> "FCCLIPConfig":
        """fcclip_coco-pan_clip-convnext-base, 108.01 M parameters."""
        return cls.of(ConvNeXtConfig.base_w_320(), num_queries=250)

    @classmethod
    def fcclip_large(cls) -> "FCCLIPConfig":
        """fcclip_coco-pan_clip-convnext-large, 216.95 M parameters."""
        return cls.of(ConvNeXtConfig.large_d_320(), num_queries=250)

    @classmethod
    def maftp_base(cls) -> "FCCLIPConfig":
        """maftp_b, 107.93 M parameters."""
        return cls.of(ConvNeXtConfig.base_w_320(), num_queries=100)

    @classmethod
    def maftp_large(cls) -> "FCCLIPConfig":
        """maftp_l and maftp_l_pano, 216.87 M parameters."""
        return cls.of(ConvNeXtConfig.large_d_320(), num_queries=100)

    def make(self, **settings) -> "FCCLIP":
        return FCCLIP(self, **settings)


class Predictions(typing.NamedTuple):
    """What every query says, in float32."""

    mask_logits: jax.Array       # [B, Q, H/4, W/4], of the whole padded input
    class_embeddings: jax.Array  # [B, Q, E] unit vectors


class FCCLIP(nnx.Module):
    """The network.

    `dtype` is the arithmetic of the trunk; the decoders run in float32. `heads` is the way for a
    CPU, see `layers.attend` and `clip_convnext.ConvNeXt`.
    """

    def __init__(self, config: FCCLIPConfig, *, dtype=jnp.float32, heads: str = "apart",
                 rngs: nnx.Rngs):
        c = self.config = config
        self.image = Trunk(c.image, dtype=dtype, heads=heads, rngs=rngs)
        self.pixel_decoder = PixelDecoder(c.pixel_decoder, heads=heads, rngs=rngs)
        self.decoder = MaskDecoder(c.decoder, heads=heads, rngs=rngs)
        self.class_head = ClassHead(c.decoder.width, c.decoder.mask_width, c.image.embed_dim,
                                    rngs=rngs)
        self.void_embedding = nnx.Param(jax.random.normal(rngs.params(), (c.image.embed_dim,)))

    def __call__(self, image: jax.Array, image_size: jax.Array) -> Predictions:
        """Masks of pictures, and embeddings to name them by.

        The padding is seen like all else, and changes the masks. Published results are those of one
        picture at a time, padded to the next multiple of 32.

        Args:
          image: [B, H, W, 3] RGB in 0..255, float or uint8, sides multiples of 32.
          image_size: [B, 2] true height and width; what lies beyond does not matter.

        Raises:
          ValueError: sides that are no multiples of 32.
        """
        return self.predict(self.maps(image, image_size))

    def maps(self, image: jax.Array, image_size: jax.Array) -> list[jax.Array]:
        """The trunk's maps of pictures, see `__call__`: [B, H/s, W/s, D] for s = 4, 8, 16, 32."""
        check_padded(image, self.config.patch_size)
        return self.image(layers.normalize(image, image_size))

    def predict(self, maps: typing.Sequence[jax.Array]) -> Predictions:
        """From a trunk's maps, finest first."""
        with full_precision():
            features = self.pixel_decoder(maps)
            queries, mask_logits = self.decoder(features)
            return Predictions(mask_logits, self.class_head(
                queries, mask_logits, features.mask_features))

    def name_logits(self, class_embeddings: jax.Array, names: jax.Array) -> jax.Array:
        """How well masks fit names; the logit of a class is the largest of its names.

        Args:
          class_embeddings: [B, Q, E].
          names: [S, E] unit vectors, of the texts of the CLIP the trunk is from.

        Returns:
          [B, Q, S + 1] float32, the last for a query without a thing to name.
        """
        names = jnp.concatenate([names, similarity.unit(self.void_embedding[...])[None]])
        return self.class_head.compare(class_embeddings, names)


class Trunk(nnx.Module):
    """A ConvNeXt without its head, that gives the maps of all stages and sees all of the canvas."""

    def __init__(self, c: ConvNeXtConfig, *, dtype, heads: str, rngs: nnx.Rngs):
        self.stem = clip_convnext.Stem(c, dtype=dtype, rngs=rngs)
        self.stages = nnx.List([
            clip_convnext.Stage(c.widths[i - 1] if i else None, width, c.norm_epsilon,
                                [0.0] * depth, dtype=dtype, heads=heads, rngs=rngs)
            for i, (width, depth) in enumerate(zip(c.widths, c.depths))])

    def __call__(self, pixels: jax.Array) -> list[jax.Array]:
        """Normalised pixels [B, H, W, 3] -> [B, h, w, D] of each stage."""
        x, maps = self.stem(pixels), []
        for stage in self.stages:
            x = stage.enter(x)
            inside = jnp.ones(x.shape[:3], bool)
            for block in stage.blocks:
                x = block(x, inside, None)
            maps.append(x)
        return maps


class ClassHead(nnx.Module):
    """An embedding of every mask, from the features under it and its query."""

    def __init__(self, width: int, mask_width: int, embed_dim: int, *, rngs: nnx.Rngs):
        self.pool_norm = layers.layer_norm(mask_width, epsilon=NORM_EPSILON, dtype=jnp.float32,
                                           rngs=rngs)
        self.pool = nnx.Linear(mask_width, width, rngs=rngs)
        self.embed = ThreeLayers(width, embed_dim, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32))  # a logarithm

    def __call__(self, queries, mask_logits, mask_features):
        """[B, Q, C], [B, Q, h, w] and [B, h, w, mask_width] -> unit vectors [B, Q, E]."""
        inside = (mask_logits > 0).astype(jnp.float32)
        total = jnp.einsum("bqhw,bhwd->bqd", inside, mask_features, precision="highest")
        pooled = total / (inside.sum((2, 3))[..., None] + 1e-8)
        return similarity.unit(self.embed(self.pool(self.pool_norm(pooled)) + queries))

    def compare(self, embeddings: jax.Array, names: jax.Array) -> jax.Array:
        """Unit vectors [B, Q, E] and [S, E] -> scaled similarities [B, Q, S]."""
        scale = jnp.minimum(jnp.exp(self.logit_scale[...]), _LARGEST_SCALE)
        return scale * jnp.einsum("bqe,se->bqs", embeddings, names, precision="highest")
