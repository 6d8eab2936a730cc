"""Faults that really happen to a run: it loses nothing but steps, and says what happened."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax.runs import checkpoint, saving
from tests import whole_runs, xla_flags
from tests.whole_runs import metrics, train

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return whole_runs.make_place(tmp_path_factory.mktemp("a place"))


@pytest.fixture(scope="module")
def whole(place):
    """An unbroken run."""
    done = train(place, "whole")
    assert done.returncode == 0, done.stderr
    return metrics(place, "whole")


def train_with(place, workdir, fault, *flags):
    """A run in whose process the lines `fault` were executed first."""
    program = (f"import sys\n{fault}\nfrom maskclippp_jax.commands import train\n"
               "from maskclippp_jax.runtime import cli\nsys.exit(cli.run(train, sys.argv[1:]))")
    line = [sys.executable, "-c", program, f"--config={place}/tiny.py",
            f"--config.data_dir={place}/data", f"--workdir={place}/{workdir}", *flags]
    return subprocess.run(line, env=dict(os.environ, JAX_PLATFORMS="cpu",
                                         XLA_FLAGS=xla_flags.devices(1),
                                         PYTHONPATH=str(whole_runs.ROOT)),
                          cwd=whole_runs.ROOT, capture_output=True, text=True, timeout=300)


def wait_until(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def has_logged(place, workdir, steps=1):
    file = place / workdir / "metrics.jsonl"
    return lambda: file.exists() and len(file.read_text().splitlines()) >= steps


def test_sigterm_saves_and_the_same_line_goes_on(place):
    flags = ["--config.train.steps=300", "--config.checkpoint_every=1000", "--config.log_every=1"]
    process = train(place, "term", *flags, wait=False)
    wait_until(has_logged(place, "term"), process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    step = int(re.search(r"asked to end \(SIGTERM\): saved after step (\d+) of 300", said)[1])
    assert {p.name for p in (place / "term/checkpoints").iterdir()} == {str(step)}
    done = train(place, "term", *flags)
    assert done.returncode == 0 and f"resuming after step {step}" in done.stderr
    assert [m["step"] for m in metrics(place, "term")] == list(range(1, 301))


def test_a_run_killed_between_its_first_files_starts_anew(place, whole):
    (place / "begun").mkdir()
    shutil.copy(place / "whole/vocabulary.txt", place / "begun")
    (place / "begun/.config.json.1234.tmp").write_text('{"batch')
    done = train(place, "begun")
    assert done.returncode == 0, done.stderr
    assert metrics(place, "begun") == whole


def test_a_folder_with_a_vocabulary_of_the_user_is_not_taken_for_a_run(place):
    (place / "names").mkdir()
    (place / "names/vocabulary.txt").write_text("mine")
    done = train(place, "names")
    assert done.returncode == 2 and "is not empty and holds no run" in done.stderr
    assert [p.name for p in (place / "names").iterdir()] == ["vocabulary.txt"]
    assert (place / "names/vocabulary.txt").read_text() == "mine"


def test_of_two_starts_in_one_folder_the_older_one_ends(place, whole):
    shutil.copytree(place / "whole", place / "twice")
    shutil.rmtree(place / "twice/checkpoints/12")  # the last one
    older = checkpoint.Owner(checkpoint.epath.Path(place / "twice"))
    older.check()
    assert train(place, "twice").returncode == 0
    with pytest.raises(OSError, match="taken over by a later start"):
        older.check()
    assert metrics(place, "twice") == whole


def test_what_an_older_start_is_saving_is_removed_while_it_saves(tmp_path):
    folder, ended = tmp_path / "checkpoints", threading.Event()

    def save():
        for number in itertools.count():
            if ended.is_set():
                return
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                state = folder / "8.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp"
                state.mkdir(parents=True, exist_ok=True)
                (state / str(number)).write_bytes(b"x")

    (folder / "4").mkdir(parents=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        older = pool.submit(save)
        try:
            for _ in range(200):
                checkpoint._remove_half_saved(checkpoint.epath.Path(folder))
        finally:
            ended.set()
        older.result()
    checkpoint._remove_half_saved(checkpoint.epath.Path(folder))
    assert [p.name for p in folder.iterdir()] == ["4"]


def test_what_an_older_start_saves_after_the_look_of_a_later_one_is_replaced(tmp_path):
    folder = checkpoint.epath.Path(tmp_path)
    states = {step: dict(step=jnp.int32(step), a=jnp.full(300, step)) for step in (4, 8, 12, 16)}
    older = {}
    for step in (4, 8, 12):
        older[step] = tmp_path / f"older{step}"
        with checkpoint.open_checkpoints(checkpoint.epath.Path(older[step])) as checkpoints:
            checkpoint.save(checkpoints, dict(states[step], a=jnp.zeros(300, jnp.int32)), step)
    with checkpoint.open_checkpoints(folder) as checkpoints:
        checkpoint.save(checkpoints, states[4], 4)
    assert int(checkpoint.restore(folder, states[4])["step"]) == 4
    late = lambda step: shutil.copytree(older[step] / f"checkpoints/{step}",
                                        tmp_path / f"checkpoints/{step}")
    late(8)
    with saving.open_saver(folder, checkpoint.Owner(folder), 3, saving.Best(folder, 0),
                           newest=4) as saver:
        assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"4"}
        saver.save(states[8], 8)
        late(12)
        saver.save(states[12], 12)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"4", "8", "12"}
    np.testing.assert_array_equal(checkpoint.restore(folder, states[4])["a"], np.full(300, 12))


POISON = """
import jax
import jax.numpy as jnp
call = jax.stages.Compiled.__call__
def poisoned(self, *arguments):  # the program of a step stays what it is
    state = arguments[0]
    with jax.transfer_guard("allow"):
        if isinstance(state, dict) and "trainable" in state and state["step"] == 5:
            query = state["trainable"]["image"]["blocks"][1]["attention"]["query"]
            kernel = query["kernel"]
            query["kernel"] = jax.device_put(kernel.at[0, 0].set(jnp.nan), kernel.sharding)
    return call(self, *arguments)
jax.stages.Compiled.__call__ = poisoned
"""


def test_a_nan_stops_the_run_and_names_step_and_array_and_spares_the_checkpoint(place, whole):
    done = train_with(place, "poisoned", POISON)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert ("the loss of step 6 is nan; the parameter image/blocks/1/attention/query/kernel is the "
            "first array that is not finite") in done.stderr
    assert [m["step"] for m in metrics(place, "poisoned")] == [1, 2, 3, 4, 5]
    assert {p.name for p in (place / "poisoned/checkpoints").iterdir()} == {"4"}
    done = train(place, "poisoned")
    assert done.returncode == 0 and metrics(place, "poisoned") == whole


def test_a_changed_byte_never_gives_wrong_numbers(tmp_path, rng):
    def state_of(step):
        return dict(step=jnp.int32(step), trainable=dict(
            a=jnp.asarray(rng.normal(size=(40, 30)), jnp.float32),
            b=jnp.asarray(rng.normal(size=7), jnp.bfloat16)))

    def as_numpy(state):
        return {k: np.asarray(v) for k, v in checkpoint.parameters.flatten(state).items()}

    states = {step: state_of(step) for step in (1, 2)}
    whole = tmp_path / "whole"
    with checkpoint.open_checkpoints(checkpoint.epath.Path(whole)) as checkpoints:
        for step, state in states.items():
            checkpoint.save(checkpoints, state, step)
    files = [p.relative_to(whole) for p in (whole / "checkpoints/2").rglob("*") if p.is_file()]
    fell_back = 0
    for number, file in enumerate(files):
        run = tmp_path / f"run{number}"
        shutil.copytree(whole, run)
        content = bytearray((run / file).read_bytes())
        for place in rng.integers(len(content), size=min(3, len(content))):
            content[place] ^= 1 << rng.integers(8)
        (run / file).write_bytes(content)
        found = as_numpy(checkpoint.restore(checkpoint.epath.Path(run), states[1]))
        fell_back += int(found["step"]) == 1
        assert (run / "damaged/2").exists() == (int(found["step"]) == 1)
        wanted = as_numpy(states[int(found["step"])])
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
    assert fell_back >= 2


def test_a_broken_file_of_a_checkpoint_ends_in_a_sentence_where_a_model_is_loaded(tmp_path, rng):
    tuned, frozen = (jnp.asarray(rng.normal(size=(40, 30)), jnp.float32) for _ in range(2))
    whole = tmp_path / "whole"
    with checkpoint.open_checkpoints(checkpoint.epath.Path(whole)) as checkpoints:
        checkpoint.save(checkpoints, dict(step=jnp.int32(7), trainable=dict(a=tuned),
                                          frozen=dict(b=frozen)), 7)
    shapes, refused = jax.eval_shape(lambda: dict(a=tuned, b=frozen)), 0
    files = [p.relative_to(whole) for p in (whole / "checkpoints/7").rglob("*") if p.is_file()]
    for number, (file, is_there) in enumerate(itertools.product(files, (True, False))):
        run = tmp_path / f"run{number}"
        shutil.copytree(whole, run)
        (run / file).write_bytes(b"{") if is_there else (run / file).unlink()
        try:
            found, _ = checkpoint.load_run(checkpoint.epath.Path(run), shapes)
        except ValueError as error:
            assert str(error).startswith(f"{run}/checkpoints/7 is damaged: ")
            refused += 1
        else:
            np.testing.assert_array_equal(found["a"], tuned)
            np.testing.assert_array_equal(found["b"], frozen)
    assert refused >= 6


def test_a_run_without_any_sound_checkpoint_is_not_started_anew(tmp_path):
    state = dict(a=jnp.arange(3.0))
    with checkpoint.open_checkpoints(checkpoint.epath.Path(tmp_path)) as checkpoints:
        checkpoint.save(checkpoints, state, 7)
    for file in (tmp_path / "checkpoints/7").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* can be read .step 7"):
        checkpoint.restore(checkpoint.epath.Path(tmp_path), state)
    assert (tmp_path / "checkpoints/7").exists()


@pytest.mark.parametrize("change", [0, 1, 31])
def test_checksums_see_every_bit_and_every_place(rng, change):
    x = rng.normal(size=(5, 6)).astype(np.float32)
    y = x.copy()
    y.view(np.uint32)[3, 2] ^= np.uint32(1 << change)
    z = x.copy()
    z[[0, 1]] = x[[1, 0]]
    for sum_of in (checkpoint._checksum, checkpoint._checksum_here):
        assert len({int(sum_of(a)) for a in (x, y, z)}) == 3
    assert checkpoint._checksums(dict(a=x)) == {"a": int(checkpoint._checksum(x))}


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5, 2), (70_001,), (300, 700)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_checksums_here_are_those_of_a_device_and_of_any_mesh(rng, monkeypatch, shape, dtype):
    x = np.asarray(jnp.asarray(1000 * rng.normal(size=shape)).astype(dtype))
    here = checkpoint._checksum_here(x)
    assert here == int(checkpoint._checksum(x))
    monkeypatch.setattr(checkpoint, "_PART", 7)
    assert checkpoint._checksum_here(x) == here
    monkeypatch.undo()
    if len(shape) == 2:
        spread = jax.device_put(x, jax.NamedSharding(
            jax.make_mesh((2, 4), ("a", "b")), jax.P("a", "b")))
        assert checkpoint._checksums(dict(a=spread)) == {"a": here}
        assert int(checkpoint._checksum(spread)) == here


def test_the_best_looks_of_earlier_starts_count_and_the_newer_of_equal_ones(tmp_path):
    folder = checkpoint.epath.Path(tmp_path)
    rows = [dict(step=step, **{"eval/mask_accuracy": value} if value else {})
            for step, value in ((1, 30.0), (2, None), (3, 50.0), (4, 20.0))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 5, "ev')
    best = saving.Best(folder, 2)
    assert not best.add(5, dict(loss=1.0)) and best.add(6, {"eval/mask_accuracy": 30.0})
    there = [types.SimpleNamespace(step=step) for step in (1, 2, 3, 4, 6)]
    assert best.should_preserve(there, context=None) == [False, False, True, False, True]
    assert best.sentence(folder) == ""
    (tmp_path / "checkpoints/6").mkdir(parents=True)
    assert best.sentence(folder).endswith(f"6 (mask accuracy 30.0 %): --checkpoint={folder}/"
                                          "checkpoints/6")
    assert not saving.Best(folder, 0).add(6, {"eval/mask_accuracy": 30.0})


def test_a_run_may_have_the_name_of_a_checkpoint(tmp_path):
    run = checkpoint.epath.Path(tmp_path) / "checkpoints/7"
    assert checkpoint.place_of(run) == (tmp_path, 7)
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert checkpoint.place_of(run) == (run, None)
    assert checkpoint.place_of(run / "checkpoints/400") == (run, 400)


@slow
def test_a_run_with_a_changed_byte_falls_back_says_so_and_gives_the_same_numbers(place, whole):
    shutil.copytree(place / "whole", place / "flipped")
    file = max((place / "flipped/checkpoints/12").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    done = whole_runs.command(place, "evaluate", f"--checkpoint={place}/flipped",
                        f"--workdir={place}/of_flipped")
    assert done.returncode == 2 and "is damaged" in done.stderr
    done = train(place, "flipped")
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 12 is damaged" in done.stderr
    assert "resuming after step 8" in done.stderr
    assert metrics(place, "flipped") == whole


@slow
@pytest.mark.parametrize("victim", [1, 0])
def test_if_one_process_dies_the_other_ends_within_a_minute_and_says_so(place, victim):
    flags = [f"--workdir={place}/lost{victim}", "--config.train.steps=100000",
             "--config.log_every=1", "--config.checkpoint_every=20"]
    both = whole_runs.together(place, "train", *flags, devices=1)
    wait_until(has_logged(place, f"lost{victim}", 50), both[1 - victim])
    both[victim].kill()
    said, _ = both[1 - victim].communicate(timeout=60)
    assert both[1 - victim].returncode == 1
    assert "error: another process of this run ended or cannot be reached" in said
    both = whole_runs.together(place, "train", *flags, devices=1)
    wait_until(has_logged(place, f"lost{victim}", 80), both[0])
    for process in both:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "resuming after step" in said[0] and "asked to end" in said[0]


@slow
def test_a_data_worker_that_dies_ends_the_run_with_a_sentence(place):
    process = train(place, "worker", "--config.train.steps=100000", "--config.log_every=1",
                    "--config.train.workers=2", wait=False)
    wait_until(has_logged(place, "worker", 5), process)
    children = whole_runs.workers_of(process)
    assert len(children) >= 2
    os.kill(children[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: a process that reads data ended" in said


@slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_spares_the_last_checkpoint(place, whole):
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        done = train(place, "disk/run")
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        assert "No space left" in last and "the last whole checkpoint is of step 4" in last
        assert {p.name for p in (disk / "run/checkpoints").iterdir() if p.name.isdigit()} == {"4"}
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        done = train(place, "disk/run")
        assert done.returncode == 0, done.stderr
        assert metrics(place, "disk/run") == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@slow
def test_a_clock_that_jumps_changes_nothing(place, whole):
    jumping = """
import time
from maskclippp_jax import vocabulary
real, draw, calls = time.time, vocabulary.draw_synonyms, []
time.time = lambda: real() + 86400 * (0, 1, -1)[len(calls) // 4 % 3]  # a day on, two days back
def draw_synonyms(*arguments):
    calls.append(1)
    return draw(*arguments)
vocabulary.draw_synonyms = draw_synonyms
"""
    done = train_with(place, "clock", jumping)
    assert done.returncode == 0, done.stderr
    assert metrics(place, "clock") == whole
