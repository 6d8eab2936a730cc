"""TIPS and TIPSv2 (github.com/google-deepmind/tips): hub files, and .npz of PyTorch and of Scenic.

The image tower and the text tower are files of their own (`halves` joins them), but one on the hub.
"""

import typing

import numpy as np

from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.weights import files
from maskclippp_jax.weights.big_vision import block_rules, dense_rules, norm_rules as flax_norm
from maskclippp_jax.weights.rules import (
    Change,
    Rule,
    conv_rules,
    joined_rules,
    leading_ones,
    linear_rules,
    norm_rules,
)
from maskclippp_jax.weights.source import Source

TEMPERATURES = ("temperature", "temperature_contrastive")
_TOKENS = "encoder/ToTokenSequence_0"


def _to_scale(x: np.ndarray, shape: tuple) -> np.ndarray:
    """Similarities are divided by the temperature; ours is the logarithm of a factor."""
    with np.errstate(divide="ignore"):  # 0 where only shapes matter; the loader refuses infinity
        return -np.log(x.astype(np.float64).reshape(()))


_temperature = Change(_to_scale, lambda x, shape: np.exp(-x.astype(np.float64)).astype(np.float32))


def rules(image: str = "", text: str = "") -> tuple[Rule, ...]:
    """A whole model of the authors' PyTorch code.

    Args:
      image, text: what the names of a tower begin with, "vision_encoder." and "text_encoder." on
        the hub.
    """
    block, ours = f"{image}blocks.{{i}}", "image/blocks/{i}"
    words, our_words = f"{text}transformer.resblocks.{{i}}", "text/blocks/{i}"
    return (
        Rule(f"{image}cls_token", "image/class_token", leading_ones(2)),
        Rule(f"{image}register_tokens", "image/second_class_token", leading_ones(2)),
        Rule(f"{image}pos_embed", "image/position_table", leading_ones(1)),
        *conv_rules(f"{image}patch_embed.proj", "image/patch_embed"),
        *norm_rules(f"{block}.norm1", f"{ours}/norm1"),
        *joined_rules(f"{block}.attn.qkv.", f"{ours}/attention"),
        *linear_rules(f"{block}.attn.proj", f"{ours}/attention/out"),
        Rule(f"{block}.ls1.gamma", f"{ours}/scale1"),
        *norm_rules(f"{block}.norm2", f"{ours}/norm2"),
        *linear_rules(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"),
        # the gated MLP of g/14
        *joined_rules(f"{block}.mlp.w12.", f"{ours}/mlp", ("w1", "w2")),
        *linear_rules(f"{block}.mlp.w3", f"{ours}/mlp/w3"),
        Rule(f"{block}.ls2.gamma", f"{ours}/scale2"),
        *norm_rules(f"{image}norm", "image/norm"),
        Rule(rf"{image}mask_token", None, why="stands for hidden patches in pre-training"),

        Rule(f"{text}token_embedding.weight", "text/token_embedding"),
        *norm_rules(f"{words}.ln_1", f"{our_words}/norm1"),
        *joined_rules(f"{words}.attn.in_proj_", f"{our_words}/attention"),
        *linear_rules(f"{words}.attn.out_proj", f"{our_words}/attention/out"),
        *norm_rules(f"{words}.ln_2", f"{our_words}/norm2"),
        *linear_rules(f"{words}.mlp.c_fc", f"{our_words}/mlp/fc1"),
        *linear_rules(f"{words}.mlp.c_proj", f"{our_words}/mlp/fc2"),
        *norm_rules(f"{text}ln_final", "text/norm"),
        Rule("temperature", "logit_scale", _temperature),
    )


def hub_rules() -> tuple[Rule, ...]:
    return rules("vision_encoder.", "text_encoder.")


def scenic_rules(model: MaskCLIPppConfig) -> tuple[Rule, ...]:
    """A whole model of the authors' JAX code, read as `complete` gives it.

    The first class token has its position in it already, and the last matrices of attention and MLP
    have the factors of the block (LayerScale) in them.
    """
    block, gated = "encoder/transformer/encoderblock_{i}", "FFNSwiGluFused_0"
    # Row 0, the position of the class token, is not there.
    table = Change(lambda x, shape: np.pad(x.reshape(-1, x.shape[-1]), ((1, 0), (0, 0))),
                   lambda x, shape: x[1:])
    return (
        Rule(f"{_TOKENS}/cls/0", "image/class_token"),
        Rule(f"{_TOKENS}/cls/1", "image/second_class_token"),
        Rule(f"{_TOKENS}/posembed_input", "image/position_table", table),
        *dense_rules(f"{_TOKENS}/embedding", "image/patch_embed"),
        *block_rules(block, "image/blocks/{i}", model.image.num_heads),
        *(rule for k in (0, 1, 2) for rule in dense_rules(
            f"{block}/{gated}/Dense_{k}", f"image/blocks/{{i}}/mlp/w{k + 1}")),
        *(Rule(f"{block}/{scale}", f"image/blocks/{{i}}/{scale}") for scale in ("scale1",
                                                                               "scale2")),
        *flax_norm("encoder/encoder_norm", "image/norm"),

        Rule("token_emb/emb_var", "text/token_embedding"),
        *block_rules("transformer/encoderblock_{i}", "text/blocks/{i}", model.text.num_heads),
        *flax_norm("text_encoder_norm", "text/norm"),
        Rule("temperature", "logit_scale", _temperature),
    )


class _HubConfig(typing.TypedDict):
    """config.json on the hub, as far as it is needed."""

    temperature_init_value: typing.NotRequired[float]


class Complete(Source):
    """A file's tensors and what follows from them, or lies beside it.

    The temperature has one name; Scenic's two class tokens are apart, and factors of blocks (1) are
    there.

    Raises (on construction):
      ValueError: no temperature, neither in the file nor beside it.
    """

    def __init__(self, source: Source, path: str):
        self._source, self._made = source, {}
        is_there = [name for name in TEMPERATURES if name in source]
        if is_there:
            self._make("temperature", (), lambda: source[is_there[0]].reshape(()))
        else:
            content = files.beside(path, "config.json", _HubConfig)
            if content is None or "temperature_init_value" not in content:
                raise ValueError(f"{path} holds no temperature, and no config.json with a "
                                 "temperature_init_value lies beside it; put the one of its "
                                 "repository there")
            value = np.float32(content["temperature_init_value"])
            self._make("temperature", (), lambda: np.asarray(value))
        both = f"{_TOKENS}/cls"
        if both in source:
            width = source.shapes[both][-1]
            for k in (0, 1):
                self._make(f"{both}/{k}", (width,), lambda k=k: source[both].reshape(2, width)[k])
            for name in source:
                if name.startswith("encoder/transformer/") and name.endswith("/LayerNorm_0/scale"):
                    block = name.removesuffix("/LayerNorm_0/scale")
                    for scale in ("scale1", "scale2"):
                        self._make(f"{block}/{scale}", (width,),
                                   lambda: np.ones(width, np.float32))
        self.shapes = {name: shape for name, shape in source.shapes.items()
                       if name != both and name not in TEMPERATURES}
        self.shapes |= {name: shape for name, (shape, _) in self._made.items()}

    def _make(self, name, shape, make):
        self._made[name] = shape, make

    def __getitem__(self, name: str) -> np.ndarray:
        return self._made[name][1]() if name in self._made else self._source[name]


def unread(model: MaskCLIPppConfig) -> dict[str, np.ndarray]:
    """What files on the hub hold beside the parameters."""
    return {"vision_encoder.mask_token": np.zeros((1, model.image.width), np.float32)}
