"""A CLIP with its parameters on the device, that names the masks of any pictures.

`api.Model` is what people hold; this is what its methods share. Pictures and masks are brought to
a few canvases or strips on the host, and names are padded to a few sizes, so that neither a picture
of like size nor another vocabulary compiles anything.
"""

import functools
import typing

import jax
import ml_collections
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.data import mask_batches, mask_chain, pipeline, transforms
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.models import layers, maskclippp, similarity
from maskclippp_jax.naming import blocks, inference, loading, postprocess, segmenter
from maskclippp_jax.naming.canvases import Canvases
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.given import Given
from maskclippp_jax.runtime import texts
from maskclippp_jax.vocabulary import Vocabulary

_MASK_SLOTS = 32  # numbers of masks are multiples of it
_MOST_PATCHES = 2**15  # of a picture; more take gigabytes for each head of attention
_WANTED = postprocess.Heads(semantic=True, panoptic=True)


class Words(typing.NamedTuple):
    """A vocabulary whose names a model has embedded."""

    vocabulary: Vocabulary
    names: inference.Names  # on the device, padded, with folded templates
    of_templates: np.ndarray  # [S', T, E] float32 unit vectors

    @property
    def embeddings(self) -> np.ndarray:
        """[S, E] float32 unit vectors, one row a name: the mean over templates."""
        return segmenter.mean_over_templates(self.of_templates[:self.vocabulary.num_synonyms])


class Seen(typing.NamedTuple):
    """Pictures of one group whose masks the image tower has looked at; any names can follow."""

    pictures: typing.Sequence[Given]
    features: layers.ImageFeatures  # on the device
    mask_valid: np.ndarray          # [B, N'] bool, which slots hold a mask
    classes: np.ndarray | None      # [B, N', X] float32, what a generator says of them


class Namer:
    """What names masks.

    Attributes:
      config: the experiment; the sizes of `config.eval` are used.
      model: sizes of the model.
      title: one line that says what was loaded.
      params: parameters of the model, on the device.
      short_side: pixels of the shorter side at which the image tower sees pictures.
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
        self.params = jax.device_put(params)
        self.short_side = config.eval.short_side or model.image.image_size
        self._on_strips = inference.takes_strips(model.image)
        self._canvases = Canvases(model.image, parameters.count(params["image"]))
        self._opinions: dict[tuple, segmenter.Opinion] = {}
        self._scorers: dict[tuple[str, bool], typing.Callable] = {}

    def __reduce__(self):
        """Pickles and copies hold no programs; each makes its own."""
        return functools.partial(Namer, cache=self._cache), (
            self.config, self.model, jax.device_get(self.params), self.title)

    def embed(self, vocabulary: Vocabulary) -> Words:
        """Embeds every name in every template of the experiment."""
        names = inference.embed_vocabulary(
            self.config, self.model, self._text, vocabulary, folder=self._cache)
        return Words(vocabulary, self._fold(self.params, names), names.embeddings)

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
        own = self._own_canvas(picture)
        kind = "segments" if picture.segments is not None else (
            picture.bundle and str(picture.bundle.folder))
        return kind, self._slots(picture), self._canvases.choose(own)

    def see(self, pictures: typing.Sequence[Given]) -> Seen:
        """What the image tower makes of pictures of one group, and of their masks; raises as
        `group_of` does."""
        own = [self._own_canvas(p) for p in pictures]
        canvas, slots = self._canvases.choose(np.max(own, 0).tolist()), self._slots(pictures[0])
        laid = inference.OnCanvas(*map(np.stack, zip(*(
            self._lay(p, canvas, slots) for p in pictures))))
        features = self._tower(self.params, laid)
        self._canvases.used(canvas, own)
        valid = [np.arange(slots) < len(p.ids) for p in pictures]
        classes = None
        if pictures[0].masks is not None and pictures[0].masks.classes is not None:
            classes = np.stack([_padded(p.masks.classes, slots) for p in pictures])
        return Seen(pictures, features, np.stack(valid), classes)

    def score(self, seen: Seen, words: Words) -> list[MaskScores]:
        """Scores of the masks of pictures: classes [N, C] and void [N], float32."""
        bundle = seen.pictures[0].bundle
        kind, ensemble = self._opinion_kind(bundle)
        features, head = seen.features, self.model.similarity
        if head is None or not head.needs_patches:  # then one program serves all canvases
            features = features._replace(image_embedding=None, patch_embeddings=None,
                                         patch_valid=None)
        classes, void = jax.device_get(self._scorer(kind, ensemble)(
            self.params, features, seen.mask_valid, seen.classes, words.names,
            self._opinion(bundle, words)))
        count = words.vocabulary.num_classes
        return [MaskScores(classes[b, :len(p.ids), :count], void[b, :len(p.ids)])
                for b, p in enumerate(seen.pictures)]

    def encode(self, pictures: typing.Sequence[Given]) -> list[np.ndarray]:
        """Embeddings of the masks of pictures of one group: unit vectors [N, E] float32."""
        found = jax.device_get(_unit(self.see(pictures).features.mask_embeddings))
        return [found[b, :len(p.ids)] for b, p in enumerate(pictures)]

    def look(self, picture: Given, scores: MaskScores, vocabulary: Vocabulary
             ) -> segmenter.Found:
        """The label map and the panoptic segments of soft masks with their scores."""
        size, slots = picture.image.shape[:2], self._slots(picture)
        num_columns = inference.num_rows(vocabulary)
        scores = MaskScores(_padded(scores.classes, slots, num_columns),
                            _padded(scores.void, slots))
        classes = postprocess.Classes.of(vocabulary.is_thing, num_columns,
                                         self.config.eval.object_threshold)
        masks, sizes = picture.masks.masks, self._mask_sizes(picture)
        stored = mask_batches.mask_canvas(masks.shape[1:], self._loaded_size(picture))
        masks = _padded(mask_chain.probabilities_on_host(masks), slots, *stored)
        proposals = postprocess.Proposals(*jax.tree.map(lambda x: x[None], (
            masks, np.arange(slots) < len(picture.ids), sizes, np.array(size, np.int32), scores)))
        found = blocks.look_at(
            functools.partial(self._look, jax.device_put(proposals), classes),
            MaskSizes(*(x.tolist() for x in sizes)), size)
        found = jax.tree.map(lambda x: x[0], found)
        row = found[0][0]._replace(
            labels=blocks.join([[b.labels for b in row] for row in found]),
            facts=blocks.join_facts([[b.facts for b in row] for row in found]))
        return segmenter.found_in(row, size, _WANTED, vocabulary,
                                  self.config.eval.overlap_threshold)

    def _lay(self, picture: Given, canvas: tuple[int, int], slots: int) -> inference.OnCanvas:
        """A picture and its masks as the image tower takes them, without the axis of a batch.

        Made on the host: a program for each size of pictures would take longer to compile than
        hundreds of them take here.
        """
        loaded = transforms.resize_image(picture.image, self._loaded_size(picture))
        network, patch = self._network_size(loaded.shape[:2])[0], self.model.image.patch_size
        on = inference.canvas_of(network[None], patch, cells=1) if self._on_strips else canvas
        image = inference.lay_picture(loaded, network, on)
        if picture.segments is None:
            masks = _padded(mask_chain.to_grid_on_host(
                picture.masks.masks, self._mask_sizes(picture), network, patch, on), slots)
        else:
            stored = np.array(picture.segments.shape, np.int32)
            masks = inference.lay_label_map(picture.segments, self._size_of_masks(picture, stored),
                                            network, patch, on, slots)
        laid = inference.OnCanvas(image, network, masks)
        return inference.to_strip(laid, patch, canvas) if self._on_strips else laid

    def _mask_sizes(self, picture: Given) -> MaskSizes:
        """Of a picture with soft masks, int32 [2] each."""
        found = picture.masks
        stored = np.array(found.masks.shape[1:], np.int32)
        if found.kept is not None:
            return MaskSizes(stored, *(np.array(x, np.int32) for x in (found.enlarged, found.kept)))
        return mask_chain.given_mask_sizes(stored, self._size_of_masks(picture, stored))

    def _size_of_masks(self, picture: Given, stored: np.ndarray) -> np.ndarray:
        """The size through which masks of the picture itself pass, as generated ones would."""
        side = self.config.eval.mask_short_side
        if side is None:
            return stored
        return inference.shorter_side_to(np.array(self._loaded_size(picture), np.int32), side)

    def _slots(self, picture: Given) -> int:
        return -(-max(len(picture.ids), 1) // _MASK_SLOTS) * _MASK_SLOTS

    def _own_canvas(self, picture: Given) -> tuple[int, int]:
        """The smallest canvas of the image tower that holds a picture."""
        network, patch = self._network_size(self._loaded_size(picture)), self.model.image.patch_size
        own = (inference.strip_of(network[0], patch) if self._on_strips
               else inference.canvas_of(network, patch))
        if own[0] * own[1] > _MOST_PATCHES * patch**2:
            (height, width), seen = picture.image.shape[:2], network[0]
            raise ValueError(f"{picture.path or 'a picture'} of {width}x{height} pixels is too "
                             f"long: with its shorter side at {min(seen)} pixels the image "
                             f"tower would see {seen[1]}x{seen[0]}; cut it into pieces")
        return own

    def _loaded_size(self, picture: Given) -> tuple[int, int]:
        settings = self.config.eval
        return pipeline.loaded_size(picture.image.shape[:2], settings.loader_min,
                                    settings.loader_max)

    def _network_size(self, loaded: tuple[int, int]) -> np.ndarray:
        return inference.network_sizes(np.array([loaded], np.int32), self.short_side,
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
                must_share=isinstance(bundle, Bundle) and self.config.eval.ensemble)}
        return self._opinions[key]

    # Programs; made when they are first asked for.

    @functools.cached_property
    def _tower(self):
        return texts.Program(lambda: inference.make_tower(self.model), "tower", self.model,
                             returns=[layers.ImageFeatures])

    @functools.cached_property
    def _fold(self):
        return texts.Program(lambda: inference.make_folder(self.model), "fold", self.model,
                             returns=[inference.Names, similarity.Folded])

    def _look(self, proposals, classes, *, canvas, corner, window):
        return self._heads(proposals, classes, corner, canvas=canvas, window=window)

    @functools.cached_property
    def _heads(self):
        def make():
            heads = postprocess.make_heads(_WANTED)
            return lambda proposals, classes, corner, **static: heads(
                proposals, classes, corner=corner, **static)

        return texts.Program(make, "heads", _WANTED, postprocess.tile_for(),
                             returns=[postprocess.Results, postprocess.MaskFacts],
                             static=["canvas", "window"])

    def _scorer(self, kind: str, ensemble: bool):
        if (kind, ensemble) not in self._scorers:
            self._scorers[kind, ensemble] = texts.Program(
                lambda: segmenter.make_scorer(self.model, kind, ensemble=ensemble),
                "scorer", self.model, kind, ensemble, returns=[MaskScores])
        return self._scorers[kind, ensemble]


_unit = jax.jit(similarity.unit)


def _padded(array: np.ndarray, *sides: int) -> np.ndarray:
    """Zeros behind the first axes of an array, up to these sides."""
    return np.pad(array, [(0, side - n) for n, side in zip(array.shape, sides)]
                  + [(0, 0)] * (array.ndim - len(sides)))
