"""Naming the masks of pictures: what `evaluate` and `predict` share.

One program per shape: pictures come on padded canvases with their true sizes beside them, and names
are padded to a few sizes, so that neither another picture size within a canvas nor another
vocabulary compiles anything. What brings pictures and masks to the image tower's size are small
programs of their own, so that the towers are compiled for its few canvases alone.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.data import transforms
from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    layers,
    maskclippp,
    resample,
    similarity,
)
from maskclippp_jax.models.resample import Stage
from maskclippp_jax.naming import loading, postprocess
from maskclippp_jax.runtime import sharding
from maskclippp_jax.vocabulary import Vocabulary

_NAMES = 64  # rows of the smallest text table; larger ones double


class Names(typing.NamedTuple):
    """The names of a vocabulary, ready for the device."""

    embeddings: similarity.Names  # [S', T, E] float32 unit vectors, padded with zeros; or folded
    synonym_class: np.ndarray     # [S'] int32, padded with S'


class Sizes(typing.NamedTuple):
    """Sizes of a batch's pictures on their way, each [B, 2] int32 (height, width) in pixels."""

    picture: np.ndarray   # as given
    network: np.ndarray   # as the image tower sees it
    segments: np.ndarray  # as stored
    masks: np.ndarray     # the size masks pass through


class Result(typing.NamedTuple):
    scores: jax.Array   # [B, N, S'] float32 softmax over classes; 0 beyond the last class
    classes: jax.Array  # [B, N] int32
    labels: jax.Array   # [B, H, W] semantic label map at the stored size, `postprocess.narrow`


def embed_vocabulary(config: ml_collections.ConfigDict, model: maskclippp.MaskCLIPppConfig,
                     params: parameters.Tree, vocabulary: Vocabulary, *,
                     folder: str | None = None) -> Names:
    """Embeds every name of a vocabulary in every template of the experiment.

    With a folder the embeddings are kept there (`text_cache`).
    """
    token_ids = loading.tokenize(
        model, vocabulary, config.templates, getattr(config, "sentencepiece", ""))
    embeddings = loading.embed_names(model, params["text"], token_ids, folder=folder)
    rows = num_rows(vocabulary)
    padding = rows - len(embeddings)
    return Names(
        np.pad(embeddings, ((0, padding), (0, 0), (0, 0))),
        np.pad(vocabulary.synonym_class, (0, padding), constant_values=rows).astype(np.int32))


@functools.lru_cache(maxsize=4)
def make_folder(model_config: maskclippp.MaskCLIPppConfig) -> typing.Callable[..., Names]:
    """The jitted program `(params, names) -> names`: once a vocabulary, for all pictures; see
    `MaskCLIPpp.fold`."""
    build = model_builder(model_config)
    return jax.jit(lambda params, names: names._replace(
        embeddings=build(params).fold(names.embeddings)))


def seen_classes(config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> np.ndarray:
    """[C] bool: which classes the experiment's `eval.seen_vocabulary` has as well."""
    return vocabulary.seen_in(Vocabulary.load(config.eval.seen_vocabulary))


def num_rows(vocabulary: Vocabulary) -> int:
    """S', the rows of a vocabulary's names with their padding."""
    rows = _NAMES
    while rows < vocabulary.num_synonyms:
        rows *= 2
    return rows


def sizes_of(batch: dict, short_side: int | None, mask_short_side: int | None, *,
             max_tokens: int = 0, patch: int = 1) -> Sizes:
    """Sizes of an evaluation batch; a side of None leaves that size as it is.

    Like a generator's, the masks' size follows from that of the loaded picture. The last two
    arguments: see `network_sizes`.
    """
    picture, segments = (np.asarray(batch[k], np.int32) for k in ("image_size", "segments_size"))
    masks = segments if mask_short_side is None else shorter_side_to(picture, mask_short_side)
    return Sizes(picture, network_sizes(picture, short_side, max_tokens, patch), segments, masks)


def network_sizes(picture: np.ndarray, short_side: int | None, max_tokens: int,
                  patch: int) -> np.ndarray:
    """[B, 2] sizes at which the image tower sees pictures of sizes [B, 2].

    With `max_tokens` they are `naflex_sizes`, whatever `short_side` is.
    """
    if max_tokens:
        return naflex_sizes(picture, patch, max_tokens)
    for size in picture.tolist():
        transforms.check_ratio(size, "a picture")
    return shorter_side_to(picture, short_side)


def shorter_side_to(sizes: np.ndarray, side: int | None) -> np.ndarray:
    """[B, 2] sizes with the shorter side brought to `side`, the longer one cut to whole pixels."""
    if side is None:
        return sizes
    return (sizes * side // sizes.min(-1, keepdims=True)).astype(np.int32)


def naflex_sizes(sizes: np.ndarray, patch: int, max_tokens: int) -> np.ndarray:
    """[B, 2] sizes at which pictures become at most so many patches, as SigLIP 2 NaFlex has them.

    The largest scale is found by bisection in float32 and each side rounded up to whole patches, so
    that the shape of a picture changes by less than a patch.
    """
    sides = sizes.astype(np.float32)
    patches = lambda scale: np.maximum(np.ceil(scale[:, None] * sides / np.float32(patch)), 1)
    low, high = np.full(len(sizes), 1e-6, np.float32), np.full(len(sizes), 100, np.float32)
    while (high - low).max() >= 1e-5:
        middle = (low + high) / 2
        fits = patches(middle).prod(-1) <= max_tokens
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return (patches(low) * patch).astype(np.int32)


def canvas_of(network_sizes: np.ndarray, patch: int, cells: int = 4) -> tuple[int, int]:
    """The canvas (height, width) for pictures of these sizes: multiples of a few patches."""
    multiple = patch * cells
    return tuple(int(-(-side // multiple) * multiple) for side in network_sizes.max(0))


def strip_of(network_size: np.ndarray, patch: int) -> tuple[int, int]:
    """The strip (height, width) for a picture of this size, its cells in steps of some percent."""
    cells = int(np.prod(-(-network_size // patch)))
    step = max(1, resample.few(cells) // 32)
    return patch, -(-cells // step) * step * patch


def canvas_for(batch: dict, short_side: int | None, max_tokens: int, patch: int
               ) -> tuple[int, int]:
    """The canvas of an evaluation batch: the same on every host, as all have its `image_sizes`."""
    return canvas_of(network_sizes(batch["image_sizes"], short_side, max_tokens, patch), patch)


@functools.lru_cache(maxsize=4)  # several models of one kind are compared: compiled once
def make_namer(model_config: maskclippp.MaskCLIPppConfig, *, dtype=jnp.float32,
               semantic: bool) -> typing.Callable[..., Result]:
    """The function `(params, batch, sizes, names, canvas) -> Result`, of jitted programs.

    batch has image uint8 [B, H, W, 3], segments [B, H', W'] and labels [B, N] (only its width is
    used); `canvas` is static, see `canvas_of`. With `semantic` false the label maps are empty.
    """
    tower, patch = make_tower(model_config, dtype=dtype), model_config.image.patch_size
    build = model_builder(model_config, dtype=dtype)

    @jax.jit
    def name_masks(params, features, names):
        name_logits = build(params).classify(features, names.embeddings)
        logits = maskclippp.class_logits(name_logits, names.synonym_class)  # [B, N, S']
        labels = jnp.zeros((len(logits), 0, 0), postprocess.narrow(logits.shape[-1]))
        result = Result(jax.nn.softmax(logits), postprocess.mask_classes(logits), labels)
        return jax.tree.map(sharding.constrain_batch, result)

    @jax.jit
    def paint(segments, stored, masks, scores):
        return sharding.constrain_batch(sharding.each_picture(
            lambda x, _: postprocess.segment_labels(*x), (segments, stored, masks, scores)))

    def run(params, batch, sizes, names, canvas):
        features = tower(params, lay_segments(batch, sizes, patch, canvas))
        result = name_masks(params, features, names)
        if semantic:
            result = result._replace(
                labels=paint(batch["segments"], sizes.segments, sizes.masks, result.scores))
        return result

    return run


@functools.lru_cache(maxsize=8)
def make_tower(model_config: maskclippp.MaskCLIPppConfig, *, dtype=jnp.float32,
               platform: str | None = None) -> typing.Callable[..., layers.ImageFeatures]:
    """The jitted program `(params, OnCanvas) -> ImageFeatures`.

    It is the same whatever the masks were made from, and whatever names they get.

    Args:
      model_config: sizes of the model.
      dtype: arithmetic of the towers.
      platform: "cpu", "gpu" or "tpu", what is compiled for; None: the device at hand.
    """
    build = model_builder(model_config, dtype=dtype, platform=platform)

    @jax.jit
    def tower(params, laid):
        return jax.tree.map(sharding.constrain_batch, build(params).encode_image(*laid))

    return tower


def model_builder(model_config: maskclippp.MaskCLIPppConfig, *, dtype=jnp.float32,
                  platform: str | None = None
                  ) -> typing.Callable[[parameters.Tree], maskclippp.MaskCLIPpp]:
    """Makes the model of its parameters; the arguments: see `make_tower`."""
    build, _ = loading.abstract(model_config, dtype, platform)
    return build


class OnCanvas(typing.NamedTuple):
    """Pictures and masks as the image tower takes them, on one canvas or strip."""

    image: jax.Array       # [B, h, w, 3] float32
    sizes: jax.Array       # [B, 2] int32, true sizes on it
    grid_masks: jax.Array  # [B, N, L] float32


def lay_segments(batch: dict, sizes: Sizes, patch: int, canvas: tuple[int, int]) -> OnCanvas:
    """Brings pictures whose masks are segments to the canvas of the image tower; see `make_namer`.
    """
    image = lay_images(batch["image"], sizes.picture, sizes.network, canvas=canvas)
    grid_masks = _lay_segments(batch["segments"], sizes, patch=patch, canvas=canvas,
                               num_masks=batch["labels"].shape[1])
    return OnCanvas(image, sizes.network, grid_masks)


@functools.partial(jax.jit, static_argnames=("patch", "canvas", "num_masks"))
def _lay_segments(segments, sizes, patch, canvas, num_masks):
    return sharding.constrain_batch(jax.vmap(
        lambda s, stored, masks, network: segments_to_grid(
            s, stored, masks, network, patch, canvas, num_masks))(
                segments, sizes.segments, sizes.masks, sizes.network))


@functools.partial(jax.jit, static_argnames="canvas")
def lay_images(images: jax.Array, sizes: jax.Array, network: jax.Array, canvas: tuple[int, int]
               ) -> jax.Array:
    """Pictures [B, H, W, 3] of sizes [B, 2], brought to sizes `network` on a canvas, float32."""
    return sharding.constrain_batch(jax.vmap(
        functools.partial(to_network_size, canvas=canvas))(images, sizes, network))


def to_network_size(image: jax.Array, picture: jax.Array, network: jax.Array,
                    canvas: tuple[int, int]) -> jax.Array:
    """Brings one picture [H, W, 3] of true size `picture` [2] to size `network` [2] on a canvas."""
    rows, columns = (resample.bilinear_taps(canvas[i], Stage(picture[i], network[i]))
                     for i in range(2))
    return resample.resize_image(image, rows, columns)


def segments_to_grid(segments: jax.Array, stored: jax.Array, masks: jax.Array, network: jax.Array,
                     patch: int, canvas: tuple[int, int], num_masks: int) -> jax.Array:
    """Masks of a stored label map on the token grid of the network's canvas, [N, L] float32.

    They pass through all sizes of the published chain, stored -> generator -> network -> grid, each
    step bilinear; only the pixels that matter are read.
    """
    return resample.segments_to_masks(
        segments, *_grid_taps(stored, masks, network, patch, canvas), num_masks).reshape(
            num_masks, -1)


def _grid_taps(stored, masks, network, patch: int, canvas: tuple[int, int]):
    return tuple(
        resample.grid_taps(canvas[i] // patch, patch, Stage(masks[i], network[i]),
                           Stage(stored[i], masks[i])) for i in range(2))


def lay_picture(image: np.ndarray, network: typing.Sequence[int], canvas: tuple[int, int]
                ) -> np.ndarray:
    """What `to_network_size` gives of a picture [H, W, 3] without padding, by numpy."""
    for axis in range(2):
        taps = resample.bilinear_taps(canvas[axis], Stage(image.shape[axis], int(network[axis])))
        image = resample.resize_on_host(image, taps, axis)
    return image


def takes_strips(image: maskclippp.ImageConfig) -> bool:
    """Whether an image tower takes pictures on strips; see `layers`."""
    return not isinstance(image, (clip_convnext.ConvNeXtConfig, clip_resnet.ResNetConfig))


def to_strip(laid: OnCanvas, patch: int, canvas: tuple[int, int]) -> OnCanvas:
    """Brings a picture and its masks, without the axis of a batch, from a canvas of the picture's
    own cells to a longer strip, by numpy."""
    height, width, channels = laid.image.shape
    cells = laid.image.reshape(height // patch, patch, width // patch, patch, channels)
    image = np.zeros((*canvas, channels), np.float32)
    image[:, :height * width // patch] = cells.swapaxes(0, 1).reshape(patch, -1, channels)
    missing = canvas[1] // patch - laid.grid_masks.shape[-1]
    return laid._replace(image=image, grid_masks=np.pad(laid.grid_masks, ((0, 0), (0, missing))))


def lay_label_map(segments: np.ndarray, masks: typing.Sequence[int],
                  network: typing.Sequence[int], patch: int, canvas: tuple[int, int],
                  num_masks: int) -> np.ndarray:
    """What `segments_to_grid` gives of a label map without padding, by numpy."""
    stored, masks, network = (np.asarray(size).tolist() for size in (
        segments.shape, masks, network))
    return resample.segments_to_masks_on_host(
        segments, *_grid_taps(stored, masks, network, patch, canvas), num_masks).reshape(
            num_masks, -1)
