"""Files of EoMT: the authors' (pytorch_model.bin, Lightning's .ckpt) and transformers'.

Their names differ, and a giant's gated MLP comes in three forms; the numbers are the same. What
model a file is of follows from the shapes in it.
"""

import dataclasses
import functools
import math
import re
import typing

import jax.numpy as jnp

from maskclippp_jax import params as parameters
from maskclippp_jax.generators.eomt import EoMT, EoMTConfig
from maskclippp_jax.weights import files, rules
from maskclippp_jax.weights.rules import (
    Rule,
    conv_rules,
    joined_rules,
    leading_ones,
    linear_rules,
    norm_rules,
)
from maskclippp_jax.weights.source import Renamed, Source

# How to recognise a layout: some names begin like this.
_MARKS = {"authors": "network.encoder.backbone.", "transformers": "upscale_block.",
          "ours": "upscale/"}
_COMPILED = "._orig_mod"  # in the names of what torch.compile wrapped

# (in, out, row, column) -> (in, row, column, out); torch does not flip a transposed kernel either.
_doubling = rules.Change(lambda x, shape: x.transpose(0, 2, 3, 1),
                         lambda x, shape: x.transpose(0, 3, 1, 2))
# (D, 1, row, column) -> (row, column, D)
_depthwise = rules.Change(lambda x, shape: x.transpose(2, 3, 1, 0).squeeze(2),
                          lambda x, shape: x[:, :, None].transpose(3, 2, 0, 1))

_LEFT_OUT = (
    Rule(r"(network\.)?attn_mask_probs", None,
         why="how far training has faded masked attention out; published results are without it"),
    Rule(r"network\.encoder\.pixel_(mean|std)", None, why="constants of EoMTConfig"),
    Rule(r"criterion\.empty_weight", None, why="of the loss"),
)


def authors_rules(*, swiglu: bool) -> tuple[Rule, ...]:
    """The table of the authors' names; queries, keys and values are one tensor there."""
    trunk, block = "network.encoder.backbone.", "network.encoder.backbone.blocks.{i}."
    attention = "blocks/{i}/attention"
    return (
        Rule(f"{trunk}cls_token", "class_token", leading_ones(2)),
        Rule(f"{trunk}reg_token", "registers", leading_ones(1)),
        Rule(f"{trunk}pos_embed", "position_table", leading_ones(1)),
        *conv_rules(f"{trunk}patch_embed.proj", "patch_embed"),
        *norm_rules(f"{block}norm1", "blocks/{i}/norm1"),
        *joined_rules(f"{block}attn.qkv.", attention),
        *linear_rules(f"{block}attn.proj", f"{attention}/out"),
        Rule(f"{block}ls1.gamma", "blocks/{i}/scale1"),
        *norm_rules(f"{block}norm2", "blocks/{i}/norm2"),
        *(_packed_rules(f"{block}mlp.fc1", f"{block}mlp.fc2") if swiglu else
          _mlp_rules(f"{block}mlp.")),
        Rule(f"{block}ls2.gamma", "blocks/{i}/scale2"),
        *norm_rules(f"{trunk}norm", "norm"),
        Rule("network.q.weight", "queries"),
        *_upscale_rules("network.upscale.{j}.", "norm"),
        *(r for i, name in enumerate((0, 2, 4))
          for r in linear_rules(f"network.mask_head.{name}", f"mask_head/{i}")),
        *linear_rules("network.class_head", "class_head"),
        *_LEFT_OUT,
    )


def transformers_rules(*, swiglu: bool, packed: bool = False) -> tuple[Rule, ...]:
    """The table of transformers' names.

    Args:
      swiglu: whether the MLP is gated.
      packed: whether its gate is in one tensor with its other half, as the files converted in 2025
        have it (transformers 5.24 reads those without an error, and leaves the MLPs random).
    """
    block, mlp = "layers.{i}.", "layers.{i}.mlp."
    gated = (*linear_rules(f"{mlp}gate_proj", "blocks/{i}/mlp/w1"),
             *linear_rules(f"{mlp}up_proj", "blocks/{i}/mlp/w2"),
             *linear_rules(f"{mlp}down_proj", "blocks/{i}/mlp/w3"))
    if packed:
        gated = _packed_rules(f"{mlp}weights_in", f"{mlp}weights_out")
    return (
        Rule("embeddings.cls_token", "class_token", leading_ones(2)),
        Rule("embeddings.register_tokens", "registers", leading_ones(1)),
        Rule("embeddings.position_embeddings.weight", "position_table"),
        *conv_rules("embeddings.patch_embeddings.projection", "patch_embed"),
        *norm_rules(f"{block}norm1", "blocks/{i}/norm1"),
        *(r for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"),
                                 ("out_proj", "out"))
          for r in linear_rules(f"{block}attention.{theirs}", f"blocks/{{i}}/attention/{ours}")),
        Rule(f"{block}layer_scale1.lambda1", "blocks/{i}/scale1"),
        *norm_rules(f"{block}norm2", "blocks/{i}/norm2"),
        *(gated if swiglu else _mlp_rules(mlp)),
        Rule(f"{block}layer_scale2.lambda1", "blocks/{i}/scale2"),
        *norm_rules("layernorm", "norm"),
        Rule("query.weight", "queries"),
        *_upscale_rules("upscale_block.block.{j}.", "layernorm2d"),
        *(r for i in range(3) for r in linear_rules(f"mask_head.fc{i + 1}", f"mask_head/{i}")),
        *linear_rules("class_predictor", "class_head"),
        *_LEFT_OUT,
    )


def _mlp_rules(prefix: str) -> tuple[Rule, ...]:
    return (*linear_rules(f"{prefix}fc1", "blocks/{i}/mlp/fc1"),
            *linear_rules(f"{prefix}fc2", "blocks/{i}/mlp/fc2"))


def _packed_rules(first: str, second: str) -> tuple[Rule, ...]:
    """A gated MLP whose first tensor holds the rows of the gate, then those of the other half."""
    return (*joined_rules(f"{first}.", "blocks/{i}/mlp", ("w1", "w2")),
            *linear_rules(second, "blocks/{i}/mlp/w3"))


def _upscale_rules(prefix: str, norm: str) -> tuple[Rule, ...]:
    return (Rule(f"{prefix}conv1.weight", "upscale/{j}/conv1/kernel", _doubling),
            Rule(f"{prefix}conv1.bias", "upscale/{j}/conv1/bias"),
            Rule(f"{prefix}conv2.weight", "upscale/{j}/conv2/kernel", _depthwise),
            *norm_rules(f"{prefix}{norm}", "upscale/{j}/norm"))


def open_file(path: str) -> Source:
    """The tensors of a file, under the names that its layout publishes.

    Raises:
      FileNotFoundError, ValueError: see `files.read`.
    """
    source = files.read(path)
    if not any(_COMPILED in name for name in source):
        return source
    return Renamed(source, {name: name.replace(_COMPILED, "") for name in source})


def is_one(names: typing.Iterable[str]) -> bool:
    """Whether names of tensors are an EoMT's, in any layout."""
    names = [name.replace(_COMPILED, "") for name in names]
    return any(name.startswith(tuple(_MARKS.values())) for name in names)


def rules_of(shapes: typing.Mapping[str, tuple], path: str) -> tuple[Rule, ...]:
    """The rule table of a file.

    Args:
      shapes: of its tensors, by name.
      path: for messages.

    Raises:
      ValueError: it holds no EoMT.
    """
    layout = next((layout for layout, mark in _MARKS.items()
                   if any(name.startswith(mark) for name in shapes)), None)
    if layout == "ours":
        return tuple(Rule(name, name) for name in shapes)
    if layout == "authors":
        first, second = (shapes.get(f"{_MARKS[layout]}blocks.0.mlp.{name}.weight", (0, 0))
                         for name in ("fc1", "fc2"))
        return authors_rules(swiglu=first[0] == 2 * second[1])
    if layout == "transformers":
        packed = any(".mlp.weights_in." in name for name in shapes)
        gated = packed or any(".mlp.gate_proj." in name for name in shapes)
        return transformers_rules(swiglu=gated, packed=packed)
    shown = ", ".join(sorted(shapes)[:3]) or "nothing"
    raise ValueError(f"{path} holds no EoMT (it holds {shown}, ...), wanted names that begin with "
                     f"{', '.join(_MARKS.values())}; give the file of a mask generator")


def config_of(source: Source, path: str, *, num_heads: int | None = None,
              query_blocks: int | None = None) -> EoMTConfig:
    """The sizes of the model that a file is of, for square pictures.

    Args:
      source: of `open_file`.
      path: for messages.
      num_heads: None: heads of 64 channels, which all published models have.
      query_blocks: None: as the file says, or as in the published models on the same trunk.

    Raises:
      ValueError: no EoMT of DINOv2's kind, or nothing tells one of its sizes.
    """
    table = rules_of(source.shapes, path)
    found = rules.shapes_for(source.shapes, table)
    if "queries" in found and "position_table" not in found:
        raise ValueError(f"{path} is an EoMT without a position table, so not on DINOv2 (those on "
                         "DINOv3 have none, and are not read here), or cut short; take one that "
                         "`maskclippp convert --list` names")
    needed = ("queries", "position_table", "registers", "patch_embed/kernel", "class_head/kernel")
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}, which tell the sizes of an EoMT; is "
                         "it whole? Download it again")
    count = lambda kind: 1 + max((int(m[1]) for p in found if (m := re.match(
        rf"{kind}/(\d+)/", p))), default=-1)
    (num_queries, width), (cells, _) = found["queries"], found["position_table"]
    patch, side = found["patch_embed/kernel"][0], math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"{path} has positions of {cells} patches, which form no square; wanted a "
                         "model for square pictures, as all published ones are")
    if num_heads is None and width % 64:
        raise ValueError(f"{path} is {width} channels wide, wanted a multiple of 64 (the width of "
                         "a head); say num_attention_heads in a config.json beside it")
    swiglu = "blocks/0/mlp/w1/kernel" in found
    hidden = found.get(f"blocks/0/mlp/{'w1' if swiglu else 'fc1'}/kernel", (0, 0))[1]
    config = EoMTConfig(
        (patch * side,) * 2, width=width, depth=count("blocks"), mlp_width=hidden, swiglu=swiglu,
        num_heads=num_heads or width // 64, num_classes=found["class_head/kernel"][1] - 1,
        num_queries=num_queries, query_blocks=query_blocks or 0, patch_size=patch,
        num_registers=found["registers"][0], upscale_blocks=count("upscale"))
    if not query_blocks:
        config = dataclasses.replace(
            config, query_blocks=_query_blocks(source.shapes, config, path))
    if config.query_blocks > config.depth:
        raise ValueError(f"{path} has {config.depth} blocks, but queries in "
                         f"{config.query_blocks} of them; is it whole? Download it again")
    return config


def _query_blocks(shapes: typing.Mapping[str, tuple], config: EoMTConfig, path: str) -> int:
    for name in ("attn_mask_probs", "network.attn_mask_probs"):
        if name in shapes:
            return shapes[name][0]
    for trunk in (EoMTConfig.small, EoMTConfig.base, EoMTConfig.large, EoMTConfig.giant):
        published = trunk(config.image_size[0], config.num_classes, config.num_queries)
        if (published.width, published.depth) == (config.width, config.depth):
            return published.query_blocks
    raise ValueError(f"{path} does not say how many of its blocks have queries (attn_mask_probs), "
                     f"and no published model has {config.depth} blocks of {config.width} "
                     "channels; say num_blocks in a config.json beside it")


def load(source: Source, shapes: parameters.Tree, path: str) -> parameters.Tree:
    """Parameters from a file.

    Args:
      source: of `open_file`.
      shapes: nested dict with shape and dtype of all parameters of the model.
      path: for messages.

    Raises:
      ValueError: the file does not fit; all problems are listed.
    """
    params, _ = rules.load(source, rules_of(source.shapes, path), shapes, name=path)
    return params


def abstract(config: EoMTConfig, *, dtype: typing.Any = jnp.float32, heads: str = "apart"
             ) -> tuple[typing.Callable, parameters.Tree]:
    """What `params.abstract` gives of the model; for the settings see `EoMT`."""
    return _abstract(config, dtype, heads)


@functools.lru_cache(maxsize=4)  # asked for when a file is read, and again for its program
def _abstract(config, dtype, heads):
    return parameters.abstract(lambda: EoMT(
        config, dtype=dtype, heads=heads, rngs=parameters.Keys(0)))
