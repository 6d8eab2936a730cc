"""Checkpoints of big_vision in every layout, and SigLIP under the names of transformers."""

import dataclasses
import io
import pathlib
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from safetensors.numpy import load_file, save_file

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.models import clip_vit, maskclippp, siglip, similarity, text
from maskclippp_jax.weights import big_vision, published

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
STORED, SMALL = str(GOLDEN / "siglip" / "map_imghead" / "ckpt.npz"), GOLDEN / "small"
IMAGE = siglip.SigLIPConfig(24, 8, 32, 1, 4, 56, 20, has_head=True)
TEXT = siglip.SigLIPTextConfig(6, 64, 24, 1, 2, 48, 20, padding=1)
MODEL = maskclippp.MaskCLIPppConfig.of_siglip(IMAGE, TEXT)
HEADLESS = maskclippp.MaskCLIPppConfig.of_siglip(
    siglip.SigLIPConfig(24, 8, 24, 3, 4, 20, 24), siglip.SigLIPTextConfig(
        6, 64, 24, 2, 2, 48, 24, padding=1, has_head=False))
NAFLEX = maskclippp.MaskCLIPppConfig.of_siglip(
    siglip.SigLIPConfig(24, 4, 12, 3, 2, 20, 12, position_resize="antialiased"),
    siglip.SigLIPTextConfig(6, 30, 8, 2, 2, 12, 12, padding=0),
    similarity.LinearSimilarityConfig(2, 5))


def shapes_of(model):
    return parameters.abstract(lambda: maskclippp.MaskCLIPpp(model, rngs=parameters.Keys(0)))[1]


def load(path, model=MODEL):
    return parameters.flatten(weights.load_weights(str(path), model, shapes_of(model))[0])


def same(got, want):
    assert set(got) == set(want)
    for path in want:
        assert got[path].dtype == np.float32
        np.testing.assert_array_equal(got[path], want[path])


@pytest.fixture(scope="module")
def arrays():
    return {k.removeprefix("params/"): x for k, x in np.load(STORED).items()}


@pytest.fixture(scope="module")
def wanted():
    return load(STORED)


def test_a_stored_file_fills_the_model(arrays, wanted):
    assert set(shapes_flat := parameters.flatten(shapes_of(MODEL))) - set(wanted) == {
        "image/mask_logit_scale"}
    assert sum(x.size for x in arrays.values()) == sum(x.size for x in wanted.values())
    assert wanted["logit_bias"].shape == shapes_flat["logit_bias"].shape == ()
    out = arrays["img/MAPHead_0/MultiHeadDotProductAttention_0/out/kernel"]  # [A, K, D]
    np.testing.assert_array_equal(wanted["image/pool/out/kernel"], out.reshape(32, 32))


def stacked(arrays, tower):
    """The blocks of one tower, "img" or "txt", as one array each."""
    part = {k: x for k, x in arrays.items() if k.startswith(tower)}
    return {k: x for k, x in arrays.items() if k not in part} | big_vision.stack_blocks(part)


def old_names(arrays):
    changed = lambda k: k.replace("img/MAPHead_0/", "img/").replace(
        "img/pos_embedding", "img/Transformer/posembed_input/pos_embedding")
    return {changed(k): x for k, x in arrays.items()}


LAYOUTS = {
    "without prefix": lambda a: a,
    "an old prefix": lambda a: {f"opt/target/{k}": x for k, x in a.items()},
    "image stacked": lambda a: stacked(a, "img"),
    "text stacked": lambda a: {f"params/{k}": x for k, x in stacked(a, "txt").items()},
    "training state": lambda a: {f"params/{k}": x for k, x in a.items()} | {
        "opt/0/mu/img/embedding/bias": np.zeros(3), "chrono/accum_train_time": np.zeros(())},
    "clock beside it": lambda a: a | {"chrono/step": np.zeros(())},
    "old names": old_names,
    "two tables of the text tower": lambda a: a | {
        "txt/pos_embedding": a["txt/pos_embedding"] / 2,
        "txt/Encoder_0/pos_embedding": a["txt/pos_embedding"] / 2},
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_recognised(change, arrays, wanted, tmp_path):
    changed = change(arrays)
    assert set(changed) != set(np.load(STORED))
    np.savez(tmp_path / "x.npz", **changed)
    same(load(tmp_path / "x.npz"), wanted)


def test_bfloat16_is_what_two_bytes_without_a_meaning_are(arrays, wanted, tmp_path):
    rounded = {k: x.astype(ml_dtypes.bfloat16) for k, x in arrays.items()}
    np.savez(tmp_path / "x.npz", **rounded)
    assert np.load(tmp_path / "x.npz")["t"].dtype == np.dtype("V2")
    same(load(tmp_path / "x.npz"),
         {k: x.astype(ml_dtypes.bfloat16).astype(np.float32) for k, x in wanted.items()})


def test_a_folder_of_arrays_is_read_as_big_vision_saves_it(arrays, wanted, tmp_path):
    folder = tmp_path / "checkpoint.bv-000000012"
    for name, array in {"chrono/step": np.zeros(()), **{f"params/{k}": x for k, x in
                                                        stacked(arrays, "img").items()}}.items():
        leaf = {"driver": "zarr",
                "kvstore": {"driver": "file", "path": str(folder / name.replace("/", "~"))}}
        tensorstore.open(leaf, dtype=array.dtype, shape=array.shape,
                         create=True).result().write(array).result()
    same(load(folder), wanted)
    (tmp_path / "checkpoint.bv-LAST").write_text("000000012")
    same(load(tmp_path / "checkpoint.bv"), wanted)
    with pytest.raises(FileNotFoundError, match="no checkpoint.*checkpoint.bv-7"):
        load(tmp_path / "checkpoint.bv-7")


def test_a_part_of_a_file_can_be_named():
    assert {k.split("/")[0] for k in weights.read(f"{STORED}:txt")} == {"txt"}
    with pytest.raises(ValueError, match="text/token_embedding: not in the file"):
        load(f"{STORED}:img")
    with pytest.raises(ValueError, match="holds nothing below audio/"):
        load(f"{STORED}:audio")


def test_all_problems_are_listed_by_name(arrays, tmp_path):
    broken = {k: x for k, x in arrays.items() if k != "txt/head/bias"}
    broken["img/MAPHead_0/probe"] = np.zeros((1, 1, 31), np.float32)
    broken["img/Transformer/encoderblock_1/LayerNorm_0/bias"] = np.zeros(32, np.float32)
    broken["img/cls"] = np.zeros((1, 1, 32), np.float32)
    np.savez(tmp_path / "x.npz", **broken)
    with pytest.raises(ValueError) as error:
        load(tmp_path / "x.npz")
    for words in ("4 problems", "text/head/bias: not in the file", "img/cls: unknown here",
                  "img/MAPHead_0/probe: shape (31,) for image/pool/probe, wanted (32,)",
                  "encoderblock_1/LayerNorm_0/bias: the model has no image/blocks/1/norm1/bias"):
        assert words in str(error.value)


def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    header = np.lib.format.header_data_from_array_1_0(np.zeros((2, 8), np.float32))
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header | dict(shape=(2**40, 8)))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias.npy",
                      content.getvalue() + bytes(64))
    with pytest.raises(ValueError, match="x.npz is no .npz file.*an array of the shape"):
        weights.read(str(tmp_path / "x.npz"))


def test_files_that_cannot_be_read_are_named(arrays, tmp_path):
    data = pathlib.Path(STORED).read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="cut.npz is no .npz file, or was cut short"):
        load(tmp_path / "cut.npz")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="pickle.npz is no .npz file"):
        load(tmp_path / "pickle.npz")
    np.savez(tmp_path / "objects.npz", **arrays | {"t": np.array([{}], object)})
    with pytest.raises(ValueError, match="objects.npz is no .npz file.*type object"):
        load(tmp_path / "objects.npz")
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path / "none.npz")


@pytest.mark.parametrize("name, resize", [("siglip", "linear"), ("siglip2_naflex", "antialiased")])
def test_a_model_of_transformers_gives_the_same_embeddings(name, resize):
    file, stored = str(SMALL / f"{name}.safetensors"), np.load(SMALL / f"{name}.npz")
    model = maskclippp.MaskCLIPppConfig.of_siglip(
        siglip.SigLIPConfig(12, 4, 8, 2, 2, 12, 8, position_resize=resize),
        siglip.SigLIPTextConfig(6, 30, 8, 2, 2, 12, 8, padding=0))
    params, missing = weights.load_weights(file, model, shapes_of(model))
    assert missing == {"image/mask_logit_scale"}
    same(weights.export(params, model, "hugging_face"), load_file(file))
    params["image"]["mask_logit_scale"] = np.zeros((1, 2), np.float32)
    build, _ = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))
    # The second picture of NaFlex is one row of patches lower.
    sizes = np.array([[12, 12], [12 if name == "siglip" else 8, 12]])

    @jax.jit
    def run(params):
        model = build(params)
        features = model.encode_image(stored["images"], sizes)
        texts = similarity.unit(model.encode_text(stored["token_ids"]))
        as_mask = features._replace(mask_embeddings=features.image_embedding[None])
        return (similarity.unit(features.image_embedding), texts,
                model.classify(as_mask, texts[:, None])[0])

    for got, key in zip(run(params), ("i_embs", "t_embs", "logits")):
        np.testing.assert_allclose(got, stored[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["big_vision", "big_vision_scan", "hugging_face", "ours",
                                    "timm"])
@pytest.mark.parametrize("model", [HEADLESS, NAFLEX], ids=["fixed", "naflex"])
def test_what_is_written_loads_again_bit_by_bit(model, layout, tmp_path):
    rng = np.random.default_rng(3)
    leaves = {path: rng.normal(size=s.shape).astype(np.float32)
              for path, s in parameters.flatten(shapes_of(model)).items()}
    if layout == "timm" and model is NAFLEX:
        with pytest.raises(ValueError, match="layout timm has no names for an unpublished SigLIP"):
            weights.export(parameters.unflatten(leaves), model, layout)
        return
    named = weights.export(parameters.unflatten(leaves), model, layout)
    if layout.startswith("big_vision"):
        assert any("/encoderblock/" in k for k in named) == (layout == "big_vision_scan")
        np.savez(file := tmp_path / "x.npz", **named)
    else:
        save_file(named, file := tmp_path / "x.safetensors")
    kept = leaves if layout == "ours" else {
        path: x for path, x in leaves.items() if not path.startswith(weights.ABSENT)}
    same(load(file, model), kept)


def test_a_text_head_that_is_none_is_written_and_must_be_none(tmp_path):
    """As transformers' converter does it for SigLIP So400m/16 for many languages."""
    params = parameters.unflatten({path: np.ones(s.shape, np.float32) for path, s in
                                   parameters.flatten(shapes_of(HEADLESS)).items()})
    named = weights.export(params, HEADLESS, "hugging_face")
    np.testing.assert_array_equal(named["text_model.head.weight"], np.eye(24))
    assert not named["text_model.head.bias"].any()
    file = tmp_path / "x.safetensors"
    save_file(named | {"text_model.head.weight": 2 * np.eye(24, dtype=np.float32)}, file)
    with pytest.raises(ValueError, match="text_model.head.weight is not what it is in an unpub"):
        load(file, HEADLESS)
    save_file({k: x for k, x in named.items() if ".head." not in k or "vision" in k}, file)
    assert load(file, HEADLESS)  # of who left it out


def test_naflex_keeps_its_own_shapes():
    params = {path: np.zeros(s.shape, np.float32)
              for path, s in parameters.flatten(shapes_of(NAFLEX)).items()}
    params["image/patch_embed/kernel"] = np.arange(4 * 4 * 3 * 12, dtype=np.float32).reshape(
        4, 4, 3, 12)
    named = weights.export(parameters.unflatten(params), NAFLEX, "big_vision")
    assert named["img/pos_embedding"].shape == (6, 6, 12)
    assert named["img/embedding/kernel"].shape == (48, 12)
    hub = weights.export(parameters.unflatten(params), NAFLEX, "hugging_face")
    assert hub["vision_model.embeddings.patch_embedding.weight"].shape == (12, 48)
    np.testing.assert_array_equal(  # row 1, column 2, green, channel 5
        hub["vision_model.embeddings.patch_embedding.weight"][5, (1 * 4 + 2) * 3 + 1],
        params["image/patch_embed/kernel"][1, 2, 1, 5])


def test_a_siglip_has_no_names_of_a_clip_and_a_clip_none_of_a_siglip():
    params = parameters.unflatten({path: np.zeros(s.shape, np.float32)
                                   for path, s in parameters.flatten(shapes_of(MODEL)).items()})
    for layout in ("maskclippp", "open_clip", "eva_clip"):
        with pytest.raises(ValueError, match="SigLIPConfig"):
            weights.export(params, MODEL, layout)
    clip = maskclippp.MaskCLIPppConfig(
        clip_vit.ClipViTConfig(16, 8, 8, 2, 2, 12, 4, mask_layers=1),
        text.TextConfig(6, 20, 8, 2, 2, 4), None)
    with pytest.raises(ValueError, match="holds a SigLIP, but .* an unpublished ClipViTConfig"):
        load(STORED, clip)


def test_a_file_of_another_published_model_is_recognised(monkeypatch):
    """Also when only the text tower is another, as between SigLIP and SigLIP 2."""
    other = dataclasses.replace(MODEL, text=dataclasses.replace(TEXT, vocab_size=70))
    entry = lambda name, model: published.Published(name, "", "", "", model.image, model.text)
    monkeypatch.setattr(published, "MODELS", (
        entry("first", other), entry("second", MODEL), entry("third", HEADLESS)))
    with pytest.raises(ValueError, match="looks like second, but the configuration's model is "
                                         "first .1 problems, such as txt/Embed_0/embedding"):
        load(STORED, other)


def test_the_names_of_the_published_models_tell_them_apart():
    find = lambda name, training: published.name_of(published.find(name, training).model)
    assert find("SigLIP2 B/16 256", "siglip2_b16_256") == "SigLIP2 B/16 256"
    assert find("SigLIP B/16 256", "webli_en_b16_256_60500360") == "SigLIP B/16 256"
    assert find("SigLIP2 B/16 NaFlex", "siglip2_b16_naflex") == "SigLIP2 B/16 NaFlex"
    assert find("SigLIP2 g-opt/16 256", "siglip2_g-opt16_256") == "SigLIP2 g-opt/16 256"
