"""Compiled programs of one start serve the next."""

import os
import pathlib
import subprocess
import sys

import pytest

from maskclippp_jax.runtime import programs

# A program that takes a while to compile; the number of its compilations.
PROGRAM = """
import jax, numpy as np
from maskclippp_jax.runtime import programs
programs.keep(None)
compiled = []
jax.monitoring.register_event_listener(
    lambda name, **_: compiled.append(name) if name.endswith("cache_misses") else None)
@jax.jit
def work(x):
    for i in range(60):
        x = jax.numpy.sort(x + i)[::-1]
    return x
print(work(np.arange(4.0)).sum(), len(compiled))
"""


def test_the_second_start_compiles_nothing_and_a_damaged_program_is_compiled_again(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_C")}
    environment |= dict(HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")

    def start() -> list[str]:
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment,
                              capture_output=True, text=True, check=True)
        return done.stdout.split()

    total, first = start()
    assert int(first) > 0
    assert start() == [total, "0"]
    kept = [p for p in tmp_path.rglob("*-cache") if "work" in p.name]
    assert len(kept) == 1
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    again = start()
    assert again[0] == total


def test_where_programs_are_kept(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(os, "environ", environment := {})
    kept_in = lambda: environment.get("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(programs.cache, "folder", lambda: tmp_path / "file")
    programs.keep(None)  # works without
    assert kept_in() is None
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
