"""Our modules as big_vision uses them; with it on the path, or a stand-in in its place.

Modules are looked up by name, names of parameters flattened, and models and evaluators called, as
big_vision's trainer of SigLIP does.
"""

import dataclasses
import importlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.data import build, images, pipeline, records, scenes
from maskclippp_jax.interop import big_vision
from maskclippp_jax.models import eva_vit, maskclippp, siglip, similarity, text
from maskclippp_jax.naming import inference
from maskclippp_jax.vocabulary import TEMPLATES_1, Vocabulary

STORED = pathlib.Path(__file__).parents[1] / "golden" / "siglip" / "map_imghead"
SIGLIP = maskclippp.MaskCLIPppConfig.of_siglip(
    siglip.SigLIPConfig(24, 8, 32, 1, 4, 56, 20, has_head=True),
    siglip.SigLIPTextConfig(6, 64, 24, 1, 2, 48, 20, padding=1))
FULL = text.TextConfig.quickstart()
EVA = maskclippp.MaskCLIPppConfig(
    eva_vit.EvaViTConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_width=48,
                         embed_dim=16, mask_layers=1),
    text.TextConfig(FULL.context_length, FULL.vocab_size, 32, 1, 2, 16, words=FULL.words),
    similarity.LinearSimilarityConfig(1, 16))


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """big_vision knows our modules; without it, an empty package of its name is on the path."""
    before = set(sys.modules)
    if importlib.util.find_spec("big_vision") is None:
        (tmp_path / "big_vision").mkdir()
        (tmp_path / "big_vision" / "__init__.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
    big_vision.register()
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "big_vision" and n not in before]:
        del sys.modules[name]


def model_module():
    return importlib.import_module("big_vision.models.proj.maskclippp.model")


def flat_names(tree, prefix=""):
    """Names joined by "/", in sorted order."""
    found = {}
    for key in sorted(tree):
        value = tree[key]
        found |= flat_names(value, prefix + key + "/") if isinstance(value, dict) else {
            prefix + key: value}
    return found


def predictor(model):
    """What the trainer hands to every evaluator."""
    return lambda train_state, batch: model.apply(
        {"params": train_state["params"]}, batch.get("image"), batch.get("labels"))


def make_evaluator(cfg, predict_fn, devices):
    """From an entry of `config.evals`."""
    cfg = dict(cfg)
    module = importlib.import_module(f"big_vision.evaluators.{cfg.pop('type')}")
    assert module.API == "jit"
    cfg.pop("log_steps")
    return module.Evaluator(predict_fn, devices=devices, **cfg)


def test_without_big_vision_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="big_vision is not on PYTHONPATH; clone"):
        big_vision.register()


def test_a_published_file_gives_the_stored_embeddings(registered):
    module, inputs, outputs = model_module(), *(
        np.load(STORED / f"{x}.npz") for x in ("inputs", "outputs"))
    cfg = dict(variant=SIGLIP)
    model = module.Model(**cfg)
    shapes = jax.eval_shape(lambda rng: model.init(rng, None, None)["params"], jax.random.key(0))
    first = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    params = module.load(first, str(STORED / "ckpt.npz"), cfg, dont_load=["text/head/.*"])
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    assert not params["text"]["head"]["bias"].any()
    with pytest.raises(ValueError, match="does not hold image/mask_logit_scale; give random"):
        module.load(None, str(STORED / "ckpt.npz"), cfg)
    params = module.load(first, str(STORED / "ckpt.npz"), cfg)
    image = (inputs["image_uint8"] / 127.5 - 1).astype(np.float32)
    zimg, ztxt, out = jax.jit(lambda p: model.apply({"params": p}, image, inputs["text"]))(params)
    np.testing.assert_allclose(zimg, outputs["zimg"], atol=1e-5)
    np.testing.assert_allclose(ztxt, outputs["ztxt"], atol=1e-5)
    np.testing.assert_allclose(np.asarray(zimg) @ ztxt.T * out["t"] + out["b"],
                               outputs["sim/logits"], rtol=2e-5, atol=2e-5)
    near = dict(rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(out["img/logits"], outputs["img/logits"], **near)
    np.testing.assert_allclose(out["txt/logits"], outputs["txt/logits"], **near)
    np.testing.assert_allclose(out["txt/pre_logits"], outputs["txt/transformed"][:, -1], **near)
    head = params["image"]["head"]
    np.testing.assert_allclose(out["img/pre_logits"] @ head["kernel"] + head["bias"],
                               outputs["img/logits"], **near)
    np.testing.assert_array_equal(out["img/normalized"], zimg)
    np.testing.assert_allclose(out["txt/norm"] * ztxt, out["txt/logits"], rtol=1e-5)
    only_text = lambda p: model.apply({"params": p}, None, inputs["text"])
    assert jax.eval_shape(only_text, params)[0] is None


def test_a_published_name_is_enough():
    model = big_vision.big_vision_model.Model(variant="SigLIP2 B/16 256")
    assert model.config.text.vocab_size == 256_000
    with pytest.raises(ValueError, match="no published model 'SigLIP3'"):
        big_vision.big_vision_model.Model(variant="SigLIP3")


@pytest.mark.parametrize("model", [SIGLIP, EVA], ids=["siglip", "eva"])
def test_own_sizes_can_be_written_with_the_configuration(model):
    config = ml_collections.ConfigDict(dict(model=dict(variant=big_vision.sizes(model))))
    config.evals = dict(masks=dict(variant=config.model.variant))
    assert big_vision.big_vision_model.Model(**config.model).config == model
    written = json.loads(config.to_json())  # what big_vision keeps in the run's folder
    for variant in (written["model"]["variant"], config.evals.masks.to_dict()["variant"]):
        assert big_vision.big_vision_model.config_of(variant) == model
    with pytest.raises(ValueError, match="a mapping of width; make one by big_vision.sizes"):
        big_vision.big_vision_model.config_of(dict(width=3))


@pytest.mark.parametrize("remat, ours", [
    ("none", "none"), ("dots", "dots"), ("nothing_saveable", "full"),
    ("dots_with_no_batch_dims_saveable", "dots"), ("everything_saveable", "none")])
def test_what_is_recomputed_has_the_names_of_big_vision_too(remat, ours):
    model = big_vision.big_vision_model.Model(variant=SIGLIP, remat=remat)
    tower = model._build(model.shapes).image
    assert tower.remat == ours


def test_an_unknown_name_of_what_is_recomputed_is_refused():
    with pytest.raises(ValueError, match="remat is 'ful'; it can be none, full, dots, nothing_sav"):
        big_vision.big_vision_model.Model(variant=SIGLIP, remat="ful")


def random_values(model):
    """As `model.init` gives, without compiling it."""
    rng = np.random.default_rng(0)
    return big_vision.big_vision_model.named(jax.tree.map(
        lambda s: rng.normal(scale=0.1, size=s.shape).astype(np.float32), model.shapes))


@pytest.fixture(scope="module")
def both():
    """First values, and those of the stored file, by name."""
    first = random_values(big_vision.big_vision_model.Model(variant=SIGLIP))
    return first, flat_names(big_vision.big_vision_model.load(
        first, str(STORED / "ckpt.npz"), dict(variant=SIGLIP)))


FILE = str(STORED / "ckpt.npz")
FORMS = {  # what is given to `load`, and the names that then are the file's
    "a part": (f"{FILE}:img", {}, "image/.*"),
    "parts": (dict(img=f"{FILE}:img", t=f"{FILE}:t"), {}, "image/.*|logit_scale"),
    "long names": (dict(text=FILE, bias=f"{FILE}:b"), {}, "text/.*|logit_bias"),
    "kept by our names": (FILE, dict(img_load_kw=dict(dont_load=["pool/.*"])),
                          "image/(?!pool).*|text/.*|logit.*"),
    "kept by theirs": (FILE, dict(img_load_kw=dict(dont_load="MAPHead_0/.*")),
                       "image/(?!pool).*|text/.*|logit.*"),
    "kept of texts": (dict(img=FILE, txt=FILE), dict(
        txt_load_kw=dict(dont_load=["head/(kernel|bias)"])), "image/.*|text/(?!head).*")}


@pytest.mark.parametrize("file, settings, loaded", FORMS.values(), ids=FORMS)
def test_files_may_be_given_as_to_two_towers(both, file, settings, loaded):
    first, stored = flat_names(both[0]), both[1]
    found = flat_names(big_vision.big_vision_model.load(
        both[0], file, ml_collections.ConfigDict(dict(variant=big_vision.sizes(SIGLIP))),
        **settings))
    assert set(found) == set(first)
    for name, array in found.items():
        wanted = stored if re.fullmatch(loaded, name) else first
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def test_a_vision_transformer_alone_fills_the_image_tower(both, tmp_path):
    alone = {k.removeprefix("params/").removeprefix("img/"): x for k, x in np.load(FILE).items()
             if "img/" in k}
    np.savez(tmp_path / "vit.npz", **alone)
    found = flat_names(big_vision.big_vision_model.load(
        both[0], dict(img=str(tmp_path / "vit.npz")), dict(variant=SIGLIP)))
    np.testing.assert_array_equal(found["image/pool/probe"], both[1]["image/pool/probe"])
    np.testing.assert_array_equal(found["text/norm/scale"], flat_names(both[0])["text/norm/scale"])


@pytest.mark.parametrize("file, settings, says", [
    (dict(audio="x.npz"), {}, "the part 'audio'; it can have img, txt, t and b"),
    (FILE, dict(img_load_kw=dict(stride=2)), "model_load has stride; a tower's loading takes dont"),
    (f"{FILE}:txt", {}, None)])
def test_parts_that_no_model_has_are_refused(both, file, settings, says):
    load = big_vision.big_vision_model.load
    if says is None:  # without first values, a part is not enough
        with pytest.raises(ValueError, match="does not hold image/blocks/.* more; give random"):
            load(None, file, dict(variant=SIGLIP))
        return
    with pytest.raises(ValueError, match=says):
        load(both[0], file, dict(variant=SIGLIP), **settings)


def test_a_model_without_a_constant_of_logits_gives_0_and_what_lies_before_its_heads():
    shallow = dataclasses.replace(EVA, image=dataclasses.replace(EVA.image, depth=1))
    model = big_vision.big_vision_model.Model(variant=shallow)
    params = random_values(model)
    ids = np.zeros((2, FULL.context_length), np.int32)
    run = jax.jit(lambda p: model.apply({"params": p}, np.zeros((1, 32, 32, 3), np.float32), ids))
    zimg, ztxt, out = run(params)
    np.testing.assert_array_equal(out["b"], [0.0])
    head, projection = params["image"]["head"], params["text"]["projection"]
    np.testing.assert_allclose(out["img/pre_logits"] @ head["kernel"] + head["bias"],
                               out["img/logits"], atol=1e-5)
    np.testing.assert_allclose(out["txt/pre_logits"] @ projection, out["txt/logits"], atol=1e-5)


def test_a_trainer_learns_what_its_patterns_say(registered, rng):
    """Sigmoid loss of pictures and texts; all but the pooling head is frozen."""
    model = model_module().Model(variant=SIGLIP)
    image = rng.uniform(-1, 1, (4, 24, 24, 3)).astype(np.float32)
    ids = rng.integers(2, 64, (4, 6)).astype(np.int32)
    init = jax.jit(lambda rng: model.init(rng, image, ids)["params"])
    params = init(jax.random.key(0))
    assert not np.array_equal(params["text"]["token_embedding"],
                              init(jax.random.key(1))["text"]["token_embedding"])
    names = flat_names(params)
    assert "image/blocks/0/attention/query/kernel" in names and "logit_bias" in names
    learns = jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(p.key for p in path).startswith("image/pool/"), params)

    def loss(params):
        zimg, ztxt, out = model.apply({"params": params}, image, ids, train=True,
                                      rngs={"dropout": jax.random.key(1)})
        sign = 2 * jnp.eye(4) - 1
        return -jax.nn.log_sigmoid(sign * (zimg @ ztxt.T * out["t"] + out["b"])).sum(-1).mean()

    @jax.jit
    def step(params):
        value, slope = jax.value_and_grad(loss)(params)
        slope = jax.tree.map(lambda g, on: g if on else jnp.zeros_like(g), slope, learns)
        return optax.apply_updates(params, jax.tree.map(lambda g: -0.02 * g, slope)), value

    after, values = params, []
    for _ in range(3):
        after, value = step(after)
        values.append(float(value))
    assert values[2] < values[1] < values[0]
    changed = {n for n, x in flat_names(after).items() if not np.array_equal(x, names[n])}
    assert changed and all(n.startswith("image/pool/") for n in changed)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    vocabulary = Vocabulary.shipped("scenes")
    names = [c[0] for c in vocabulary.classes]
    ids = np.array([names.index(c) if c in names else 255 for c in scenes.CLASSES])

    def draw(number):
        scene = scenes.draw_scene(np.random.default_rng(number), num_things=(1, 2), classes=names)
        return [records.semantic_record(images.encode_png(scene.image), f"s{number}",
                                        ids[scene.label], vocabulary.is_thing)]

    build.build(folder, "scenes", vocabulary, "semantic",
                build.Reading({"validation": list(range(11))}, draw), description="test")
    return folder


def test_the_evaluator_counts_what_our_own_evaluation_counts(registered, data_dir):
    model = model_module().Model(variant=EVA)
    params = jax.jit(lambda: model.init(jax.random.key(0))["params"])()
    names = flat_names(params)
    evaluator = make_evaluator(
        dict(type="proj.maskclippp.mask_accuracy", log_steps=5, batch_size=3, variant=EVA,
             data_dir=data_dir, dataset="scenes", split="validation",
             seen_vocabulary="scenes_seen", loader_min=None, short_side=32, mask_short_side=None),
        predictor(model), jax.devices())
    state = {"params": jax.device_put(params, evaluator._whole), "opt": None}
    with jax.transfer_guard("disallow"):
        found = dict(evaluator.run(state))

    source = records.open_source(data_dir, "scenes", "validation")
    tree = parameters.unflatten(names)
    settings = type("Settings", (), dict(templates=TEMPLATES_1, sentencepiece=""))
    words = inference.embed_vocabulary(settings, EVA, tree, source.vocabulary)
    name_masks, right, masks = inference.make_namer(EVA, semantic=False), 0, 0
    for batch in pipeline.eval_batches(source.records, batch_size=8, loader_min=None,
                                       loader_max=None):
        sizes = inference.sizes_of(batch, 32, None)
        arrays = {k: batch[k] for k in ("image", "segments", "labels")}
        classes = np.asarray(name_masks(
            tree, arrays, sizes, words, inference.canvas_of(sizes.network, 8)).classes)
        used = batch["labels"] >= 0
        right, masks = right + (classes == batch["labels"])[used].sum(), masks + used.sum()
    assert found["masks"] == masks and found["micro"] == pytest.approx(100 * right / masks)
    assert set(found) >= {"mMaskAcc", "seen", "unseen", "things", "stuff"}
    assert found == dict(evaluator.run(state))  # nothing is left from the run before
    with pytest.raises(ValueError, match="templates has 'a photo'; it is a list of texts, each"):
        make_evaluator(
            dict(type="proj.maskclippp.mask_accuracy", log_steps=5, batch_size=3, variant=EVA,
                 data_dir=data_dir, dataset="scenes", split="validation", templates=["a photo"]),
            predictor(model), jax.devices())
