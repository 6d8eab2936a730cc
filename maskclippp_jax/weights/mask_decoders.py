"""The rules for what FC-CLIP and Mask2Former have in common: pixel decoder and mask decoder.

Both come from Mask2Former's code (github.com/facebookresearch/Mask2Former), and so do their names.
"""

import re
import typing

from maskclippp_jax import params as parameters
from maskclippp_jax.generators.mask_decoder import MaskDecoderConfig
from maskclippp_jax.generators.pixel_decoder import PixelDecoderConfig
from maskclippp_jax.weights import rules
from maskclippp_jax.weights.rules import (
    Rule,
    conv,
    conv_rules,
    joined_rules,
    linear_rules,
    norm_rules,
)

_HEAD = "sem_seg_head."
# Deformable attention: its layers' names in all public code, and ours.
ATTENTION = (("sampling_offsets", "offsets"), ("attention_weights", "weights"),
             ("value_proj", "values"), ("output_proj", "out"))


def pixel_decoder_rules(prefix: str = f"{_HEAD}pixel_decoder.") -> tuple[Rule, ...]:
    """The pixel decoder below a prefix; its numbers go from the coarsest map to the finest."""
    layer, ours = f"{prefix}transformer.encoder.layers.{{i}}.", "pixel_decoder/layers/{i}"
    return (
        *conv_rules(f"{prefix}input_proj.{{i}}.0", "pixel_decoder/projections/{i}"),
        *norm_rules(f"{prefix}input_proj.{{i}}.1", "pixel_decoder/projection_norms/{i}"),
        Rule(f"{prefix}transformer.level_embed", "pixel_decoder/level_embed"),
        *(r for name, path in ATTENTION
          for r in linear_rules(f"{layer}self_attn.{name}", f"{ours}/attention/{path}")),
        *norm_rules(f"{layer}norm1", f"{ours}/norm1"),
        *linear_rules(f"{layer}linear1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{layer}linear2", f"{ours}/mlp/fc2"),
        *norm_rules(f"{layer}norm2", f"{ours}/norm2"),
        Rule(f"{prefix}adapter_1.weight", "pixel_decoder/lateral/kernel", conv),
        *norm_rules(f"{prefix}adapter_1.norm", "pixel_decoder/lateral_norm"),
        Rule(f"{prefix}layer_1.weight", "pixel_decoder/output/kernel", conv),
        *norm_rules(f"{prefix}layer_1.norm", "pixel_decoder/output_norm"),
        *conv_rules(f"{prefix}mask_features", "pixel_decoder/mask_features"),
    )


def mask_decoder_rules(queries: str, prefix: str = f"{_HEAD}predictor.") -> tuple[Rule, ...]:
    """The mask decoder below a prefix.

    Args:
      queries: what the queries are called there.
      prefix: of all names.
    """
    rules = [
        Rule(f"{prefix}{queries}.weight", "decoder/queries"),
        Rule(f"{prefix}query_embed.weight", "decoder/query_positions"),
        Rule(f"{prefix}level_embed.weight", "decoder/level_embed"),
        *norm_rules(f"{prefix}decoder_norm", "decoder/norm"),
        *three_layers_rules(f"{prefix}mask_embed", "decoder/mask_head"),
    ]
    for kind, attention, path in (("cross", "multihead_attn", "cross"),
                                  ("self", "self_attn", "own")):
        layer = f"{prefix}transformer_{kind}_attention_layers.{{i}}."
        ours = f"decoder/layers/{{i}}/{path}"
        rules += [*joined_rules(f"{layer}{attention}.in_proj_", ours),
                  *linear_rules(f"{layer}{attention}.out_proj", f"{ours}/out"),
                  *norm_rules(f"{layer}norm", f"{ours}_norm")]
    layer, ours = f"{prefix}transformer_ffn_layers.{{i}}.", "decoder/layers/{i}"
    return (*rules, *linear_rules(f"{layer}linear1", f"{ours}/mlp/fc1"),
            *linear_rules(f"{layer}linear2", f"{ours}/mlp/fc2"),
            *norm_rules(f"{layer}norm", f"{ours}/mlp_norm"))


def three_layers_rules(source: str, path: str) -> tuple[Rule, ...]:
    """`mask_decoder.ThreeLayers`."""
    return linear_rules(f"{source}.layers.{{i}}", f"{path}/layers/{{i}}")


def decoder_sizes(found: typing.Mapping[str, tuple], shapes: typing.Mapping[str, tuple], path: str,
                  kind: str, needed: typing.Sequence[str], num_heads: int
                  ) -> tuple[PixelDecoderConfig, MaskDecoderConfig]:
    """The sizes of both decoders in a file.

    Args:
      found: shapes of our parameters that it fills, by path.
      shapes: of its tensors, by name.
      path: for messages.
      kind: what it should hold, for messages.
      needed: paths that must be there besides those of the decoders.
      num_heads: of both, which no shape tells.

    Raises:
      ValueError: one of the sizes cannot be told.
    """
    count = lambda part: 1 + max((int(m[1]) for p in found if (m := re.match(
        rf"{part}/(\d+)/", p))), default=-1)
    num_levels = count("pixel_decoder/projections")
    hidden = "{}/layers/0/mlp/fc1/kernel"
    attention = "pixel_decoder/layers/0/attention/weights/kernel"
    missing = [name for name in (
        *needed, "decoder/queries", "decoder/level_embed", "pixel_decoder/lateral/kernel",
        "pixel_decoder/mask_features/kernel", attention, hidden.format("pixel_decoder"),
        hidden.format("decoder"),
        *(f"pixel_decoder/projections/{i}/kernel" for i in range(max(num_levels, 1))))
        if name not in found]
    if missing:
        shown = ", ".join(sorted(shapes)[:3]) or "nothing"
        raise ValueError(f"{path} holds no whole {kind} (it lacks {missing[0]} and holds {shown}, "
                         "...); give the file of one, or download it again")
    width_in, width = found["pixel_decoder/lateral/kernel"][2:]
    channels = (width_in, *(found[f"pixel_decoder/projections/{i}/kernel"][2]
                            for i in reversed(range(num_levels))))
    shares = found[attention][1]
    if shares % (num_heads * num_levels) or width % num_heads:
        raise ValueError(f"{path} has {shares} points in its deformable attention and {width} "
                         f"channels, wanted multiples of {num_heads} heads (and {num_levels} "
                         "maps); say how many heads it has")
    mask_width = found["pixel_decoder/mask_features/kernel"][3]
    return (PixelDecoderConfig(channels, width, mask_width, num_heads,
                               count("pixel_decoder/layers"),
                               found[hidden.format("pixel_decoder")][1],
                               shares // (num_heads * num_levels)),
            MaskDecoderConfig(found["decoder/queries"][0], width, mask_width, num_heads,
                              count("decoder/layers"), found[hidden.format("decoder")][1],
                              found["decoder/level_embed"][0]))


def load_head(source: typing.Mapping, head_rules: tuple[Rule, ...], shapes: parameters.Tree,
              path: str) -> parameters.Tree:
    """All parameters of a model but those of its trunk.

    Args:
      source: of `files.read`.
      head_rules: the rules for them.
      shapes: of all parameters of the model.
      path: for messages.
    """
    table = (*head_rules, Rule(r"backbone\..*", None, why="the trunk"))
    without = {name: shape for name, shape in shapes.items() if name != "image"}
    return rules.load(source, table, without, name=path)[0]
