"""Similarity heads: from mask and text embeddings to logits (the PSM of MaskCLIP++).

The linear head of the paper is two linear layers over the template axis with nothing between them,
so it *is* one weight per template and a constant. It is folded into the text embeddings: one matrix
product gives the logits, and [masks, names, templates] never exists. The two published matrices
stay the parameters, so that checkpoints and optimiser dynamics are the published ones; both biases
move all classes alike, get no gradient in exact arithmetic, and are kept for the checkpoint's sake.
With the published initialisation the folded weight has mean 0: about half of all runs start with
the sign of the similarities reversed and turn it round in the first steps.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class LinearSimilarityConfig:
    num_templates: int
    width: int = 768  # hidden channels between the two linear layers


class LinearSimilarity(nnx.Module):
    def __init__(self, config: LinearSimilarityConfig, *, rngs: nnx.Rngs):
        self.corr_in = _torch_linear(config.num_templates, config.width, rngs)
        self.corr_out = _torch_linear(config.width, 1, rngs)

    def __call__(self, mask_embeddings: jax.Array, text_embeddings: jax.Array,
                 scale: jax.Array) -> jax.Array:
        """Logits of every mask for every name.

        Args:
          mask_embeddings: [B, N, E], any length; normalised here.
          text_embeddings: [S, T, E] unit vectors.
          scale: scalar factor of the similarities.

        Returns:
          [B, N, S] float32.
        """
        weight = self.corr_in.kernel[...] @ self.corr_out.kernel[..., 0]  # [T]
        constant = self.corr_in.bias[...] @ self.corr_out.kernel[..., 0] + self.corr_out.bias[0]
        return _cosine(mask_embeddings, text_embeddings, weight, scale) + constant


def mean_similarity(mask_embeddings: jax.Array, text_embeddings: jax.Array,
                    scale: jax.Array) -> jax.Array:
    """The head without parameters: the mean over templates. Shapes as in `LinearSimilarity`."""
    num_templates = text_embeddings.shape[1]
    weight = jnp.full(num_templates, 1 / num_templates, jnp.float32)
    return _cosine(mask_embeddings, text_embeddings, weight, scale)


def unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    # The inner `where` keeps the gradient of the root finite at zero.
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return x / length


def _cosine(mask_embeddings, text_embeddings, weight, scale):
    classifier = jnp.einsum("t,ste->se", weight, text_embeddings.astype(jnp.float32))
    # The similarities are scaled by up to 100: bfloat16 would leave a resolution of 0.5.
    return jnp.einsum("bne,se->bns", unit(mask_embeddings), classifier,
                      precision="highest") * scale


def _torch_linear(num_in, num_out, rngs):
    """Uniform in +-1/sqrt(fan in), for weight and bias: initialisation of the published runs."""
    bound = num_in**-0.5
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    return nnx.Linear(num_in, num_out, kernel_init=uniform, bias_init=uniform, rngs=rngs)
