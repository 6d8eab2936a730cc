"""The door from Python: what is refused, and in which words."""

import pathlib

import numpy as np
import pytest

import maskclippp_jax as mc
from maskclippp_jax import config as configuration, configs
from maskclippp_jax.naming import generator, namer as namer_module
from tests import tiny_eomt
from tests.tiny_model import CLASSES, draw

IMAGE, LABELS = np.zeros((8, 6, 3), np.uint8), np.ones((8, 6), np.int32)


@pytest.mark.parametrize("count", [0, -1, 1.5, None, "3", True])
def test_a_number_of_best_names_that_cannot_be_is_refused(model, count):
    result = model.name(*draw(3), CLASSES)
    for best in (result.top, lambda count: result.to_json(count=count)):
        with pytest.raises(ValueError, match=f"got count={count!r}, wanted a whole number of at"):
            best(count)


def test_what_cannot_leave_masks_unnamed_is_refused(model):
    image, labels = draw(3)
    with pytest.raises(ValueError, match="got minimum_score=2, wanted 0 ... 1"):
        model.name(image, labels, CLASSES, minimum_score=2)
    with pytest.raises(ValueError, match="'Red one' is among the classes and amo"):
        model.name(image, labels, CLASSES, distractors=["Red one"])


def test_no_file_is_written_where_one_cannot_be_made(model, tmp_path):
    result = model.name(*draw(3), CLASSES)
    for views, says in ((["segmants"], "no view 'segmants'"),
                        ("segments", "got views='segments', wanted a list such as"),
                        (None, "got views=None, wanted a list such as")):
        with pytest.raises(ValueError, match=says):
            result.save(tmp_path / "results", views=views)
    assert not list(tmp_path.iterdir())


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
