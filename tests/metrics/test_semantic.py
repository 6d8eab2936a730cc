import json
import pathlib

import numpy as np
import pytest

from maskclippp_jax.metrics.semantic import SemanticSegmentation

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "evaluation"
CASE = json.loads((GOLDEN / "metric_semantic.json").read_text())
ARRAYS = np.load(GOLDEN / "metric_semantic.npz")


@pytest.mark.parametrize("step", CASE["steps"], ids=lambda s: s["name"])
def test_equals_the_reference(step):
    name = step["name"]
    seen = ARRAYS[f"in/{name}/seen"] if f"in/{name}/seen" in ARRAYS else None
    metric = SemanticSegmentation(step["num_classes"], step["ignore_label"], seen)
    for prediction, truth in zip(ARRAYS[f"in/{name}/prediction"],
                                 ARRAYS[f"in/{name}/ground_truth"]):
        metric.process(prediction, truth)
    np.testing.assert_array_equal(metric.counts, ARRAYS[f"out/{name}/counts"])
    got = metric.evaluate()
    compared = 0
    for key, want in CASE["expected"][name].items():
        if "boundary" in key:
            continue  # detectron2's boundary score subtracts class numbers; it means nothing
        compared += 1
        if isinstance(want, list):
            assert [x is None for x in got[key]] == [x is None for x in want]
            np.testing.assert_allclose([x for x in got[key] if x is not None],
                                       [x for x in want if x is not None], atol=1e-6)
        elif want is None:
            assert got[key] is None
        else:
            assert got[key] == pytest.approx(want, abs=1e-6)
    assert compared >= 8


def test_an_absent_but_predicted_class_separates_the_two_definitions():
    metric = SemanticSegmentation(3, 255)
    metric.process(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, 255]]))
    got = metric.evaluate()  # class 0: 2 of 3 pixels; class 1 predicted once on a counted pixel
    assert got["mIoU"] == pytest.approx(200 / 3)
    assert got["mIoU_counting_absent_predicted"] == pytest.approx(100 / 3)
    assert (got["classes_in_ground_truth"], got["classes_predicted_but_absent"]) == (1, 1)


def test_only_ignored_pixels_give_none():
    metric = SemanticSegmentation(2, 255)
    metric.process(np.zeros((2, 2), int), np.full((2, 2), 255))
    got = metric.evaluate()
    assert (got["mIoU"], got["pACC"], got["fwIoU"]) == (None, None, None)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="bring the prediction"):
        SemanticSegmentation(2, 255).process(np.zeros((2, 2), int), np.zeros((2, 3), int))


def test_every_number_of_a_small_case_worked_out_by_hand():
    metric = SemanticSegmentation(4, 255, seen=[True, True, False, True])
    metric.process(np.array([[0, 0, 1], [1, 2, 3]], np.uint8), np.array([[0, 0, 0], [1, 1, 255]]))
    metric.process(np.array([[2]], np.int16), np.array([[2]], np.uint16))
    # class 0: 2 of 3 pixels, union 3; class 1: 1 of 2, union 3; class 2: 1 of 1, union 2; class 3:
    # none, and predicted on an ignored pixel only, which counts nowhere.
    got = metric.evaluate()
    assert got["IoU"] == pytest.approx([200 / 3, 100 / 3, 50, None])
    assert got["ACC"] == pytest.approx([200 / 3, 50, 100, None])
    assert got["mIoU"] == pytest.approx(50) == got["mIoU_counting_absent_predicted"]
    means = got["mIoU_seen"], got["mIoU_unseen"], got["mIoU_harmonic"]
    assert means == pytest.approx((50, 50, 50))
    assert got["fwIoU"] == pytest.approx((200 + 200 / 3 + 50) / 6)
    assert got["mACC"] == pytest.approx(650 / 9) and got["pACC"] == pytest.approx(400 / 6)
    assert (got["classes_in_ground_truth"], got["classes_predicted_but_absent"]) == (3, 0)


def test_harmonic_mean_is_zero_when_one_side_is():
    metric = SemanticSegmentation(2, 255, seen=[True, False])
    metric.process(np.array([[0, 0]]), np.array([[0, 1]]))
    got = metric.evaluate()
    assert (got["mIoU_seen"], got["mIoU_unseen"], got["mIoU_harmonic"]) == (50, 0, 0)


@pytest.mark.parametrize("seen", [[True, True], [False, False]])
def test_all_or_none_seen_gives_none(seen):
    metric = SemanticSegmentation(2, 255, seen)
    metric.process(np.array([[0, 1]]), np.array([[0, 1]]))
    got = metric.evaluate()
    assert (got["mIoU_seen"], got["mIoU_unseen"], got["mIoU_harmonic"]) == (None, None, None)


def test_an_empty_prediction_counts_nothing():
    metric = SemanticSegmentation(2, 255)
    metric.process(np.zeros((0, 5), int), np.zeros((0, 5), int))
    assert metric.evaluate()["mIoU"] is None and metric.counts.sum() == 0


def test_truth_k_is_refused_unless_it_is_the_ignore_label():
    truth = np.array([[0, 3]])
    metric = SemanticSegmentation(3, 255)
    with pytest.raises(ValueError, match="true .* lie in 0 ... 3, wanted 0 ... 2"):
        metric.process(np.array([[0, 0]]), truth)
    assert metric.counts.sum() == 0
    metric = SemanticSegmentation(3, 3)
    metric.process(np.array([[0, 0]]), truth)
    assert metric.evaluate()["pACC"] == 100 and metric.counts[0, 3] == 1


@pytest.mark.parametrize("prediction, says", [
    ([[0, 2]], "predicted classes lie in 0 ... 2, wanted 0 ... 1"),
    ([[-1, 0]], "predicted classes lie in -1 ... 0"),
    ([[0.7, 1.0]], "predicted classes are float64, wanted integers")])
def test_bad_predictions_are_refused(prediction, says):
    with pytest.raises(ValueError, match=says):
        SemanticSegmentation(2, 255).process(np.array(prediction), np.array([[0, 1]]))


def test_counts_of_hosts_add_up(rng):
    prediction, truth = rng.integers(0, 5, (2, 4, 6, 7))
    whole, first, second = (SemanticSegmentation(5, 4) for _ in range(3))
    for i in range(4):
        whole.process(prediction[i], truth[i])
        (first if i < 2 else second).process(prediction[i], truth[i])
    first.counts = first.counts + second.counts
    assert first.evaluate() == whole.evaluate()
    first.reset()
    assert first.evaluate()["mIoU"] is None


def test_seen_of_another_length_is_refused():
    with pytest.raises(ValueError, match="one bool for each of the 3 classes"):
        SemanticSegmentation(3, 255, seen=[True, False])


def test_a_picture_without_prediction_is_missed():
    metric = SemanticSegmentation(3, 255)
    metric.process(np.array([[0, 0, 1, 2]]), np.array([[0, 0, 1, 255]]))
    metric.process(None, np.array([[0, 0, 255, 255]]))
    got = metric.evaluate()
    assert got["IoU"] == pytest.approx([50, 100, None]) and got["pACC"] == pytest.approx(60)
    assert metric.counts[3].tolist() == [2, 0, 0, 2]
