"""What an EoMT or a Mask2Former makes of a picture in its own classes, as its authors evaluate it.

Published numbers rest on these rules, which both share. They enlarge *logits* of masks, first to
the padded input and then, cropped, to the picture, and take the sigmoid last; naming with other
words takes it first (`mask_chain`), which moves one or two pixels in a hundred.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax.data import mask_chain, pipeline
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.models import resample
from maskclippp_jax.models.resample import Stage, Taps
from maskclippp_jax.naming import blocks, postprocess
from maskclippp_jax.naming.postprocess import Instances

# Of the public code, for all data sets.
_OBJECT_THRESHOLD = 0.8   # the least score of a mask that becomes a segment
_OVERLAP_THRESHOLD = 0.8  # the least share of a mask's pixels that it must win
_ROWS = 32  # of a window whose masks are enlarged at once: all together they would take gigabytes


class Masks(typing.NamedTuple):
    """What the network said of one picture."""

    mask_logits: np.ndarray   # [Q, h, w] float32, of the whole padded input
    class_logits: np.ndarray  # [Q, C + 1] float32, "no object" last
    sizes: MaskSizes          # [2] each, see `mask_chain`
    size: tuple[int, int]     # height and width of the picture


def panoptic(masks: Masks, is_thing: typing.Sequence[bool]) -> tuple[np.ndarray, list[dict]]:
    """Segments that do not overlap; things apart, stuff of one class together.

    Args:
      masks: of one picture.
      is_thing: for each class.

    Returns:
      See `postprocess.panoptic_segments`; nothing but 0 and no segment where no mask scores more
      than 0.8. At each pixel the largest score times mask wins.
    """
    scores = np.asarray(jax.nn.softmax(masks.class_logits))
    best, classes = scores.max(-1), scores.argmax(-1)
    kept = np.flatnonzero((classes < len(is_thing)) & (best > _OBJECT_THRESHOLD))
    facts = _facts(masks, kept, best, with_bits=False)
    height, width = masks.size
    return postprocess.panoptic_segments(
        facts.winner[:height, :width], facts.covered[:len(kept)], classes[kept], is_thing,
        _OVERLAP_THRESHOLD)


def instances(masks: Masks, count: int = 100) -> tuple[Instances, np.ndarray]:
    """The likeliest pairs of mask and class, which may overlap; a mask may come several times.

    Args:
      masks: of one picture.
      count: how many pairs, at most.

    Returns:
      The pairs in falling order of their class scores, and [n] int64, the query of each. Their
      scores are these times the mean of the mask over its pixels; a mask may be empty.
    """
    scores = np.asarray(jax.nn.softmax(masks.class_logits))[:, :-1]
    order = np.argsort(-scores.ravel(), kind="stable")[:count]
    query, classes = np.divmod(order, scores.shape[1])
    kept, place = np.unique(query, return_inverse=True)
    facts = _facts(masks, kept, np.zeros(len(scores), np.float32), with_bits=True)
    mean = facts.total / (facts.above + 1e-6)
    height, width = masks.size
    found = np.unpackbits(facts.bits[:, :height], axis=-1)[..., :width].astype(bool)
    return Instances((scores.ravel()[order] * mean[place]).astype(np.float32),
                     classes.astype(np.int32), found[place]), query


def semantic_scores(mask_logits: np.ndarray, class_logits: np.ndarray, origins: np.ndarray,
                    resized: tuple[int, int]) -> np.ndarray:
    """Scores of classes on the resized picture that windows were cut from.

    Args:
      mask_logits: [m, Q, h, w] float32 of each window.
      class_logits: [m, Q, C + 1] float32.
      origins: [m, 2], see `generator_input.Windows`.
      resized: (height, width) of the picture.

    Returns:
      [C, *resized] float32, the sum over queries of class probability times mask; the mean where
      windows overlap.
    """
    side = min(resized)
    total = np.zeros((class_logits.shape[-1] - 1, *resized), np.float32)
    count = np.zeros(resized, np.float32)
    for masks, classes, (start, end) in zip(mask_logits, class_logits, origins):
        part = slice(start, end)
        where = (part, slice(None)) if resized[0] > side else (slice(None), part)
        total[:, *where] += jax.device_get(_window_scores(masks, classes, side))
        count[where] += 1
    return total / count


def semantic(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[C, h, w] of `semantic_scores` -> [H, W] int32, the best class of each pixel of a picture."""
    canvas = pipeline.up(size, pipeline.CANVAS)
    sizes = np.array([scores.shape[1:], size], np.int32)
    return np.asarray(_labels(scores, sizes, canvas))[:size[0], :size[1]].astype(np.int32)


def _facts(masks: Masks, kept: np.ndarray, weights: np.ndarray, *, with_bits: bool
           ) -> postprocess.MaskFacts:
    """Facts of some masks; filled up to a few numbers of them, of which the first are meant."""
    slots = -(-max(len(kept), 1) // 8) * 8
    pad = lambda x, value: np.pad(x, [(0, slots - len(x))] + [(0, 0)] * (x.ndim - 1),
                                  constant_values=value)
    look = functools.partial(
        _facts_on_device, *jax.device_put((
            pad(np.asarray(masks.mask_logits, np.float32)[kept], -1.0), masks.sizes,
            np.array(masks.size, np.int32), pad(weights[kept].astype(np.float32), -np.inf))),
        with_bits=with_bits)
    sizes = MaskSizes(*(np.asarray(x).tolist() for x in masks.sizes))
    return blocks.join_facts(blocks.look_at(look, sizes, masks.size))


@functools.partial(jax.jit, static_argnames=("canvas", "window", "with_bits"))
def _facts_on_device(mask_logits, sizes, size, weights, canvas, corner, window, with_bits):
    rows, columns = mask_chain.mask_taps(sizes, size, canvas, corner)
    return postprocess.mask_facts(
        mask_logits, rows, columns, size - corner, weights, tile=postprocess.tile_for(),
        with_bits=with_bits, window=window, activation=jax.nn.sigmoid)


@functools.partial(jax.jit, static_argnames="side")
def _window_scores(mask_logits, class_logits, side):
    """[C, side, side] of one window."""
    probabilities = jax.nn.softmax(class_logits)[:, :-1]
    taps = [resample.bilinear_taps(side, Stage(n, side)) for n in mask_logits.shape[1:]]
    rows, columns = (resample.taps_matrix(t, n) for t, n in zip(taps, mask_logits.shape[1:]))
    across = jnp.einsum("qij,wj->qiw", mask_logits, columns, precision="highest")

    def some_rows(rows):
        masks = jax.nn.sigmoid(jnp.einsum("hi,qiw->qhw", rows, across, precision="highest"))
        return jnp.einsum("qc,qhw->chw", probabilities, masks, precision="highest")

    blocks = jnp.pad(rows, ((0, -side % _ROWS), (0, 0))).reshape(-1, _ROWS, rows.shape[1])
    scores = jnp.moveaxis(jax.lax.map(some_rows, blocks), 0, 1)  # [C, blocks, _ROWS, side]
    return scores.reshape(len(scores), -1, side)[:, :side]


@functools.partial(jax.jit, static_argnames="canvas")
def _labels(scores, sizes, canvas):
    """The class maps are masks of one class each."""
    stored, size = sizes
    rows, columns = (resample.bilinear_taps(canvas[i], Stage(stored[i], size[i])) for i in range(2))
    one = lambda taps: Taps(taps.index[None], taps.weight[None])
    labels, _ = postprocess.semantic_labels(
        scores[None], one(rows), one(columns), jnp.eye(len(scores))[None], len(scores),
        tile=postprocess.tile_for())
    return labels
