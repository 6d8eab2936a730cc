"""EoMT: laws of the network, its fast forms beside plain ones, and the published sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskclippp_jax import params as parameters
from maskclippp_jax.generators import eomt
from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.models import fused_attention
from maskclippp_jax.models.fused_attention import attend
from maskclippp_jax.weights import eomt as files
from tests import tiny_eomt

pytestmark = pytest.mark.usefixtures("explicit_ranks")

# To the last parameter, as the public code makes them.
PUBLISHED = {
    "coco_panoptic_small_640_2x": 23_975_942, "coco_panoptic_base_640_2x": 93_663_110,
    "coco_panoptic_large_640": 316_695_686, "coco_panoptic_large_1280": 321_610_886,
    "coco_panoptic_giant_640": 1_163_622_022, "coco_panoptic_giant_1280": 1_170_994_822,
    "ade20k_panoptic_large_640": 316_713_111, "ade20k_panoptic_large_1280": 321_628_311,
    "ade20k_panoptic_giant_640": 1_163_648_151, "ade20k_panoptic_giant_1280": 1_171_020_951,
    "ade20k_semantic_large_512": 316_020_887, "cityscapes_semantic_large_1024": 319_032_340,
    "coco_instance_large_640": 316_641_361, "coco_instance_large_1280": 321_556_561,
}


@functools.cache
def network(dtype="float32", heads="apart"):
    build, _ = files.abstract(tiny_eomt.CONFIG, dtype=jnp.dtype(dtype), heads=heads)
    return build(tiny_eomt.params())


def compiled(*settings):
    model = network(*settings)
    return jax.jit(lambda image: model(image))


@pytest.fixture
def image(rng):
    return jnp.asarray(rng.integers(0, 256, (2, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_size(name):
    _, shapes = files.abstract(getattr(EoMTConfig, name)())
    assert parameters.count(shapes) == PUBLISHED[name]


def test_pictures_of_a_batch_do_not_depend_on_each_other(image):
    run = compiled()
    both, alone = run(image), [run(image[i:i + 1]) for i in range(2)]
    for i in range(2):
        np.testing.assert_allclose(both.mask_logits[i], alone[i].mask_logits[0], atol=1e-4)
        np.testing.assert_allclose(both.class_logits[i], alone[i].class_logits[0], atol=1e-4)
    assert both.mask_logits.shape == (2, 6, 16, 16) and both.class_logits.shape == (2, 6, 4)


def test_heads_apart_and_together_give_the_same(image):
    apart, together = (compiled("float32", heads)(image) for heads in ("apart", "together"))
    np.testing.assert_allclose(apart.mask_logits, together.mask_logits, atol=1e-4)


def test_bfloat16_keeps_the_direction_of_predictions(image):
    full, half = (compiled(dtype)(image) for dtype in ("float32", "bfloat16"))
    for one, other in zip(full, half):
        assert other.dtype == jnp.float32
        one, other = (np.asarray(x).reshape(12, -1) for x in (one, other))
        cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other,
                                                                                      axis=-1)
        assert 1e-6 < 1 - cosine.min() < 5e-3


def test_the_kernel_of_a_tpu_gives_what_plain_attention_gives(rng, monkeypatch):
    calls = []
    monkeypatch.setattr(fused_attention, "attend", lambda q, k, v, turn, allowed: calls.append(
        q.shape) or attend(q, k, v, turn, allowed, interpret=True))
    # Blocks of 149 and of 155 tokens, each with two heads of 64 channels.
    config = dataclasses.replace(tiny_eomt.CONFIG, image_size=(96, 96), patch_size=8, width=128,
                                 num_heads=2, upscale_blocks=1)
    params = tiny_eomt.params(config)
    image = jnp.asarray(rng.integers(0, 256, (1, 96, 96, 3), np.uint8))

    def find(heads, dtype, attention=None):
        build, _ = files.abstract(config, dtype=jnp.dtype(dtype), heads=heads)
        return jax.jit(lambda params, image: build(params)(image, attention))(params, image)

    exact, plain, fused = (find(*x) for x in (
        ("together", "float32"), ("together", "bfloat16"), ("fused", "bfloat16")))
    assert calls == [(1, 149, 2, 64), (1, 155, 2, 64)]
    for want, one, other in zip(exact, plain, fused, strict=True):
        largest = np.abs(want).max()
        assert 0 < np.abs(one - want).max() < 0.1 * largest  # bfloat16 alone moves so much
        assert np.abs(other - want).max() < 2 * np.abs(one - want).max()
        assert np.abs(other - one).max() < 0.05 * largest
    find("fused", "float32")  # asked for to be exact
    find("fused", "bfloat16", ("cut",))  # queries see some of the patches: the first block alone
    assert calls[2:] == [(1, 149, 2, 64)]


def test_masks_on_the_grid_are_those_of_full_size_resized(image):
    model = network()

    @jax.jit
    def run(image):
        tokens = model.with_queries(model.blocks[0](model.embed(image)))
        return model.allowed(tokens), model.predict(tokens).mask_logits

    allowed, masks = run(image)
    small = jax.image.resize(masks, (2, 6, 4, 4), "bilinear", antialias=False)
    assert jnp.abs(small).min() > 1e-5 and 0 < allowed.mean() < 1
    np.testing.assert_array_equal(allowed, (small > 0).reshape(2, 6, 16))


def test_attention_keeps_a_mask_or_opens_again():
    config = dataclasses.replace(tiny_eomt.CONFIG, query_blocks=2)
    build, _ = files.abstract(config)
    model = build(tiny_eomt.params(config))
    image = jnp.asarray(np.random.default_rng(3).integers(0, 256, (1, 64, 64, 3), np.uint8))
    run = jax.jit(lambda kinds: model(image, kinds).mask_logits, static_argnums=0)
    found = [run(k) for k in (("open", "open"), ("cut", "open"), ("cut", "keep"), ("cut", "cut"))]
    for i, one in enumerate(found):
        assert all(jnp.abs(one - other).max() > 1e-3 for other in found[:i])
    np.testing.assert_array_equal(found[0], run(("keep", "keep")))  # there is none to be kept
    with pytest.raises(ValueError, match="attention of 1 blocks, wanted 2"):
        run(("cut",))


def test_mask_logits_are_products_with_upscaled_features(image):
    """Although the last norm's scale and bias are applied to the other factor."""
    model = network()

    @jax.jit
    def run(image):
        tokens = model.with_queries(model.embed(image))
        normal = model.norm(tokens)
        features = model.upscaled(normal[:, -16:].reshape(2, 4, 4, -1))
        return model.predict(tokens).mask_logits, jnp.einsum(
            "bqd,bhwd->bqhw", model.mask_embeddings(normal[:, :6]), features)

    np.testing.assert_allclose(*run(image), atol=2e-4)


def test_convolutions_written_as_products_are_convolutions(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 7, 8), np.float32))
    doubling = eomt.DoublingConv(8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    doubling.bias[...] = jnp.arange(8.0)
    turned = jnp.moveaxis(doubling.kernel[...], 0, 2)[::-1, ::-1]  # lax applies it the other way
    want = jax.lax.conv_transpose(x, turned, (2, 2), "VALID",
                                  dimension_numbers=("NHWC", "HWIO", "NHWC"))
    got = doubling(x, jnp.tanh)
    np.testing.assert_allclose(got, jnp.tanh(want + jnp.arange(8.0)[None, None, None]), atol=1e-5)
    depthwise = eomt.DepthwiseConv(8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    want = jax.lax.conv_general_dilated(
        x, depthwise.kernel[...][:, :, None], (1, 1), "SAME", feature_group_count=8,
        dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(depthwise(x), want, atol=1e-5)


def test_the_own_size_leaves_a_position_table_as_it_is(rng):
    table = jnp.asarray(rng.standard_normal((12, 8), np.float32))
    np.testing.assert_allclose(eomt.resize_position_table(table, (3, 4), (3, 4)), table, atol=1e-6)
    assert eomt.resize_position_table(table, (3, 4), (5, 2)).shape == (10, 8)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match="got pictures of 32x128 pixels, wanted 64x64"):
        network().embed(jnp.zeros((1, 32, 128, 3)))
