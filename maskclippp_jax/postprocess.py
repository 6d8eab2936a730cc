"""From class logits of masks to results: mask classes and semantic label maps."""

import jax
import jax.numpy as jnp

from maskclippp_jax.models import resample


def mask_classes(class_logits: jax.Array) -> jax.Array:
    """The best class of every mask, the first one on ties: [B, N, C] -> [B, N] int32."""
    return class_logits.argmax(-1).astype(jnp.int32)


def semantic_labels(segments: jax.Array, segments_size: jax.Array, mask_size: jax.Array,
                    probabilities: jax.Array) -> jax.Array:
    """The semantic label map of one image whose masks are segments of a label map.

    The score of class c at a pixel is the sum over masks of p[n, c] * mask n there, after the masks
    went to `mask_size` and back (both bilinear, as generated masks would). Scores are formed row by
    row and only their argmax is kept: the map of all classes never exists.

    Args:
      segments: [H, W] integer, 0 = no mask, n = mask slot n - 1.
      segments_size: [2] int32, true height and width.
      mask_size: [2] int32, the size masks pass through; equal to `segments_size`: no resize.
      probabilities: [N, C] float32, scores of each mask.

    Returns:
      [H, W] int16 class of each pixel, the first one on ties; class 0 where no mask is (so in the
      public reference), and anything outside the true size.
    """
    rows, columns = (
        resample.bilinear_taps(side, resample.Stage(mask_size[i], segments_size[i]),
                               resample.Stage(segments_size[i], mask_size[i]))
        for i, side in enumerate(segments.shape))
    table = jnp.concatenate([jnp.zeros((1, probabilities.shape[1])), probabilities])  # [1+N, C]

    def one_row(row):
        found, weight = resample.segment_shares(
            segments, resample.Taps(*(x[None] for x in row)), columns)  # [1, W, k]
        scores = jnp.einsum("wk,wkc->wc", weight[0], table[found[0]], precision="highest")
        return scores.argmax(-1).astype(jnp.int16)

    return jax.lax.map(one_row, tuple(rows))
