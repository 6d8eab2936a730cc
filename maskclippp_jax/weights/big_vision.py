"""SigLIP under the names of google-research/big_vision; `big_vision_file` reads them.

Its dense layers are ours, but those of attention have an axis of heads.
"""

import collections
import re

import numpy as np

from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.models.siglip import SigLIPConfig
from maskclippp_jax.weights.rules import HEADS, Change, Rule, keep, leading_ones

_BLOCK = re.compile(r"(.*/encoderblock)_(\d+)/(.*)")


def clip_rules(model: MaskCLIPppConfig) -> tuple[Rule, ...]:
    """A whole SigLIP or SigLIP 2."""
    pool = "img/MAPHead_0"
    return (
        *_patch_rules(model.image),
        *block_rules("img/Transformer/encoderblock_{i}", "image/blocks/{i}",
                     model.image.num_heads),
        *norm_rules("img/Transformer/encoder_norm", "image/norm"),
        Rule(f"{pool}/probe", "image/pool/probe", leading_ones(2)),
        *_attention(f"{pool}/MultiHeadDotProductAttention_0", "image/pool", model.image.num_heads),
        *norm_rules(f"{pool}/LayerNorm_0", "image/pool/norm"),
        *_mlp(f"{pool}/MlpBlock_0", "image/pool/mlp"),
        *dense_rules("img/head", "image/head"),

        Rule("txt/Embed_0/embedding", "text/token_embedding"),
        Rule("txt/pos_embedding", "text/position_table", leading_ones(1)),
        *block_rules("txt/Encoder_0/encoderblock_{i}", "text/blocks/{i}", model.text.num_heads),
        *norm_rules("txt/Encoder_0/encoder_norm", "text/norm"),
        *dense_rules("txt/head", "text/head"),

        Rule("t", "logit_scale", leading_ones(1)),  # a logarithm there as well
        Rule("b", "logit_bias", leading_ones(1)),
    )


def stack_blocks(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The layout of models that big_vision runs with `scan=True`: one array for all blocks."""
    stacks, result = collections.defaultdict(dict), {}
    for name, array in named.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            result[name] = array
        else:
            stacks[f"{block[1]}/{block[3]}"][int(block[2])] = array
    return result | {name: np.stack([blocks[i] for i in range(len(blocks))])
                     for name, blocks in stacks.items()}


def _patch_rules(c: SigLIPConfig) -> tuple[Rule, ...]:
    if c.position_resize != "antialiased":
        kernel, table = keep, leading_ones(1)
    else:  # NaFlex sees patches as rows of numbers, and keeps its table square
        kernel = Change(
            lambda x, shape: x.reshape(c.patch_size, c.patch_size, 3, -1) if x.ndim == 2 else x,
            lambda x, shape: x.reshape(-1, shape[-1]))
        side = c.image_size // c.patch_size
        table = Change(
            lambda x, shape: x.reshape(-1, x.shape[-1]) if x.shape[:2] == (side, side) else x,
            lambda x, shape: x.reshape(side, side, -1))
    return (Rule("img/embedding/kernel", "image/patch_embed/kernel", kernel),
            Rule("img/embedding/bias", "image/patch_embed/bias"),
            Rule("img/pos_embedding", "image/position_table", table))


def block_rules(source: str, ours: str, num_heads: int) -> tuple[Rule, ...]:
    """A block as Flax's own layers name it, in big_vision and in Scenic."""
    return (
        *norm_rules(f"{source}/LayerNorm_0", f"{ours}/norm1"),
        *_attention(f"{source}/MultiHeadDotProductAttention_0", f"{ours}/attention", num_heads),
        *norm_rules(f"{source}/LayerNorm_1", f"{ours}/norm2"),
        *_mlp(f"{source}/MlpBlock_0", f"{ours}/mlp"),
    )


def _attention(source: str, ours: str, num_heads: int) -> tuple[Rule, ...]:
    kernel = Change(  # [D, A, K] there, [D, D] here
        lambda x, shape: x.reshape(len(x), -1) if x.ndim == 3 else x,
        lambda x, shape: x.reshape(len(x), num_heads, -1))
    bias = Change(  # [A, K] there
        lambda x, shape: x.reshape(-1) if x.ndim == 2 else x,
        lambda x, shape: x.reshape(num_heads, -1))
    out = Change(  # [A, K, D] there
        lambda x, shape: x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x,
        lambda x, shape: x.reshape(num_heads, -1, x.shape[-1]))
    return (
        *(Rule(f"{source}/{name}/kernel", f"{ours}/{name}/kernel", kernel)
          for name in HEADS),
        *(Rule(f"{source}/{name}/bias", f"{ours}/{name}/bias", bias)
          for name in HEADS),
        Rule(f"{source}/out/kernel", f"{ours}/out/kernel", out),
        Rule(f"{source}/out/bias", f"{ours}/out/bias"),
    )


def _mlp(source: str, ours: str) -> tuple[Rule, ...]:
    return (*dense_rules(f"{source}/Dense_0", f"{ours}/fc1"),
            *dense_rules(f"{source}/Dense_1", f"{ours}/fc2"))


def dense_rules(source: str, ours: str) -> tuple[Rule, ...]:
    """A linear layer with bias."""
    return (Rule(f"{source}/kernel", f"{ours}/kernel"), Rule(f"{source}/bias", f"{ours}/bias"))


def norm_rules(source: str, ours: str) -> tuple[Rule, ...]:
    """The scale and bias of a norm."""
    return (Rule(f"{source}/scale", f"{ours}/scale"), Rule(f"{source}/bias", f"{ours}/bias"))
