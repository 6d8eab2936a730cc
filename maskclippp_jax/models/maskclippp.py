"""MaskCLIP++: CLIP whose image tower embeds masks too, and a similarity head (arXiv 2412.11464)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    dinotxt,
    eva_vit,
    layers,
    pe,
    siglip,
    similarity,
    text,
    tips,
)

ImageConfig = (eva_vit.EvaViTConfig | clip_vit.ClipViTConfig | clip_convnext.ConvNeXtConfig
               | clip_resnet.ResNetConfig | siglip.SigLIPConfig | pe.PEConfig | tips.TIPSConfig
               | dinotxt.DinoTxtConfig)
TextConfig = text.TextConfig | siglip.SigLIPTextConfig | tips.TIPSTextConfig
SimilarityConfig = similarity.LinearSimilarityConfig | similarity.PseudoTextSimilarityConfig


@dataclasses.dataclass(frozen=True)
class MaskCLIPppConfig:
    image: ImageConfig
    text: TextConfig
    similarity: SimilarityConfig | None  # None: mean over templates
    use_logit_scale: bool = True  # multiply similarities by CLIP's scale
    max_logit_scale: float | None = 100.0  # the scale is cut here; None: never
    has_logit_bias: bool = False  # SigLIP adds a number to all logits; softmax does not see it

    @classmethod
    def eva02_b16(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls(eva_vit.EvaViTConfig.eva02_b16(), text.TextConfig.eva02_b16(),
                   similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def eva02_l14_336(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls(eva_vit.EvaViTConfig.eva02_l14_336(), text.TextConfig.eva02_l14_336(),
                   similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def eva01_g14_plus(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls(eva_vit.EvaViTConfig.eva01_g14_plus(), text.TextConfig.clip(1024, 24),
                   similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def of_siglip(cls, image: siglip.SigLIPConfig, text: siglip.SigLIPTextConfig,
                  head: SimilarityConfig | None = None) -> "MaskCLIPppConfig":
        """A SigLIP or SigLIP 2 of two towers; its scale of 109 to 118 is not cut."""
        return cls(image, text, head, max_logit_scale=None, has_logit_bias=True)

    @classmethod
    def of_uncut(cls, image: pe.PEConfig | tips.TIPSConfig | dinotxt.DinoTxtConfig,
                 text: TextConfig, head: SimilarityConfig | None = None) -> "MaskCLIPppConfig":
        """A model whose scale is used as it was published, 197 in TIPSv2 B/14."""
        return cls(image, text, head, max_logit_scale=None)

    @classmethod
    def tipsv2_l14(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_uncut(tips.TIPSConfig.l14(), tips.TIPSTextConfig.l14(),
                            similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def pe_core_l14_336(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_uncut(pe.PEConfig.l14_336(),
                            text.TextConfig.clip(1024, 24, context_length=32),
                            similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def dinotxt_l16(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_uncut(dinotxt.DinoTxtConfig.l16(), dinotxt.text_config(),
                            similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def siglip2_b16_256(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_siglip(siglip.SigLIPConfig.b16(256), siglip.SigLIPTextConfig.siglip2("B"),
                             similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def siglip2_b16_512(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_siglip(siglip.SigLIPConfig.b16(512), siglip.SigLIPTextConfig.siglip2("B"),
                             similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def siglip2_l16_512(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_siglip(siglip.SigLIPConfig.l16(512), siglip.SigLIPTextConfig.siglip2("L"),
                             similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def siglip2_so400m16_512(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_siglip(siglip.SigLIPConfig.so400m16(512),
                             siglip.SigLIPTextConfig.siglip2("So400m"),
                             similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def siglip2_b16_naflex(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_siglip(siglip.SigLIPConfig.b16_naflex(), siglip.SigLIPTextConfig.siglip2("B"),
                             similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def siglip2_so400m16_naflex(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls.of_siglip(siglip.SigLIPConfig.so400m16_naflex(),
                             siglip.SigLIPTextConfig.siglip2("So400m"),
                             similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def convnext_base_w_320(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls._convnext(clip_convnext.ConvNeXtConfig.base_w_320(), text.TextConfig.clip(640),
                             num_templates)

    @classmethod
    def convnext_large_d_320(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls._convnext(clip_convnext.ConvNeXtConfig.large_d_320(),
                             text.TextConfig.clip(768, 16), num_templates)

    @classmethod
    def convnext_xxlarge(cls, num_templates: int) -> "MaskCLIPppConfig":
        return cls._convnext(clip_convnext.ConvNeXtConfig.xxlarge(),
                             text.TextConfig.clip(1024, 24), num_templates)

    @classmethod
    def _convnext(cls, image, text_config, num_templates) -> "MaskCLIPppConfig":
        """The head's layer norm sets the scale of the logits, in place of CLIP's."""
        head = similarity.PseudoTextSimilarityConfig(num_templates, image.embed_dim)
        return cls(image, text_config, head, use_logit_scale=False)

    @classmethod
    def rn50x16(cls, num_templates: int) -> "MaskCLIPppConfig":
        """OpenAI's weights want QuickGELU in the text tower."""
        return cls(clip_resnet.ResNetConfig.rn50x16(),
                   dataclasses.replace(text.TextConfig.clip(768), quick_gelu=True),
                   similarity.LinearSimilarityConfig(num_templates))

    @classmethod
    def quickstart(cls, num_templates: int) -> "MaskCLIPppConfig":
        """The small model that ships with the project (launch/pretrain_quickstart.py)."""
        return cls(eva_vit.EvaViTConfig.quickstart(), text.TextConfig.quickstart(),
                   similarity.LinearSimilarityConfig(num_templates))


class MaskCLIPpp(nnx.Module):
    """Encoders and similarity head.

    `dtype` is the arithmetic of the towers; parameters, logits and softmax are float32. `heads`,
    `remat` and `layout` are about speed and memory only (`layers.attend`,
    `layers.rematerialize`, `layers.Layout`).
    """

    def __init__(self, config: MaskCLIPppConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", layout: layers.Layout = layers.Layout(), rngs: nnx.Rngs):
        self.config = config
        self.image = config.image.make(dtype=dtype, heads=heads, remat=remat,
                                       layout=layout, rngs=rngs)
        self.text = config.text.make(dtype=dtype, heads=heads, remat=remat, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32))  # a logarithm
        if config.has_logit_bias:
            self.logit_bias = nnx.Param(jnp.asarray(-10.0))
        if config.similarity is not None:
            self.similarity = config.similarity.make(rngs=rngs)

    def encode_image(self, image, image_size, grid_masks=None, *, dense=False, key=None):
        """See `eva_vit.EvaViT.__call__`; all image towers are called alike.

        `dense` is also what the similarity head asks for.
        """
        head = self.config.similarity
        dense = dense or (head is not None and head.needs_patches)
        return self.image(image, image_size, grid_masks, dense=dense, key=key)

    def encode_text(self, token_ids: jax.Array) -> jax.Array:
        """[n, X] int32 -> [n, E], not normalised."""
        return self.text(token_ids)

    def fold(self, text_embeddings: jax.Array) -> similarity.Names:
        """What `classify` takes for text embeddings [S, T, E] of a vocabulary: with their templates
        folded once, where the head allows it."""
        head = similarity.fold_mean if self.config.similarity is None else self.similarity.fold
        return head(text_embeddings)

    def classify(self, features: layers.ImageFeatures, text_embeddings: similarity.Names, *,
                 key: jax.Array | None = None) -> jax.Array:
        """Logits of every mask for every name.

        Args:
          features: of `encode_image`.
          text_embeddings: [S, T, E] unit vectors, one row a name, one column a template; or what
            `fold` gave of them.
          key: source of randomness in training; None: evaluation.

        Returns:
          [B, N, S] float32. Of a SigLIP they are logits of a sigmoid as well.
        """
        c, scale, condition = self.config, 1.0, None
        if c.use_logit_scale:
            scale = jnp.exp(self.logit_scale[...])
            scale = scale if c.max_logit_scale is None else jnp.minimum(scale, c.max_logit_scale)
        if c.similarity is not None and c.similarity.needs_patches:
            condition = similarity.Condition(features.patch_embeddings, features.patch_valid, key)
        head = similarity.mean_similarity if c.similarity is None else self.similarity
        logits = head(features.mask_embeddings, text_embeddings, scale, condition)
        return logits + self.logit_bias[...] if c.has_logit_bias else logits


def class_logits(name_logits: jax.Array, synonym_class: jax.Array) -> jax.Array:
    """The best name of every class.

    Args:
      name_logits: [B, N, S] float32.
      synonym_class: [S] int32, class of every name; names of one class are contiguous, so that this
        is one segment maximum. Padding names carry the class S or more and are left out.

    Returns:
      [B, N, S] float32: class c in column c, -inf in the columns beyond the last class. As wide as
      the names are, so that a vocabulary with other classes needs no new program.
    """
    by_name = jnp.moveaxis(name_logits, -1, 0)  # [S, B, N]
    best = jax.ops.segment_max(by_name, synonym_class, num_segments=by_name.shape[0],
                               indices_are_sorted=True)
    return jnp.moveaxis(best, 0, -1)
