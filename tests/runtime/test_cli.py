"""What all commands share."""

import os
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from maskclippp_jax import configs
from maskclippp_jax.runtime import cache, cli, storage
from tests import whole_runs


def test_ctrl_c_ends_with_one_line_and_130(capsys):
    def main(arguments):
        raise KeyboardInterrupt

    assert cli.complain(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"
    command = types.SimpleNamespace(__name__="x", POSITIONAL="", BUCKETS=(), main=main)
    assert run(command) == 130


def test_python_looks_for_cycles_but_not_through_what_was_imported():
    program = """
import gc, sys
from maskclippp_jax import __main__
from maskclippp_jax.commands import names
names.main = lambda arguments: print(gc.isenabled(), gc.get_freeze_count())
sys.argv[1:] = ["names"]
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    enabled, frozen = done.stdout.split()
    assert enabled == "True" and int(frozen) > 10_000, done.stderr


def test_who_reads_what_is_printed_may_stop():
    for words in ("--help", "ade20k_847"):
        # Its end of the pipe is closed before anything is written.
        with subprocess.Popen([sys.executable, "-m", "maskclippp_jax", "names", words],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.close()
            assert process.stderr.read() == "" and process.wait() == 1


@pytest.mark.parametrize("output, says", [
    ("", "--output is empty; name a place"), ("file", "file is a file, wanted a folder")])
def test_a_folder_for_results_is_looked_at_before_the_work(tmp_path, output, says):
    (tmp_path / "file").touch()
    done = subprocess.run([sys.executable, "-m", "maskclippp_jax", "predict", f"--output={output}"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr


def test_letters_that_the_terminal_lacks_are_written_otherwise(tmp_path):
    (tmp_path / "names.txt").write_text("Caf\N{LATIN SMALL LETTER E WITH ACUTE}\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "maskclippp_jax", "names", f"--check={tmp_path}/names.txt"],
        env=os.environ | dict(PYTHONIOENCODING="ascii"), capture_output=True, text=True)
    assert done.returncode == 0 and r"Caf\xe9" in done.stdout, done.stderr


@pytest.mark.parametrize("given, words", [
    ("--config.model.image.width=64", "config.model is a MaskCLIPppConfig, whose parts are no"),
    ("--config.model=1", "config.model is a MaskCLIPppConfig"),
    ("--config.train=1", "is a group of keys; give one of them: --config.train.accumulate,")])
def test_what_is_no_key_of_a_configuration_is_said(given, words):
    with pytest.raises(ValueError, match=words):
        cli._config_first(["--config=quickstart", given])
    assert cli._config_first(["--config.train.steps=3", "--config=quickstart"])[1:] == [
        "--config.train.steps=3"]


def test_outputs_that_cannot_be_written_are_found_out_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file, wanted a folder"):
        storage.check_writable(tmp_path / "file/below/x.npz")
    with pytest.raises(ValueError, match="http://x/y is an address"):
        storage.check_writable("http://x/y")
    storage.check_writable(tmp_path / "new/folder/x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(storage.os, "access", lambda *args: False)  # root may write everywhere
    with pytest.raises(ValueError, match="may not be written"):
        storage.check_writable(tmp_path / "x")


def test_without_a_home_the_cache_is_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    folder = cache.folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)  # of somebody who waits for it
    assert cache.folder().name != folder.name

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.pathlib.Path, "home", unknown)
    assert cache.folder().parent == tmp_path
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache/maskclippp_jax"


def test_where_nothing_can_be_written_the_cache_has_a_place_that_nobody_makes(monkeypatch):
    def gettempdir():
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(cache.tempfile, "gettempdir", gettempdir)
    monkeypatch.setenv("HOME", "/dev/null")
    with pytest.raises(OSError):
        (cache.folder() / "x").mkdir(parents=True)


def run(command) -> int:
    """The exit code of a command that has no flags of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.faulthandler, "enable", lambda: None)  # wants a real stderr
        patch.setattr(cli, "_parse", lambda name, arguments: [])
        patch.setattr(cli.flags, "DEFINE_bool", lambda *args, **kw: None)
        return cli.run(command, [])


OUT_OF_MEMORY = """
import sys
from unittest import mock
import jax
from maskclippp_jax import api
from maskclippp_jax.commands import predict
from maskclippp_jax.runtime import cli
error = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\\nBuffers")
with mock.patch.object(api, "load", side_effect=error):
    sys.exit(cli.run(predict, sys.argv[1:]))
"""


def test_a_full_memory_of_a_device_ends_in_a_sentence_with_the_flags_that_take_less(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, f"{tmp_path}/a.png", "--classes=red",
         "--checkpoint=untuned", "--regions=grid", f"--output={tmp_path}/out"],
        capture_output=True, text=True, env=whole_runs.environment())
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr.splitlines()[-1] == (
        "error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.); "
        "--batch_size=1 takes less, and --tiles=1024 for large pictures")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [
    MemoryError(), MemoryError("std::bad_alloc"), np._core._exceptions._ArrayMemoryError(
        (2**40,), np.dtype(np.int8)),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.")])
def test_a_full_memory_is_told_from_other_errors_also_as_the_cause_of_one(capsys, error):
    for raised in (error, RuntimeError("in a thread")):
        raised.__cause__ = None if raised is error else error
        assert cli.complain(raised) == 1
        sentence = capsys.readouterr().err
        assert sentence.startswith("error: out of memory (") and sentence.count("\n") == 1
    assert cli.complain(jax.errors.JaxRuntimeError("INTERNAL: it is our fault")) == 1
    assert "out of memory" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "sweep"])
def test_what_is_said_to_take_less_memory_are_flags_of_the_command(name):
    code = lambda command: (whole_runs.ROOT / f"maskclippp_jax/commands/{command}.py").read_text()
    said = re.search(r"^MEMORY = .*?(?=\n\w|\n\n)", code(name), re.M | re.S)[0]
    found = re.findall(r"--([\w.]+)", said.replace('"\n          "', ""))
    assert found
    for flag in found:
        if flag.startswith("config."):
            node = configs.read("quickstart")
            for key in flag.split(".")[1:]:
                node = node[key]
        else:  # of the command, or of `plan`, which tells what fits
            assert f'("{flag}",' in code(name) + code("plan")
