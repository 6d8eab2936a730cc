"""A stored case: settings in JSON, arrays beside it, and the comparison of results with them."""

import dataclasses
import functools
import json
import pathlib
import re
import typing

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from maskclippp_jax import params as parameters
from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    eva_vit,
    maskclippp,
    similarity,
    text,
)
from maskclippp_jax.weights import rules


class NotBuilt(Exception):
    """The case is of a model, or a step, that does not exist here; the text says which."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison; it holds if `ratio` (largest difference / tolerance) is at most 1."""

    name: str
    difference: float
    ratio: float


@dataclasses.dataclass(frozen=True)
class Absent:
    """A part of a case that does not exist here; stands among the checks of the others."""

    what: str


@dataclasses.dataclass(frozen=True)
class Case:
    file: pathlib.Path
    dtype: typing.Any  # arithmetic of the towers

    @property
    def name(self) -> str:
        return self.file.stem

    @functools.cached_property
    def spec(self) -> dict:
        try:
            return json.loads(self.file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.file} is no JSON ({error}); copy the case again") from None

    @functools.cached_property
    def arrays(self) -> typing.Mapping[str, np.ndarray]:
        """By name; those that another case has too may lie in its file only (`arrays_of`)."""
        own = np.load(self.file.with_suffix(".npz"))
        if "arrays_of" not in self.spec:
            return own
        return {**np.load(self.file.with_name(self.spec["arrays_of"])), **own}

    def shape(self, array: str) -> tuple[int, ...]:
        """Shape of an array as the settings state it, whether it is stored or not."""
        return tuple(map(int, re.findall(r"\d+", self.spec["arrays"][array].split("[")[1])))

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        name = self.spec.get("weights", f"{self.name}.safetensors")
        return load_file(self.file.with_name(name))

    @functools.cached_property
    def gradients(self) -> typing.Mapping[str, np.ndarray]:
        return np.load(self.file.with_suffix(".grads.npz"))


def miss(name: str) -> Check:
    """A comparison that fails whatever the tolerance."""
    return Check(name, float("inf"), float("inf"))


def close(name: str, got, want, *, atol: float, rtol: float = 0.0) -> Check:
    """Compares arrays: |got - want| <= atol + rtol |want|. Another shape, or NaN, is a miss."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return miss(f"{name} (shape {got.shape}, not {want.shape})")
    if not got.size:
        return Check(name, 0.0, 0.0)
    # A NaN ratio would win no comparison, and so hide behind any finite one.
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return miss(f"{name} (not finite)")
    difference = np.abs(got - want)
    return Check(name, float(difference.max()),
                 float((difference / (atol + rtol * np.abs(want))).max()))


def close_to_largest(name: str, got, want, share: float) -> Check:
    """Compares gradients: the difference in shares of the array's largest magnitude."""
    return close(name, got, want, atol=share * max(float(np.abs(want).max()), 1e-12))


def equal(name: str, got, want) -> Check:
    """Compares discrete results."""
    same = np.array_equal(np.asarray(got), np.asarray(want))
    return Check(name, 0.0, 0.0) if same else miss(name)


def same_parameters(name: str, got: parameters.Tree, want: parameters.Tree) -> Check:
    """Compares nested dicts of arrays bit by bit."""
    got, want = parameters.flatten(got), parameters.flatten(want)
    same = [path for path in want if np.array_equal(got.get(path), want[path])]
    return equal(f"{name}: parameters", same, list(want))


def cosine(name: str, got, want, at_least: float) -> Check:
    """Compares embeddings of reduced precision, row by row, by their direction."""
    if got.shape != want.shape:
        return miss(f"{name} (shape {got.shape}, not {want.shape})")
    got, want = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (got, want))
    cos = (got * want).sum(-1) / (np.linalg.norm(got, axis=-1) * np.linalg.norm(want, axis=-1))
    if not np.isfinite(cos).all():
        return miss(f"{name} (not finite)")
    worst = float(1 - cos.min())
    return Check(name, worst, worst / (1 - at_least))


def model_config(case: Case, *, num_templates: int | None = None) -> maskclippp.MaskCLIPppConfig:
    """The sizes of a case's model."""
    head = None
    if num_templates is not None:
        head = head_config(case.spec["psm_cfg"], num_templates,
                           case.spec["model_cfg"]["embed_dim"])
    return maskclippp.MaskCLIPppConfig(
        image=image_config(case), text=text_config(case), similarity=head,
        use_logit_scale=case.spec.get("use_logit_scale", True))


def head_config(psm: dict, num_templates: int, embed_dim: int):
    """The similarity head of the reference's settings."""
    if psm["NAME"] == "DummyPSM":
        return None
    if psm["NAME"] == "LinearPSM":
        return similarity.LinearSimilarityConfig(num_templates, psm["CORR_WIDTH"])
    if psm["NAME"] != "PseudoTextPSM":
        raise NotBuilt(f"similarity head {psm['NAME']}")
    return similarity.PseudoTextSimilarityConfig(
        num_templates, embed_dim, psm["NUM_HEADS"],
        normalize_condition=psm["NORM_VISUAL_COND"], detach_condition=psm["DETACH_VISUAL_COND"],
        residual_width=psm["CORR_WIDTH"] if psm["CORR_RESIDUAL"] else None,
        own_scale=psm.get("USE_LOGIT_SCALE", False))


def image_config(case: Case) -> maskclippp.ImageConfig:
    sizes, encoder = case.spec["model_cfg"], case.spec["encoder_cfg"]
    vision, embed_dim = sizes["vision_cfg"], sizes["embed_dim"]
    image_size, threshold = vision["image_size"], encoder["DOWN_MASK_THRESH"]
    if "timm_model_name" in vision:
        name, trunk = vision["timm_model_name"], case.spec["timm_kwargs"]
        return clip_convnext.ConvNeXtConfig(
            image_size, tuple(trunk["dims"]), tuple(trunk["depths"]), embed_dim,
            head_width=2 * embed_dim if vision["timm_proj"] == "mlp" else None,
            norm_epsilon=1e-5 if "xxlarge" in name else 1e-6)
    if isinstance(vision["layers"], list):
        return clip_resnet.ResNetConfig(
            image_size, vision["width"], tuple(vision["layers"]),
            num_heads=32 * vision["width"] // vision["head_width"], embed_dim=embed_dim,
            mask_threshold=threshold)
    transformer = dict(
        image_size=image_size, patch_size=vision["patch_size"], width=vision["width"],
        depth=vision["layers"], num_heads=vision["width"] // vision["head_width"],
        mlp_width=int(vision["width"] * vision.get("mlp_ratio", 4.0)), embed_dim=embed_dim,
        mask_layers=vision["layers"] - encoder["MASK_PRIOR_BEG"] + 1, mask_threshold=threshold)
    if "eva_model_name" not in vision:
        return clip_vit.ClipViTConfig(**transformer, quick_gelu=sizes.get("quick_gelu", False))
    inner_norms = vision.get("subln", False)
    return eva_vit.EvaViTConfig(
        **transformer, rotary_grid=vision["pt_hw_seq_len"] if vision.get("rope") else None,
        inner_norms=inner_norms, swiglu=vision.get("naiveswiglu", False),
        fused_qkv=not inner_norms)


def text_config(case: Case) -> text.TextConfig:
    sizes = case.spec["model_cfg"]
    words = sizes["text_cfg"]
    return text.TextConfig(
        context_length=words["context_length"], vocab_size=words["vocab_size"],
        width=words["width"], depth=words["layers"], num_heads=words["heads"],
        embed_dim=sizes["embed_dim"], quick_gelu=sizes.get("quick_gelu", False))


def model_of(names: typing.Iterable[str]) -> maskclippp.MaskCLIPppConfig:
    """A model of the kind, and with as many blocks, as parameters' names of the reference tell.

    Its other sizes mean nothing.
    """
    names = " ".join(names)
    blocks = re.findall(r"visual_encoder\.proxy\.(?:transformer\.res)?blocks\.(\d+)", names)
    depth = 1 + max(map(int, blocks), default=0)
    if "trunk.stem" in names:
        kind = clip_convnext.ConvNeXtConfig
        image = kind.large_d() if "head.mlp" in names else kind.base_w()
    elif "attnpool" in names:
        image = clip_resnet.ResNetConfig.rn50()
    elif "patch_embed" in names or "proxy.token_embedding" in names:
        is_eva01 = "attn.qkv.weight" in names
        image = dataclasses.replace(eva_vit.EvaViTConfig.eva02_b16(), depth=depth,
                                    fused_qkv=is_eva01, swiglu=not is_eva01)
    else:
        image = dataclasses.replace(clip_vit.ClipViTConfig.b16(), depth=depth)
    head = None
    if "psm.img2text" in names:
        head = similarity.PseudoTextSimilarityConfig(14, 512)
    return maskclippp.MaskCLIPppConfig(image, text.TextConfig.clip(512), head)


def load_part(source: dict, table, shapes, prefix: str) -> parameters.Tree:
    """The parameters below one top-level name (`image` or `text`), by an ordinary rule table."""
    params, _ = rules.load(source, table, {prefix: shapes})
    return params[prefix]


def channels_last(x) -> jnp.ndarray:
    return jnp.moveaxis(jnp.asarray(x), -3, -1)
