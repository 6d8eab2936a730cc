"""Names in pictures: laws that hold for any segments."""

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.drawing import names


def random_segments(rng, height, width, count):
    """Regions around random points, some with holes, some tiny."""
    points = rng.uniform(0, 1, (count, 2)) * (height, width)
    reach = rng.uniform(0.2, 3, count)
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1]) / reach
    return np.where(rng.random((height, width)) < 0.02, 0, away.argmin(-1) + 1)


@pytest.mark.parametrize("seed", range(12))
def test_names_cover_no_other_lie_in_the_picture_and_where_they_can_in_their_segment(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(30, 200, 2)
    count = int(rng.integers(1, 60))
    segments = random_segments(rng, height, width, count)
    sizes = {int(n): tuple(rng.integers(1, (60, 14)).tolist()) for n in rng.permutation(count) + 1}
    places = names.place(segments, sizes)
    taken, outside = np.zeros(segments.shape, bool), 0
    for n, wanted in sizes.items():  # in the order in which they choose
        wide, high = wanted
        fits = [(y, x) for y in range(0, height - high + 1, 3) for x in range(0, width - wide + 1,
                                                                             3)
                if n not in places and (segments[y:y + high, x:x + wide] == n).all()
                and not taken[y:y + high, x:x + wide].any()]
        assert not fits  # a name that finds room in its segment has a place
        if n in places:
            spot = places[n]
            box = (slice(spot.top, spot.top + high), slice(spot.left, spot.left + wide))
            assert spot.top >= 0 <= spot.left
            assert spot.top + high <= height and spot.left + wide <= width
            assert not taken[box].any()
            assert spot.inside == (segments[box] == n).all()
            taken[box] = True
            outside += not spot.inside
            assert outside == 0 or spot.inside or taken.mean() <= names._COVERED
            assert segments[spot.middle[1], spot.middle[0]] == n
    assert places == names.place(segments, sizes)


def test_a_name_stands_in_the_middle_of_its_segment():
    segments = np.zeros((60, 100), int)
    segments[10:50, 20:90] = 1
    spot, = names.place(segments, {1: (21, 11)}).values()
    assert abs(spot.left + 10 - 54.5) <= 1.5 and abs(spot.top + 5 - 29.5) <= 1
    segments[25:35, 20:60] = 0  # a hole: now the deepest place is right of it
    spot, = names.place(segments, {1: (21, 11)}).values()
    assert spot.inside and spot.left >= 60


def test_a_name_that_fits_nowhere_stands_near_and_is_tied_to_its_segment():
    segments = np.full((200, 300), 2)
    segments[100:106, 150:156] = 1
    image = Image.new("RGB", (300, 200))
    names.write(image, segments, {1: names.Name("a long name of a small one"), 2: names.Name("x")})
    spots = names.place(segments, {2: (20, 18), 1: (180, 18)})
    assert spots[2].inside and not spots[1].inside
    assert np.hypot(spots[1].left + 90 - 153, spots[1].top + 9 - 103) <= 180 / 2 + 2.5 * 18
    assert np.asarray(image).any()


def test_what_is_too_small_or_not_in_the_picture_has_no_name():
    segments = np.zeros((100, 100), int)
    segments[50, 50:55] = 1  # half a thousandth of the picture
    for wanted in ({1: names.Name("x")}, {2: names.Name("x")}, {0: names.Name("x")}, {}):
        image = Image.new("RGB", (100, 100))
        names.write(image, segments, wanted)
        assert not np.asarray(image).any()


@pytest.mark.parametrize("size", [(16, 16), (1, 2000), (3000, 2), (40, 700)])
def test_names_are_written_in_pictures_of_any_shape(size):
    image = Image.new("RGB", size)
    names.write(image, np.ones(size[::-1], int), {1: names.Name("a name that is rather long")})
    assert bool(np.asarray(image).any()) == (min(size) >= 18)
