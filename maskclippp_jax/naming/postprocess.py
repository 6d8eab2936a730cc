"""From scores of masks to results: mask classes, label maps, panoptic segments, instances.

What touches pixels runs on the device, in tiles (`resample.map_tiles`): neither the map of all
classes nor all masks at full size ever exist. What is sequential, or must be exact beyond float32,
is a few lines of numpy on what comes back.

The rules are those of MaskCLIP++'s reference (arXiv 2412.11464), which are Mask2Former's but for
one: masks arrive as probabilities, so there is no sigmoid between the resize and the sum.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax.data.mask_chain import MaskSizes, mask_taps, mirrored
from maskclippp_jax.models import resample
from maskclippp_jax.models.resample import Taps
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.runtime import sharding

# Output pixels worked on at once. On a CPU small tiles stay in its caches, and take small matrices
# to enlarge (measured with benchmarks/heads.py); accelerators want larger ones.
_TILE = {"cpu": (32, 32)}
_LARGE_TILE = (256, 512)
_ORDERED = (64, 128)  # pixels that ask classes in the same order, if tiles are smaller
_ROWS, _MIXED = 8, 256  # rows of a label map at once, and pixels of them that mix segments
_CLASSES = 64         # classified at once
_ENLARGED = 16        # classes enlarged at once
# Of sums over masks and of enlarging, relative: more than float32 loses over thousands of terms.
_ROUNDING = 1e-4


def tile_for(platform: str | None = None) -> tuple[int, int]:
    """The output pixels worked on at once: on "cpu", "gpu" or "tpu"; None: the device at hand."""
    return _TILE.get(platform or jax.default_backend(), _LARGE_TILE)


@dataclasses.dataclass(frozen=True)
class Heads:
    """Which results are wanted of generated masks."""

    semantic: bool = True
    panoptic: bool = False
    num_instances: int = 0  # most of a picture, stuff among them; 0: none are wanted


class Classes(typing.NamedTuple):
    """What the heads need to know of a vocabulary, and the threshold used with it."""

    num_classes: np.ndarray       # int32 scalar: columns of scores that are classes
    is_thing: np.ndarray          # [C] bool
    object_threshold: np.ndarray  # float32 scalar: masks must score more to become segments

    @classmethod
    def of(cls, is_thing: typing.Sequence[bool], num_columns: int,
           object_threshold: float = 0.0) -> "Classes":
        """Pads to C columns."""
        return cls(np.int32(len(is_thing)), np.pad(np.asarray(is_thing, bool), (
            0, num_columns - len(is_thing))), np.float32(object_threshold))


class Proposals(typing.NamedTuple):
    """A batch of pictures with masks and their scores; `mask_chain` tells the sizes."""

    masks: jax.Array        # [B, N, h, w], see `resample.soft`; zero beyond their stored sizes
    mask_valid: jax.Array   # [B, N] bool; false for empty slots
    mask_sizes: MaskSizes   # [B, 2] int32 each
    output_size: jax.Array  # [B, 2] int32, true size of the results
    scores: MaskScores      # [B, N, C] and [B, N]


class Results(typing.NamedTuple):
    """What the device returns of a batch; parts that are not wanted are empty.

    `panoptic_segments` and `instances` make of one picture's part what people want.
    """

    labels: jax.Array            # [B, H, W] semantic classes, see `narrow`
    categories: jax.Array        # [B, N] int32 best class of each mask, void left aside
    facts: "MaskFacts"           # of each picture
    instance_scores: jax.Array   # [B, D] float32
    instance_classes: jax.Array  # [B, D] int32; -1: no instance (stuff, or none left)
    instance_masks: jax.Array    # [B, D] int32, number of the mask


def make_heads(wanted: Heads, tile: tuple[int, int] | None = None) -> typing.Callable[..., Results]:
    """The jitted program `(Proposals, Classes, canvas, corner, window) -> Results`.

    It is compiled once for all pictures within a canvas and all vocabularies within C columns.
    `canvas` (H, W), static, is at least any output size; or it is a part of every picture from the
    pixel `corner` on, and sums are over that part. `window`, static: see `resample.map_tiles`.

    Args:
      wanted: which results.
      tile: output pixels worked on at once, its width a multiple of 8; None: what suits the device.
    """
    tile = tile or tile_for()

    def one_picture(picture, shared, canvas, window):
        masks, mask_valid, mask_sizes, output_size, scores = picture
        classes, corner = shared
        rows, columns = mask_taps(mask_sizes, output_size, canvas, corner)
        one = lambda x: jax.tree.map(lambda array: array[None], x)
        labels = jnp.zeros((0, 0), narrow(scores.classes.shape[-1]))
        if wanted.semantic:
            labels, _ = semantic_labels(masks[None], one(rows), one(columns), scores.classes[None],
                                        classes.num_classes, tile=tile, window=window)
        facts = MaskFacts(*(jnp.zeros((0,) * n) for n in (2, 1, 1, 1, 3)))
        if wanted.panoptic or wanted.num_instances:
            weights = panoptic_weights(scores, mask_valid, classes.object_threshold)
            facts = mask_facts(masks, rows, columns, output_size - corner, weights, tile=tile,
                               with_bits=wanted.num_instances > 0, window=window)
        best = top_pairs(scores.classes, mask_valid, classes, facts, wanted.num_instances)
        return Results(labels, mask_classes(scores.classes), facts, *best)

    @functools.partial(jax.jit, static_argnames=("canvas", "window"))
    def heads(proposals, classes, canvas, corner=np.zeros(2, np.int32), window=None):
        return sharding.each_picture(
            functools.partial(one_picture, canvas=canvas, window=window), proposals,
            (classes, corner))

    return heads


def narrow(count: int) -> typing.Any:
    """The integers that maps of the numbers 0 ... count - 1 are made of: int16, else int32."""
    return jnp.int16 if count <= 2**15 else jnp.int32


def mask_classes(class_logits: jax.Array) -> jax.Array:
    """The best class of every mask, the first one on ties: [B, N, C] -> [B, N] int32."""
    return class_logits.argmax(-1).astype(jnp.int32)


def segment_labels(segments: jax.Array, segments_size: jax.Array, mask_size: jax.Array,
                   probabilities: jax.Array) -> jax.Array:
    """The semantic label map of one image whose masks are segments of a label map.

    The score of class c at a pixel is the sum over masks of p[n, c] * mask n there, after the masks
    went to `mask_size` and back (both bilinear, as generated masks would). Where a pixel reads one
    segment alone its class is the segment's; scores are formed of the others, some at a time, and
    only their argmax is kept: the map of all classes never exists.

    Args:
      segments: [H, W] integer, 0 = no mask, n = mask slot n - 1.
      segments_size: [2] int32, true height and width.
      mask_size: [2] int32, the size masks pass through; equal to `segments_size`: no resize.
      probabilities: [N, C] float32, scores of each mask.

    Returns:
      [H, W] class of each pixel (see `narrow`), the first one on ties; class 0 where no mask is (so
      in the public reference), and anything outside the true size.
    """
    rows, columns = (
        resample.bilinear_taps(side, resample.Stage(mask_size[i], segments_size[i]),
                               resample.Stage(segments_size[i], mask_size[i]))
        for i, side in enumerate(segments.shape))
    height, width = segments.shape
    table = jnp.concatenate([jnp.zeros((1, probabilities.shape[1])), probabilities])  # [1+N, C]
    dtype = narrow(table.shape[1])
    of_segments = table.argmax(-1).astype(dtype)  # [1+N]
    pixels = min(_MIXED, _ROWS * width)

    def some_rows(rows):
        found, weight = (x.reshape(_ROWS * width, -1) for x in resample.segment_shares(
            segments, resample.Taps(*rows), columns))  # [_ROWS * W, k]
        highest = jnp.where(weight > 0, found, 0).max(-1)
        mixed = highest > jnp.where(weight > 0, found, len(table)).min(-1)
        places = jnp.argsort(~mixed)  # the mixed ones first

        def some_pixels(state):
            i, labels = state
            which = jax.lax.dynamic_slice_in_dim(places, i * pixels, pixels)
            is_segment = found[which][..., None] == jnp.arange(len(table))[None, None]
            shares = jnp.where(is_segment, weight[which][..., None], 0.0).sum(1)  # [pixels, 1+N]
            scores = jnp.einsum("pn,nc->pc", shares, table, precision="highest")
            return i + 1, labels.at[which].set(scores.argmax(-1).astype(dtype))

        return jax.lax.while_loop(lambda state: state[0] * pixels < mixed.sum(), some_pixels,
                                  (jnp.int32(0), of_segments[highest]))[1]

    cut = lambda x: jnp.pad(x, [(0, -height % _ROWS), (0, 0)]).reshape(-1, _ROWS, x.shape[1])
    labels = jax.lax.map(some_rows, tuple(cut(x) for x in rows))
    return labels.reshape(-1, width)[:height]


def semantic_labels(masks: jax.Array, rows: Taps, columns: Taps, scores: jax.Array,
                    num_classes: jax.Array | int, *, tile: tuple[int, int],
                    window: tuple[int, int] | None = None) -> tuple[jax.Array, jax.Array]:
    """The semantic label map of one image with soft masks.

    The score of class c at a pixel is the sum over masks of p[n, c] * mask n there, and the mean of
    that over versions of the picture (test-time augmentation), each with masks of its own. Masks
    are classified as they are stored and then enlarged, which gives the same and costs least.

    A tile asks classes in the order of what they can score at most around it, and stops when none
    that is left can win a pixel. Of those it asks it enlarges none that scores less than one and
    the same other class in every cell. So few of a large vocabulary are looked at, and the labels
    are the same.

    Args:
      masks: [V, N, h, w], see `resample.soft`.
      rows: [V, H, k], taps from each version's masks to the output rows.
      columns: [V, W, k].
      scores: [V, N, C] float32, at least 0; 0 in columns without a class and in empty slots.
      num_classes: how many of the columns are classes; the others take little time.
      tile: output pixels worked on at once.
      window: see `resample.map_tiles`.

    Returns:
      [H, W] labels (see `narrow`), the first class on ties and class 0 where no mask is, and [H, W]
      float32, the scores of these classes.
    """
    shape = rows.index.shape[1], columns.index.shape[1]
    num_versions, num_masks, num_columns = scores.shape
    dtype = narrow(num_columns)
    chunk = min(num_columns, _CLASSES)
    enlarged = math.gcd(chunk, _ENLARGED)
    by_class = jnp.moveaxis(scores, 2, 0)  # [C, V, N]
    by_class = jnp.pad(by_class, [(0, -num_columns % chunk), (0, 0), (0, 0)])

    group = tuple(max(1, n // side) for n, side in zip(_ORDERED, tile))

    def cut(tile_taps):
        return resample.soft(tile_taps.cut(masks))  # [V, N, h', w']

    shares = resample.map_tiles(lambda tile_taps, _: _largest_shares(cut(tile_taps)), rows, columns,
                                masks.shape[2:], tile, window)
    shares = _largest_of_groups(shares, group).reshape(-1, num_versions, num_masks)
    bounds, order = jax.lax.top_k(_most_of_a_class(shares, by_class), len(by_class))  # [groups, C]
    groups_across = -(-shape[1] // (tile[1] * group[1]))

    def one_tile(tile_taps, corner):
        windows = cut(tile_taps)
        here = corner // jnp.array([tile[0] * group[0], tile[1] * group[1]])
        here = here[0] * groups_across + here[1]
        covered = tile_taps.enlarge(windows.sum(1, keepdims=True))[0]  # [T, U], sum of masks

        def may_win(state):
            i, _, best, _ = state
            bound = bounds[here, jnp.minimum(i * chunk, len(by_class) - 1)]
            return (i * chunk < num_classes) & (bound > 0) & (
                (covered > 0) & (bound * covered >= best)).any()

        def one_chunk(state):
            i, labels, best, reference = state
            numbers = jax.lax.dynamic_slice(order, (here, i * chunk), (1, chunk))[0]
            small = jnp.einsum("vnij,cvn->cvij", windows, by_class[numbers], precision="highest")
            totals = small.sum((1, 2, 3))
            first = totals.argmax()
            reference = jnp.where(totals[first] > reference.sum(), small[first], reference)
            chosen = _may_beat(small, reference)
            places = jnp.argsort(~chosen)  # the chosen ones first

            def some(state):
                j, labels, best = state
                which = jax.lax.dynamic_slice_in_dim(places, j * enlarged, enlarged)
                large = tile_taps.enlarge(jnp.swapaxes(small[which], 0, 1))
                return j + 1, *_better(labels, best, numbers[which].astype(dtype), large)

            _, labels, best = jax.lax.while_loop(
                lambda state: state[0] * enlarged < chosen.sum(), some,
                (jnp.int32(0), labels, best))
            return i + 1, labels, best, reference

        # Class 0 where nothing scores, as the first of equals.
        start = (jnp.int32(0), jnp.zeros(tile, dtype), jnp.zeros(tile),
                 jnp.zeros((num_versions, *windows.shape[2:])))
        return jax.lax.while_loop(may_win, one_chunk, start)[1:3]

    labels, best = resample.map_tiles(one_tile, rows, columns, masks.shape[2:], tile, window)
    return _join(labels, shape), _join(best, shape) / num_versions


def _largest_shares(windows: jax.Array) -> jax.Array:
    """The largest share that each mask has of the masks' sum anywhere in a window:
    [V, N, h', w'] -> [V, N]."""
    total = windows.sum(1, keepdims=True)
    return jnp.where(total > 0, windows / jnp.where(total > 0, total, 1), 0).max((2, 3))


def _largest_of_groups(shares: jax.Array, group: tuple[int, int]) -> jax.Array:
    """The largest of every group of tiles: [n, m, V, N] -> [n / group, m / group, V, N]."""
    n, m = shares.shape[:2]
    shares = jnp.pad(shares, [(0, -n % group[0]), (0, -m % group[1]), (0, 0), (0, 0)])
    return shares.reshape(-(-n // group[0]), group[0], -(-m // group[1]), group[1],
                          *shares.shape[2:]).max((1, 3))


def _most_of_a_class(shares: jax.Array, by_class: jax.Array) -> jax.Array:
    """What the score of each class is at most in groups of tiles, as a share of the masks' sum.

    At a pixel that share is a mean of the masks' scores, weighted by their shares of the sum. So it
    is at most the largest score of any mask, and at most the sum of scores times the largest share
    that each mask has anywhere in the windows: enlarging, which only takes weighted means, makes no
    share larger.

    Args:
      shares: [groups, V, N], the largest of each mask in each group of tiles.
      by_class: [C, V, N] scores.

    Returns:
      [groups, C] float32, with something added for the rounding of all sums.
    """
    bound = jnp.minimum(by_class.max((1, 2))[None],
                        jnp.einsum("gvn,cvn->gc", shares, by_class, precision="highest"))
    return bound * (1 + _ROUNDING)


def _may_beat(small: jax.Array, reference: jax.Array) -> jax.Array:
    """Which classes may score as much as another one anywhere in a tile.

    Enlarging takes the same weighted means of both, so one that has less in every cell (or nothing)
    has less at every pixel.

    Args:
      small: [c, V, h', w'] scores of classes in the cells of a window.
      reference: [V, h', w'], those of the other.

    Returns:
      [c] bool; equals may, and what rounding could make equal.
    """
    return ((small > 0) & (small >= (1 - _ROUNDING) * reference[None])).any((1, 2, 3))


def _better(labels: jax.Array, best: jax.Array, numbers: jax.Array, scores: jax.Array
            ) -> tuple[jax.Array, jax.Array]:
    """Some more classes for the running argmax; of equals the first in the vocabulary stays.

    Args:
      labels: [T, U] integers.
      best: [T, U], the scores of these classes.
      numbers: [c] of the same dtype, of the other classes.
      scores: [c, T, U].
    """
    highest = scores.max(0)
    number = _first(scores == highest[None], numbers)
    wins = (highest > best) | ((highest == best) & (number < labels))
    return jnp.where(wins, number, labels), jnp.where(wins, highest, best)


def _first(chosen: jax.Array, numbers: jax.Array) -> jax.Array:
    """[T, U] the least of numbers [c] that is chosen, bool [c, T, U]; where none is, the most that
    their dtype holds."""
    most = jnp.iinfo(numbers.dtype).max
    return jnp.where(chosen, numbers[:, None, None], most).min(0)


def _join(tiles: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Puts tiles [n, m, ..., T, U] together and cuts them to [..., H, W]."""
    tiles = jnp.moveaxis(tiles, (0, 1), (-4, -2))  # [..., n, T, m, U]
    *leading, n, rows, m, columns = tiles.shape
    return tiles.reshape(*leading, n * rows, m * columns)[..., :shape[0], :shape[1]]


class MaskFacts(typing.NamedTuple):
    """What panoptic and instance results need to know of one image's masks at full size."""

    winner: jax.Array   # [H, W] of `narrow`: n + 1 if mask n wins and is >= 0.5 there, -(n + 1) if
                        # it wins with less, 0 if no mask competes, or outside the picture
    covered: jax.Array  # [N] int32, pixels with the mask >= 0.5
    above: jax.Array    # [N] int32, pixels with the mask > 0.5
    total: jax.Array    # [N] float32, sum of the mask over these
    bits: jax.Array     # [N, H, ceil(W / 8)] uint8, the mask > 0.5 (`np.unpackbits`)


def mask_facts(masks: jax.Array, rows: Taps, columns: Taps, size: jax.Array, weights: jax.Array, *,
               tile: tuple[int, int], with_bits: bool, window: tuple[int, int] | None = None,
               activation: typing.Callable[[jax.Array], jax.Array] = lambda x: x) -> MaskFacts:
    """Looks at one image's masks at full size, tile by tile.

    Args:
      masks: [N, h, w], see `resample.soft`.
      rows: [H, k], taps from the masks to the output rows.
      columns: [W, k].
      size: [2] int32, true size of the output; what lies beyond it counts nowhere.
      weights: [N] float32; at each pixel the mask with the largest weight * mask wins, the first
        one on ties. -inf: does not compete.
      tile: output pixels worked on at once; its width is a multiple of 8.
      with_bits: whether `bits` are wanted; they are empty otherwise.
      window: see `resample.map_tiles`.
      activation: of enlarged masks, which makes them probabilities if they are not yet.
    """
    shape = len(rows.index), len(columns.index)
    competes, dtype = weights > -jnp.inf, narrow(len(masks) + 2)  # 0, and one more is counted

    def one_tile(tile_taps, corner):
        full = activation(
            tile_taps.enlarge(resample.soft(tile_taps.cut(masks[None]))))  # [N, T, U]
        inside = (((corner[0] + jnp.arange(tile[0])) < size[0])[:, None]
                  & ((corner[1] + jnp.arange(tile[1])) < size[1])[None])  # [T, U]
        scores = jnp.where(competes[:, None, None], weights[:, None, None] * full, -jnp.inf)
        highest = scores.max(0)
        numbers = jnp.arange(1, 1 + len(full), dtype=dtype)
        wins = competes[:, None, None] & (scores == highest[None])
        number = _first(wins, numbers)
        sure = ((numbers[:, None, None] == number[None]) & (full >= 0.5)).any(0)
        winner = jnp.where(wins.any(0), jnp.where(sure, number, -number), 0)
        above = (full > 0.5) & inside[None]
        return dict(
            winner=jnp.where(inside, winner, 0),
            covered=((full >= 0.5) & inside[None]).sum((1, 2)),
            above=above.sum((1, 2)), total=jnp.where(above, full, 0.0).sum((1, 2)),
            bits=(jnp.packbits(above, axis=-1) if with_bits
                  else jnp.zeros((0, tile[0], 0), jnp.uint8)))

    rows, columns = (Taps(*(x[None] for x in axis)) for axis in (rows, columns))
    tiles = resample.map_tiles(one_tile, rows, columns, masks.shape[1:], tile, window)
    return MaskFacts(
        _join(tiles["winner"], shape),
        *(tiles[k].sum((0, 1)) for k in ("covered", "above", "total")),
        _join(tiles["bits"], (shape[0], -(-shape[1] // 8))))


def panoptic_weights(scores: MaskScores, mask_valid: jax.Array,
                     object_threshold: jax.Array) -> jax.Array:
    """[N] float32: the score of each mask that competes for pixels, -inf for the others."""
    best = scores.classes.max(-1)
    keep = mask_valid & (best >= scores.void) & (best > object_threshold)
    return jnp.where(keep, best, -jnp.inf)


def top_pairs(scores: jax.Array, mask_valid: jax.Array, classes: Classes, facts: MaskFacts,
              count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The likeliest pairs of mask and class, as instances.

    Stuff takes places among them and is marked only then; so in the reference.

    Args:
      scores: [N, C] float32 class probabilities.
      mask_valid: [N] bool.
      classes: which columns are classes, and which are things.
      facts: of the masks; a score is multiplied by the mean of the mask over its pixels.
      count: D.

    Returns:
      scores [D] float32, classes [D] int32 (-1: no instance), masks [D] int32.
    """
    if not count:
        return jnp.zeros(0), jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)
    counts = mask_valid[:, None] & (jnp.arange(scores.shape[1]) < classes.num_classes)[None]
    found, place = jax.lax.top_k(jnp.where(counts, scores, -1.0).ravel(), min(count, scores.size))
    mask, number = place // scores.shape[1], place % scores.shape[1]
    mean = facts.total / (facts.above + 1e-6)
    number = jnp.where((found >= 0) & classes.is_thing[number], number, -1)
    return found * mean[mask], number.astype(jnp.int32), mask.astype(jnp.int32)


def panoptic_segments(winner: np.ndarray, covered: np.ndarray, categories: np.ndarray,
                      is_thing: typing.Sequence[bool], overlap_threshold: float
                      ) -> tuple[np.ndarray, list[dict]]:
    """Turns one picture's competition into segments.

    A mask becomes a segment where it wins with at least 0.5, if it wins somewhere, and if the
    pixels it wins (with any value) are `overlap_threshold` of those it covers (with at least 0.5).
    Masks of one stuff class join one segment.

    Args:
      winner: [H, W] of `MaskFacts`, cut to the picture.
      covered: [N] of `MaskFacts`.
      categories: [N] class of each mask.
      is_thing: for each class.
      overlap_threshold: see above.

    Returns:
      [H, W] int32 segment ids, 0 = nothing, and for each segment dict(id, category_id, isthing),
      ids counted from 1 in the order of masks.
    """
    slots = len(covered) + 1
    won = np.bincount(np.abs(winner).ravel(), minlength=slots)
    kept = np.bincount(np.maximum(winner, 0).ravel(), minlength=slots)
    table = np.zeros(slots, np.int32)  # segment of each mask, from 1
    segments, stuff = [], {}
    for n in range(1, slots):
        area, category = int(covered[n - 1]), int(categories[n - 1])
        if not (won[n] and area and kept[n]) or won[n] / area < overlap_threshold:
            continue
        if category in stuff:
            table[n] = stuff[category]
            continue
        table[n] = len(segments) + 1
        if not is_thing[category]:
            stuff[category] = len(segments) + 1
        segments.append(dict(id=len(segments) + 1, category_id=category,
                             isthing=bool(is_thing[category])))
    return table[np.maximum(winner, 0)], segments


class Instances(typing.NamedTuple):
    """One picture's instances, likeliest pair of mask and class first."""

    scores: np.ndarray   # [n] float32
    classes: np.ndarray  # [n] int32
    masks: np.ndarray    # [n, H, W] bool


def instances(scores: np.ndarray, classes: np.ndarray, masks: np.ndarray, bits: np.ndarray,
              size: tuple[int, int]) -> Instances:
    """One picture's instances.

    Args:
      scores: [D] of `Results`.
      classes: [D] of `Results`.
      masks: [D] of `Results`.
      bits: [N, H', W' / 8] of `MaskFacts`.
      size: true (height, width) of the output.
    """
    keep = classes >= 0
    height, width = size
    found = np.unpackbits(bits[masks[keep], :height], axis=-1)[..., :width].astype(bool)
    return Instances(scores[keep], classes[keep], found)


def boxes(masks: np.ndarray) -> np.ndarray:
    """Boxes (left, top, right, bottom) around masks: [n, H, W] bool -> [n, 4] float32.

    Right and bottom lie one behind the last pixel; a mask without a pixel has a box of zeros.
    """
    result = np.zeros((len(masks), 4), np.float32)
    for mask, box in zip(masks, result):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return result


def augmented_labels(masks: jax.Array, mask_sizes: MaskSizes, flipped: jax.Array,
                     scores: jax.Array, num_classes: jax.Array | int, output_size: jax.Array,
                     canvas: tuple[int, int], *, tile: tuple[int, int] | None = None
                     ) -> tuple[jax.Array, jax.Array]:
    """The semantic label map of the mean of several versions of a picture (scales, flips).

    Versions bring their small masks; no version's map of classes ever exists.

    Args:
      masks: [V, N, h, w] of each version, zero beyond their stored sizes and in empty slots.
      mask_sizes: [V, 2] each.
      flipped: [V] bool, whether a version was mirrored left to right.
      scores: [V, N, C] float32 class probabilities.
      num_classes: how many of the columns are classes.
      output_size: [2] int32.
      canvas: (H, W), at least the output size.
      tile: as in `make_heads`.

    Returns:
      See `semantic_labels`.
    """
    def taps(sizes, flip):
        rows, columns = mask_taps(sizes, output_size, canvas)
        return rows, mirrored(columns, output_size[1], flip)

    rows, columns = jax.vmap(taps)(mask_sizes, flipped)
    return semantic_labels(masks, rows, columns, scores, num_classes,
                           tile=tile or tile_for())
