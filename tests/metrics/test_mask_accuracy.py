import json
import pathlib

import numpy as np
import pytest

from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy, classes_present

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
