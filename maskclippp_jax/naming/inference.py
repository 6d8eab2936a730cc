"""Naming the masks of pictures: what `evaluate` and `predict` share.

One program per shape: pictures come on padded canvases with their true sizes beside them, and names
are padded to a few sizes, so that neither another picture size within a canvas nor another
vocabulary compiles anything.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.data import transforms
from maskclippp_jax.models import layers, maskclippp, resample, similarity
from maskclippp_jax.models.resample import Stage
from maskclippp_jax.naming import loading, postprocess
from maskclippp_jax.runtime import sharding
from maskclippp_jax.vocabulary import Vocabulary

_NAMES = 64  # rows of the smallest text table; larger ones double


class Names(typing.NamedTuple):
    """The names of a vocabulary, ready for the device."""

    embeddings: np.ndarray      # [S', T, E] float32 unit vectors, padded with zeros
    synonym_class: np.ndarray   # [S'] int32, padded with S'


class Sizes(typing.NamedTuple):
    """Sizes of a batch's pictures on their way, each [B, 2] int32 (height, width) in pixels."""

    picture: np.ndarray   # as given
    network: np.ndarray   # as the image tower sees it
    segments: np.ndarray  # as stored
    masks: np.ndarray     # the size masks pass through


class Result(typing.NamedTuple):
    scores: jax.Array   # [B, N, S'] float32 softmax over classes; 0 beyond the last class
    classes: jax.Array  # [B, N] int32
    labels: jax.Array   # [B, H, W] int16 semantic label map at the stored size


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


def canvas_for(batch: dict, short_side: int | None, max_tokens: int, patch: int
               ) -> tuple[int, int]:
    """The canvas of an evaluation batch: the same on every host, as all have its `image_sizes`."""
    return canvas_of(network_sizes(batch["image_sizes"], short_side, max_tokens, patch), patch)


@functools.lru_cache(maxsize=4)  # several models of one kind are compared: compiled once
def make_namer(model_config: maskclippp.MaskCLIPppConfig, *, dtype=jnp.float32,
               semantic: bool) -> typing.Callable[..., Result]:
    """The jitted program `(params, batch, sizes, names, canvas) -> Result`.

    batch has image uint8 [B, H, W, 3], segments [B, H', W'] and labels [B, N] (only its width is
    used); `canvas` is static, see `canvas_of`. With `semantic` false the label maps are empty.
    """
    build, _ = parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        model_config, dtype=dtype, heads=configuration.heads_on(), rngs=parameters.Keys(0)))
    patch = model_config.image.patch_size

    @functools.partial(jax.jit, static_argnames="canvas")
    def name_masks(params, batch, sizes, names, canvas):
        model = build(params)
        features = segment_features(model, batch, sizes, patch, canvas)
        name_logits = model.classify(features, names.embeddings)
        logits = maskclippp.class_logits(name_logits, names.synonym_class)  # [B, N, S']
        scores = jax.nn.softmax(logits)
        labels = jnp.zeros((len(scores), 0, 0), jnp.int16)
        if semantic:
            labels = sharding.each_picture(
                lambda x, _: postprocess.segment_labels(*x),
                (batch["segments"], sizes.segments, sizes.masks, scores))
        result = Result(scores, postprocess.mask_classes(logits), labels)
        return jax.tree.map(sharding.constrain_batch, result)

    return name_masks


def make_encoder(model_config: maskclippp.MaskCLIPppConfig, *, dtype=jnp.float32
                 ) -> typing.Callable[..., jax.Array]:
    """The jitted program `(params, batch, sizes, canvas) -> mask embeddings`, [B, N, E] float32.

    They are unit vectors, as those of names are. The arguments: see `make_namer`.
    """
    build, _ = parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        model_config, dtype=dtype, heads=configuration.heads_on(), rngs=parameters.Keys(0)))
    patch = model_config.image.patch_size

    @functools.partial(jax.jit, static_argnames="canvas")
    def encode(params, batch, sizes, canvas):
        features = segment_features(build(params), batch, sizes, patch, canvas)
        return similarity.unit(features.mask_embeddings)

    return encode


def make_features(model_config: maskclippp.MaskCLIPppConfig, *, dtype=jnp.float32
                  ) -> typing.Callable[..., layers.ImageFeatures]:
    """The jitted program `(params, batch, sizes, canvas) -> ImageFeatures`: of `make_namer` what no
    name changes."""
    build, _ = parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        model_config, dtype=dtype, heads=configuration.heads_on(), rngs=parameters.Keys(0)))
    patch = model_config.image.patch_size

    @functools.partial(jax.jit, static_argnames="canvas")
    def features(params, batch, sizes, canvas):
        return segment_features(build(params), batch, sizes, patch, canvas)

    return features


def segment_features(model: maskclippp.MaskCLIPpp, batch: dict, sizes: Sizes, patch: int,
                     canvas: tuple[int, int]) -> layers.ImageFeatures:
    """What the image tower makes of pictures whose masks are segments; see `make_namer`."""
    num_masks = batch["labels"].shape[1]
    image = jax.vmap(
        lambda image, picture, network: to_network_size(image, picture, network, canvas))(
            batch["image"], sizes.picture, sizes.network)
    grid_masks = jax.vmap(
        lambda s, stored, masks, network: segments_to_grid(
            s, stored, masks, network, patch, canvas, num_masks))(
                batch["segments"], sizes.segments, sizes.masks, sizes.network)
    return model.encode_image(image, sizes.network, grid_masks)


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
    rows, columns = (
        resample.grid_taps(canvas[i] // patch, patch, Stage(masks[i], network[i]),
                           Stage(stored[i], masks[i])) for i in range(2))
    return resample.segments_to_masks(segments, rows, columns, num_masks).reshape(num_masks, -1)
