import itertools

import numpy as np
import pytest

from maskclippp_jax.metrics import oracle
from maskclippp_jax.metrics.panoptic import PanopticQuality


def stripes(*parts, height=8):
    """A map of vertical stripes: (value, columns) after each other."""
    return np.tile(np.concatenate([np.full(n, v) for v, n in parts]), (height, 1))


def test_the_assignment_is_the_best_of_all(rng):
    for _ in range(5):
        iou = rng.random((5, 3))
        best = max(itertools.permutations(range(5), 3), key=lambda p: sum(iou[p, range(3)]))
        masks, truths = oracle.assign(iou)
        assert sorted(zip(truths, masks)) == list(enumerate(best)) and list(masks) == sorted(masks)


def test_iou_looks_at_every_fourth_pixel_of_whole_fours():
    mask, truth = np.zeros((2, 1, 8, 10), bool)
    mask[0, 0, 0] = mask[0, 0, 8] = True  # the ninth column begins no whole four
    truth[0, 0, 0] = truth[0, 4, 4] = truth[0, 1:4, 1:4] = True
    assert oracle.mask_iou(mask, truth)[0, 0] == pytest.approx(1 / 2)


def test_overlaps_go_to_the_smaller_class_and_uncovered_pixels_to_class_0():
    truth = stripes((2, 8), (1, 8), (255, 4))
    masks = np.stack([stripes((1, 12), (0, 8)), stripes((0, 8), (1, 8), (0, 4))]).astype(bool)
    np.testing.assert_array_equal(oracle.semantic(masks, truth, 255),
                                  stripes((2, 8), (1, 8), (0, 4)))


def test_panoptic_ids_count_from_1_and_no_pair_is_lost():
    truth = stripes((5, 8), (9, 8))
    segments = [dict(id=5, category_id=1, area=64), dict(id=9, category_id=2, area=64)]
    masks = np.stack([truth == 9, truth == 5])
    ids, found = oracle.panoptic(masks, truth, segments)
    assert found == [dict(id=1, category_id=2), dict(id=2, category_id=1)]
    np.testing.assert_array_equal(ids, stripes((2, 8), (1, 8)))
    metric = PanopticQuality({1: True, 2: False})
    metric.process(ids, found, truth, segments)
    assert metric.evaluate()["all"]["PQ"] == 100


def test_later_pairs_cover_earlier_ones_and_what_is_hidden_is_not_listed():
    truth = stripes((5, 8), (9, 8))
    segments = [dict(id=5, category_id=1), dict(id=9, category_id=2)]
    masks = np.stack([truth == 5, np.ones_like(truth, bool)])
    ids, found = oracle.panoptic(masks, truth, segments)
    assert (ids == 2).all() and found == [dict(id=2, category_id=2)]


def test_instances_take_the_class_of_their_truth():
    truth = np.stack([stripes((1, 8), (0, 8)), stripes((0, 8), (1, 8))]).astype(bool)
    masks = np.stack([truth[1], np.zeros_like(truth[0]), truth[0]])
    found, classes = oracle.instances(masks, truth, [4, 6])
    assert list(zip(found, classes)) == [(0, 6), (2, 4)]


def test_nothing_to_assign_gives_nothing():
    truth = np.full((8, 8), 255)
    assert not oracle.semantic(np.ones((2, 8, 8), bool), truth, 255).any()
    ids, found = oracle.panoptic(np.zeros((0, 8, 8), bool), np.ones((8, 8), int),
                                 [dict(id=1, category_id=1)])
    assert not ids.any() and found == []
