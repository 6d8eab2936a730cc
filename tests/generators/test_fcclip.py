"""FC-CLIP: deformable attention beside a plain form, laws of the decoders, files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters
from maskclippp_jax.generators import pixel_decoder
from maskclippp_jax.generators.fcclip import FCCLIPConfig
from maskclippp_jax.generators.mask_decoder import MaskDecoderConfig
from maskclippp_jax.generators.pixel_decoder import PixelDecoderConfig, PixelFeatures
from maskclippp_jax.models.clip_convnext import ConvNeXt, ConvNeXtConfig
from maskclippp_jax.weights import fcclip as files, rules
from maskclippp_jax.weights.files import read

pytestmark = pytest.mark.usefixtures("explicit_ranks")

CHANNELS = (8, 12, 16, 20)
CONFIG = FCCLIPConfig(
    ConvNeXtConfig(320, CHANNELS, (1, 1, 1, 1), embed_dim=24),
    PixelDecoderConfig(CHANNELS, width=32, mask_width=32, num_heads=2, depth=1, mlp_width=16,
                       num_points=2),
    MaskDecoderConfig(5, width=32, mask_width=32, num_heads=2, depth=3, mlp_width=16))


@functools.cache
def params():
    """Random parameters, drawn by hand: a network's own initialisers take a minute one by one."""
    rng = np.random.default_rng(4)
    draw = lambda shape: (rng.standard_normal(shape) / max(1, np.prod(shape[:-1]))**0.5)
    return parameters.unflatten({
        path: np.asarray(1 + draw(x.shape) / 9 if path.endswith(("scale", "gamma")) else
                         draw(x.shape), np.float32)
        for path, x in parameters.flatten(files.abstract(CONFIG)[1]).items()})


@functools.cache
def network():
    return files.abstract(CONFIG)[0](params())


@functools.cache
def compiled():
    return jax.jit(lambda image, size: network()(image, size))


@pytest.fixture
def image(rng):
    return jnp.asarray(rng.integers(0, 256, (1, 64, 32, 3), np.uint8))


# ---- The network --------------------------------------------------------------------------------


def test_points_are_read_from_four_neighbours_and_are_0_outside(rng):
    shapes = ((3, 4), (5, 2))
    values = rng.standard_normal((2, 22, 2, 3)).astype(np.float32)
    locations = rng.uniform(-0.6, 1.6, (2, 7, 2, 2, 5, 2)).astype(np.float32)
    weights = rng.uniform(size=(2, 7, 2, 2, 5)).astype(np.float32)
    want = np.zeros((2, 7, 2, 3))
    for b, q, head, level, point in np.ndindex(weights.shape):
        height, width = shapes[level]
        grid = values[b, level * 12:level * 12 + height * width, head].reshape(height, width, 3)
        x, y = locations[b, q, head, level, point] * (width, height) - 0.5
        for row in range(height):
            for column in range(width):
                share = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                want[b, q, head] += weights[b, q, head, level, point] * share * grid[row, column]
    got = pixel_decoder.sample(*map(jnp.asarray, (values,)), shapes, jnp.asarray(locations),
                               jnp.asarray(weights))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_points_far_outside_give_0():
    far = jnp.array([1e9, -1e9, 3.0, -3.0])
    locations = jnp.stack([far, far[::-1]], -1)[None, None, None, None]
    got = pixel_decoder.sample(jnp.ones((1, 6, 1, 2)), ((2, 3),), locations,
                               jnp.ones((1, 1, 1, 1, 4)))
    np.testing.assert_array_equal(got, jnp.zeros((1, 1, 1, 2)))


def test_a_cell_of_the_reference_points_is_the_cell_itself(rng):
    shapes = ((2, 3), (4, 6))
    values = jnp.asarray(rng.standard_normal((1, 30, 1, 4), np.float32))
    points = pixel_decoder.reference_points(shapes)[None, :, None, None, None]
    own = jnp.repeat(jnp.eye(2), np.array([6, 24]), 0)[None, :, None, :, None]
    got = pixel_decoder.sample(values, shapes, jnp.broadcast_to(points, (1, 30, 1, 2, 1, 2)), own)
    np.testing.assert_allclose(got, values, atol=1e-5)


def test_masks_on_a_map_are_those_of_full_size_resized(rng):
    decoder = network().decoder
    features = jnp.asarray(rng.standard_normal((2, 8, 12, 32), np.float32))
    queries = jnp.asarray(rng.standard_normal((2, 5, 32), np.float32))
    got = decoder.allowed(queries, pixel_decoder.resize(features, (4, 3)))
    masks = decoder.mask_logits(queries, features)
    small = jax.image.resize(masks, (2, 5, 4, 3), "bilinear", antialias=False)
    assert jnp.abs(small).min() > 1e-5 and 0 < got.mean() < 1
    np.testing.assert_array_equal(got, (small >= 0).reshape(2, 5, 12))


def test_a_query_without_a_mask_sees_everything():
    decoder = network().decoder
    queries = jnp.asarray(np.random.default_rng(1).standard_normal((1, 5, 32), np.float32))
    embedded = decoder.mask_head(decoder.norm(queries))
    features = jnp.broadcast_to(-embedded[:, :1, None], (1, 1, 3, 32)) * jnp.array(
        [1.0, 1.0, 2.0])[None, None, :, None]  # below 0 for the first query
    assert decoder.mask_logits(queries, features)[0, 0].max() < 0
    assert decoder.allowed(queries, features)[0, 0].all()


def test_what_lies_in_the_padding_does_not_matter(image):
    run = compiled()
    size = jnp.array([[50, 20]])
    inside = (jnp.arange(64)[:, None] < 50) & (jnp.arange(32)[None] < 20)
    one, other = (run(jnp.where(inside[None, ..., None], image, fill), size) for fill in (
        np.uint8(0), np.uint8(200)))
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)
    assert one.mask_logits.shape == (1, 5, 16, 8) and one.class_embeddings.shape == (1, 5, 24)
    np.testing.assert_allclose(jnp.linalg.norm(one.class_embeddings, axis=-1), jnp.ones((1, 5)),
                               atol=1e-5)


def test_the_trunk_is_that_of_the_image_tower(image):
    """Of which the last map's mean goes through the head."""
    build, shapes = parameters.abstract(lambda: ConvNeXt(CONFIG.image, rngs=parameters.Keys(0)))
    rng = np.random.default_rng(2)
    head = {part: jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes[part])
            for part in ("norm", "head")}

    @jax.jit
    def run(image):
        tower, size = build(params()["image"] | head), jnp.array([[64, 32]])
        last = network().maps(image, size)[-1]
        return tower(image, size).image_embedding, tower.head(tower.norm(last.mean((1, 2))))

    np.testing.assert_allclose(*run(image), rtol=1e-4, atol=1e-4)


def test_the_last_logit_is_that_of_nothing(rng):
    model = network()
    embeddings = jnp.asarray(rng.standard_normal((1, 2, 24), np.float32))
    names = jnp.eye(24)[:3]
    logits = model.name_logits(embeddings, names)
    assert logits.shape == (1, 2, 4)
    void = model.void_embedding[...]
    np.testing.assert_allclose(
        logits[..., 3] / logits[..., 0],
        embeddings @ void / jnp.linalg.norm(void) / embeddings[..., 0], rtol=1e-4)


@pytest.mark.parametrize("shape, says", [((1, 40, 64, 3), "got pictures of 40x64 pixels"),
                                         ((1, 64, 33, 3), "multiples of 32")])
def test_a_picture_that_is_not_padded_is_refused(shape, says):
    with pytest.raises(ValueError, match=says):
        network()(jnp.zeros(shape), jnp.array([shape[1:3]]))


def test_other_maps_are_refused():
    maps = [jnp.zeros((1, 8, 8, n)) for n in CHANNELS]
    with pytest.raises(ValueError, match="got maps of .*20, 16, 12, 8.* channels, wanted"):
        network().pixel_decoder(maps[::-1])
    with pytest.raises(ValueError, match="got 2 maps, wanted 3"):
        network().decoder(PixelFeatures(jnp.zeros((1, 8, 8, 32)), [jnp.zeros((1, 2, 2, 32))] * 2))


# ---- Files --------------------------------------------------------------------------------------


def named(prefix: str = files.CLIP) -> dict[str, np.ndarray]:
    """The parameters under their published names, the trunk below a prefix."""
    table = (*files.HEAD_RULES, *files.trunk_rules(prefix, CONFIG.image))
    return rules.export(params(), table)


@pytest.fixture
def written(tmp_path):
    """A MAFT+ file with what such files hold besides, an FC-CLIP file, and a CLIP's file."""
    extra = {f"{files.CLIP}visual.trunk.head.norm.weight": np.ones(20, np.float32),
             f"{files.CLIP}logit_scale": np.float32(1)[None], "cdt.x": np.ones(1, np.float32),
             "backbone_t.clip_model.visual.trunk.stem.0.bias": np.ones(8, np.float32),
             "criterion.empty_weight": np.ones(4, np.float32)}
    whole = named()
    clip = {k.removeprefix(files.CLIP): x for k, x in (whole | extra).items()
            if k.startswith(files.CLIP)}
    head = {k: x for k, x in whole.items() if not k.startswith("backbone.")}
    paths = []
    for name, tensors in (("maftp", whole | extra), ("fcclip", head), ("clip", clip)):
        paths.append(str(tmp_path / f"{name}.safetensors"))
        save_file(tensors, paths[-1])
    return paths


def test_a_whole_file_and_one_beside_its_clip_give_the_same(written):
    maftp, fcclip, clip = written
    source = read(maftp)
    config = files.config_of(source.shapes, maftp, num_heads=2)
    assert config == CONFIG
    loaded = files.load(source, config, maftp)
    beside = files.load(read(fcclip), config, fcclip, read(clip))
    want = parameters.flatten(params())
    for found in (loaded, beside):
        found = parameters.flatten(found)
        assert found.keys() == want.keys()
        assert all(np.array_equal(found[path], want[path]) for path in want)


def test_a_file_that_does_not_fit_is_refused(written, tmp_path):
    maftp, fcclip, clip = written
    source = read(fcclip)
    with pytest.raises(ValueError, match="fcclip.safetensors has no trunk of its own"):
        files.load(source, CONFIG, fcclip)
    with pytest.raises(ValueError, match="of a trunk of .* that it does not hold"):
        files.config_of(source.shapes, fcclip, num_heads=2)
    with pytest.raises(ValueError, match="wanted multiples of 3 heads"):
        files.config_of(read(maftp).shapes, maftp, num_heads=3)
    with pytest.raises(ValueError, match="clip.safetensors holds no whole FC-CLIP or MAFT+"):
        files.config_of(read(clip).shapes, clip)
    more = named() | {"sem_seg_head.predictor.other": np.ones(1, np.float32)}
    del more["sem_seg_head.predictor.decoder_norm.bias"]
    save_file(more, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match="2 problems.*predictor.other: unkn.*decoder/norm/bias"):
        files.load(read(str(tmp_path / "more.safetensors")), CONFIG, "more")
