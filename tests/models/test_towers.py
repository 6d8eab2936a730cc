"""Laws that every image tower keeps, and what is particular to one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    eva_vit,
    layers,
    positions,
    resample,
    siglip,
)

pytestmark = pytest.mark.usefixtures("explicit_ranks")

TOWERS = {
    "eva01": eva_vit.EvaViTConfig(
        image_size=64, patch_size=16, width=32, depth=3, num_heads=2, mlp_width=48, embed_dim=16,
        mask_layers=2, rotary_grid=None, inner_norms=False, swiglu=False, fused_qkv=True),
    "clip_vit": clip_vit.ClipViTConfig(
        image_size=64, patch_size=16, width=32, depth=3, num_heads=2, mlp_width=48, embed_dim=16,
        mask_layers=2, quick_gelu=True, mask_threshold=0.3),
    "convnext": clip_convnext.ConvNeXtConfig(
        image_size=64, widths=(8, 12, 16, 24), depths=(1, 1, 2, 1), embed_dim=16, head_width=20),
    "resnet": clip_resnet.ResNetConfig(
        image_size=64, width=4, depths=(1, 1, 1, 1), num_heads=2, embed_dim=16),
    "siglip": siglip.SigLIPConfig(
        image_size=64, patch_size=16, width=32, depth=2, num_heads=2, mlp_width=48, embed_dim=16,
        has_head=True),
    "naflex": siglip.SigLIPConfig(
        image_size=48, patch_size=16, width=16, depth=1, num_heads=2, mlp_width=24, embed_dim=16,
        position_resize="antialiased", exact_gelu=True, mask_threshold=0.3),
}


def near(got, want, relative=1e-5):
    """Largest difference in shares of the largest magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= relative * max(np.abs(want).max(), 1e-6)


def make(config, **settings):
    """(parameters -> tower, parameters that are random everywhere)."""
    make_tower = lambda: config.make(heads="together", rngs=parameters.Keys(3), **settings)
    build, shapes = parameters.abstract(make_tower)
    rng = np.random.default_rng(5)
    draw = lambda path, x: jnp.asarray(
        rng.uniform(0.5, 1.5, x.shape) if path.endswith(("scale", "running_var", "gamma"))
        else rng.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1]) or 1), jnp.float32)
    return build, parameters.unflatten(
        {path: draw(path, x) for path, x in parameters.flatten(shapes).items()})


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS)
def test_an_image_is_the_same_alone_and_on_a_larger_canvas_beside_another(config, rng):
    """Values and gradients; the padding holds noise, in the picture and in the masks."""
    build, params = make(config)
    cell, count = config.patch_size, 3
    sizes = np.array([(3 * cell - 5, 2 * cell), (2 * cell, 4 * cell - 1)], np.int32)
    canvas = (4 * cell, 4 * cell)
    images = rng.integers(0, 256, (2, *canvas, 3)).astype(np.uint8)
    masks = rng.random((2, count, 4, 4)).astype(np.float32)
    probe = rng.normal(size=(2, count, config.embed_dim)).astype(np.float32)

    @jax.jit
    def run(params, images, sizes, masks, probe):
        def objective(params):
            features = build(params)(images, sizes, masks.reshape(*masks.shape[:2], -1), dense=True)
            return (features.mask_embeddings * probe).sum(), features

        gradients, features = jax.grad(objective, has_aux=True)(params)
        return features, gradients

    alone, alone_gradients = run(params, images[:1, :3 * cell, :2 * cell], sizes[:1],
                                 masks[:1, :, :3, :2], probe[:1])
    probe[1] = 0  # so that only the first image has a gradient
    both, gradients = run(params, images, sizes, masks, probe)
    near(both.mask_embeddings[0], alone.mask_embeddings[0])
    near(both.image_embedding[0], alone.image_embedding[0])
    dense = lambda x, h, w: np.asarray(x.patch_embeddings[0]).reshape(h, w, -1)[:3, :2]
    near(dense(both, 4, 4), dense(alone, 3, 2))
    assert np.asarray(both.patch_valid[0]).reshape(4, 4)[:3, :2].all()
    assert both.patch_valid[0].sum() == 6
    for path, want in parameters.flatten(alone_gradients).items():
        if path.endswith("key/bias"):
            continue  # softmax does not see it: rounding alone
        near(parameters.flatten(gradients)[path], want, 1e-4)


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS)
def test_recomputing_blocks_is_possible_in_every_way(config):
    for remat in ("none", "full", "dots"):
        build, shapes = parameters.abstract(
            lambda: config.make(dtype=jnp.bfloat16, remat=remat, rngs=parameters.Keys(0)))
        image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.uint8)
        size = jax.ShapeDtypeStruct((2, 2), jnp.int32)
        masks = jax.ShapeDtypeStruct((2, 3, 64 * 96 // config.patch_size**2), jnp.float32)

        def objective(params, *inputs):
            features = build(params)(*inputs, dense=True, key=jax.random.key(0))
            assert features.mask_embeddings.dtype == jnp.bfloat16
            return features.mask_embeddings.astype(jnp.float32).sum()

        gradients = jax.eval_shape(jax.grad(objective), shapes, image, size, masks)
        assert jax.tree.all(jax.tree.map(lambda g, s: g.shape == s.shape, gradients, shapes))


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS)
def test_a_canvas_or_masks_that_do_not_fit_are_refused(config):
    build, shapes = parameters.abstract(lambda: config.make(rngs=parameters.Keys(0)))
    size = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    run = lambda image, masks: jax.eval_shape(
        lambda p, *a: build(p)(*a), shapes, jax.ShapeDtypeStruct((1, *image, 3), jnp.uint8), size,
        jax.ShapeDtypeStruct((1, 2, masks), jnp.float32))
    wanted = f"65x64 pixels; pad it to multiples of {config.patch_size}"
    with pytest.raises(ValueError, match=wanted):
        run((65, 64), 4)
    with pytest.raises(ValueError, match="masks lie on a grid of 5 cells"):
        run((64, 64), 5)


def test_the_two_ways_of_a_depthwise_convolution_agree(rng):
    x = jnp.asarray(rng.normal(size=(2, 9, 5, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(7, 7, 1, 6)), jnp.float32)
    probe = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    results = []
    for convolve in (clip_convnext.depthwise_convolution, clip_convnext.shifted_convolution):
        y, back = jax.vjp(convolve, x, kernel)
        results.append((y, *back(probe)))
    for got, want in zip(*results):
        near(got, want)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    branch = jnp.ones((4000, 2, 3))
    dropped = np.asarray(clip_convnext.drop_path(branch, 0.25, jax.random.key(0)))
    each = dropped.reshape(4000, -1)
    assert (each == each[:, :1]).all()
    assert set(np.unique(each)) == {0.0, np.float32(4 / 3)}
    assert abs((each[:, 0] == 0).mean() - 0.25) < 0.03


def test_stochastic_depth_acts_in_training_only_and_never_in_the_first_block(rng):
    config = dataclasses.replace(TOWERS["convnext"], drop_path=1.0)  # the last block never acts
    build, params = make(config)
    image = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    embed = jax.jit(lambda p, key: build(p)(image, jnp.array([[32, 32]]), key=key).image_embedding)
    without_last = {p: jnp.zeros_like(x) if p == "stages/3/blocks/0/gamma" else x
                    for p, x in parameters.flatten(params).items()}
    evaluated = embed(params, None)
    assert np.abs(evaluated - embed(parameters.unflatten(without_last), None)).max() > 1e-3
    assert build(params).stages[0].blocks[0].drop_path == 0
    assert np.abs(evaluated - embed(params, jax.random.key(1))).max() > 1e-3


def test_a_cell_of_the_resnet_that_sees_itself_only_gives_its_own_value(rng):
    """The dense embedding against the attention it stands for."""
    config = TOWERS["resnet"]
    build, params = make(config)
    pool = params["pool"]
    x = jnp.asarray(rng.normal(size=(1, 2, 3, 128)), jnp.float32)
    grid = layers.Grid((2, 3), jnp.array([[2, 3]]), jnp.ones((1, 6), bool), None)
    got = jax.jit(lambda p, x: build(p).pool(x, grid, jnp.ones(2), dense=True).patch_embeddings)(
        params, x)
    cells = x.reshape(1, 6, -1)
    table = positions.resize_position_table(pool["position_table"], grid.size, (2, 3))
    tokens = cells + table[:, 1:]
    q, k, v = (tokens @ pool[n]["kernel"] + pool[n]["bias"][None, None]
               for n in ("query", "key", "value"))
    mixed = layers.merge_heads(layers.attend(
        *(layers.split_heads(t, 2) for t in (q, k, v)), masks=jnp.zeros((1, 6, 6)),
        inside=jnp.eye(6, dtype=bool)[None], mask_scale=jnp.ones(2), heads="together"))
    near(got, mixed @ pool["out"]["kernel"] + pool["out"]["bias"][None, None])


def test_batch_norm_takes_the_cells_inside_of_all_images_together(rng):
    """Against the definition (torch's: biased to normalise, unbiased to store), with gradients."""
    make_norm = lambda: clip_resnet.BatchNorm(3, 1e-5, dtype=jnp.float32)
    build, shapes = parameters.abstract(make_norm)
    params = {k: jnp.asarray(rng.random(x.shape), jnp.float32) for k, x in shapes.items()}
    x = rng.normal(2.0, 3.0, (2, 4, 5, 3)).astype(np.float32)
    inside = np.arange(5)[None, None] < np.array([5, 2])[:, None, None]
    inside = np.broadcast_to(inside, (2, 4, 5))
    normalised, found = jax.jit(lambda p, x: build(p)(x, inside, True))(params, x)
    cells = x[inside].astype(np.float64)  # [4 * 7, 3]
    near(found["running_mean"], cells.mean(0))
    near(found["running_var"], cells.var(0, ddof=1))
    wanted = ((cells - cells.mean(0)) / np.sqrt(cells.var(0) + 1e-5) * np.asarray(params["scale"])
              + np.asarray(params["bias"]))
    near(np.asarray(normalised)[inside], wanted)
    # The result does not see what is added to all cells: neither does the gradient.
    probe = rng.normal(size=x.shape) * inside[..., None]
    gradient = jax.jit(jax.grad(lambda x: (build(params)(x, inside, True)[0] * probe).sum()))(x)
    assert np.abs(np.asarray(gradient).sum((0, 1, 2))).max() < 1e-4
    assert np.abs(gradient).max() > 1e-2
    stored = dict(running_mean=jnp.zeros(3), running_var=jnp.ones(3))
    near(clip_resnet.follow_statistics(stored, found)["running_var"],
         0.9 + 0.1 * cells.var(0, ddof=1))


def test_a_resnet_in_training_is_the_same_on_any_canvas_and_any_devices(rng):
    """Embeddings and statistics; the padding holds noise."""
    config = TOWERS["resnet"]
    build, params = make(config)
    sizes = np.array([(64, 60), (30, 64)] * 2, np.int32)
    images = rng.integers(0, 256, (4, 96, 96, 3)).astype(np.uint8)
    masks = rng.random((4, 2, 3, 3)).astype(np.float32)

    def run(params, images, masks):
        features = build(params)(images, sizes, masks.reshape(4, 2, -1), key=jax.random.key(0))
        return features.mask_embeddings, features.statistics

    alone = jax.jit(run)(params, images[:, :64, :64], masks[..., :2, :2])
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4],
                         axis_types=(jax.sharding.AxisType.Auto,))
    of_batch = jax.NamedSharding(mesh, jax.P("data"))
    spread = jax.jit(run, in_shardings=(jax.NamedSharding(mesh, jax.P()), of_batch, of_batch))(
        params, images, masks)
    near(spread[0], alone[0], 1e-4)
    statistics = parameters.flatten(alone[1])
    assert set(statistics) == {p for p in parameters.flatten(params)
                               if p.endswith(("running_mean", "running_var"))}
    for path, want in statistics.items():
        near(parameters.flatten(spread[1])[path], want, 1e-4)


@pytest.mark.parametrize("method", ["avg", "max", "nearest", "bicubic"])
def test_masks_reach_a_finer_grid_unchanged_where_nothing_is_to_do(method, rng):
    masks = jnp.asarray(rng.random((2, 6, 4)), jnp.float32)
    near(resample.masks_to_size(masks, (6, 4), method), masks)
    near(resample.masks_to_size(jnp.ones((1, 7, 9)), (3, 4), method), np.ones((1, 3, 4)))
    with pytest.raises(ValueError, match="got the method 'area' for masks, wanted .*bicubic"):
        resample.masks_to_size(masks, (3, 2), "area")


def test_dense_cells_of_a_resnet_see_others_where_logits_exceed_the_bias():
    config = TOWERS["resnet"]
    pool = clip_resnet.AttentionPool(config, 8, dtype=jnp.float32, heads="apart",
                                     rngs=parameters.Keys(0))
    side = config.image_size // 32
    x = 30 * jax.random.normal(jax.random.key(1), (1, side, side, 8))
    pool.key.kernel[...] *= 40
    grid = layers.Grid((side, side), jnp.array([[side, side]]), jnp.ones((1, side * side), bool),
                       None)
    found = pool(x, grid, jnp.ones(2), dense=True).patch_embeddings[0]
    cells = x.reshape(side * side, 8) + pool.position_table[...][1:]
    heads = lambda layer: layer(cells).reshape(len(cells), 2, 4)
    logits = jnp.einsum("qak,lak->aql", heads(pool.query), heads(pool.key)) / 2
    assert float(abs(logits).max()) > 200
    weights = jax.nn.softmax(logits - 100 * (1 - jnp.eye(len(cells)))[None], -1)
    want = pool.out(jnp.einsum("aql,lak->qak", weights, heads(pool.value)).reshape(len(cells), 8))
    np.testing.assert_allclose(found, want, atol=2e-4)
    assert float(abs(want - pool.out(pool.value(cells))).max()) > 0.1  # its own value is another
