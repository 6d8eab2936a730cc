"""Canvases that pictures share, and how pictures get there on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax.data import mask_chain
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.eva_vit import EvaViTConfig
from maskclippp_jax.naming import canvases, inference
from maskclippp_jax.naming.canvases import Canvases

SMALL = EvaViTConfig.quickstart(), 1.3e6  # with the numbers of its parameters
LARGE = EvaViTConfig.eva02_l14_336(), 304e6


def see(shared: Canvases, own: tuple[int, int]) -> tuple[int, int]:
    canvas = shared.choose(own)
    assert canvas[0] >= own[0] and canvas[1] >= own[1]
    shared.used(canvas, [own])
    return canvas


def test_fifty_sizes_of_pictures_ask_a_small_tower_for_few_canvases(rng):
    shared, own = Canvases(*SMALL), []
    for size in rng.integers(200, 1000, (50, 2)):
        network = inference.network_sizes(size[None], 64, 0, 8)
        own.append(inference.canvas_of(network, 8))
    assert len(set(own)) > 7
    assert len({see(shared, o) for o in own}) < 5


def test_the_first_picture_and_all_of_its_size_have_no_padding():
    shared = Canvases(*SMALL)
    assert {see(shared, (64, 96)) for _ in range(9)} == {(64, 96)}


def test_a_large_tower_pads_no_picture_by_much():
    shared = Canvases(*LARGE)
    assert see(shared, (336, 448)) == (336, 448)
    assert see(shared, (448, 336)) == (448, 336)
    assert see(shared, (336, 672)) == (336, 672)


@pytest.mark.parametrize("image, params", [SMALL, LARGE, (ConvNeXtConfig.base_w_320(), 88e6)])
@pytest.mark.parametrize("larger, smaller", [((8, 32), (8, 24)), ((1, 800), (1, 768))])  # cells
def test_what_padding_costs_stays_below_a_compilation(image, params, larger, smaller):
    shared = Canvases(image, params)
    larger, smaller = (tuple(n * image.patch_size for n in size) for size in (larger, smaller))
    larger = see(shared, larger)
    canvas, paid = None, 0
    for _ in range(100_000):
        canvas = see(shared, smaller)
        if canvas == smaller:
            break
        paid += shared._more(canvas, smaller)
    assert canvas == smaller and paid <= canvases._WORTH["cpu"]


def test_fifty_sizes_of_pictures_ask_a_small_tower_for_one_or_two_strips(rng):
    shared, own = Canvases(*SMALL), []
    for size in rng.integers(200, 1000, (50, 2)):
        own.append(inference.strip_of(inference.network_sizes(size[None], 64, 0, 8)[0], 8))
    assert len(set(own)) > 7
    assert len({see(shared, o) for o in own}) <= 2


def test_upright_and_lying_pictures_share_a_strip_of_a_large_tower():
    shared, patch = Canvases(*LARGE), 14
    strip = lambda *size: inference.strip_of(np.array(size), patch)
    lying = see(shared, strip(336, 448))
    assert lying == strip(336, 448) == see(shared, strip(448, 336))
    assert lying[1] <= 1.0625 * 24 * 32 * patch  # little padding
    assert see(shared, strip(336, 672)) == strip(336, 672)


def test_a_picture_laid_on_the_host_is_the_one_laid_on_the_device(rng):
    canvas, network = (96, 160), (70, 133)
    image = rng.integers(0, 256, (211, 400, 3)).astype(np.uint8)
    want = jax.jit(inference.to_network_size, static_argnums=3)(
        jnp.pad(image, ((0, 13), (0, 48), (0, 0))), jnp.array([211, 400]), jnp.array(network),
        canvas)
    got = inference.lay_picture(image, network, canvas)
    np.testing.assert_allclose(got, want, atol=1e-4)  # of 255
    assert got.dtype == np.float32 and not got[70:].any() and not got[:, 133:].any()


def test_a_label_map_laid_on_the_host_is_the_one_laid_on_the_device(rng):
    canvas, network, masks = (96, 160), (70, 133), (50, 95)
    segments = rng.integers(0, 6, (31, 60)).repeat(7, 0).repeat(7, 1).astype(np.uint16)
    want = jax.jit(inference.segments_to_grid, static_argnums=(4, 5, 6))(
        jnp.pad(segments, ((0, 9), (0, 4))), jnp.array(segments.shape), jnp.array(masks),
        jnp.array(network), 8, canvas, 7)
    got = inference.lay_label_map(segments, masks, network, 8, canvas, 7)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert got[:5].any(1).all() and not got[5:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.bool_])
def test_soft_masks_laid_on_the_host_are_those_laid_on_the_device(rng, dtype):
    canvas, network = (96, 160), np.array([70, 133], np.int32)
    masks = (rng.normal(0, 60, (4, 37, 60)) if dtype in (np.float32, np.float16)
             else rng.integers(0, 256 if dtype == np.uint8 else 2, (4, 37, 60))).astype(dtype)
    if dtype == np.float32:
        masks[0, :9], masks[1, :9] = np.inf, -np.inf  # of masks that are certain
    sizes = mask_chain.MaskSizes(*(np.array(x, np.int32) for x in ((37, 60), (148, 240),
                                                                   (130, 231))))
    want = jax.jit(lambda m, s, n: mask_chain.to_grid(
        mask_chain.probabilities(m), s, n, 8, canvas))(masks, sizes, network)
    got = mask_chain.to_grid_on_host(masks, sizes, network, 8, canvas)
    np.testing.assert_allclose(got, want, atol=2e-6)
