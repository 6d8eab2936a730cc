"""Similarity heads: from mask and text embeddings to logits (the PSM of MaskCLIP++).

All are called alike, `head(masks, text_embeddings, scale, condition)`; `mean_similarity` is the one
without parameters. What a head makes of the templates of a vocabulary is the same for all images:
it `fold`s them once, and then takes `Folded` names for text embeddings.

The linear head of the paper is two linear layers over the template axis with nothing between them,
so it *is* one weight per template and a constant. It is folded into the text embeddings: one
matrix product gives the logits, and [masks, names, templates] never exists. The two published
matrices stay the parameters, so that checkpoints and optimiser dynamics are the published ones;
both biases move all classes alike, get no gradient in exact arithmetic, and are kept for the
checkpoint's sake. With the published initialisation the folded weight has mean 0: about half of all
runs start with the sign of the similarities reversed and turn it round in the first steps.

In the pseudo-text head of the ConvNeXt models the names look at the image before they are compared
with masks.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax.models import layers


class Condition(typing.NamedTuple):
    """What a head may know of the images beside the masks."""

    patches: jax.Array          # [B, L, E] embedding of every cell, any length
    valid: jax.Array | None     # [B, L] bool, the cells of each image's own grid; None: all
    key: jax.Array | None = None  # of dropout; None: nothing is dropped (evaluation)


class Folded(typing.NamedTuple):
    """Names whose templates a head has folded."""

    classifiers: jax.Array  # [S, E] float32, not of unit length


Names = jax.Array | Folded  # text embeddings are [S, T, E] unit vectors


@dataclasses.dataclass(frozen=True)
class LinearSimilarityConfig:
    num_templates: int
    width: int = 768  # hidden channels between the two linear layers
    # "published": uniform, the folded weight has a random sign; "mean": it starts as the mean over
    # templates.
    start: str = "published"

    needs_patches = False

    def make(self, *, rngs: nnx.Rngs) -> "LinearSimilarity":
        return LinearSimilarity(self, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class PseudoTextSimilarityConfig:
    num_templates: int
    embed_dim: int                    # E
    num_heads: int = 8
    normalize_condition: bool = True  # patches as unit vectors
    detach_condition: bool = False    # no gradient into the patches
    residual_width: int | None = None  # hidden channels of a linear head beside it; None: without
    own_scale: bool = False           # a learned factor of the logits
    attention_dropout: float = 0.1
    hidden_dropout: float = 0.0

    needs_patches = True

    def make(self, *, rngs: nnx.Rngs) -> "PseudoTextSimilarity":
        return PseudoTextSimilarity(self, rngs=rngs)


class LinearSimilarity(nnx.Module):
    """One learned weight per template, as two matrices."""

    def __init__(self, config: LinearSimilarityConfig, *, rngs: nnx.Rngs):
        if config.start not in ("published", "mean"):
            raise ValueError(f"start is {config.start!r}; it can be published, mean")
        self.corr_in = _torch_linear(config.num_templates, config.width, rngs)
        self.corr_out = _torch_linear(config.width, 1, rngs)
        if config.start == "mean":
            outward = self.corr_out.kernel[..., 0]  # [width]
            missing = 1 / config.num_templates - self.corr_in.kernel[...] @ outward  # [T]
            change = jnp.outer(missing, outward) / jnp.square(outward).sum()
            self.corr_in.kernel[...] = self.corr_in.kernel[...] + change

    def fold(self, text_embeddings: jax.Array) -> Folded:
        return _weighted(_weights(self.corr_in, self.corr_out), text_embeddings)

    def __call__(self, mask_embeddings: jax.Array, text_embeddings: Names,
                 scale: jax.Array, condition: Condition | None = None) -> jax.Array:
        """Logits of every mask for every name.

        Args:
          mask_embeddings: [B, N, E], any length; normalised here.
          text_embeddings: [S, T, E] unit vectors, or `Folded`.
          scale: scalar factor of the similarities.
          condition: not used by this head.

        Returns:
          [B, N, S] float32.
        """
        del condition
        return linear_similarity(
            self.corr_in, self.corr_out, mask_embeddings, text_embeddings, scale)


class PseudoTextSimilarity(nnx.Module):
    """Every name attends to the patches of an image; masks are compared with the result."""

    def __init__(self, config: PseudoTextSimilarityConfig, *, rngs: nnx.Rngs):
        c, e = config, config.embed_dim
        self.config = c
        self.image_projection = _torch_linear(e, e, rngs, use_bias=False)
        # Xavier's uniform distribution of one [E, 3E] matrix, biases 0, as in torch's attention.
        self.qkv = nnx.Linear(e, 3 * e, rngs=rngs, kernel_init=nnx.initializers.xavier_uniform())
        self.out = _torch_linear(e, e, rngs, zero_bias=True)
        self.norm = layers.layer_norm(e, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)
        if c.own_scale:
            self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32))
        if c.residual_width is not None:
            self.corr_in = _torch_linear(c.num_templates, c.residual_width, rngs)
            self.corr_out = _torch_linear(c.residual_width, 1, rngs)

    def fold(self, text_embeddings: jax.Array) -> Names:
        if self.config.residual_width is not None:  # it wants two different means
            return text_embeddings
        return Folded(text_embeddings.astype(jnp.float32).mean(1))

    def __call__(self, mask_embeddings: jax.Array, text_embeddings: Names,
                 scale: jax.Array, condition: Condition) -> jax.Array:
        """Logits of every mask for every name; shapes as in `LinearSimilarity`.

        `scale` concerns the linear head beside this one only: the norm of the names after the layer
        norm is the scale here.
        """
        c = self.config
        mean = (text_embeddings.classifiers if isinstance(text_embeddings, Folded)
                else text_embeddings.astype(jnp.float32).mean(1))
        names = unit(mean)  # [S, E]
        patches = condition.patches.astype(jnp.float32)
        if c.detach_condition:
            patches = jax.lax.stop_gradient(patches)
        if c.normalize_condition:
            patches = unit(patches)
        patches = self.image_projection(patches)  # [B, L, E]
        kernels = jnp.split(self.qkv.kernel[...], 3, -1)
        biases = jnp.split(self.qkv.bias[...], 3, -1)
        of_names = names @ kernels[0] + biases[0][None]
        of_patches = [patches @ k + b[None, None] for k, b in zip(kernels[1:], biases[1:])]
        queries = jnp.broadcast_to(of_names[None], (patches.shape[0], *names.shape))
        keys = (None, None) if condition.key is None else jax.random.split(condition.key)
        mixed = layers.attend(
            *(layers.split_heads(x, c.num_heads) for x in (queries, *of_patches)),
            allowed=None if condition.valid is None else condition.valid[:, None],
            dropout=c.attention_dropout, dropout_key=keys[0], heads="together")
        looked = self.out(layers.merge_heads(mixed))  # [B, S, E]
        if keys[1] is not None and c.hidden_dropout:
            looked = layers.drop(looked, c.hidden_dropout, keys[1])
        pseudo_text = self.norm(names[None] + looked)
        logits = jnp.einsum("bne,bse->bns", unit(mask_embeddings), pseudo_text,
                            precision="highest")
        if c.own_scale:
            logits = logits * jnp.minimum(jnp.exp(self.logit_scale[...]), 100.0)
        if c.residual_width is not None:
            logits = logits + linear_similarity(
                self.corr_in, self.corr_out, mask_embeddings, text_embeddings, scale)
        return logits


def mean_similarity(mask_embeddings: jax.Array, text_embeddings: Names,
                    scale: jax.Array, condition: Condition | None = None) -> jax.Array:
    """The head without parameters: the mean over templates. Shapes as in `LinearSimilarity`."""
    del condition
    if not isinstance(text_embeddings, Folded):
        text_embeddings = fold_mean(text_embeddings)
    return _cosine(mask_embeddings, text_embeddings, scale)


def fold_mean(text_embeddings: jax.Array) -> Folded:
    """What `mean_similarity` makes of the templates."""
    num_templates = text_embeddings.shape[1]
    return _weighted(jnp.full(num_templates, 1 / num_templates, jnp.float32), text_embeddings)


def unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    # The inner `where` keeps the gradient of the root finite at zero.
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return x / length


def _weighted(weight, text_embeddings) -> Folded:
    return Folded(jnp.einsum("t,ste->se", weight, text_embeddings.astype(jnp.float32),
                             precision="highest"))


def _cosine(mask_embeddings, names: Folded, scale):
    # The similarities are scaled by up to 100: bfloat16 would leave a resolution of 0.5.
    return jnp.einsum("bne,se->bns", unit(mask_embeddings), names.classifiers,
                      precision="highest") * scale


def _weights(corr_in: nnx.Linear, corr_out: nnx.Linear) -> jax.Array:
    """Of each template, [T]."""
    return corr_in.kernel[...] @ corr_out.kernel[..., 0]


def linear_similarity(corr_in: nnx.Linear, corr_out: nnx.Linear, mask_embeddings: jax.Array,
                      text_embeddings: Names, scale: jax.Array) -> jax.Array:
    """Two linear layers over the templates as one weight each, and a constant: [B, N, S]."""
    if not isinstance(text_embeddings, Folded):
        text_embeddings = _weighted(_weights(corr_in, corr_out), text_embeddings)
    constant = corr_in.bias[...] @ corr_out.kernel[..., 0] + corr_out.bias[0]
    return _cosine(mask_embeddings, text_embeddings, scale) + constant


def _torch_linear(num_in: int, num_out: int, rngs: nnx.Rngs, *, use_bias: bool = True,
                  zero_bias: bool = False) -> nnx.Linear:
    """Uniform in +-1/sqrt(fan in), for weight and bias: how the published runs start."""
    bound = num_in**-0.5
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    return nnx.Linear(num_in, num_out, kernel_init=uniform, use_bias=use_bias, rngs=rngs,
                      bias_init=nnx.initializers.zeros_init() if zero_bias else uniform)
