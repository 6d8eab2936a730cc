"""Round trips through OpenCLIP, timm and transformers themselves, and their published models.

They need these packages (the extra `packages`) in the interpreter of the environment variable
TORCH_PYTHON (or in this one).
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.clip_vit import ClipViTConfig
from maskclippp_jax.models.eva_vit import EvaViTConfig
from maskclippp_jax.models.maskclippp import MaskCLIPpp, MaskCLIPppConfig
from maskclippp_jax.models.siglip import SigLIPConfig, SigLIPTextConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.weights import published, rules

pytestmark = pytest.mark.slow

TORCH = os.environ.get("TORCH_PYTHON", sys.executable)
WORDS = TextConfig(context_length=12, vocab_size=50, width=32, depth=2, num_heads=2, embed_dim=24)
VIT = ClipViTConfig(32, 8, 32, 2, 2, 128, 24, mask_layers=1)
EVA02 = EvaViTConfig(32, 8, 48, 2, 4, 128, 24, mask_layers=1)
EVA01 = dataclasses.replace(EVA02, mlp_width=209, rotary_grid=None, inner_norms=False,
                            swiglu=False, fused_qkv=True)
# OpenCLIP's SigLIP has the exact GELU over pictures, where transformers has the other form.
SIGLIP = SigLIPConfig(32, 8, 48, 2, 4, 179, 48, exact_gelu=True)
SIGLIP_WORDS = SigLIPTextConfig(12, 50, 32, 2, 4, 119, 48, padding=0)
SMALL = SigLIPConfig(32, 8, 32, 2, 4, 48, 32)
SMALL_WORDS = SigLIPTextConfig(12, 50, 32, 2, 4, 48, 32, padding=0)
quick = lambda sizes: dataclasses.replace(sizes, quick_gelu=True)
clip = lambda image, words=WORDS: MaskCLIPppConfig(image, words, None)
headless = lambda words: dataclasses.replace(words, has_head=False)
MODELS = {  # layout and sizes
    "open_clip_vit": ("open_clip", clip(VIT)),
    "open_clip_quick_gelu": ("open_clip", clip(quick(VIT), quick(WORDS))),
    "open_clip_convnext": ("open_clip", clip(ConvNeXtConfig(32, (8, 16, 24, 32), (1, 1, 2, 1),
                                                            24))),
    "timm_eva02": ("timm", clip(EVA02)), "timm_eva01": ("timm", clip(EVA01)),
    "timm_siglip": ("timm", MaskCLIPppConfig.of_siglip(SIGLIP, SIGLIP_WORDS)),
    "timm_siglip_i18n": ("timm", MaskCLIPppConfig.of_siglip(SIGLIP, headless(
        dataclasses.replace(SIGLIP_WORDS, width=48, mlp_width=179)))),
    "transformers_clip": ("hugging_face", clip(
        quick(dataclasses.replace(VIT, mlp_width=48)), quick(WORDS))),
    "transformers_siglip": ("hugging_face", MaskCLIPppConfig.of_siglip(SMALL, SMALL_WORDS)),
    "transformers_siglip_i18n": ("hugging_face", MaskCLIPppConfig.of_siglip(
        SMALL, headless(SMALL_WORDS))),
    "transformers_siglip2_naflex": ("hugging_face", MaskCLIPppConfig.of_siglip(
        dataclasses.replace(SMALL, position_resize="antialiased"), SMALL_WORDS)),
}


def run(*line):
    here = pathlib.Path(__file__).with_name("real_packages.py")
    done = subprocess.run([TORCH, here, *line], capture_output=True, text=True, timeout=900,
                          env=dict(os.environ, HF_HUB_OFFLINE="1", PYTHONPATH=""))
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"{TORCH} lacks the packages: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    run("make", folder)
    return folder


def abstract(model):
    return parameters.abstract(lambda: MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))


def test_a_file_of_each_package_is_read_and_comes_back_as_it_was(folder):
    for name, (layout, model) in MODELS.items():
        file, stored = folder / f"{name}.safetensors", np.load(folder / f"{name}.npz")
        assert weights.layout_of(weights.read(str(file)), str(file)) == layout, name
        build, shapes = abstract(model)
        params, missing = weights.load_weights(str(file), model, shapes)
        named, theirs = weights.export(params, model, layout), load_file(file)
        # OpenCLIP's two numbers may be lists of one; they are written as numbers.
        named = {k: x.reshape(theirs[k].shape) if x.ndim == 0 else x for k, x in named.items()}
        assert set(named) == set(theirs) - {k for k in theirs if k.endswith("position_ids")}, name
        for key, array in named.items():
            assert array.shape == theirs[key].shape and np.array_equal(array, theirs[key]), key
        weights.write(folder / f"{name}.back.safetensors", named)

        wanted = parameters.flatten(shapes)
        params = parameters.combine(params, parameters.unflatten(
            {path: np.zeros(wanted[path].shape, np.float32) for path in missing}))
        images = jnp.asarray(stored["images"]).transpose(0, 2, 3, 1)
        found = jax.jit(lambda p: (
            build(p).encode_image(images, jnp.full((2, 2), 32)).image_embedding,
            build(p).encode_text(stored["ids"])))(params)
        for got, key in zip(found, ("i_embs", "t_embs")):
            np.testing.assert_allclose(got, stored[key], atol=2e-5, rtol=2e-5, err_msg=name)
    run("check", folder)  # strict, and the same embeddings to the last bit


def repository(pretrained: dict) -> str:
    return "hf://" + pretrained.get("hf_hub", "").strip("/")


# Other copies of the same weights, and what OpenCLIP does not have.
ELSEWHERE = ("hf://openai/", "hf://google/", "hf://QuanSun/", "https://storage.googleapis.com/",
             "hf://facebook/", "https://dl.fbaipublicfiles.com/dinov3/")


def test_the_catalogue_has_names_shapes_and_constants_of_open_clip(tmp_path):
    run("shapes", tmp_path / "shapes.json")
    theirs, checked = json.loads((tmp_path / "shapes.json").read_text()), set()
    for entry in published.MODELS:
        if entry.source.startswith(ELSEWHERE):
            continue
        found = [(name, tag) for name, model in theirs.items()
                 for tag, cfg in model["trainings"].items() if entry.source in (
                     repository(cfg), cfg.get("url"))]
        assert found, f"OpenCLIP has no weights {entry.source}"
        name, tag = min(found, key=lambda pair: len(pair[0]))  # the others end in -quickgelu
        cfg = theirs[name]["trainings"][tag]
        np.testing.assert_allclose(entry.pixels, 255 * np.array([cfg["mean"], cfg["std"]]),
                                   rtol=1e-6, err_msg=entry.source)
        if not isinstance(entry.text, SigLIPTextConfig):
            assert entry.text.quick_gelu == bool(cfg.get("quick_gelu")), entry.source
        if name in checked:
            continue
        checked.add(name)
        shapes = {k: tuple(x) for k, x in theirs[name]["shapes"].items()}
        layout = weights.layout_of(shapes, name)
        table = weights.rules_for(layout, entry.model)
        wanted = {path: x.shape for path, x in parameters.flatten(abstract(entry.model)[1]).items()
                  if not path.startswith(weights.ABSENT)}
        assert rules.shapes_for(shapes, table) == wanted, name
        unknown = [k for k in shapes if not rules.paths_for(k, table)]
        assert all(k.endswith("num_batches_tracked") for k in unknown), (name, unknown)
    assert len(checked) > 40
