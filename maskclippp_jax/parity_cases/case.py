"""A stored case: settings in JSON, arrays beside it, and the comparison of results with them."""

import dataclasses
import functools
import json
import pathlib
import typing

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from maskclippp_jax import params as parameters
from maskclippp_jax.models import eva_vit, maskclippp, similarity, text
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
        return np.load(self.file.with_suffix(".npz"))

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
    spec = case.spec
    vision, words = spec["model_cfg"]["vision_cfg"], spec["model_cfg"]["text_cfg"]
    encoder = spec["encoder_cfg"]
    if not (vision.get("rope") and vision.get("naiveswiglu") and vision.get("subln")):
        raise NotBuilt("image tower other than EVA02")
    depth = vision["layers"]
    psm = spec.get("psm_cfg", {})
    if psm.get("NAME", "LinearPSM") not in ("LinearPSM", "DummyPSM"):
        raise NotBuilt(f"similarity head {psm['NAME']}")
    head = None
    if num_templates is not None and psm["NAME"] == "LinearPSM":
        head = similarity.LinearSimilarityConfig(num_templates, psm["CORR_WIDTH"])
    return maskclippp.MaskCLIPppConfig(
        image=eva_vit.EvaViTConfig(
            image_size=vision["image_size"], patch_size=vision["patch_size"], width=vision["width"],
            depth=depth, num_heads=vision["width"] // vision["head_width"],
            mlp_width=int(vision["width"] * vision["mlp_ratio"]),
            embed_dim=spec["model_cfg"]["embed_dim"],
            mask_layers=depth - encoder["MASK_PRIOR_BEG"] + 1, rotary_grid=vision["pt_hw_seq_len"],
            mask_threshold=encoder["DOWN_MASK_THRESH"]),
        text=text_config(case), similarity=head,
        use_logit_scale=spec.get("use_logit_scale", True))


def text_config(case: Case) -> text.TextConfig:
    words = case.spec["model_cfg"]["text_cfg"]
    return text.TextConfig(
        context_length=words["context_length"], vocab_size=words["vocab_size"],
        width=words["width"], depth=words["layers"], num_heads=words["heads"],
        embed_dim=case.spec["model_cfg"]["embed_dim"])


def load_part(source: dict, table, shapes, prefix: str) -> parameters.Tree:
    """The parameters below one top-level name (`image` or `text`), by an ordinary rule table."""
    params, _ = rules.load(source, table, {prefix: shapes})
    return params[prefix]


def channels_last(x: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(np.asarray(x), -3, -1))
