import json
import pathlib

import numpy as np
import pytest

from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy, classes_of_segments, classes_present

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "evaluation"
CASE = json.loads((GOLDEN / "metric_mask_accuracy.json").read_text())
ARRAYS = np.load(GOLDEN / "metric_mask_accuracy.npz")


@pytest.mark.parametrize("step", CASE["steps"], ids=lambda s: s["name"])
def test_equals_the_reference(step):
    name = step["name"]
    metric = MaskAccuracy(step["num_classes"], ARRAYS[f"in/{name}/seen"])
    for i, predicted in enumerate(step["predicted_classes"]):
        if "segments" in step:
            labels = [s["category_id"] for s in step["segments"][i]]
        else:
            labels = classes_present(ARRAYS[f"in/{name}/ground_truth"][i], step["ignore_label"])
        metric.process(np.array(predicted, int), np.array(labels, int))
    np.testing.assert_array_equal(metric.counts, ARRAYS[f"out/{name}/counts"][:-1, :-1])
    got = metric.evaluate()
    for key, want in CASE["expected"][name].items():
        if key == "per_class":
            assert [x is None for x in got[key]] == [x is None for x in want]
            np.testing.assert_allclose([x for x in got[key] if x is not None],
                                       [x for x in want if x is not None], atol=1e-6)
        elif want is None:
            assert got[key] is None
        else:
            assert got[key] == pytest.approx(want, abs=1e-6)


def test_classes_weigh_the_same_however_many_masks_they_have():
    metric = MaskAccuracy(3)
    metric.process([0, 0, 0, 1], [0, 0, 0, 2])  # class 0: 3 of 3, class 2: 0 of 1, class 1 absent
    got = metric.evaluate()
    assert (got["mMaskAcc"], got["micro"], got["classes"]) == (50.0, 75.0, 2)
    assert got["per_class"] == [100.0, None, 0.0]


def test_no_mask_at_all_gives_none():
    metric = MaskAccuracy(2, seen=[True, False])
    metric.process([], [])
    got = metric.evaluate()
    assert (got["mMaskAcc"], got["micro"], got["seen"], got["masks"]) == (None, None, None, 0)


def test_a_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match="predicted classes lie in 2 ... 2, wanted 0 ... 1"):
        MaskAccuracy(2).process([2], [0])


def test_floats_are_refused_and_not_cut():
    with pytest.raises(ValueError, match="predicted classes are float64, wanted integers"):
        MaskAccuracy(2).process([0.9], [0])


def test_empty_slots_and_other_lengths_are_refused():
    metric = MaskAccuracy(2)
    with pytest.raises(ValueError, match="true classes lie in -1 ... 0"):
        metric.process([0, 0], [0, -1])
    with pytest.raises(ValueError, match="one for each mask"):
        metric.process([0], [0, 1])
    assert metric.counts.sum() == 0


def test_seen_and_unseen_are_means_over_classes_that_occur():
    metric = MaskAccuracy(4, seen=[True, True, False, False])
    metric.process([0, 2, 2, 2, 1], [0, 0, 2, 2, 2])  # class 0: 1 of 2; class 2: 2 of 3
    got = metric.evaluate()
    assert (got["seen"], got["unseen"]) == pytest.approx((50, 200 / 3))
    assert got["micro"] == pytest.approx(60)


def test_unseen_classes_that_never_occur_give_none():
    metric = MaskAccuracy(2, seen=[True, False])
    metric.process([0], [0])
    got = metric.evaluate()
    assert (got["seen"], got["unseen"]) == (100, None)


def test_counts_of_hosts_add_up(rng):
    predicted, labels = rng.integers(0, 5, (2, 40))
    whole, first, second = (MaskAccuracy(5) for _ in range(3))
    whole.process(predicted, labels)
    first.process(predicted[:15], labels[:15])
    second.process(predicted[15:], labels[15:])
    first.counts = first.counts + second.counts
    assert first.evaluate() == whole.evaluate()


def test_classes_present_are_ascending_without_the_ignored():
    assert classes_present(np.array([[5, 255], [2, 5]], np.uint8), 255).tolist() == [2, 5]
    assert classes_present(np.full((2, 2), 255, np.uint8), 255).size == 0


def test_things_and_stuff_are_means_over_their_classes():
    metric = MaskAccuracy(4, is_thing=[True, True, False, False])
    metric.process([0, 2, 1, 2, 1], [0, 0, 1, 2, 2])
    got = metric.evaluate()
    assert (got["things"], got["stuff"], got["seen"]) == (75, 50, None)


def test_the_panoptic_form_asks_about_every_segment_crowds_included():
    segments = [dict(id=9, category_id=7, iscrowd=1), dict(id=4, category_id=3, iscrowd=0),
                dict(id=5, category_id=7, iscrowd=0)]
    assert classes_of_segments(segments, {3: 0, 7: 1}).tolist() == [1, 0, 1]
