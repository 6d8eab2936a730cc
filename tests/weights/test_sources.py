"""Every kind of published file: reading, writing back, and telling one model from another."""

import collections.abc
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    eva_vit,
    maskclippp,
    similarity,
    text,
)
from maskclippp_jax.weights import files, hub, published, rules

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
OPENAI = str(GOLDEN / "encoders" / "ckpt_openai_archive.pt")
LAYOUTS = json.loads((GOLDEN / "encoders" / "ckpt_layouts.json").read_text())

TEXT = text.TextConfig(context_length=6, vocab_size=20, width=8, depth=2, num_heads=2, embed_dim=4)
VIT = clip_vit.ClipViTConfig(image_size=16, patch_size=8, width=8, depth=2, num_heads=2,
                             mlp_width=12, embed_dim=4, mask_layers=1)
EVA = eva_vit.EvaViTConfig(image_size=16, patch_size=8, width=8, depth=2, num_heads=2, mlp_width=12,
                           embed_dim=4, mask_layers=1)
EVA01 = dataclasses.replace(EVA, rotary_grid=None, inner_norms=False, swiglu=False, fused_qkv=True)
CONVNEXT = clip_convnext.ConvNeXtConfig(16, (4, 6, 8, 10), (1, 1, 2, 1), 4)
RESNET = clip_resnet.ResNetConfig(64, 4, (1, 2, 1, 1), 2, 4)
KINDS = dict(eva02=EVA, eva01=EVA01, vit=VIT, convnext=CONVNEXT, resnet=RESNET,
             convnext_mlp=dataclasses.replace(CONVNEXT, head_width=8))


def shapes_of(model):
    return parameters.abstract(lambda: maskclippp.MaskCLIPpp(model, rngs=parameters.Keys(0)))[1]


def random_params(model):
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes_of(model))


def same(got, want):
    got, want = parameters.flatten(got), parameters.flatten(want)
    assert set(got) == set(want)
    for path in want:
        assert got[path].dtype == want[path].dtype
        np.testing.assert_array_equal(got[path], want[path])


@pytest.mark.parametrize("image", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("layout", ["maskclippp", "ours", "open_clip", "eva_clip", "timm"])
def test_what_is_written_loads_again_bit_by_bit(image, layout, tmp_path):
    """A tuned model keeps everything; a plain CLIP lacks mask scale and similarity head."""
    model = maskclippp.MaskCLIPppConfig(image, TEXT, similarity.LinearSimilarityConfig(2, 5))
    params = random_params(model)
    is_eva = isinstance(image, eva_vit.EvaViTConfig)
    if layout in (("open_clip",) if is_eva else ("eva_clip", "timm")):
        with pytest.raises(ValueError, match=f"layout {layout} has no names for an unpublished"):
            weights.export(params, model, layout)
        return
    file = str(tmp_path / "x.safetensors")
    save_file(weights.export(params, model, layout), file)
    assert weights.layout_of(weights.read(file), file) == layout
    back, missing = weights.load_weights(file, model, shapes_of(model))
    kept = {p: x for p, x in parameters.flatten(params).items() if p not in missing}
    same(back, parameters.unflatten(kept))
    assert bool(missing) == (layout in ("open_clip", "eva_clip", "timm"))
    assert all(p.startswith(weights.ABSENT) for p in missing)


def test_names_and_shapes_are_those_of_the_published_layouts():
    """A tuned model of the stored sizes has exactly the stored file's keys; OpenAI's likewise."""
    vision, words = LAYOUTS["model_cfg"]["vision_cfg"], LAYOUTS["model_cfg"]["text_cfg"]
    model = maskclippp.MaskCLIPppConfig(
        eva_vit.EvaViTConfig(64, 8, 32, 3, 2, 85, 24, 2),
        text.TextConfig(words["context_length"], words["vocab_size"], 32, 2, 2, 24),
        similarity.LinearSimilarityConfig(1, 16))
    assert vision["width"] == 32 and vision["layers"] == 3
    named = weights.export(random_params(model), model, "maskclippp")
    stored = weights.read(str(GOLDEN / "encoders" / LAYOUTS["files"]["finetuned"]))
    assert set(named) == set(stored) == set(LAYOUTS["finetuned_model_keys"])
    assert all(stored.shapes[k] == v.shape for k, v in named.items() if not k.startswith("psm."))


def openai_model():
    vision = clip_vit.ClipViTConfig(32, 8, 64, 2, 1, 256, 32, mask_layers=1, quick_gelu=True)
    words = text.TextConfig(16, 600, 64, 2, 1, 32, quick_gelu=True)
    return maskclippp.MaskCLIPppConfig(vision, words, None)


def test_an_openai_archive_is_read_without_running_its_code():
    source = weights.read(OPENAI)
    assert set(source) == set(LAYOUTS["openai_keys"])
    for name, what in LAYOUTS["openai_keys"].items():
        dtype, shape = what[:-1].split("[")
        assert str(source[name].dtype) == dtype
        assert source.shapes[name] == tuple(int(n) for n in shape.split(",") if n.strip())
    model = openai_model()
    other = dataclasses.replace(model, text=dataclasses.replace(model.text, quick_gelu=False))
    with pytest.raises(ValueError, match="OpenAI, whose weights want QuickGELU"):
        weights.load_weights(OPENAI, other, shapes_of(other))
    params, missing = weights.load_weights(OPENAI, model, shapes_of(model))
    assert missing == {"image/mask_logit_scale"}
    named = weights.export(params, model, "open_clip")
    assert set(source) - set(named) == {"input_resolution", "context_length", "vocab_size"}
    for name, array in named.items():  # half-precision numbers survive the way over float32
        np.testing.assert_array_equal(array.astype(source[name].dtype), source[name])


def test_a_model_of_transformers_gives_the_same_embeddings():
    file, stored = str(GOLDEN / "small" / "hugging_face.safetensors"), np.load(
        GOLDEN / "small" / "hugging_face.npz")
    model = maskclippp.MaskCLIPppConfig(
        clip_vit.ClipViTConfig(24, 8, 24, 2, 2, 40, 16, mask_layers=1, quick_gelu=True),
        text.TextConfig(12, 50, 20, 2, 2, 16, quick_gelu=True), None)
    params, missing = weights.load_weights(file, model, shapes_of(model))
    assert missing == {"image/mask_logit_scale"}
    params["image"]["mask_logit_scale"] = np.zeros((1, 2), np.float32)
    build, _ = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))
    images = jnp.asarray(stored["images"]).transpose(0, 2, 3, 1)
    i_embs, t_embs = jax.jit(lambda p: (
        build(p).encode_image(images, jnp.full((2, 2), 24)).image_embedding,
        build(p).encode_text(stored["token_ids"])))(params)
    np.testing.assert_allclose(i_embs, stored["i_embs"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(t_embs, stored["t_embs"], atol=1e-5, rtol=1e-5)
    table = weights.rules_for("hugging_face", model)
    leaves = {p: x for p, x in parameters.flatten(params).items() if p not in missing}
    same(rules.export(parameters.unflatten(leaves), table), load_file(file))


def hugging_face_folder(folder, **towers):
    """A copy of a repository of transformers; returns the model that its weights want."""
    shutil.copy(GOLDEN / "small" / "hugging_face.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(model_type="clip", **towers)))
    return maskclippp.MaskCLIPppConfig(
        clip_vit.ClipViTConfig(24, 8, 24, 2, 2, 40, 16, mask_layers=1, quick_gelu=True),
        text.TextConfig(12, 50, 20, 2, 2, 16, quick_gelu=True), None)


@pytest.mark.parametrize("towers, says", [
    ({}, None),  # transformers' own default
    (dict(vision_config=None, text_config=dict(hidden_act="quick_gelu")), None),
    (dict(vision_config=dict(hidden_act="gelu")), "want the exact GELU in the image tower"),
    (dict(text_config=dict(hidden_act="gelu")), "want the exact GELU in the text tower"),
    (dict(text_config=dict(hidden_act=5)), "at text_config.hidden_act: got int, wanted str")])
def test_the_activation_beside_the_weights_must_be_the_models(tmp_path, towers, says):
    model = hugging_face_folder(tmp_path, **towers)
    if says is None:
        weights.load_weights(str(tmp_path), model, shapes_of(model))
        exact = dataclasses.replace(model, image=dataclasses.replace(model.image, quick_gelu=False))
        with pytest.raises(ValueError, match="want QuickGELU in the image tower, as .* set"):
            weights.load_weights(str(tmp_path), exact, shapes_of(exact))
        return
    with pytest.raises(ValueError, match=says):
        weights.load_weights(str(tmp_path), model, shapes_of(model))


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = hugging_face_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["visual_projection.weight"][0, :3] = [np.nan, np.inf, -np.inf]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="image/projection holds 3 numbers that are NaN or inf"):
        weights.load_weights(str(tmp_path), model, shapes_of(model))


def test_numbers_of_8_bits_are_refused_with_the_types_that_are_read(tmp_path):
    header = json.dumps(dict(x=dict(dtype="F8_E4M3", shape=[2], data_offsets=[0, 2]))).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(ValueError, match="stores x as F8_E4M3; read here are F64, F32, F16, BF16"):
        files.read(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("parts, says", [
    ({}, "names no tensor"), (dict(a="x.safetensors.index.json"), "names x.safetensors.index.json"),
    (dict(a="../x.safetensors"), "names ../x.safetensors"), ([], "at weight_map: got array")])
def test_an_index_names_files_beside_it(tmp_path, parts, says):
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(dict(weight_map=parts)))
    with pytest.raises(ValueError, match=f"{says}.*download it again"):
        files.read(str(tmp_path / "x.safetensors.index.json"))


def test_the_clip_inside_a_mask_generator_is_found(tmp_path):
    model = maskclippp.MaskCLIPppConfig(CONVNEXT, TEXT, None)
    params = random_params(model)
    named = {f"backbone.clip_model.{k}": v
             for k, v in weights.export(params, model, "open_clip").items()}
    named["sem_seg_head.predictor.query_feat.weight"] = np.zeros((3, 2), np.float32)
    named["void_embedding.weight"] = np.zeros((1, 4), np.float32)
    file = str(tmp_path / "x.safetensors")
    save_file(named, file)
    same(weights.load_weights(file, model, shapes_of(model))[0], params)
    left_out = [r for r in weights.rules_for("fc_clip", model) if r.path is None]
    assert any("mask generator" in rule.why for rule in left_out)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(dtype, tmp_path):
    model = maskclippp.MaskCLIPppConfig(VIT, TEXT, None)
    params = jax.tree.map(lambda x: x.astype(dtype), random_params(model))
    file = str(tmp_path / "x.safetensors")
    named = weights.export(params, model, "open_clip")
    save_file({f"module.{k}": v for k, v in named.items()}, file)
    back, missing = weights.load_weights(file, model, shapes_of(model))
    for path, leaf in parameters.flatten(back).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, parameters.flatten(params)[path].astype(np.float32))


class Counting(collections.abc.Mapping):
    """Notes which arrays it gave away."""

    def __init__(self, arrays):
        self.arrays, self.given = arrays, []

    def __iter__(self):
        return iter(self.arrays)

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, name):
        self.given.append(name)
        return self.arrays[name].astype(np.float16)


def test_every_tensor_is_read_once():
    model = maskclippp.MaskCLIPppConfig(EVA01, TEXT, None)
    source = Counting(weights.export(random_params(model), model, "eva_clip"))
    rules.load(source, weights.rules_for("eva_clip", model), shapes_of(model),
               absent=weights.ABSENT)
    assert sorted(source.given) == sorted(source)


@pytest.mark.parametrize("name, training, layout, kind", [
    ("ViT-B-16", "openai", "open_clip", "RN50"), ("RN50", "openai", "open_clip", "ViT-B-16"),
    ("EVA02-CLIP-B-16", "EVA02_CLIP_B_psz16_s8B", "eva_clip", "ViT-B-16")])
def test_a_file_of_another_model_is_recognised(name, training, layout, kind, monkeypatch):
    """By names and shapes alone: nothing of the file is read."""
    other = published.find(name, training).model
    table = weights.rules_for(layout, other)
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes_of(other))
    leaves = {p: x for p, x in parameters.flatten(zeros).items()
              if not p.startswith(weights.ABSENT)}
    source = rules.export(parameters.unflatten(leaves), table)

    class File(dict):
        shapes = {key: x.shape for key, x in source.items()}

    monkeypatch.setattr(weights, "read", lambda path: File(source))
    wanted = published.find(kind, "openai").model
    with pytest.raises(ValueError, match=f"x.pt looks like {name}, but the configuration's model "
                                         f"is {kind}.*give the weights of that model"):
        weights.load_weights("x.pt", wanted, shapes_of(wanted))


@pytest.mark.parametrize("image, layout, other, says", [
    (EVA, "timm", EVA01, "holds an EVA02-CLIP, but .* an unpublished EvaViTConfig"),
    (EVA01, "eva_clip", EVA, "holds an EVA01-CLIP, but the configuration's model is an unpub"),
    (CONVNEXT, "open_clip", VIT, "holds a CLIP with a ConvNeXt, but .* unpublished ClipViTConfig")])
def test_a_small_model_of_another_kind_is_named(image, layout, other, says, tmp_path):
    model, wanted = (maskclippp.MaskCLIPppConfig(x, TEXT, None) for x in (image, other))
    file = str(tmp_path / "x.safetensors")
    save_file(weights.export(random_params(model), model, layout), file)
    with pytest.raises(ValueError, match=says):
        weights.load_weights(file, wanted, shapes_of(wanted))


def test_an_image_tower_alone_is_named(tmp_path):
    save_file({"blocks.0.norm1.weight": np.zeros(2, np.float32),
               "patch_embed.proj.weight": np.zeros((2, 3, 1, 1), np.float32)},
              tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="an image tower of timm alone, without the text tower"):
        weights.load_weights(str(tmp_path / "x.safetensors"), None, {})


def test_safetensors_that_are_cut_or_absent_are_named(tmp_path):
    data = (GOLDEN / "small" / "convnext.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="no safetensors file, or was cut short"):
        files.read(str(tmp_path / "x.safetensors"))
    with pytest.raises(FileNotFoundError, match="no file"):
        files.read(str(tmp_path / "y.safetensors"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An offline hub whose cache holds one file of one repository."""
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--clip"
    commit = "0" * 40
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    file = folder / "snapshots" / commit / "model.safetensors"
    save_file({"a": np.arange(3, dtype=np.float32)}, file)
    return file


def test_a_file_of_the_hub_comes_from_the_cache(cache):
    assert pathlib.Path(hub.fetch("hf://some/clip/model.safetensors")) == cache
    assert pathlib.Path(hub.fetch("hf://some/clip")) == cache  # the first name that is there
    np.testing.assert_array_equal(files.read("hf://some/clip")["a"], [0, 1, 2])
    assert hub.fetch("some/clip") == "some/clip"


def test_a_checkpoint_of_several_files_is_read_as_one(cache, tmp_path):
    numbers = dict(a=np.arange(3, dtype=np.float32), b=np.ones((2, 1), np.float32))
    index, parts = cache.with_name("model.safetensors.index.json"), ("x-1.safetensors",
                                                                    "x-2.safetensors")
    for file, name in zip(parts, numbers):
        save_file({name: numbers[name]}, cache.with_name(file))
    index.write_text(json.dumps(dict(metadata={}, weight_map=dict(zip(numbers, parts)))))
    cache.unlink()
    for path in ("hf://some/clip", "hf://some/clip/model.safetensors.index.json", str(index)):
        source = files.read(path)
        assert source.shapes == dict(a=(3,), b=(2, 1))
        for name, array in numbers.items():
            np.testing.assert_array_equal(source[name], array)
    index.write_text(json.dumps(dict(weight_map=dict(a=parts[1], b=parts[1]))))
    with pytest.raises(ValueError, match="x-2.safetensors does not hold a, which"):
        files.read(str(index))
    index.write_text("{}")
    with pytest.raises(ValueError, match="an index of a checkpoint has a weight_map"):
        files.read(str(index))
    index.write_text(json.dumps(dict(weight_map=dict(a="x-3.safetensors"))))
    with pytest.raises(FileNotFoundError, match="of which x-3.safetensors is not here"):
        files.read(str(index))


def test_without_network_the_hub_says_what_to_do(cache):
    for path in ("hf://some/clip/other.bin", "hf://other/clip"):
        with pytest.raises(FileNotFoundError, match=f"{path} is not in the cache.*no network"):
            hub.fetch(path)
    with pytest.raises(ValueError, match="wanted hf://owner/name"):
        hub.fetch("hf://clip")
    with pytest.raises(FileNotFoundError, match="b.npz is not here.*download https://a/b.npz and"):
        files.read("https://a/b.npz")


def test_convert_lists_the_published_models_and_refuses_another_layout(tmp_path):
    run = lambda *a: subprocess.run([sys.executable, "-m", "maskclippp_jax", "convert", *a],
                                    capture_output=True, text=True)
    done = run("--list")
    assert done.returncode == 0, done.stderr
    for entry in published.MODELS:
        assert entry.source in done.stdout
    done = run("--source=x", "--output=y.safetensors", "--layout=tensorflow")
    assert done.returncode == 2 and "tensorflow" in done.stderr
