"""Other people's checkpoints -> our parameters, and back; one strict rule table per source."""

import pathlib
import typing

import numpy as np
import safetensors.numpy
from absl import logging

from maskclippp_jax import params as parameters
from maskclippp_jax.weights import eva_clip, maskclippp, rules
from maskclippp_jax.weights.torch_file import TorchFile

LAYOUTS = {"eva_clip": eva_clip.RULES, "maskclippp": maskclippp.RULES}


def read(path: str) -> typing.Mapping[str, np.ndarray]:
    """The tensors of a checkpoint file by name, read one by one.

    Args:
      path: a .pt or .pth file of torch, or a .safetensors file.

    Raises:
      FileNotFoundError, ValueError: see `torch_file.TorchFile`.
    """
    if pathlib.Path(path).suffix != ".safetensors":
        file = TorchFile(path)
        if file and all(name.startswith("module.") for name in file):  # saved by a parallel wrapper
            return {name.removeprefix("module."): file[name] for name in file}
        return file
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; give the path of a checkpoint")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or was cut short ({error})") from None


def layout_of(source: typing.Mapping[str, np.ndarray], path: str) -> str:
    """Which layout ("eva_clip" or "maskclippp") the names belong to."""
    if any(name.startswith("visual_encoder.proxy.") for name in source):
        return "maskclippp"
    if any(name.startswith("visual.blocks.") for name in source):
        return "eva_clip"
    shown = ", ".join(sorted(source)[:3]) or "nothing"
    raise ValueError(f"{path} has a layout nobody here knows (it holds {shown}, ...); wanted "
                     "EVA-CLIP (visual.blocks.*) or MaskCLIP++ (visual_encoder.proxy.*)")


def load_weights(path: str, shapes: parameters.Tree, *,
                 base: str | None = None) -> tuple[parameters.Tree, set[str]]:
    """Parameters from a checkpoint file of EVA-CLIP or MaskCLIP++.

    Args:
      path: the file, see `read`.
      shapes: nested dict with shape and dtype of all parameters of the model.
      base: the pre-trained CLIP, for a MaskCLIP++ file that holds no text tower.

    Returns:
      Nested dict of numpy arrays, and the paths that this layout cannot hold (mask scale and
      similarity head of a plain CLIP); the caller initialises those.

    Raises:
      ValueError: the file does not fit; all problems are listed.
    """
    source = read(path)
    if layout_of(source, path) == "eva_clip":
        return rules.load(source, eva_clip.RULES, shapes, absent=eva_clip.ABSENT, name=path)
    has_text = any(name.startswith("text_encoder.") for name in source)
    params, missing = rules.load(source, maskclippp.RULES, shapes, name=path,
                                 absent=() if has_text else maskclippp.PRETRAINED)
    if missing:
        if base is None:
            raise ValueError(f"{path} holds no text tower (it was not tuned); give the pre-trained "
                             "CLIP as well (config.weights)")
        pretrained, _ = load_weights(base, shapes)
        leaves = {p: x for p, x in parameters.flatten(pretrained).items() if p in missing}
        params = parameters.combine(params, parameters.unflatten(leaves))
    return params, set()


def export(params: parameters.Tree, layout: str) -> dict[str, np.ndarray]:
    """All parameters under the names of a layout, a key of `LAYOUTS`.

    A plain CLIP has no place for the mask scale and the similarity head: they are left out, and a
    line of the log says so.
    """
    if layout == "eva_clip":
        leaves = parameters.flatten(params)
        left_out = [p for p in leaves if p.startswith(eva_clip.ABSENT)]
        logging.info("a plain CLIP has no place for %s; left out", ", ".join(left_out))
        params = parameters.unflatten({p: x for p, x in leaves.items() if p not in left_out})
    return rules.export(params, LAYOUTS[layout])
