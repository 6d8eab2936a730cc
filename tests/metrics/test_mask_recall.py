"""Recall of true segments by masks, against small cases worked out by hand."""

import numpy as np
import pytest

from maskclippp_jax.metrics.mask_recall import MaskRecall, Overlaps, best_iou


def box(rows, columns, size=(10, 10)):
    mask = np.zeros(size, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def test_each_segment_is_compared_with_the_mask_that_fits_it_best():
    segments = np.stack([box((0, 4), (0, 10)), box((4, 10), (0, 10))])
    masks = np.stack([box((0, 3), (0, 10)), box((0, 10), (0, 10)), box((9, 10), (0, 1))])
    got = best_iou(masks, segments, np.ones((10, 10), bool))
    np.testing.assert_allclose(got, [30 / 40, 60 / 100])  # one mask may serve several
    assert best_iou(masks[:0], segments, np.ones((10, 10), bool)).tolist() == [0, 0]
    assert best_iou(masks, segments[:0], np.ones((10, 10), bool)).tolist() == []


def test_what_masks_cover_outside_the_truth_does_no_harm():
    segment, counted = box((0, 4), (0, 10)), box((0, 6), (0, 10))
    masks = np.stack([box((0, 10), (0, 10))])
    assert best_iou(masks, segment[None], counted).tolist() == [4 / 6]
    nowhere = np.stack([box((8, 10), (0, 10))])  # a mask of nothing but pixels without truth
    assert best_iou(nowhere, segment[None], counted).tolist() == [0]


def test_recall_is_the_mean_over_thresholds_and_reaching_one_is_enough():
    metric = MaskRecall(2)
    metric.process(Overlaps(np.array([0.75, 0.49, 1.0, 30 / 50]), np.full(4, 50),
                            np.array([0, 0, 1, 1]), 7))
    metric.process(Overlaps(np.zeros(0), np.zeros(0, int), np.zeros(0, int), 2))
    got = metric.evaluate()
    # Found at 6, 0, 10 and 3 of ten thresholds.
    assert got["AR"] == pytest.approx(100 * (6 + 0 + 10 + 3) / 40)
    assert got["AR50"] == 75 and got["AR75"] == 50
    assert got["by_threshold"] == [75, 75, 75, 50, 50, 50, 25, 25, 25, 25]
    assert got["per_class"] == [pytest.approx(30), pytest.approx(65)]
    assert got["segments"] == 4 and got["masks_per_picture"] == 4.5


def test_sizes_and_kinds_of_classes_are_told_apart():
    metric = MaskRecall(3, seen=[True, False, False], is_thing=[True, True, False])
    metric.process(Overlaps(np.array([1, 0, 1, 0, 1]), np.array([1023, 1024, 9216, 9217, 10**6]),
                            np.array([0, 0, 1, 2, 2]), 5))
    got = metric.evaluate()
    assert (got["ARs"], got["ARm"], got["ARl"]) == (100, 50, 50)
    assert (got["seen"], got["unseen"]) == (50, pytest.approx(200 / 3))
    assert (got["things"], got["stuff"]) == (pytest.approx(200 / 3), 50)


def test_where_there_is_nothing_nothing_is_defined():
    got = MaskRecall(2, seen=[True, True]).evaluate()
    assert got["AR"] is got["ARs"] is got["seen"] is got["masks_per_picture"] is None
    assert got["per_class"] == [None, None] and got["segments"] == 0


def test_overlaps_that_do_not_fit_are_refused():
    metric = MaskRecall(2)
    for overlaps, says in ((Overlaps(np.ones(2), np.ones(1), np.zeros(2, int), 1), "one of each"),
                           (Overlaps(np.ones(1), np.ones(1), np.array([2]), 1), "wanted 0 ... 1")):
        with pytest.raises(ValueError, match=says):
            metric.process(overlaps)
    assert metric.evaluate()["segments"] == 0
