"""Stored results of TIPS, whose other layouts are made here of the one that is stored."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.models import maskclippp, tips
from maskclippp_jax.parity import cases
from maskclippp_jax.parity.case import Case

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tips"
TOKENS = "encoder/ToTokenSequence_0"


def as_scenic(image, words, heads):
    """The authors' PyTorch names (without the hub's prefixes) as their JAX code has them.

    The factors of blocks are in the last matrices of attention and MLP, the position of the class
    token is in the token.
    """
    width = image["cls_token"].shape[-1]
    side = round((image["pos_embed"].shape[1] - 1) ** 0.5)
    first = image["cls_token"][0] + image["pos_embed"][0, :1]
    vision = {
        f"{TOKENS}/embedding/kernel": image["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        f"{TOKENS}/embedding/bias": image["patch_embed.proj.bias"],
        f"{TOKENS}/cls": np.concatenate([first, image["register_tokens"][0]])[None],
        f"{TOKENS}/posembed_input": image["pos_embed"][:, 1:].reshape(1, side, side, width)}

    def block(there, source, i, names, factors):
        norm1, qkv, out, norm2, fc1, fc2 = (f"{names[0]}.{i}.{n}" for n in names[1:])
        attention = f"{there}/encoderblock_{i}/MultiHeadDotProductAttention_0"
        mlp = f"{there}/encoderblock_{i}/MlpBlock_0"
        join = lambda name: "_" if name.endswith("in_proj") else "."
        found = {}
        for part, rows, bias in zip(("query", "key", "value"),
                                    np.split(source[f"{qkv}{join(qkv)}weight"], 3),
                                    np.split(source[f"{qkv}{join(qkv)}bias"], 3)):
            found[f"{attention}/{part}/kernel"] = rows.T.reshape(width, heads, -1)
            found[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        for k, norm in enumerate((norm1, norm2)):
            for theirs, ours in (("weight", "scale"), ("bias", "bias")):
                found[f"{there}/encoderblock_{i}/LayerNorm_{k}/{ours}"] = source[f"{norm}.{theirs}"]
        found[f"{attention}/out/kernel"] = (source[f"{out}.weight"].T * factors[0]).reshape(
            heads, -1, width)
        found[f"{attention}/out/bias"] = source[f"{out}.bias"] * factors[0]
        for k, (layer, factor) in enumerate(((fc1, 1), (fc2, factors[1]))):
            found[f"{mlp}/Dense_{k}/kernel"] = source[f"{layer}.weight"].T * factor
            found[f"{mlp}/Dense_{k}/bias"] = source[f"{layer}.bias"] * factor
        return found

    of_image = ("blocks", "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    of_words = ("transformer.resblocks", "ln_1", "attn.in_proj", "attn.out_proj", "ln_2",
                "mlp.c_fc", "mlp.c_proj")
    for i in range(sum(k.endswith("ls1.gamma") for k in image)):
        vision |= block("encoder/transformer", image, i, of_image, (
            image[f"blocks.{i}.ls1.gamma"], image[f"blocks.{i}.ls2.gamma"]))
    text = {"token_emb/emb_var": words["token_embedding.weight"],
            "temperature_contrastive": words["temperature"]}
    for i in range(sum(k.endswith("ln_1.bias") for k in words)):
        text |= block("transformer", words, i, of_words, (1, 1))
    for found, source, norm, there in ((vision, image, "norm", "encoder/encoder_norm"),
                                       (text, words, "ln_final", "text_encoder_norm")):
        found |= {f"{there}/scale": source[f"{norm}.weight"], f"{there}/bias":
                  source[f"{norm}.bias"]}
    return vision, text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The stored case with its files in all layouts."""
    folder = tmp_path_factory.mktemp("tips")
    for file in GOLDEN.iterdir():
        shutil.copy(file, folder)
    sizes = json.loads((folder / "tips_b.json").read_text())["config"]
    hub = load_file(folder / "tips_b.safetensors")
    image, words = ({k.removeprefix(prefix): x for k, x in hub.items() if k.startswith(prefix)}
                    for prefix in ("vision_encoder.", "text_encoder."))
    words["temperature"] = np.float32(sizes["temperature"])
    scenic = as_scenic(image, words, sizes["heads"])
    for name, tensors in (("vision", image), ("text", words), ("scenic_vision", scenic[0]),
                          ("scenic_text", scenic[1])):
        np.savez(folder / f"tips_b.{name}.npz", **tensors)
    return folder


def test_a_tips_of_every_layout_gives_the_stored_results(folder):
    case = Case(folder / "tips_b.json", jnp.dtype("float32"))
    checks = cases.run(case)
    assert not [c for c in checks if not c.ratio <= 1]
    names = {c.name for c in checks}
    assert {k.removeprefix("out/") for k in case.arrays if k.startswith("out/")} <= names
    assert {"folded_cls1", "grad/mask_logit_scale", "tips_b.safetensors: written"} <= names


CONFIG = maskclippp.MaskCLIPppConfig.of_uncut(
    tips.TIPSConfig(24, 6, 48, 4, 4, 192, mask_layers=2),
    tips.TIPSTextConfig(9, 70, 48, 2, 4, 120))


@pytest.fixture(scope="module")
def shapes():
    return parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(CONFIG, heads="together", rngs=parameters.Keys(0)))[1]


def test_the_temperature_of_a_hub_file_lies_beside_it(folder, shapes, tmp_path):
    file = shutil.copy(folder / "tips_b.safetensors", tmp_path)
    with pytest.raises(ValueError, match="holds no temperature, and no config.json with a "
                                         "temperature_init_value lies beside it; put"):
        weights.load_weights(file, CONFIG, shapes)
    (tmp_path / "config.json").write_text('{"temperature_init_value": 0.005, "more": 1}')
    params, _ = weights.load_weights(file, CONFIG, shapes)
    assert np.exp(params["logit_scale"]) == pytest.approx(200)  # not cut at 100


def test_one_half_finds_the_other_or_says_what_is_missing(folder, shapes, tmp_path):
    whole, _ = weights.load_weights(str(folder / "tips_b.vision.npz"), CONFIG, shapes)
    other, _ = weights.load_weights(str(folder / "tips_b.text.npz"), CONFIG, shapes)
    for path, x in parameters.flatten(whole).items():
        np.testing.assert_array_equal(x, parameters.flatten(other)[path])
    file = shutil.copy(folder / "tips_b.vision.npz", tmp_path / "mine.npz")
    with pytest.raises(FileNotFoundError, match="mine.npz holds the image tower of a TIPS without "
                                                "its text tower; put it beside it"):
        weights.load_weights(str(file), CONFIG, shapes)
    both = f"{file},{folder / 'tips_b.text.npz'}"
    assert weights.load_weights(both, CONFIG, shapes)[1] >= {"image/mask_logit_scale"}
    again = shutil.copy(file, tmp_path / "again.npz")
    with pytest.raises(ValueError, match="again.npz and another of the files .* both hold"):
        weights.read(f"{file},{again}")


def test_a_backbone_alone_asks_for_the_rest_of_dinotxt(tmp_path):
    for name, tensor, missing in (
            ("backbone", "storage_tokens", "without its head and text tower"),
            ("hub", "embeddings.patch_embeddings.weight", "without its head and text tower"),
            ("head", "visual_model.head.ln_final.weight", "without its backbone")):
        file = tmp_path / f"{name}.safetensors"
        save_file({tensor: np.zeros((1, 2), np.float32)}, file)
        with pytest.raises(FileNotFoundError, match=f"dino.txt.*{missing}.* with a comma"):
            weights.read(str(file))


def test_a_file_of_another_kind_of_model_is_named(folder, shapes):
    pe_file = str(GOLDEN.parent / "pe" / "pe_l.safetensors")
    with pytest.raises(ValueError, match="pe_l.safetensors holds a PE-Core, but the "
                                         "configuration's model is an unpublished TIPSConfig"):
        weights.load_weights(pe_file, CONFIG, shapes)
