"""Naming the masks of a generator: from stored masks to label maps, segments and instances.

Programs for each canvas: pictures, masks and vocabularies are padded, so that neither another
picture size within a canvas nor another vocabulary of similar size compiles anything.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maskclippp_jax.data import mask_chain
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.models import layers, maskclippp, similarity
from maskclippp_jax.naming import ensembles, inference, loading, postprocess
from maskclippp_jax.naming.ensembles import GeneratorLogits, MaskScores
from maskclippp_jax.naming.postprocess import Heads, Instances, Proposals, Results
from maskclippp_jax.runtime import sharding
from maskclippp_jax.vocabulary import Vocabulary

# What of a batch goes to the device.
_ON_DEVICE = ("image", "image_size", "output_size", "masks", "mask_valid", "stored", "enlarged",
              "kept", "classes")
_LAID = 8  # masks brought to the grid at once: all of a picture are large as probabilities
_MASKS = ("masks", "mask_valid", *MaskSizes._fields)  # of these, what tells of masks


class Opinion(typing.NamedTuple):
    """How the classes that a bundle stores become logits of the test classes.

    What does not belong to the bundle's kind is empty.
    """

    embeddings: np.ndarray  # [S', E] float32 unit rows of names, as `inference.Names` pads them
    void: np.ndarray        # [E] float32 unit vector
    scale: np.ndarray       # float32 scalar, of cosines
    lookup: np.ndarray      # [J] int32, test class of each training class
    weights: np.ndarray     # [S'] float32, our share in the ensemble
    objectness: np.ndarray = np.float32(0)  # see `ensembles.void_given_back`


class Found(typing.NamedTuple):
    """The results of one picture; None for what was not wanted."""

    mask_classes: np.ndarray                       # [N] int32
    labels: np.ndarray | None                      # [H, W] int16 or int32
    panoptic: tuple[np.ndarray, list[dict]] | None  # see `postprocess.panoptic_segments`
    instances: Instances | None


def opinion_of(bundle: Bundle | None, vocabulary: Vocabulary, weights: np.ndarray,
               embeddings: np.ndarray | None = None, *, must_share: bool = True,
               objectness: float = 0.0) -> Opinion:
    """What the device needs to know of a bundle's classes.

    Args:
      bundle: None: masks without classes.
      vocabulary: of the test classes.
      weights: [S'] float32, our share in the ensemble (`ensembles.weights_of`).
      embeddings: [S', E] of the names by the generator's own text tower, for a bundle of
        embeddings.
      must_share: whether one of a closed bundle's classes must be among these; without any, its
        void alone counts.
      objectness: see `ensembles.void_given_back`.

    Raises:
      ValueError: the bundle's logits are of other classes.
    """
    none = np.zeros((len(weights), 0), np.float32)
    void, scale, lookup = np.zeros(0, np.float32), np.float32(1), np.zeros(0, np.int32)
    kind = bundle.kind if bundle else "none"
    if kind == "open" and bundle.vocabulary.classes != vocabulary.classes:
        raise ValueError(f"the logits of {bundle.folder} are of {bundle.vocabulary.num_classes} "
                         f"other classes ({bundle.vocabulary.classes[0][0]!r}, ...) than the "
                         f"{vocabulary.num_classes} of {vocabulary.name}; export logits of these, "
                         "or class embeddings, which serve any vocabulary")
    if kind == "closed":
        lookup = vocabulary.lookup_from(bundle.vocabulary)[:-1]
        if must_share and (lookup == vocabulary.num_classes).all():
            raise ValueError(f"none of the {len(lookup)} classes of the logits of {bundle.folder} "
                             f"({bundle.vocabulary.classes[0][0]!r}, ...) shares a name with "
                             f"the {vocabulary.num_classes} asked for "
                             f"({vocabulary.classes[0][0]!r}, ...); without "
                             "an ensemble (--config.eval.ensemble=False) only their void counts")
        lookup = np.where(lookup == vocabulary.num_classes, len(weights), lookup).astype(np.int32)
    if kind == "embeddings":
        void = np.asarray(bundle.classes["void_embedding"], np.float32)
        void, scale = void / np.linalg.norm(void), np.float32(bundle.classes["logit_scale"])
    return Opinion(none if embeddings is None else embeddings, void, scale, lookup, weights,
                   np.float32(objectness))


def opinion_in(settings: ml_collections.ConfigDict, vocabulary: Vocabulary, seen: np.ndarray,
               bundle: Bundle | None, num_columns: int, *, must_share: bool = True) -> Opinion:
    """The same, for the settings of an evaluation (`config.eval`).

    Args:
      settings: share in the ensemble, `objectness`, and the generator's own CLIP if its classes are
        embeddings.
      vocabulary: of the test classes.
      seen: [C] bool, which of them the model was tuned on.
      bundle: None: masks without classes.
      num_columns: S', rows of the names with their padding.
      must_share: see `opinion_of`.
    """
    weights = ensembles.weights_of(seen, settings.alpha, settings.beta, num_columns)
    embeddings = None
    if bundle and bundle.kind == "embeddings":
        if isinstance(bundle, Bundle):
            embeddings = _embed_for_generator(settings, bundle, vocabulary)
        else:  # a generator at hand has a text tower of its own
            embeddings = bundle.embed(vocabulary)
        embeddings = np.pad(embeddings, [(0, num_columns - len(embeddings)), (0, 0)])
    # Runs of earlier versions do not know the key.
    return opinion_of(bundle, vocabulary, weights, embeddings, must_share=must_share,
                      objectness=settings.get("objectness", 0.0))


def _embed_for_generator(settings, bundle: Bundle, vocabulary: Vocabulary) -> np.ndarray:
    """[S, E]: every name as the generator's own text tower embeds it, mean over templates."""
    if settings.generator is None:
        raise ValueError(f"{bundle.folder} stores class embeddings; only the text tower they were "
                         "trained with turns names into logits of theirs, so set "
                         "config.eval.generator and config.eval.generator_weights as "
                         "configs/eval do")
    text_params = loading.load_text_tower(settings.generator_weights, settings.generator)
    token_ids = loading.tokenize(settings.generator, vocabulary, bundle.classes["templates"])
    embeddings = mean_over_templates(
        loading.embed_names(settings.generator, text_params, token_ids))  # [S, E]
    if embeddings.shape[1] != bundle.width:
        raise ValueError(f"{bundle.folder} stores class embeddings of {bundle.width} channels, the "
                         f"text tower of config.eval.generator gives {embeddings.shape[1]}; take "
                         "the CLIP that the generator was built on")
    return embeddings


def with_sizes(batch: dict, settings: ml_collections.ConfigDict, short_side: int | None, patch: int
               ) -> tuple[dict, np.ndarray]:
    """A batch of `data.mask_batches` with all its masks' sizes, and the sizes of its pictures as
    the image tower sees them, [B, 2] int32."""
    network = inference.network_sizes(batch["image_size"], short_side, settings.max_tokens, patch)
    if "kept" not in batch:  # masks of the picture itself, as a generator would have made them
        kept = (batch["stored"] if settings.mask_short_side is None else
                inference.shorter_side_to(batch["image_size"], settings.mask_short_side))
        batch = batch | mask_chain.given_mask_sizes(batch["stored"], kept)._asdict()
    return {k: v for k, v in batch.items() if k in _ON_DEVICE}, network


def mean_over_templates(embeddings: np.ndarray) -> np.ndarray:
    """Unit vectors of every sentence [S, T, E] -> unit vectors of the names [S, E]."""
    mean = embeddings.mean(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


@functools.lru_cache(maxsize=4)  # several models of one kind are compared: compiled once
def make_segmenter(model_config: maskclippp.MaskCLIPppConfig, wanted: Heads, kind: str, *,
                   ensemble: bool, dtype=jnp.float32, platform: str | None = None
                   ) -> typing.Callable[..., Results]:
    """The function `(params, batch, network, names, opinion, classes, canvas, output_canvas) ->
    Results`, of jitted programs.

    batch is one of `data.mask_batches` on the device, network [B, 2] int32 the size at which the
    image tower sees each picture, names and classes are the vocabulary (`inference.Names`,
    `postprocess.Classes`); the canvases are static.

    Args:
      model_config: sizes of the model.
      wanted: which results.
      kind: of the bundle's classes, see `data.bundles`.
      ensemble: whether the generator has a say in the class; its void is used in any case.
      dtype: arithmetic of the towers.
      platform: "cpu", "gpu" or "tpu", what is compiled for; None: the device at hand.
    """
    classify = make_classifier(model_config, kind, ensemble=ensemble, dtype=dtype,
                               platform=platform)
    heads = postprocess.make_heads(wanted, postprocess.tile_for(platform))

    @functools.partial(jax.jit, static_argnames="canvas")
    def look(batch, scores, classes, canvas):
        results = heads(proposals_of(batch, scores), classes, canvas=canvas)
        return jax.tree.map(sharding.constrain_batch, results)

    def segment(params, batch, network, names, opinion, classes, canvas, output_canvas):
        scores = classify(params, batch, network, names, opinion, canvas=canvas)
        masks = {k: batch[k] for k in (*_MASKS, "output_size")}
        return look(masks, scores, classes, canvas=output_canvas)

    return segment


def make_averaging_segmenter(model_config: maskclippp.MaskCLIPppConfig, kind: str, *,
                             ensemble: bool, dtype=jnp.float32
                             ) -> typing.Callable[..., jax.Array]:
    """The function `(params, batches, networks, names, opinion, classes, flipped, canvas,
    output_canvas) -> labels`, [B, H, W] of `postprocess.narrow`: label maps of the mean over
    versions.

    `batches` and `networks` have an entry for each version of the same pictures, all on the same
    canvases, `flipped` [V] bool; the others: see `make_segmenter`. Versions are classified one
    after the other, by one program; what stays of each are its stored masks and their scores.
    """
    classify = make_classifier(model_config, kind, ensemble=ensemble, dtype=dtype)
    scores_of = lambda *args, canvas: classify(*args, canvas=canvas).classes

    @functools.partial(jax.jit, static_argnames="canvas")
    def average(masks, scores, output_size, num_classes, flipped, canvas):
        def one_picture(picture, shared):
            *versions, output_size = picture
            masks, scores = (jax.tree.map(lambda *x: jnp.stack(x), *v) for v in versions)
            num_classes, flipped = shared
            return postprocess.augmented_labels(
                _soft_masks(masks), _sizes_of(masks), flipped, scores, num_classes, output_size,
                canvas)[0]

        return sharding.constrain_batch(sharding.each_picture(
            one_picture, (masks, scores, output_size), (num_classes, flipped)))

    def segment(params, batches, networks, names, opinion, classes, flipped, canvas, output_canvas):
        scores = [scores_of(params, batch, network, names, opinion, canvas=canvas)
                  for batch, network in zip(batches, networks)]
        output_size = batches[0]["output_size"]
        masks = [{k: b[k] for k in _MASKS} for b in batches]
        return average(masks, scores, output_size, classes.num_classes, flipped,
                       canvas=output_canvas)

    return segment


def make_classifier(model_config: maskclippp.MaskCLIPppConfig, kind: str, *, ensemble: bool,
                    dtype=jnp.float32, platform: str | None = None
                    ) -> typing.Callable[..., MaskScores]:
    """The function `(params, batch, network, names, opinion, canvas) -> MaskScores`, of jitted
    programs. The arguments: see `make_segmenter`.
    """
    tower = inference.make_tower(model_config, dtype=dtype, platform=platform)
    score, patch = make_scorer(model_config, kind, ensemble=ensemble), model_config.image.patch_size

    def classify(params, batch, network, names, opinion, canvas):
        features = tower(params, lay_masks(batch, network, patch, canvas))
        return score(params, features, batch["mask_valid"], batch.get("classes"), names, opinion)

    return classify


def make_scorer(model_config: maskclippp.MaskCLIPppConfig, kind: str, *, ensemble: bool
                ) -> typing.Callable[..., MaskScores]:
    """The jitted program `(params, features, mask_valid, stored, names, opinion) -> MaskScores`:
    what is said of masks that the image tower has looked at.

    `features` are those of `inference.make_tower`, `stored` is the generator's word on classes, see
    `generator_logits`, or None. The other arguments: see `make_segmenter`.
    """
    build = inference.model_builder(model_config)

    @jax.jit
    def scores_of(params, features, mask_valid, stored, names, opinion):
        name_logits = build(params).classify(features, names.embeddings)
        logits = maskclippp.class_logits(name_logits, names.synonym_class)  # [B, N, S']
        generator, of_test_classes = generator_logits(kind, stored, names.synonym_class, opinion)
        given_back = ensembles.void_given_back(logits, opinion.objectness)
        if ensemble:
            logits = ensembles.ensemble(logits, of_test_classes, opinion.weights)
        return jax.tree.map(sharding.constrain_batch,
                            ensembles.scores(logits, generator, mask_valid, given_back))

    return scores_of


def proposals_of(batch: dict, scores: MaskScores) -> Proposals:
    """The masks of a batch (see `make_segmenter`) with their scores, for `postprocess.make_heads`.
    """
    return Proposals(_soft_masks(batch), batch["mask_valid"], _sizes_of(batch),
                     batch["output_size"], scores)


def lay_masks(batch: dict, network: jax.Array, patch: int, canvas: tuple[int, int]
              ) -> inference.OnCanvas:
    """Brings pictures with soft masks to the canvas of the image tower; see `make_segmenter`."""
    image = inference.lay_images(batch["image"], batch["image_size"], network, canvas=canvas)
    grid_masks = _lay_masks({k: batch[k] for k in _MASKS}, network, patch=patch, canvas=canvas)
    return inference.OnCanvas(image, network, grid_masks)


@functools.partial(jax.jit, static_argnames=("patch", "canvas"))
def _lay_masks(batch, network, patch, canvas):
    def one_picture(stored, sizes, network):
        some = lambda stored: mask_chain.to_grid(
            _soft_masks(stored), sizes, network, patch, canvas)
        return layers.in_parts(some, stored, _LAID)

    stored = {k: batch[k] for k in ("masks", "mask_valid")}
    return sharding.constrain_batch(jax.vmap(one_picture)(stored, _sizes_of(batch), network))


def _soft_masks(batch: dict) -> jax.Array:
    """Stored masks [..., N, h, w] as probabilities, empty slots zero."""
    valid = batch["mask_valid"][..., None, None]
    return jnp.where(valid, mask_chain.probabilities(batch["masks"]), 0.0)


def _sizes_of(batch: dict) -> MaskSizes:
    return MaskSizes(*(batch[k] for k in MaskSizes._fields))


def generator_logits(kind: str, stored: jax.Array | None, synonym_class: jax.Array,
                     opinion: Opinion) -> tuple[GeneratorLogits | None, jax.Array | None]:
    """The generator's logits of its own classes, and those of the test classes.

    Args:
      kind: of the bundle's classes.
      stored: [B, N, X] float32.
      synonym_class: [S'] int32, see `inference.Names`.
      opinion: see there.

    Returns:
      Logits of its own classes and void, and [B, N, S'] float32, -inf where it has none; None for
      masks without classes.
    """
    if kind == "none":
        return None, None
    num_columns = len(synonym_class)
    if kind == "embeddings":
        embeddings = similarity.unit(stored)  # [B, N, E]
        name_logits = opinion.scale * jnp.einsum("bne,se->bns", embeddings, opinion.embeddings,
                                                 precision="highest")
        void = opinion.scale * jnp.einsum("bne,e->bn", embeddings, opinion.void,
                                          precision="highest")
        classes = maskclippp.class_logits(name_logits, synonym_class)
        return GeneratorLogits(classes, void), classes
    own = GeneratorLogits(stored[..., :-1], stored[..., -1])
    if kind == "closed":
        return own, ensembles.logits_of_test_classes(own, opinion.lookup, num_columns)
    missing = [(0, 0), (0, 0), (0, num_columns - own.classes.shape[-1])]
    classes = jnp.pad(own.classes, missing, constant_values=-jnp.inf)
    return GeneratorLogits(classes, own.void), classes


def found_in(results: Results, size: typing.Sequence[int], wanted: Heads, vocabulary: Vocabulary,
             overlap_threshold: float) -> Found:
    """One picture's results, from its row of what the device returned.

    Args:
      results: numpy arrays of one picture.
      size: its true (height, width).
      wanted: which results there are.
      vocabulary: of the classes.
      overlap_threshold: see `postprocess.panoptic_segments`.
    """
    height, width = size
    labels = panoptic = instances = None
    if wanted.semantic:
        labels = results.labels[:height, :width]
    if wanted.panoptic:
        panoptic = postprocess.panoptic_segments(
            results.facts.winner[:height, :width], results.facts.covered, results.categories,
            vocabulary.is_thing, overlap_threshold)
    if wanted.num_instances:
        instances = postprocess.instances(
            results.instance_scores, results.instance_classes, results.instance_masks,
            results.facts.bits, (height, width))
    return Found(results.categories, labels, panoptic, instances)
