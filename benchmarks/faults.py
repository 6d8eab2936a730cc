"""Kills runs at random moments and counts what is lost: python benchmarks/faults.py

Tunes the quick start's CLIP on generated scenes, again and again in the same folder, and ends each
start by force: `kill -9` at any moment, `kill -9` while a checkpoint is being written, or SIGTERM.
Then the run may finish, and every number it logged is compared with those of a run that was left
alone. With `--processes=2` a run is two processes that share its parameters out, one of them is
hit, and the other one must end by itself: the last column tells after how many seconds at most.
Other faults are tests: python -m pytest -m slow tests/test_faults.py tests/test_faults_together.py
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from rich.table import Table

from maskclippp_jax.runtime import console

ROOT = pathlib.Path(__file__).parents[1]
DATA = flags.DEFINE_string("data_dir", str(ROOT / "data"), "folder of the prepared scenes")
STARTS = flags.DEFINE_integer("starts", 20, "starts that are killed with -9; half as many SIGTERMs")
STEPS = flags.DEFINE_integer("steps", 400, "of a run")
PROCESSES = flags.DEFINE_integer("processes", 1, "of a run", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of the moments")

_EVERY = 5  # steps between checkpoints


def main(argv):
    del argv
    chance = random.Random(SEED.value)
    table = Table("fault", "runs", "faults", "inside a save", "steps lost", "at most",
                  "wrong numbers", "others ended after")
    wrong_in_all = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if any(process.wait() for process in start(folder / "whole")):
            raise RuntimeError(f"the unbroken run failed: {(folder / 'whole.log').read_text()}")
        whole = logged(folder / "whole")
        for kind, faults in (("kill -9, any moment", STARTS.value // 2),
                             ("kill -9 inside a save", STARTS.value - STARTS.value // 2),
                             ("SIGTERM", STARTS.value // 2)):
            strikes, runs, wrong = [], 0, 0
            while len(strikes) < faults:
                run = folder / f"{kind} {runs}"
                runs += 1
                while len(strikes) < faults and len(logged(run)) < STEPS.value:
                    strikes += [got for got in [strike(run, kind, chance)] if got is not None]
                if any(process.wait() for process in start(run)):
                    raise RuntimeError(f"{run} cannot go on: {run.with_suffix('.log').read_text()}")
                found = logged(run)
                wrong += sum(a != b for a, b in zip(found, whole)) + abs(len(found) - len(whole))
            lost, saving, seconds = zip(*strikes)
            table.add_row(kind, str(runs), str(len(strikes)), str(sum(saving)), str(sum(lost)),
                          str(max(lost)), str(wrong),
                          f"{max(seconds):.0f} s at most" if PROCESSES.value > 1 else "–")
            wrong_in_all += wrong
    console.show(table)
    return int(wrong_in_all > 0)


def strike(run: pathlib.Path, kind: str, chance: random.Random
           ) -> tuple[int, bool, float] | None:
    """Starts a run and ends it by force.

    Returns:
      Steps lost, whether it was saving, and the seconds until its other processes had ended; None
      if it was faster.
    """
    processes = start(run)
    victim = chance.choice(processes)
    before, wait = len(logged(run)), chance.uniform(0, 3)
    while victim.poll() is None and len(logged(run)) == before:
        time.sleep(0.01)  # starting and compiling
    until = time.monotonic() + wait
    while victim.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    while victim.poll() is None and "inside" in kind and not is_saving(run):
        pass
    if victim.poll() is not None:
        return None
    victim.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    victim.wait()
    saving, since = is_saving(run), time.monotonic()
    codes = {process.wait(timeout=120) for process in processes if process is not victim}
    seconds = time.monotonic() - since
    wanted = 0 if kind == "SIGTERM" else 1
    if codes - {wanted} or kind == "SIGTERM" and victim.returncode:
        raise RuntimeError(f"exit code {victim.returncode}, the others {codes} after {kind}: "
                           + run.with_suffix(".log").read_text())
    saved = max([int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()],
                default=0)
    return len(logged(run)) - saved, saving, seconds


def is_saving(run: pathlib.Path) -> bool:
    return any("tmp" in p.name for p in (run / "checkpoints").glob("*"))


def start(run: pathlib.Path) -> list[subprocess.Popen]:
    environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT),
                       JAX_COMPILATION_CACHE_DIR=str(run.parent / "compiled"))
    line = [sys.executable, "-m", "maskclippp_jax", "train", "--config=configs/quickstart.py",
            f"--config.data_dir={DATA.value}", f"--config.train.steps={STEPS.value}",
            f"--config.checkpoint_every={_EVERY}", "--config.log_every=1", f"--workdir={run}",
            f"--config.mesh.fsdp={PROCESSES.value}"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    with run.with_suffix(".log").open("w") as log:
        return [subprocess.Popen(
            line + [f"--distributed={address},{PROCESSES.value},{i}"] * (PROCESSES.value > 1),
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log)
            for i in range(PROCESSES.value)]


def logged(run: pathlib.Path) -> list[dict]:
    """What a run logged of each step; a line cut off by its end does not count."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    app.run(main)
