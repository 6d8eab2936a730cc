"""From a file, a folder, the hub, or a published name to a mask generator."""

import dataclasses
import functools
import os
import pathlib
import typing

import jax.numpy as jnp
import numpy as np

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.generators.eomt import EoMTConfig, resize_position_table
from maskclippp_jax.generators.fcclip import FCCLIPConfig
from maskclippp_jax.generators.mask2former import PIXEL_MEAN, PIXEL_STD
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.naming import loading, segmenter, text_cache
from maskclippp_jax.naming.generator import OBJECTNESS, Config, Generator
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary, split_names
from maskclippp_jax.weights import (
    eomt,
    fcclip,
    files,
    generator_files,
    hub,
    mask2former,
    model_shapes,
    published_generators,
)
from maskclippp_jax.weights.published_generators import PublishedGenerator
from maskclippp_jax.weights.source import Source


def load(source: str | os.PathLike, *, objectness: float = OBJECTNESS, side: int | None = None,
         clip: str | None = None, classes: Vocabulary | None = None, dtype: str = "float32",
         usual_clip: str | None = None) -> Generator:
    """A generator from a file, a folder, or the hub; see `api.load_generator`.

    `usual_clip` stands for `clip` where one is needed and none was given.
    """
    source = os.fspath(source)
    if dtype not in configuration.DTYPES:
        raise ValueError(f"got dtype={dtype!r}, wanted {' or '.join(configuration.DTYPES)}")
    entry = None
    if not hub.is_on_hub(source) and not storage.path(source).exists():
        entry = published_generators.find(source)
        if entry is None:
            raise FileNotFoundError(
                f"no file or folder {source}, and no published generator of this name"
                f"{published_generators.nearest(source)}; `maskclippp convert --list` shows all")
    path = source
    if entry:
        path = hub.fetch_download(entry.source, entry.file, what=entry.name) if hub.is_address(
            entry.source) else entry.source
    if not hub.is_on_hub(path) and storage.path(hub.fetch(path)).is_dir():
        raise FileNotFoundError(f"the folder {path} has none of {', '.join(hub.FILES)}; give the "
                                "file of a generator, or a folder as the hub has it")
    file = eomt.open_file(path)
    kind = generator_files.kind_of(file, path)
    if kind != "eomt" and side is not None:
        raise ValueError(f"got side={side}, but {source} takes pictures of any size; leave it out")
    if kind != "fcclip" and clip is not None:
        raise ValueError(f"got clip={clip}, but {source} needs no CLIP; leave it out")
    settings = dict(objectness=objectness, dtype=jnp.dtype(dtype))
    if kind == "eomt":
        return _load_eomt(file, path, source, entry, classes, side, settings)
    if kind == "mask2former":
        return _load_mask2former(file, path, source, entry, classes, settings)
    return _load_fcclip(file, path, source, entry, classes, clip or usual_clip, settings)


def _load_eomt(file, path, source, entry, classes, side, settings) -> Generator:
    facts = {} if entry else _facts_beside(path, "eomt")
    config = eomt.config_of(file, path, num_heads=facts.get("num_attention_heads"),
                            query_blocks=facts.get("num_blocks"))
    found = _published(config, file, path, entry)
    params = eomt.load(file, model_shapes.of(config, lambda: eomt.abstract(config)), path)
    if side is not None:
        config, params = _resized(config, params, side)
    vocabulary = classes or _classes_of(config, found, facts, path)
    return Generator(config, params, vocabulary, source,
                     task=found.task if found else "panoptic", **settings)


def _load_mask2former(file, path, source, entry, classes, settings) -> Generator:
    facts = {} if entry else _facts_beside(path, "mask2former")
    config = mask2former.config_of(file.shapes, path,
                                   num_heads=facts.get("num_attention_heads", 8))
    found = _published(config, file, path, entry)
    params = mask2former.load(file, config, path)
    vocabulary = classes or _classes_of(config, found, facts, path)
    return Generator(config, params, vocabulary, source, **settings)


def _load_fcclip(file, path, source, entry, classes, clip, settings) -> Generator:
    # The CLIP it was made from: what the file itself lacks of it is taken from there.
    has_trunk = fcclip.has_trunk(file)
    given = files.read(clip) if clip and not has_trunk else None
    config = fcclip.config_of(dict(file.shapes), path, clip=given and given.shapes)
    found = _published(config, file, path, entry)
    clip = clip or fcclip.clip_of(config)
    if not has_trunk and given is None:  # its sizes are of a published CLIP
        given = files.read(clip)
    params = fcclip.load(file, config, path, given)
    vocabulary = classes or (found and Vocabulary.shipped(found.vocabulary))
    if vocabulary is None:
        vocabulary = _trained_on(file)
    return Generator(config, params, vocabulary, source,
                     embed=_text_tower(file, path, clip, config), **settings)


def _text_tower(file: Source, path: str, clip: str | None, config: FCCLIPConfig
                ) -> typing.Callable[[Vocabulary], np.ndarray]:
    """Names as unit vectors [S, E] of the CLIP in a file, or of the one it was made from.

    MAFT+ left the text tower as it was. It is read when it is first asked for.
    """
    @functools.cache
    def tower() -> tuple[TextConfig, parameters.Tree]:
        if fcclip.has_text(file, fcclip.CLIP):
            return fcclip.load_text(file, path, fcclip.CLIP)
        if clip is None:
            raise ValueError(f"{path} has no text tower, and its sizes are of no published CLIP; "
                             "give the file of the CLIP it was made from, clip=")
        return fcclip.load_text(files.read(clip), clip)

    def embed(vocabulary: Vocabulary) -> np.ndarray:
        text, params = tower()
        model = MaskCLIPppConfig(config.image, text, similarity=None)
        embeddings = loading.embed_names(
            model, params, loading.tokenize(model, vocabulary, TEMPLATES_14),
            folder=str(storage.CACHE / text_cache.FOLDER))
        if embeddings.shape[-1] != config.image.embed_dim:
            raise ValueError(f"the text tower of {clip} gives {embeddings.shape[-1]} channels, "
                             f"{path} wants {config.image.embed_dim}; give the CLIP it was made "
                             "from")
        return segmenter.mean_over_templates(embeddings)

    return embed


def _published(config: Config, file: Source, path: str, entry: PublishedGenerator | None
               ) -> PublishedGenerator | None:
    """Which published generator a file is of, if any.

    Args:
      config: sizes that the file tells.
      file: its tensors.
      path: its path, whose name counts where several have the same sizes.
      entry: the one that was asked for; None: any.

    Raises:
      ValueError: another than was asked for, or nothing tells which one it is.
    """
    found = published_generators.of_config(config)
    learnt = fcclip.classes_trained_on(file)
    found = [e for e in found if Vocabulary.shipped(e.vocabulary).num_classes == learnt] or found
    if entry:
        if entry not in found:
            is_of = " or ".join(e.name for e in found) or "no published model"
            raise ValueError(f"{path} is of {is_of}, wanted {entry.name}; download it again")
        return entry
    named = [e for e in found if e.file and pathlib.Path(e.file).stem == pathlib.Path(path).stem]
    found = named or found
    if len({(e.vocabulary, e.task) for e in found}) > 1:
        raise ValueError(f"{path} may be {' or '.join(e.name for e in found)}, which differ in "
                         "what they were trained on; name the file as it was published, "
                         f"{' or '.join(e.file for e in found)}")
    return found[0] if found else None


def _trained_on(file: Source) -> Vocabulary | None:
    """The classes of an unpublished FC-CLIP, of whose number a file of training tells."""
    num_classes = fcclip.classes_trained_on(file)
    for name in ("coco_panoptic_133", "coco_stuff_171"):
        vocabulary = Vocabulary.shipped(name)
        if vocabulary.num_classes == num_classes:
            return vocabulary
    return None


class _Facts(typing.TypedDict):
    """config.json of transformers, as far as the weights do not tell."""

    model_type: typing.NotRequired[str]
    num_attention_heads: typing.NotRequired[typed.Side]
    num_blocks: typing.NotRequired[typed.Side]
    id2label: typing.NotRequired[dict[int, str]]


def _facts_beside(path: str, kind: str) -> _Facts:
    """What a config.json of transformers beside a file says; nothing where there is none."""
    facts = files.beside(path, "config.json", _Facts) or _Facts()
    if facts.get("model_type", kind) != kind:
        raise ValueError(f"the config.json beside {path} is of the kind {facts['model_type']}, "
                         f"the file is of the kind {kind}; put them apart")
    _check_pixels(path)
    return facts


class _Pixels(typing.TypedDict):
    """preprocessor_config.json of transformers: of RGB on 0 ... 1."""

    image_mean: typing.NotRequired[list[float]]
    image_std: typing.NotRequired[list[float]]


def _check_pixels(path: str) -> None:
    """Refuses a file whose pictures are normalised otherwise than we do it."""
    pixels = files.beside(path, "preprocessor_config.json", _Pixels) or _Pixels()
    for key, ours in (("image_mean", PIXEL_MEAN), ("image_std", PIXEL_STD)):
        wanted = [round(x / 255, 4) for x in ours]
        found = pixels.get(key, wanted)
        if len(found) != 3 or not np.allclose(found, wanted, atol=1e-3):
            raise ValueError(f"the preprocessor_config.json beside {path} says {key} {found}, "
                             f"wanted {wanted}, as all published ones have; a generator with "
                             "others is not read here")


def _resized(config: EoMTConfig, params: parameters.Tree, side: int
             ) -> tuple[EoMTConfig, parameters.Tree]:
    """The same network for pictures of another size."""
    if not isinstance(side, int) or side < config.patch_size or side % config.patch_size:
        raise ValueError(f"got side={side!r}, wanted a multiple of {config.patch_size} pixels")
    resized = dataclasses.replace(config, image_size=(side, side))
    table = resize_position_table(jnp.asarray(params["position_table"]), config.grid, resized.grid)
    return resized, params | dict(position_table=np.asarray(table))


def _classes_of(config: Config, found: PublishedGenerator | None, facts: _Facts, path: str
                ) -> Vocabulary:
    """The classes of a closed generator; those of an unpublished one are all things.

    transformers calls those LABEL_0, LABEL_1, ... that nobody named; they become such as no word of
    another vocabulary is like.
    """
    if found:
        return Vocabulary.shipped(found.vocabulary)
    labels = facts.get("id2label", {})
    names = [labels.get(i, f"LABEL_{i}") for i in range(config.num_classes)]
    # COCO marks what it merged of several classes, and what is left of one.
    names = [name.removesuffix("-merged").removesuffix("-other").replace("-", " ")
             for name in names]
    if "LABEL_0" in names:
        names = [f"class {i} of {path}" for i in range(config.num_classes)]
    return Vocabulary(f"classes of {path}", tuple(map(split_names, names)),
                      (True,) * len(names), tuple(range(len(names))))
