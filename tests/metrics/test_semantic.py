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
    for prediction, truth in zip(ARRAYS[f"in/{name}/prediction"], ARRAYS[f"in/{name}/ground_truth"]):
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
    metric.process(np.zeros((2, 2)), np.full((2, 2), 255))
    got = metric.evaluate()
    assert (got["mIoU"], got["pACC"], got["fwIoU"]) == (None, None, None)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="bring the prediction"):
        SemanticSegmentation(2, 255).process(np.zeros((2, 2)), np.zeros((2, 3)))
