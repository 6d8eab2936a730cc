"""Every layout that the README says is accepted: a file of each is read."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.models import clip_vit, maskclippp, siglip, text
from maskclippp_jax.parity import timm_layouts
from maskclippp_jax.parity.case import Case
from tests.weights import test_encoder_files, test_sources, test_weights

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SMALL_SIGLIP = maskclippp.MaskCLIPppConfig.of_siglip(
    siglip.SigLIPConfig(12, 4, 8, 2, 2, 12, 8), siglip.SigLIPTextConfig(
        6, 30, 8, 2, 2, 12, 8, padding=0))
NAFLEX = dataclasses.replace(SMALL_SIGLIP, image=dataclasses.replace(
    SMALL_SIGLIP.image, position_resize="antialiased"))
STORED_SIGLIP = maskclippp.MaskCLIPppConfig.of_siglip(
    siglip.SigLIPConfig(24, 8, 32, 1, 4, 56, 20, has_head=True),
    siglip.SigLIPTextConfig(6, 64, 24, 1, 2, 48, 20, padding=1))
HF_CLIP = maskclippp.MaskCLIPppConfig(
    clip_vit.ClipViTConfig(24, 8, 24, 2, 2, 40, 16, mask_layers=1, quick_gelu=True),
    text.TextConfig(12, 50, 20, 2, 2, 16, quick_gelu=True), None)


def written(image, prefix="", layout="open_clip"):
    """A file of a small CLIP, below a prefix; its sizes, or those of its image tower."""
    def make(folder):
        model = image if isinstance(image, maskclippp.MaskCLIPppConfig) else (
            maskclippp.MaskCLIPppConfig(image, test_sources.TEXT, None))
        _, params = test_encoder_files.draw(model, np.random.default_rng(3))
        named = weights.export(params, model, layout)
        save_file({f"{prefix}{k}": x for k, x in named.items()}, folder / "x.safetensors")
        return folder / "x.safetensors", model
    return make


def stored(file, model=None):
    """A stored file; None: its model is that of the case beside it."""
    def make(folder):
        case = GOLDEN / file.replace(".f16", "").replace(".safetensors", ".json")
        return GOLDEN / file, model or timm_layouts.config_of(Case(case, np.float32))
    return make


def of_eva(file):
    return lambda folder: (GOLDEN / file, test_weights.model_of(weights.read(str(GOLDEN / file))))


FILES = {
    "OpenAI's archives": [stored("encoders/ckpt_openai_archive.pt", test_sources.openai_model())],
    "open_clip": [written(test_sources.VIT), written(test_sources.CONVNEXT),
                  written(test_sources.RESNET)],
    "open_clip with timm's names": [stored("timm_layouts/eva02.f16.safetensors"),
                                    stored("timm_layouts/siglip_i18n.safetensors")],
    "EVA-CLIP": [of_eva("encoders/ckpt_eva_pretrained.pt")],
    "PE-Core": [written(test_encoder_files.PE), written(test_encoder_files.PE, layout="timm")],
    "TIPS": [written(test_encoder_files.TIPS_G, layout="tips")],
    "dino.txt": [written(test_encoder_files.DINO, layout="dinotxt")],
    "MaskCLIP++": [of_eva("encoders/ckpt_maskclippp_finetuned.pth")],
    "the CLIP inside FC-CLIP": [written(test_sources.CONVNEXT, "backbone.clip_model.")],
    "Hugging Face CLIPModel": [stored("small/hugging_face.safetensors", HF_CLIP)],
    "SiglipModel": [stored("small/siglip.safetensors", SMALL_SIGLIP)],
    "Siglip2Model": [stored("small/siglip2_naflex.safetensors", NAFLEX)],
    "big_vision .npz": [stored("siglip/map_imghead/ckpt.npz", STORED_SIGLIP)],
}


def test_the_readme_lists_what_is_tried_here():
    listed = re.search(r"`--config\.weights` take a file \((.*?); \[", (ROOT / "README.md")
                       .read_text(), re.DOTALL)[1]
    names = " ".join(listed.replace("`", "").split()).replace(" and ", ", ").split(", ")
    assert sorted(names) == sorted(FILES)


@pytest.mark.parametrize("make", [m for row in FILES.values() for m in row], ids=[
    f"{name} {i}" for name, row in FILES.items() for i in range(len(row))])
def test_a_file_of_this_layout_fills_the_model(make, tmp_path):
    file, model = make(tmp_path)
    _, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))
    params, missing = weights.load_weights(str(file), model, shapes)
    assert set(parameters.flatten(params)) | missing == set(parameters.flatten(shapes))
    assert all(path.startswith(weights.ABSENT) for path in missing)
