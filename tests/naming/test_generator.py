"""Generators: from pictures to masks, and to segments in their own classes; what is refused."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import maskclippp_jax as mc
from maskclippp_jax import params as parameters
from maskclippp_jax.data import generator_input
from maskclippp_jax.naming import generator as generator_file, generator_loading
from maskclippp_jax.vocabulary import Vocabulary
from maskclippp_jax.weights import eomt, published_generators
from tests import starts, tiny_eomt, tiny_generators


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_eomt.write_folder(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture(scope="module")
def generator(folder):
    return mc.load_generator(folder)


def draw(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_masks_of_a_picture_are_what_a_bundle_would_hold(generator):
    image = draw(40, 90)
    given = generator(image)
    masks, classes, enlarged, kept = given.masks
    assert masks.shape == (len(given.ids), 16, 16) and classes.shape == (len(given.ids), 4)
    assert enlarged == (64, 64) and kept == (28, 64) and 0 < len(given.ids) < 6
    # The same, straight from the network.
    build, _ = eomt.abstract(generator.config)
    found = jax.jit(lambda params, image: build(params)(image))(
        tiny_eomt.params(), generator_input.letterbox(image, 64)[None])
    scores = np.asarray(jax.nn.softmax(found.class_logits[0]))
    inside = np.asarray(found.mask_logits[0, :, :7] > 0).any((1, 2))
    rows = np.flatnonzero((scores[:, -1] < 0.5) & inside)
    np.testing.assert_allclose(masks, found.mask_logits[0][rows], atol=1e-4)
    assert given.bundle is generator and generator.kind == "closed" and generator.width == 4


def test_a_second_picture_compiles_nothing(generator):
    generator(draw(64, 64))
    before = generator._predict.jitted._cache_size()
    generator(draw(31, 77))
    assert generator._predict.jitted._cache_size() == before == 1


def test_a_second_start_traces_no_network_and_finds_the_same(generator, tmp_path, monkeypatch):
    def start():
        again = generator_file.Generator(
            generator.config, tiny_eomt.params(), generator.vocabulary, "again", objectness=0)
        return again.propose(draw(31, 77))

    starts.check(start, tmp_path, lambda: monkeypatch.setattr(eomt, "abstract", None))


def test_threads_get_what_one_gets(generator):
    images, found = [draw(50, 60, seed=n) for n in range(4)], {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: generator(images[n])}))
               for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for n, image in enumerate(images):
        np.testing.assert_array_equal(found[n].masks.masks, generator(image).masks.masks)


@pytest.mark.parametrize("size", [(1, 1), (2000, 4), (3, 300)])
def test_pictures_of_odd_sizes_have_masks_of_their_size(generator, size):
    given = generator(draw(*size))
    assert min(given.masks.kept) >= 1 and max(given.masks.kept) == 64
    ids, segments = generator.panoptic(draw(*size))
    assert ids.shape == size and set(np.unique(ids)) <= {0, *(s["id"] for s in segments)}


def test_pictures_of_16_bits_in_grey_and_with_alpha_are_read(generator, tmp_path):
    image = draw(30, 40)
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([image, np.full((30, 40), 255, np.uint8)])).save(tmp_path / "a.png")
    grey = generator(np.repeat(image[..., :1], 3, -1)).masks.masks
    for name, want in (("deep", grey), ("grey", grey), ("a", generator(image).masks.masks)):
        given = generator(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(given.masks.masks, want)
        assert given.path == str(tmp_path / f"{name}.png")


def test_no_query_above_the_threshold_is_no_mask(folder):
    generator = mc.load_generator(folder, objectness=0.99999)
    assert generator(draw(40, 40)).masks.masks.shape == (0, 16, 16)


def test_segments_in_own_classes_have_their_names(generator):
    ids, segments = generator.panoptic(draw(40, 90))
    assert {s["name"] for s in segments} <= set(tiny_eomt.CLASSES)
    found = generator.instances(draw(40, 90), 7)
    assert found.masks.shape == (7, 40, 90) and found.scores.shape == (7,)
    with pytest.raises(ValueError, match="label maps come from one that was trained for them"):
        generator.semantic(draw(40, 90))


def test_a_semantic_generator_gives_label_maps_and_no_masks(folder):
    generator = generator_file.Generator(
        tiny_eomt.CONFIG, tiny_eomt.params(), Vocabulary.from_names(tiny_eomt.CLASSES), "tiny",
        task="semantic")
    labels = generator.semantic(draw(40, 90))
    assert labels.shape == (40, 90) and set(np.unique(labels)) <= {0, 1, 2}
    for call in (generator, generator.panoptic, generator.instances):
        with pytest.raises(ValueError, match="looks at windows of a picture"):
            call(draw(40, 90))


def test_the_size_of_its_input_may_be_another(folder):
    generator = mc.load_generator(folder, side=96)
    assert generator(draw(40, 40)).masks.masks.shape[1:] == (24, 24)
    with pytest.raises(ValueError, match="got side=100, wanted a multiple of 16"):
        mc.load_generator(folder, side=100)


def test_bfloat16_finds_much_the_same(folder, generator):
    half = mc.load_generator(folder, dtype="bfloat16")
    one, other = (g.propose(draw(64, 64)).masks for g in (generator, half))
    assert ((one > 0) == (other > 0)).mean() > 0.97
    with pytest.raises(ValueError, match="got dtype='float16', wanted float32 or bfloat16"):
        mc.load_generator(folder, dtype="float16")


@pytest.mark.parametrize("config, params, rounded", [
    (tiny_eomt.CONFIG, tiny_eomt.params, ("blocks/0/mlp/fc1/kernel", "upscale/0/conv1/bias")),
    (tiny_generators.FCCLIP, tiny_generators.fcclip_params, ("image/stages/1/blocks/0/kernel",)),
    (tiny_generators.MASK2FORMER, tiny_generators.mask2former_params,
     ("image/stages/0/blocks/0/mlp/fc2/bias",))])
def test_parameters_that_lie_in_bfloat16_give_the_same(config, params, rounded):
    whole = params()
    half = generator_file.in_dtype(whole, config, jnp.bfloat16)
    leaves = parameters.flatten(half)
    assert {leaves[path].dtype for path in rounded} == {jnp.dtype(jnp.bfloat16)}
    kept = [path for path, x in leaves.items() if x.dtype == np.float32]
    # Norms, tables and scales, and all that is computed in float32.
    assert any(path.endswith("scale") for path in kept)
    decoders = {path for path in leaves if not path.startswith("image/")}
    assert config is tiny_eomt.CONFIG or decoders <= {*kept}
    for dtype, equal in ((jnp.float32, True), (jnp.bfloat16, False)):
        build, _ = generator_file.abstract(config, dtype=dtype)
        size = () if config is tiny_eomt.CONFIG else (np.array([[64, 64]], np.int32),)
        run = jax.jit(lambda params: build(params)(draw(64, 64)[None], *size))  # noqa: B023
        one, other = run(whole), run(generator_file.in_dtype(whole, config, dtype))
        for x, y in zip(one, other, strict=True):
            # A compiler for CPUs may leave out to round what it widens again.
            np.testing.assert_allclose(x, y, atol=0 if equal else 0.05 * np.abs(x).max(), rtol=0)


def test_every_place_of_the_weights_gives_the_same(folder, generator, tmp_path):
    save_file(tiny_eomt.named("authors"), tmp_path / "pytorch_model.safetensors")
    want = generator(draw(40, 40)).masks.masks
    for place in (folder / "model.safetensors", tmp_path / "pytorch_model.safetensors"):
        np.testing.assert_array_equal(mc.load_generator(place)(draw(40, 40)).masks.masks, want)
    # Nobody named its classes, so they are like no word of another vocabulary.
    names = mc.load_generator(tmp_path / "pytorch_model.safetensors").vocabulary.classes
    assert len(names) == 3 and all(str(tmp_path) in c[0] for c in names)


EOMTS = [e for e in published_generators.GENERATORS if e.name.startswith("eomt")]


@pytest.mark.parametrize("entry", EOMTS, ids=lambda e: e.name)
def test_published_generators_are_found_by_their_names_and_their_sizes(entry):
    find = published_generators.find
    assert find(entry.name) == find(entry.repository) == find(entry.repository[8:]) == entry
    assert published_generators.of_config(entry.config) == [entry]
    assert Vocabulary.shipped(entry.vocabulary).num_classes == entry.config.num_classes
    assert entry.task in ("panoptic", "instance", "semantic")


def test_published_generators_are_listed_once():
    names = [e.name for e in EOMTS]
    assert len(set(names)) == len(names) == 14
    for entry in EOMTS:
        _, shapes = eomt.abstract(entry.config)
        assert f"{parameters.count(shapes) / 1e6:.1f}" == f"{entry.millions:.1f}"


def test_a_published_name_is_fetched_and_must_be_of_that_model(folder, monkeypatch):
    fetched = []
    monkeypatch.setattr(generator_loading.eomt, "open_file", lambda path: (
        fetched.append(path), mc_open(str(folder / "model.safetensors")))[1])
    with pytest.raises(ValueError, match="is of no published model, wanted eomt-s-640"):
        mc.load_generator("eomt-s-640")
    assert fetched == ["hf://tue-mps/coco_panoptic_eomt_small_640_2x"]


mc_open = generator_loading.eomt.open_file


@pytest.mark.parametrize("source, error, says", [
    ("eomt-xl-640", FileNotFoundError, "no published generator of this name; did you mean eomt-"),
    ("nothing.bin", FileNotFoundError, "no file or folder nothing.bin, and no published generator"),
    ("{empty}", FileNotFoundError, "the folder .* has none of .*model.safetensors"),
    ("{clip}", ValueError, "config.json beside .* is of the kind clip, the file .* kind eomt"),
    ("{other}", ValueError, "other.safetensors holds a CLIP, which finds no masks"),
    ("{short}", ValueError, "no safetensors file, or was cut short"),
])
def test_what_is_no_generator_is_refused(source, error, says, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    tiny_eomt.write_folder(tmp_path / "clip", model_type="clip")
    save_file({"visual.proj": np.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "short.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:5000])
    places = {p.stem: p for p in tmp_path.iterdir()}
    with pytest.raises(error, match=says):
        mc.load_generator(source.format(**places))


def test_a_vocabulary_of_another_length_is_refused():
    with pytest.raises(ValueError, match="tiny has 3 classes, its vocabulary names 2"):
        generator_file.Generator(tiny_eomt.CONFIG, tiny_eomt.params(),
                                 Vocabulary.from_names(["a", "b"]), "tiny")


def test_the_widths_of_heads_are_those_of_a_config_beside(tmp_path):
    place = tiny_eomt.write_folder(tmp_path / "x", num_attention_heads=4)
    assert mc.load_generator(place).config == dataclasses.replace(tiny_eomt.CONFIG, num_heads=4)
    (place / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is no JSON"):
        mc.load_generator(place)
