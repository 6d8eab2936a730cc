"""Compiled programs of one start serve the next."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from maskclippp_jax.runtime import kept, programs

# Programs of several names, one for each argument; how many were not in the folder. JAX is imported
# after the folder was named, as commands do, or before it.
PROGRAM = """
import sys
before, *numbers = sys.argv[1:]
if before == "jax":
    import jax
from maskclippp_jax.runtime import programs
programs.keep(None)
import jax, numpy as np
compiled = []
jax.monitoring.register_event_listener(
    lambda name, **_: compiled.append(name) if name.endswith("cache_misses") else None)
for number in map(int, numbers):
    def work(x):
        for i in range(4):
            x = jax.numpy.sort(x + i * number)[::-1]
        return x
    work.__name__ = f"work{number}"
    print(jax.jit(work)(np.arange(4.0)).sum())
print(len(compiled))
"""


def flipped_inside(content: bytes) -> bytes:
    """An entry that JAX can decompress, of a program with other bytes."""
    from jax._src import compilation_cache as jax_cache

    program = bytearray(jax_cache.decompress_executable(content))
    for place in range(len(program) // 3, len(program), len(program) // 50):
        program[place] ^= 0x55
    return jax_cache.compress_executable(bytes(program)) + content[-kept._CHECKSUM:]


DAMAGES = dict(
    cut=lambda content: content[:100], empty=lambda _: b"",
    zeros=lambda content: bytes(len(content)),
    noise=lambda content: np.random.default_rng(0).bytes(len(content)), inside=flipped_inside,
    unsigned=lambda content: content[:-kept._CHECKSUM], folder=None)


def test_the_second_start_compiles_nothing_and_damaged_programs_are_compiled_again(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_C")}
    environment |= dict(HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")

    def start(before="programs") -> tuple[list[str], int, str]:
        words = [sys.executable, "-c", PROGRAM, before, *map(str, range(1, len(DAMAGES) + 1))]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        *totals, missed = done.stdout.split()
        return totals, int(missed), done.stderr

    totals, first, _ = start()
    assert first >= len(DAMAGES) and len(set(totals)) == len(DAMAGES)
    assert start("jax")[:2] == (totals, 0)
    for number, damage in enumerate(DAMAGES.values(), start=1):
        kept, = [p for p in tmp_path.rglob("*-cache") if f"work{number}" in p.name]
        content = kept.read_bytes()
        kept.unlink()
        if damage:
            kept.write_bytes(damage(content))
        else:
            kept.mkdir()
    again, missed, said = start()
    assert (again, missed) == (totals, len(DAMAGES))
    assert said.count("is damaged; making it anew") == len(DAMAGES) - 1
    assert said.count("compiled programs are not kept in") == 1 and "Is a directory" in said
    assert start()[:2] == (totals, 1)  # all but the one with a folder in its place


# A start from Python, after a program of somebody else's: how many were not kept, and where.
IN_PYTHON = """
import os
import jax, numpy as np
jax.jit(lambda x: x + 1)(1.0)
missed, settings = [], {k: v for k, v in os.environ.items() if "JAX" in k}
jax.monitoring.register_event_listener(
    lambda name, **_: missed.append(name) if name.endswith("cache_misses") else None)
import maskclippp_jax as mc
model = mc.load("untuned", "quickstart")
print(model.name(np.zeros((64, 64, 3), np.uint8), mc.grid, ["red one", "grass"]).scores[0, 0])
assert settings == {k: v for k, v in os.environ.items() if "JAX" in k}
print(len(missed))
print(jax.config.jax_compilation_cache_dir)
"""


def test_a_second_start_from_python_compiles_nothing(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_C")}
    environment |= dict(HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")

    def start() -> list[str]:
        return subprocess.run([sys.executable, "-c", IN_PYTHON], env=environment, text=True,
                              capture_output=True, check=True).stdout.split()

    score, first, folder = start()
    assert int(first) > 3 and folder.startswith(str(tmp_path / ".cache/maskclippp_jax/programs"))
    assert start() == [score, "0", folder]
    assert not list(tmp_path.rglob("texts"))  # what somebody changed in Python must have its effect


@pytest.mark.parametrize("setting", [
    'update("jax_compilation_cache_dir", "mine")', 'update("jax_enable_compilation_cache", False)'])
def test_what_python_says_of_jax_s_cache_holds(setting, tmp_path):
    program = f"""
import jax
jax.config.{setting}
values = dict(jax.config.values)
from maskclippp_jax.runtime import programs
programs.keep_in_python()
assert values == dict(jax.config.values)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_C")}
    subprocess.run([sys.executable, "-c", program], env=environment | dict(HOME=str(tmp_path)),
                   check=True)
    assert not list(tmp_path.iterdir())


def test_in_python_a_cache_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, caplog):
    import jax

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(programs.cache, "folder", lambda: tmp_path / "file")
    monkeypatch.setattr(programs, "_told", False)
    kept_in = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with caplog.at_level("WARNING", logger="absl"):
            for _ in range(2):
                programs.keep_in_python()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", kept_in)
    assert caplog.text.count("compiled programs are not kept in") == 1


def test_every_flipped_byte_of_an_entry_is_noticed(tmp_path):
    folder = kept.Folder(tmp_path, 2**20)
    folder.put("a", b"a program")
    file, = tmp_path.iterdir()
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        assert folder.get("a") is None and not file.exists()
    file.write_bytes(whole)
    assert folder.get("a") == b"a program"
    file.rename(tmp_path / "b-cache")  # under the name of another program
    assert folder.get("b") is None


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    folder = kept.Folder(tmp_path, size=3 * (100 + kept._CHECKSUM))
    for name in "abc":
        folder.put(name, bytes(100))
    for seconds, name in enumerate("abc"):
        os.utime(tmp_path / f"{name}-cache", (seconds, seconds))
    assert folder.get("a") == bytes(100)
    folder.put("d", bytes(100))
    assert {file.name for file in tmp_path.iterdir()} == {"a-cache", "c-cache", "d-cache"}


def test_a_full_disk_is_said_once_and_leaves_nothing_half_written(tmp_path, monkeypatch, caplog):
    def write_bytes(self, content):
        self.write_text("half")
        raise OSError(28, "No space left on device")

    folder = kept.Folder(tmp_path, 2**20)
    monkeypatch.setattr(pathlib.Path, "write_bytes", write_bytes)
    with caplog.at_level("WARNING", logger="absl"):
        for name in "ab":
            folder.put(name, b"x")
    assert caplog.text.count("are not kept in") == caplog.text.count("No space left") == 1
    assert not list(tmp_path.iterdir())


def test_where_programs_are_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(programs, "_use_folders", lambda module: None)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(os, "environ", environment := {})
    kept_in = lambda: environment.get("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(programs.cache, "folder", lambda: tmp_path / "file")
    with caplog.at_level("WARNING", logger="absl"):
        programs.keep(None)  # works without
    assert kept_in() is None and environment.pop("JAX_ENABLE_COMPILATION_CACHE") == "False"
    assert "compiled programs are not kept in" in caplog.text and "--programs" in caplog.text
    with pytest.raises(ValueError, match="--programs=.*file cannot be written .*name another"):
        programs.keep(str(tmp_path / "file"))
    programs.keep(str(tmp_path / "x"))
    assert pathlib.Path(kept_in()).parent == tmp_path / "x" and os.path.isdir(kept_in())
    environment["JAX_COMPILATION_CACHE_DIR"] = "mine"
    programs.keep(None)
    assert kept_in() == "mine"
    programs.keep(str(tmp_path / "y"))
    assert pathlib.Path(kept_in()).parent == tmp_path / "y"
    programs.keep("")
    assert environment["JAX_ENABLE_COMPILATION_CACHE"] == "False"


def test_a_program_for_a_cpu_is_told_to_spare_memory_and_jax_says_when_it_is_compiled():
    import jax

    heard = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **more: heard.append(event))
    run = programs.jit(lambda x: x * 2 + 12345)
    assert run(1) == 12347
    assert programs._COMPILED in heard  # else nothing would be given back to the system
    with pytest.raises(jax.errors.JaxRuntimeError):  # the option is one that this XLA reads
        jax.jit(lambda x: x - 12345, compiler_options={
            "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_NONE_SUCH"})(1)
