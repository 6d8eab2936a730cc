"""Checks an experiment's configuration before anything else happens, and stores it as JSON.

Configurations are Python files with `get_config()` (see `configs/`), read by `ml_collections`,
which also applies `--config.key=value` and refuses unknown keys.
"""

import dataclasses
import os
import string
import typing

import jax
import ml_collections

from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    cudnn_attention,
    dinotxt,
    eva_vit,
    maskclippp,
    pe,
    siglip,
    similarity,
    text,
    tips,
)

REMAT = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16")
MASKS = ("ground_truth", "degraded")
FAMILIES = ("semantic", "panoptic")
BATCH_NORMS = ("batch", "stored")

GPU_ATTENTION = "MASKCLIPPP_GPU_ATTENTION"  # of the environment, see `heads_on`
_HEADS_ON_GPU = ("together", "cudnn")

# What a stored configuration may hold beside plain values; their names are stored with them.
_SIZES = {c.__name__: c for c in (
    maskclippp.MaskCLIPppConfig, eva_vit.EvaViTConfig, clip_vit.ClipViTConfig,
    clip_convnext.ConvNeXtConfig, clip_resnet.ResNetConfig, text.TextConfig,
    siglip.SigLIPConfig, siglip.SigLIPTextConfig, pe.PEConfig, tips.TIPSConfig,
    tips.TIPSTextConfig, dinotxt.DinoTxtConfig,
    similarity.LinearSimilarityConfig, similarity.PseudoTextSimilarityConfig)}


_MOST = 2**31 - 1
# Keys that are whole numbers, and other numbers, with the least and the largest they can be.
_WHOLE = (
    ("seed", 0, 2**32 - 1), ("train.batch_size", 1, _MOST), ("train.steps", 1, _MOST),
    ("train.num_masks", 1, 2**16 - 2), ("train.size", 1, 2**15), ("train.accumulate", 1, _MOST),
    ("train.workers", 0, 1024), ("train.skip_broken", 0, _MOST), ("checkpoint_every", 1, _MOST),
    ("log_every", 1, _MOST), ("keep", 1, _MOST), ("keep_best", 0, _MOST),
    ("eval_every", 0, _MOST), ("eval_pictures", 0, 1024), ("mesh.fsdp", 1, _MOST),
    ("eval.batch_size", 1, _MOST), ("eval.max_tokens", 0, 2**24), ("eval.num_instances", 1, _MOST),
    ("optimizer.warmup_steps", 0, _MOST))
_NUMBERS = (
    ("ema_decay", 0, 1), ("eval.alpha", 0, 1), ("eval.beta", 0, 1),
    ("eval.objectness", 0, 1), ("eval.object_threshold", 0, 1),
    ("eval.overlap_threshold", 0, 1),
    ("optimizer.learning_rate", 0, 3e38), ("optimizer.end_learning_rate", 0, 3e38),
    ("optimizer.warmup_factor", 0, 3e38), ("optimizer.image_multiplier", 0, 3e38),
    ("optimizer.text_multiplier", 0, 3e38), ("optimizer.weight_decay", 0, 3e38),
    ("optimizer.clip_norm", 0, 3e38), ("loss.temperature", 1e-6, 1e6))


def check(config: ml_collections.ConfigDict | None, *,
          workdir: str | None) -> ml_collections.ConfigDict:
    """Returns the configuration, or says all that is wrong with it.

    Raises:
      ValueError: a flag is missing, or values are out of range (all of them are listed).
    """
    if config is None:
        raise ValueError("got no --config; give a file such as --config=quickstart")
    if not workdir:
        raise ValueError("got no --workdir; give the folder this run may write to")
    problems = []

    def need(ok: bool, what: str):
        if not ok:
            problems.append(what)

    need(config.weights != "", "weights is empty; give the file of a pre-trained CLIP, or 'random'")
    for key, known in (("dtype", DTYPES), ("remat", REMAT)):
        need(config[key] in known, f"{key} is {config[key]!r}; it can be {', '.join(known)}")
    need(config.tune.batch_norm in BATCH_NORMS,
         f"tune.batch_norm is {config.tune.batch_norm!r}; it can be {', '.join(BATCH_NORMS)}")
    by_batch = (isinstance(config.model.image, clip_resnet.ResNetConfig)
                and config.tune.image != "none" and config.tune.batch_norm == "batch")
    need(not by_batch or config.train.accumulate == 1,
         f"train.accumulate is {config.train.accumulate}, but the batch norms of this model need "
         "the whole batch at once; set it to 1, or tune.batch_norm to 'stored'")
    need(config.train.family in FAMILIES,
         f"train.family is {config.train.family!r}; it can be {', '.join(FAMILIES)}")
    need(config.train.family != "semantic" or len(config.train.short_sides) > 0,
         "train.short_sides is empty; the semantic family draws from it")
    weights, datasets = config.train.dataset_weights, config.train.dataset.split(",")
    need(not weights or (len(weights) == len(datasets) and min(weights) > 0),
         f"train.dataset_weights is {weights}; it must have a positive number for each of the "
         f"{len(datasets)} data sets")
    need(config.train.masks in MASKS,
         f"train.masks is {config.train.masks!r}; it can be {', '.join(MASKS)}")
    for key, low, high in _WHOLE:
        value = _value(config, key)
        need(value is None or low <= value <= high,
             f"{key} is {value}; it can be {low} ... {high}")
    for key, low, high in _NUMBERS:
        value = _value(config, key)  # comparisons with NaN are false
        need(value is None or low <= value <= high,
             f"{key} is {value}; it can be {low:g} ... {high:g}")
    need(config.train.batch_size % max(config.train.accumulate, 1) == 0,
         f"train.accumulate is {config.train.accumulate}; it must divide train.batch_size, "
         f"{config.train.batch_size}")
    need(config.keep_best == 0 or config.eval_every > 0,
         f"keep_best is {config.keep_best}, but eval_every is 0, so that nothing tells which "
         "checkpoint is best; set it to a number of steps")
    sides = config.eval.get("short_sides", ())
    need(all(isinstance(s, int) and s > 0 for s in sides) and len(set(sides)) == len(sides),
         f"eval.short_sides is {','.join(map(str, sides))}; it lists different whole numbers of "
         "pixels, such as 400,500,600")
    patch = config.model.image.patch_size
    need(config.train.size % patch == 0,
         f"train.size is {config.train.size}; the patch of this model wants a multiple of {patch}")
    rates = config.optimizer
    need(rates.learning_rate != 0, "optimizer.learning_rate is 0; nothing would be learnt")
    need(0 <= rates.warmup_steps <= config.train.steps,
         f"optimizer.warmup_steps is {rates.warmup_steps}, train.steps {config.train.steps}")
    wrong = wrong_templates(config.templates)
    need(not wrong, wrong)
    head = config.model.similarity
    need(head is None or head.num_templates == len(config.templates),
         f"the similarity head has weights for {head and head.num_templates} templates, templates "
         f"lists {len(config.templates)}")
    if problems:
        raise ValueError("the configuration cannot be used: " + "; ".join(problems))
    return config


def wrong_templates(templates: typing.Any) -> str:
    """What is wrong with the templates of names, for people; "" if nothing is."""
    listed = isinstance(templates, (tuple, list)) and len(templates) > 0
    wrong = [t for t in templates if not _takes_a_name(t)] if listed else [templates]
    return (f"templates has {wrong[0]!r}; it is a list of texts, each with one {{}} for the name, "
            "such as ('a photo of a {}.',)") if wrong else ""


def _takes_a_name(template: typing.Any) -> bool:
    """Whether it is a text with one {} in it, and nothing else in braces."""
    try:
        return [braces for _, *braces in string.Formatter().parse(template)
                if braces[0] is not None] == [["", "", None]]
    except (TypeError, ValueError):  # no text, or braces that do not match
        return False


def _value(config: ml_collections.ConfigDict, key: str) -> typing.Any:
    """The value of a key, "train.steps"; None if it is not there."""
    for part in key.split("."):
        config = config.get(part)
        if config is None:
            return None
    return config


def dtype(config: ml_collections.ConfigDict) -> typing.Any:
    return jax.numpy.dtype(config.dtype)


def heads_on(platform: str | None = None) -> str:
    """How attention takes its heads on a platform, see `layers.attend`.

    Of a GPU the environment says it, in `GPU_ATTENTION`: cuDNN's kernel was compiled for GPUs, but
    never ran on one, so that nobody gets it who does not ask for it.

    Args:
      platform: what is compiled for; None: the device at hand.

    Raises:
      ValueError: the environment says something else, or the GPU at hand has no such kernel.
    """
    platform = platform or jax.default_backend()
    if platform != "gpu":
        return {"cpu": "apart", "tpu": "fused"}.get(platform, "together")
    heads = os.environ.get(GPU_ATTENTION, "together")
    if heads not in _HEADS_ON_GPU:
        raise ValueError(f"{GPU_ATTENTION} is {heads!r}; it can be {', '.join(_HEADS_ON_GPU)}")
    if heads == "cudnn" and jax.default_backend() == "gpu":
        cudnn_attention.check(jax.local_devices()[0])
    return heads


def to_json(config: typing.Any) -> typing.Any:
    """A configuration as plain JSON values; sizes of models are written out, with their type."""
    if isinstance(config, (ml_collections.ConfigDict, dict)):
        return {k: to_json(v) for k, v in config.items()}
    if type(config).__name__ in _SIZES:
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **to_json(fields)}
    if isinstance(config, (list, tuple)):
        return [to_json(v) for v in config]
    return config


def from_json(content: dict) -> ml_collections.ConfigDict:
    """The inverse of `to_json`, locked.

    Raises:
      ValueError: sizes of a model that does not exist here, or with other fields.
    """
    return ml_collections.ConfigDict(_from_json(content), type_safe=False).lock()


def sizes_from_json(content: dict) -> typing.Any:
    """The sizes of a model that `to_json` wrote.

    Raises:
      ValueError: of a model that does not exist here, or with other fields.
    """
    return _from_json(content)


def _from_json(value):
    if isinstance(value, list):
        return tuple(map(_from_json, value))
    if not isinstance(value, dict):
        return value
    value = {k: _from_json(v) for k, v in value.items()}
    if "type" not in value:
        return value
    kind = value.pop("type")
    fields = ()
    if isinstance(kind, str) and kind in _SIZES:
        fields = dataclasses.fields(_SIZES[kind])
    # A size that came later has a default: what all models had before.
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}
    if not fields or not needed <= set(value) <= {f.name for f in fields}:
        raise ValueError(f"the stored configuration has sizes of a {kind} "
                         f"({', '.join(sorted(value))}), which this version does not know; "
                         "use the version that stored it")
    return _SIZES[kind](**value)
