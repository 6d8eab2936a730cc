"""Run lengths and polygons: right ones give their mask, damaged ones a sentence."""

import numpy as np
import pytest
from pycocotools import mask as coco

from maskclippp_jax.metrics import run_lengths

SIZE = (60, 80)
SQUARE = [10, 10, 40, 10, 40, 30, 10, 30]


def runs_of(mask: np.ndarray) -> list[int]:
    flat = np.r_[0, mask.T.ravel(), 2]
    changes = np.flatnonzero(np.diff(flat))
    return np.diff([0, *changes]).tolist()


def test_masks_survive_in_both_forms(rng):
    for _ in range(100):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random()
        code = run_lengths.encode(mask)
        assert code["size"] == list(mask.shape) and isinstance(code["counts"], str)
        np.testing.assert_array_equal(run_lengths.decode(code), mask)
        assert run_lengths.area(code) == mask.sum()
        runs = dict(size=list(mask.shape), counts=runs_of(mask))
        assert run_lengths.read(runs) == run_lengths.read(code, mask.shape) == code
        as_floats = dict(runs, counts=list(map(float, runs["counts"])))
        assert run_lengths.read(as_floats) == code
        as_bytes = dict(code, counts=code["counts"].encode())
        assert run_lengths.read(as_bytes) == code


@pytest.mark.parametrize("code, says", [
    (dict(size=[24, 32], counts=""), "no compressed run lengths, or are cut short"),
    (dict(size=[24, 32], counts="abc"), "no compressed run lengths, or are cut short"),
    (dict(size=[24, 32], counts="é4"), "no compressed run lengths"),
    (dict(size=[60, 80], counts="Rc0d0"), "runs of 630 pixels in all, wanted the 4800 of 80x60"),
    (dict(size=[24, 32], counts="Poooooooo0"), "a run that is larger than any picture"),
    (dict(size=[24, 32], counts=[10, 5]), "runs of 15 pixels in all, wanted the 768 of 32x24"),
    (dict(size=[24, 32], counts=[-1, 769]), "some below 0"),
    (dict(size=[24, 32], counts=[0.5, 767.5]), "no whole numbers"),
    (dict(size=[24, 32], counts=[float("nan"), 768]), "NaN or infinity"),
    (dict(size=[24, 32], counts=[2**70]), "wanted numbers"),
    (dict(size=[2, 2], counts=[[1, 2], [1]]), "wanted numbers"),
    (dict(size=[24, 32], counts=None), "wanted numbers"),
    (dict(size=[24], counts=[24]), "the size .24., wanted height and width"),
    (dict(size=[0, 32], counts=[0]), "the size .0, 32."),
    (dict(size=[2**40, 32], counts=[1]), "the size .1099511627776, 32."),
    (dict(size=[float("nan"), 2], counts=[2]), "the size .nan, 2."),
    (dict(counts=[12]), "has counts, wanted run lengths with size and counts"),
    ({}, "has nothing, wanted run lengths"),
    ("0;", "is neither run lengths .* nor a list of polygons"),
    ([SQUARE], "is neither run lengths")])  # polygons need the picture's size
def test_what_is_no_run_lengths_is_explained(code, says):
    with pytest.raises(ValueError, match=says):
        run_lengths.read(code)
    if isinstance(code, dict):
        with pytest.raises(ValueError, match=says):
            run_lengths.decode(code)


def test_run_lengths_of_another_size_are_refused():
    with pytest.raises(ValueError, match="is for 3x4 pixels, the picture has 4x3"):
        run_lengths.read(dict(size=[4, 3], counts=[12]), (3, 4))


def test_polygons_are_drawn_as_by_cocos_package(rng):
    for _ in range(50):
        size = rng.integers(10, 90, 2)
        polygons = [(1.5 * rng.random((rng.integers(3, 9), 2)) * size[::-1]).ravel().tolist()
                    for _ in range(3)]
        wanted = coco.merge(coco.frPyObjects(polygons, *map(int, size)))
        assert run_lengths.read(polygons, size)["counts"] == wanted["counts"].decode()


@pytest.mark.parametrize("polygons", [
    [SQUARE], SQUARE, tuple(SQUARE), [tuple(SQUARE)], np.array([SQUARE]),
    np.reshape(SQUARE, (4, 2)).tolist(), [np.reshape(SQUARE, (4, 2)).tolist()],
    [[10, 10], [10, 10, 20, 20], SQUARE]])  # scraps of one and two points have no inside
def test_every_way_to_write_a_polygon_has_one_meaning(polygons):
    code = run_lengths.read(polygons, SIZE)
    assert code == run_lengths.read([SQUARE], SIZE) and run_lengths.area(code) == 600


@pytest.mark.parametrize("polygons", [[], [[]], [[5, 5]], [[395.0, 85.5, 395.0, 85.5]]])
def test_what_has_no_inside_is_an_empty_mask(polygons):
    assert run_lengths.area(run_lengths.read(polygons, SIZE)) == 0


@pytest.mark.parametrize("polygons, says", [
    ([[1, 2, float("nan"), 3, 4, 5]], "NaN or infinity"),
    ([[1, 2, float("inf"), 3, 4, 5]], "NaN or infinity"),
    ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers, wanted an even count"),
    ([1, 2, 3, 4, 5, 6, 7], "a polygon of 7 numbers, wanted an even count"),
    ([1, 2, [3, 4]], "mixes lists and numbers"),
    ([[1, 2, [3, 4]]], "wanted numbers"),
    ([["a"] * 6], "wanted numbers"), ([[None] * 6], "wanted numbers"),
    ([[True] * 6], "wanted numbers"), ([[[1, 2, 3]]], r"of shape \(1, 3\)"),
    (5, "is neither"), (None, "is neither")])
def test_what_is_no_polygon_is_explained(polygons, says):
    with pytest.raises(ValueError, match=says):
        run_lengths.read(polygons, SIZE)


def test_a_polygon_that_leaves_the_picture_far_is_cut_at_its_edge():
    whole = run_lengths.read([[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9]], SIZE)
    assert run_lengths.area(whole) == 60 * 80
    beside = run_lengths.read([[1e9, 1e9, 2e9, 1e9, 2e9, 2e9]], SIZE)
    assert run_lengths.area(beside) == 0
    # A triangle whose far corner lies on the diagonal; near and far it covers the same pixels.
    near, far = (run_lengths.decode(run_lengths.read([[0, 0, n, 0, n, n]], (64, 64)))
                 for n in (100, 1_000_000_000))
    assert (near != far).mean() < 0.02 and far[:32].mean() > 0.7


def test_cutting_changes_nothing_but_roundings(rng):
    shares = []
    for _ in range(60):
        height, width = (int(n) for n in rng.integers(40, 90, 2))
        ring = rng.normal([width / 2, height / 2], [1.5 * width, 1.5 * height], (6, 2))
        wanted = coco.decode(coco.merge(coco.frPyObjects([ring.ravel().tolist()], height, width)))
        got = run_lengths.decode(run_lengths.read([ring.tolist()], (height, width)))
        shares.append((got != wanted).mean())
    assert np.mean(shares) < 0.005 and max(shares) < 0.05
