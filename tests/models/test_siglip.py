"""SigLIP: masks in the pooling head, by stored results and laws; the text tower; the tokenizer."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.configs import quickstart
from maskclippp_jax.data import pipeline
from maskclippp_jax.data.tokenizer import SentencePieceTokenizer
from maskclippp_jax.models import layers, maskclippp, siglip, similarity
from maskclippp_jax.naming import inference, loading
from maskclippp_jax.runtime import sharding
from maskclippp_jax.training import optim, train_step
from maskclippp_jax.vocabulary import Vocabulary
from maskclippp_jax.weights import big_vision, rules

pytestmark = pytest.mark.usefixtures("explicit_ranks")

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "siglip"
PIECES = str(GOLDEN / "tokenize" / "gemmalike.model")
IMAGE = siglip.SigLIPConfig(image_size=40, patch_size=8, width=48, depth=1, num_heads=4,
                            mlp_width=80, embed_dim=48)
TEXT = siglip.SigLIPTextConfig(context_length=8, vocab_size=520, width=16, depth=2, num_heads=2,
                               mlp_width=24, embed_dim=12, padding=0)


def near(got, want, within=2e-5):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert (np.abs(got - want) <= within * np.maximum(np.abs(want), 1)).all()


def make_pool(threshold=None):
    config = dataclasses.replace(IMAGE, mask_threshold=threshold)
    return parameters.abstract(lambda: siglip.AttentionPool(
        config, heads="together", rngs=parameters.Keys(0)))


@pytest.fixture(scope="module")
def stored():
    return dict(np.load(GOLDEN / "pool.npz"))


@pytest.fixture(scope="module")
def pool(stored):
    """(tokens, masks, log scale, threshold) -> [B, 1+N, D] with the stored weights."""
    model = maskclippp.MaskCLIPppConfig.of_siglip(IMAGE, TEXT)
    params, _ = rules.load(
        {k: x for k, x in stored.items() if k.startswith("img/")}, big_vision.clip_rules(model),
        {"image": {"pool": make_pool()[1]}})

    def run(tokens, masks, log_scale, threshold=None, valid=None):
        build, _ = make_pool(threshold)
        valid = jnp.ones((len(tokens), tokens.shape[1]), bool) if valid is None else valid
        grid = layers.Grid((1, tokens.shape[1]), None, valid, masks)
        return build(params["image"]["pool"])(tokens, grid, jnp.exp(log_scale))

    run.params, run.jit = params["image"]["pool"], jax.jit(run, static_argnums=3)
    return run


def test_masks_are_pooled_as_stored(pool, stored):
    tokens, masks, scale = (stored[k] for k in ("encoded", "masks", "s"))
    run = lambda *a: np.asarray(pool.jit(tokens, masks, scale, *a))
    got = run()
    near(got[:, 0], stored["image"])
    near(got[:, 1:], stored["emb"])
    near(got[:, [1, -1]], np.repeat(stored["image"][:, None], 2, 1))  # of ones, and empty
    near(run(0.0)[:, 1:], stored["emb_thresh0"])
    slope = jax.jit(jax.grad(lambda s: (pool(tokens, masks, s)[:, 1:] * stored["cotangent"]).sum()))
    near(slope(scale), stored["grad_s"], 2e-6)


def test_a_binary_mask_gives_what_the_reference_gives_it(pool, stored):
    """All but the empty one, for which big_vision takes a plain mean; whatever the scale is."""
    masks = stored["hard_mask"].astype(np.float32)
    for scale in (-5.0, 3.0):
        got = pool.jit(stored["encoded"], masks, np.full(4, scale, np.float32))
        near(np.asarray(got)[:, 1:-1], stored["emb_hard_big_vision"][:, :-1])


def test_one_score_for_all_masks_equals_attention_of_one_query_a_mask(pool, rng):
    """Values and gradients, beside padding that holds noise."""
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    tokens, scale, probe = draw(2, 10, 48), draw(4), draw(2, 5, 48)
    valid = np.arange(10)[None] < np.array([[10], [7]])
    masks = np.where(valid[:, None], rng.random((2, 5, 10)), 0).astype(np.float32)
    masks[0, 2] = 0

    def naive(tokens, masks, scale):
        build, _ = make_pool()
        module = build(pool.params)
        heads = lambda x: layers.split_heads(x, 4)
        query = jnp.broadcast_to(module.query(module.probe[...])[None, None], (2, 5, 48))
        mixed = layers.attend(
            heads(query), heads(module.key(tokens)), heads(module.value(tokens)),
            allowed=valid[:, None], masks=masks, inside=layers.inside_masks(masks, None),
            mask_scale=jnp.exp(scale), heads="together")
        pooled = module.out(layers.merge_heads(mixed))
        return pooled + module.mlp(module.norm(pooled))

    shared = lambda *a: pool(*a, valid=valid)[:, 1:]
    both = []
    for function in (naive, shared):
        both.append(jax.jit(jax.value_and_grad(
            lambda *a: (lambda y: ((y * probe).sum(), y))(function(*a)), argnums=(0, 1, 2),
            has_aux=True))(tokens, masks, scale))
    ((_, want), want_slopes), ((_, got), slopes) = both
    near(got, want)
    for slope, wanted in zip(slopes, want_slopes):
        near(slope, wanted, 1e-4)


def test_what_masks_may_and_may_not_change(pool, stored, rng):
    tokens, soft = stored["encoded"], rng.random((2, 3, 25)).astype(np.float32)
    scale = np.zeros(4, np.float32)
    plain = pool.jit(tokens, soft, scale)

    # Whole and empty masks are the image whatever the scale, and give it no gradient.
    whole = np.stack([np.ones((2, 25)), np.zeros((2, 25)), np.ones((2, 25))], 1).astype(np.float32)
    for size in (-30.0, 5.0):
        got = np.asarray(pool.jit(tokens, whole, np.full_like(scale, size)))
        near(got, np.repeat(got[:, :1], 4, 1), 5e-6)
    near(jax.jit(jax.grad(lambda s: pool(tokens, whole, s).sum()))(scale), np.zeros(4))

    # Equal masks are equal to the last bit, and one among others is what it is alone.
    alone = np.asarray(pool.jit(tokens, np.repeat(soft[:, 1:2], 3, 1), scale))
    np.testing.assert_array_equal(alone[:, 1:], np.repeat(alone[:, 1:2], 3, 1))
    near(alone[:, 1], plain[:, 2], 2e-6)

    # Order of masks and of tokens; values at or below the threshold.
    order, moved = [2, 0, 1], rng.permutation(25)
    got = pool.jit(tokens[:, moved], soft[:, order][..., moved], scale)
    near(np.asarray(got)[:, 1:], np.asarray(plain)[:, 1:][:, order], 5e-6)
    low = np.where(soft <= soft.max(-1, keepdims=True) / 2, 0, soft)
    np.testing.assert_array_equal(pool.jit(tokens, low, scale), plain)

    # A mask of one patch is that patch's own value; a large scale singles out the highest value,
    # without overflow.
    build, _ = make_pool()
    value = np.asarray(jax.jit(lambda p, x: build(p).value_path(x))(pool.params, tokens))
    best = soft.argmax(-1)
    wanted = np.take_along_axis(value, best[..., None], 1)
    one = (np.arange(25) == best[..., None]).astype(np.float32)
    near(np.asarray(pool.jit(tokens, one, scale))[:, 1:], wanted, 5e-6)
    near(np.asarray(pool.jit(tokens, soft * 100, np.full_like(scale, 5.0)))[:, 1:], wanted)


@pytest.fixture(scope="module")
def words():
    build, shapes = parameters.abstract(
        lambda: TEXT.make(heads="together", rngs=parameters.Keys(0)))
    rng = np.random.default_rng(2)
    return build, jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.5, jnp.float32), shapes)


def test_every_token_of_a_prompt_sees_all_others_and_padding(words, rng):
    """Against a plain numpy forward pass of two blocks."""
    build, params = words
    ids = rng.integers(2, 520, (3, 8)).astype(np.int32)
    ids[0, 3:] = (1, 0, 0, 0, 0)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    dense = lambda x, w: x @ w["kernel"] + w["bias"]
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def norm(x, w):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["bias"]

    def attend(x, w):
        q, k, v = (dense(x, w[n]).reshape(3, 8, 2, 8) for n in ("query", "key", "value"))
        logits = np.einsum("nqak,nsak->naqs", q, k) / np.sqrt(8)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return dense(np.einsum("naqs,nsak->nqak", weights, v).reshape(3, 8, 16), w["out"])

    x = p["token_embedding"][ids] + p["position_table"]
    for block in p["blocks"].values():
        x = x + attend(norm(x, block["norm1"]), block["attention"])
        x = x + dense(gelu(dense(norm(x, block["norm2"]), block["mlp"]["fc1"])),
                      block["mlp"]["fc2"])
    want = dense(norm(x[:, -1], p["norm"]), p["head"])
    near(jax.jit(lambda p, i: build(p)(i))(params, ids), want)


def test_a_prompt_of_another_length_is_refused(words):
    build, params = words
    with pytest.raises(ValueError, match="prompts have 7 tokens, this text tower takes 8"):
        jax.eval_shape(lambda p: build(p)(jnp.zeros((1, 7), jnp.int32)), params)


def test_an_unknown_resize_of_the_table_is_named():
    with pytest.raises(ValueError, match="'cubic'; it can be linear, bicubic, antialiased"):
        dataclasses.replace(IMAGE, position_resize="cubic").make(rngs=parameters.Keys(0))


def test_the_scale_is_not_cut_and_the_bias_is_added(rng):
    config = maskclippp.MaskCLIPppConfig.of_siglip(IMAGE, dataclasses.replace(TEXT, embed_dim=48))
    embeddings = jnp.asarray(rng.normal(size=(1, 2, 48)), jnp.float32)
    names = similarity.unit(jnp.asarray(rng.normal(size=(3, 1, 48)), jnp.float32))
    features = layers.ImageFeatures(embeddings, None, None, None)

    def logits(config):
        build, shapes = parameters.abstract(
            lambda: maskclippp.MaskCLIPpp(config, rngs=parameters.Keys(0)))
        params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
        params["logit_scale"] = jnp.log(118.2)
        if config.has_logit_bias:
            params["logit_bias"] = jnp.float32(-12.7)
        return jax.jit(lambda p: build(p).classify(features, names))(params)

    cosine = np.asarray(similarity.unit(embeddings))[0] @ np.asarray(names)[:, 0].T
    near(logits(config)[0], 118.2 * cosine - 12.7)
    near(logits(dataclasses.replace(config, max_logit_scale=100.0))[0], 100 * cosine - 12.7)
    near(logits(dataclasses.replace(config, has_logit_bias=False))[0], 118.2 * cosine)


def test_tuning_attention_means_the_last_blocks_and_the_pooling_head():
    model = dataclasses.replace(maskclippp.MaskCLIPppConfig.siglip2_b16_256(1),
                                text=TEXT)
    _, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))
    tuned = lambda image, text: {p for p in parameters.flatten(shapes) if optim.trainable_predicate(
        image, text, model)(p) and not p.startswith("similarity/")}
    kernels = lambda path: {f"{path}/{x}/kernel" for x in ("query", "key", "value")}
    assert tuned("attention", "none") == {
        "image/position_table", "image/mask_logit_scale", *kernels("image/pool"),
        *(x for i in (9, 10, 11) for x in kernels(f"image/blocks/{i}/attention"))}
    pool = tuned("pool", "none")
    assert {"image/pool/probe", "image/pool/mlp/fc1/bias", "image/mask_logit_scale"} < pool
    assert not any("blocks" in p for p in pool)
    assert tuned("none", "attention") == {
        "text/position_table", *(x for i in (0, 1) for x in kernels(f"text/blocks/{i}/attention"))}
    assert tuned("none", "proj") == {"text/norm/scale", "text/norm/bias", "text/head/kernel",
                                     "text/head/bias", "logit_scale", "logit_bias"}


def test_a_tokenizer_cuts_pads_and_knows_its_file(tmp_path):
    first = SentencePieceTokenizer(PIECES, 8, 1)(["a photo of a CAT", "cat " * 20])
    assert list(first[0, 5:]) == [1, 1, 1] and first[1, -1] == 1 and (first[1, :-1] > 1).all()
    np.testing.assert_array_equal(first[0], SentencePieceTokenizer(PIECES, 8, 1)(
        ["a photo of a cat"])[0])
    model = maskclippp.MaskCLIPppConfig.of_siglip(IMAGE, TEXT)
    names = Vocabulary.from_string("Traffic_light;dog,puppy")
    ids = loading.tokenize(model, names, ("a photo of a {}.", "{}"), PIECES)
    assert ids.shape == (3, 2, 8) == loading.prompts_shape(model, names, ("a", "b"))
    np.testing.assert_array_equal(  # canonical: neither capitals, nor "_", nor the full stop
        ids[0, 0], SentencePieceTokenizer(PIECES, 8, 0)(["a photo of a traffic light"])[0])
    with pytest.raises(ValueError, match="needs its vocabulary.*--config.sentencepiece=FILE"):
        loading.tokenize(model, names, ("{}",))
    with pytest.raises(FileNotFoundError, match="no sentencepiece model x.model.*gemma_tokenizer"):
        loading.tokenize(model, names, ("{}",), "x.model")
    (tmp_path / "x.model").write_text("no model")
    with pytest.raises(ValueError, match="x.model is no sentencepiece model"):
        loading.tokenize(model, names, ("{}",), str(tmp_path / "x.model"))
    larger = dataclasses.replace(model, text=dataclasses.replace(TEXT, vocab_size=256_000))
    with pytest.raises(ValueError, match="has 520 pieces, the text tower 256000"):
        loading.tokenize(larger, names, ("{}",), PIECES)


def test_sizes_of_naflex_keep_the_shape_and_the_number_of_patches():
    sizes = np.array([(100, 400), (37, 37), (4, 4000)], np.int32)
    found = inference.naflex_sizes(sizes, 16, 256)
    assert (found % 16 == 0).all() and ((found // 16).prod(-1) <= 256).all()
    assert [tuple(x) for x in found[:2] // 16] == [(8, 32), (16, 16)]
    assert found[2, 0] == 16
    batch = dict(image_size=sizes, segments_size=sizes)
    wanted = inference.sizes_of(batch, 100, None, max_tokens=256, patch=16)
    np.testing.assert_array_equal(wanted.network, found)
    np.testing.assert_array_equal(wanted.masks, sizes)


def test_a_step_of_training_moves_what_is_tuned_and_nothing_else(rng):
    """Both towers, blocks recomputed; the configuration survives being stored."""
    config = quickstart.get_config().unlock()
    config.model = maskclippp.MaskCLIPppConfig.of_siglip(
        siglip.SigLIPConfig(32, 8, 16, 1, 2, 24, 12, has_head=True),
        dataclasses.replace(TEXT, depth=1),
        similarity.LinearSimilarityConfig(1, 16))
    config.tune = dict(image="attention", text="attention")
    config.remat, config.sentencepiece = "full", PIECES
    assert configuration.from_json(configuration.to_json(config)).model == config.model
    names = Vocabulary.from_string("cat;dog,puppy")
    ids = loading.tokenize(config.model, names, config.templates, config.sentencepiece)
    build, shapes = parameters.abstract(loading.model_maker(config, platform="tpu"))
    is_trainable = optim.trainable_predicate("attention", "attention", config.model)
    params = parameters.unflatten({path: rng.normal(size=x.shape).astype(np.float32) / 3
                                   for path, x in parameters.flatten(shapes).items()})
    trainable, frozen = parameters.partition(params, is_trainable)
    optimizer = optim.make_optimizer(config.optimizer, 10, trainable, config.model)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1],
                         axis_types=(jax.sharding.AxisType.Auto,) * 2)
    batch = dict(image=rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8),
                 image_size=np.array([[32, 32], [24, 30]], np.int32),
                 segments=rng.integers(0, 3, (2, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint16),
                 labels=np.array([[0, 1, -1], [1, 0, -1]], np.int32))
    with jax.set_mesh(mesh):
        state = dict(step=np.zeros((), np.int32), trainable=trainable, frozen=frozen,
                     opt=optimizer.init(trainable))
        shardings = sharding.state_shardings(state, mesh)
        step = train_step.make_step(config, build, optimizer, shardings, mesh)
        new, metrics = jax.device_get(step(
            jax.device_put(state, shardings),
            pipeline.to_device(batch, sharding.batch_sharding(mesh)), np.array([0, 1]), ids))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    before, after = parameters.flatten(params), parameters.flatten(
        parameters.combine(new["trainable"], new["frozen"]))
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    learns = {path for path in before if is_trainable(path)}
    assert moved <= learns
    assert learns - moved <= {"similarity/corr_in/bias", "similarity/corr_out/bias"}  # constants
