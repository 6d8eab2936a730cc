"""The files of a run, and what else it tells."""

import json
import sys
import types

import numpy as np
import pytest
from etils import epath

from maskclippp_jax.drawing.visualize import View
from maskclippp_jax.runs import run_log
from maskclippp_jax.runtime import devices

NAMES = ["the parameter a", "the gradient of a"]


def row(loss=1.0, not_finite=-1):
    return dict(loss=loss, mask_accuracy=0.5, not_finite=not_finite)


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def open_log(folder, first_step=0, **kw):
    return run_log.RunLog(epath.Path(folder), first_step, 10, 4, array_names=NAMES, **kw)


def test_what_is_learnt_and_how_fast_go_to_files_of_their_own(tmp_path):
    log = open_log(tmp_path)
    for step in (1, 2, 3):
        with log.waiting():
            log.add(step, row(loss=step))
        if step > 1:
            log.flush()
    log.close()
    assert read(tmp_path, "metrics.jsonl") == [
        dict(step=s, loss=s, mask_accuracy=0.5) for s in (1, 2, 3)]
    speeds = read(tmp_path, "speed.jsonl")
    assert [s["step"] for s in speeds] == [2, 3]
    assert all(s["images_per_second"] > 0 and 0 <= s["input_wait_share"] <= 1 for s in speeds)
    for name in ("metrics.jsonl", "speed.jsonl", "times.jsonl"):
        with (tmp_path / name).open("ab") as file:  # as a machine without power may leave it
            file.write(b"\0\0\xff\xfe")
    log = open_log(tmp_path, first_step=2)  # resumed after a kill: step 3 was not saved
    log.close()
    assert [m["step"] for m in read(tmp_path, "metrics.jsonl")] == [1, 2]
    assert [m["step"] for m in read(tmp_path, "speed.jsonl")] == [2]


@pytest.mark.parametrize("bad, words", [
    (row(loss=float("nan")), "the loss of step 2 is nan. The last"),
    (row(not_finite=1), "the loss of step 2 is 1.0; the gradient of a is the first array")])
def test_the_first_step_that_is_not_finite_stops_the_run(tmp_path, bad, words):
    log = open_log(tmp_path)
    for step, metrics in enumerate([row(), bad, row(loss=float("inf"), not_finite=0)], start=1):
        log.add(step, metrics)
    with pytest.raises(FloatingPointError, match=words):
        log.flush()
    assert [m["step"] for m in read(tmp_path, "metrics.jsonl")] == [1]


def test_mfu_is_the_share_of_the_peak_of_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "describe", lambda device: devices.KINDS["TPU v5 lite"])
    log = open_log(tmp_path)
    log.flops = 1e9
    log.add(1, row())
    log.close()
    [speed] = read(tmp_path, "speed.jsonl")
    assert speed["mfu"] == pytest.approx(1e9 * speed["images_per_second"] / 4 / 197e12)


def test_the_kinds_of_devices_are_known_by_their_names():
    device = lambda platform, kind: types.SimpleNamespace(platform=platform, device_kind=kind)
    assert devices.describe(device("tpu", "TPU v6 lite")).flops == 918e12
    assert devices.describe(device("gpu", "NVIDIA H100 80GB HBM3")).flops == 989e12
    assert devices.describe(device("gpu", "NVIDIA GeForce")) is None
    assert devices.describe(device("cpu", "cpu")) is None


def test_weights_and_biases_gets_the_same_numbers_and_the_same_run(tmp_path, monkeypatch):
    logged, opened = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)),
                                finish=lambda: logged.append("finished"))
    fake = types.SimpleNamespace(init=lambda **how: opened.append(how) or run,
                                 Image=lambda drawing: drawing.size)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        wandb = run_log.open_wandb(run_log.import_wandb("project"), "project",
                                   epath.Path(tmp_path), {"seed": 0})
    assert opened[0] == opened[1] and opened[0]["resume"] == "allow"
    log = open_log(tmp_path, wandb=wandb)
    log.add(1, row())
    log.close()
    log = open_log(tmp_path / "pictures", wandb=wandb)
    log.add(2, row())
    log.add_pictures(2, [View(np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), int),
                              [("dog", "cat")])])
    log.add(3, row())
    log.close()
    width, height = logged[3][1]["eval/pictures"]
    assert width > height > 100 and "eval/pictures" not in logged[4][1]
    assert {p.name for p in (tmp_path / "pictures/pictures").iterdir()} == {"2.png"}
    assert logged[0] == (1, dict(loss=1.0, mask_accuracy=0.5)) and logged[2] == "finished"
    assert "images_per_second" in logged[1][1]
    assert run_log.import_wandb("") is None
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        run_log.import_wandb("project")


@pytest.mark.parametrize("steps", ["5", "a-b", "3-2", "0-1", "-"])
def test_steps_to_profile_are_two_numbers(steps):
    with pytest.raises(ValueError, match="--profile is"):
        run_log.Profile(steps)
