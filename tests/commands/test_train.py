"""Whole runs of a tiny model: learning, resuming, meshes, and what must stop a run."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

from maskclippp_jax.data import build, records
from maskclippp_jax.runs import ledger
from maskclippp_jax.vocabulary import Vocabulary
from tests import buckets, whole_runs
from tests.whole_runs import command, metrics, train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return whole_runs.make_place(tmp_path_factory.mktemp("a place"))


@pytest.fixture(scope="module")
def whole(place):
    """An unbroken run on one device."""
    done = train(place, "whole")
    assert done.returncode == 0, done.stderr
    return metrics(place, "whole")


def test_a_run_logs_every_step_and_keeps_whole_checkpoints(place, whole):
    assert [m["step"] for m in whole] == list(range(1, 13))
    assert whole[0]["learning_rate"] == pytest.approx(1e-3)
    assert {p.name for p in (place / "whole/checkpoints").iterdir()} == {"8", "12"}
    assert list((place / "whole/tensorboard").iterdir())
    assert (place / "whole/vocabulary.txt").read_text().startswith("# own names")
    table = json.loads((place / "whole/parameters.json").read_text())
    rows = {row["parameters"]: row for row in table}
    assert rows["image/blocks/*/attention/query/kernel"]["learning_rate"] == "0.0005"
    assert rows["image/blocks/*/attention/key/kernel"]["trainable"] == 0
    assert sum(row["of"] for row in table) > 10 * rows["similarity/corr_in/kernel"]["of"]
    assert len(list((place / "data/.text_embeddings").glob("*.npz"))) == 1


# The command line, which ends with the steps that were done when each program was compiled.
COUNTED = """
import json, sys
import jax
from maskclippp_jax import __main__
from maskclippp_jax.runs import run_log
done, compiled, add = 0, [], run_log.RunLog.add
def counted(self, step, metrics):
    global done
    done = step
    add(self, step, metrics)
run_log.RunLog.add = counted
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **more: compiled.append([done, str(more.get("fun_name"))])
    if event == "/jax/core/compile/backend_compile_duration" else None)
code = __main__.main()
print(json.dumps([done, compiled]))
sys.exit(code)
"""


def test_nothing_is_compiled_after_the_first_step_look_and_save(place):
    """Pictures of several sizes and numbers of masks, looks at two sizes, saves, the log."""
    line = [sys.executable, "-c", COUNTED, "train", f"--config={place}/tiny.py",
            f"--config.data_dir={place}/data", f"--workdir={place}/counted",
            "--config.eval_every=2", "--config.checkpoint_every=2", "--config.log_every=1",
            "--config.train.steps=6"]
    run = subprocess.run(line, env=whole_runs.environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    done, compiled = json.loads(run.stdout.splitlines()[-1])
    assert done == 6 and len(compiled) > 3
    assert [name for step, name in compiled if step > 2] == []


def test_a_killed_run_started_again_gives_the_same_numbers(place, whole):
    process = train(place, "killed", "--config.checkpoint_every=4", wait=False)
    folder = place / "killed/checkpoints"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder.exists() and any(folder.iterdir())):
        time.sleep(0.002)  # until the first save begins: killed in the middle of it, or soon after
    process.send_signal(signal.SIGKILL)
    process.wait()
    # As a later save that was cut off leaves it.
    (folder / "8.orbax-checkpoint-tmp").mkdir(parents=True, exist_ok=True)
    with (place / "killed/metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "loss"')
    done = train(place, "killed")
    assert done.returncode == 0, done.stderr
    assert metrics(place, "killed") == whole
    times = ledger.read(epath.Path(place / "killed/times.jsonl"))
    total = ledger.summary(times)
    assert sum(total.values()) == pytest.approx(times[-1]["until"] - times[0]["start"], abs=0.01)
    assert total["lost"] > 0 and total["starting"] > 0 and total["compiling"] > 0
    assert "in 2 starts: " in done.stderr


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_gives_the_numbers_of_a_folder_and_can_be_read(place, whole):
    with buckets.emulated(place / "home") as bucket:
        for file in (place / "data").rglob("*.*"):
            if file.is_file() and ".text_embeddings" not in file.parts:
                bucket.put_file(str(file), f"bucket/data/{file.relative_to(place / 'data')}")
        common = [f"--config={place}/tiny.py", "--config.data_dir=gs://bucket/data"]
        line = [*common, "--workdir=gs://bucket/run"]
        process = command(place, "train", *line, wait=False)
        deadline = time.monotonic() + 120
        while not bucket.exists("bucket/run/checkpoints/4"):  # the first save has begun
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        process.kill()
        said, _ = process.communicate()
        assert "copying gs://bucket/data/scenes_seen" in said
        done = command(place, "train", *line)
        assert done.returncode == 0, done.stderr
        assert "copying" not in done.stderr  # it was before
        logged = bucket.cat("bucket/run/metrics.jsonl").splitlines()
        assert [json.loads(row) for row in logged] == whole
        steps = {name.split("/")[3] for name in bucket.find("bucket/run/checkpoints")}
        assert steps == {"8", "12"} and bucket.find("bucket/run/tensorboard")
        done = command(place, "evaluate", *common, "--workdir=gs://bucket/results",
                       "--checkpoint=gs://bucket/run", f"--checkpoint={place}/whole")
        assert done.returncode == 0, done.stderr
        here, there = json.loads(bucket.cat("bucket/results/results.json"))["models"]
        assert here["mask_accuracy"] == there["mask_accuracy"]
        assert here["semantic"] == there["semantic"]
        assert not bucket.exists("bucket/results/progress")


@pytest.mark.slow
def test_a_run_goes_on_with_other_hardware_and_another_precision(place, whole):
    for run, flags, devices, exact in (
            ("moved", ["--config.mesh.fsdp=4", "--config.train.accumulate=2"], 4, 1e-4),
            ("coarser", ["--config.dtype=bfloat16", "--config.remat=full"], 1, 0.05)):
        shutil.copytree(place / "whole", place / run)
        shutil.rmtree(place / run / "checkpoints/12")
        done = train(place, run, *flags, devices=devices)
        assert done.returncode == 0, done.stderr
        assert "resuming after step 8" in done.stderr
        for flag in flags:
            key, value = flag.removeprefix("--config.").split("=")
            assert re.search(rf"{re.escape(key)} was \S+, is now '?{value}", done.stderr)
        assert metrics(place, run)[:8] == whole[:8]
        for a, b in zip(metrics(place, run)[8:], whole[8:], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=exact)
        assert metrics(place, run) != whole  # it did what was asked


@pytest.mark.slow
def test_the_checkpoints_of_the_best_looks_are_kept_and_can_be_named(place, whole):
    flags = ["--config.eval_every=2", "--config.keep=1", "--config.keep_best=2",
             "--config.eval_pictures=0", "--config.optimizer.learning_rate=0.1"]
    process = train(place, "best", *flags, "--config.log_every=1", wait=False)
    while not (place / "best/checkpoints/6").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = train(place, "best", *flags)
    assert done.returncode == 0, done.stderr
    looks = {m["step"]: m["eval/mask_accuracy"] for m in metrics(place, "best")
             if "eval/mask_accuracy" in m}
    assert list(looks) == [2, 4, 6, 8, 10, 12]
    best = sorted(looks, key=lambda step: (looks[step], step))
    there = {p.name for p in (place / "best/checkpoints").iterdir()}
    assert there == {str(step) for step in (*best[-2:], 12)}
    folder = f"{place}/best/checkpoints/{best[-1]}"
    assert (f"was after step {best[-1]} (mask accuracy {looks[best[-1]]:.1f} %): "
            f"--checkpoint={folder}") in done.stderr
    done = command(place, "evaluate", f"--checkpoint={folder}", f"--workdir={place}/of_best")
    assert done.returncode == 0, done.stderr
    model, = json.loads((place / "of_best/results.json").read_text())["models"]
    assert model["name"] == f"best step {best[-1]}"
    assert model["mask_accuracy"]["mMaskAcc"] == pytest.approx(looks[best[-1]], abs=1e-6)


def test_other_data_are_refused_unless_they_are_allowed(place, whole, tmp_path):
    """The class names of a data set change, two classes are swapped, its pictures change."""
    def tune(data, *flags):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(place / "whole", tmp_path / "run")
        return command(tmp_path, "train", f"--config={place}/tiny.py",
                       f"--config.data_dir={data}", f"--workdir={tmp_path}/run",
                       "--config.train.steps=12", *flags)

    shutil.copytree(place / "data", tmp_path / "same")
    assert tune(tmp_path / "same").returncode == 0  # it was only moved
    names, = (tmp_path / "same").rglob("names.txt")
    lines = names.read_text().splitlines(keepends=True)
    first, second = (line.split("\t")[0] for line in lines[1:3])
    other = {"renamed": [lines[0], lines[1].replace(first, "zebra"), *lines[2:]],
             "swapped": [lines[0], lines[1].replace(first, second),
                         lines[2].replace(second, first), *lines[3:]]}
    for name, changed in other.items():
        names.write_text("".join(changed))
        done = tune(tmp_path / "same")
        assert done.returncode == 2 and "was tuned on other data: the records of scenes_seen" in (
            done.stderr) and "class names (such as" in done.stderr, (name, done.stderr)
    vocabulary = Vocabulary.from_text("".join(lines), "own names")
    build.build(str(tmp_path / "other"), "scenes_seen", vocabulary, "semantic", build.Reading(
        {"train": list(range(100, 124))}, whole_runs.draw_seen), description="test",
        own_names=True)
    done = tune(tmp_path / "other")
    assert done.returncode == 2 and "--allow_other_data" in done.stderr
    assert json.loads((tmp_path / "run/data.json").read_text())["changes"] == []
    done = tune(tmp_path / "other", "--allow_other_data")
    assert done.returncode == 0 and "going on with other data" in done.stderr, done.stderr
    kept = json.loads((tmp_path / "run/data.json").read_text())
    assert kept["changes"] == ["the records of scenes_seen train"]
    done = command(place, "evaluate", f"--checkpoint={tmp_path}/run", f"--workdir={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    model, = json.loads((tmp_path / "out/results.json").read_text())["models"]
    assert "its data changed on the way" in model["checkpoint"]


@pytest.mark.slow
def test_one_and_eight_devices_give_the_same_numbers(place, whole):
    done = train(place, "mesh", "--config.mesh.fsdp=4", devices=8)
    assert done.returncode == 0, done.stderr
    for a, b in zip(metrics(place, "mesh"), whole):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_of_four_devices_give_the_numbers_of_one_device(place, whole):
    both = whole_runs.together(place, "train", f"--workdir={place}/two", "--config.mesh.fsdp=2")
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for a, b in zip(metrics(place, "two"), whole, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    # Only the first one speaks and writes; either can read what both saved.
    assert "step 12/12" in said[0] and "step" not in said[1].replace("steps", "")
    lines = (place / "two/speed.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    # 16 and 5 scenes of two sizes, in batches of 8: none is counted twice.
    read = f"--checkpoint={place}/two"
    both = whole_runs.together(place, "evaluate", f"--workdir={place}/by_two", read)
    done = command(place, "evaluate", f"--workdir={place}/by_one", read)
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] + [done.returncode] == [0, 0, 0], said
    found = [json.loads((place / run / "results.json").read_text())["models"][0]
             for run in ("by_one", "by_two")]
    for model in found:
        assert model.pop("images_per_second") > 0
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_numbers_of_the_whole(place, whole):
    done = train(place, "parts", "--config.train.accumulate=2", devices=4)
    assert done.returncode == 0, done.stderr
    for a, b in zip(metrics(place, "parts"), whole):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert (a["masks"], a["mask_accuracy"]) == pytest.approx((b["masks"], b["mask_accuracy"]))


@pytest.mark.slow
def test_a_moving_average_follows_the_run_and_is_what_others_read(place, whole):
    done = train(place, "average", "--config.ema_decay=0.5", "--config.eval_every=8", devices=2)
    assert done.returncode == 0, done.stderr
    logged = metrics(place, "average")
    assert [m["loss"] for m in logged] == pytest.approx([m["loss"] for m in whole], rel=1e-5)
    # On the way it was evaluated, and compared with where it began.
    looks = {m["step"]: m for m in logged if "eval/seen" in m}
    assert set(looks) == {8, 12}
    assert 0 <= looks[8]["eval/unseen"] <= 100 and 0 <= looks[8]["eval/mask_accuracy"] <= 100
    assert {p.name for p in (place / "average/pictures").iterdir()} == {"8.png", "12.png"}
    sheet = np.asarray(Image.open(place / "average/pictures/12.png"))
    assert sheet.shape[0] > 300 and sheet.std() > 20
    assert 0 < looks[8]["distance/image"] < looks[12]["distance/image"] < 0.1
    done = command(place, "evaluate", f"--checkpoint={place}/average",
                   f"--checkpoint={place}/whole", f"--workdir={place}/averaged")
    assert done.returncode == 0, done.stderr
    models = json.loads((place / "averaged/results.json").read_text())["models"]
    assert models[0]["checkpoint"].endswith("after step 12, moving average")
    for key, name in (("eval/mask_accuracy", "mMaskAcc"), ("eval/unseen", "unseen")):
        assert looks[12][key] == pytest.approx(models[0]["mask_accuracy"][name], abs=1e-6)


@pytest.mark.slow
def test_remat_and_a_tuned_text_tower_run(place):
    done = train(place, "text", "--config.remat=full", "--config.tune.text=attention",
                 "--config.train.steps=2", "--config.dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    assert "text/blocks/*/mlp" in done.stdout
    assert all(np.isfinite(m["loss"]) for m in metrics(place, "text"))


def test_a_dozen_images_are_learnt(place):
    done = train(place, "learn", "--config.train.steps=150", "--config.tune.image=all",
                 "--config.optimizer.learning_rate=0.01", "--config.train.short_sides=(32,)",
                 "--config.log_every=50", "--config.checkpoint_every=150")
    assert done.returncode == 0, done.stderr
    found = [m["loss"] for m in metrics(place, "learn")]
    assert np.mean(found[-10:]) < 0.7 * np.mean(found[:10])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(place):
    done = train(place, "nan", "--config.optimizer.learning_rate=1e30",
                 "--config.optimizer.end_learning_rate=1e30", "--config.tune.image=all",
                 "--config.optimizer.image_multiplier=1.0")
    assert done.returncode != 0
    assert "the loss of step" in done.stderr and "is nan" in done.stderr
    assert all(np.isfinite(m["loss"]) for m in metrics(place, "nan"))


def test_a_folder_of_another_run_is_refused(place, whole):
    before = sorted((place / "whole").rglob("*"))
    for flag, words in (("train.steps=8", "train.steps was 12, is now 8"),
                        ("seed=5", "seed was 0, is now 5")):
        done = train(place, "whole", f"--config.{flag}")
        assert done.returncode == 2
        assert words in done.stderr and "Traceback" not in done.stderr
        assert sorted((place / "whole").rglob("*")) == before


@pytest.mark.parametrize("flags, words", [
    (["--config.train.stpes=3"], 'has no key stpes; Did you mean "steps"'),
    (["--config.dtype=float8"], "dtype is 'float8'"), (["--config.keep=0"], "keep is 0"),
    (["--config.keep_best=1"], "keep_best is 1, but eval_every is 0"),
    (["--config.train.batch_size=0"], "train.batch_size is 0"),
    (["--config.train.size=30"], "wants a multiple of 8"),
    (["--config.tune.image=half"], "tune.image is 'half'"),
    (["--config.weights=/none.pt"], "no file /none.pt"),
    (["--config.train.dataset=coco"], "maskclippp prepare coco"),
    (["--wrokdir=x"], "wrokdir"), (["--workdir=s3://b/x"], "s3://b/x is an address"),
    (["--profile=5"], "--profile is '5'"), (["--distributed=here"], "--distributed is 'here'")])
def test_bad_input_ends_in_one_sentence_before_anything_is_written(place, flags, words):
    done = train(place, "bad", *flags)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not (place / "bad").exists()


def test_evaluate_compares_runs_and_writes_the_protocol(place, whole):
    names = place / "data/scenes_seen" / records.VERSION / records.NAMES_FILE
    done = command(place, "evaluate", f"--checkpoint={place}/whole", "--checkpoint=untuned",
                   "--checkpoint=untuned", f"--workdir={place}/results", "--pictures=2",
                   f"--config.eval.seen_vocabulary={names}")
    assert done.returncode == 0, done.stderr
    results = json.loads((place / "results/results.json").read_text())
    assert [m["name"] for m in results["models"]] == ["whole", "untuned", "untuned (3)"]
    columns = (place / "results/per_class.csv").read_text().splitlines()[0].split(",")
    assert len(columns) == len(set(columns)) and "untuned (3): IoU" in columns
    assert results["protocol"]["pictures"] == 21 and results["protocol"]["ensemble"] == "off"
    for model in results["models"]:
        assert model["mask_accuracy"]["masks"] > 24
        assert 0 <= model["semantic"]["mIoU_counting_absent_predicted"] <= model["semantic"]["mIoU"]
    assert (place / "results/comparison.png").stat().st_size > 1000
    done = command(place, "evaluate", "--checkpoint=untuned", f"--checkpoint={place}/nothing",
                   f"--workdir={place}/r2")
    assert done.returncode == 2 and "no file" in done.stderr and not (place / "r2").exists()


def test_weights_between_the_original_and_the_tuned_ones_are_evaluated(place, whole):
    done = command(place, "evaluate", f"--checkpoint={place}/whole", f"--workdir={place}/between",
                   "--interpolate=0,1", "--checkpoint=untuned")
    assert done.returncode == 0, done.stderr
    original, tuned, untuned = json.loads(
        (place / "between/results.json").read_text())["models"]
    assert [m["name"] for m in (original, tuned, untuned)] == ["whole x 0", "whole x 1", "untuned"]
    assert original["distance_from_original"] == tuned["distance_from_original"]
    assert 0 < tuned["distance_from_original"]["image"] < 0.1
    assert tuned["distance_from_original"]["text"] == 0
    assert "distance_from_original" not in untuned
    assert all("mask_accuracy" in m for m in (original, tuned, untuned))
    done = command(place, "evaluate", f"--checkpoint={place}/whole", f"--workdir={place}/r3",
                   "--interpolate=half")
    assert done.returncode == 2 and "--interpolate is 'half'" in done.stderr


@pytest.mark.slow
def test_a_sweep_makes_one_table_and_one_plot_and_goes_on(place):
    flags = [f"--config={place}/tiny.py", f"--workdir={place}/sweep", "--seeds=0,1",
             f"--override=data_dir={place}/data", "--override=train.steps=2"]
    done = command(place, "sweep", *flags)
    assert done.returncode == 0, done.stderr
    assert "untuned" in done.stdout and "as configured" in done.stdout and "±" in done.stdout
    before = {f: f.stat().st_mtime for f in (place / "sweep").rglob("results.json")}
    assert len(before) == 3
    done = command(place, "sweep", *flags, "--vary=tune.image=none", "--jobs=2")
    assert done.returncode == 0, done.stderr
    assert all(f.stat().st_mtime == before[f] for f in before)  # nothing was done twice
    rows = json.loads((place / "sweep/sweep.json").read_text())["rows"]
    assert [(r["name"], len(r["runs"])) for r in rows] == [
        ("untuned", 1), ("as configured", 2), ("tune.image=none", 2)]
    assert (place / "sweep/sweep.png").stat().st_size > 1000


def test_convert_writes_a_file_that_loads_again_to_the_same_model(place, whole):
    output = place / "tuned.safetensors"
    done = command(place, "convert", f"--source={place}/whole", f"--output={output}")
    assert done.returncode == 0, done.stderr
    done = command(place, "evaluate", f"--checkpoint={place}/whole", f"--checkpoint={output}",
                   f"--workdir={place}/again")
    assert done.returncode == 0, done.stderr
    first, second = json.loads((place / "again/results.json").read_text())["models"]
    assert first["mask_accuracy"] == second["mask_accuracy"]
    assert first["semantic"] == second["semantic"]
    done = command(place, "convert", f"--source={place}/whole", f"--output={output}")
    assert done.returncode == 2 and "--overwrite" in done.stderr
