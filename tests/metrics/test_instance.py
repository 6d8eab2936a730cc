"""Average precision of small pictures worked out by hand. (Equality with pycocotools' own numbers
is a stored case, see test_parity.)"""

import numpy as np
import pytest

from maskclippp_jax.metrics.instance import InstanceSegmentation, decode, encode


def box(left, right, size=(40, 60)):
    mask = np.zeros(size, bool)
    mask[:10, left:right] = True
    return encode(mask)


def predicted(segmentation, score, category=1):
    return dict(category_id=category, score=score, segmentation=segmentation)


def true(segmentation, category=1, area=None, crowd=0):
    area = decode(segmentation).sum() if area is None else area
    return dict(category_id=category, segmentation=segmentation, area=area, iscrowd=crowd)


def test_run_lengths_survive(rng):
    mask = rng.random((7, 5)) > 0.5
    assert encode(mask)["size"] == [7, 5] and isinstance(encode(mask)["counts"], str)
    np.testing.assert_array_equal(decode(encode(mask)), mask)


def test_perfect_predictions_give_100_in_every_picture():
    metric = InstanceSegmentation([1, 2])
    metric.process("a", [predicted(box(0, 9), 0.5)], [true(box(0, 9))])  # annotation ids start at 1
    metric.process("b", [predicted(box(0, 9), 0.5, 2)], [true(box(0, 9), 2)])
    got = metric.evaluate()
    assert got["AP"] == pytest.approx(100) and got["APs"] == pytest.approx(100)
    assert (got["APm"], got["APl"], got["pictures"]) == (None, None, 2)
    assert got["per_category"] == {1: pytest.approx(100), 2: pytest.approx(100)}


def test_a_false_positive_ranked_first_halves_the_precision():
    metric = InstanceSegmentation([1])
    metric.process("a", [predicted(box(30, 39), 0.9), predicted(box(0, 9), 0.5)],
                   [true(box(0, 9))])
    assert metric.evaluate()["AP"] == pytest.approx(50)
    metric.reset()
    metric.process("a", [predicted(box(30, 39), 0.4), predicted(box(0, 9), 0.5)],
                   [true(box(0, 9))])
    assert metric.evaluate()["AP"] == pytest.approx(100)


def test_iou_decides_at_which_thresholds_a_match_counts():
    metric = InstanceSegmentation([1])
    metric.process("a", [predicted(box(0, 7), 0.5)], [true(box(0, 10))])  # IoU 0.7
    got = metric.evaluate()
    assert got["AP50"] == pytest.approx(100) and got["AP75"] == 0
    assert got["AP"] == pytest.approx(50)  # 0.50, 0.55, 0.60, 0.65 and 0.70 itself


def test_predictions_on_a_crowd_count_for_nothing():
    metric = InstanceSegmentation([1])
    metric.process("a", [predicted(box(20, 30), 0.9), predicted(box(0, 9), 0.5)],
                   [true(box(0, 9)), true(box(15, 45), crowd=1)])
    assert metric.evaluate()["AP"] == pytest.approx(100)


def test_the_recorded_area_makes_a_mask_small_or_large():
    metric = InstanceSegmentation([1])
    metric.process("a", [predicted(box(0, 9), 0.9)], [true(box(0, 9), area=100 * 100)])
    got = metric.evaluate()
    assert got["APl"] == pytest.approx(100) and got["APs"] is None


def test_a_category_without_truth_is_left_out_and_a_missed_one_is_0():
    metric = InstanceSegmentation([1, 2, 3])
    metric.process("a", [predicted(box(0, 9), 0.9), predicted(box(0, 9), 0.9, 2)],
                   [true(box(0, 9)), true(box(0, 9), 3)])
    got = metric.evaluate()
    assert got["per_category"] == {1: pytest.approx(100), 2: None, 3: 0}
    assert got["AP"] == pytest.approx(50)


def test_no_predictions_no_truth_and_no_pictures():
    metric = InstanceSegmentation([1])
    assert metric.evaluate()["AP"] is None
    metric.process("a", [], [])
    assert metric.evaluate()["AP"] is None
    metric.process("b", [], [true(box(0, 9))])
    assert metric.evaluate()["AP"] == 0


def test_neither_the_order_of_pictures_nor_their_host_matters():
    """Equal scores are ranked by picture, so the order would show."""
    pictures = [(f"p{i}", [predicted(box(0, 9 if i % 2 else 2), 0.5)], [true(box(0, 9))])
                for i in range(6)]
    one, other, first, second = (InstanceSegmentation([1]) for _ in range(4))
    for p in pictures:
        one.process(*p)
    for p in pictures[::-1]:
        other.process(*p)
    for i, p in enumerate(pictures):
        (first if i in (1, 4) else second).process(*p)
    first.add_state(second.state())
    assert 0 < one.evaluate()["AP"] < 100
    assert one.evaluate() == other.evaluate() == first.evaluate()
    with pytest.raises(ValueError, match="p0 was given before"):
        first.add_state(second.state())


@pytest.mark.parametrize("image, found, says", [
    ("a", [], "a was given before"),
    ("b", [predicted(box(0, 9), 0.5, 4)], "unknown categories .4."),
    ("b", [predicted(box(0, 9, (40, 61)), 0.5)], "bring predictions to the stored size"),
    ("b", [predicted(box(0, 9), float("nan"))], "a score that is not finite")])
def test_bad_input_is_refused_and_nothing_counted(image, found, says):
    metric = InstanceSegmentation([1])
    metric.process("a", [], [true(box(0, 9))])
    with pytest.raises(ValueError, match=says):
        metric.process(image, found, [true(box(0, 9))])
    assert metric.evaluate()["pictures"] == 1
