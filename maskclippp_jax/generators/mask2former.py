"""Mask2Former, a generator of masks with classes of its own (Cheng et al. 2022, arXiv 2112.01527).

A Swin, a pixel decoder, a masked-attention decoder and a linear head of classes.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax.generators.mask_decoder import MaskDecoder, MaskDecoderConfig
from maskclippp_jax.generators.pixel_decoder import (
    PixelDecoder,
    PixelDecoderConfig,
    check_padded,
    full_precision,
)
from maskclippp_jax.generators.swin import Swin, SwinConfig
from maskclippp_jax.models import layers

# ImageNet's statistics of RGB on 0..255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class Mask2FormerConfig:
    image: SwinConfig
    pixel_decoder: PixelDecoderConfig
    decoder: MaskDecoderConfig
    num_classes: int               # without "no object"
    short_side: int | None = None  # pixels; pictures are resized so; None: they stay as they are

    patch_size = 32  # pixels; sides of the input are multiples of it
    stride = 4       # pixels of the input to a cell of the masks

    @classmethod
    def of(cls, image: SwinConfig, num_queries: int, num_classes: int, **settings
           ) -> "Mask2FormerConfig":
        return cls(image, PixelDecoderConfig(image.widths), MaskDecoderConfig(num_queries),
                   num_classes, **settings)

    @classmethod
    def coco_panoptic_tiny(cls) -> "Mask2FormerConfig":
        """maskformer2_swin_tiny_bs16_50ep_final_9fd0ae, 47.44 M parameters."""
        return cls.of(SwinConfig.tiny(), num_queries=100, num_classes=133)

    @classmethod
    def coco_panoptic_small(cls) -> "Mask2FormerConfig":
        """maskformer2_swin_small_bs16_50ep_final_a407fd, 68.75 M parameters."""
        return cls.of(SwinConfig.small(), num_queries=100, num_classes=133)

    @classmethod
    def coco_panoptic_base(cls) -> "Mask2FormerConfig":
        """maskformer2_swin_base_IN21k_384_bs16_50ep_final_54b88a, 106.92 M parameters."""
        return cls.of(SwinConfig.base(), num_queries=100, num_classes=133)

    @classmethod
    def coco_panoptic_large(cls) -> "Mask2FormerConfig":
        """maskformer2_swin_large_IN21k_384_bs16_100ep_final_f07440, 215.54 M parameters."""
        return cls.of(SwinConfig.large(), num_queries=200, num_classes=133, short_side=800)

    def make(self, **settings) -> "Mask2Former":
        return Mask2Former(self, **settings)


class Predictions(typing.NamedTuple):
    """What every query says, in float32."""

    mask_logits: jax.Array   # [B, Q, H/4, W/4], of the whole padded input
    class_logits: jax.Array  # [B, Q, C + 1], "no object" last


class Mask2Former(nnx.Module):
    """The network.

    `dtype` is the arithmetic of the trunk; the decoders run in float32. `heads` is the way for a
    CPU, see `layers.attend` and `swin.Swin`.
    """

    def __init__(self, config: Mask2FormerConfig, *, dtype=jnp.float32, heads: str = "apart",
                 rngs: nnx.Rngs):
        c = self.config = config
        self.image = Swin(c.image, dtype=dtype, heads=heads, rngs=rngs)
        self.pixel_decoder = PixelDecoder(c.pixel_decoder, heads=heads, rngs=rngs)
        self.decoder = MaskDecoder(c.decoder, heads=heads, rngs=rngs)
        self.class_head = nnx.Linear(c.decoder.width, c.num_classes + 1, rngs=rngs)

    def __call__(self, image: jax.Array, image_size: jax.Array) -> Predictions:
        """Masks of pictures; see `fcclip.FCCLIP` for images, padding and errors."""
        return self.predict(self.maps(image, image_size))

    def maps(self, image: jax.Array, image_size: jax.Array) -> list[jax.Array]:
        """The trunk's maps of pictures: [B, H/s, W/s, D] for s = 4, 8, 16, 32."""
        check_padded(image, self.config.patch_size)
        return self.image(layers.normalize(image, image_size, PIXEL_MEAN, PIXEL_STD))

    def predict(self, maps: typing.Sequence[jax.Array]) -> Predictions:
        """From a trunk's maps, finest first."""
        with full_precision():
            queries, mask_logits = self.decoder(self.pixel_decoder(maps))
            return Predictions(mask_logits, self.class_head(queries))
