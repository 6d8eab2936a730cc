"""A CLIP with its parameters on the device, that names the masks of any pictures.

`api.Model` is what people hold; this is what its methods share. One program for each shape:
pictures, masks and names are padded to a few sizes, so that neither a picture of like size nor
another vocabulary compiles anything.
"""

import functools
import typing

import jax
import ml_collections
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.data import mask_batches, pipeline, transforms
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.models import layers, maskclippp
from maskclippp_jax.naming import inference, loading, postprocess, segmenter
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.given import Given
from maskclippp_jax.vocabulary import Vocabulary

_MASK_SLOTS = 32  # numbers of masks are multiples of it
_MOST_PATCHES = 2**15  # of a picture; more take gigabytes for each head of attention
_WANTED = postprocess.Heads(semantic=True, panoptic=True)


class Words(typing.NamedTuple):
    """A vocabulary whose names a model has embedded."""

    vocabulary: Vocabulary
    names: inference.Names  # on the device, padded

    @property
    def embeddings(self) -> np.ndarray:
        """[S, E] float32 unit vectors, one row a name: the mean over templates."""
        embeddings = np.asarray(self.names.embeddings)[:self.vocabulary.num_synonyms]
        return segmenter.mean_over_templates(embeddings)


class Seen(typing.NamedTuple):
    """A picture whose masks the image tower has looked at; any names can follow."""

    picture: Given
    features: layers.ImageFeatures  # on the device, of a batch of one
    masks: dict  # of the batch: `mask_valid` [1, N'] bool, and `classes` where a generator has some


class Namer:
    """What names masks.

    Attributes:
      config: the experiment; the sizes of `config.eval` are used.
      model: sizes of the model.
      title: one line that says what was loaded.
    """

    def __init__(self, config: ml_collections.ConfigDict, model: maskclippp.MaskCLIPppConfig,
                 params: parameters.Tree, title: str, *, cache: str | None = None):
        """Brings the parameters to the device.

        Args:
          config: the experiment.
          model: sizes of the model.
          params: its parameters, on the host.
          title: says what was loaded.
          cache: folder for embeddings of names (`text_cache`); None: they are not kept.
        """
        self.config, self.model, self.title = config, model, title
        self._text, self._cache = dict(text=params["text"]), cache
        self._params = jax.device_put(params)
        self._short_side = config.eval.short_side or model.image.image_size
        self._opinions: dict[tuple, segmenter.Opinion] = {}
        self._classifiers: dict[tuple[str, bool], typing.Callable] = {}
        self._scorers: dict[tuple[str, bool], typing.Callable] = {}

    def embed(self, vocabulary: Vocabulary) -> Words:
        """Embeds every name in every template of the experiment."""
        names = inference.embed_vocabulary(
            self.config, self.model, self._text, vocabulary, folder=self._cache)
        return Words(vocabulary, jax.device_put(names))

    def unknown_words(self, vocabulary: Vocabulary) -> list[str]:
        """Words that a small model has never seen; it cannot tell them apart."""
        return self._tokenizer.unknown_words(n for c in vocabulary.classes for n in c)

    @functools.cached_property
    def _tokenizer(self):
        return loading.make_tokenizer(self.model, getattr(self.config, "sentencepiece", ""))

    def group_of(self, picture: Given) -> tuple:
        """Pictures of one group may be named together, with one program.

        Raises:
          ValueError: a picture so long that the image tower cannot see it whole.
        """
        size, patch = self._loaded_size(picture), self.model.image.patch_size
        network = inference.canvas_of(self._network_size(size), patch)
        if network[0] * network[1] > _MOST_PATCHES * patch**2:
            height, width = picture.image.shape[:2]
            raise ValueError(f"{picture.path or 'a picture'} of {width}x{height} pixels is too "
                             f"long: with its shorter side at {min(network)} pixels the image "
                             f"tower would see {network[1]}x{network[0]}; cut it into pieces")
        canvas = pipeline.up(size, pipeline.CANVAS)
        slots = -(-max(len(picture.ids), 1) // _MASK_SLOTS) * _MASK_SLOTS
        if picture.segments is not None:
            stored = pipeline.up(picture.segments.shape, pipeline.CANVAS)
            return "segments", canvas, stored, slots, network
        stored = mask_batches.mask_canvas(picture.masks.masks.shape[1:], size)
        kind = picture.masks.masks.dtype.str, picture.bundle and str(picture.bundle.folder)
        return kind, canvas, stored, slots, network

    def score(self, pictures: typing.Sequence[Given], words: Words) -> list[MaskScores]:
        """Scores of the masks of pictures of one group: classes [N, C] and void [N], float32."""
        batch, network, canvas = self._batch(pictures)
        if pictures[0].segments is not None:
            result = self._name_segments(self._params, batch, network, words.names, canvas)
            scores = MaskScores(result.scores, np.zeros(result.scores.shape[:2], np.float32))
        else:
            kind, ensemble = self._opinion_kind(pictures[0].bundle)
            scores = self._classifier(kind, ensemble)(
                self._params, batch, network, words.names,
                self._opinion(pictures[0].bundle, words), canvas=canvas)
        classes, void = jax.device_get(scores)
        count = words.vocabulary.num_classes
        return [MaskScores(classes[b, :len(p.ids), :count], void[b, :len(p.ids)])
                for b, p in enumerate(pictures)]

    def see(self, picture: Given) -> Seen:
        """What the image tower makes of a picture and its masks, for `score_seen`."""
        batch, network, canvas = self._batch([picture])
        features = self._segment_features if picture.segments is not None else self._mask_features
        seen = features(self._params, batch, network, canvas)
        if picture.segments is not None:
            batch["mask_valid"] = np.ones(batch["labels"].shape, bool)
        return Seen(picture, seen, {k: batch[k] for k in ("mask_valid", "classes") if k in batch})

    def score_seen(self, seen: Seen, words: Words) -> MaskScores:
        """`score` of a picture that was seen; the image tower does not run again."""
        kind, ensemble = self._opinion_kind(seen.picture.bundle)
        scores = self._scorer(kind, ensemble)(self._params, seen.features, seen.masks, words.names,
                                              self._opinion(seen.picture.bundle, words))
        classes, void = jax.device_get(scores)
        count = len(seen.picture.ids)
        return MaskScores(classes[0, :count, :words.vocabulary.num_classes], void[0, :count])

    def encode(self, pictures: typing.Sequence[Given]) -> list[np.ndarray]:
        """Embeddings of the masks of pictures of one group: unit vectors [N, E] float32."""
        batch, network, canvas = self._batch(pictures)
        encode = self._segment_encoder if pictures[0].segments is not None else self._mask_encoder
        found = jax.device_get(encode(self._params, batch, network, canvas))
        return [found[b, :len(p.ids)] for b, p in enumerate(pictures)]

    def look(self, picture: Given, scores: MaskScores, vocabulary: Vocabulary
             ) -> segmenter.Found:
        """The label map and the panoptic segments of soft masks with their scores."""
        batch, _, _ = self._batch([picture])
        slots = batch["mask_valid"].shape[1]
        num_columns = inference.num_rows(vocabulary)
        pad = lambda x, *sides: np.pad(x, [(0, side - n) for n, side in zip(x.shape, sides)])
        scores = MaskScores(pad(scores.classes, slots, num_columns)[None],
                            pad(scores.void, slots)[None])
        classes = postprocess.Classes.of(vocabulary.is_thing, num_columns,
                                         self.config.eval.object_threshold)
        size = picture.image.shape[:2]
        results = self._heads(segmenter.proposals_of(batch, scores), classes,
                              canvas=pipeline.up(size, pipeline.CANVAS))
        row = jax.tree.map(lambda x: x[0], jax.device_get(results))
        return segmenter.found_in(row, size, _WANTED, vocabulary,
                                  self.config.eval.overlap_threshold)

    def _batch(self, pictures: typing.Sequence[Given]) -> tuple[dict, typing.Any, tuple[int, int]]:
        """Arrays, the sizes on their way, and the canvas of the image tower."""
        _, canvas, stored, slots, network = self.group_of(pictures[0])
        rows = [self._segments_row(p, canvas, stored, slots) if p.segments is not None
                else self._masks_row(p, canvas, stored, slots) for p in pictures]
        batch = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
        settings, patch = self.config.eval, self.model.image.patch_size
        if pictures[0].segments is None:
            batch, sizes = segmenter.with_sizes(batch, settings, self._short_side, patch)
            return batch, sizes, network
        sizes = inference.sizes_of(batch, self._short_side, settings.mask_short_side,
                                   max_tokens=settings.max_tokens, patch=patch)
        return {k: batch[k] for k in ("image", "segments", "labels")}, sizes, network

    def _segments_row(self, picture: Given, canvas, stored, slots: int) -> dict:
        loaded = transforms.resize_image(picture.image, self._loaded_size(picture))
        return dict(
            image=transforms.pad_to_canvas(loaded, canvas),
            image_size=np.array(loaded.shape[:2], np.int32),
            segments=transforms.pad_to_canvas(picture.segments.astype(np.uint16), stored),
            segments_size=np.array(picture.segments.shape, np.int32),
            labels=np.zeros(slots, np.int32))

    def _masks_row(self, picture: Given, canvas, stored, slots: int) -> dict:
        loaded = transforms.resize_image(picture.image, self._loaded_size(picture))
        return mask_batches.row_of(loaded, picture.masks, (canvas, None, stored), slots) | dict(
            output_size=np.array(picture.image.shape[:2], np.int32))

    def _loaded_size(self, picture: Given) -> tuple[int, int]:
        settings = self.config.eval
        return pipeline.loaded_size(picture.image.shape[:2], settings.loader_min,
                                    settings.loader_max)

    def _network_size(self, loaded: tuple[int, int]) -> np.ndarray:
        return inference.network_sizes(np.array([loaded], np.int32), self._short_side,
                                       self.config.eval.max_tokens, self.model.image.patch_size)

    def _opinion_kind(self, bundle: Bundle | None) -> tuple[str, bool]:
        if bundle is None:
            return "none", False
        return bundle.kind, self.config.eval.ensemble and bundle.kind != "none"

    def _opinion(self, bundle: Bundle | None, words: Words) -> segmenter.Opinion:
        key = bundle and str(bundle.folder), words.vocabulary
        if key not in self._opinions:
            vocabulary = words.vocabulary
            seen = np.zeros(vocabulary.num_classes, bool)
            if self._opinion_kind(bundle)[1]:
                seen = inference.seen_classes(self.config, vocabulary)
            self._opinions = {key: segmenter.opinion_in(  # the newest one is asked for again
                self.config.eval, vocabulary, seen, bundle, inference.num_rows(vocabulary),
                must_share=isinstance(bundle, Bundle))}
        return self._opinions[key]

    # Programs; made when they are first asked for.

    @functools.cached_property
    def _name_segments(self):
        return inference.make_namer(self.model, semantic=False)

    @functools.cached_property
    def _segment_features(self):
        return inference.make_features(self.model)

    @functools.cached_property
    def _mask_features(self):
        return segmenter.make_features(self.model)

    @functools.cached_property
    def _segment_encoder(self):
        return inference.make_encoder(self.model)

    @functools.cached_property
    def _mask_encoder(self):
        return segmenter.make_encoder(self.model)

    @functools.cached_property
    def _heads(self):
        return postprocess.make_heads(_WANTED)

    def _classifier(self, kind: str, ensemble: bool):
        if (kind, ensemble) not in self._classifiers:
            self._classifiers[kind, ensemble] = segmenter.make_classifier(
                self.model, kind, ensemble=ensemble)
        return self._classifiers[kind, ensemble]

    def _scorer(self, kind: str, ensemble: bool):
        if (kind, ensemble) not in self._scorers:
            self._scorers[kind, ensemble] = segmenter.make_scorer(
                self.model, kind, ensemble=ensemble)
        return self._scorers[kind, ensemble]
