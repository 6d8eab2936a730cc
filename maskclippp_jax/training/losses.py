"""Training loss of MaskCLIP++: cross-entropy over ground-truth masks, balanced by image and class.

The paper calls it consistency alignment; there is no further term.
"""

import jax
import jax.numpy as jnp


def balanced_cross_entropy(logits: jax.Array, labels: jax.Array, counted: jax.Array, *,
                           balance_classes: bool = True,
                           num_images: jax.Array | None = None) -> jax.Array:
    """Cross-entropy where each image weighs the same, within it each class, within that each mask.

    The weight of a mask is 1 / (images with a counted mask * classes of its image * masks of its
    class there). Both counts come from comparing labels with each other. The mean is over the
    images of the whole batch, however it is spread over devices.

    Args:
      logits: [B, N, C] float32.
      labels: [B, N] int32 class of each mask. Any negative number gives the mask no loss; if it is
        counted, it still counts as a class of its own (as in the public reference).
      counted: [B, N] bool; False for empty slots, and for masks lost by down-sampling.
      balance_classes: False gives every mask of an image the same weight.
      num_images: images with a counted mask, if these are a part of a larger batch.

    Returns:
      Scalar float32; 0 (with zero gradients) if nothing is counted.
    """
    log_likelihood = jax.nn.log_softmax(logits.astype(jnp.float32))
    loss = -jnp.take_along_axis(log_likelihood, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    loss = jnp.where(counted & (labels >= 0), loss, 0.0)  # [B, N]
    weights = mask_weights(labels, counted, balance_classes=balance_classes,
                           num_images=num_images)
    return (loss * weights).sum()


def mask_weights(labels: jax.Array, counted: jax.Array, *, balance_classes: bool,
                 num_images: jax.Array | None = None) -> jax.Array:
    """Weights [B, N] float32 of `balanced_cross_entropy`; they sum to 1 over all counted masks."""
    same = counted[:, :, None] & counted[:, None, :]
    if balance_classes:
        same = same & (labels[:, :, None] == labels[:, None, :])  # [B, N, N]
    alike = jnp.maximum(same.sum(-1), 1)  # masks of the same class; all masks if not balanced
    share = counted / alike
    classes = jnp.maximum(share.sum(-1, keepdims=True), 1.0)  # [B, 1]
    if num_images is None:
        num_images = counted.any(-1).sum()
    return share / (classes * jnp.maximum(num_images, 1))
