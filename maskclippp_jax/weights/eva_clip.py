"""EVA-CLIP checkpoints (github.com/baaivision/EVA, EVA-CLIP): EVA02 and EVA01."""

import numpy as np

from maskclippp_jax.models.eva_vit import EvaViTConfig
from maskclippp_jax.weights import open_clip
from maskclippp_jax.weights.rules import (
    HEADS,
    Rule,
    conv_rules,
    leading_ones,
    linear,
    linear_rules,
    norm_rules,
    scalar,
)


def image_rules(prefix: str, config: EvaViTConfig) -> tuple[Rule, ...]:
    """The image tower below a prefix such as `visual.`."""
    block, ours = f"{prefix}blocks.{{i}}", "image/blocks/{i}"
    qkv = (
        Rule(f"{block}.attn.qkv.weight",  # rows q, k, v
             tuple(f"{ours}/attention/{x}/kernel" for x in HEADS), linear),
    ) if config.fused_qkv else (
        Rule(f"{block}.attn.q_proj.weight", f"{ours}/attention/query/kernel", linear),
        Rule(f"{block}.attn.k_proj.weight", f"{ours}/attention/key/kernel", linear),
        Rule(f"{block}.attn.v_proj.weight", f"{ours}/attention/value/kernel", linear),
    )
    mlp = (
        *linear_rules(f"{block}.mlp.w1", f"{ours}/mlp/w1"),
        *linear_rules(f"{block}.mlp.w2", f"{ours}/mlp/w2"),
        *norm_rules(f"{block}.mlp.ffn_ln", f"{ours}/mlp/norm"),
        *linear_rules(f"{block}.mlp.w3", f"{ours}/mlp/w3"),
    ) if config.swiglu else (
        *linear_rules(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"))
    return (
        Rule(f"{prefix}cls_token", "image/class_token", leading_ones(2)),
        Rule(f"{prefix}pos_embed", "image/position_table", leading_ones(1)),
        *conv_rules(f"{prefix}patch_embed.proj", "image/patch_embed"),
        *norm_rules(f"{block}.norm1", f"{ours}/norm1"),
        *qkv,
        Rule(f"{block}.attn.q_bias", f"{ours}/attention/query/bias"),
        Rule(f"{block}.attn.v_bias", f"{ours}/attention/value/bias"),
        *norm_rules(f"{block}.attn.inner_attn_ln", f"{ours}/attention/inner_norm"),
        *linear_rules(f"{block}.attn.proj", f"{ours}/attention/out"),
        *norm_rules(f"{block}.norm2", f"{ours}/norm2"),
        *mlp,
        *norm_rules(f"{prefix}norm", "image/norm"),
        *linear_rules(f"{prefix}head", "image/head"),
    )


def clip_rules(config: EvaViTConfig) -> tuple[Rule, ...]:
    """A whole pre-trained EVA-CLIP."""
    return (
        *image_rules("visual.", config),
        *open_clip.text_rules("text."),
        Rule("logit_scale", "logit_scale", scalar),
        Rule(r"visual\.(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)", None,
             why="the rotary angles follow from the grid: `rotary_buffers`"),
    )


def rotary_buffers(config: EvaViTConfig) -> dict[str, np.ndarray]:
    """Cosines and sines [L, K] float32 that EVA-CLIP keeps in its files, once more in every block.

    It loads no file without them, unless told to. EVA01 has none.
    """
    if config.rotary_grid is None:
        return {}
    side, half = config.image_size // config.patch_size, config.width // config.num_heads // 2
    # What `positions.rotary_table` gives, without a program of its own at every start.
    turns = np.arange(side)[:, None] / side * config.rotary_grid * 10000.0 ** (
        -2 * np.arange(half // 2) / half)
    turns = np.repeat(turns, 2, -1)  # [side, K / 2]
    angles = np.concatenate([np.repeat(turns, side, 0), np.tile(turns, (side, 1))], -1)
    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    places = ("", *(f"blocks.{i}.attn." for i in range(config.depth)))
    return {f"visual.{place}rope.freqs_{name}": table
            for place in places for name, table in tables.items()}
