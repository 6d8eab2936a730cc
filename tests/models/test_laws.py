"""The identities that make the method cheap, each against its naive form: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskclippp_jax import params as parameters
from maskclippp_jax.models import eva_vit, layers, maskclippp, resample, similarity, text
from maskclippp_jax.runtime import sharding
from maskclippp_jax.training import losses, optim

pytestmark = pytest.mark.usefixtures("explicit_ranks")

IMAGE = eva_vit.EvaViTConfig(image_size=32, patch_size=8, width=32, depth=3, num_heads=2,
                             mlp_width=48, embed_dim=16, mask_layers=2)
TEXT = text.TextConfig(context_length=16, vocab_size=50, width=32, depth=2, num_heads=2,
                       embed_dim=16)


def near(got, want, relative=1e-5):
    """Largest difference in shares of the largest magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= relative * max(np.abs(want).max(), 1e-6)


def near_trees(got, want, relative=1e-5):
    got, want = parameters.flatten(got), parameters.flatten(want)
    assert set(got) == set(want)
    for path in want:
        near(got[path], want[path], relative)


@pytest.fixture(scope="module")
def tower():
    make = lambda: eva_vit.EvaViT(IMAGE, rngs=parameters.Keys(3))
    build, _ = parameters.abstract(make)
    params = parameters.initialize(make)
    # Random everywhere, so that no zero bias or unit scale hides a mistake.
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), params)
    params["mask_logit_scale"] = params["mask_logit_scale"] + 5.0
    return build, params


def naive_attention(q, k, v, bias):
    """Softmax attention [B, T, A, K] with a dense bias [B, A, T, S]."""
    logits = jnp.einsum("btak,bsak->bats", q, k) / np.sqrt(q.shape[-1]) + bias
    return jnp.einsum("bats,bsak->btak", jax.nn.softmax(logits, -1), v)


@pytest.mark.parametrize("heads", ["apart", "together"])
def test_split_attention_equals_one_attention_with_a_dense_bias(rng, heads):
    batch, masks, patches, count, width = 2, 5, 12, 2, 8
    draw = lambda n: jnp.asarray(rng.normal(size=(batch, n, count, width)), jnp.float32)
    q, k, v = draw(masks + 1 + patches), draw(masks + 1 + patches), draw(masks + 1 + patches)
    soft = rng.random((batch, masks, patches)).astype(np.float32)
    soft[0, 2] = 0  # an empty mask
    soft = jnp.asarray(soft)
    log_scale = jnp.asarray(rng.normal(size=count), jnp.float32)
    inside = layers.inside_masks(soft, None)

    def naive(q, k, v, log_scale, soft):
        scaled = soft[:, None] * jnp.exp(log_scale)[None, :, None, None]  # [B, A, N, L]
        to_patches = jnp.where(inside[:, None], scaled, -100.0)
        bias = jnp.full((batch, count, q.shape[1], q.shape[1]), -1e30)
        bias = bias.at[:, :, :masks, masks + 1:].set(to_patches)
        bias = bias.at[:, :, masks:, masks:].set(0.0)
        return naive_attention(q, k, v, bias)

    def split(q, k, v, log_scale, soft):
        image = layers.attend(q[:, masks:], k[:, masks:], v[:, masks:], heads=heads)
        pooled = layers.attend(q[:, :masks], k[:, masks + 1:], v[:, masks + 1:], masks=soft,
                               inside=inside, mask_scale=jnp.exp(log_scale), heads=heads)
        return jnp.concatenate([pooled, image], 1)

    probe = draw(masks + 1 + patches)
    compare(split, naive, probe, q, k, v, log_scale, soft)


@pytest.mark.parametrize("heads", ["apart", "together"])
@pytest.mark.parametrize("shape", [(2, 1, 7), (1, 5, 7), (5, 7)])
def test_hidden_keys_take_no_part_in_attention(rng, heads, shape):
    """A row that sees no key at all is the mean of all values, as in a plain softmax."""
    draw = lambda n: jnp.asarray(rng.normal(size=(2, n, 3, 4)), jnp.float32)
    allowed = rng.random(shape) < 0.6
    allowed[..., 0, :] = False
    seen = jnp.asarray(allowed if allowed.ndim == 2 else allowed[:, None])  # [..., T, S]

    def naive(q, k, v):
        logits = jnp.where(seen, jnp.einsum("btak,bsak->bats", q, k) / 2, -1e30)
        return jnp.einsum("bats,bsak->btak", jax.nn.softmax(logits, -1), v)

    attend = lambda *qkv: layers.attend(*qkv, allowed=jnp.asarray(allowed), heads=heads)
    compare(attend, naive, draw(5), draw(5), draw(7), draw(7))


def compare(got, want, probe, *arguments):
    """Values and gradients of two functions of arrays, or trees of them."""
    def values_and_gradients(f):
        def objective(*arguments):
            values = f(*arguments)
            return (values * probe).sum(), values

        (_, values), gradients = jax.jit(jax.value_and_grad(
            objective, argnums=tuple(range(len(arguments))), has_aux=True))(*arguments)
        return {"values": values, "gradients": dict(enumerate(gradients))}

    near_trees(values_and_gradients(got), values_and_gradients(want))


def run(tower, image, size, masks):
    build, params = tower
    embed = jax.jit(lambda p, *a: build(p)(*a, dense=True))
    return embed(params, jnp.asarray(image), jnp.asarray(size), jnp.asarray(masks))


def test_an_image_gives_the_same_alone_and_in_a_padded_mixed_batch(tower, rng):
    build, params = tower
    sizes = [(30, 44), (48, 20), (17, 17)]
    canvas, count = (56, 48), 3
    images = rng.integers(0, 256, (3, *canvas, 3)).astype(np.uint8)  # the padding holds noise
    segments = rng.integers(0, count + 1, (3, *canvas)).astype(np.uint16)
    for b, (h, w) in enumerate(sizes):
        segments[b, h:], segments[b, :, w:] = 0, 0
    probe = rng.normal(size=(3, count, IMAGE.embed_dim)).astype(np.float32)

    @jax.jit
    def embed_and_grad(params, images, sizes, segments, probe):
        def objective(params):
            grid_masks = resample.segments_to_grid(segments, 8, count)
            features = build(params)(images, sizes, grid_masks)
            return (features.mask_embeddings * probe).sum(), features

        gradient, features = jax.grad(objective, has_aux=True)(params)
        return features, gradient

    together, gradient = embed_and_grad(params, images, np.array(sizes), segments, probe)
    total = jax.tree.map(jnp.zeros_like, params)
    for b, (h, w) in enumerate(sizes):
        own = (-(-h // 8) * 8, -(-w // 8) * 8)
        one = (images[b:b + 1, :own[0], :own[1]], np.array([[h, w]]),
               segments[b:b + 1, :own[0], :own[1]])
        alone, its_gradient = embed_and_grad(params, *one, probe[b:b + 1])
        near(together.mask_embeddings[b], alone.mask_embeddings[0])
        near(together.image_embedding[b], alone.image_embedding[0])
        total = jax.tree.map(jnp.add, total, its_gradient)
    near_trees(gradient, total, 2e-5)


def test_image_features_are_the_same_with_and_without_masks(tower, rng):
    build, params = tower
    image = rng.integers(0, 256, (1, 32, 40, 3)).astype(np.uint8)
    size = jnp.array([[32, 40]])
    masks = jnp.asarray(rng.random((1, 4, 20)), jnp.float32)
    embed = jax.jit(lambda p, *a: build(p)(*a).image_embedding)
    near(embed(params, image, size, masks), embed(params, image, size))


def test_masks_can_be_permuted_and_padded(tower, rng):
    image = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    masks = rng.random((1, 4, 16)).astype(np.float32)
    order = [2, 0, 3, 1]
    plain = run(tower, image, [[32, 32]], masks).mask_embeddings
    near(run(tower, image, [[32, 32]], masks[:, order]).mask_embeddings, plain[:, jnp.array(order)])
    padded = np.concatenate([masks, np.zeros((1, 3, 16), np.float32)], 1)
    near(run(tower, image, [[32, 32]], padded).mask_embeddings[:, :4], plain)


def test_a_mask_tells_its_region_and_an_empty_one_the_whole_image(tower, rng):
    image = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    masks = np.zeros((1, 3, 16), np.float32)
    masks[0, 0], masks[0, 1, :4] = 1, 1
    got = run(tower, image, [[32, 32]], masks).mask_embeddings[0]
    assert np.abs(got[0] - got[1]).max() > 1e-2
    # Full and empty masks see the same patches; a full one only adds a constant to all logits.
    near(got[0], got[2], 1e-4)


def naive_bilinear(mask, size):
    """One mask [H, W] -> [h, w], pixel by pixel, half-pixel centres, no antialiasing."""
    taps = []
    for n, m in zip(mask.shape, size):
        s = np.maximum((np.arange(m) + 0.5) * n / m - 0.5, 0)
        f = np.floor(s).astype(int)
        taps.append((f, np.minimum(f + 1, n - 1), s - f))
    (r0, r1, a), (c0, c1, b) = taps
    a = a[:, None]
    top = mask[r0][:, c0] * (1 - b) + mask[r0][:, c1] * b
    low = mask[r1][:, c0] * (1 - b) + mask[r1][:, c1] * b
    return top * (1 - a) + low * a


def test_cells_in_parts_give_what_all_together_give(rng, monkeypatch):
    monkeypatch.setattr(layers, "IN_CACHE", 4 * 5)  # five cells of twelve at a time
    x, matrix = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 3, 2, 4), (4, 3)))

    def results(heads):
        mix = lambda x, m: layers.each_cell(lambda x: jnp.tanh(x @ m), x, 4, heads)
        return mix(x, matrix), jax.grad(lambda x, m: (mix(x, m)**3).sum(), (0, 1))(x, matrix)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 results("apart"), results("together"))


@pytest.mark.parametrize("patch", [8, 14, 7])
def test_four_pixels_per_patch_equal_the_resize_of_every_mask(rng, patch):
    segments = rng.integers(0, 6, (2, 3 * patch, 4 * patch)).astype(np.uint16)
    got = resample.segments_to_grid(jnp.asarray(segments), patch, 5)
    want = [[naive_bilinear((s == n + 1).astype(float), (3, 4)).ravel() for n in range(5)]
            for s in segments]
    near(got, want)
    near(resample.masks_to_grid(jnp.asarray(
        np.stack([[s == n + 1 for n in range(5)] for s in segments])), patch), want)


def test_chained_resizes_equal_one_after_the_other(rng):
    segments = rng.integers(0, 4, (37, 53))
    sizes = [(37, 53), (80, 114), (24, 34)]
    rows, columns = (resample.bilinear_taps(
        24 if i == 0 else 40, resample.Stage(sizes[1][i], sizes[2][i]),
        resample.Stage(sizes[0][i], sizes[1][i])) for i in range(2))
    got = resample.segments_to_masks(jnp.asarray(segments), rows, columns, 3)
    for n in range(3):
        mask = (segments == n + 1).astype(float)
        near(got[n, :, :34], naive_bilinear(naive_bilinear(mask, sizes[1]), sizes[2]))
    assert not np.asarray(got)[:, :, 34:].any()  # beyond the true size there is nothing


def test_the_folded_head_equals_its_two_layers(rng):
    config = similarity.LinearSimilarityConfig(num_templates=3, width=10)
    make = lambda: similarity.LinearSimilarity(config, rngs=parameters.Keys(0))
    build, _ = parameters.abstract(make)
    params = parameters.initialize(make)
    masks = jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32)
    names = similarity.unit(jnp.asarray(rng.normal(size=(6, 3, 8)), jnp.float32))

    def naive(params, masks, names):
        unit = masks / jnp.linalg.norm(masks, axis=-1, keepdims=True)
        correlation = 20.0 * jnp.einsum("bne,ste->bnst", unit, names)
        hidden = correlation @ params["corr_in"]["kernel"]
        hidden = hidden + params["corr_in"]["bias"].reshape(1, 1, 1, -1)
        return (hidden @ params["corr_out"]["kernel"])[..., 0] + params["corr_out"]["bias"][0]

    folded = lambda params, masks, names: build(params)(masks, names, 20.0)
    probe = jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)
    compare(folded, naive, probe, params, masks, names)


def test_the_head_without_parameters_is_the_mean_over_templates(rng):
    masks = jnp.asarray(rng.normal(size=(1, 2, 8)), jnp.float32)
    names = similarity.unit(jnp.asarray(rng.normal(size=(5, 3, 8)), jnp.float32))
    want = 7.0 * jnp.einsum("bne,ste->bnst", similarity.unit(masks), names).mean(-1)
    near(similarity.mean_similarity(masks, names, 7.0), want)


def test_a_zero_embedding_has_a_finite_gradient():
    gradient = jax.grad(lambda x: similarity.unit(x).sum())(jnp.zeros((2, 4)))
    assert np.isfinite(gradient).all()


def test_cutting_prompts_after_the_longest_changes_nothing(rng):
    make = lambda: text.TextTower(TEXT, rngs=parameters.Keys(0))
    build, _ = parameters.abstract(make)
    params = parameters.initialize(make)
    token_ids = np.zeros((4, 16), np.int32)
    for row, length in zip(token_ids, (3, 5, 4, 2)):
        row[:length] = rng.integers(1, 40, length)
        row[length] = 49
    cut = text.truncate_prompts(token_ids, multiple=4)
    assert cut.shape == (4, 8)
    probe = jnp.asarray(rng.normal(size=(4, 16)), jnp.float32)
    of = jax.jit(lambda p, ids: build(p)(jnp.asarray(ids)))
    near(of(params, cut), of(params, token_ids))
    near_trees(*(jax.grad(lambda p: (of(p, ids) * probe).sum())(params)
                 for ids in (cut, token_ids)), 2e-5)


def test_recomputing_the_text_blocks_changes_nothing(rng):
    ids = jnp.asarray(np.c_[rng.integers(1, 40, (3, 6)), np.full(3, 49)], jnp.int32)
    probe = jnp.asarray(rng.normal(size=(3, 16)), jnp.float32)
    gradients, recomputed = [], []
    for remat in ("none", "full"):
        make = lambda: text.TextTower(TEXT, remat=remat, rngs=parameters.Keys(0))
        build, _ = parameters.abstract(make)
        gradient = jax.value_and_grad(lambda p: (build(p)(ids) * probe).sum())
        params = parameters.initialize(make)
        gradients.append(jax.jit(gradient)(params))
        recomputed.append(str(jax.make_jaxpr(gradient)(params)).count("remat"))
    near_trees(*gradients, 1e-6)
    assert recomputed[0] < recomputed[1]


def test_the_best_name_of_a_class_equals_a_loop(rng):
    counts = [2, 1, 3]
    classes = np.repeat(np.arange(3), counts)
    logits = jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)
    padded = jnp.concatenate([logits, jnp.full((2, 4, 2), 99.0)], -1)
    got = jax.jit(maskclippp.class_logits)(padded, jnp.asarray(np.append(classes, [8, 8])))
    loop = lambda x: jnp.stack([x[..., classes == c].max(-1) for c in range(3)], -1)
    near(got[..., :3], jax.jit(loop)(logits))
    assert (np.asarray(got)[..., 3:] == -np.inf).all()
    probe = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    compare(lambda x: maskclippp.class_logits(x, jnp.asarray(classes))[..., :3], loop, probe,
            logits)


@pytest.mark.parametrize("balance", [True, False])
def test_loss_weights_equal_counting_in_loops(rng, balance):
    labels = rng.integers(0, 4, (5, 7))
    counted = rng.random((5, 7)) < 0.6
    counted[3] = False
    logits = jnp.asarray(rng.normal(size=(5, 7, 4)), jnp.float32)
    images = [b for b in range(5) if counted[b].any()]

    def naive(logits):
        total = 0.0
        for b in images:
            kept = [n for n in range(7) if counted[b, n]]
            present = {labels[b, n] for n in kept}
            for n in kept:
                alike = sum(labels[b, m] == labels[b, n] for m in kept)
                weight = 1 / (len(present) * alike) if balance else 1 / len(kept)
                total -= weight * jax.nn.log_softmax(logits[b, n])[labels[b, n]]
        return total / len(images)

    fast = lambda x: losses.balanced_cross_entropy(x, jnp.asarray(labels), jnp.asarray(counted),
                                                   balance_classes=balance)
    compare(fast, naive, 1.0, logits)


def test_nothing_counted_gives_zero_loss_and_zero_gradients():
    loss = lambda x: losses.balanced_cross_entropy(
        x, jnp.full((2, 3), -1), jnp.zeros((2, 3), bool))
    value, gradient = jax.value_and_grad(loss)(jnp.ones((2, 3, 4)))
    assert value == 0 and not np.asarray(gradient).any()


def test_gradients_of_the_trainable_part_equal_those_of_the_whole(tower, rng):
    build, params = tower
    image = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    masks = jnp.asarray(rng.random((1, 3, 16)), jnp.float32)
    objective = lambda p: jnp.square(build(p)(image, jnp.array([[32, 32]]), masks)
                                     .mask_embeddings).sum()
    model = maskclippp.MaskCLIPppConfig(IMAGE, TEXT, None)
    is_trainable = optim.trainable_predicate("attention", "none", model)
    part, frozen = parameters.partition({"image": params}, is_trainable)
    # Not compiled, as two programs round a mask scale's gradient, a small difference, differently.
    got = jax.grad(lambda t: objective(parameters.combine(t, frozen)["image"]))(part)
    whole, _ = parameters.partition({"image": jax.grad(objective)(params)}, is_trainable)
    jax.tree.map(np.testing.assert_array_equal, got, whole)
    assert len(parameters.flatten(part)) == 2 * IMAGE.depth + 2


def test_sentences_spread_over_eight_devices_give_the_same(rng):
    make = lambda: text.TextTower(TEXT, rngs=parameters.Keys(0))
    build, _ = parameters.abstract(make)
    params = parameters.initialize(make)
    token_ids = rng.integers(1, 49, (13, 8)).astype(np.int32)
    token_ids[:, 5] = 49
    probe = jnp.asarray(rng.normal(size=(13, 16)), jnp.float32)  # 13 rows are padded to 16

    def embed_and_grad(embed):
        def objective(params):
            embeddings = embed(build(params), jnp.asarray(token_ids))
            return (embeddings * probe).sum(), embeddings

        gradients, embeddings = jax.jit(jax.grad(objective, has_aux=True))(params)
        return embeddings, gradients

    want, want_gradients = embed_and_grad(lambda tower, ids: tower(ids))
    with jax.set_mesh(sharding.make_mesh(2)):
        got, gradients = embed_and_grad(sharding.spread)
    assert jax.device_count() == 8 and len(got.sharding.device_set) == 8
    near(got, want)
    near_trees(gradients, want_gradients, 2e-5)


def test_a_canvas_off_the_patch_and_masks_off_the_grid_are_refused(tower):
    image = np.zeros((1, 30, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="multiples of 8"):
        run(tower, image, [[30, 32]], np.zeros((1, 1, 16), np.float32))
    with pytest.raises(ValueError, match="grid of 9 cells, tokens on 16"):
        run(tower, np.zeros((1, 32, 32, 3), np.uint8), [[32, 32]], np.zeros((1, 1, 9), np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_norm_and_its_gradient_are_those_of_flax(rng, dtype):
    width = 24
    ours = layers.layer_norm(width, epsilon=1e-6, dtype=dtype, rngs=parameters.Keys(0))
    flax = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=parameters.Keys(0))
    for norm in (ours, flax):
        norm.scale[...] = jnp.linspace(0.5, 2, width)
        norm.bias[...] = jnp.linspace(-1, 1, width)
    tokens = jnp.asarray(rng.normal(3, 2, (2, 5, width)), dtype)
    weights = jnp.asarray(rng.normal(size=tokens.shape), jnp.float32)
    tolerance = 1e-5 if dtype == "float32" else 2e-2

    def loss(norm, tokens):
        return (norm(tokens) * weights).sum()

    np.testing.assert_array_equal(ours(tokens), flax(tokens))
    (of_ours, of_our_tokens), (of_flax, of_flax_tokens) = (
        nnx.grad(loss, argnums=(0, 1))(norm, tokens) for norm in (ours, flax))
    assert of_our_tokens.dtype == tokens.dtype
    near(of_our_tokens, of_flax_tokens, tolerance)
    for part in ("scale", "bias"):
        near(of_ours[part][...], of_flax[part][...], tolerance)


def test_a_gated_layer_has_the_gradient_of_its_formula(rng):
    gate, x, weights = (jnp.asarray(rng.normal(0, 3, (2, 5, 7)), jnp.float32) for _ in range(3))
    naive = lambda gate, x: jax.nn.silu(gate) * x
    np.testing.assert_array_equal(layers.gated(gate, x), naive(gate, x))
    for got, want in zip(*(jax.grad(lambda *args: (run(*args) * weights).sum(), (0, 1))(gate, x)
                           for run in (layers.gated, naive))):
        near(got, want)
