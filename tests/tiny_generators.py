"""An FC-CLIP and a Mask2Former as small as they get, with random weights, and their files."""

import functools
import json
import pathlib
import pickle

import numpy as np
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters
from maskclippp_jax.generators import swin
from maskclippp_jax.generators.fcclip import FCCLIPConfig
from maskclippp_jax.generators.mask2former import Mask2FormerConfig
from maskclippp_jax.generators.mask_decoder import MaskDecoderConfig
from maskclippp_jax.generators.pixel_decoder import PixelDecoderConfig
from maskclippp_jax.generators.swin import SwinConfig
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.weights import fcclip, mask2former, open_clip, rules

# The published models have 8 heads of 4 points in 3 maps, which no shape tells.
_SIZES = dict(width=32, mask_width=32, mlp_width=16, depth=1)


def _decoders(channels: tuple[int, ...], num_queries: int):
    return (PixelDecoderConfig(channels, num_points=1, **_SIZES),
            MaskDecoderConfig(num_queries, **_SIZES))


CHANNELS = (8, 12, 16, 20)
FCCLIP = FCCLIPConfig(ConvNeXtConfig(320, CHANNELS, (1, 1, 1, 1), embed_dim=16),
                      *_decoders(CHANNELS, 6))
TEXT = TextConfig(77, 49408, 16, 1, 1, 16)
SWIN = SwinConfig(4, (1, 1, 1, 1), (1, 2, 2, 4), window=3)
MASK2FORMER = Mask2FormerConfig(SWIN, *_decoders(SWIN.widths, 6), num_classes=3)


def _draw(shapes, seed: int) -> parameters.Tree:
    """Spread so that masks and classes are neither all alike nor certain."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.standard_normal(shape) / max(1, np.prod(shape[:-1]))**0.5
    leaves = {path: np.asarray(1 + draw(x.shape) / 9 if path.endswith(("scale", "gamma")) else
                               draw(x.shape), np.float32)
              for path, x in parameters.flatten(shapes).items()}
    # Biases are what all queries have in common.
    leaves |= {path: x / 10 for path, x in leaves.items() if path.endswith("bias")}
    leaves |= {path: scale * rng.standard_normal(leaves[path].shape).astype(np.float32)
               for path, scale in (("decoder/queries", 3), ("class_head/kernel", 0.5))
               if path in leaves}
    if "class_head/logit_scale" in leaves:
        leaves["class_head/logit_scale"] = np.float32(np.log(10))
    return parameters.unflatten(leaves)


@functools.cache
def fcclip_params(seed: int = 4) -> parameters.Tree:
    return _draw(fcclip.abstract(FCCLIP)[1], seed)


@functools.cache
def text_params(seed: int = 5) -> parameters.Tree:
    shapes = parameters.abstract(lambda: TEXT.make(rngs=parameters.Keys(0)))[1]
    return _draw(shapes, seed)


@functools.cache
def mask2former_params(seed: int = 4) -> parameters.Tree:
    return _draw(mask2former.abstract(MASK2FORMER)[1], seed)


def named_fcclip(learnt: int | None = 133) -> dict[str, np.ndarray]:
    """A whole file, as MAFT+ has it: with the trunk and the text tower of its CLIP.

    Args:
      learnt: classes that the weights of its loss, if there are any, tell of.
    """
    table = (*fcclip.HEAD_RULES, *fcclip.trunk_rules(fcclip.CLIP, FCCLIP.image))
    loss = {} if learnt is None else {"criterion.empty_weight": np.ones(learnt + 1, np.float32)}
    return loss | rules.export(fcclip_params(), table) | rules.export(
        {"text": text_params()}, open_clip.text_rules(fcclip.CLIP))


def write_fcclip(file: pathlib.Path, **settings) -> pathlib.Path:
    """The whole file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(named_fcclip(**settings), file)
    return file


def write_apart(file: pathlib.Path, clip: pathlib.Path, **settings) -> None:
    """The same as a file of the generator alone, as FC-CLIP has it, and one of its CLIP."""
    whole = named_fcclip(**settings)
    save_file({k: x for k, x in whole.items() if not k.startswith("backbone.")}, file)
    save_file({k.removeprefix(fcclip.CLIP): x for k, x in whole.items()
               if k.startswith(fcclip.CLIP)}, clip)


def named_mask2former() -> dict[str, np.ndarray]:
    index = {f"backbone.layers.{i}.blocks.0.attn.relative_position_index": swin.distances(3)
             for i in range(4)}
    table = (*mask2former.HEAD_RULES, *mask2former.swin_rules())
    return rules.export(mask2former_params(), table) | index | {
        "criterion.empty_weight": np.ones(4, np.float32)}


def write_mask2former_folder(folder: pathlib.Path, **facts) -> pathlib.Path:
    """As the hub has it: a folder of transformers."""
    folder.mkdir(parents=True)
    index = {f"{mask2former.TRANSFORMERS}encoder.layers.{i}.blocks.0.attention.self."
             "relative_position_index": swin.distances(3) for i in range(4)}
    whole = rules.export(mask2former_params(), mask2former.transformers_rules()) | index
    save_file(whole, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(model_type="mask2former") | facts))
    return folder


def write_mask2former(file: pathlib.Path) -> pathlib.Path:
    """As the model zoo has it, a pickle of arrays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps({"model": named_mask2former(), "__author__": "x"}, 2))
    return file
