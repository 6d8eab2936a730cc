"""From a configuration, or a checkpoint, to a model with its weights and its names."""

import dataclasses
import functools
import io
import math
import pathlib
import typing

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from maskclippp_jax import config as configuration, configs, params as parameters, weights
from maskclippp_jax.data.tokenizer import (
    TIPS_VOCABULARY,
    VOCABULARIES,
    SentencePieceTokenizer,
    TIPSTokenizer,
    Tokenizer,
    canonicalize,
)
from maskclippp_jax.models import (
    layers,
    maskclippp,
    prefix_trees,
    siglip,
    similarity,
    text,
    tips,
)
from maskclippp_jax.naming import text_cache
from maskclippp_jax.runs import checkpoint
from maskclippp_jax.runtime import progress, storage, texts
from maskclippp_jax.vocabulary import Vocabulary
from maskclippp_jax.weights import (
    big_vision_file,
    hub,
    model_shapes,
    published,
    published_tuned,
    released,
)

# Tokens of a tree of prompts: fewer are encoded again more often, more see others in vain.
_TREE = 256
_TREES = 16  # encoded at a time by an accelerator, a guess; by a CPU one, more are no faster
_PROMPTS = 256  # encoded at a time by a tower that is not causal
_FEW = 2**18  # random numbers that are kept, not drawn again


def model_maker(config: ml_collections.ConfigDict, *, dtype=None, platform: str | None = None,
                layout: layers.Layout = layers.Layout()) -> typing.Callable[[], nnx.Module]:
    """A function that makes the model of an experiment, with random weights.

    Args:
      config: the experiment.
      dtype: arithmetic of the towers; None: the experiment's.
      platform: "cpu", "gpu" or "tpu", what the model is compiled for; None: the device at hand.
      layout: of activations and parameters on the devices (`sharding.LAYOUT`).
    """
    return functools.partial(
        _make_model, config.model, dtype or configuration.dtype(config), config.remat, layout,
        config.seed, platform)


@functools.lru_cache(maxsize=8)  # half a second for a small model, and asked for several times
def abstract(model_config: maskclippp.MaskCLIPppConfig, dtype: typing.Any,
             platform: str | None) -> tuple[typing.Callable, parameters.Tree]:
    """What `params.abstract` gives of a model; the arguments: see `model_maker`."""
    return parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        model_config, dtype=dtype, heads=configuration.heads_on(platform),
        rngs=parameters.Keys(0)))


def _make_model(model_config, dtype, remat, layout, seed, platform=None):
    return maskclippp.MaskCLIPpp(
        model_config, dtype=dtype, remat=remat, layout=layout,
        heads=configuration.heads_on(platform), rngs=parameters.Keys(seed))


def load_params(file: str, model: maskclippp.MaskCLIPppConfig, seed: int,
                shapes: parameters.Tree, *, base: str | None = None) -> parameters.Tree:
    """Parameters from a file; what it cannot hold is initialised.

    Args:
      file: a checkpoint of a CLIP or a MaskCLIP++, here or on the hub (`weights.files.read`), or
        "random".
      model: sizes of the model.
      seed: of what is drawn, the leaves that the file's layout lacks.
      shapes: nested dict of all parameters.
      base: pre-trained CLIP for a MaskCLIP++ file without a text tower.

    Returns:
      Nested dict of float32 arrays.
    """
    if file == "random":
        return parameters.unflatten(_draw(model, seed, parameters.flatten(shapes)))
    params, missing = weights.load_weights(file, model, shapes, base=base)
    return _with_drawn(params, missing, model, seed, shapes)


def _with_drawn(params: parameters.Tree, missing: set[str], model: maskclippp.MaskCLIPppConfig,
                seed: int, shapes: parameters.Tree) -> parameters.Tree:
    """Parameters and random leaves at the missing paths."""
    if not missing:
        return params
    leaves = parameters.flatten(shapes)
    drawn = _draw(model, seed, {path: leaves[path] for path in missing})
    return parameters.combine(params, parameters.unflatten(drawn))


def _draw(model: maskclippp.MaskCLIPppConfig, seed: int, shapes: dict[str, typing.Any]
          ) -> dict[str, np.ndarray]:
    """Random leaves of a model, by their paths; the others are not computed.

    Few numbers, such as those of a head, are kept: a second start finds them without a program.
    """
    paths = sorted(shapes)

    @jax.jit
    def draw():
        leaves = parameters.flatten(parameters.initialize(functools.partial(
            _make_model, model, jnp.float32, "none", layers.Layout(), seed)))
        return {path: leaves[path] for path in paths}

    def packed() -> bytes:
        content = io.BytesIO()
        np.savez(content, **jax.device_get(draw()))
        return content.getvalue()

    if sum(math.prod(x.shape) for x in shapes.values()) > _FEW:
        return jax.device_get(draw())
    with np.load(io.BytesIO(texts.load_or_make(("draw", model, seed, paths), packed))) as found:
        return dict(found)


def load_text_tower(file: str, model: maskclippp.MaskCLIPppConfig) -> parameters.Tree:
    """Parameters of the text tower of a CLIP's file (see `load_params`)."""
    return load_params(file, model, 0, _shapes_of(model))["text"]


def experiment_of(path: str, config: ml_collections.ConfigDict | None) -> ml_collections.ConfigDict:
    """The configuration a checkpoint belongs to: the one given, else the one its run started with,
    that was published with it, or that of a published MaskCLIP++.

    Raises:
      FileNotFoundError: the hub cannot be asked.
      ValueError: the path is no run, so nothing says which model it is of.
    """
    if config is not None:
        return config
    found = released.read_config(path)
    if found is not None:
        return found
    if _is_folder(path):
        return checkpoint.read_config(storage.path(path))
    entry = published_tuned.find(path)
    if entry and not storage.path(path).exists():
        return configs.read(entry.config)
    if path != "untuned" and not hub.is_on_hub(path) and not storage.path(path).exists():
        raise FileNotFoundError(f"no file or folder {path}; give a run's folder, or a checkpoint "
                                "file together with its --config")
    raise ValueError(f"only the folder of a run says which model it is of; got {path!r}, so give "
                     "--config as well, e.g. --config=quickstart")


def load_checkpoint(path: str, config: ml_collections.ConfigDict
                    ) -> tuple[maskclippp.MaskCLIPppConfig, parameters.Tree, str]:
    """What `--checkpoint` may name: a run's folder, a file, a published MaskCLIP++, or "untuned".

    Args:
      path: the folder of a training run or of one checkpoint in it, a checkpoint file, the name of
        a published MaskCLIP++ ("maskclippp-l"), or "untuned" for the pre-trained CLIP of the
        configuration with the mean over templates in place of the tuned similarity head; a file
        without a head is treated alike.
      config: the experiment: model and templates; its pre-trained weights serve "untuned" and files
        without a text tower. A run's folder knows its own model.

    Returns:
      The model's sizes, its parameters, and one line that says what was loaded.

    Raises:
      FileNotFoundError, ValueError: nothing there, or it does not fit.
    """
    is_run = _is_folder(path)
    model_config = (checkpoint.read_config(storage.path(path)) if is_run else config).model
    if path == "untuned":
        model_config = _without_head(model_config)
    head = model_config.similarity
    if head is not None and head.num_templates != len(config.templates):
        raise ValueError(f"the similarity head of {path} has weights for {head.num_templates} "
                         f"templates, the configuration lists {len(config.templates)}")
    shapes = _shapes_of(model_config)
    if path == "untuned":
        params = load_params(config.weights, model_config, config.seed, shapes)
        return model_config, params, f"untuned {config.weights}"
    if is_run:
        params, when = checkpoint.load_run(storage.path(path), shapes)
        return model_config, params, f"{path} {when}"
    entry, file, what = published_tuned.find(path), path, path
    if entry and not storage.path(path).exists():
        file = hub.fetch_download(entry.source, entry.file, what=path)
    params, missing = weights.load_weights(file, model_config, shapes, base=config.weights)
    if any(p.startswith(weights.HEAD) for p in missing):
        logging.warning("%s holds no similarity head; the mean over templates is in its place, as "
                        "in an untuned CLIP", path)
        model_config, what = _without_head(model_config), f"{path} without similarity head"
        missing = {p for p in missing if not p.startswith(weights.HEAD)}
        shapes = _shapes_of(model_config)
    params = _with_drawn(params, missing, model_config, config.seed, shapes)
    return model_config, params, what


def _without_head(model: maskclippp.MaskCLIPppConfig) -> maskclippp.MaskCLIPppConfig:
    """A model with the mean over templates in place of its similarity head."""
    return dataclasses.replace(model, similarity=None, use_logit_scale=True)


def check_there(path: str) -> None:
    """Sees that what `load_checkpoint` would read from a disk is there.

    Raises:
      FileNotFoundError: it is not.
    """
    elsewhere = path == "untuned" or hub.is_on_hub(path) or published_tuned.find(path)
    if elsewhere or big_vision_file.matches(path) or storage.path(path).exists():
        return
    for part in path.split(","):  # models of two files
        if not storage.path(hub.fetch(part)).exists():
            name = part.partition(":")[0]
            what = (f"for the published CLIP of this name give --config=published_clip:name={name} "
                    "--checkpoint=untuned" if any(name == entry.name for entry in published.MODELS)
                    else "give the path of a checkpoint")
            raise FileNotFoundError(f"no file {part}; {what}")


def load_original(path: str, config: ml_collections.ConfigDict,
                  model: maskclippp.MaskCLIPppConfig) -> parameters.Tree:
    """The parameters a checkpoint was tuned from: the pre-trained CLIP of its experiment.

    Args:
      path: the checkpoint, as in `load_checkpoint`.
      config: the experiment; a run's folder knows its own.
      model: sizes of the checkpoint's model.
    """
    if _is_folder(path):
        config = checkpoint.read_config(storage.path(path))
    return load_params(config.weights, model, config.seed, _shapes_of(model))


def _shapes_of(model: maskclippp.MaskCLIPppConfig) -> parameters.Tree:
    return model_shapes.of(model, lambda: abstract(model, jnp.float32, None))


def _is_folder(path: str) -> bool:
    """Whether a path is a run of ours, not a checkpoint that is a folder."""
    return (not hub.is_on_hub(path) and not big_vision_file.matches(path)
            and storage.path(path).is_dir() and released.find(path) is None)


def make_tokenizer(model: maskclippp.MaskCLIPppConfig, sentencepiece: str = ""
                   ) -> Tokenizer | SentencePieceTokenizer | TIPSTokenizer:
    """The tokenizer of a model.

    Args:
      model: its sizes.
      sentencepiece: the vocabulary file of a SigLIP or TIPS (`config.sentencepiece`); a CLIP needs
        none.

    Raises:
      FileNotFoundError, ValueError: no vocabulary file where one is needed, or of another model.
    """
    words = model.text
    if isinstance(words, text.TextConfig):
        tokenizer = Tokenizer(words.context_length, words=words.words)
        if tokenizer.vocab_size != words.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the text tower "
                             f"{words.vocab_size}")
        return tokenizer
    is_tips = isinstance(words, tips.TIPSTextConfig)
    where = TIPS_VOCABULARY if is_tips else VOCABULARIES
    if not sentencepiece:
        raise ValueError(f"the text tower of a {'TIPS' if is_tips else 'SigLIP'} needs its "
                         "vocabulary, a sentencepiece file; give its path as "
                         f"--config.sentencepiece=FILE. {where}")
    if is_tips:
        tokenizer, extra = TIPSTokenizer(sentencepiece, words.context_length), 0
    else:
        # The vocabulary for many languages has pieces that the text tower has no rows for.
        tokenizer, extra = SentencePieceTokenizer(
            sentencepiece, words.context_length, words.padding), 100
    if not words.vocab_size <= tokenizer.vocab_size <= words.vocab_size + extra:
        raise ValueError(f"{sentencepiece} has {tokenizer.vocab_size} pieces, the text tower "
                         f"{words.vocab_size}; give the file of this model. {where}")
    return tokenizer


def tokenize(model: maskclippp.MaskCLIPppConfig, vocabulary: Vocabulary,
             templates: typing.Sequence[str], sentencepiece: str = "") -> np.ndarray:
    """Token ids [S, T, X] int32 of every name in every template; see `make_tokenizer`.

    They are no longer than needed. Only a SigLIP's have a fixed length, and are of canonical
    prompts.
    """
    prompts, tokenizer = vocabulary.prompts(templates), make_tokenizer(model, sentencepiece)
    match model.text:
        case text.TextConfig():
            token_ids = text.truncate_prompts(tokenizer(prompts))
        case tips.TIPSTextConfig():
            token_ids = tips.truncate_prompts(tokenizer(prompts))
        case siglip.SigLIPTextConfig():
            token_ids = tokenizer([canonicalize(p) for p in prompts])
    return token_ids.reshape(vocabulary.num_synonyms, len(templates), -1)


def warn_of_unknown_words(model: maskclippp.MaskCLIPppConfig, vocabulary: Vocabulary) -> None:
    """Says which words a model with a small vocabulary has never seen: it cannot tell them apart.
    """
    if not isinstance(model.text, text.TextConfig):
        return
    unknown = make_tokenizer(model).unknown_words(n for c in vocabulary.classes for n in c)
    if unknown:
        logging.warning("this model has never seen %s of %s; it knows the words %s",
                        some(unknown), vocabulary.name, " ".join(model.text.words))


def some(words: typing.Sequence[str]) -> str:
    """"'a', 'b'"; of many the first ten and how many others there are."""
    more = len(words) - 10
    return ", ".join(map(repr, words[:10])) + f" and {more} others" * (more > 0)


def prompts_shape(model: maskclippp.MaskCLIPppConfig, vocabulary: Vocabulary,
                  templates: typing.Sequence[str]) -> tuple[int, int, int]:
    """Shape of what `tokenize` gives; needs no vocabulary file."""
    if isinstance(model.text, text.TextConfig):
        return tokenize(model, vocabulary, templates).shape
    return vocabulary.num_synonyms, len(templates), model.text.context_length


def text_folder(config: ml_collections.ConfigDict) -> str | None:
    """Where embeddings of names are kept, if the text tower is frozen.

    Beside the data sets; of those in a bucket, with their copies.
    """
    if config.tune.text != "none":
        return None
    if storage.on_bucket(config.data_dir):
        return str(storage.CACHE / text_cache.FOLDER)
    return str(pathlib.Path(config.data_dir, text_cache.FOLDER))


def embed_names(model: maskclippp.MaskCLIPppConfig, text_params: parameters.Tree,
                token_ids: np.ndarray, *, folder: str | None = None) -> np.ndarray:
    """Unit embeddings [S, T, E] float32 of token ids [S, T, X], in float32 like the reference.

    With a folder they are kept there (`text_cache`).
    """
    if folder is not None:
        key = text_cache.key_of(model.text, text_params, token_ids)
        return text_cache.load_or_make(
            folder, key, token_ids.shape[:2],
            lambda: embed_names(model, text_params, token_ids))
    encode, params = _text_encoder(model.text), jax.device_put(text_params)
    flat = token_ids.reshape(-1, token_ids.shape[-1])
    embeddings = np.empty((len(flat), model.text.embed_dim), np.float32)
    chunks = chunks_of_prompts(model.text, flat)
    for rows, inputs in progress.track(
            chunks, "embedding names", total=len(flat), step=lambda chunk: (chunk[0] >= 0).sum(),
            unit="prompts", shown=len(chunks) > 1):
        found = jax.device_get(encode(params, jax.device_put(inputs)))
        embeddings[rows[rows >= 0]] = found[rows >= 0]
    return embeddings.reshape(*token_ids.shape[:2], -1)


def chunks_of_prompts(config: maskclippp.TextConfig, token_ids: np.ndarray
            ) -> list[tuple[np.ndarray, np.ndarray | prefix_trees.Trees]]:
    """Prompts [n, X] as they go through a text tower, always as many at a time, so that one program
    serves every vocabulary.

    Returns:
      For each time: rows of `token_ids`, with -1 for what fills it up, and what the tower takes,
      token ids or, of a causal tower, trees.
    """
    if isinstance(config, text.TextConfig):
        count = 1 if jax.default_backend() == "cpu" else _TREES
        size = max(_TREE, config.context_length)
        trees, rows = prefix_trees.plant(token_ids, size, count)
        return [(rows[i:i + count], jax.tree.map(lambda x: x[i:i + count], trees))
                for i in range(0, len(rows), count)]
    rows = np.arange(-(-len(token_ids) // _PROMPTS) * _PROMPTS)
    rows = np.where(rows < len(token_ids), rows, -1).reshape(-1, _PROMPTS)
    return [(some, token_ids[some]) for some in rows]


@functools.lru_cache
def _text_encoder(config: maskclippp.TextConfig):
    build, _ = parameters.abstract(lambda: config.make(
        heads=configuration.heads_on(), rngs=parameters.Keys(0)))

    def encode(params, inputs):
        tower = build(params)
        return similarity.unit(
            tower.embed_trees(inputs) if isinstance(config, text.TextConfig) else tower(inputs))

    return jax.jit(encode)
