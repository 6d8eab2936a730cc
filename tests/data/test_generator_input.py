"""How pictures go into a generator: sizes, padding, windows."""

import numpy as np
import pytest

from maskclippp_jax.data import generator_input


def test_sizes_round_halves_to_even():
    assert generator_input.letterbox_size((97, 128), 64) == (48, 64)
    assert generator_input.letterbox_size((101, 256), 640) == (252, 640)
    assert generator_input.windows_size((40, 64), 48) == (48, 77)


def test_the_shorter_side_of_an_extreme_picture_is_one_pixel():
    assert generator_input.letterbox_size((10000, 5), 640) == (640, 1)
    assert generator_input.letterbox(np.full((3000, 2, 3), 9, np.uint8), 64).shape == (64, 64, 3)


def test_padding_is_black_at_the_right_and_below():
    image = generator_input.letterbox(np.full((30, 60, 3), 200, np.uint8), 64)
    assert (image[:32] == 200).all() and (image[32:] == 0).all()
    image = generator_input.letterbox(np.full((60, 30, 3), 200, np.uint8), 64)
    assert (image[:, :32] == 200).all() and (image[:, 32:] == 0).all()


@pytest.mark.parametrize("size", [(48, 48), (48, 200), (200, 48), (30, 31)])
def test_windows_cover_the_picture_and_stay_inside(size, rng):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    found = generator_input.windows(image, 48)
    assert found.images.shape[1:] == (48, 48, 3) and min(found.resized) == 48
    longer, seen = max(found.resized), set()
    for start, end in found.origins:
        assert 0 <= start and end == start + 48 <= longer
        seen |= set(range(start, end))
    assert seen == set(range(longer))
