"""Average precision of small pictures worked out by hand. (Equality with pycocotools' own numbers
is a stored case, see test_parity.)"""

import numpy as np
import pytest

from maskclippp_jax.metrics.instance import InstanceSegmentation
from maskclippp_jax.metrics.run_lengths import decode, encode


def box(left, right, size=(40, 60)):
    mask = np.zeros(size, bool)
    mask[:10, left:right] = True
    return encode(mask)


def predicted(segmentation, score, category=1):
    return dict(category_id=category, score=score, segmentation=segmentation)


def true(segmentation, category=1, area=None, crowd=0):
    area = decode(segmentation).sum() if area is None else area
    return dict(category_id=category, segmentation=segmentation, area=area, iscrowd=crowd)


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


def test_seen_and_unseen_categories_are_told_apart_where_there_are_both():
    for seen, wanted in (([1], (100, 0)), ([2], (0, 100)), ([1, 2], None), (None, None)):
        metric = InstanceSegmentation([2, 1], seen=seen)
        metric.process("a", [predicted(box(0, 9), 0.9)],
                       [true(box(0, 9)), true(box(30, 39), 2)])
        got = metric.evaluate()
        assert (got.get("AP_seen"), got.get("AP_unseen")) == (
            pytest.approx(wanted) if wanted else (None, None))


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


def lvis(*pictures, categories=(1, 2, 3)):
    """The metric by the rules of LVIS, after pictures of (predicted, true, negative, more)."""
    metric = InstanceSegmentation(categories, {i: "rcf"[i % 3] for i in categories})
    for number, picture in enumerate(pictures):
        metric.process(f"p{number:02}", *picture)
    return metric


def test_lvis_looks_at_a_class_where_it_is_annotated_or_absent_only():
    hit, wrong = predicted(box(0, 9), 0.5), predicted(box(30, 39), 0.9)
    where = [true(box(0, 9))]
    assert lvis(([hit], where), ([wrong], [])).evaluate()["AP"] == pytest.approx(100)
    assert lvis(([hit], where), ([wrong], [], [2, 3])).evaluate()["AP"] == pytest.approx(100)
    assert lvis(([hit], where), ([wrong], [], [1])).evaluate()["AP"] == pytest.approx(50)


def test_lvis_forgives_what_matches_nothing_where_there_may_be_more():
    found = [predicted(box(0, 9), 0.5), predicted(box(30, 39), 0.9)]
    where = [true(box(0, 9))]
    assert lvis((found, where)).evaluate()["AP"] == pytest.approx(50)
    assert lvis((found, where, [], [2])).evaluate()["AP"] == pytest.approx(50)
    assert lvis((found, where, [], [1])).evaluate()["AP"] == pytest.approx(100)


def test_lvis_takes_the_best_300_predictions_of_a_picture_and_groups_classes_by_frequency():
    where = [true(box(0, 9)), true(box(0, 9), 2)]
    others = [predicted(box(30, 39), 0.9, 3)] * 299  # not looked at, but they take their place
    got = lvis(([*others, predicted(box(0, 9), 0.2), predicted(box(0, 9), 0.1, 2)], where))
    assert got.evaluate()["per_category"] == {1: pytest.approx(100), 2: 0, 3: None}
    assert [got.evaluate()[name] for name in ("APr", "APc", "APf")] == [
        None, pytest.approx(100), 0]


def random_pictures(seed):
    """Thirty pictures with four classes each, twelve in all; some have more than is annotated."""
    rng = np.random.default_rng(seed)
    pictures = []
    for number in range(30):
        def rectangle(near=None):
            if near is None:
                height, width = rng.integers(4, 110, 2)
                near = rng.integers(120 - height), rng.integers(160 - width), height, width
            else:
                near = np.maximum(near + rng.integers(-5, 6, 4), 1)
            mask = np.zeros((120, 160), bool)
            mask[near[0]:near[0] + near[2], near[1]:near[1] + near[3]] = True
            return near, encode(mask)

        classes = rng.permutation(12) + 1
        annotated, found = [], []
        for category in classes[:4].repeat(2):
            place, segmentation = rectangle()
            annotated.append(true(segmentation, int(category)))
            found += [predicted(rectangle(place)[1], round(rng.random(), 2), int(category))
                      for _ in range(rng.integers(3))]
        for category in rng.integers(1, 13, 320 if number == 3 else 12):
            found.append(predicted(rectangle()[1], round(0.8 * rng.random(), 2), int(category)))
        more = [int(c) for c in (*classes[:2], classes[10]) if rng.random() < 0.5]
        pictures.append((found, annotated, classes[4:6 + number % 3].tolist(), more))
    return pictures


def with_masks_without_pixels(seed: int) -> list[tuple]:
    """The same, with predicted and annotated masks that are empty, and an area recorded as 0."""
    rng, nothing = np.random.default_rng(100 + seed), encode(np.zeros((120, 160), bool))
    pictures = []
    for found, annotated, *others in random_pictures(seed):
        for category in rng.integers(1, 13, 30):
            found.insert(int(rng.integers(len(found))),
                         predicted(nothing, round(rng.random(), 2), int(category)))
        annotated += [true(nothing, int(category)) for category in rng.integers(1, 13, 2)]
        annotated[0]["area"] = 0
        pictures.append((found, annotated, *others))
    return pictures


@pytest.mark.parametrize("pictures, seed, wanted", [
    (random_pictures, 0, [20.184080466, 32.641276780, 22.535000034, 5.996143067, 27.442163153,
                          37.188118812, 21.061786124, 19.203130477, 20.287324797]),
    (random_pictures, 1, [17.495069815, 31.728347209, 16.739911190, 3.484808005, 23.759672302,
                          34.199669967, 15.599741328, 18.624058061, 18.261410055]),
    (with_masks_without_pixels, 0, [
        22.170380529, 34.600818645, 25.012856898, 6.028275447, 30.974456766, 38.455445545,
        23.050783998, 19.322002987, 24.138354601]),
    (with_masks_without_pixels, 3, [
        18.085070187, 32.766945209, 16.996708767, 7.230600820, 24.774000954, 63.000000000,
        22.453963121, 14.295232594, 17.506014846])])
def test_lvis_gives_the_numbers_of_its_own_package(pictures, seed, wanted):
    """They were computed by LVISEval of lvis 0.5.3 on the same pictures, where every entry of its
    precision table was equal. It drops masks without area."""
    got = lvis(*pictures(seed), categories=range(1, 13)).evaluate()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    assert [got[name] for name in names] == pytest.approx(wanted, abs=1e-8)


def test_lvis_is_coco_where_all_is_annotated():
    coco = InstanceSegmentation(range(1, 13))
    pictures = random_pictures(2)
    del pictures[3]  # which has more than 300 predictions
    for number, (found, annotated, _, _) in enumerate(pictures):
        coco.process(f"p{number:02}", found, annotated)
    one = lvis(*((found, annotated, range(1, 13)) for found, annotated, _, _ in pictures),
               categories=range(1, 13))
    for a, b in zip(one.precision(), coco.precision()):
        np.testing.assert_array_equal(a, b)
    half, rest = (lvis(categories=range(1, 13)) for _ in range(2))  # as two hosts count
    for number, (found, annotated, _, _) in enumerate(pictures):
        (half if number % 3 else rest).process(f"p{number:02}", found, annotated, range(1, 13))
    half.add_state(rest.state())
    assert half.evaluate() == one.evaluate()


def test_what_is_not_annotated_is_refused_by_the_rules_of_coco():
    metric = InstanceSegmentation([1])
    with pytest.raises(ValueError, match="which classes are not annotated in it, as LVIS does"):
        metric.process("a", [], [], [1])
    with pytest.raises(ValueError, match="unknown categories .4."):
        lvis(([], [], [4]))


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
