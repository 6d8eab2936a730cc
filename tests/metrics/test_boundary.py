import cv2
import numpy as np
import pytest

from maskclippp_jax.metrics.boundary import BoundaryIoU, boundary


@pytest.mark.parametrize("distance", [1, 3])
def test_boundaries_equal_eroding_one_mask_at_a_time(rng, distance):
    labels = rng.integers(0, 4, (5, 6)).repeat(9, 0).repeat(8, 1)
    want = np.zeros(labels.shape, bool)
    for k in range(4):
        mask = np.pad(labels == k, 1).astype(np.uint8)  # the picture's edge is a rim as well
        eroded = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance)
        want |= (mask - eroded)[1:-1, 1:-1].astype(bool)
    got = boundary(labels, distance)
    np.testing.assert_array_equal(got, want)
    assert 0.1 < got.mean() < 0.95


def test_numbers_of_a_picture_worked_out_by_hand():
    truth = np.zeros((10, 10), int)
    truth[:, 5:] = 1
    prediction = truth.copy()
    prediction[:, 4] = 1  # the rim moved by one column
    metric = BoundaryIoU(2, 255, dilation_ratio=0.0)  # a rim of one pixel
    metric.process(prediction, truth)
    # Class 0: truth 5 x 10 without its inner 3 x 8, 26 pixels; prediction 4 x 10 without 2 x 8, 24.
    # Both: left column 10, top and bottom of columns 1 ... 3 (6).
    # Class 1: 26 and 28; both: right column 10, top and bottom of columns 5 ... 8 (8).
    assert metric.counts.tolist() == [[16, 26, 24], [18, 26, 28]]
    got = metric.evaluate()
    assert got["BIoU"] == pytest.approx([1600 / 34, 1800 / 36])
    assert got["mBIoU"] == pytest.approx((1600 / 34 + 1800 / 36) / 2)


def test_class_numbers_do_not_matter(rng):
    """The score that erodes the label map as a grey picture fails this."""
    truth, prediction = rng.integers(0, 3, (2, 6, 6)).repeat(7, 1).repeat(7, 2)
    swap = np.array([2, 0, 1])
    one, other = BoundaryIoU(3, 255), BoundaryIoU(3, 255)
    one.process(prediction, truth)
    other.process(swap[prediction], swap[truth])
    np.testing.assert_array_equal(one.counts, other.counts[swap])


def test_ignored_pixels_count_nowhere():
    truth = np.zeros((8, 8), int)
    truth[:, 4:] = 255
    metric = BoundaryIoU(2, 255)
    metric.process(np.where(truth == 255, 1, truth), truth)
    assert metric.evaluate() == dict(mBIoU=100, BIoU=[100, None], classes_in_ground_truth=1)


def test_a_picture_without_prediction_is_missed_and_nothing_gives_none():
    metric = BoundaryIoU(2, 255)
    assert metric.evaluate()["mBIoU"] is None
    metric.process(None, np.zeros((4, 4), int))
    assert metric.evaluate()["mBIoU"] == 0


@pytest.mark.parametrize("prediction, says", [
    (np.full((4, 4), 2), "predicted classes lie in 2 ... 2"),
    (np.zeros((4, 5), int), "stored size")])
def test_bad_input_is_refused_and_nothing_counted(prediction, says):
    metric = BoundaryIoU(2, 255)
    with pytest.raises(ValueError, match=says):
        metric.process(prediction, np.zeros((4, 4), int))
    assert not metric.counts.any()
