"""The rules for what FC-CLIP and Mask2Former have in common: pixel decoder and mask decoder.

Both come from Mask2Former's code (github.com/facebookresearch/Mask2Former), and so do their names.
"""

from maskclippp_jax.weights.rules import (
    Rule,
    conv,
    conv_rules,
    linear,
    linear_rules,
    norm_rules,
)

_HEAD = "sem_seg_head."


def pixel_decoder_rules(prefix: str = f"{_HEAD}pixel_decoder.") -> tuple[Rule, ...]:
    """The pixel decoder below a prefix; its numbers go from the coarsest map to the finest."""
    layer, ours = f"{prefix}transformer.encoder.layers.{{i}}.", "pixel_decoder/layers/{i}"
    attention = (("sampling_offsets", "offsets"), ("attention_weights", "weights"),
                 ("value_proj", "values"), ("output_proj", "out"))
    return (
        *conv_rules(f"{prefix}input_proj.{{i}}.0", "pixel_decoder/projections/{i}"),
        *norm_rules(f"{prefix}input_proj.{{i}}.1", "pixel_decoder/projection_norms/{i}"),
        Rule(f"{prefix}transformer.level_embed", "pixel_decoder/level_embed"),
        *(r for name, path in attention
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
        thirds = lambda leaf: tuple(f"{ours}/{x}/{leaf}" for x in ("query", "key", "value"))
        rules += [Rule(f"{layer}{attention}.in_proj_weight", thirds("kernel"), linear),
                  Rule(f"{layer}{attention}.in_proj_bias", thirds("bias")),
                  *linear_rules(f"{layer}{attention}.out_proj", f"{ours}/out"),
                  *norm_rules(f"{layer}norm", f"{ours}_norm")]
    layer, ours = f"{prefix}transformer_ffn_layers.{{i}}.", "decoder/layers/{i}"
    return (*rules, *linear_rules(f"{layer}linear1", f"{ours}/mlp/fc1"),
            *linear_rules(f"{layer}linear2", f"{ours}/mlp/fc2"),
            *norm_rules(f"{layer}norm", f"{ours}/mlp_norm"))


def three_layers_rules(source: str, path: str) -> tuple[Rule, ...]:
    """`mask_decoder.ThreeLayers`."""
    return linear_rules(f"{source}.layers.{{i}}", f"{path}/layers/{{i}}")
