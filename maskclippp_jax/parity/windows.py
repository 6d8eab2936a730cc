"""Zero-shot segmentation as the authors of TIPS do it: cosines of patches, in windows of a picture.

Only to compare with their results: this project names masks.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax.models import resample, similarity
from maskclippp_jax.parity.case import Case


def segment(case: Case, dense: typing.Callable[[jax.Array], jax.Array]) -> dict:
    """`seg_whole` [C, h, w] and `seg_slide` [C, H, W] of a case's picture.

    Args:
      case: has the picture [3, H, W], unit embeddings of classes [C, E], and sizes of windows.
      dense: embeddings [1, L, E] of a picture [1, H, W, 3] whose sides are multiples of the patch.
    """
    sizes, picture = case.spec["config"], case.arrays["in/picture"]
    classes, patch = jnp.asarray(case.arrays["in/class_emb"]), sizes["patch"]
    side, stride = sizes["picture_side"], sizes["picture_stride"]

    def cosines(part: np.ndarray) -> jax.Array:  # [3, H, W] -> [C, h, w]
        grid = tuple(-(-n // patch) for n in part.shape[1:])
        if part.shape[1:] != (grid[0] * patch, grid[1] * patch):
            part = resample.masks_to_size(
                jnp.asarray(part), (grid[0] * patch, grid[1] * patch), "bicubic")
        patches = similarity.unit(dense(jnp.moveaxis(jnp.asarray(part), 0, -1)[None])[0])
        return jnp.einsum("ld,cd->cl", patches, classes, precision="highest").reshape(-1, *grid)

    total, count = np.zeros((len(classes), *picture.shape[1:])), np.zeros(picture.shape[1:])
    for top in starts(picture.shape[1], side, stride):
        for left in starts(picture.shape[2], side, stride):
            place = slice(top, top + side), slice(left, left + side)
            part = picture[:, *place]
            scores = resample.masks_to_size(cosines(part), part.shape[1:], "bilinear")
            total[:, *place] += jax.nn.softmax(scores, axis=0)
            count[place] += 1
    return {"seg_whole": cosines(picture), "seg_slide": total / count}


def starts(length: int, side: int, stride: int) -> list[int]:
    """First pixels of windows along an axis; the last window ends with the picture."""
    number = 1 + -(-max(length - side, 0) // stride)
    return [max(min(i * stride + side, length) - side, 0) for i in range(number)]
