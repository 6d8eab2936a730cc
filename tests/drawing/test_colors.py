"""Colours that can be told apart, also by people who see fewer."""

import numpy as np
import pytest

from maskclippp_jax.drawing import colors


def apart(chosen):
    """[n, n] least distance of pairs in any vision, CIE76; about 2 is just visible."""
    looks = colors.seen(np.array(chosen))
    return np.linalg.norm(looks[:, :, None] - looks[:, None], axis=-1).min(0)


@pytest.mark.parametrize("count, least", [(6, 30), (12, 19), (20, 12), (40, 8)])
def test_colours_of_the_first_classes_can_be_told_apart_in_any_vision(count, least):
    found = apart([colors.class_color(i) for i in range(count)])
    assert found[~np.eye(count, dtype=bool)].min() > least


def test_each_colour_is_the_farthest_from_all_before_it():
    steps = np.linspace(0, 255, 16).round()
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    looks = colors.seen(rgb)
    light, strength = looks[0, :, 0], np.hypot(looks[0, :, 1], looks[0, :, 2])
    vivid = (light > 40) & (light < 90) & (strength > 35)
    rgb, looks = rgb[vivid], looks[:, vivid]
    # Begin with an orange; lightness counts less, as tints let the picture's own through.
    looks = looks * np.array([0.7, 1, 1], np.float32)
    nearest = -np.linalg.norm(looks[0] - [45, 40, 60], axis=-1)
    for n, color in enumerate(colors._COLORS):
        number = (rgb == color).all(-1).nonzero()[0].item()
        assert nearest[number] > nearest.max() - 0.7  # OpenCV, which chose, rounds Lab by 0.3
        apart = np.linalg.norm(looks - looks[:, number, None], axis=-1).min(0)
        nearest = np.minimum(nearest, apart) if n else apart


def test_all_colours_differ_and_repeat_after_256():
    assert len({colors.class_color(i) for i in range(256)}) == 256
    assert colors.class_color(256) == colors.class_color(0)


def test_who_sees_all_colours_sees_them_as_they_are_and_others_see_greys_alike():
    looks = colors.seen(np.array([(0, 0, 0), (255, 255, 255), (119, 119, 119), (255, 0, 0)]))
    assert looks.shape == (4, 4, 3)
    np.testing.assert_allclose(looks[:, 0, 0], 0, atol=0.1)
    np.testing.assert_allclose(looks[:, 1], [[100, 0, 0]] * 4, atol=0.5)
    np.testing.assert_allclose(looks[:, 2], [looks[0, 2]] * 4, atol=0.5)
    np.testing.assert_allclose(looks[0, 3], [53.2, 80.1, 67.2], atol=0.3)  # sRGB's red in Lab


@pytest.mark.parametrize("seed", range(10))
def test_classes_that_touch_have_colours_that_are_told_apart(seed):
    rng = np.random.default_rng(seed)
    classes = rng.choice(1000, 40, replace=False)
    labels = np.kron(rng.choice([*classes, -1], (9, 9)), np.ones((3, 3), int))
    chosen = colors.colors_in(labels)
    assert set(chosen) == set(np.unique(labels)) - {-1}
    for one, others in colors._touching(labels).items():
        for two in others:
            assert apart([chosen[one], chosen[two]])[0, 1] >= colors._APART


def test_a_class_keeps_its_colour_unless_it_touches_a_like_one():
    labels = np.array([[0, 0, 0, 1, 1, -1, 256]])
    assert colors.colors_in(labels) == {n: colors.class_color(n) for n in (0, 1, 256)}
    chosen = colors.colors_in(np.array([[0, 0, 0, 256, 256]]))
    assert chosen[0] == colors.class_color(0) and chosen[256] != chosen[0]


def test_segments_of_one_class_that_touch_have_other_shades_of_its_colour():
    segments = np.array([[1, 1, 2, 2, 0, 3, 4]])
    found = colors.segment_colors(segments, [5, 5, 5, -1], {5: (200, 100, 0)})
    assert found[0] == found[2] == (200, 100, 0) and found[1] != found[0] and found[3] is None


def test_letters_are_black_on_light_and_white_on_dark():
    contrast = []
    for i in range(256):
        ground = colors.class_color(i)
        light = [(np.array(c) / 255) ** 2.2 @ [0.2126, 0.7152, 0.0722] + 0.05
                 for c in (ground, colors.text_color(ground))]
        contrast.append(max(light) / min(light))
    assert min(contrast) > 4.4  # WCAG 2 asks for 4.5, with its own gamma
