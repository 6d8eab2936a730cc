"""Kills runs at random moments and counts what is lost: python benchmarks/faults.py

Tunes the quick start's CLIP on generated scenes, again and again in the same folder, and ends each
start by force: `kill -9` at any moment, `kill -9` while a checkpoint is being written, or SIGTERM.
Then the run may finish, and every number it logged is compared with those of a run that was left
alone. Other faults are tests: python -m pytest -m slow tests/test_faults.py
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).parents[1]
DATA = flags.DEFINE_string("data_dir", str(ROOT / "data"), "folder of the prepared scenes")
STARTS = flags.DEFINE_integer("starts", 20, "starts that are killed with -9; half as many SIGTERMs")
STEPS = flags.DEFINE_integer("steps", 400, "of a run")
SEED = flags.DEFINE_integer("seed", 0, "of the moments")

_EVERY = 5  # steps between checkpoints


def main(argv):
    del argv
    chance = random.Random(SEED.value)
    table = Table("fault", "runs", "faults", "inside a save", "steps lost", "at most",
                  "wrong numbers")
    wrong_in_all = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if start(folder / "whole").wait():
            raise RuntimeError(f"the unbroken run failed: {(folder / 'whole.log').read_text()}")
        whole = logged(folder / "whole")
        for kind, faults in (("kill -9, any moment", STARTS.value // 2),
                             ("kill -9 inside a save", STARTS.value - STARTS.value // 2),
                             ("SIGTERM", STARTS.value // 2)):
            lost, saving, runs, hit, wrong = [], 0, 0, 0, 0
            while hit < faults:
                run = folder / f"{kind} {runs}"
                runs += 1
                while hit < faults and len(logged(run)) < STEPS.value:
                    got = strike(run, kind, chance)
                    if got is not None:
                        hit, saving = hit + 1, saving + got[1]
                        lost.append(got[0])
                if start(run).wait():
                    raise RuntimeError(f"{run} cannot go on: {run.with_suffix('.log').read_text()}")
                found = logged(run)
                wrong += sum(a != b for a, b in zip(found, whole)) + abs(len(found) - len(whole))
            table.add_row(kind, str(runs), str(hit), str(saving), str(sum(lost)),
                          str(max(lost)), str(wrong))
            wrong_in_all += wrong
    Console().print(table)
    return int(wrong_in_all > 0)


def strike(run: pathlib.Path, kind: str, chance: random.Random) -> tuple[int, bool] | None:
    """Starts a run and ends it by force: (steps lost, whether it was saving); None: it was faster.
    """
    process = start(run)
    before, wait = len(logged(run)), chance.uniform(0, 3)
    while process.poll() is None and len(logged(run)) == before:
        time.sleep(0.01)  # starting and compiling
    until = time.monotonic() + wait
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    while process.poll() is None and "inside" in kind and not is_saving(run):
        pass
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    code, saving = process.wait(), is_saving(run)
    if kind == "SIGTERM" and code:
        raise RuntimeError(f"exit code {code} after SIGTERM")
    saved = max([int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()],
                default=0)
    return len(logged(run)) - saved, saving


def is_saving(run: pathlib.Path) -> bool:
    return any("tmp" in p.name for p in (run / "checkpoints").glob("*"))


def start(run: pathlib.Path) -> subprocess.Popen:
    environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT),
                       JAX_COMPILATION_CACHE_DIR=str(run.parent / "compiled"))
    return subprocess.Popen(
        [sys.executable, "-m", "maskclippp_jax.train", "--config=configs/quickstart.py",
         f"--config.data_dir={DATA.value}", f"--config.train.steps={STEPS.value}",
         f"--config.checkpoint_every={_EVERY}", "--config.log_every=1", f"--workdir={run}"],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
        stderr=run.with_suffix(".log").open("w"))


def logged(run: pathlib.Path) -> list[dict]:
    """What a run logged of each step; a line cut off by its end does not count."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    app.run(main)
