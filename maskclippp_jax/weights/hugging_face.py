"""CLIP and SigLIP under the names of github.com/huggingface/transformers."""

import re

import numpy as np

from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.models.siglip import SigLIPTextConfig
from maskclippp_jax.weights.rules import (
    HEADS,
    Change,
    Rule,
    conv,
    joined_rules,
    leading_ones,
    linear,
    linear_rules,
    norm_rules,
    scalar,
)

_TEXT_HEAD = "text_model.head"


def clip_rules() -> tuple[Rule, ...]:
    """`CLIPModel`: a whole pre-trained CLIP with a Vision Transformer."""
    vision, words = "vision_model", "text_model"
    apart = {x: f"{words}.encoder.layers.{{i}}.self_attn.{x}_proj" for x in "qkv"}
    return (
        Rule(f"{vision}.embeddings.class_embedding", "image/class_token"),
        Rule(f"{vision}.embeddings.position_embedding.weight", "image/position_table"),
        Rule(f"{vision}.embeddings.patch_embedding.weight", "image/patch_embed/kernel", conv),
        *norm_rules(f"{vision}.pre_layrnorm", "image/pre_norm"),  # spelt so
        *_block(vision, "image"), *_apart(vision, "image"),
        *norm_rules(f"{vision}.post_layernorm", "image/norm"),
        Rule("visual_projection.weight", "image/projection", linear),

        Rule(f"{words}.embeddings.token_embedding.weight", "text/token_embedding"),
        Rule(f"{words}.embeddings.position_embedding.weight", "text/position_table"),
        *_block(words, "text"),
        Rule(tuple(f"{name}.weight" for name in apart.values()),
             "text/blocks/{i}/attention/qkv/kernel", linear),
        Rule(tuple(f"{name}.bias" for name in apart.values()),
             "text/blocks/{i}/attention/qkv/bias"),
        *norm_rules(f"{words}.final_layer_norm", "text/norm"),
        Rule("text_projection.weight", "text/projection", linear),

        Rule("logit_scale", "logit_scale", scalar),
        Rule(r"(vision|text)_model\.embeddings\.position_ids", None,
             why="the numbers 0, 1, 2, ..."),
    )


def siglip_rules(model: MaskCLIPppConfig) -> tuple[Rule, ...]:
    """`SiglipModel`, and `Siglip2Model`, which is the NaFlex kind of SigLIP 2."""
    image = model.image
    vision, words, pool, ours = "vision_model", "text_model", "vision_model.head", "image/pool"
    patch = f"{vision}.embeddings.patch_embedding"
    kernel = conv
    if image.position_resize == "antialiased":  # patches are rows of numbers, channels innermost
        p = image.patch_size
        kernel = Change(lambda x, shape: x.T.reshape(p, p, 3, -1) if x.ndim == 2 else x,
                        lambda x, shape: x.reshape(-1, shape[-1]).T)
    return (
        Rule(f"{patch}.weight", "image/patch_embed/kernel", kernel),
        Rule(f"{patch}.bias", "image/patch_embed/bias"),
        Rule(f"{vision}.embeddings.position_embedding.weight", "image/position_table"),
        *_block(vision, "image"), *_apart(vision, "image"),
        *norm_rules(f"{vision}.post_layernorm", "image/norm"),
        Rule(f"{pool}.probe", f"{ours}/probe", leading_ones(2)),
        *joined_rules(f"{pool}.attention.in_proj_", ours),
        *linear_rules(f"{pool}.attention.out_proj", f"{ours}/out"),
        *norm_rules(f"{pool}.layernorm", f"{ours}/norm"),
        *linear_rules(f"{pool}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{pool}.mlp.fc2", f"{ours}/mlp/fc2"),

        Rule(f"{words}.embeddings.token_embedding.weight", "text/token_embedding"),
        Rule(f"{words}.embeddings.position_embedding.weight", "text/position_table"),
        *_block(words, "text"), *_apart(words, "text"),
        *norm_rules(f"{words}.final_layer_norm", "text/norm"),
        *(linear_rules(_TEXT_HEAD, "text/head") if model.text.has_head else (
            Rule(rf"{re.escape(_TEXT_HEAD)}\.(weight|bias)", None,
                 why="the model has no text head: `absent_head`"),)),

        Rule("logit_scale", "logit_scale", leading_ones(1)),
        Rule("logit_bias", "logit_bias", leading_ones(1)),
        Rule(r"(vision|text)_model\.embeddings\.position_ids", None,
             why="the numbers 0, 1, 2, ..."),
    )


def absent_head(text: SigLIPTextConfig) -> dict[str, np.ndarray]:
    """The text head that `SiglipModel` has when the model has none: it changes nothing.

    So transformers writes SigLIP So400m/16 for many languages, and loads no file without it.
    """
    if text.has_head:
        return {}
    return {f"{_TEXT_HEAD}.weight": np.eye(text.width, dtype=np.float32),
            f"{_TEXT_HEAD}.bias": np.zeros(text.width, np.float32)}


def _apart(source: str, ours: str) -> tuple[Rule, ...]:
    """Queries, keys and values of a tower's blocks, three matrices there and here."""
    attention = f"{source}.encoder.layers.{{i}}.self_attn"
    return tuple(rule for name in HEADS for rule in linear_rules(
        f"{attention}.{name[0]}_proj", f"{ours}/blocks/{{i}}/attention/{name}"))


def _block(source: str, ours: str) -> tuple[Rule, ...]:
    """What both towers' blocks have in common: all but queries, keys and values."""
    block, path = f"{source}.encoder.layers.{{i}}", f"{ours}/blocks/{{i}}"
    return (
        *norm_rules(f"{block}.layer_norm1", f"{path}/norm1"),
        *linear_rules(f"{block}.self_attn.out_proj", f"{path}/attention/out"),
        *norm_rules(f"{block}.layer_norm2", f"{path}/norm2"),
        *linear_rules(f"{block}.mlp.fc1", f"{path}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.fc2", f"{path}/mlp/fc2"),
    )
