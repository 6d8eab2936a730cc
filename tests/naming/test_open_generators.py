"""FC-CLIP, MAFT+ and Mask2Former: from pictures to masks and opinions of any words."""

import itertools
import resource

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import maskclippp_jax as mc
from maskclippp_jax import params as parameters, weights
from maskclippp_jax.data import generator_input, transforms
from maskclippp_jax.data.bundles import Preparation
from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.generators.fcclip import FCCLIPConfig
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.naming import batching, generator as generator_file, generator_loading, loading
from maskclippp_jax.naming.given import Given
from maskclippp_jax.runtime import storage
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary
from maskclippp_jax.weights import fcclip, files, mask2former, published_generators, published_tuned
from tests import starts, tiny_eomt, tiny_generators as tiny
from tests.tiny_model import TINY

# Small pictures, so that little is computed; and every one of them becomes 64 x 64.
SMALL = Preparation(64, 64, None, 64)
LEARNT = ["a cat", "a dog, puppy", "grass"]


def draw(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_pictures_of_one_padded_size_go_through_together_and_find_what_they_do_alone(
        opened, closed, monkeypatch):
    pictures = [draw(*size, seed=n) for n, size in enumerate(
        ((50, 90), (64, 100), (64, 64), (70, 110), (64, 120)))]
    for generator in (opened, closed):
        monkeypatch.setattr(generator, "preparation", SMALL._replace(loader_max=128, multiple=32))
        batches, run = [], generator._run
        monkeypatch.setattr(generator, "_run", lambda canvases, ways: batches.append(
            [w.padded for w in ways]) or run(canvases, ways))
        found = batching.in_groups(
            [generator.enter(p) for p in pictures], lambda item: isinstance(item, Given),
            lambda item: item.group, generator.find, size=2, ahead=3)
        alone = [generator.find([generator.enter(p)])[0] for p in pictures]
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_allclose(one.masks.masks, other.masks.masks, atol=2e-4)
            np.testing.assert_allclose(one.masks.classes, other.masks.classes, atol=2e-5)
        assert batches[5:] == [[(64, 128)] * 2, [(64, 128)] * 2, [(64, 64)] * 2]


def test_a_folder_of_transformers_is_the_same_mask2former_and_tells_its_classes(closed, tmp_path):
    folder = tiny.write_mask2former_folder(tmp_path / "m2f", num_attention_heads=8,
                                           id2label={0: "cat", 1: "dog", 2: "grass-merged"})
    found = small(mc.load_generator(folder, objectness=0.1))
    assert found.vocabulary.classes == (("cat",), ("dog",), ("grass",))
    for one, other in zip(found.propose(draw(40, 60)), closed.propose(draw(40, 60)), strict=True):
        np.testing.assert_array_equal(one, other)
    other = folder / "preprocessor_config.json"
    other.write_text('{"image_mean": [0.5, 0.5, 0.5], "size": {"shortest_edge": 800}}')
    with pytest.raises(ValueError, match=r"image_mean \[0.5, .*, wanted \[0.485, 0.456, 0.406\]"):
        mc.load_generator(folder)
    other.write_text('{"image_mean": [0.48500001430511475, 0.456, 0.406]}')
    mc.load_generator(folder)
    (folder / "config.json").write_text('{"model_type": "maskformer"}')
    with pytest.raises(ValueError, match="of the kind maskformer, the file is of the kind mask2f"):
        mc.load_generator(folder)


def test_fast_pads_to_coarser_sizes(place):
    generator = mc.load_generator(place / "whole.safetensors", classes=LEARNT, fast=True)
    sizes = [(480, 640), (480, 700), (427, 640), (640, 427), (500, 333)]
    assert {generator.way_of(size).padded for size in sizes} == {
        (800, 1120), (800, 1280), (1280, 800)}
    exact = mc.load_generator(place / "whole.safetensors", classes=LEARNT)
    assert len({exact.way_of(size).padded for size in sizes}) == 4


def small(generator):
    generator.preparation = SMALL
    return generator


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files of all kinds; embeddings of names are kept there too."""
    folder = tmp_path_factory.mktemp("generators")
    tiny.write_fcclip(folder / "whole.safetensors")
    tiny.write_apart(folder / "head.safetensors", folder / "clip.safetensors")
    tiny.write_mask2former(folder / "m2f.pkl")
    (folder / "tiny.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "CACHE", folder / "cache")
        yield folder


@pytest.fixture(scope="module")
def opened(place):
    found = small(mc.load_generator(place / "whole.safetensors", classes=LEARNT))
    found.objectness = float(np.median(found.objectness_of(found.propose(draw(50, 90)).classes)))
    return found


@pytest.fixture(scope="module")
def closed(place):
    return small(mc.load_generator(place / "m2f.pkl", objectness=0.1))


# ---- From a picture to masks --------------------------------------------------------------------


def test_masks_are_those_of_the_network_for_a_picture_resized_and_padded(opened, closed):
    image = draw(50, 90)
    loaded = transforms.resize_image(image, (36, 64))  # 35.6 rows, rounded
    padded = np.zeros((1, 64, 64, 3), np.uint8)
    padded[0, :36] = loaded
    build, _ = mask2former.abstract(closed.config)
    want = jax.jit(lambda params, *x: build(params)(*x))(
        tiny.mask2former_params(), padded, np.array([[36, 64]], np.int32))
    for generator in (opened, closed):
        masks, classes, enlarged, kept = generator.propose(image)
        assert enlarged == (64, 64) and kept == (36, 64)
        assert masks.shape == (6, 16, 16) and classes.shape == (6, generator.width)
    for found, wanted in zip((masks, classes), want):
        np.testing.assert_allclose(found, wanted[0], atol=1e-4)


def test_a_picture_of_like_size_and_other_words_compile_nothing(opened):
    opened(draw(64, 64))
    before = opened._predict.jitted._cache_size()
    opened(draw(31, 77, seed=1))
    opened.embed(Vocabulary.from_names(["one word"]))
    assert opened._predict.jitted._cache_size() == before


@pytest.mark.parametrize("file", ["whole.safetensors", "m2f.pkl"])
def test_a_second_start_traces_no_generator_and_finds_the_same(place, tmp_path, monkeypatch, file):
    def start():
        generator = small(mc.load_generator(place / file, objectness=0, **(
            {} if file == "m2f.pkl" else dict(classes=LEARNT))))
        return generator.propose(draw(50, 90))

    # No network is made any more.
    starts.check(start, tmp_path, lambda: monkeypatch.setattr(parameters, "abstract", None))


def test_a_second_resize_goes_without_antialiasing(opened):
    """As published evaluations of MaskCLIP++ enlarge what they loaded."""
    image = draw(40, 60)
    way = generator_input.way_of(image.shape[:2], Preparation(32, 64, 40, 64), "x")
    assert way == ((32, 48), (40, 60), (64, 64))
    entered = generator_input.enter(image, way)
    assert entered.shape == (64, 64, 3) and not entered[32:].any() and not entered[:, 48:].any()
    want = jax.image.resize(transforms.resize_image(image, (32, 48)).astype(np.float32),
                            (40, 60, 3), "linear", antialias=False)
    seen = generator_file.inference.to_network_size(
        jax.numpy.asarray(entered), np.array([32, 48]), np.array([40, 60]), (64, 64))
    np.testing.assert_allclose(seen[:40, :60], want, atol=1e-3)
    assert not np.asarray(seen)[40:].any()
    opened.preparation = Preparation(32, 64, 40, 64)
    try:
        assert opened.propose(image).kept == (40, 60)
    finally:
        opened.preparation = SMALL


@pytest.mark.parametrize("size, way", [
    ((1, 1), ((800, 800), (800, 800), (800, 800))),
    ((480, 640), ((800, 1067), (800, 1067), (800, 1088))),
    ((10000, 20), ((2560, 5), (2560, 5), (2560, 32))),
    ((1, 90000), ((1, 2560), (1, 2560), (32, 2560)))])
def test_pictures_of_odd_sizes_fit_into_the_published_input(size, way):
    assert generator_input.way_of(size, generator_file.PREPARATIONS[FCCLIPConfig], "x") == way


def test_a_picture_that_would_be_too_large_is_refused():
    with pytest.raises(ValueError, match="20x10000 pixels becomes 800x409600 in fcclip-l, more"):
        generator_input.way_of((10000, 20), Preparation(512, 2048, 800, 32), "fcclip-l")


def test_pictures_of_16_bits_in_grey_and_with_alpha_are_read(closed, tmp_path):
    image = draw(64, 64)
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([image, np.full((64, 64), 255, np.uint8)])).save(tmp_path / "a.png")
    grey = closed(np.repeat(image[..., :1], 3, -1)).masks.masks
    for name, want in (("deep", grey), ("a", closed(image).masks.masks)):
        np.testing.assert_array_equal(closed(tmp_path / f"{name}.png").masks.masks, want)


def test_an_object_is_what_fits_a_class_that_was_learnt_better_than_void(opened):
    found = opened.propose(draw(50, 90))
    names = opened.embed(opened.vocabulary)
    void = np.array(opened.classes["void_embedding"])
    scale = opened.classes["logit_scale"]
    # Four names, two of one class.
    logits = scale * np.stack([found.classes @ names[0], (found.classes @ names[1:3].T).max(1),
                               found.classes @ names[3], found.classes @ void], 1)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(opened.objectness_of(found.classes), 1 - shares[:, 3], atol=1e-5)
    has_pixels = (found.masks[:, :9] > 0).any((1, 2))
    kept = (1 - shares[:, 3] > opened.objectness) & has_pixels
    assert 0 < kept.sum() < 6
    given = opened(draw(50, 90))
    np.testing.assert_array_equal(given.masks.masks, found.masks[kept])
    np.testing.assert_array_equal(given.masks.classes, found.classes[kept])


def test_names_are_embedded_once_in_every_template(opened, monkeypatch):
    calls, embed = [], opened._embed
    monkeypatch.setattr(opened, "_embed", lambda v: calls.append(v) or embed(v))
    vocabulary = Vocabulary.from_names(["grass", "one, another"])
    first = opened.embed(vocabulary)
    assert opened.embed(Vocabulary.from_names(["grass", "one, another"])) is first
    assert len(calls) == 1
    # Naively: each sentence, its unit vector, the mean over templates, and that one's.
    model = MaskCLIPppConfig(tiny.FCCLIP.image, tiny.TEXT, similarity=None)
    each = loading.embed_names(model, tiny.text_params(),
                               loading.tokenize(model, vocabulary, TEMPLATES_14))
    want = each.mean(1) / np.linalg.norm(each.mean(1), axis=-1, keepdims=True)
    np.testing.assert_allclose(first, want, atol=1e-6)


# ---- Named by a model ---------------------------------------------------------------------------


def test_a_model_names_what_an_open_generator_finds_and_void_is_of_the_words_asked(place, opened):
    model = mc.load("untuned", str(place / "tiny.py"), generator=opened, keep_embeddings=False)
    image = draw(50, 90)
    words = ["red one", "grey grass, blue one"]
    result = model.segment(image, words)
    given = opened(image)
    np.testing.assert_array_equal(result.ids, given.ids)
    assert len(result) > 0
    names = opened.embed(model.vocabulary(words).vocabulary)
    logits = opened.classes["logit_scale"] * np.stack([
        given.masks.classes @ names[0], (given.masks.classes @ names[1:].T).max(1),
        given.masks.classes @ np.array(opened.classes["void_embedding"])], 1)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(result.void, shares[:, 2], atol=1e-4)
    np.testing.assert_allclose(result.scores.sum(1) + result.void, 1, atol=1e-5)
    assert result.masks.shape == (len(result), 50, 90)
    # What is written follows from masks and scores.
    sums = np.einsum("nc,nhw->chw", result.scores, result.soft_masks)
    sure = np.sort(sums, 0)[-1] - np.sort(sums, 0)[-2] > 1e-3
    np.testing.assert_array_equal(result.labels[sure], sums.argmax(0)[sure])
    rows = result.to_coco(7)
    assert [mc.Vocabulary.from_names(words).classes[r["category_id"]][0] for r in rows] == (
        result.names)
    assert all(r["segmentation"]["size"] == [50, 90] for r in rows)
    ids, segments = result.panoptic
    assert {s["id"] for s in segments} == set(np.unique(ids)) - {0}
    assert len(model.segment(image, "red one")) == len(result)  # a vocabulary of one word


def test_ten_thousand_words_are_told_apart_in_little_memory(place, opened, monkeypatch):
    monkeypatch.setattr(generator_loading, "TEMPLATES_14", TEMPLATES_14[:1])  # sooner
    model = mc.load("untuned", str(place / "tiny.py"), generator=opened, keep_embeddings=False)
    known = [word for word in TextConfig.quickstart().words if word.isalpha()]
    words = [" ".join(three) for three in itertools.islice(
        itertools.product(known, repeat=3), 10_000)]
    image = draw(300, 400)  # scores of all words in all pixels would be 4.8 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = model.segment(image, words)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 1.5 * 2**20  # KiB
    assert result.scores.shape == (len(result), 10_000) and len(result) > 0
    np.testing.assert_allclose(result.scores.sum(1) + result.void, 1, atol=1e-4)
    np.testing.assert_array_equal(result.classes, result.scores.argmax(1))
    # In each pixel the label is the class that all masks together say, here of some of the pixels.
    rows, columns = np.random.default_rng(0).integers(0, (300, 400), (50, 2)).T
    sums = result.soft_masks[:, rows, columns].T @ result.scores
    sure = np.sort(sums, 1)[:, -1] - np.sort(sums, 1)[:, -2] > 1e-6
    assert sure.sum() > 10
    np.testing.assert_array_equal(result.labels[rows, columns][sure], sums.argmax(1)[sure])


def test_no_mask_above_the_threshold_is_an_empty_result(place, opened, tmp_path):
    nothing = small(mc.load_generator(place / "whole.safetensors", objectness=0.9999,
                                      classes=LEARNT))
    model = mc.load("untuned", str(place / "tiny.py"), generator=nothing, keep_embeddings=False)
    result = model.segment(draw(50, 90), "red one")
    assert len(result) == 0 and (result.labels == -1).all() and result.to_coco() == []
    assert result.panoptic[1] == [] and len(result.instances.scores) == 0
    result.save(tmp_path, "x")
    assert (np.asarray(Image.open(tmp_path / "x.labels.png")) == 255).all()


def test_a_closed_one_finds_segments_of_its_own_classes(closed):
    image = draw(50, 90)
    ids, segments = closed.panoptic(image)
    assert ids.shape == (50, 90) and {s["id"] for s in segments} == set(np.unique(ids)) - {0}
    found = closed.instances(image, 5)
    assert found.masks.shape == (5, 50, 90)
    stuff = generator_file.Generator(
        tiny.MASK2FORMER, tiny.mask2former_params(), Vocabulary("x", (("a",), ("b",), ("c",)), (
            True, False, False), (0, 1, 2)), "x")
    stuff._predict, stuff.preparation = closed._predict, SMALL
    assert set(stuff.instances(image, 18).classes) == {0}  # as its authors, things alone
    with pytest.raises(ValueError, match="m2f.pkl is panoptic; label maps come from one"):
        closed.semantic(image)


def test_an_open_one_has_no_classes_of_its_own(opened):
    for call in (opened.panoptic, opened.instances):
        with pytest.raises(ValueError, match="has no classes of its own; let a model name"):
            call(draw(50, 90))


# ---- Files --------------------------------------------------------------------------------------


def test_a_file_beside_its_clip_is_the_same_as_a_whole_one(place, opened):
    apart = small(mc.load_generator(place / "head.safetensors", clip=place / "clip.safetensors",
                                    objectness=0))
    image = draw(50, 90)
    one, other = opened.propose(image), apart(image).masks
    np.testing.assert_array_equal(one.masks, other.masks)  # an objectness of 0 keeps all
    np.testing.assert_array_equal(one.classes, other.classes)
    vocabulary = Vocabulary.from_names(["grass"])
    np.testing.assert_array_equal(apart.embed(vocabulary), opened.embed(vocabulary))
    # The weights of its loss tell how many classes it learnt.
    assert apart.vocabulary == Vocabulary.shipped("coco_panoptic_133")


@pytest.mark.parametrize("write, settings, says", [
    ("head", {}, "of a trunk of .* that it does not hold.*or the CLIP as well"),
    ("clip", {}, "clip.* holds a CLIP, which finds no masks; give the file of an EoMT"),
    ("tuned", {}, "holds a MaskCLIP.., which names masks and finds none; give it as the checkp"),
    ("resnet", {}, "holds a Mask2Former on another trunk than Swin, or is cut short"),
    ("short", {}, "short.safetensors is no safetensors file, or was cut short"),
    ("lacking", {}, "1 problems.: class_head/pool/bias: not in the file"),
    ("m2f", dict(side=64), "got side=64, but .*m2f.pkl takes pictures of any size"),
    ("m2f", dict(clip="x"), "got clip=x, but .*m2f.pkl needs no CLIP"),
    ("unsaid", {}, "nothing says which classes .*unsaid.safetensors was trained on"),
])
def test_a_file_that_is_none_is_refused_in_a_sentence(place, tmp_path, write, settings, says):
    whole = tiny.named_fcclip()
    lacking = {k: x for k, x in whole.items() if "_mask_pooling_proj.1.bias" not in k}
    other = {k: x for k, x in tiny.named_mask2former().items() if "patch_embed" not in k}
    for name, tensors in (("tuned", {"visual_encoder.x": np.zeros(1)}), ("lacking", lacking),
                          ("resnet", other), ("unsaid", tiny.named_fcclip(learnt=None))):
        if name == write:
            save_file(tensors, tmp_path / f"{name}.safetensors")
    if write == "short":
        content = (place / "whole.safetensors").read_bytes()
        (tmp_path / "short.safetensors").write_bytes(content[:len(content) // 2])
    found = [*tmp_path.glob(f"{write}.*"), *place.glob(f"{write}.*")][0]
    with pytest.raises(ValueError, match=says):
        mc.load_generator(found, **settings)


def test_a_generator_in_place_of_a_clip_is_recognised():
    for names, kind in ((tiny.named_mask2former(), "a Mask2Former"),
                        ([k for k in tiny.named_fcclip() if "backbone" not in k], "an FC-CLIP"),
                        (tiny_eomt.named("authors"), "an EoMT")):
        with pytest.raises(ValueError, match=f"x holds {kind}, which finds masks and names none"):
            weights.layout_of(dict.fromkeys(names), "x")


# ---- The published ones -------------------------------------------------------------------------

# To the last parameter: those of FC-CLIP, MAFT+ and Mask2Former T and L as parity compares them
# with the reference; S and B are their trunks of ImageNet (49,606,258 and 87,903,584 with 1000
# classes) with norms in place of the head.
PUBLISHED = {
    "fcclip-b": 108_007_233, "fcclip-l": 216_948_865, "maftp-b": 107_930_433,
    "maftp-l": 216_872_065, "maftp-l-pano": 216_872_065, "mask2former-t": 47_435_264,
    "mask2former-s": 68_753_168, "mask2former-b": 106_917_822, "mask2former-l": 215_535_610}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_generators_have_their_size_and_are_found(name):
    entry = published_generators.find(name)
    is_open = isinstance(entry.config, FCCLIPConfig)
    _, shapes = (fcclip if is_open else mask2former).abstract(entry.config)
    assert parameters.count(shapes) == PUBLISHED[name]
    assert f"{PUBLISHED[name] / 1e6:.1f}" == f"{entry.millions:.1f}"
    assert entry in published_generators.of_config(entry.config)
    assert published_generators.find(entry.file.rpartition(".")[0]) == entry
    assert entry.source.startswith("https://")
    if is_open:
        assert fcclip.clip_of(entry.config).startswith("hf://laion/")
    else:
        assert Vocabulary.shipped(entry.vocabulary).num_classes == entry.config.num_classes
    others = {e.name for e in published_generators.GENERATORS
              if not isinstance(e.config, EoMTConfig)}
    assert others == set(PUBLISHED)


class Shapes(files.Source):
    """A file of which only the shapes are known."""

    def __init__(self, **shapes):
        self.shapes = {name.replace("__", "."): shape for name, shape in shapes.items()}

    def __getitem__(self, name):
        raise KeyError(name)


def test_which_of_two_alike_a_file_is_of_its_loss_or_its_name_tells():
    which = lambda path, entry=None, **shapes: generator_loading._published(
        FCCLIPConfig.maftp_large(), Shapes(**shapes), path, entry)
    name = lambda *a, **kw: which(*a, **kw).name
    assert name("x.pth", criterion__empty_weight=(134,)) == "maftp-l-pano"
    assert name("x.pth", criterion__empty_weight=(172,)) == "maftp-l"
    assert name("a/maftp_l_pano.pth") == "maftp-l-pano" and name("maftp_l.pth") == "maftp-l"
    with pytest.raises(ValueError, match="x.pth may be maftp-l or maftp-l-pano, which differ"):
        which("x.pth")
    with pytest.raises(ValueError, match="is of maftp-l or maftp-l-pano, wanted fcclip-l"):
        which("x.pth", published_generators.find("fcclip-l"))


def test_a_published_name_says_where_its_file_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="fcclip-l is not here: there is no weights/fcclip_"
                       "coco-pan_clip-convnext-large.pth .*; download https://drive.google.com"):
        mc.load_generator("fcclip-l")
    with pytest.raises(FileNotFoundError, match="maskclippp-l is not here: there is no weights/"):
        mc.load("maskclippp-l")
    (tmp_path / "weights").mkdir()
    tiny.write_mask2former(tmp_path / "weights/model_final_f07440.pkl")
    with pytest.raises(ValueError, match="model_final_f07440.pkl is of no published model, wanted"):
        mc.load_generator("mask2former-l")


def test_a_published_tuned_model_knows_its_configuration():
    for entry in published_tuned.MODELS:
        assert loading.experiment_of(entry.name, None).model.similarity is not None
        assert entry.file.endswith(".pth")
    assert len({e.drive for e in published_tuned.MODELS}) == 9
