"""Checks an experiment's configuration before anything else happens, and stores it as JSON.

Configurations are Python files with `get_config()` (see `configs/`), read by `ml_collections`,
which also applies `--config.key=value` and refuses unknown keys.
"""

import dataclasses
import typing

import jax
import ml_collections

from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    eva_vit,
    maskclippp,
    siglip,
    similarity,
    text,
)

REMAT = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16")
MASKS = ("ground_truth", "degraded")
FAMILIES = ("semantic", "panoptic")
BATCH_NORMS = ("batch", "stored")

# What a stored configuration may hold beside plain values; their names are stored with them.
_SIZES = {c.__name__: c for c in (
    maskclippp.MaskCLIPppConfig, eva_vit.EvaViTConfig, clip_vit.ClipViTConfig,
    clip_convnext.ConvNeXtConfig, clip_resnet.ResNetConfig, text.TextConfig,
    siglip.SigLIPConfig, siglip.SigLIPTextConfig,
    similarity.LinearSimilarityConfig, similarity.PseudoTextSimilarityConfig)}


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
    need(config.train.skip_broken >= 0, f"train.skip_broken is {config.train.skip_broken}")
    need(config.train.masks in MASKS,
         f"train.masks is {config.train.masks!r}; it can be {', '.join(MASKS)}")
    for key in ("batch_size", "steps", "num_masks", "size"):
        need(config.train[key] > 0, f"train.{key} is {config.train[key]}; it must be at least 1")
    for key in ("checkpoint_every", "log_every", "keep"):
        need(config[key] > 0, f"{key} is {config[key]}; it must be at least 1")
    need(config.keep_best >= 0, f"keep_best is {config.keep_best}; 0 means none")
    need(config.keep_best == 0 or config.eval_every > 0,
         f"keep_best is {config.keep_best}, but eval_every is 0, so that nothing tells which "
         "checkpoint is best; set it to a number of steps")
    need(config.eval_every >= 0, f"eval_every is {config.eval_every}; 0 means never")
    need(config.eval_pictures >= 0, f"eval_pictures is {config.eval_pictures}; 0 means none")
    for key in ("alpha", "beta", "object_threshold", "overlap_threshold"):
        need(0 <= config.eval.get(key, 0) <= 1,
             f"eval.{key} is {config.eval.get(key)}; it is a share between 0 and 1")
    sides = config.eval.get("short_sides", ())
    need(all(isinstance(s, int) and s > 0 for s in sides) and len(set(sides)) == len(sides),
         f"eval.short_sides is {','.join(map(str, sides))}; it lists different whole numbers of "
         "pixels, such as 400,500,600")
    patch = config.model.image.patch_size
    need(config.train.size % patch == 0,
         f"train.size is {config.train.size}; the patch of this model wants a multiple of {patch}")
    rates = config.optimizer
    need(rates.learning_rate > 0, f"optimizer.learning_rate is {rates.learning_rate}")
    need(0 <= rates.warmup_steps <= config.train.steps,
         f"optimizer.warmup_steps is {rates.warmup_steps}, train.steps {config.train.steps}")
    head = config.model.similarity
    need(head is None or head.num_templates == len(config.templates),
         f"the similarity head has weights for {head and head.num_templates} templates, templates "
         f"lists {len(config.templates)}")
    if problems:
        raise ValueError("the configuration cannot be used: " + "; ".join(problems))
    return config


def dtype(config: ml_collections.ConfigDict) -> typing.Any:
    return jax.numpy.dtype(config.dtype)


def heads_apart(platform: str | None = None) -> bool:
    """Whether attention takes its heads one after the other, see `layers.attend`.

    Args:
      platform: what is compiled for; None: the device at hand.
    """
    return (platform or jax.default_backend()) == "cpu"


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


def _from_json(value):
    if isinstance(value, list):
        return tuple(map(_from_json, value))
    if not isinstance(value, dict):
        return value
    value = {k: _from_json(v) for k, v in value.items()}
    if "type" not in value:
        return value
    kind = value.pop("type")
    known = set()
    if isinstance(kind, str) and kind in _SIZES:
        known = {f.name for f in dataclasses.fields(_SIZES[kind])}
    if not isinstance(kind, str) or set(value) != known:
        raise ValueError(f"the stored configuration has sizes of a {kind} "
                         f"({', '.join(sorted(value))}), which this version does not know; "
                         "use the version that stored it")
    return _SIZES[kind](**value)
