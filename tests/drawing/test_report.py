"""Tables and JSON of results."""

import json

import numpy as np
import pytest

from maskclippp_jax.drawing import report
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy
from maskclippp_jax.metrics.semantic import SemanticSegmentation


@pytest.fixture
def printed(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    return lambda: capsys.readouterr().out


def results(name):
    accuracy, semantic = MaskAccuracy(4), SemanticSegmentation(4, 255)
    accuracy.process([0, 1, 1], [0, 1, 0])
    semantic.process(np.array([[0, 0, 1, 3]]), np.array([[0, 0, 1, 1]]))
    return dict(name=name, mask_accuracy=accuracy.evaluate(), semantic=semantic.evaluate())


def test_both_miou_are_printed_with_their_numbers_of_classes(printed):
    report.print_results([results("tuned")], dict(dtype="float32", dataset="scenes"))
    said = printed()
    cells = [[c.strip() for c in line.split("│")[1:3]] for line in said.splitlines()
             if line.startswith("│")]
    start = cells.index(["mIoU, classes in the ground truth", "75.0"])
    assert cells[start + 1:start + 4] == [
        ["number of these classes", "2"], ["mIoU, absent but predicted as 0", "50.0"],
        ["number of these classes", "3"]]
    assert ["number of masks", "3"] in cells and ["share of all masks (micro)", "66.7"] in cells
    assert ["unseen classes", "–"] in cells
    assert "dtype: float32" in said


def test_a_model_without_a_metric_gets_dashes(printed):
    report.print_results([results("[a]"), dict(name="b", mask_accuracy=None)], {})
    said = printed()
    assert "[a]" in said and "–" in said


def test_per_class_shows_the_worst_and_the_best(printed):
    report.print_per_class([50.0, None, 10.0, 90.0], ["a", "b", "c", "d"], "accuracy", count=2)
    rows = [line.replace("│", " ").split() for line in printed().splitlines()
            if line.startswith("│")]
    assert rows == [["c", "10.0", "d", "90.0"], ["a", "50.0", "a", "50.0"]]
    with pytest.raises(ValueError, match="2 values for 1 classes"):
        report.print_per_class([1.0, 2.0], ["a"], "accuracy")


def test_json_holds_plain_numbers(tmp_path):
    report.write_json(tmp_path / "a.json", dict(
        a=np.float32(0.5), b=np.arange(3), c=(np.bool_(True), None), d={1: np.int64(7)}))
    assert json.loads((tmp_path / "a.json").read_text()) == dict(
        a=0.5, b=[0, 1, 2], c=[True, None], d={"1": 7})


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), np.array([1.0, np.nan])])
def test_numbers_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path, bad):
    report.write_json(tmp_path / "a.json", dict(a=1))
    with pytest.raises(ValueError, match="models/0/x.* wanted a finite number or None"):
        report.write_json(tmp_path / "a.json", dict(models=[dict(x=bad)]))
    assert json.loads((tmp_path / "a.json").read_text()) == dict(a=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
