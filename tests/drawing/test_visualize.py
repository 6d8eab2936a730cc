"""Drawings: their sizes, what they say and refuse; how they look was judged by eye."""

import logging

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFont

from maskclippp_jax.data import images
from maskclippp_jax.drawing import colors, fonts, names as names_module, visualize

PAPER = (255, 255, 255)


def draw(image, labels, names, scores=None, segments=None, **options):
    """Classes as segments, or segments each of the class that its pixels have."""
    if segments is None:
        layer = visualize.Layer(labels + 1, range(len(names)))
    else:
        classes = [int(labels[segments == n].max(initial=-1)) for n in range(1, segments.max() + 1)]
        layer = visualize.Layer(segments, classes)
    return visualize.draw_layers(image, {"segments": layer}, labels, names, scores, **options)


@pytest.mark.parametrize("shape, drawn", [
    ((1, 1), (480, 480)), ((40, 300), (40, 300)), ((64, 64), (448, 448)), ((2, 4000), (1, 1280)),
    ((3000, 1200), (1280, 512))])
def test_drawings_work_at_any_size(shape, drawn, rng):
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    labels = (np.indices(shape).sum(0) // 10 % 60) - 1
    names = [f"class {i} with a name that goes on and on" for i in range(60)]
    picture = draw(image, labels, names, {0: 0.5})
    assert picture.height >= drawn[0] and drawn[1] < picture.width <= drawn[1] + 4 * 650
    assert draw(image, labels, names, legend=False).size == drawn[::-1]
    both = visualize.draw_layers(image, dict(one=None, two=None), labels, names, legend=False)
    side = visualize.side_for(image, 2)
    assert both.width >= 2 * visualize.size_at(image, side)[1]
    assert both.width < 2 * visualize.size_at(image, side)[1] + 60


def test_lines_and_letters_grow_with_the_drawing():
    image, labels = np.full((300, 400, 3), 100, np.uint8), np.zeros((300, 400), int)
    labels[:, 200:] = 1
    for side in (200, 400, 4000):
        picture = np.asarray(draw(image, labels, ["a", "b"], side=side, legend=False))
        assert picture.shape == (side * 3 // 4, side, 3)
        white = (picture[side // 10] == 255).all(-1)
        assert white.sum() == max(1, round(side / 640))
        assert abs(np.flatnonzero(white).mean() - side / 2) <= max(1, side / 640)


def test_a_region_takes_on_its_colour_and_the_rest_is_left_alone():
    image = np.full((480, 480, 3), 100, np.uint8)
    labels = np.full((480, 480), -1)
    labels[:, 240:] = 3
    picture = np.asarray(draw(image, labels, ["a", "b", "c", "d"]))
    assert picture[50, 50].tolist() == [100, 100, 100]
    wanted = 60 + 0.4 * np.array(visualize.class_color(3))
    assert np.abs(picture[50, 360] - wanted).max() <= 1


def test_outlines_lie_on_the_borders_and_nowhere_else(rng):
    segments = np.repeat(np.repeat(rng.integers(0, 9, (8, 12)), 40, 0), 40, 1)
    panel = visualize.Panel(np.full((320, 480, 3), 100, np.uint8), segments)
    white = (np.asarray(visualize.draw_panel(panel, 480)) == 255).all(-1)
    beside = np.zeros(segments.shape, bool)
    beside[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    beside[:-1] |= segments[:-1] != segments[1:]
    np.testing.assert_array_equal(white, beside)
    changed = (np.asarray(visualize.draw_panel(panel, 480)) != 100).any(-1)
    np.testing.assert_array_equal(changed, cv2.dilate(beside.astype(np.uint8), np.ones((3, 3))))


def test_the_legend_shows_at_most_forty_classes_largest_first():
    labels = np.arange(60).repeat(100).reshape(60, 100)
    image = np.zeros((60, 100, 3), np.uint8)
    names = [str(i) for i in range(60)]
    picture = draw(image, labels, names)
    beside = {tuple(c) for c in np.asarray(picture)[:, 410:].reshape(-1, 3).tolist()}
    chosen = colors.colors_in(labels)
    assert [chosen[i] in beside for i in range(60)] == [True] * 40 + [False] * 20
    labels[:, :60] = 7
    legend = np.asarray(draw(image, labels, names))[30:50, 400:]
    assert (legend == colors.colors_in(labels)[7]).all(-1).any()  # the first line


def test_a_picture_without_regions_has_an_empty_legend():
    picture = draw(np.zeros((480, 480, 3), np.uint8), np.full((480, 480), -1), [])
    assert picture.height == 480 and picture.getpixel((picture.width - 1, 200)) == PAPER


def test_what_cannot_be_drawn_is_refused():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="give one of the same size"):
        draw(image, np.zeros((4, 5), int), ["a"])
    with pytest.raises(ValueError, match="holds class 2, but there are 2 names"):
        draw(image, np.full((4, 4), 2), ["a", "b"])
    with pytest.raises(ValueError, match="got side=3, wanted at least 16"):
        draw(image, np.zeros((4, 4), int), ["a"], side=3)


def test_drawings_are_the_same_every_time(rng):
    image = rng.integers(0, 256, (200, 300, 3)).astype(np.uint8)
    labels = np.kron(rng.integers(-1, 20, (10, 15)), np.ones((20, 20), int))
    names = [f"class {i}" for i in range(20)]
    one, two = (visualize.to_png(draw(image, labels, names)) for _ in range(2))
    assert one == two


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
        return int((np.abs(pixels - names_module._WRONG).max(-1) < 30).sum())

    assert red([("cat", None), ("dog", True)]) == 0
    assert red([("cat", False), ("dog", True)]) > 30
    assert red([("", False), ("", True)]) > 30  # the cross is drawn, whatever letters the font has


def test_panels_keep_the_ratio_of_their_sides():
    wide = panel([("a", None), ("b", None)], (100, 200), (50, 100))  # segments of another size
    picture = visualize.draw_comparison([[wide, wide], [wide, wide]], ["one", "two"], side=256)
    assert picture.size == (7 + 2 * (256 + 7), 28 + 2 * (128 + 7))


def test_long_and_foreign_names_fit_into_their_panel():
    names = [("a name that is far too long for any panel of this side", False), ("é猫", None)]
    picture = visualize.draw_comparison([[panel(names)]], ["a title that is also too long " * 3])
    pixels = np.asarray(picture)
    assert (pixels[:, :7] == 255).all() and (pixels[:, -7:] == 255).all()


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
    red, blue, plain = (masked(c) for c in ((156, 54, 54), (54, 54, 156), (90, 90, 90)))
    assert 0.6 < red / (3 * 4 * 1200) <= 1 and 0.4 < blue / (3 * 4 * 300) <= 1
    assert 0.9 < plain / (3 * 4 * (2400 + 900)) <= 1
    many = visualize.Example(image, np.arange(2400).reshape(40, 60) // 40 + 1, ["x"] * 60,
                             [(9, 9, 9)] * 60, "many small masks")
    visualize.draw_contact_sheet([many], "title")  # only the largest get a name


def test_things_of_one_class_have_an_outline_and_a_name_each_in_other_shades():
    image, labels = np.full((480, 480, 3), 100, np.uint8), np.zeros((480, 480), int)
    segments = np.ones((480, 480), int)
    segments[:, 240:] = 2
    one, two = (np.asarray(draw(image, labels, ["cat"], segments=s)).astype(int)
                for s in (np.ones_like(segments), segments))
    white = lambda picture, box: (picture[box] == 255).all(-1).sum()
    middle = (slice(0, 150), slice(235, 245))
    assert white(one, middle) == 0 and white(two, middle) == 150
    left, right = (slice(10, 470), slice(60, 180)), (slice(10, 470), slice(300, 420))
    dark = lambda picture, box: (picture[box] < 40).all(-1).sum()
    assert dark(two, left) > 20 and dark(two, right) > 20  # the names
    assert dark(one, left) == dark(one, right) == 0  # one name, in the middle
    assert (two[50, 100] != two[50, 400]).any()


def test_names_in_any_script_are_drawn_or_their_font_is_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_OF_SYSTEMS", ())
    monkeypatch.setattr(fonts, "_told", set())
    fonts._name_for.cache_clear()
    with caplog.at_level(logging.WARNING, "absl"):
        font = fonts.font_for(14, ["black cat", "\u732b"])
        fonts.font_for(14, ["\uace0"])  # a syllable, not the letters that it is made of
    assert "has the letters \u732b" in caplog.text and "Noto Sans CJK" in caplog.text
    assert "has the letters \uace0," in caplog.text
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
