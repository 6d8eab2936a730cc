"""CLIP under OpenAI's names, which OpenCLIP kept (github.com/openai/CLIP, mlfoundations/open_clip).

ConvNeXt towers are timm's (github.com/huggingface/pytorch-image-models), below `visual.trunk.`.
"""

import re

from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.clip_resnet import ResNetConfig
from maskclippp_jax.models.clip_vit import ClipViTConfig
from maskclippp_jax.weights.rules import (
    HEADS,
    Rule,
    conv,
    conv_rules,
    joined_rules,
    linear,
    linear_rules,
    norm_rules,
    scalar,
)


def vit_rules(prefix: str, config: ClipViTConfig) -> tuple[Rule, ...]:
    """The Vision Transformer below a prefix such as `visual.`."""
    del config
    return (*vit_trunk_rules(prefix),
            Rule(f"{prefix}proj", "image/projection"))  # stored (in, out)


def vit_trunk_rules(prefix: str) -> tuple[Rule, ...]:
    """The same without the map at its end, as PE-Core has it too."""
    block, ours = f"{prefix}transformer.resblocks.{{i}}", "image/blocks/{i}"
    return (
        Rule(f"{prefix}class_embedding", "image/class_token"),
        Rule(f"{prefix}positional_embedding", "image/position_table"),
        Rule(f"{prefix}conv1.weight", "image/patch_embed/kernel", conv),
        *norm_rules(f"{prefix}ln_pre", "image/pre_norm"),
        *norm_rules(f"{block}.ln_1", f"{ours}/norm1"),
        *joined_rules(f"{block}.attn.in_proj_", f"{ours}/attention"),
        *linear_rules(f"{block}.attn.out_proj", f"{ours}/attention/out"),
        *norm_rules(f"{block}.ln_2", f"{ours}/norm2"),
        *linear_rules(f"{block}.mlp.c_fc", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.c_proj", f"{ours}/mlp/fc2"),
        *norm_rules(f"{prefix}ln_post", "image/norm"),
    )


def convnext_rules(prefix: str, config: ConvNeXtConfig) -> tuple[Rule, ...]:
    """The ConvNeXt below a prefix such as `visual.`; the head is linear or has two layers."""
    trunk, stage, ours = f"{prefix}trunk", f"{prefix}trunk.stages.{{i}}", "image/stages/{i}"
    block, our_block = f"{stage}.blocks.{{j}}", f"{ours}/blocks/{{j}}"
    head = (Rule(f"{prefix}head.proj.weight", "image/head/fc2/kernel", linear),
            ) if config.head_width is None else (
        *linear_rules(f"{prefix}head.mlp.fc1", "image/head/fc1"),
        Rule(f"{prefix}head.mlp.fc2.weight", "image/head/fc2/kernel", linear))
    return (
        *conv_rules(f"{trunk}.stem.0", "image/stem/conv"),
        *norm_rules(f"{trunk}.stem.1", "image/stem/norm"),
        *norm_rules(f"{stage}.downsample.0", f"{ours}/downsample/norm"),
        *conv_rules(f"{stage}.downsample.1", f"{ours}/downsample/conv"),
        Rule(f"{block}.gamma", f"{our_block}/gamma"),
        *conv_rules(f"{block}.conv_dw", our_block),
        *norm_rules(f"{block}.norm", f"{our_block}/norm"),
        *linear_rules(f"{block}.mlp.fc1", f"{our_block}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.fc2", f"{our_block}/mlp/fc2"),
        *norm_rules(f"{trunk}.head.norm", "image/norm"),
        *head,
    )


def resnet_rules(prefix: str, config: ResNetConfig) -> tuple[Rule, ...]:
    """The modified ResNet below a prefix such as `visual.`."""
    del config
    rules = []
    for k in (1, 2, 3):
        rules += [Rule(f"{prefix}conv{k}.weight", f"image/stem/conv{k}/kernel", conv),
                  *_batch_norm(f"{prefix}bn{k}", f"image/stem/norm{k}")]
    for i in range(4):
        block, ours = f"{prefix}layer{i + 1}.{{j}}", f"image/stages/{i}/{{j}}"
        for k in (1, 2, 3):
            rules += [Rule(f"{block}.conv{k}.weight", f"{ours}/conv{k}/kernel", conv),
                      *_batch_norm(f"{block}.bn{k}", f"{ours}/norm{k}")]
        rules += [Rule(f"{block}.downsample.0.weight", f"{ours}/shortcut/conv/kernel", conv),
                  *_batch_norm(f"{block}.downsample.1", f"{ours}/shortcut/norm")]
    pool = f"{prefix}attnpool"
    rules.append(Rule(f"{pool}.positional_embedding", "image/pool/position_table"))
    for letter, name in zip("qkvc", (*HEADS, "out")):
        rules += linear_rules(f"{pool}.{letter}_proj", f"image/pool/{name}")
    return (*rules, Rule(r".*(bn\d|downsample\.1)\.num_batches_tracked", None,
                         why="a count of training steps"))


def text_rules(prefix: str) -> tuple[Rule, ...]:
    """The causal text tower below a prefix such as `text.`; EVA-CLIP has the same names."""
    block, ours = f"{prefix}transformer.resblocks.{{i}}", "text/blocks/{i}"
    return (
        Rule(f"{prefix}token_embedding.weight", "text/token_embedding"),
        Rule(f"{prefix}positional_embedding", "text/position_table"),
        *norm_rules(f"{block}.ln_1", f"{ours}/norm1"),
        Rule(f"{block}.attn.in_proj_weight", f"{ours}/attention/qkv/kernel",
             linear),  # rows q, k, v
        Rule(f"{block}.attn.in_proj_bias", f"{ours}/attention/qkv/bias"),
        *linear_rules(f"{block}.attn.out_proj", f"{ours}/attention/out"),
        *norm_rules(f"{block}.ln_2", f"{ours}/norm2"),
        *linear_rules(f"{block}.mlp.c_fc", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.c_proj", f"{ours}/mlp/fc2"),
        *norm_rules(f"{prefix}ln_final", "text/norm"),
        Rule(f"{prefix}text_projection", "text/projection"),  # stored (in, out)
    )


def clip_rules(image: tuple[Rule, ...], prefix: str = "") -> tuple[Rule, ...]:
    """A whole pre-trained CLIP.

    Args:
      image: the rules of its image tower, below `{prefix}visual.`.
      prefix: of all names; in FC-CLIP and MAFT+ files the CLIP is one part of a mask generator.
    """
    left_out = Rule(r"input_resolution|context_length|vocab_size", None,
                    why="three sizes of the model, in OpenAI's files")
    if prefix:
        left_out = Rule(rf"(?!{re.escape(prefix)}).*", None,
                        why="the mask generator around the CLIP")
    return (*image, *text_rules(prefix), Rule(f"{prefix}logit_scale", "logit_scale", scalar),
            left_out)


def _batch_norm(source: str, path: str) -> tuple[Rule, ...]:
    return (*norm_rules(source, path),
            Rule(f"{source}.running_mean", f"{path}/running_mean"),
            Rule(f"{source}.running_var", f"{path}/running_var"))
