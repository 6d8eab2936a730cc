"""Drawings: their sizes, what they say and refuse; how they look was judged by eye."""

import logging

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFont

from maskclippp_jax.data import images
from maskclippp_jax.drawing import fonts, visualize

PAPER = (255, 255, 255)


@pytest.mark.parametrize("shape, drawn", [((1, 1), (384, 384)), ((40, 300), (40, 300)),
                                          ((64, 64), (384, 384)), ((3000, 1200), (1024, 410))])
def test_overlays_work_at_any_size(shape, drawn, rng):
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    labels = (np.indices(shape).sum(0) // 10 % 60) - 1
    names = [f"class {i} with a name that goes on and on" for i in range(60)]
    picture = visualize.draw_overlay(image, labels, names, {0: 0.5})
    assert picture.height >= drawn[0] and drawn[1] < picture.width <= drawn[1] + 4 * 400


def test_a_region_takes_on_its_colour_and_the_rest_is_left_alone():
    image = np.full((400, 400, 3), 100, np.uint8)
    labels = np.full((400, 400), -1)
    labels[:, 200:] = 3
    picture = np.asarray(visualize.draw_overlay(image, labels, ["a", "b", "c", "d"]))
    assert picture[50, 50].tolist() == [100, 100, 100]
    wanted = 50 + 0.5 * np.array(visualize.class_color(3))
    assert np.abs(picture[50, 300] - wanted).max() <= 1


def test_the_legend_shows_at_most_forty_classes():
    labels = np.arange(60).repeat(100).reshape(60, 100)
    image = np.zeros((60, 100, 3), np.uint8)
    names = [str(i) for i in range(60)]
    picture = np.asarray(visualize.draw_overlay(image, labels, names))
    beside = {tuple(c) for c in picture[:, 310:].reshape(-1, 3)}
    shown = [visualize.class_color(i) in beside for i in range(60)]
    assert shown == [True] * 40 + [False] * 20


def test_a_picture_without_regions_has_an_empty_legend():
    picture = visualize.draw_overlay(np.zeros((400, 400, 3), np.uint8), np.full((400, 400), -1), [])
    assert picture.height == 400 and picture.getpixel((picture.width - 1, 200)) == PAPER


def test_other_sizes_and_classes_without_a_name_are_refused():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="give one of the same size"):
        visualize.draw_overlay(image, np.zeros((4, 5), int), ["a"])
    with pytest.raises(ValueError, match="holds class 2, but there are 2 names"):
        visualize.draw_overlay(image, np.full((4, 4), 2), ["a", "b"])


def test_colours_of_the_first_classes_can_be_told_apart():
    rgb = np.array([[visualize.class_color(i) for i in range(40)]], np.float32) / 255
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0]
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(40)
    assert apart.min() > 20  # CIE76; about 2 is just visible
    assert len({visualize.class_color(i) for i in range(256)}) == 256


@pytest.mark.parametrize("largest, mode", [(1, "P"), (255, "P"), (256, "I;16"), (65535, "I;16")])
def test_label_maps_are_read_back_as_written(tmp_path, largest, mode):
    label = np.array([[0, 1], [largest - 1, largest]])
    (tmp_path / "a.png").write_bytes(visualize.label_map_png(label))
    assert Image.open(tmp_path / "a.png").mode == mode
    np.testing.assert_array_equal(images.read_label_map(str(tmp_path / "a.png"), (2, 2)), label)


@pytest.mark.parametrize("label", [[[-1]], [[65536]], [[0.5]]])
def test_label_maps_that_no_png_can_hold_are_refused(label):
    with pytest.raises(ValueError, match="wanted integers in 0 ... 65535"):
        visualize.label_map_png(np.array(label))


def panel(names, shape=(64, 64), segments_shape=(64, 64)):
    segments = np.ones(segments_shape, int)
    segments[:, segments_shape[1] // 2:] = 2
    return np.full((*shape, 3), 90, np.uint8), segments, names


def test_only_wrong_names_are_red():
    def red(names):
        pixels = np.asarray(visualize.draw_comparison([[panel(names)]], ["t"])).astype(int)
        return int((pixels == visualize._WRONG).all(-1).sum())

    assert red([("cat", None), ("dog", True)]) == 0
    assert red([("cat", False), ("dog", True)]) > 30
    assert red([("", False), ("", True)]) > 5  # the cross is drawn, whatever letters the font has


def test_panels_keep_the_ratio_of_their_sides():
    wide = panel([("a", None), ("b", None)], (100, 200), (50, 100))  # segments of another size
    picture = visualize.draw_comparison([[wide, wide], [wide, wide]], ["one", "two"], side=256)
    assert picture.size == (8 + 2 * 264, 32 + 2 * (128 + 8))


def test_long_and_foreign_names_fit_into_their_panel():
    names = [("a name that is far too long for any panel of this side", False), ("é猫", None)]
    picture = visualize.draw_comparison([[panel(names)]], ["a title that is also too long " * 3])
    pixels = np.asarray(picture)
    assert (pixels[:, :8] == 255).all() and (pixels[:, -8:] == 255).all()


def test_a_row_with_another_number_of_panels_is_refused():
    with pytest.raises(ValueError, match="a row has 1 panels, wanted 2"):
        visualize.draw_comparison([[panel([])]], ["one", "two"])


def test_a_contact_sheet_shows_pictures_plain_and_masked():
    image = np.full((40, 60, 3), 90, np.uint8)
    segments = np.zeros((40, 60), int)
    segments[:20] = 1
    segments[30:, :30] = 2
    example = visualize.Example(image, segments, ["sky", "cat"], [(255, 0, 0), (0, 0, 255)], "one")
    sheet = np.asarray(visualize.draw_contact_sheet([example] * 3, "title", side=120)).astype(int)
    masked = lambda color: (np.abs(sheet - color).max(-1) < 12).sum()
    # 3 pictures, twice enlarged: half the picture in red, an eighth in blue, the rest as it is.
    red, blue, plain = (masked(c) for c in ((172, 45, 45), (45, 45, 172), (90, 90, 90)))
    assert 0.75 < red / (3 * 4 * 1200) <= 1 and 0.5 < blue / (3 * 4 * 300) <= 1
    assert 0.9 < plain / (3 * 4 * (2400 + 900)) <= 1
    many = visualize.Example(image, np.arange(2400).reshape(40, 60) // 40 + 1, ["x"] * 60,
                             [(9, 9, 9)] * 60, "many small masks")
    visualize.draw_contact_sheet([many], "title")  # only the largest get a name


def test_things_of_one_class_have_an_outline_and_a_name_each():
    image, labels = np.full((400, 400, 3), 100, np.uint8), np.zeros((400, 400), int)
    segments = np.ones((400, 400), int)
    segments[:, 200:] = 2
    one, two = (np.asarray(visualize.draw_overlay(image, labels, ["cat"], segments=s)).astype(int)
                for s in (None, segments))
    white = lambda picture, box: (picture[box] >= 200).all(-1).sum()
    middle = (slice(0, 150), slice(195, 205))
    assert white(one, middle) == 0 and white(two, middle) >= 150
    left, right = (slice(10, 390), slice(60, 140)), (slice(10, 390), slice(260, 340))
    assert white(two, left) > 20 and white(two, right) > 20  # the names
    assert white(one, left) == white(one, right) == 0  # one name, in the middle


def test_names_in_any_script_are_drawn_or_their_font_is_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_OF_SYSTEMS", ())
    monkeypatch.setattr(fonts, "_told", set())
    fonts._name_for.cache_clear()
    with caplog.at_level(logging.WARNING, "absl"):
        font = fonts.font_for(14, ["black cat", "\u732b"])
    assert "has the letters \u732b" in caplog.text and "Noto Sans CJK" in caplog.text
    assert fonts.fit("\u732b caf\u00e9", font, 100) == "? cafe"
    assert fonts.font_for(14, ["caf\u00e9"]) is font  # without its accent Pillow's own has it
    fonts._name_for.cache_clear()
    monkeypatch.undo()
    try:
        ImageFont.truetype("DejaVuSans.ttf", 16)
    except OSError:
        pytest.skip("this system has no font for Greek")
    font = fonts.font_for(14, ["\u03b3\u03ac\u03c4\u03b1"])
    assert fonts.fit("\u03b3\u03ac\u03c4\u03b1", font, 100) == "\u03b3\u03ac\u03c4\u03b1"
