"""CLIPs of OpenCLIP whose image tower is timm's (huggingface/pytorch-image-models): EVA and SigLIP.

The image tower lies below `visual.trunk.`, the text tower below `text.`. OpenCLIP's ConvNeXt is
timm's as well, but its text tower has bare names: `open_clip` has its table.
"""

import typing

from maskclippp_jax.models.eva_vit import EvaViTConfig
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.weights import eva_clip, open_clip
from maskclippp_jax.weights.rules import (
    HEADS,
    Rule,
    conv_rules,
    joined_rules,
    leading_ones,
    linear_rules,
    norm_rules,
    scalar,
)

_TRUNK = "visual.trunk."
# EVA02's blocks have EVA-CLIP's names but for these (EVA-CLIP's, timm's); EVA01's all the same.
_EVA02_NAMES = (
    ("attn.q_bias", "attn.q_proj.bias"), ("attn.v_bias", "attn.v_proj.bias"),
    ("attn.inner_attn_ln.", "attn.norm."), ("mlp.w1.", "mlp.fc1_g."), ("mlp.w2.", "mlp.fc1_x."),
    ("mlp.ffn_ln.", "mlp.norm."), ("mlp.w3.", "mlp.fc2."))
# timm's names of an image tower alone: no text tower, so no CLIP.
_ALONE = "patch_embed.proj.weight"


def is_image_tower_alone(names: typing.Collection[str]) -> bool:
    """Whether a file holds a tower of timm's without a CLIP around it."""
    return _ALONE in names and any(name.startswith("blocks.0.") for name in names)


def clip_rules(model: MaskCLIPppConfig) -> tuple[Rule, ...]:
    """A whole pre-trained EVA-CLIP, SigLIP or SigLIP 2; NaFlex has no such names."""
    scale = Rule("logit_scale", "logit_scale", scalar)
    if isinstance(model.image, EvaViTConfig):
        return *_eva_rules(model.image), *open_clip.text_rules("text."), scale
    return (*vit_rules(), *_siglip_text_rules(), scale,
            Rule("logit_bias", "logit_bias", scalar))


def _eva_rules(config: EvaViTConfig) -> tuple[Rule, ...]:
    names = () if config.fused_qkv else _EVA02_NAMES

    def renamed(rule: Rule) -> Rule:
        source = rule.source
        for theirs, here in names:
            source = source.replace(theirs, here)
        return rule._replace(source=source)

    return tuple(map(renamed, eva_clip.image_rules(_TRUNK, config)))


def vit_rules() -> tuple[Rule, ...]:
    """timm's Vision Transformer with a pooling head, as SigLIP has it and, with more, PE-Core."""
    block, ours = f"{_TRUNK}blocks.{{i}}", "image/blocks/{i}"
    pool, our_pool = f"{_TRUNK}attn_pool", "image/pool"
    return (
        *conv_rules(f"{_TRUNK}patch_embed.proj", "image/patch_embed"),
        Rule(f"{_TRUNK}pos_embed", "image/position_table", leading_ones(1)),
        *norm_rules(f"{block}.norm1", f"{ours}/norm1"),
        *joined_rules(f"{block}.attn.qkv.", f"{ours}/attention"),
        *linear_rules(f"{block}.attn.proj", f"{ours}/attention/out"),
        *norm_rules(f"{block}.norm2", f"{ours}/norm2"),
        *linear_rules(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"),
        *norm_rules(f"{_TRUNK}norm", "image/norm"),
        Rule(f"{pool}.latent", f"{our_pool}/probe", leading_ones(2)),
        *linear_rules(f"{pool}.q", f"{our_pool}/query"),
        *joined_rules(f"{pool}.kv.", our_pool, HEADS[1:]),
        *linear_rules(f"{pool}.proj", f"{our_pool}/out"),
        *norm_rules(f"{pool}.norm", f"{our_pool}/norm"),
        *linear_rules(f"{pool}.mlp.fc1", f"{our_pool}/mlp/fc1"),
        *linear_rules(f"{pool}.mlp.fc2", f"{our_pool}/mlp/fc2"),
    )


def _siglip_text_rules() -> tuple[Rule, ...]:
    block, ours = "text.transformer.resblocks.{i}", "text/blocks/{i}"
    return (
        Rule("text.token_embedding.weight", "text/token_embedding"),
        Rule("text.positional_embedding", "text/position_table"),
        *norm_rules(f"{block}.ln_1", f"{ours}/norm1"),
        *joined_rules(f"{block}.attn.in_proj_", f"{ours}/attention"),
        *linear_rules(f"{block}.attn.out_proj", f"{ours}/attention/out"),
        *norm_rules(f"{block}.ln_2", f"{ours}/norm2"),
        *linear_rules(f"{block}.mlp.c_fc", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.c_proj", f"{ours}/mlp/fc2"),
        *norm_rules("text.ln_final", "text/norm"),
        # A linear layer, where a CLIP has a matrix; absent from the models without a text head.
        *linear_rules("text.text_projection", "text/head"),
    )
