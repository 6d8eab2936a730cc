"""The door from Python: `import maskclippp_jax as mc`, then `mc.load(...)`.

The command line calls what is here, so that both give the same.
"""

import collections
import copy
import functools
import numbers
import os
import typing
import warnings

import jax
import ml_collections
import numpy as np

from maskclippp_jax import config as configuration, configs
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.data.label_maps import Nothing
from maskclippp_jax.data.tiling import Tiles
from maskclippp_jax.naming import (
    batching,
    generator_loading,
    given,
    loading,
    namer,
    text_cache,
    tiled,
)
from maskclippp_jax.naming.generator import FAST_MULTIPLE, OBJECTNESS, Generator, Waiting
from maskclippp_jax.naming.given import Given, ImageLike, MasksLike
from maskclippp_jax.naming.namer import Namer, Words
from maskclippp_jax.naming.result import Result, Unnamed
from maskclippp_jax.runtime import background, programs, progress, storage
from maskclippp_jax.vocabulary import Vocabulary
from maskclippp_jax.weights import published

if typing.TYPE_CHECKING:
    from maskclippp_jax.export.folder import Checked

__all__ = ["Bundle", "Generator", "Model", "Result", "Seen", "Vocabulary", "Words", "load",
           "load_generator"]

# Classes: a list of names (synonyms after commas), a command line's "cat;dog,puppy", a vocabulary,
# or one whose names are embedded already.
ClassesLike = typing.Sequence[str] | str | Vocabulary | Words

_VOCABULARIES = 8  # whose embeddings stay in memory
_BATCH = 8         # pictures that an accelerator works on at once
_AHEAD = 4         # batches read while the device works
OVERLAP = 128      # pixels of neighbouring tiles, if nothing is said

_NO_GENERATOR = (
    "there is no mask generator; load one, mc.load(..., generator=\"eomt-l-640\"), or give the "
    "masks, model.name(image, masks, classes); maskclippp_jax.superpixels in their place takes "
    "regions of like colour")


def load(checkpoint: str | os.PathLike,
         config: str | os.PathLike | ml_collections.ConfigDict | None = None, *,
         generator: "str | os.PathLike | Generator | None" = None, keep_embeddings: bool = True,
         keep_programs: bool = True, **changes) -> "Model":
    """A model that names masks.

    Args:
      checkpoint: the folder of a training run (its newest checkpoint) or of one checkpoint in it; a
        checkpoint file, here or `hf://owner/name[/file]`, together with `config`; `hf://owner/name`
        alone, if `maskclippp publish` made it; "untuned", the pre-trained CLIP of `config`; the
        name of a published MaskCLIP++, "maskclippp-l"
        (`maskclippp weights` shows all); or that of a published CLIP, which is taken untuned:
        "EVA02-CLIP-B-16", "ViT-B-16:openai" (`maskclippp convert --list` shows all).
      config: the experiment a file belongs to: the name of a shipped configuration, with its
        argument after a colon, the path of an own one, or what its `get_config` returned. A run
        knows its own.
      generator: what finds masks for `segment`, see `load_generator`; None: nothing does.
      keep_embeddings: whether embeddings of names are kept on disk, in ~/.cache/maskclippp_jax.
      keep_programs: whether compiled programs are kept there for the next start, unless JAX has a
        cache of its own; JAX keeps other programs of this process there as well.
      **changes: values of the configuration, such as `sentencepiece="spiece.model"` or
        `weights="clip.pt"`; a dot in a key is written as two underscores (`eval__short_side=448`).

    Raises:
      FileNotFoundError: nothing there.
      ValueError: the file does not fit, nothing says which model it is of, or the configuration
        takes no such value.
    """
    checkpoint = _path(checkpoint, "checkpoint", "the folder of a run, a file, or the name of a "
                       "published model")
    if keep_programs:
        programs.keep_in_python()
    if generator is not None:
        generator = _finder_of_masks(generator, keep_programs)
    if config is None and _is_published(checkpoint):
        name, _, training = checkpoint.partition(":")
        config = f"published_clip:name={name}" + (f",training={training}" if training else "")
        checkpoint = "untuned"
    if config is not None and not isinstance(config, ml_collections.ConfigDict):
        config = configs.read(_path(config, "configuration", "the name of a shipped one, the path "
                                    "of an own one, or what its get_config returned"))
    experiment = _changed(loading.experiment_of(checkpoint, config), changes)
    if wrong := configuration.wrong_templates(experiment.templates):
        raise ValueError(wrong)
    model, params, title = loading.load_checkpoint(checkpoint, experiment)
    cache = str(storage.CACHE / text_cache.FOLDER) if keep_embeddings else None
    return Model(Namer(experiment, model, params, title, cache=cache), generator)


def load_generator(source: str | os.PathLike, *, objectness: float = OBJECTNESS,
                   side: int | None = None, clip: str | os.PathLike | None = None,
                   classes: str | typing.Sequence[str] | Vocabulary | None = None,
                   dtype: str = "float32", fast: bool = False,
                   keep_programs: bool = True) -> Generator:
    """A mask generator: an EoMT, a Mask2Former, an FC-CLIP or a MAFT+.

    It takes the place of masks in `Model.name` and `Model.name_many`. The first two also find
    segments of their own classes by themselves (`generator.panoptic(image)`, `instances`,
    `semantic`); the others have an opinion of any class, by the text tower of the CLIP they were
    made from.

    Args:
      source: the name of a published one, such as "eomt-l-640" or "fcclip-l" (`maskclippp convert
        --list` shows all), fetched from the hub; a file, here or `hf://owner/name[/file]`, with the
        authors' names (an EoMT's and a Mask2Former's also with transformers'); or a folder as the
        hub has it. The names and shapes in it tell kind and sizes, but for what a config.json
        beside it says of one that nobody published.
      objectness: the least probability of being any object that makes a query a mask; 0: all are.
      side: pixels of an EoMT's square input, if not those it was trained at; nobody published
        results so.
      clip: the file of the CLIP that an FC-CLIP was made from, for what its own file lacks (trunk
        and text tower); None: the published one of its size, from the hub.
      classes: names of the classes it was trained on, in their order; None: those of the published
        one, or as its file tells.
      dtype: "float32" or "bfloat16", of the arithmetic (of the trunk, where there is a decoder).
      fast: whether pictures are padded to sides that are multiples of 160 in place of 32, so that
        most share a program and a batch. All but an EoMT see padding, so their masks differ then
        (nobody has measured by how much); an EoMT's input is always a square of one size.
      keep_programs: see `load`.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: the file does not fit.
    """
    if keep_programs:
        programs.keep_in_python()
    if classes is not None:
        classes = _vocabulary_of(classes)
    source = _path(source, "mask generator", "the name of a published one, a file or a folder; a "
                   "function that makes masks goes in their place, model.name(image, function, "
                   "classes)")
    generator = generator_loading.load(
        source, objectness=objectness, side=side, clip=clip and _path(clip, "CLIP", "its file"),
        classes=classes, dtype=dtype)
    if fast and generator.preparation:
        generator.preparation = generator.preparation._replace(multiple=FAST_MULTIPLE)
    return generator


class Model:
    """A CLIP, tuned or not, that names the masks of any pictures in any words.

    Attributes:
      generator: what finds masks for `segment`, or None; see `load_generator`.
    """

    def __init__(self, namer: Namer, generator: Generator | None = None):
        """See `load`."""
        self._namer, self.generator = namer, generator
        self._words: collections.OrderedDict[Vocabulary, Words] = collections.OrderedDict()

    @property
    def title(self) -> str:
        """What was loaded."""
        return self._namer.title

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The experiment: sizes, templates, thresholds."""
        return self._namer.config

    def __repr__(self) -> str:
        return f"<Model {self.title}: {published.name_of(self._namer.model)}>"

    def vocabulary(self, classes: ClassesLike) -> Words:
        """Embeds the names of classes once; what it returns may be given wherever classes are.

        It is kept in memory, and on disk. As long as two vocabularies have like numbers of names
        (up to 64, 128, 256, ...), the second one compiles nothing.

        Args:
          classes: a list of names, the synonyms of a class separated by commas; "cat;dog,puppy"; or
            a `Vocabulary`: `Vocabulary.load("ade20k_150")`, `Vocabulary.from_file("names.txt")`.

        Raises:
          ValueError: no class, an empty name, or one that is there twice.
        """
        if isinstance(classes, Words):
            return classes
        classes = _vocabulary_of(classes)
        if unknown := self._namer.unknown_words(classes):
            known = " ".join(self._namer.model.text.words)
            warnings.warn(f"this model has never seen {loading.some(unknown)}; it knows the words "
                          f"{known}", stacklevel=2)
        if classes not in self._words:
            self._words[classes] = self._namer.embed(classes)
            if len(self._words) > _VOCABULARIES:
                self._words.popitem(last=False)
        self._words.move_to_end(classes)
        return self._words[classes]

    def name(self, image: ImageLike, masks: MasksLike, classes: ClassesLike, *,
             nothing: Nothing = None, minimum_score: float = 0.0, distractors: ClassesLike = (),
             tiles: int | None = None, overlap: int = OVERLAP) -> Result:
        """Names the masks of a picture.

        Args:
          image: a path, an image of PIL, or an array [H, W, 3] of uint8 in the order red, green,
            blue ([H, W] of grey).
          masks: a label map [H, W] of integers (every number is a mask, 0 as well, but those that
            mean nothing), or its path (PNG or TIFF); [N, H, W] of bool, or of shares in 0 ... 1;
            a list of dicts whose `segmentation` is such a mask [H, W], as SAM returns it, or run
            lengths or polygons as COCO has them, which a .json file may hold as well; a .npy or
            .npz file of any of these arrays; a folder with a PNG for each mask;
            `Bundle(folder)[image_id]`; a generator (`load_generator`); or a function that makes any
            of these of the picture, such as `maskclippp_jax.superpixels`.
          classes: see `vocabulary`.
          nothing: number or numbers that mean nothing in label maps, such as 0; None: 255 and
            65535.
          minimum_score: in 0 ... 1; masks whose best class scores less get no name.
          distractors: words such as ["other", "background"] that compete with the classes; masks
            that they fit best get no name.
          tiles: of large pictures: side in pixels of squares that are looked at one by one, see
            `naming.tiled`; a generator or function makes masks of each. A picture that is no
            larger gives just what it gives without.
          overlap: pixels by which neighbouring tiles overlap at least.

        Raises:
          FileNotFoundError, ValueError: picture, masks or classes cannot be used.
        """
        words, unnamed = self._words_of(classes, minimum_score, distractors)
        if tiles is not None:
            return self._name_in_tiles(image, masks, words, unnamed, nothing,
                                       Tiles(tiles, overlap), 1)
        return self._name([given.read(image, masks, nothing)], words, unnamed)[0]

    def name_many(self, pictures: typing.Iterable[tuple[ImageLike, MasksLike]],
                  classes: ClassesLike, *, nothing: Nothing = None, minimum_score: float = 0.0,
                  distractors: ClassesLike = (), tiles: int | None = None, overlap: int = OVERLAP,
                  batch_size: int | None = None, total: int | None = None,
                  on_error: typing.Callable[[int, Exception], None] | None = None,
                  show_progress: bool = True) -> typing.Iterator[Result | None]:
        """Names the masks of many pictures, in their order; some are read ahead.

        Args:
          pictures: of each, the picture and its masks, as `name` takes them.
          classes: see `vocabulary`.
          nothing, minimum_score, distractors, tiles, overlap: see `name`.
          batch_size: pictures (or tiles) the device works on at once; those of like size go
            together. None: one on a CPU, eight on accelerators.
          total: how many there are, for the time left, if `len` does not tell.
          on_error: is told the place of a picture that cannot be used, and why; None takes its
            place in what is returned. Without it the first such picture ends all with its error.
          show_progress: whether people see how far it is.
        """
        if batch_size is None:
            batch_size = 1 if jax.default_backend() == "cpu" else _BATCH
        given.check_whole("batch_size", batch_size, 1)
        words, unnamed = self._words_of(classes, minimum_score, distractors)
        if total is None and hasattr(pictures, "__len__"):
            total = len(pictures)
        if tiles is not None:
            # One large picture after the other; none is read ahead.
            results = (self._try_in_tiles(pair, words, unnamed, nothing, Tiles(tiles, overlap),
                                          batch_size) for pair in pictures)
            return progress.track(_usable(results, on_error), "naming", total=total,
                                  shown=show_progress)
        read = background.read_ahead(functools.partial(_read, nothing=nothing), pictures,
                                     _AHEAD * batch_size)
        results = self._in_batches(read, words, unnamed, batch_size)
        return progress.track(_usable(results, on_error), "naming", total=total,
                              shown=show_progress)

    def seen(self, image: ImageLike, masks: MasksLike, *, nothing: Nothing = None) -> "Seen":
        """A picture with its masks, looked at once, to be named in one vocabulary after the other.

        `model.seen(image, masks).name(classes)` gives what `model.name(image, masks, classes)`
        does; the image tower runs once, and a name after it takes the time of its embedding.

        Args:
          image, masks, nothing: see `name`.
        """
        return Seen(self, self._namer.see([given.read(image, masks, nothing)]))

    def encode(self, image: ImageLike, masks: MasksLike, *, nothing: Nothing = None) -> np.ndarray:
        """Embeddings of masks, to be searched, clustered, or compared with those of names.

        Args:
          image, masks, nothing: see `name`.

        Returns:
          [N, E] float32 unit vectors; `vocabulary(...).embeddings` are those of names, and their
          products cosines.
        """
        return self._namer.encode([given.read(image, masks, nothing)])[0]

    def segment(self, image: ImageLike, classes: ClassesLike, *, minimum_score: float = 0.0,
                distractors: ClassesLike = (), tiles: int | None = None, overlap: int = OVERLAP
                ) -> Result:
        """Finds and names the segments of a picture: `name` with the masks of `generator`.

        Where the generator finds nothing the result has no mask. In `name_many`, give
        `model.generator` in place of masks.

        Raises:
          FileNotFoundError, ValueError: there is no generator, or picture or classes cannot be
            used.
        """
        if self.generator is None:
            raise ValueError(_NO_GENERATOR)
        return self.name(image, self.generator, classes, minimum_score=minimum_score,
                         distractors=distractors, tiles=tiles, overlap=overlap)

    def export(self, folder: str | os.PathLike, classes: ClassesLike, *, format: str = "onnx",
               sizes: typing.Sequence[tuple[int, int]] = (), num_masks: int | None = None,
               batch: int | None = None, dtype: str = "float32", overwrite: bool = False
               ) -> "dict[str, Checked]":
        """Writes a folder that names masks without this package: docs/export.md tells its files.

        The mask generator is in it, if there is one. Every program is run and compared with ours
        before the folder appears.

        Args:
          folder: to be made.
          classes: see `vocabulary`.
          format: "onnx", or "stablehlo" of `jax.export`: one artefact for CPUs, CUDA and TPUs.
          sizes: (width, height) of what the image tower sees, pixels, multiples of its cells; an
            encoder for each. (): a broad and a high one of 16:9. Pictures that are longer than
            all of these are seen smaller than `name` sees them.
          num_masks: of every picture; None: any number.
          batch: pictures at once, of one size; None: any number.
          dtype: "float32" or "float16", or "bfloat16" of StableHLO.
          overwrite: whether an earlier export is replaced.

        Returns:
          Largest difference and seconds of each program.

        Raises:
          FileExistsError: the folder exists.
          ValueError: wrong wishes, a model or generator that has no such form, or a program that
            gives other numbers than ours.
        """
        from maskclippp_jax.export import folder as exporting  # few need it

        wishes = exporting.Wishes(format, sizes, num_masks, batch, dtype)
        exporting.check(self._namer, self.generator, wishes)
        exporting.check_target(folder, overwrite=overwrite)
        return exporting.write(self._namer, self.generator, self.vocabulary(classes), folder,
                               wishes, overwrite=overwrite)

    def _words_of(self, classes: ClassesLike, minimum_score: float, distractors: ClassesLike
                  ) -> tuple[Words, Unnamed]:
        """Classes with distractors behind them, and which masks get no name."""
        if not isinstance(minimum_score, numbers.Real) or not 0 <= minimum_score <= 1:
            raise ValueError(f"got minimum_score={minimum_score!r}, wanted 0 ... 1")
        if isinstance(distractors, typing.Sized) and not len(distractors):
            return self.vocabulary(classes), Unnamed(minimum_score)
        others = _vocabulary_of(distractors)
        words = self.vocabulary(_vocabulary_of(classes).followed_by(others))
        return words, Unnamed(minimum_score, others.num_classes)

    def _name(self, pictures: list[Given], words: Words, unnamed: Unnamed) -> list[Result]:
        scores = self._namer.score(self._namer.see(pictures), words)
        return [Result(self._namer, p, words.vocabulary, s, unnamed)
                for p, s in zip(pictures, scores)]

    def _in_batches(self, read: typing.Iterator[Given | Waiting | Exception], words: Words,
                    unnamed: Unnamed, batch_size: int) -> typing.Iterator[Result | Exception]:
        """Pictures named in batches of like ones, in their order."""
        batches = dict(size=batch_size, ahead=_AHEAD * batch_size)
        with_masks = batching.in_groups(
            read, lambda item: not isinstance(item, Waiting), lambda item: item.group,
            lambda items: items[0].generator.find(items), **batches)
        return batching.in_groups(
            background.ahead(with_masks, batches["ahead"]),
            lambda item: isinstance(item, Exception), self._namer.group_of,
            functools.partial(self._name, words=words, unnamed=unnamed), **batches)

    def _name_in_tiles(self, image: ImageLike, masks: MasksLike, words: Words, unnamed: Unnamed,
                       nothing: Nothing, tiles: Tiles, batch_size: int) -> Result:
        cut = tiled.Cut(image, masks, nothing, tiles)
        if len(cut.windows) == 1:
            return self._name([cut.alone()], words, unnamed)[0]
        read = (part if isinstance(part, Given) else _read(part, nothing=nothing)
                for part in cut.parts())
        for result in _usable(self._in_batches(read, words, Unnamed(), batch_size), None):
            cut.add(result)
        whole, scores = cut.finish()
        return Result(self._namer, whole, words.vocabulary, scores, unnamed)

    def _try_in_tiles(self, pair: tuple[ImageLike, MasksLike], *settings) -> Result | Exception:
        """What `_name_in_tiles` gives, or why a picture cannot be used."""
        try:
            return self._name_in_tiles(*_checked_pair(pair), *settings)
        except (ValueError, OSError) as error:
            return error


class Seen:
    """A picture with its masks that a model has looked at; made by `Model.seen`."""

    def __init__(self, model: Model, seen: namer.Seen):
        self._model, self._seen = model, seen
        self._picture, = seen.pictures

    @property
    def image(self) -> np.ndarray:
        """[H, W, 3] uint8."""
        return self._picture.image

    def __len__(self) -> int:
        """How many masks there are."""
        return len(self._picture.ids)

    def name(self, classes: ClassesLike, *, minimum_score: float = 0.0,
             distractors: ClassesLike = ()) -> Result:
        """Names the masks; see `Model.name`."""
        words, unnamed = self._model._words_of(classes, minimum_score, distractors)
        scores, = self._model._namer.score(self._seen, words)
        return Result(self._model._namer, self._picture, words.vocabulary, scores, unnamed)


def _vocabulary_of(classes: ClassesLike) -> Vocabulary:
    if isinstance(classes, Words):
        return classes.vocabulary
    if isinstance(classes, Vocabulary):
        return classes
    return (Vocabulary.from_string if isinstance(classes, str) else Vocabulary.from_names)(classes)


def _usable(results: typing.Iterable[Result | Exception],
            on_error: typing.Callable[[int, Exception], None] | None
            ) -> typing.Iterator[Result | None]:
    """The results; `on_error` is told of the others, or the first of them is raised."""
    for place, result in enumerate(results):
        if isinstance(result, Exception):
            if on_error is None:
                raise result
            on_error(place, result)
        yield None if isinstance(result, Exception) else result


def _read(pair: tuple[ImageLike, MasksLike], nothing: Nothing) -> Given | Waiting | Exception:
    """A picture with its masks or waiting for them, or why it cannot be used."""
    try:
        image, masks = _checked_pair(pair)
        return masks.enter(image) if isinstance(masks, Generator) else given.read(
            image, masks, nothing)
    except (ValueError, OSError) as error:
        return error


def _checked_pair(pair: tuple[ImageLike, MasksLike]) -> tuple[ImageLike, MasksLike]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"got {pair!r:.80}, wanted a pair: the picture and its masks")
    return tuple(pair)


def _finder_of_masks(generator: str | os.PathLike | Generator, keep_programs: bool) -> Generator:
    """A generator, loaded if it is not, that has masks of whole pictures.

    Raises:
      FileNotFoundError, ValueError: it cannot be loaded, or has none.
    """
    if not isinstance(generator, Generator):
        generator = load_generator(generator, keep_programs=keep_programs)
    generator.require_masks()
    return generator


def _path(value: str | os.PathLike, what: str, wanted: str) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"got {value!r:.80} for the {what}, wanted {wanted}")
    return os.fspath(value)


def _is_published(name: str) -> bool:
    model, _, training = name.partition(":")
    return any(entry.name == model for entry in published.MODELS) and not os.path.exists(name)


def _changed(config: ml_collections.ConfigDict, changes: dict) -> ml_collections.ConfigDict:
    """The configuration with other values.

    Raises:
      ValueError: it has no such key, or the key takes no such value.
    """
    if not changes:
        return config
    # With references, which know the types of keys that are None; a stored one gets types.
    config = ml_collections.ConfigDict(
        copy.deepcopy(config).to_dict(preserve_field_references=True))
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = config
        for parent in parents:
            node = node.get(parent) if isinstance(node, ml_collections.ConfigDict) else None
        if not isinstance(node, ml_collections.ConfigDict) or last not in node:
            raise ValueError(f"the configuration has no key {key.replace('__', '.')}; "
                             "configs/common.py has all")
        try:
            node[last] = value
        except TypeError as error:  # of ml_collections
            raise ValueError(f"{key.replace('__', '.')} cannot be {value!r} ({error})") from None
    return config.lock()
