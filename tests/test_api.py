"""The door from Python: masks of every kind, many pictures, results, and what is refused."""

import copy
import functools
import json
import pathlib
import pickle
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from PIL import Image

import maskclippp_jax as mc
from maskclippp_jax import config as configuration, configs, drawing
from maskclippp_jax.data import bundle_writer, scenes
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.naming import generator, namer as namer_module
from maskclippp_jax.vocabulary import Vocabulary
from tests import tiny_eomt
from tests.compilations import compilations

CLASSES = ["red one", "grey grass", "brown brick, brown one", "blue three"]


# As small as it gets: what takes time is compiling.
TINY = '''
from maskclippp_jax.configs import quickstart
from maskclippp_jax.models import eva_vit, maskclippp, similarity, text
def get_config():
    config = quickstart.get_config().unlock()
    full = text.TextConfig.quickstart()
    config.model = maskclippp.MaskCLIPppConfig(
        eva_vit.EvaViTConfig(image_size=64, patch_size=8, width=16, depth=1, num_heads=2,
                             mlp_width=24, embed_dim=8, mask_layers=1),
        text.TextConfig(full.context_length, full.vocab_size, 16, 1, 2, 8, words=full.words),
        similarity.LinearSimilarityConfig(1, 8))
    config.weights = "random"
    return config.lock()
'''


NOTHING = 65535  # in label maps of these tests


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("own configuration") / "tiny.py"
    file.write_text(TINY)
    return str(file)


@pytest.fixture(scope="module")
def model(tiny):
    return mc.load("untuned", tiny, keep_embeddings=False)


def draw(number, side=64):
    """A picture and its label map; numbers are neither dense nor small."""
    scene = scenes.draw_scene(np.random.default_rng(number), size=side)
    _, slots = np.unique(scene.label, return_inverse=True)
    return scene.image, np.array([NOTHING, 7, 300, 41, 5, 6, 8, 9, 0, 11])[slots].astype(np.int32)


def as_stack(labels):
    return np.stack([labels == n for n in np.unique(labels) if n != NOTHING])


def test_masks_of_every_kind_get_the_same_names(model, tmp_path):
    image, labels = draw(1)
    masks = as_stack(labels)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "labels.png")
    encoded = [run_lengths.encode(mask) for mask in masks]
    (tmp_path / "masks.json").write_text(json.dumps([dict(segmentation=e) for e in encoded]))
    writer = bundle_writer.Writer(tmp_path / "bundle", masks="binary", classes=dict(kind="none"),
                                  generator=dict(name="test"))
    writer.add("a", masks, (image.shape[:2],))
    writer.finish()
    wanted = model.name(image, labels, CLASSES)
    assert list(wanted.ids) == sorted(set(labels.ravel()) - {NOTHING})
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "masks.npy", masks)
    for given in (tmp_path / "labels.png", tmp_path / "labels.npy", tmp_path / "masks.npy",
                  masks, masks.astype(np.float64), masks.astype(np.uint8),
                  encoded, [dict(segmentation=e, score=1) for e in encoded],
                  tmp_path / "masks.json", mc.Bundle(tmp_path / "bundle")["a"],
                  lambda picture: labels if picture.shape == image.shape else None):
        found = model.name(tmp_path / "a.png", given, CLASSES)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=2e-5)
        np.testing.assert_array_equal(found.masks, wanted.masks)
        np.testing.assert_array_equal(found.pixels, wanted.pixels)
        np.testing.assert_array_equal(found.labels == -1, labels == NOTHING)


def test_pictures_of_every_kind_are_the_same(model, tmp_path):
    image, labels = draw(2)
    Image.fromarray(image).save(tmp_path / "a.png")
    wanted = model.name(image, labels, CLASSES).scores
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(model.name(given, labels, CLASSES).scores, wanted)
    grey = np.ascontiguousarray(image[..., 0])
    np.testing.assert_array_equal(
        model.name(grey, labels, CLASSES).scores,
        model.name(np.stack([grey] * 3, -1), labels, CLASSES).scores)


def test_results_have_the_shapes_and_the_sums_they_promise(model):
    image, labels = draw(3)
    result = model.name(image, labels, CLASSES)
    assert result.scores.shape == (len(result), 4) and result.scores.dtype == np.float32
    np.testing.assert_allclose(result.scores.sum(-1), 1, atol=1e-5)
    assert [best[0][0] for best in result.top(2)] == result.names
    assert all(len(best) == 2 and best[0][1] >= best[1][1] for best in result.top(2))
    assert result.labels.shape == labels.shape
    for n, c in zip(result.ids, result.classes):
        assert (result.labels[labels == n] == c).all()
    ids, segments = result.panoptic
    assert [s["id"] for s in segments] == list(range(1, len(result) + 1))  # all of them are things
    for s in segments:
        assert s["name"] == CLASSES[s["category_id"]].split(",")[0]
        assert (result.labels[ids == s["id"]] == s["category_id"]).all()
    assert len(result.instances.scores) == len(result)
    assert (np.diff(result.instances.scores) <= 0).all()
    rows = result.to_coco(image_id=7)
    assert {r["image_id"] for r in rows} == {7}
    for row, mask in zip(rows, result.masks):
        np.testing.assert_array_equal(run_lengths.decode(row["segmentation"]), mask)
    json.dumps([rows, result.to_json()])
    assert result.draw().size[1] >= 64 and result._repr_png_().startswith(b"\x89PNG")


def test_views_of_a_result_stand_side_by_side(model):
    image, labels = draw(3)
    for masks in (labels, as_stack(labels), 0.9 * as_stack(labels)):
        result = model.name(image, masks, CLASSES)
        assert result.draw(legend=False).size == (448, 448)
        assert result.draw(legend=False, side=200).size == (200, 200)
        assert result.draw() == result.draw("segments") != result.draw(scores=True)
        views = np.asarray(result.draw(*drawing.VIEWS, legend=False, side=192))
        assert views.shape[1] == 4 * 192 + 5 * 7
        photograph, *others = (views[28:-7, left:left + 192] for left in range(7, 4 * 199, 199))
        np.testing.assert_array_equal(photograph, image.repeat(3, 0).repeat(3, 1))
        assert all((other != photograph).any() for other in others)
        assert (others[0] != others[1]).any() and not (others[1] == 255).all()
        with pytest.raises(ValueError, match="no view 'panoptic'; choose from photograph, segm"):
            result.draw("photograph", "panoptic")
        for side in (8, "200", 64.5, 10**6):
            with pytest.raises(ValueError, match="got side=.*, wanted a whole number in 16 ..."):
                result.draw(side=side)


def test_no_file_is_written_where_one_cannot_be_made(model, tmp_path):
    result = model.name(*draw(3), CLASSES)
    for views, says in ((["segmants"], "no view 'segmants'"),
                        ("segments", "got views='segments', wanted a list such as"),
                        (None, "got views=None, wanted a list such as")):
        with pytest.raises(ValueError, match=says):
            result.save(tmp_path / "results", views=views)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, -1, 1.5, None, "3", True])
def test_a_number_of_best_names_that_cannot_be_is_refused(model, count):
    result = model.name(*draw(3), CLASSES)
    for best in (result.top, lambda count: result.to_json(count=count)):
        with pytest.raises(ValueError, match=f"got count={count!r}, wanted a whole number of at"):
            best(count)


@pytest.mark.parametrize("kind", ["label map", "soft", "tiles", "generator"])
def test_a_copy_of_a_result_shows_and_tells_the_same_without_a_model(finder, kind):
    image, labels = draw(3)
    masks = dict(generator=finder.generator, soft=0.9 * as_stack(labels)).get(kind, labels)
    result, another = (finder.name(
        image, masks, CLASSES, distractors=["purple two"],
        tiles=32 if kind == "tiles" else None, overlap=8) for _ in range(2))
    stored = pickle.dumps(result)
    result.draw(*drawing.VIEWS)
    assert len(pickle.dumps(result)) < len(stored) + 2 * labels.nbytes + 1000  # not with all masks
    for found in (pickle.loads(stored), copy.deepcopy(result)):
        assert found.names == another.names and found.top() == another.top()
        np.testing.assert_array_equal(found.labels, another.labels)
        assert found.draw(*drawing.VIEWS) == another.draw(*drawing.VIEWS)
        assert found.to_json() == another.to_json() and found.to_coco() == another.to_coco()
    with pytest.raises(TypeError, match="a mask generator cannot be pickled or copied; load it"):
        pickle.dumps(finder)


def test_a_copy_of_a_model_names_as_it_does(model):
    image, labels = draw(3)
    wanted = model.name(image, labels, CLASSES)
    for found in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert repr(found) == repr(model)
        np.testing.assert_array_equal(found.name(image, labels, CLASSES).scores, wanted.scores)
    seen = pickle.loads(pickle.dumps(model.seen(image, labels)))
    np.testing.assert_allclose(seen.name(CLASSES).scores, wanted.scores, atol=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_masks_of_distractors_and_of_low_scores_get_no_name(model, soft):
    image, labels = draw(3)
    masks = as_stack(labels) if soft else labels
    plain = model.name(image, masks, CLASSES)
    others = [n for n in CLASSES if n.split(",")[0] == plain.names[0]]
    classes = [n for n in CLASSES if n not in others]
    result = model.name(image, masks, classes, distractors=others)
    rather = [name == plain.names[0] for name in plain.names]
    assert [n is None for n in result.names] == rather and any(rather)
    named = [n for n, r in zip(plain.names, rather) if not r]
    assert [n for n in result.names if n is not None] == named
    assert result.scores.shape == (len(plain), len(classes)) and result.vocabulary.classes == tuple(
        tuple(n.split(", ")) for n in classes)
    wanted = np.where(plain.labels == plain.classes[0], -1, plain.labels)
    np.testing.assert_array_equal(result.labels >= 0, wanted >= 0)
    assert {s["name"] for s in result.panoptic[1]} == set(named)
    assert set(np.unique(result.panoptic[0])) - {0} == {s["id"] for s in result.panoptic[1]}
    assert len(result.to_coco()) == len(result.instances.scores) == len(named)
    told = result.to_json()["masks"]
    assert told[0]["name"] is None and told[0]["best"][0]["name"] == plain.names[0]
    assert told[0]["unnamed"] == f"{plain.names[0]!r} is a distractor"

    best = plain.scores.max(-1)
    least = float(np.median(best))
    result = model.name(image, masks, CLASSES, minimum_score=least)
    assert [n is None for n in result.names] == (best < least).tolist() and (best < least).any()
    nowhere = as_stack(labels)[best < least].any(0)
    assert (result.labels[nowhere] == -1).all() and (result.panoptic[0][nowhere] == 0).all()
    np.testing.assert_array_equal(result.labels[~nowhere], plain.labels[~nowhere])
    assert "scores less than" in result.to_json()["masks"][int(best.argmin())]["unnamed"]
    assert result.draw().size[1] >= 64 and "no name" in repr(result)


def test_what_cannot_leave_masks_unnamed_is_refused(model):
    image, labels = draw(3)
    with pytest.raises(ValueError, match="got minimum_score=2, wanted 0 ... 1"):
        model.name(image, labels, CLASSES, minimum_score=2)
    with pytest.raises(ValueError, match="'Red one' is among the classes and amo"):
        model.name(image, labels, CLASSES, distractors=["Red one"])


def test_stuff_joins_one_segment_and_is_no_instance(model):
    image, labels = draw(4)
    vocabulary = Vocabulary("two", (("red one",), ("grass",)), (False, False), (3, 8))
    for masks in (labels, as_stack(labels)):
        result = model.name(image, masks, vocabulary)
        ids, segments = result.panoptic
        assert len(segments) == len(set(result.classes)) and not len(result.instances.scores)
        assert ((ids == 0) == (labels == NOTHING)).all()
        assert {r["category_id"] for r in result.to_coco()} <= {3, 8}


def test_where_masks_overlap_the_larger_score_times_mask_decides(model):
    image, _ = draw(5)
    masks = np.zeros((2, 64, 64), np.float32)
    masks[0, :40], masks[1, 20:] = 0.9, 0.6
    result = model.name(image, masks, CLASSES)
    scores = np.einsum("nc,nhw->chw", result.scores, masks)
    np.testing.assert_array_equal(result.labels, scores.argmax(0))
    np.testing.assert_allclose(result.soft_masks, masks, atol=1e-6)


def test_many_pictures_are_named_as_one_after_the_other(model):
    pictures = [draw(n, side) for n, side in enumerate((64, 96, 64, 64, 96, 64, 64))]
    pictures[3] = (pictures[3][0], as_stack(pictures[3][1]))
    alone = [model.name(*p, CLASSES).scores for p in pictures]
    for batch_size in (1, 3):
        found = list(model.name_many(iter(pictures), CLASSES, batch_size=batch_size))
        assert len(found) == len(pictures)
        for one, other, (image, _) in zip(alone, found, pictures):
            np.testing.assert_allclose(other.scores, one, atol=2e-5)
            assert other.image.shape == image.shape


def test_a_picture_that_cannot_be_used_ends_all_or_is_left_out(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pictures = [draw(0), (tmp_path / "broken.png", mc.superpixels), draw(1)]
    with pytest.raises(ValueError, match="broken.png cannot be read as a picture"):
        list(model.name_many(pictures, CLASSES))
    with pytest.raises(ValueError, match="got 'a.jpg', wanted a pair"):
        list(model.name_many(["a.jpg"], CLASSES))
    with pytest.raises(ValueError, match="wanted a pair"):
        list(model.name_many(["a.jpg"], CLASSES, tiles=64))
    for size in (0, 1.5, "2"):
        with pytest.raises(ValueError, match="got batch_size=.*, wanted a whole number of at leas"):
            model.name_many(pictures, CLASSES, batch_size=size)
    problems = []
    found = list(model.name_many(pictures, CLASSES, batch_size=2,
                                 on_error=lambda place, error: problems.append((place, error))))
    assert [r is None for r in found] == [False, True, False]
    assert [place for place, _ in problems] == [1] and "broken.png" in str(problems[0][1])


def test_another_vocabulary_and_a_like_picture_compile_nothing(model):
    image, labels = draw(1, side=96)
    model.name(image[:90], labels[:90], CLASSES)
    model.name(image[:90], as_stack(labels[:90]), CLASSES)
    others = [model.vocabulary(classes) for classes in (
        ["red"], [f"red {n}" for n in ("one", "two", "three")])]
    with compilations() as compiled:
        for classes in others:
            model.name(image[:82, :88], labels[:82, :88], classes)
            model.name(image[:82, :88], as_stack(labels[:82, :88]), classes)
    assert not compiled


def test_pictures_of_many_sizes_share_two_canvases_and_are_named_alike(tiny):
    model, alone = (mc.load("untuned", tiny, keep_embeddings=False) for _ in range(2))
    image, labels = draw(1, side=96)
    sizes = [(96, 64), (64, 96), (96, 90), (50, 96), (33, 96), (96, 40)]
    with compilations() as compiled:
        named = [model.name(image[:h, :w], labels[:h, :w], CLASSES) for h, w in sizes]
    # Fewer, where other tests of this process have compiled them.
    assert compiled.count("tower") <= 2 and compiled.count("scores_of") <= 1
    h, w = sizes[-1]  # on a canvas of its own
    np.testing.assert_allclose(alone.name(image[:h, :w], labels[:h, :w], CLASSES).scores,
                               named[-1].scores, atol=1e-6)


def test_a_picture_that_was_seen_gets_other_names_without_being_looked_at_again(model, monkeypatch):
    image, labels = draw(1)
    cases = ((CLASSES, {}), (["blue three", "red one"], {}),
             (CLASSES[:2], dict(distractors=CLASSES[2:], minimum_score=0.3)))
    for masks in (labels, as_stack(labels)):
        all_wanted = [model.name(image, masks, classes, **more) for classes, more in cases]
        with monkeypatch.context() as changed:
            seen = model.seen(image, masks)
            assert len(seen) == len(as_stack(labels)) and seen.image is image
            changed.setattr(namer_module.Namer, "see", None)
            for (classes, more), wanted in zip(cases, all_wanted):
                found = seen.name(classes, **more)
                np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
                assert found.names == wanted.names
                np.testing.assert_array_equal(found.labels, wanted.labels)


def test_embeddings_of_masks_and_names_multiply_to_the_scores(model):
    image, labels = draw(6)
    words = model.vocabulary("red one;grey grass;brown brick;blue three")
    assert model.vocabulary(words) is words
    found = model.encode(image, labels)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(model.encode(image, as_stack(labels)), found, atol=2e-5)
    cosines = found @ words.embeddings.T  # of the untuned model, with one template
    scale = np.exp(float(np.asarray(model._namer.params["logit_scale"])))
    logits = min(scale, 100.0) * cosines
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(scores, model.name(image, labels, words).scores, atol=1e-4)


def test_a_vocabulary_is_kept_in_memory(model, monkeypatch):
    words = model.vocabulary(["red one", "red two"])
    monkeypatch.setattr(namer_module.Namer, "embed", None)
    assert model.vocabulary(["red one ", " red two"]) is words


def test_a_picture_without_masks_gives_an_empty_result(model, tmp_path):
    image, labels = draw(0)
    for masks in (np.full_like(labels, 255), np.zeros((0, 64, 64), bool), []):
        result = model.name(image, masks, CLASSES)
        assert len(result) == 0 and result.names == [] and result.top() == []
        assert (result.labels == -1).all() and result.panoptic[1] == []
        assert result.to_coco() == [] and len(result.instances.scores) == 0
        result.save(tmp_path)
        assert json.loads((tmp_path / "picture.json").read_text())["masks"] == []


IMAGE, LABELS = np.zeros((8, 6, 3), np.uint8), np.ones((8, 6), np.int32)


@pytest.mark.parametrize("image, masks, classes, says", [
    (IMAGE.astype(float), LABELS, "a", "an array of float64, wanted uint8 .* multiply by 255"),
    (np.zeros((8, 6, 4), np.uint8), LABELS, "a", r"shape \(8, 6, 4\), .* drop the fourth channel"),
    (IMAGE[:0], LABELS, "a", r"shape \(0, 6, 3\)"),
    (IMAGE.tolist(), LABELS, "a", "the picture is of type list"),
    ("/", LABELS, "a", "/ is a folder, wanted a picture"),
    (IMAGE, LABELS.T, "a", "the label map has 8x6 pixels, the picture 6x8"),
    (IMAGE, np.ones((2, 4, 3), bool), "a", "the masks have 3x4 pixels, the picture 6x8"),
    (IMAGE, -LABELS, "a", "holds numbers in -1 ... -1, wanted 0"),
    (IMAGE, np.full((1, 8, 6), 3.5), "a", "numbers in 3.5 ... 3.5, .* the sigmoid of logits"),
    (IMAGE, np.full((1, 8, 6), np.nan), "a", "numbers in nan ... nan"),
    (IMAGE, np.full((1, 8, 6), 200, np.uint8), "a", "array of uint8 with numbers in 200 ... 200"),
    (IMAGE, -np.ones((1, 8, 6), int), "a", "array of int64 with numbers in -1 ... -1, wanted bool"),
    (IMAGE, np.ones(8), "a", r"of shape \(8,\), wanted a label map"),
    (IMAGE, LABELS.astype(float), "a", r"of float64 of shape \(8, 6\), wanted a label map"),
    (IMAGE, None, "a", "got no masks; give"),
    (IMAGE, [dict(counts="x")], "a", "mask 0 has counts, wanted run lengths with size and counts"),
    (IMAGE, [dict(segmentation=np.ones((4, 3), bool))], "a", "masks have 3x4 pixels, the picture"),
    (IMAGE, [dict(segmentation=LABELS), dict(segmentation=[])], "a", "or not all arrays; give all"),
    (IMAGE, [dict(segmentation=LABELS * 7)], "a", "numbers in 7 ... 7, wanted bool"),
    (IMAGE, [LABELS > 0, LABELS[1:] > 0], "a", "of several shapes, .* picture's size, 6x8 pixels"),
    (IMAGE, [[1, 2], [3]], "a", "of several shapes, or not all arrays"),
    (IMAGE, LABELS, [], "the class list is empty"),
    (IMAGE, LABELS, "", "the class list is empty"),
    (IMAGE, LABELS, ["cat", ""], "has an empty name"),
    (IMAGE, LABELS, ["cat, "], "has an empty name"),
    (IMAGE, LABELS, ["cat", "dog, cat"], "names 'cat' more than once"),
    (IMAGE, LABELS, [3], "the class list holds 3, wanted names"),
    (IMAGE, LABELS, [None], "the class list holds None, wanted names"),
])
@pytest.mark.filterwarnings("ignore:this model has never seen")
def test_what_cannot_be_used_is_said(model, image, masks, classes, says):
    with pytest.raises(ValueError, match=says):
        model.name(image, masks, classes)


@pytest.mark.filterwarnings("ignore:this model has never seen")
def test_a_map_of_0_and_255_is_said_to_look_like_a_mask(model):
    labels = LABELS * 255 * np.eye(8, 6, dtype=int)
    with pytest.warns(UserWarning, match="0 and 255 alone, and 255 means nothing; .*--nothing=0 "):
        assert model.name(IMAGE, labels, "a").ids.tolist() == [0]
    assert model.name(IMAGE, labels, "a", nothing=0).ids.tolist() == [255]


def test_a_number_means_a_mask_unless_it_means_nothing(model, tmp_path):
    """0 and 1 are masks and 255 is none, as in the label maps that `prepare` reads."""
    image, _ = draw(0)
    labels = np.full((64, 64), 255, np.uint8)
    labels[:20], labels[40:] = 0, 1
    Image.fromarray(labels).save(tmp_path / "a.png")
    Image.fromarray(np.stack([labels] * 3, -1)).save(tmp_path / "grey in colour.png")
    np.save(tmp_path / "a.npy", labels)
    for given in (labels, labels.astype(np.int32), tmp_path / "a.png", tmp_path / "a.npy",
                  tmp_path / "grey in colour.png"):
        result = model.name(image, given, CLASSES)
        assert result.ids.tolist() == [0, 1] and result.nothing == (255,)
        np.testing.assert_array_equal(result.masks, [labels == 0, labels == 1])
        np.testing.assert_array_equal(result.labels == -1, labels == 255)
    assert model.name(image, labels, CLASSES, nothing=[0]).ids.tolist() == [1, 255]
    assert model.name(image, labels, CLASSES, nothing=[]).ids.tolist() == [0, 1, 255]
    assert len(model.encode(image, labels, nothing=[0, 255])) == 1
    assert model.name(image, labels, CLASSES, nothing=np.uint8(0)).ids.tolist() == [1, 255]
    for text in ("0", ["0"], 0.5):
        with pytest.raises(ValueError, match="nothing is .*, wanted numbers of a label map"):
            model.name(image, labels, CLASSES, nothing=text)
    white = np.where(labels == 1, 255, 0)
    assert model.name(image, white, CLASSES, nothing=0).ids.tolist() == [255]
    assert model.name(image, white, CLASSES, nothing=255).ids.tolist() == [0]
    many = np.arange(64 * 64).reshape(64, 64) // 8  # 0 ... 511: here 255 is a number like others
    assert 255 in model.name(image, many, CLASSES).ids
    for cut in (mc.superpixels, functools.partial(mc.grid, cells=16)):
        assert not set(np.unique(cut(image))) & {0, 255, 65535}


def test_a_missing_file_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*a.jpg"):
        model.name(tmp_path / "a.jpg", LABELS, "red")
    for name in ("a.png", "a.npy", "a.json"):
        with pytest.raises(FileNotFoundError, match=f"no file .*{name}"):
            model.name(IMAGE, tmp_path / name, "red")


def test_words_the_model_does_not_know_are_said(model):
    with pytest.warns(UserWarning, match="has never seen 'zebra'; it knows the words"):
        model.vocabulary(["zebra"])


@pytest.mark.parametrize("checkpoint, config, error, says", [
    ("nowhere", None, FileNotFoundError, "no file or folder nowhere; give a run's folder"),
    ("untuned", None, ValueError, "give --config as well"),
    ("untuned", "quickstrat", FileNotFoundError, "no configuration quickstrat; did you mean quick"),
    ("ViT-B-16", None, ValueError, "ViT-B-16 was trained in several ways; say which: ViT-B-16:"),
    ("ViT-B-16:nobody", None, ValueError, "no published model ViT-B-16 of nobody"),
    (None, None, ValueError, "got None for the checkpoint, wanted the folder of a run, a file, or"),
    ("untuned", {}, ValueError, "got {} for the configuration, wanted the name of a shipped one"),
    ("untuned", pathlib.Path("no.py"), FileNotFoundError, "no configuration no.py"),
])
def test_what_cannot_be_loaded_is_said(checkpoint, config, error, says):
    with pytest.raises(error, match=says):
        mc.load(checkpoint, config)


@pytest.mark.parametrize("generator", [mc.superpixels, True, 3])
def test_what_is_no_generator_is_said(tiny, generator):
    for load in (lambda: mc.load("untuned", tiny, generator=generator),
                 lambda: mc.load_generator(generator)):
        with pytest.raises(ValueError, match="for the mask generator, wanted the name of a publi"):
            load()


def test_values_of_the_configuration_may_be_changed(tiny):
    experiment = configs.read(tiny)
    for config in (tiny, pathlib.Path(tiny), experiment, ml_collections.FrozenConfigDict(
            experiment)):
        model = mc.load("untuned", config, keep_embeddings=False, eval__short_side=96)
        assert model.config.eval.short_side == 96
    assert experiment.eval.short_side is None
    with pytest.raises(ValueError, match="has no key eval.shortside"):
        mc.load("untuned", tiny, eval__shortside=96)


@pytest.mark.parametrize("changes, says", [
    (dict(eval__short_side="96"), "eval.short_side cannot be '96' .* to type <class 'int'>"),
    (dict(eval__mask_short_side=9.5), "eval.mask_short_side cannot be 9.5"),
    (dict(eval__batch_size="9"), "eval.batch_size cannot be '9'"),
    (dict(templates="a {}"), "templates cannot be 'a {}'"),
    (dict(templates=["a photo"]), "templates has 'a photo'; it is a list of texts, each with one"),
    (dict(templates=[]), r"templates has \(\); it is a list of texts"),
])
def test_values_that_a_key_cannot_have_are_refused(tiny, changes, says):
    with pytest.raises(ValueError, match=says):
        mc.load("untuned", tiny, **changes)


def test_a_stored_configuration_keeps_its_types_too(tiny):
    stored = configuration.from_json(configuration.to_json(configs.read(tiny)))
    with pytest.raises(ValueError, match="eval.batch_size cannot be '9'"):
        mc.load("untuned", stored, eval__batch_size="9")


def test_a_picture_too_long_for_the_image_tower_is_refused_or_left_out(model):
    long, masks = np.zeros((4, 60000, 3), np.uint8), np.ones((1, 4, 60000), bool)
    with pytest.raises(ValueError, match="has 60000x4 pixels, wanted a longer side of at most 50"):
        model.name(long, masks, "red one")
    problems = []
    assert list(model.name_many([(long, masks)], "red one", show_progress=False, on_error=(
        lambda place, error: problems.append(str(error))))) == [None]
    assert len(problems) == 1 and problems[0].endswith("cut it")


def test_a_picture_of_too_many_patches_is_refused_alone_as_among_others(model, monkeypatch):
    monkeypatch.setattr(namer_module, "_MOST_PATCHES", 100)
    long, masks = np.zeros((16, 300, 3), np.uint8), np.ones((1, 16, 300), bool)
    said = "of 300x16 pixels is too long: with its shorter side at 64 .* would see 1200x64; cut"
    with pytest.raises(ValueError, match=said):
        model.name(long, masks, "red one")
    with pytest.raises(ValueError, match=said):
        list(model.name_many([(long, masks)], "red one", show_progress=False))


def test_without_a_generator_segment_says_what_to_do(model):
    with pytest.raises(ValueError, match="there is no mask generator; load one, mc.load"):
        model.segment(IMAGE, "red one")


@pytest.fixture(scope="module")
def finder(tiny, tmp_path_factory):
    folder = tiny_eomt.write_folder(tmp_path_factory.mktemp("generator"))
    return mc.load("untuned", tiny, generator=folder, keep_embeddings=False)


def test_segment_names_what_the_generator_finds(finder, tmp_path):
    image, _ = draw(6)
    found = finder.segment(image, CLASSES)
    given = finder.generator(image)
    assert len(found) == len(given.ids) > 1 and (found.void > 0).all()
    np.testing.assert_array_equal(finder.name(image, finder.generator, CLASSES).scores,
                                  found.scores)
    writer = bundle_writer.Writer(  # a bundle of the same masks is the same to the namer
        tmp_path / "bundle", masks="logits", generator=dict(name="tiny"),
        preparation=dict(loader_min=64, loader_max=64, short_side=None, multiple=64),
        classes=dict(kind="closed", vocabulary=finder.generator.vocabulary.classes))
    writer.add("a", given.masks.masks, [(64, 64)] * 4, given.masks.classes)
    writer.finish()
    stored = finder.name(image, mc.Bundle(tmp_path / "bundle")["a"], CLASSES)
    np.testing.assert_allclose(stored.scores, found.scores, atol=1e-3)  # masks are float16 there
    np.testing.assert_allclose(stored.void, found.void, atol=1e-6)
    others = "purple two;white coins"  # none of them a class of the bundle: its void counts
    stored = finder.name(image, mc.Bundle(tmp_path / "bundle")["a"], others)
    np.testing.assert_allclose(stored.void, finder.segment(image, others).void, atol=1e-6)
    assert (stored.void > 0).all()


def test_many_pictures_are_segmented_as_one_after_the_other(finder):
    pictures = [draw(n, side)[0] for n, side in enumerate((64, 96, 64))]
    alone = [finder.segment(p, CLASSES).scores for p in pictures]
    found = finder.name_many(((p, finder.generator) for p in pictures), CLASSES, batch_size=2)
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.scores, other, atol=2e-5)


def test_a_vocabulary_may_have_none_of_the_generators_classes(finder):
    """Its void counts all the same, with an ensemble too."""
    image, _ = draw(6)
    words = ["purple two", "white coins"]
    plain = finder.segment(image, words)
    finder.config.unlock().eval.ensemble = True
    try:
        mixed = finder.segment(image, words)
    finally:
        finder.config.eval.ensemble = False
    np.testing.assert_allclose(mixed.scores, plain.scores, atol=1e-5)
    assert (plain.void > 0).all()


def test_a_generator_that_finds_nothing_gives_an_empty_result(tiny, finder, tmp_path):
    nothing = mc.load_generator(finder.generator.title, objectness=0.99999)
    result = finder.name(IMAGE, nothing, CLASSES)
    assert len(result) == 0 and (result.labels == -1).all() and result.panoptic[1] == []
    assert result.to_coco() == [] and len(result.instances.scores) == 0
    result.save(tmp_path, "empty")
    assert json.loads((tmp_path / "empty.json").read_text())["masks"] == []


def test_a_generator_without_masks_of_pictures_is_refused_at_once(tiny, finder):
    semantic = generator.Generator(
        tiny_eomt.CONFIG, tiny_eomt.params(), finder.generator.vocabulary, "tiny", task="semantic")
    with pytest.raises(ValueError, match="trained for label maps: it looks at windows"):
        mc.load("untuned", tiny, generator=semantic)
    with pytest.raises(FileNotFoundError, match="no file or folder nowhere"):
        mc.load("untuned", tiny, generator="nowhere")


@pytest.mark.parametrize("setting, says", [
    (dict(objectness="x"), "got objectness='x', wanted a share in 0 ... 1"),
    (dict(side="x"), "got side='x', wanted a multiple of 16 pixels"),
    (dict(clip=3), "got 3 for the CLIP, wanted its file"),
])
def test_a_setting_that_a_generator_cannot_have_is_refused(finder, setting, says):
    with pytest.raises(ValueError, match=says):
        mc.load_generator(finder.generator.title, **setting)


def test_importing_the_package_imports_nothing_heavy():
    program = ("import sys, maskclippp_jax; "
               "print([m for m in ('jax', 'numpy', 'absl', 'PIL') if m in sys.modules]); "
               "print(sorted(set(maskclippp_jax.__all__) - set(dir(maskclippp_jax)))); "
               "maskclippp_jax.load; print([m for m in ('grain', 'orbax', 'scipy', "
               "'tensorflow_datasets') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n[]\n[]\n", done
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        mc.nothing


def test_a_program_of_ones_own_sees_no_log_and_may_have_flags_of_its_own(tiny, tmp_path):
    program = f'''
from absl import flags
flags.DEFINE_bool("debug", False, "of this program")
flags.DEFINE_string("config", "", "of this program")
import numpy as np
import maskclippp_jax as mc
model = mc.load("untuned", {tiny!r}, keep_embeddings=False)
image = np.zeros((64, 64, 3), np.uint8)
for result in model.name_many([(image, mc.grid)] * 2, ["red one", "grass"]):
    assert len(result) == 16
'''
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
