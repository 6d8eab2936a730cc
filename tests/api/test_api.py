"""The door from Python: masks of every kind, many pictures, results."""

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
from maskclippp_jax import configs, drawing
from maskclippp_jax.data import bundle_writer
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.naming import namer as namer_module
from maskclippp_jax.vocabulary import Vocabulary
from tests.compilations import compilations
from tests.tiny_model import CLASSES, NOTHING, as_stack, draw


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


def test_values_of_the_configuration_may_be_changed(tiny):
    experiment = configs.read(tiny)
    for config in (tiny, pathlib.Path(tiny), experiment, ml_collections.FrozenConfigDict(
            experiment)):
        model = mc.load("untuned", config, keep_embeddings=False, eval__short_side=96)
        assert model.config.eval.short_side == 96
    assert experiment.eval.short_side is None
    with pytest.raises(ValueError, match="has no key eval.shortside"):
        mc.load("untuned", tiny, eval__shortside=96)


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
    result = finder.name(np.zeros((8, 6, 3), np.uint8), nothing, CLASSES)
    assert len(result) == 0 and (result.labels == -1).all() and result.panoptic[1] == []
    assert result.to_coco() == [] and len(result.instances.scores) == 0
    result.save(tmp_path, "empty")
    assert json.loads((tmp_path / "empty.json").read_text())["masks"] == []


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
