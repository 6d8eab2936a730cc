"""Variants of an experiment: what is run, and how results become a table and a plot."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from maskclippp_jax.configs import quickstart_ablation
from maskclippp_jax.drawing import visualize
from maskclippp_jax.training import sweeps


def test_variants_change_one_thing_each():
    variants = sweeps.list_variants("c.py:x=1", ["train.masks=degraded", ":head=linear|mean"])
    assert variants == [
        ("as configured", "c.py:x=1", ()),
        ("train.masks=degraded", "c.py:x=1", ("train.masks=degraded",)),
        ("head=linear", "c.py:x=1,head=linear", ()), ("head=mean", "c.py:x=1,head=mean", ())]
    assert sweeps.list_variants("c.py", [":a=b"])[1].config == "c.py:a=b"
    assert len({v.folder for v in variants}) == 4 and " " not in variants[0].folder


@pytest.mark.parametrize("vary, words", [
    (["train.steps"], "wanted key=value"), ([":=3"], "wanted key=value"), (["a=1||2"], "wanted"),
    (["a=1|2", "a=2"], "a=2 more than once")])
def test_what_cannot_be_varied_is_said(vary, words):
    with pytest.raises(ValueError, match=words):
        sweeps.list_variants("c.py", vary)


@pytest.mark.parametrize("vary, words", [
    ("optimizer.nope=0.1", "no key nope"), ("optimizer.learning_rate=0.1|x", "could not convert"),
    ("optimizer.learning_rate=0.1|-1", "learning_rate is -1.0; it can be 0 ...")])
def test_every_variant_is_looked_at_before_the_first_one_runs(tmp_path, monkeypatch, vary, words):
    monkeypatch.setattr(sweeps, "measure", None)
    with pytest.raises(ValueError, match=words):
        sweeps.run("quickstart", tmp_path, vary=[vary], overrides=["data_dir=x"], seeds=["0"],
                   jobs=1)


def test_a_sweep_that_cannot_run_ends_in_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "maskclippp_jax", "sweep", "--config=configs/none.py", "--seeds=0",
         f"--workdir={tmp_path}/sweep"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no configuration configs/none.py" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_mean_and_deviation_are_over_seeds():
    runs = [{"seen": 50.0, "unseen": None}, {"seen": 54.0, "unseen": 3.0}]
    assert sweeps.summary(runs, "seen") == (52.0, pytest.approx(8**0.5))
    assert sweeps.summary(runs, "unseen") is None
    assert sweeps.summary(runs[:1], "seen") == (50.0, 0.0)


def test_a_run_that_has_ended_is_not_repeated_and_no_other_taken_for_it(tmp_path, monkeypatch):
    calls = []

    def call(command, *arguments):
        calls.append((command, arguments))
        if command == "evaluate":
            folder = pathlib.Path(next(a for a in arguments if a.startswith("--workdir="))[10:])
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(dict(models=[dict(
                mask_accuracy=dict(mMaskAcc=1.0, seen=2.0, unseen=3.0),
                semantic=dict(mIoU=4.0))])))
        return 1.5

    config = tmp_path / "c.py"
    config.write_text("import ml_collections\n\n\ndef get_config():\n"
                      "    return ml_collections.ConfigDict(dict(a=0, size=(1, 2)))\n")
    monkeypatch.setattr(sweeps, "_call", call)
    common = ["train.steps=3"]
    variant = sweeps.Variant("a=1", str(config), ("a=1",))
    for _ in range(2):
        assert sweeps.measure(tmp_path / "x", variant, "7", common) == {
            "mask accuracy": 1.0, "seen": 2.0, "unseen": 3.0, "mIoU": 4.0}
    assert [c for c, _ in calls] == ["train", "evaluate"]
    shared = (f"--config={config}", "--config.train.steps=3", "--config.a=1", "--config.seed=7")
    assert all(a[:4] == shared for _, a in calls)
    assert f"--checkpoint={tmp_path}/x/run" in calls[1][1]
    sweeps.measure(tmp_path / "y", variant, None, common)
    assert [c for c, _ in calls] == ["train", "evaluate", "evaluate"]
    assert "--checkpoint=untuned" in calls[2][1]

    with pytest.raises(ValueError, match="x was made with other settings"):
        sweeps.measure(tmp_path / "x", variant._replace(overrides=("a=2",)), "7", common)
    config.write_text("import ml_collections\n\n\ndef get_config():\n"
                      "    return ml_collections.ConfigDict(dict(a=0, size=(1, 3)))\n")
    with pytest.raises(ValueError, match="x was made with .* another configuration"):
        sweeps.measure(tmp_path / "x", variant, "7", common)
    with pytest.raises(FileNotFoundError, match="no configuration nothing.py"):
        sweeps.read_config("nothing.py:x=1")


def test_encoders_are_compared_before_tuning(tmp_path, monkeypatch, capsys):
    """Each by its own configuration, without training; a second time nothing is run."""
    calls = []

    def call(command, *arguments):
        calls.append((command, arguments))
        folder = pathlib.Path(next(a for a in arguments if a.startswith("--workdir="))[10:])
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(dict(models=[dict(
            mask_accuracy=dict(mMaskAcc=len(calls), seen=2.0, unseen=None),
            semantic=dict(mIoU=4.0), images_per_second=7.0)])))
        return 1.5

    monkeypatch.setattr(sweeps, "_call", call)
    encoders = ["quickstart", "published_clip:name=PE-Core-T-16-384"]
    for _ in range(2):
        rows = sweeps.compare_encoders(encoders, tmp_path, ["data_dir=d"])
    assert [(c, a[0], a[-1]) for c, a in calls] == [
        ("evaluate", f"--config={encoder}", "--checkpoint=untuned") for encoder in encoders]
    assert [row["mask accuracy"] for row in rows] == [1, 2] and rows[1]["memory_gib"] == 1.5
    assert rows[1]["millions"] == pytest.approx(6.14 + 63.41, abs=0.01)
    assert json.loads((tmp_path / "encoders.json").read_text())["rows"] == rows
    assert "published_clip:name" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--encoders names quickstart more than once"):
        sweeps.compare_encoders(["quickstart"] * 2, tmp_path, [])


def test_the_memory_of_a_command_is_that_of_its_process():
    assert 0.01 < sweeps._call("names", "scenes") < 4
    with pytest.raises(ValueError, match="evaluate ended with code 2: error: "):
        sweeps._call("evaluate")


def test_dots_lie_where_their_values_are():
    drawing = np.asarray(visualize.draw_dots(["a", "b"], {"x": [[0.0], [10.0]]}, "t")).astype(int)
    color = np.array(visualize.class_color(0))
    rows, columns = np.nonzero((np.abs(drawing - color).sum(-1) == 0)[60:])
    first, second = columns[rows < 30], columns[rows >= 30]
    assert first.size and second.size and first.max() < second.min()
    assert visualize.draw_dots(["none"], {"x": [[]]}, "t").size[0] > 100


def test_arguments_of_the_ablation_change_the_model():
    config = quickstart_ablation.get_config("head=linear_from_mean,templates=3,mask_layers=2")
    assert config.model.similarity.start == "mean" and config.model.similarity.num_templates == 3
    assert len(config.templates) == 3 and config.model.image.mask_layers == 2
    assert quickstart_ablation.get_config("head=mean").model.similarity is None
    with pytest.raises(ValueError, match="head is 'linaer'"):
        quickstart_ablation.get_config("head=linaer")
