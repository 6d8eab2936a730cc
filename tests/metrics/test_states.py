"""What all metrics share: stopping and going on, hosts, ranges by the bootstrap."""

import json

import numpy as np
import pytest

from maskclippp_jax import metrics
from maskclippp_jax.metrics.bootstrap import PerPicture
from maskclippp_jax.metrics.boundary import BoundaryIoU
from maskclippp_jax.metrics.instance import InstanceSegmentation
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy
from maskclippp_jax.metrics.mask_recall import MaskRecall, Overlaps
from maskclippp_jax.metrics.panoptic import PanopticQuality
from maskclippp_jax.metrics.run_lengths import encode
from maskclippp_jax.metrics.semantic import SemanticSegmentation

SEEN = [True, False, True]


def make():
    return dict(mask_accuracy=MaskAccuracy(3, SEEN), mask_recall=MaskRecall(3, SEEN),
                semantic=SemanticSegmentation(3, 255, SEEN), boundary=BoundaryIoU(3, 255),
                panoptic=PanopticQuality({0: True, 1: False, 2: True}),
                instances=InstanceSegmentation([0, 1, 2]))


def process(all_metrics, number):
    """One random picture in every metric."""
    rng = np.random.default_rng(number)
    prediction, truth = rng.integers(0, 3, (2, 4, 4)).repeat(6, 1).repeat(6, 2)
    truth[rng.random(truth.shape) < 0.1] = 255
    all_metrics["mask_accuracy"].process(*rng.integers(0, 3, (2, 5)))
    all_metrics["mask_recall"].process(Overlaps(
        rng.random(5), rng.integers(1, 10**5, 5), rng.integers(0, 3, 5), 4))
    all_metrics["semantic"].process(prediction, truth)
    all_metrics["boundary"].process(prediction, truth)
    listed = lambda labels: [dict(id=k + 1, category_id=k, iscrowd=0, area=(labels == k).sum())
                             for k in range(3) if (labels == k).any()]
    all_metrics["panoptic"].process(prediction + 1, listed(prediction),
                                    np.where(truth == 255, 0, truth + 1), listed(truth))
    masks = lambda labels: [dict(category_id=k, segmentation=encode(labels == k), score=0.5,
                                 iscrowd=0, area=100) for k in range(3)]
    all_metrics["instances"].process(f"p{number}", masks(prediction), masks(truth))


def results(all_metrics):
    return {name: metric.evaluate() for name, metric in all_metrics.items()}


@pytest.fixture
def whole():
    found = make()
    for number in range(6):
        process(found, number)
    return found


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path, whole):
    first, second = make(), make()
    for number in range(4):
        process(first, number)
    (tmp_path / "state.npz").write_bytes(metrics.dump(first, [f"p{n}" for n in range(4)]))
    assert [f.name for f in tmp_path.iterdir()] == ["state.npz"]
    done = metrics.load([tmp_path / "state.npz"], second)
    assert done == ["p0", "p1", "p2", "p3"] and results(second) == results(first)
    for number in (4, 5):
        process(second, number)
    assert results(second) == results(whole)


def test_files_of_hosts_add_up_and_keep_their_ranges(tmp_path, whole):
    for host in range(2):
        part, numbers = make(), range(host * 3, host * 3 + 3)
        for number in numbers:
            process(part, number)
        (tmp_path / f"{host}.npz").write_bytes(metrics.dump(part, [f"p{n}" for n in numbers]))
    together = make()
    metrics.load([tmp_path / "0.npz", tmp_path / "1.npz"], together)
    assert results(together) == results(whole)
    for name in ("mask_accuracy", "mask_recall", "semantic", "boundary", "panoptic"):
        assert together[name].intervals(samples=20) == whole[name].intervals(samples=20)
    with pytest.raises(ValueError, match=r"holds the picture p0 \(3 in all\)"):
        metrics.load([tmp_path / "0.npz", tmp_path / "0.npz"], make())


@pytest.mark.parametrize("name, other", [
    ("semantic", SemanticSegmentation(4, 255)), ("mask_accuracy", MaskAccuracy(2)),
    ("boundary", BoundaryIoU(4, 255)), ("mask_recall", MaskRecall(4)),
    ("panoptic", PanopticQuality({0: True})),
    ("instances", InstanceSegmentation([0, 1]))])
def test_a_file_of_another_class_list_is_refused(tmp_path, whole, name, other):
    (tmp_path / "state.npz").write_bytes(metrics.dump({name: whole[name]}, []))
    with pytest.raises(ValueError, match="evaluate anew"):
        metrics.load([tmp_path / "state.npz"], {name: other})


def test_a_file_of_other_metrics_is_refused(tmp_path, whole):
    (tmp_path / "state.npz").write_bytes(metrics.dump(whole, []))
    with pytest.raises(ValueError, match="wanted semantic; evaluate anew"):
        metrics.load([tmp_path / "state.npz"], dict(semantic=make()["semantic"]))


def test_results_are_fit_for_json(whole):
    json.dumps(results(whole), allow_nan=False)


def test_ranges_hold_the_value_and_a_seed_repeats_them(whole):
    for name, keys in dict(mask_accuracy=["mMaskAcc", "micro", "seen"],
                           mask_recall=["AR", "AR50", "ARl", "unseen"], semantic=["mIoU", "pACC"],
                           boundary=["mBIoU"]).items():
        got, value = whole[name].intervals(samples=200), whole[name].evaluate()
        assert got == whole[name].intervals(samples=200)
        assert got != whole[name].intervals(samples=200, seed=1)
        for key in keys:
            low, high = got[key]
            assert low < value[key] < high
    got, value = whole["panoptic"].intervals(samples=200), whole["panoptic"].evaluate()
    assert got["PQ"][0] <= value["all"]["PQ"] <= got["PQ"][1]
    assert got["PQ_stuff"][0] <= value["stuff"]["PQ"] <= got["PQ_stuff"][1]


def test_the_spread_of_a_mean_is_its_standard_error(rng):
    """One class, values of single pictures: the bootstrap of a mean is known."""
    values = rng.normal(50, 10, 400)
    pictures = PerPicture(1, 2)
    for value in values:
        pictures.add(np.array([[value, 1]]))
    low, high = pictures.intervals(lambda sums: dict(mean=sums[0, 0] / sums[0, 1]))["mean"]
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error,
                                         values.mean() + 1.96 * error), abs=0.35 * error)


def test_numbers_that_are_never_defined_have_no_range():
    empty = MaskAccuracy(2)
    assert empty.intervals(samples=10) == {}
    empty.process([0], [0])
    got = empty.intervals(samples=10)
    assert got["seen"] is None and got["mMaskAcc"] == (100, 100)
