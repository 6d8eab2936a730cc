"""Files of Mask2Former on Swin (.pkl of the model zoo; github.com/facebookresearch/Mask2Former)."""

import re
import typing

import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.generators.mask2former import Mask2Former, Mask2FormerConfig
from maskclippp_jax.generators.swin import SwinConfig, distances
from maskclippp_jax.weights import rules
from maskclippp_jax.weights.mask_decoders import (
    decoder_sizes,
    mask_decoder_rules,
    pixel_decoder_rules,
)
from maskclippp_jax.weights.rules import Rule, conv_rules, linear, linear_rules, norm_rules
from maskclippp_jax.weights.source import Source

_INDEX = "relative_position_index"


def _merge_next(source: str) -> tuple[Rule, ...]:
    """Merging, which the public code counts to the stage before and we to the one behind."""
    return tuple(r for i in range(3) for r in (
        Rule(f"{source}layers.{i}.downsample.reduction.weight",
             f"image/stages/{i + 1}/merge/linear/kernel", linear),
        *norm_rules(f"{source}layers.{i}.downsample.norm", f"image/stages/{i + 1}/merge/norm")))


def swin_rules(prefix: str = "backbone.") -> tuple[Rule, ...]:
    """The Swin below a prefix."""
    block, ours = f"{prefix}layers.{{i}}.blocks.{{j}}.", "image/stages/{i}/blocks/{j}"
    return (
        *conv_rules(f"{prefix}patch_embed.proj", "image/patch_embed"),
        *norm_rules(f"{prefix}patch_embed.norm", "image/patch_norm"),
        *norm_rules(f"{block}norm1", f"{ours}/norm1"),
        Rule(f"{block}attn.relative_position_bias_table", f"{ours}/attention/bias_table"),
        *linear_rules(f"{block}attn.qkv", f"{ours}/attention/qkv"),
        *linear_rules(f"{block}attn.proj", f"{ours}/attention/out"),
        *norm_rules(f"{block}norm2", f"{ours}/norm2"),
        *linear_rules(f"{block}mlp.fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}mlp.fc2", f"{ours}/mlp/fc2"),
        *_merge_next(prefix),
        *(r for i in range(4) for r in norm_rules(f"{prefix}norm{i}", f"image/norms/{i}")),
        Rule(rf"{re.escape(prefix)}layers\.\d+\.blocks\.\d+\.attn\.{_INDEX}", None,
             why="which distance is which; `load` compares it with ours"),
    )


HEAD_RULES = (
    *pixel_decoder_rules(),
    *mask_decoder_rules("static_query"),
    *linear_rules("sem_seg_head.predictor.class_embed", "class_head"),
    Rule(r"criterion\.empty_weight", None, why="of the loss"),
)


def swin_of(shapes: typing.Mapping[str, tuple], path: str, prefix: str = "backbone."
            ) -> SwinConfig:
    """The sizes of the Swin in a file; see `config_of`."""
    found = rules.shapes_for(shapes, swin_rules(prefix))
    blocks = [m for p in found if (m := re.match(
        r"image/stages/(\d+)/blocks/(\d+)/attention/bias_table", p))]
    depths = [1 + max((int(m[2]) for m in blocks if int(m[1]) == i), default=-1)
              for i in range(4)]
    if not all(depths) or "image/patch_embed/kernel" not in found:
        raise ValueError(f"{path} holds no whole Swin; give the .pkl of a Mask2Former on Swin, or "
                         "download it again")
    tables = [found[f"image/stages/{i}/blocks/0/attention/bias_table"] for i in range(4)]
    patch, _, _, width = found["image/patch_embed/kernel"]
    return SwinConfig(width, tuple(depths), tuple(heads for _, heads in tables),
                      window=(int(round(tables[0][0]**0.5)) + 1) // 2, patch_size=patch)


def config_of(shapes: typing.Mapping[str, tuple], path: str, *, num_heads: int = 8
              ) -> Mask2FormerConfig:
    """The sizes of the model that a file is of, for pictures of any size.

    Args:
      shapes: of its tensors, by name.
      path: for messages.
      num_heads: of both decoders, which no shape tells; all published models have 8.

    Raises:
      ValueError: no Mask2Former on Swin, or nothing tells one of its sizes.
    """
    found = rules.shapes_for(shapes, HEAD_RULES)
    pixels, decoder = decoder_sizes(found, shapes, path, "Mask2Former",
                                    ("class_head/kernel",), num_heads)
    return Mask2FormerConfig(swin_of(shapes, path), pixels, decoder,
                             found["class_head/kernel"][1] - 1)


def load(source: Source, config: Mask2FormerConfig, path: str) -> parameters.Tree:
    """Parameters from a file.

    Args:
      source: of `files.read`.
      config: of `config_of`.
      path: for messages.

    Raises:
      ValueError: the file does not fit; all problems are listed.
    """
    check_distances(source, config.image.window, path)
    _, shapes = abstract(config)
    return rules.load(source, (*HEAD_RULES, *swin_rules()), shapes, name=path)[0]


def check_distances(source: typing.Mapping[str, np.ndarray], window: int, path: str):
    """Refuses a Swin whose tables of distances are in another order than ours."""
    ours = distances(window)
    for name in source:
        if name.endswith(_INDEX) and not np.array_equal(source[name], ours):
            raise ValueError(f"{path} has other distances in {name} than windows of {window} "
                             "cells have; take a file of Mask2Former's authors")


def abstract(config: Mask2FormerConfig, **settings) -> tuple[typing.Callable, parameters.Tree]:
    """What `params.abstract` gives of the model; for the settings see `Mask2Former`."""
    return parameters.abstract(lambda: Mask2Former(config, rngs=parameters.Keys(0), **settings))
