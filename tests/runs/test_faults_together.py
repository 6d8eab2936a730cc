"""Faults of runs of two processes: the other one ends and says so, and the same line goes on."""

import re
import resource
import shutil
import signal
import subprocess
import time

import pytest

from tests import whole_runs
from tests.runs.test_faults import has_logged, wait_until
from tests.whole_runs import metrics

pytestmark = pytest.mark.slow

SENTENCE = "error: another process of this run ended or cannot be reached"
STARTED = []
LONG = ["--config.log_every=1", "--config.checkpoint_every=4", "--config.train.steps=60",
        "--config.mesh.fsdp=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return whole_runs.make_place(tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def whole(place):
    """The record of an unbroken run of two processes."""
    finish(start(place, "whole"))
    return metrics(place, "whole")


@pytest.fixture(autouse=True)
def end_what_still_runs():
    yield
    nothing_runs()


def nothing_runs():
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def start(place, workdir, *flags):
    STARTED.extend(both := whole_runs.together(
        place, "train", f"--workdir={place}/{workdir}", *LONG, *flags, devices=1))
    return both


def finish(both):
    """What each process said until it ended well."""
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return said


def wait_for_words(process, words):
    """Reads what a process says until it says this."""
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, said
        said += line


def ends_with_the_sentence(process, sentence=SENTENCE):
    since = time.monotonic()
    said, _ = process.communicate(timeout=120)
    seconds = time.monotonic() - since
    print(f"ended after {seconds:.0f} s with exit code {process.returncode}")
    assert process.returncode == 1 and re.search(sentence, said), said
    assert seconds < 60


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def is_saving_again(place, workdir):
    """Whether a checkpoint is half written while another one is whole."""
    folder = place / workdir / "checkpoints"
    kinds = lambda: {p.name.isdigit() for p in folder.glob("*")}
    return lambda: kinds() == {True, False}


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", ["meeting", "compiling", "steps", "save"])
def test_if_one_process_is_killed_the_other_ends_and_the_same_line_goes_on(
        place, whole, victim, moment):
    workdir = f"killed {victim} {moment}"
    workers = ["--config.train.workers=2"] if moment == "steps" else []
    both = start(place, workdir, *workers)
    if moment == "meeting":
        time.sleep(1)
    elif moment == "compiling":  # after the parameters were shown, before the first step
        wait_until((place / workdir / "parameters.json").exists, both[0])
    elif moment == "steps":
        wait_until(has_logged(place, workdir, 9), both[0])
    else:
        wait_until(is_saving_again(place, workdir), both[0])
    of_data = [pid for process in both for pid in whole_runs.workers_of(process)]
    both[victim].kill()
    if moment == "meeting":  # where the other one waits minutes for a late start
        both[1 - victim].kill()
    else:
        ends_with_the_sentence(both[1 - victim])
    if workers:
        assert len(of_data) == 4
        wait_for(lambda: not any(map(whole_runs.is_running, of_data)))
    said = finish(start(place, workdir))
    assert ("resuming after step" in said[0]) == (moment in ("steps", "save"))
    assert metrics(place, workdir) == whole


@pytest.mark.parametrize("victim", [0, 1])
def test_if_one_process_hangs_the_other_ends_and_the_hung_one_does_no_harm(place, whole, victim):
    workdir = f"hung {victim}"
    both = start(place, workdir)
    wait_until(has_logged(place, workdir, 9), both[0])
    both[victim].send_signal(signal.SIGSTOP)
    ends_with_the_sentence(both[1 - victim])
    again = start(place, workdir)
    wait_until(has_logged(place, workdir, 13), again[0])
    both[victim].send_signal(signal.SIGCONT)
    said, _ = both[victim].communicate(timeout=120)
    assert both[victim].returncode == 1 and "error: " in said
    finish(again)
    assert metrics(place, workdir) == whole


def test_of_two_starts_in_one_folder_the_older_one_ends(place, whole):
    flags = ["--config.train.steps=100000"]
    older = start(place, "two starts", *flags)
    wait_until(has_logged(place, "two starts", 9), older[0])
    younger = start(place, "two starts", *flags)
    said, _ = older[0].communicate(timeout=200)
    assert older[0].returncode == 1
    assert "was taken over by a later start, so this one ends and writes nothing more" in said
    ends_with_the_sentence(older[1], "error: another process of this run|was taken over")
    written = metrics(place, "two starts")[-1]["step"]
    wait_until(has_logged(place, "two starts", written + 20), younger[0])
    for process in younger:
        process.send_signal(signal.SIGTERM)
    finish(younger)
    same = lambda row: {k: v for k, v in row.items() if not k.startswith("learning_rate")}
    steps = [row["step"] for row in metrics(place, "two starts")]
    assert steps == list(range(1, len(steps) + 1))
    assert same(metrics(place, "two starts")[0]) == same(whole[0])


def test_sigterm_to_one_process_saves_and_ends_both(place, whole):
    both = start(place, "term")
    wait_until(has_logged(place, "term", 5), both[0])
    both[1].send_signal(signal.SIGTERM)
    said = finish(both)
    step = int(re.search(r"asked to end \(SIGTERM\): saved after step (\d+) of 60", said[0])[1])
    assert f"resuming after step {step}" in finish(start(place, "term"))[0]
    assert metrics(place, "term") == whole


def test_sigterm_to_one_process_while_a_run_resumes(place, whole):
    shutil.copytree(place / "whole", place / "early")
    shutil.rmtree(place / "early/checkpoints/60")
    (place / "early/parameters.json").unlink()
    both = start(place, "early")
    wait_until((place / "early/parameters.json").exists, both[0])  # written before it restores
    both[0].send_signal(signal.SIGTERM)
    said = finish(both)
    assert "resuming after step 56" in said[0]
    step = int(re.search(r"asked to end \(SIGTERM\): saved after step (\d+) of 60", said[0])[1])
    assert step < 60
    finish(start(place, "early"))
    assert metrics(place, "early") == whole


@pytest.mark.parametrize("damage", ["part of 0", "part of 1", "a file", "metadata"])
def test_processes_fall_back_together(place, whole, damage):
    workdir = f"damaged {damage}"
    shutil.copytree(place / "whole", place / workdir)
    folder = place / workdir / "checkpoints/60"
    files = [p for p in folder.rglob("*") if p.is_file()]
    if damage.startswith("part"):  # of the parameters that only one of them reads
        of_one = [p for p in files if f"ocdbt.process_{damage[-1]}" in str(p)]
        largest = max(of_one, key=lambda p: p.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 16
        largest.write_bytes(content)
    elif damage == "a file":
        max(files, key=lambda p: p.stat().st_size).unlink()
    else:
        for file in files:
            if "metadata" in file.name.lower():
                file.unlink()
    said = finish(start(place, workdir))
    assert "the checkpoint of step 60 is damaged" in said[0]
    assert "resuming after step 56" in said[0]
    assert metrics(place, workdir) == whole


def test_a_full_disk_ends_both_and_spares_the_last_checkpoint(place, whole):
    disk = place / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", disk]).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        both = start(place, "disk/run")
        said = [process.communicate(timeout=90)[0] for process in both]
        assert [process.returncode for process in both] == [1, 1], said
        full = [text for text in said if "No space left" in text.splitlines()[-1]]
        assert full and all("the last whole checkpoint is of step" in text for text in full)
        assert any(p.name.isdigit() for p in (disk / "run/checkpoints").iterdir())
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert "resuming after step" in finish(start(place, "disk/run"))[0]
        assert metrics(place, "disk/run") == whole
    finally:
        nothing_runs()
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("victim", [0, 1])
def test_if_one_process_alone_cannot_save_both_end(place, whole, victim):
    workdir = f"cannot save {victim}"
    both = start(place, workdir)
    wait_until(has_logged(place, workdir, 9), both[0])
    # The record of the run is smaller, a part of a checkpoint is not.
    size = 2 * (place / workdir / "metrics.jsonl").stat().st_size if victim == 0 else 1000
    resource.prlimit(both[victim].pid, resource.RLIMIT_FSIZE, (size, size))
    since = time.monotonic()
    said = [process.communicate(timeout=120)[0] for process in both]
    print(f"ended after {time.monotonic() - since:.0f} s")
    assert time.monotonic() - since < 60
    assert [process.returncode for process in both] == [1, 1], said
    assert "File too large" in said[victim] and SENTENCE in said[1 - victim], said
    assert "resuming after step" in finish(start(place, workdir))[0]
    assert metrics(place, workdir) == whole


def test_a_run_goes_on_with_another_number_of_processes(place, whole):
    assert whole_runs.train(place, "alone", *LONG, devices=2).returncode == 0
    for run, source in (("as one", "whole"), ("as two", "alone")):
        shutil.copytree(place / source, place / run)
        shutil.rmtree(place / run / "checkpoints/60")
        if run == "as one":
            done = whole_runs.train(place, run, *LONG, devices=2)
            assert done.returncode == 0 and "resuming after step 56" in done.stderr
        else:
            assert "resuming after step 56" in finish(start(place, run))[0]
        for a, b in zip(metrics(place, run), whole, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-6)


def test_a_process_may_start_its_steps_much_later_than_another(place, whole):
    both = start(place, "late")
    wait_until((place / "late/owner.txt").exists, both[0])
    both[1].send_signal(signal.SIGSTOP)
    time.sleep(15)  # less than what makes it a lost one
    both[1].send_signal(signal.SIGCONT)
    finish(both)
    assert metrics(place, "late") == whole


def test_an_evaluation_that_loses_a_process_goes_on(place, whole):
    flags = [f"--checkpoint={place}/whole", "--samples=0"]
    done = whole_runs.together(place, "evaluate", f"--workdir={place}/whole results", *flags,
                               devices=1)
    finish(done)
    both = whole_runs.together(place, "evaluate", f"--workdir={place}/results", *flags, devices=1)
    wait_for_words(both[0], "evaluating")
    both[1].kill()
    ends_with_the_sentence(both[0])
    finish(whole_runs.together(place, "evaluate", f"--workdir={place}/results", *flags, devices=1))
    strip = lambda text: re.sub(r'"images_per_second": [\d.]+', "", text)
    assert strip((place / "results/results.json").read_text()) == strip(
        (place / "whole results/results.json").read_text())
