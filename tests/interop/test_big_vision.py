"""Our modules as big_vision uses them; a stand-in has the parts of its interface that matter.

The stand-in looks modules up by name, flattens names of parameters, and calls models and evaluators
as big_vision's trainer of SigLIP does.
"""

import importlib
import pathlib
import sys

import jax
import jax.numpy as jnp
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
def stand_in(tmp_path, monkeypatch):
    """An empty package of big_vision's name on the path, which knows our modules."""
    (tmp_path / "big_vision").mkdir()
    (tmp_path / "big_vision" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    big_vision.register()
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "big_vision"]:
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


def test_without_big_vision_it_says_what_to_do():
    with pytest.raises(ImportError, match="big_vision is not on PYTHONPATH; clone"):
        big_vision.register()


def test_a_published_file_gives_the_stored_embeddings(stand_in):
    module, inputs, outputs = model_module(), *(
        np.load(STORED / f"{x}.npz") for x in ("inputs", "outputs"))
    cfg = dict(variant=SIGLIP)
    model = module.Model(**cfg)
    shapes = jax.eval_shape(lambda rng: model.init(rng, None, None)["params"], jax.random.key(0))
    first = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    params = module.load(first, str(STORED / "ckpt.npz"), cfg, dont_load=["text/head/.*"])
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    assert not params["text"]["head"]["bias"].any()
    with pytest.raises(ValueError, match="does not hold image/mask_logit_scale"):
        module.load(None, str(STORED / "ckpt.npz"), cfg)
    params = module.load(first, str(STORED / "ckpt.npz"), cfg)
    image = (inputs["image_uint8"] / 127.5 - 1).astype(np.float32)
    zimg, ztxt, out = jax.jit(lambda p: model.apply({"params": p}, image, inputs["text"]))(params)
    np.testing.assert_allclose(zimg, outputs["zimg"], atol=1e-5)
    np.testing.assert_allclose(ztxt, outputs["ztxt"], atol=1e-5)
    np.testing.assert_allclose(np.asarray(zimg) @ ztxt.T * out["t"] + out["b"],
                               outputs["sim/logits"], rtol=2e-5, atol=2e-5)
    only_text = lambda p: model.apply({"params": p}, None, inputs["text"])
    assert jax.eval_shape(only_text, params)[0] is None


def test_a_published_name_is_enough():
    model = big_vision.big_vision_model.Model(variant="SigLIP2 B/16 256")
    assert model.config.text.vocab_size == 256_000
    with pytest.raises(ValueError, match="no published model 'SigLIP3'"):
        big_vision.big_vision_model.Model(variant="SigLIP3")


def test_a_trainer_learns_what_its_patterns_say(stand_in, rng):
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


def test_the_evaluator_counts_what_our_own_evaluation_counts(stand_in, data_dir):
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
