"""Other people's checkpoints -> our parameters, and back; one strict rule table per source."""

import functools
import pathlib
import typing

import numpy as np
from absl import logging
from safetensors import SafetensorError
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters
from maskclippp_jax.models import maskclippp as model_file
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.clip_resnet import ResNetConfig
from maskclippp_jax.models.clip_vit import ClipViTConfig
from maskclippp_jax.models.dinotxt import DinoTxtConfig
from maskclippp_jax.models.eva_vit import EvaViTConfig
from maskclippp_jax.models.pe import PEConfig
from maskclippp_jax.models.siglip import SigLIPConfig
from maskclippp_jax.models.similarity import PseudoTextSimilarityConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.models.tips import TIPSConfig
from maskclippp_jax.runtime import storage
from maskclippp_jax.weights import (
    big_vision,
    dinotxt,
    eva_clip,
    files,
    generator_files,
    hugging_face,
    maskclippp,
    open_clip,
    pe,
    published,
    rules,
    timm,
    tips,
)
from maskclippp_jax.weights.halves import read
from maskclippp_jax.weights.source import Renamed, Source

# What `export` can write. big_vision_scan: all blocks of a tower in one array.
LAYOUTS = ("big_vision", "big_vision_scan", "dinotxt", "eva_clip", "hugging_face", "maskclippp",
           "open_clip", "ours", "timm", "tips")

HEAD = "similarity/"  # how the paths of the similarity head begin
# A pre-trained CLIP has neither mask tokens nor a similarity head.
ABSENT = ("image/mask_logit_scale", HEAD)

_IMAGE_RULES = {
    EvaViTConfig: eva_clip.image_rules, ClipViTConfig: open_clip.vit_rules,
    ConvNeXtConfig: open_clip.convnext_rules, ResNetConfig: open_clip.resnet_rules,
    PEConfig: pe.image_rules}

# How to recognise a layout: one name begins like this.
_MARKS = (
    ("tips", "vision_encoder."), ("tips_torch", "register_tokens"),
    ("tips_scenic", "encoder/ToTokenSequence_0/"), ("dinotxt", "storage_tokens"),
    ("dinotxt_transformers", "embeddings.patch_embeddings.weight"),
    ("maskclippp", maskclippp.IMAGE_PREFIX), ("fc_clip", "backbone.clip_model."),
    ("hugging_face", "vision_model."), ("ours", "image/"), ("big_vision", "img/"),
    ("eva_clip", "visual.blocks."), ("open_clip", "visual.trunk.stem."), ("timm", "visual.trunk."),
    ("open_clip", "visual."))

# How far tensors that follow from the sizes may be from what they should be; they may be stored in
# bfloat16, and those of another model are further away.
_FOLLOWING_WITHIN = 0.02


def layout_of(source: Source, path: str) -> str:
    """Which layout the names belong to: the key of a table of `rules_for`.

    Raises:
      ValueError: nobody here knows it.
    """
    if generator_files.holds_generator(source):
        kind = {"eomt": "an EoMT", "fcclip": "an FC-CLIP", "mask2former": "a Mask2Former"}[
            generator_files.kind_of(source, path)]
        raise ValueError(f"{path} holds {kind}, which finds masks and names none; give it as the "
                         "generator, and the file of a CLIP here")
    for layout, beginning in _MARKS:
        if any(name.startswith(beginning) for name in source):
            return layout
    if timm.is_image_tower_alone(source):
        raise ValueError(f"{path} holds an image tower of timm alone, without the text tower that "
                         "names things; give the whole CLIP (`convert --list` says where)")
    shown = ", ".join(sorted(source)[:3]) or "nothing"
    raise ValueError(
        f"{path} has a layout nobody here knows (it holds {shown}, ...); wanted names that begin "
        f"with {', '.join(beginning for _, beginning in _MARKS)}")


def image_rules(prefix: str, config: model_file.ImageConfig) -> tuple[rules.Rule, ...]:
    """The rules of an image tower in its publishers' names, below a prefix such as `visual.`.

    Raises:
      ValueError: a SigLIP, TIPS or dino.txt, which have no such names.
    """
    if type(config) not in _IMAGE_RULES:
        others = {SigLIPConfig: "big_vision, big_vision_scan, hugging_face, timm",
                  TIPSConfig: "tips", DinoTxtConfig: "dinotxt"}[type(config)]
        raise ValueError(f"a {type(config).__name__} has no names of CLIP's kind; it can be "
                         f"written as {others} or ours")
    return _IMAGE_RULES[type(config)](prefix, config)


def rules_for(layout: str, model: model_file.MaskCLIPppConfig) -> tuple[rules.Rule, ...]:
    """The rule table between a layout and the parameters of a model.

    Args:
      layout: "open_clip" (OpenAI's and OpenCLIP's files), "eva_clip", "hugging_face" (transformers'
        CLIPModel and SiglipModel), "fc_clip" (the CLIP inside an FC-CLIP or MAFT+), "maskclippp",
        "big_vision" (SigLIP), "timm" (OpenCLIP's EVA-CLIP, SigLIP and PE-Core), "tips" (TIPS on the
        hub), "tips_torch", "tips_scenic" (its .npz), "dinotxt" and "dinotxt_transformers" (by the
        names of its backbone).
      model: its sizes.

    Raises:
      ValueError: the layout has no names for this kind of image tower.
    """
    is_eva, is_siglip, is_pe, is_tips, is_dino = (isinstance(model.image, kind) for kind in (
        EvaViTConfig, SigLIPConfig, PEConfig, TIPSConfig, DinoTxtConfig))
    is_clip = type(model.image) in _IMAGE_RULES and not is_eva
    match layout:
        case "tips" if is_tips:
            return tips.hub_rules()
        case "tips_torch" if is_tips:
            return tips.rules()
        case "tips_scenic" if is_tips:
            return tips.scenic_rules(model)
        case "dinotxt" if is_dino:
            return dinotxt.rules()
        case "dinotxt_transformers" if is_dino:
            return dinotxt.transformers_rules()
        case "timm" if is_pe:
            return pe.timm_rules()
        case "big_vision" if is_siglip:
            return big_vision.clip_rules(model)
        case "hugging_face" if is_siglip:
            return hugging_face.siglip_rules(model)
        case "timm" if is_eva or is_siglip and model.image.position_resize != "antialiased":
            return timm.clip_rules(model)
        case "maskclippp":
            is_pseudo = isinstance(model.similarity, PseudoTextSimilarityConfig)
            return maskclippp.model_rules(
                image_rules(maskclippp.IMAGE_PREFIX, model.image),
                "text_encoder.proxy." if is_eva else "text_encoder.",
                maskclippp.PSEUDO_TEXT if is_pseudo else maskclippp.LINEAR_HEAD)
        case "eva_clip" if is_eva:
            return eva_clip.clip_rules(model.image)
        case "open_clip" if is_clip:
            return open_clip.clip_rules(image_rules("visual.", model.image))
        case "fc_clip" if is_clip and not is_pe:
            prefix = "backbone.clip_model."
            return open_clip.clip_rules(image_rules(f"{prefix}visual.", model.image), prefix)
        case "hugging_face" if isinstance(model.image, ClipViTConfig):
            return hugging_face.clip_rules()
    raise ValueError(f"the layout {layout} has no names for {published.name_of(model)} "
                     f"({type(model.image).__name__})")


def load_weights(path: str, model: model_file.MaskCLIPppConfig, shapes: parameters.Tree, *,
                 base: str | None = None) -> tuple[parameters.Tree, set[str]]:
    """Parameters from a checkpoint file in any layout of `rules_for`, or in our own.

    Args:
      path: the file, see `files.read`.
      model: sizes of the model.
      shapes: nested dict with shape and dtype of all its parameters.
      base: the pre-trained CLIP, for a MaskCLIP++ file that holds no text tower.

    Returns:
      Nested dict of numpy arrays, and the paths that this layout cannot hold (mask scale and
      similarity head of a plain CLIP), or the whole head if the file has none; the caller
      initialises those.

    Raises:
      ValueError: the file does not fit; all problems are listed, or the model it seems to be of.
    """
    source = read(path)
    layout = layout_of(source, path)
    source = _complete(source, layout, path)
    is_causal = isinstance(model.text, TextConfig)
    if "input_resolution" in source and is_causal and not model.text.quick_gelu:
        raise ValueError(f"{path} is of OpenAI, whose weights want QuickGELU; set quick_gelu in "
                         "the sizes of the text tower, and of a Vision Transformer")
    _check_activations(path, layout, model)
    absent = ABSENT
    if layout in ("maskclippp", "ours"):
        has = lambda *beginnings: any(name.startswith(beginnings) for name in source)
        absent = () if has("text_encoder.", "text/") else maskclippp.PRETRAINED
        if not has(maskclippp.HEAD_PREFIX, HEAD):
            absent = (*absent, HEAD)
    if layout in ("maskclippp", "open_clip") and isinstance(model.image, PEConfig):
        absent = (*absent, pe.HEAD_BIAS)
    try:
        if layout == "ours":
            table = tuple(rules.Rule(p, p) for p in parameters.flatten(shapes))
        else:
            table = rules_for(layout, model)
        params, missing = rules.load(source, table, shapes, absent=absent, name=path)
    except ValueError as error:
        raise ValueError(_another_model(source, layout, model, path, error) or str(error)) from None
    if pe.HEAD_BIAS in missing:
        width = parameters.flatten(shapes)[pe.HEAD_BIAS].shape
        params = parameters.combine(params, parameters.unflatten(
            {pe.HEAD_BIAS: np.zeros(width, np.float32)}))
        missing = missing - {pe.HEAD_BIAS}
    _check_numbers(params, path)
    _check_following(source, layout, model, path)
    untuned = {path for path in missing if not path.startswith(ABSENT)}
    if untuned:
        if base is None:
            raise ValueError(f"{path} holds no text tower (it was not tuned); give the pre-trained "
                             "CLIP as well (config.weights)")
        pretrained, _ = load_weights(base, model, shapes)
        leaves = {p: x for p, x in parameters.flatten(pretrained).items() if p in untuned}
        params = parameters.combine(params, parameters.unflatten(leaves))
    return params, missing - untuned


class _Tower(typing.TypedDict):
    hidden_act: typing.NotRequired[str]


class _CLIP(typing.TypedDict):
    """config.json of transformers' CLIPModel, as far as names and shapes of weights do not tell."""

    vision_config: typing.NotRequired[_Tower | None]
    text_config: typing.NotRequired[_Tower | None]


class _Sizes(typing.TypedDict):
    quick_gelu: typing.NotRequired[bool]


class _OpenCLIP(typing.TypedDict):
    """open_clip_config.json, likewise."""

    model_cfg: _Sizes


def _check_activations(path: str, layout: str, model: model_file.MaskCLIPppConfig) -> None:
    """The configuration that lies beside weights must want the activation that the model has.

    A CLIP of transformers that does not say has QuickGELU, one of OpenCLIP the exact GELU.
    """
    said: dict[str, bool] = {}
    if layout == "hugging_face" and isinstance(model.image, ClipViTConfig):
        content = files.beside(path, "config.json", _CLIP)
        for key, tower in (("vision_config", "image"), ("text_config", "text")):
            if content is not None:
                activation = (content.get(key) or {}).get("hidden_act", "quick_gelu")
                said[tower] = activation == "quick_gelu"
    elif layout == "open_clip" and isinstance(model.text, TextConfig):
        content = files.beside(path, "open_clip_config.json", _OpenCLIP)
        if content is not None:
            said = dict.fromkeys(("image", "text"), content["model_cfg"].get("quick_gelu", False))
    names = {True: "QuickGELU", False: "the exact GELU"}
    for tower, quick in said.items():
        has = getattr(getattr(model, tower), "quick_gelu", quick)
        if has != quick:
            raise ValueError(f"the weights of {path} want {names[quick]} in the {tower} tower, as "
                             f"the configuration beside them says, the model has {names[has]}; set "
                             f"quick_gelu={quick} in the sizes of its towers")


def _check_numbers(params: parameters.Tree, path: str) -> None:
    for name, leaf in parameters.flatten(params).items():
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            count = np.size(leaf) - int(np.isfinite(leaf).sum())
            raise ValueError(f"{path}: {name} holds {count} numbers that are NaN or infinite; take "
                             "another checkpoint, or download the file again")


def following(layout: str, model: model_file.MaskCLIPppConfig) -> dict[str, np.ndarray]:
    """Tensors that files of a layout have beside the parameters, as they follow from the sizes."""
    if layout == "eva_clip" and isinstance(model.image, EvaViTConfig):
        return eva_clip.rotary_buffers(model.image)
    if layout == "hugging_face" and isinstance(model.image, SigLIPConfig):
        return hugging_face.absent_head(model.text)
    return {}


def _complete(source: Source, layout: str, path: str) -> Source:
    """What follows from the tensors of a file, or lies beside it, is there too."""
    if layout.startswith("tips"):
        return tips.Complete(source, path)
    if layout == "dinotxt_transformers":  # newer files have their blocks below `model.`
        return Renamed(source, {name: name.removeprefix("model.") for name in source})
    return source


def _check_following(source: Source, layout: str, model: model_file.MaskCLIPppConfig,
                     path: str) -> None:
    """What a file holds beside the parameters must be what the model has there."""
    for name, wanted in following(layout, model).items():
        if name not in source:
            continue
        got = np.asarray(source[name], np.float32)
        if got.shape != wanted.shape or not np.allclose(got, wanted, 0, _FOLLOWING_WITHIN):
            raise ValueError(f"{path}: {name} is not what it is in {published.name_of(model)}; "
                             "give the sizes of the model that the file is of")


def _another_model(source: Source, layout: str, model: model_file.MaskCLIPppConfig, path: str,
                   error: ValueError) -> str | None:
    """A sentence that says which model a file is of, if it is a published one but not this."""
    if layout == "ours":
        return None
    table_for = functools.partial(rules_for, layout)
    names, wanted = published.looks_like(source.shapes, table_for, ABSENT), published.name_of(model)
    if wanted in names:
        return None
    if not names:  # no published one; at least of another kind?
        kind = published.kind_like(source.shapes, table_for)
        if kind in (None, published.kind_of(model)):
            return None
        return (f"{path} holds {kind}, but the configuration's model is {wanted}; give the weights "
                "of that model, or a configuration of this one")
    more = ""
    if isinstance(error, rules.Misfit):
        more = f" ({len(error.problems)} problems, such as {'; '.join(error.problems[:3])})"
    return (f"{path} looks like {' or '.join(names)}, but the configuration's model is {wanted}"
            f"{more}; give the weights of that model, or a configuration of this one")


def export(params: parameters.Tree, model: model_file.MaskCLIPppConfig,
           layout: str) -> dict[str, np.ndarray]:
    """All parameters under the names of a layout, one of `LAYOUTS`.

    A plain CLIP has no place for the mask scale and the similarity head: they are left out, and a
    line of the log says so.

    Raises:
      ValueError: the layout has no names for this model.
    """
    if layout == "ours":
        return {path: np.ascontiguousarray(x).reshape(np.shape(x))
                for path, x in parameters.flatten(params).items()}
    if layout != "maskclippp":
        leaves = parameters.flatten(params)
        left_out = [p for p in leaves if p.startswith(ABSENT)]
        if left_out:
            logging.info("a plain CLIP has no place for %s; left out", ", ".join(left_out))
        params = parameters.unflatten({p: x for p, x in leaves.items() if p not in left_out})
    if layout in ("maskclippp", "open_clip") and isinstance(model.image, PEConfig):
        params = pe.without_head_bias(params)
    named = rules.export(params, rules_for(layout.removesuffix("_scan"), model))
    named |= following(layout, model)
    if layout == "tips":
        named |= tips.unread(model)
    return big_vision.stack_blocks(named) if layout == "big_vision_scan" else named


def write(path: pathlib.Path, tensors: typing.Mapping[str, np.ndarray]) -> None:
    """Writes what `export` gives, whole or not at all, as .safetensors or .npz; makes the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.replacing(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, **tensors)
            return
        try:
            save_file(dict(tensors), temporary)
        except SafetensorError as error:  # its name for a full disk as well
            raise OSError(f"{path} could not be written ({error})") from None
