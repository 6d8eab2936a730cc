"""PE-Core, TIPS and dino.txt: laws of their masks, and dino.txt against a plain forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.models import clip_vit, dinotxt, eva_vit, maskclippp, pe, text, tips, vit
from maskclippp_jax.training import optim

pytestmark = pytest.mark.usefixtures("explicit_ranks")

TOWERS = {
    "PE-Core": pe.PEConfig(32, 8, 32, 1, 2, 48, 12),
    "PE-Core G": pe.PEConfig(32, 8, 32, 1, 2, 48, 12, has_class_token=False),
    "TIPS": tips.TIPSConfig(32, 8, 24, 2, 2, 32, swiglu=True, mask_layers=1, class_token=2),
    "dino.txt": dinotxt.DinoTxtConfig(32, 8, 16, 1, 2, 32, 24, num_registers=2, mask_layers=3),
}
SIZE = np.array([[32, 40]], np.int32)


def near(got, want, within=1e-5):
    """Largest difference in shares of the largest magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= within * np.abs(want).max()


@functools.lru_cache
def make(config):
    build, shapes = parameters.abstract(
        lambda: config.make(heads="together", rngs=parameters.Keys(0)))
    rng = np.random.default_rng(1)
    params = parameters.unflatten({
        path: rng.normal(size=x.shape).astype(np.float32) * 0.4 + path.endswith("/scale")
        for path, x in parameters.flatten(shapes).items()})
    return jax.jit(lambda params, *a: build(params)(*a, dense=True)), params


@pytest.fixture(params=TOWERS)
def config(request):
    return TOWERS[request.param]


def draw(rng):
    """A picture and six masks, always, so that one program serves many tests."""
    image = rng.integers(0, 256, (1, 32, 40, 3)).astype(np.uint8)
    return image, rng.random((1, 6, 20)).astype(np.float32)


def test_masks_that_see_what_the_image_sees_give_its_embedding_if_full_or_empty(config, rng):
    """Whatever the scale is; without the tokens in front they agree with each other."""
    image, _ = draw(rng)
    masks = np.repeat(np.stack([np.ones(20), np.zeros(20)]), 3, 0)[None].astype(np.float32)
    run, params = make(dataclasses.replace(config, prefix_visible=True))
    for scale in (-5.0, 1.5):
        params = parameters.combine(params, {"mask_logit_scale": np.full_like(
            params["mask_logit_scale"], scale)})
        found = run(params, image, SIZE, masks)
        near(found.mask_embeddings[0], np.repeat(found.image_embedding, 6, 0))
    run, params = make(config)
    found = run(params, image, SIZE, masks)
    near(found.mask_embeddings[0, :3], found.mask_embeddings[0, 3:], 1e-4)
    sees_all = not getattr(config, "has_class_token", True)
    moved = np.abs(found.mask_embeddings[0, 0] - found.image_embedding[0]).max() > 1e-3
    assert moved != sees_all


def test_order_padding_and_low_values_of_masks_change_nothing(config, rng):
    image, masks = draw(rng)
    masks[0, 3], masks[0, 4:] = masks[0, 1], 0  # one twice, and padding
    run, params = make(config)
    plain = run(params, image, SIZE, masks)
    found = run(params, image, SIZE, masks[:, [2, 4, 3, 0, 5, 1]])
    near(found.mask_embeddings, np.asarray(plain.mask_embeddings)[:, [2, 4, 3, 0, 5, 1]])
    near(plain.mask_embeddings[:, 3], plain.mask_embeddings[:, 1])
    low = np.where(masks <= masks.max(-1, keepdims=True) / 2, 0, masks)
    near(run(params, image, SIZE, low).mask_embeddings, plain.mask_embeddings)
    others = run(params, image, SIZE, rng.random(masks.shape).astype(np.float32))
    near(others.image_embedding, plain.image_embedding)


def test_a_picture_is_the_same_alone_and_padded_in_a_batch(config, rng):
    images = rng.integers(0, 256, (2, 40, 48, 3)).astype(np.uint8)
    sizes = np.array([[40, 48], [29, 38]], np.int32)
    masks = rng.random((2, 6, 30)).astype(np.float32)
    run, params = make(config)
    together = run(params, images, sizes, masks)
    alone = run(params, images[1:, :32, :40], sizes[1:],
                masks[1:].reshape(1, 6, 5, 6)[:, :, :4, :5].reshape(1, 6, 20))
    cells = np.arange(30).reshape(5, 6)[:4, :5].ravel()
    near(together.image_embedding[1:], alone.image_embedding, 2e-5)
    near(np.asarray(together.patch_embeddings)[1:, cells], alone.patch_embeddings, 2e-5)
    near(together.mask_embeddings[1:], alone.mask_embeddings, 2e-5)


def test_the_patch_part_of_dinotxt_is_a_mean(rng):
    config = TOWERS["dino.txt"]
    image, _ = draw(rng)
    binary = (np.arange(20) < 7).astype(np.float32)
    one_cell = np.eye(20, dtype=np.float32)[3]
    masks = np.stack([one_cell, binary, 1 - binary, one_cell, binary, binary])[None]
    run, params = make(config)
    found = run(params, image, SIZE, masks)
    patches, parts = (np.asarray(x)[0, :, 16:] for x in (found.patch_embeddings,
                                                         found.mask_embeddings))
    near(parts[0], patches[3])
    near((7 * parts[1] + 13 * parts[2]) / 20, found.image_embedding[0, 16:])


# ---- dino.txt, whose stored results are too large for the tests ---------------------------------


def plain_dinotxt(c, p, image, masks):
    """All tokens, those of masks among them, in one sequence with a dense bias: float64 numpy.

    Args:
      c: sizes.
      p: parameters.
      image: [H, W, 3] of whole patches.
      masks: [N, L].

    Returns:
      Image embedding [E] and mask embeddings [N, E].
    """
    from scipy.special import erf

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    dense = lambda x, w: x @ w["kernel"] + w.get("bias", 0)

    def norm(x, w):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w["scale"] + w["bias"]

    h, w = (n // c.patch_size for n in image.shape[:2])
    prefix, length, num_masks = 1 + c.num_registers, h * w, len(masks)
    x = (image.astype(np.float64) - c.pixel_mean) / c.pixel_std
    x = x.reshape(h, c.patch_size, w, c.patch_size, 3).swapaxes(1, 2).reshape(length, -1)
    x = x @ p["patch_embed"]["kernel"].reshape(-1, c.width) + p["patch_embed"]["bias"]
    x = np.concatenate([p["class_token"][None], p["registers"], x])

    width = c.width // c.num_heads
    periods = 100.0 ** (2 * np.arange(width // 4) / (width / 2))
    rows, columns = np.divmod(np.arange(length), w)
    angles = np.stack([2 * (rows + 0.5) / h - 1, 2 * (columns + 0.5) / w - 1], -1)  # [L, 2]
    angles = np.tile((2 * np.pi * angles[..., None] / periods).reshape(length, -1), 2)  # [L, K]

    def turn(t):  # [T, A, K]; patches stand behind the prefix
        patches = t[prefix:prefix + length]
        first, second = np.split(patches, 2, -1)
        turned = (patches * np.cos(angles)[:, None]
                  + np.concatenate([-second, first], -1) * np.sin(angles)[:, None])
        return np.concatenate([t[:prefix], turned, t[prefix + length:]])

    inside = masks > masks.max(-1, keepdims=True) / 2

    def block(x, w, scale, is_turned):
        y, heads = norm(x, w["norm1"]), lambda t: t.reshape(len(t), c.num_heads, -1)
        q, k, v = (heads(dense(y, w["attention"][n])) for n in ("query", "key", "value"))
        if is_turned:
            q, k = turn(q), turn(k)
        logits = np.einsum("tak,sak->ats", q, k) / np.sqrt(width)
        logits[:, :, prefix + length:] = -np.inf  # nothing sees mask tokens
        if scale is not None:
            factor = np.exp(scale)[:, None, None]
            of_masks = logits[:, prefix + length:]
            of_masks[..., prefix:prefix + length] += np.where(inside, masks * factor, -100)
            largest = masks.max(-1)[:, None]
            of_masks[..., :prefix] += np.where(
                largest > 0, largest * factor, -100) if c.prefix_visible else -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("ats,sak->tak", weights, v).reshape(len(x), -1)
        x = x + w["scale1"] * dense(mixed, w["attention"]["out"])
        y, m = norm(x, w["norm2"]), w["mlp"]
        if "w1" in m:
            gate = dense(y, m["w1"])
            y = dense(gate / (1 + np.exp(-gate)) * dense(y, m["w2"]), m["w3"])
        else:
            y = dense(y, m["fc1"])
            y = dense(y * (1 + erf(y / np.sqrt(2))) / 2, m["fc2"])
        return x + w["scale2"] * y

    blocks = [(w, True) for w in p["blocks"].values()] + [
        (w, False) for w in p["head"]["blocks"].values()]
    for i, (w, is_turned) in enumerate(blocks):
        left = len(blocks) - 1 - i
        if i == c.depth:
            x = norm(x, p["norm"])
        if left == c.mask_layers - 1:
            x = np.concatenate([x, np.repeat(x[:1], num_masks, 0)])
        x = block(x, w, p["mask_logit_scale"][left] if left < c.mask_layers else None, is_turned)
    x = norm(x, p["head"]["norm"])
    patches = x[prefix:prefix + length]
    weight = np.where(masks.any(-1, keepdims=True), np.where(inside, masks, 0), 1)
    means = weight @ patches / weight.sum(-1, keepdims=True)
    return (np.concatenate([x[0], patches.mean(0)]),
            np.concatenate([x[prefix + length:], means], -1))


@pytest.mark.parametrize("changes", [
    dict(), dict(prefix_visible=True), dict(mask_layers=2), dict(mask_layers=1)], ids=str)
def test_dinotxt_equals_a_plain_forward_pass(changes, rng):
    config = dataclasses.replace(TOWERS["dino.txt"], **changes)
    image, masks = draw(rng)
    masks[0, 2], masks[0, 3] = 0, masks[0, 3] > 0.5
    run, params = make(config)
    found = run(params, image, SIZE, masks)
    whole, each = plain_dinotxt(config, params, image[0], masks[0])
    near(found.image_embedding[0], whole)
    near(found.mask_embeddings[0], each)


# ---- What is tuned, what is stored --------------------------------------------------------------


@pytest.mark.parametrize("image, words, kind, wanted", [
    (TOWERS["PE-Core"], text.TextConfig(8, 40, 16, 1, 2, 12), "attention",
     {"position_table", "pool/query/kernel", "pool/value/kernel",
      "blocks/0/attention/query/kernel", "blocks/0/attention/value/kernel"}),
    (TOWERS["TIPS"], tips.TIPSTextConfig(8, 40, 24, 1, 2, 32), "attention",
     {"position_table",
      *(f"blocks/{i}/attention/{x}/kernel" for i in (0, 1) for x in ("query", "value"))}),
    (TOWERS["dino.txt"], text.TextConfig(8, 40, 16, 1, 2, 32, qkv_bias=False), "head", None)])
def test_what_learns_and_how_a_configuration_is_stored(image, words, kind, wanted):
    model = maskclippp.MaskCLIPppConfig.of_uncut(image, words)
    _, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))
    learns = optim.trainable_predicate(kind, "none", model)
    tuned = {path.removeprefix("image/") for path in parameters.flatten(shapes) if learns(path)}
    if wanted is None:
        wanted = {path.removeprefix("image/") for path in parameters.flatten(shapes)
                  if path.startswith("image/head/")}
    assert tuned == wanted | {"mask_logit_scale"}
    assert configuration.from_json(configuration.to_json(dict(model=model))).model == model
    for kind in optim.text_tuning(model):
        optim.trainable_predicate("none", kind, model)


def test_a_configuration_stored_before_a_size_existed_has_its_default():
    words = text.TextConfig(8, 40, 16, 1, 2, 12)
    stored = configuration.to_json(dict(text=words))
    del stored["text"]["qkv_bias"]
    assert configuration.from_json(stored).text == words
    del stored["text"]["width"]
    with pytest.raises(ValueError, match="sizes of a TextConfig .*which this version does not"):
        configuration.from_json(stored)


# ---- The text tower of TIPS ---------------------------------------------------------------------


def test_words_of_tips_do_not_depend_on_padding_and_no_word_is_zero(rng):
    config = tips.TIPSTextConfig(12, 40, 24, 2, 2, 32)
    build, shapes = parameters.abstract(
        lambda: config.make(heads="together", rngs=parameters.Keys(0)))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.4, shapes)
    ids = np.zeros((3, 12), np.int32)
    ids[0, :3], ids[1, :9] = rng.integers(1, 40, 3), rng.integers(1, 40, 9)
    run = jax.jit(lambda p, i: build(p)(i))
    whole = run(params, ids)
    assert tips.truncate_prompts(ids[:1]).shape == (1, 8)
    near(run(params, ids[:1, :8]), whole[:1])
    assert not np.asarray(whole[2]).any()
    slope = jax.jit(jax.grad(lambda p: build(p)(ids).sum()))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    with pytest.raises(ValueError, match="prompts have 13 tokens, the text tower takes at most 12"):
        jax.eval_shape(lambda p: build(p)(jnp.zeros((1, 13), jnp.int32)), params)


def test_a_third_class_token_is_refused():
    with pytest.raises(ValueError, match="class_token is 3; a TIPS has the class tokens 1 and 2"):
        dataclasses.replace(TOWERS["TIPS"], class_token=3).make(rngs=parameters.Keys(0))


@pytest.mark.parametrize("config", [
    eva_vit.EvaViTConfig(32, 8, 32, 2, 2, 48, 12, mask_layers=1),
    eva_vit.EvaViTConfig(32, 8, 32, 2, 2, 48, 12, mask_layers=0),
    clip_vit.ClipViTConfig(32, 8, 32, 2, 2, 48, 12, mask_layers=2),
    dataclasses.replace(TOWERS["TIPS"], prefix_visible=True)], ids=str)
@pytest.mark.parametrize("heads", ["apart", "together"])
def test_what_nobody_reads_of_the_last_block_need_not_be_computed(config, heads, rng, monkeypatch):
    """Values and gradients are those of a tower whose last block has all tokens."""
    build, shapes = parameters.abstract(
        lambda: config.make(heads=heads, rngs=parameters.Keys(0)))
    params = parameters.unflatten({
        path: rng.normal(size=x.shape).astype(np.float32) * 0.3 + path.endswith("/scale")
        for path, x in parameters.flatten(shapes).items()})
    image, masks = draw(rng)
    probe = rng.normal(size=(2, 1, 6, config.embed_dim)).astype(np.float32)

    def run(params):
        found = build(params)(image, SIZE - 9, masks, dense=True)
        value = (found.mask_embeddings * probe[0]).sum() + (
            found.image_embedding * probe[1, :, 0]).sum()
        return value, found

    compiled = lambda: jax.jit(jax.grad(run, has_aux=True))(params)
    got_gradient, got = compiled()
    blocks, asked = vit.pass_blocks, []
    monkeypatch.setattr(vit, "pass_blocks", lambda *args, read, **more: asked.append(
        read) or blocks(*args, **more))
    want_gradient, want = compiled()
    assert asked == [2 if isinstance(config, tips.TIPSConfig) else 1]
    for one, other in zip(got, want):
        if one is not None:
            near(one, other)
    every = lambda tree: np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
    near(every(got_gradient), every(want_gradient), 2e-5)
