"""Files of Mask2Former on Swin: the authors' (.pkl of the model zoo;
github.com/facebookresearch/Mask2Former), and transformers', as the hub has them."""

import re
import typing

import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.generators.mask2former import Mask2Former, Mask2FormerConfig
from maskclippp_jax.generators.swin import SwinConfig, distances
from maskclippp_jax.weights import model_shapes, rules
from maskclippp_jax.weights.mask_decoders import (
    ATTENTION,
    decoder_sizes,
    mask_decoder_rules,
    pixel_decoder_rules,
)
from maskclippp_jax.weights.rules import (
    HEADS,
    Rule,
    conv,
    conv_rules,
    joined_rules,
    linear,
    linear_rules,
    norm_rules,
)
from maskclippp_jax.weights.source import Source

_INDEX = "relative_position_index"
# How the names of transformers begin: trunk, pixel decoder, mask decoder.
TRANSFORMERS = "model.pixel_level_module.encoder."
_PIXELS, _DECODER = "model.pixel_level_module.decoder.", "model.transformer_module."


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


def transformers_rules() -> tuple[Rule, ...]:
    """The table of transformers' names, in which its files are kept; in memory it has others."""
    block, ours = f"{TRANSFORMERS}encoder.layers.{{i}}.blocks.{{j}}.", "image/stages/{i}/blocks/{j}"
    thirds = lambda leaf: tuple(f"{block}attention.self.{x}.{leaf}" for x in HEADS)
    return (
        *conv_rules(f"{TRANSFORMERS}embeddings.patch_embeddings.projection", "image/patch_embed"),
        *norm_rules(f"{TRANSFORMERS}embeddings.norm", "image/patch_norm"),
        *norm_rules(f"{block}layernorm_before", f"{ours}/norm1"),
        Rule(f"{block}attention.self.relative_position_bias_table",
             f"{ours}/attention/bias_table"),
        Rule(thirds("weight"), f"{ours}/attention/qkv/kernel", linear),
        Rule(thirds("bias"), f"{ours}/attention/qkv/bias"),
        *linear_rules(f"{block}attention.output.dense", f"{ours}/attention/out"),
        *norm_rules(f"{block}layernorm_after", f"{ours}/norm2"),
        *linear_rules(f"{block}intermediate.dense", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}output.dense", f"{ours}/mlp/fc2"),
        *_merge_next(f"{TRANSFORMERS}encoder."),
        *(r for i in range(4) for r in norm_rules(
            f"{TRANSFORMERS}hidden_states_norms.stage{i + 1}", f"image/norms/{i}")),
        Rule(rf"{re.escape(TRANSFORMERS)}.*{_INDEX}", None,
             why="which distance is which; `load` compares it with ours"),
        Rule(rf"{re.escape(TRANSFORMERS)}(swin\.)?layernorm\..*", None,
             why="of a Swin that names pictures; nothing reads it"),
        *transformers_decoder_rules(),
        *linear_rules("class_predictor", "class_head"),
        Rule(r"criterion\.empty_weight", None, why="of the loss"),
    )


def transformers_decoder_rules() -> tuple[Rule, ...]:
    """Of both decoders alone."""
    layer, ours = f"{_PIXELS}encoder.layers.{{i}}.", "pixel_decoder/layers/{i}"
    pixels = (
        *conv_rules(f"{_PIXELS}input_projections.{{i}}.0", "pixel_decoder/projections/{i}"),
        *norm_rules(f"{_PIXELS}input_projections.{{i}}.1", "pixel_decoder/projection_norms/{i}"),
        Rule(f"{_PIXELS}level_embed", "pixel_decoder/level_embed"),
        *(r for theirs, path in ATTENTION
          for r in linear_rules(f"{layer}self_attn.{theirs}", f"{ours}/attention/{path}")),
        *norm_rules(f"{layer}self_attn_layer_norm", f"{ours}/norm1"),
        *linear_rules(f"{layer}fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{layer}fc2", f"{ours}/mlp/fc2"),
        *norm_rules(f"{layer}final_layer_norm", f"{ours}/norm2"),
        Rule(f"{_PIXELS}adapter_1.0.weight", "pixel_decoder/lateral/kernel", conv),
        *norm_rules(f"{_PIXELS}adapter_1.1", "pixel_decoder/lateral_norm"),
        Rule(f"{_PIXELS}layer_1.0.weight", "pixel_decoder/output/kernel", conv),
        *norm_rules(f"{_PIXELS}layer_1.1", "pixel_decoder/output_norm"),
        *conv_rules(f"{_PIXELS}mask_projection", "pixel_decoder/mask_features"),
    )
    layer, ours = f"{_DECODER}decoder.layers.{{i}}.", "decoder/layers/{i}"
    return (
        *pixels,
        Rule(f"{_DECODER}queries_features.weight", "decoder/queries"),
        Rule(f"{_DECODER}queries_embedder.weight", "decoder/query_positions"),
        Rule(f"{_DECODER}level_embed.weight", "decoder/level_embed"),
        *norm_rules(f"{_DECODER}decoder.layernorm", "decoder/norm"),
        *linear_rules(f"{_DECODER}decoder.mask_predictor.mask_embedder.{{i}}.0",
                      "decoder/mask_head/layers/{i}"),
        *joined_rules(f"{layer}cross_attn.in_proj_", f"{ours}/cross"),
        *linear_rules(f"{layer}cross_attn.out_proj", f"{ours}/cross/out"),
        *norm_rules(f"{layer}cross_attn_layer_norm", f"{ours}/cross_norm"),
        *(r for theirs, path in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"),
                                 ("out_proj", "out"))
          for r in linear_rules(f"{layer}self_attn.{theirs}", f"{ours}/own/{path}")),
        *norm_rules(f"{layer}self_attn_layer_norm", f"{ours}/own_norm"),
        *linear_rules(f"{layer}fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{layer}fc2", f"{ours}/mlp/fc2"),
        *norm_rules(f"{layer}final_layer_norm", f"{ours}/mlp_norm"),
    )


def rules_of(names: typing.Iterable[str]) -> tuple[Rule, ...]:
    """The table of a file that has these names."""
    if any(name.startswith(TRANSFORMERS) for name in names):
        return transformers_rules()
    return (*HEAD_RULES, *swin_rules())


def swin_of(shapes: typing.Mapping[str, tuple], path: str,
            table: typing.Sequence[Rule] = swin_rules()) -> SwinConfig:
    """The sizes of the Swin in a file; see `config_of`."""
    found = rules.shapes_for(shapes, table)
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
    table = rules_of(shapes)
    found = rules.shapes_for(shapes, table)
    pixels, decoder = decoder_sizes(found, shapes, path, "Mask2Former",
                                    ("class_head/kernel",), num_heads)
    return Mask2FormerConfig(swin_of(shapes, path, table), pixels, decoder,
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
    wanted = model_shapes.of(config, lambda: abstract(config))
    return rules.load(source, rules_of(source), wanted, name=path)[0]


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
