"""Pictures on strips: every tower over patches gives what it gives on canvases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    dinotxt,
    eva_vit,
    layers,
    pe,
    siglip,
    tips,
)
from maskclippp_jax.naming import inference

TOWERS = {
    "EVA02": eva_vit.EvaViTConfig(32, 8, 32, 2, 2, 48, 16, mask_layers=1),
    "EVA01": eva_vit.EvaViTConfig(32, 8, 32, 2, 2, 48, 16, mask_layers=1, rotary_grid=None,
                                  inner_norms=False, swiglu=False),
    "CLIP": clip_vit.ClipViTConfig(32, 8, 32, 2, 2, 48, 16, mask_layers=1),
    "SigLIP": siglip.SigLIPConfig(32, 8, 32, 1, 2, 48, 32),
    "SigLIP NaFlex": siglip.SigLIPConfig(32, 8, 32, 1, 2, 48, 32, position_resize="antialiased"),
    "PE-Core": pe.PEConfig(32, 8, 32, 1, 2, 48, 12),
    "PE-Core G": pe.PEConfig(32, 8, 32, 1, 2, 48, 12, has_class_token=False),
    "TIPS": tips.TIPSConfig(32, 8, 24, 2, 2, 32, swiglu=True, mask_layers=1),
    "dino.txt": dinotxt.DinoTxtConfig(32, 8, 16, 1, 2, 32, 24, num_registers=2, mask_layers=3),
}
PATCH, CANVAS, CELLS = 8, (48, 56), 29
# The last one is a row of cells, the one before as the position table was learnt.
SIZES = np.array([(30, 44), (48, 26), (17, 17), (32, 32), (7, 50)], np.int32)


def near(got, want, within=1e-5):
    """Largest difference in shares of the largest magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= within * np.abs(want).max()


def lay(rng) -> tuple[inference.OnCanvas, inference.OnCanvas]:
    """Pictures with four masks each on canvases and on strips; the padding of both holds noise."""
    count, masks = len(SIZES), 4
    image = rng.integers(0, 256, (count, *CANVAS, 3)).astype(np.float32)
    grid_masks = rng.random((count, masks, CANVAS[0] // PATCH, CANVAS[1] // PATCH), np.float32)
    grid_masks[:, 2] = 0  # an empty one
    strip = rng.integers(0, 256, (count, PATCH, CELLS * PATCH, 3)).astype(np.float32)
    strip_masks = rng.random((count, masks, CELLS), np.float32)
    for b, size in enumerate(SIZES):
        rows, columns = own = -(-size // PATCH)
        laid = inference.to_strip(inference.OnCanvas(
            image[b, :rows * PATCH, :columns * PATCH], size,
            grid_masks[b, :, :rows, :columns].reshape(masks, -1)), PATCH, strip.shape[1:3])
        cells = own.prod()
        strip[b, :, :cells * PATCH] = laid.image[:, :cells * PATCH]
        strip_masks[b, :, :cells] = laid.grid_masks[:, :cells]
        assert not laid.image[:, cells * PATCH:].any() and not laid.grid_masks[:, cells:].any()
    return (inference.OnCanvas(image, SIZES, grid_masks.reshape(count, masks, -1)),
            inference.OnCanvas(strip, SIZES, strip_masks))


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_gives_the_same_on_a_strip_as_on_a_canvas(name, rng):
    config = TOWERS[name]
    build, shapes = parameters.abstract(
        lambda: config.make(heads="together", rngs=parameters.Keys(0)))
    params = parameters.unflatten({
        path: rng.normal(size=x.shape).astype(np.float32) * 0.3 + path.endswith("/scale")
        for path, x in parameters.flatten(shapes).items()})
    probe = rng.normal(size=(len(SIZES), 4, config.embed_dim)).astype(np.float32)

    @jax.jit
    def run(params, laid):
        def objective(params):
            features = build(params)(*laid, dense=True)
            return (features.mask_embeddings * probe).sum(), features

        gradient, features = jax.grad(objective, has_aux=True)(params)
        return features, gradient

    on_canvas, on_strip = lay(rng)
    (want, want_gradient), (got, got_gradient) = run(params, on_canvas), run(params, on_strip)
    near(got.mask_embeddings, want.mask_embeddings)
    near(got.image_embedding, want.image_embedding)
    for b, size in enumerate(SIZES):
        rows, columns = -(-size // PATCH)
        on_grid = lambda x: np.asarray(x).reshape(
            CANVAS[0] // PATCH, CANVAS[1] // PATCH, *x.shape[1:])[:rows, :columns].reshape(
                rows * columns, *x.shape[1:])
        near(got.patch_embeddings[b, :rows * columns], on_grid(want.patch_embeddings[b]))
        assert got.patch_valid[b].tolist() == [True] * rows * columns + [False] * (
            CELLS - rows * columns)
    every = lambda tree: np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
    near(every(got_gradient), every(want_gradient), 2e-5)  # biases of keys have none but rounding


def test_strips_are_for_towers_over_patches():
    takes = {type(c): inference.takes_strips(c) for c in (
        *TOWERS.values(), clip_convnext.ConvNeXtConfig.base_w_320(),
        clip_resnet.ResNetConfig.rn50x16())}
    assert [c for c, yes in takes.items() if not yes] == [
        clip_convnext.ConvNeXtConfig, clip_resnet.ResNetConfig]


def test_pictures_of_as_many_cells_share_a_strip():
    strip = functools.partial(inference.strip_of, patch=8)
    assert strip(np.array([64, 96])) == strip(np.array([96, 64])) == (8, 768)
    for size in ((64, 65), (100, 333), (448, 597), (8, 8)):
        cells = strip(np.array(size))[1] // 8
        own = -(-size[0] // 8) * -(-size[1] // 8)
        assert own <= cells <= 1.0625 * own + 1


def test_cells_of_a_strip_lie_row_after_row():
    row, column = layers.cells_of(jnp.array([[2, 3], [3, 2]]), (1, 7))
    np.testing.assert_array_equal(row[:, :6], [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]])
    np.testing.assert_array_equal(column[:, :6], [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 1]])
