"""Files of PE-Core, TIPS g/14 and dino.txt: written and read again, under other names, refused."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.models import dinotxt, maskclippp, pe, text, tips

PE = maskclippp.MaskCLIPppConfig.of_uncut(
    pe.PEConfig(16, 8, 16, 2, 2, 24, 12), text.TextConfig(8, 40, 16, 1, 2, 12))
PE_G = dataclasses.replace(PE, image=dataclasses.replace(PE.image, has_class_token=False))
TIPS_G = maskclippp.MaskCLIPppConfig.of_uncut(
    tips.TIPSConfig(16, 8, 16, 2, 2, 24, swiglu=True), tips.TIPSTextConfig(8, 40, 16, 1, 2, 20))
DINO = maskclippp.MaskCLIPppConfig.of_uncut(
    dinotxt.DinoTxtConfig(16, 8, 16, 2, 2, 24, 20, num_registers=3),
    text.TextConfig(8, 40, 16, 1, 2, 32, qkv_bias=False))


def draw(model, rng):
    """Shapes, and random parameters that every layout can hold."""
    _, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))
    leaves = {path: rng.normal(size=x.shape).astype(np.float32)
              for path, x in parameters.flatten(shapes).items()}
    leaves["logit_scale"] = np.float32(4.5)
    if "image/head/bias" in leaves:
        leaves["image/head/bias"] = np.zeros_like(leaves["image/head/bias"])
    return shapes, parameters.unflatten(leaves)


def same(got, want):
    got, want = parameters.flatten(got), parameters.flatten(want)
    assert set(got) == {path for path in want if not path.startswith(weights.ABSENT)}
    for path, x in got.items():
        np.testing.assert_allclose(x, want[path], rtol=1e-6 if path == "logit_scale" else 0)


@pytest.mark.parametrize("model, layout", [
    (PE, "open_clip"), (PE, "timm"), (PE_G, "timm"), (PE_G, "open_clip"), (PE, "maskclippp"),
    (TIPS_G, "tips"), (DINO, "dinotxt")], ids=lambda x: x if isinstance(x, str) else
    type(x.image).__name__)
def test_what_is_written_is_read_again(model, layout, rng, tmp_path):
    shapes, params = draw(model, rng)
    named = weights.export(params, model, layout)
    save_file(named, tmp_path / "x.safetensors")
    back, missing = weights.load_weights(str(tmp_path / "x.safetensors"), model, shapes)
    if layout == "maskclippp":
        assert not missing
        back = parameters.unflatten({path: x for path, x in parameters.flatten(back).items()
                                     if not path.startswith(weights.ABSENT)})
    same(back, params)


def test_a_bias_that_the_authors_pe_core_has_not_is_not_lost(rng):
    _, params = draw(PE, rng)
    assert "visual.trunk.head.bias" in weights.export(params, PE, "timm")
    params["image"]["head"]["bias"] = np.ones(12, np.float32)
    with pytest.raises(ValueError, match="has no bias in its last map, this one has; write it "
                                         "under the names timm or ours"):
        weights.export(params, PE, "open_clip")


def test_the_first_half_of_a_gated_mlp_is_under_the_silu(rng):
    _, params = draw(TIPS_G, rng)
    named = weights.export(params, TIPS_G, "tips")
    mlp = params["image"]["blocks"][1]["mlp"]
    np.testing.assert_array_equal(named["vision_encoder.blocks.1.mlp.w12.weight"],
                                  np.concatenate([mlp["w1"]["kernel"].T, mlp["w2"]["kernel"].T]))
    assert named["vision_encoder.mask_token"].shape == (1, 16)


def test_biases_of_keys_are_not_read_and_written_as_zeros(rng, tmp_path):
    shapes, params = draw(DINO, rng)
    named = weights.export(params, DINO, "dinotxt")
    bias = named["blocks.0.attn.qkv.bias"]
    assert bias[:16].all() and not bias[16:32].any() and bias[32:].all()
    bias[16:32] = 7
    named |= {"blocks.0.attn.qkv.bias_mask": np.ones(48, np.float32),
              "rope_embed.periods": np.ones(2, np.float32),
              "visual_model.backbone.cls_token": np.ones((1, 1, 16), np.float32)}
    head = {k: named.pop(k) for k in list(named) if k.startswith(("visual_", "text_", "logit"))}
    save_file(named, tmp_path / "backbone.safetensors")
    save_file(head, tmp_path / "head.safetensors")
    back, _ = weights.load_weights(
        f"{tmp_path / 'head.safetensors'},{tmp_path / 'backbone.safetensors'}", DINO, shapes)
    same(back, params)


@pytest.mark.parametrize("outer", ["", "model."])
def test_a_backbone_under_the_names_of_transformers_is_read(outer, rng, tmp_path):
    shapes, params = draw(DINO, rng)
    named = weights.export(params, DINO, "dinotxt")
    head = {k: named.pop(k) for k in list(named) if k.startswith(("visual_", "text_", "logit"))}
    there = {"embeddings.cls_token": named["cls_token"],
             "embeddings.register_tokens": named["storage_tokens"],
             "embeddings.mask_token": np.zeros((1, 1, 16), np.float32)}
    for part in ("weight", "bias"):
        there[f"embeddings.patch_embeddings.{part}"] = named[f"patch_embed.proj.{part}"]
        there[f"norm.{part}"] = named[f"norm.{part}"]
        for i in range(2):
            block = f"{outer}layer.{i}"
            for letter, x in zip("qkv", np.split(named[f"blocks.{i}.attn.qkv.{part}"], 3)):
                there[f"{block}.attention.{letter}_proj.{part}"] = x.copy()
            for new, old in (("norm1", "norm1"), ("norm2", "norm2"),
                             ("attention.o_proj", "attn.proj"), ("mlp.up_proj", "mlp.fc1"),
                             ("mlp.down_proj", "mlp.fc2")):
                there[f"{block}.{new}.{part}"] = named[f"blocks.{i}.{old}.{part}"]
    for i in range(2):
        del there[f"{outer}layer.{i}.attention.k_proj.bias"]
        for k in (1, 2):
            there[f"{outer}layer.{i}.layer_scale{k}.lambda1"] = named[f"blocks.{i}.ls{k}.gamma"]
    save_file(there, tmp_path / "model.safetensors")
    save_file(head, tmp_path / "head.safetensors")
    back, _ = weights.load_weights(
        f"{tmp_path / 'model.safetensors'},{tmp_path / 'head.safetensors'}", DINO, shapes)
    same(back, params)


def test_an_unfit_layout_names_those_that_fit(rng):
    for model, wanted in ((TIPS_G, "tips or ours"), (DINO, "dinotxt or ours")):
        _, params = draw(model, rng)
        with pytest.raises(ValueError, match=f"it can be written as {wanted}"):
            weights.export(params, model, "maskclippp")
