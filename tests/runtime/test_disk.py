"""Files on a disk: whole or absent, whoever is killed while writing, and whoever else writes."""

import os
import pathlib
import subprocess

import numpy as np
import pytest

from maskclippp_jax import weights
from maskclippp_jax.runtime import storage


@pytest.fixture(autouse=True)
def forgetful():
    """Every test looks for what killed writers left."""
    storage._sweep.cache_clear()


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), storage.replacing(file) as temporary:
        temporary.write_text("half")
        assert file.read_text() == "old"
        raise KeyboardInterrupt
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    file = tmp_path / "x"
    with storage.replacing(file) as first:
        with storage.replacing(file) as second:
            first.write_text("first")
            second.write_text("second")
        assert file.read_text() == "second"
    assert file.read_text() == "first" and os.listdir(tmp_path) == ["x"]


def test_what_a_killed_writer_left_is_removed_and_what_another_one_writes_is_not(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = f".x.{storage._host()}-{os.getppid()}-0.tmp"  # a process that lives
    killed = f".x.{storage._host()}-{ended.pid}-0.tmp"
    far, long_ago = ".x.00000000-1-0.tmp", ".x.00000001-1-0.tmp"  # of another host
    own = ".hidden.tmp"  # of the user
    for name in (mine, killed, far, long_ago, own):
        (tmp_path / name).touch()
    os.utime(tmp_path / long_ago, (0, 0))
    storage.write(tmp_path / "y", "whole")
    assert sorted(os.listdir(tmp_path)) == sorted([mine, far, own, "y"])


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz"])
def test_weights_get_the_mode_that_the_umask_says(tmp_path, name):
    before = os.umask(0o027)
    try:
        weights.write(tmp_path / name, {"a": np.zeros(3, np.float32)})
    finally:
        os.umask(before)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == [name]


def test_a_folder_is_locked_also_if_it_is_removed_meanwhile(tmp_path):
    folder = tmp_path / "growing"
    with storage.locked(folder, "busy"):
        with pytest.raises(ValueError, match="busy"), storage.locked(folder, "busy"):
            pass
        (folder / ".lock").unlink()
        folder.rmdir()
        with storage.locked(folder, "busy"):
            assert pathlib.Path(folder / ".lock").exists()
