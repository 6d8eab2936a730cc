"""Ends writing commands by force and looks at what is left: python benchmarks/interruptions.py

Starts each command that writes, ends it at a random moment of its work (SIGKILL, SIGTERM, SIGINT as
Ctrl-C sends it, files that may not grow, or a disk that is full), looks at its output and for
processes that outlive it, gives the same line again, and compares with what an unbroken run wrote.
The full disk is a tmpfs of a tenth to nine tenths of the output, which only root may mount.
Training has its own program, faults.py.

    damaged     files that were there under their final name, but not whole
    differs     outputs that are not those of the unbroken run after the line was given again
    left over   files there then that the unbroken run does not have
    orphans     processes still there 10 s after the end of the one that was started
    other ends  Ctrl-C without exit code 130 and its one line; a full disk without a sentence
"""

import collections
import contextlib
import hashlib
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing
import uuid

import numpy as np
from absl import app, flags
from PIL import Image
from rich.table import Table

from maskclippp_jax.runtime import console

ROOT = pathlib.Path(__file__).parents[1]
ENDS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT,
        "file limit": None, "full disk": None}
TIMES = flags.DEFINE_integer("times", 6, "each command is ended in each way")
PICTURES = flags.DEFINE_integer("pictures", 96, "of the data set", lower_bound=40)
WAYS = flags.DEFINE_multi_enum("way", list(ENDS), list(ENDS), "how they are ended")
ONLY = flags.DEFINE_list("only", [], "commands, by their number in the table")
SEED = flags.DEFINE_integer("seed", 0, "of the moments")

COLUMNS = ("damaged", "differs", "left over", "orphans", "other ends")
_PATIENCE = 10  # seconds


class Command(typing.NamedTuple):
    """What is started: the output's place stands for {out}."""

    name: str
    line: str
    first: str = ""  # what is started before, so that there is something to replace


COMMANDS = (
    Command("prepare", "prepare folder --images=images --labels=labels --names=names.txt "
            "--name=own --data_dir={out}"),
    Command("prepare --overwrite", "prepare folder --images=images --labels=labels "
            "--names=names.txt --name=own --data_dir={out} --overwrite",
            first="prepare folder --images=images --labels=labels --names=names.txt --name=own "
            "--data_dir={out}"),
    Command("masks from_files", "masks from_files --bundle={out}/b --masks=labels/{id}.png "
            "--dataset=own --split=train --data_dir=data"),
    Command("masks to_files", "masks to_files --bundle=bundle --masks={out}/{id}.png"),
    Command("masks pictures", "masks pictures --output={out} --dataset=own --split=train "
            "--data_dir=data"),
    Command("convert", f"convert --config={ROOT}/configs/quickstart.py --layout=ours --overwrite "
            f"--source={ROOT}/maskclippp_jax/assets/quickstart_clip.safetensors "
            "--output={out}/x.safetensors"),
    Command("masks export", "masks export --generator=quickstart --dataset=own --split=train "
            "--data_dir=data --output={out}/b"),
    Command("predict", "predict images --config=quickstart --checkpoint=untuned "
            "--names_file=names.txt --masks=labels/{stem}.png --output={out}"),
    Command("evaluate", "evaluate --config=quickstart --checkpoint=untuned "
            "--config.eval.dataset=own --config.eval.split=train --config.data_dir=data "
            "--workdir={out}/results --save_predictions={out}/predictions"),
)


def main(argv):
    del argv
    chance = random.Random(SEED.value)
    table = Table("command", "ended by", "times", *COLUMNS)
    wrong = 0
    chosen = [c for i, c in enumerate(COMMANDS) if not ONLY.value or str(i) in ONLY.value]
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        make_inputs(place)
        for command in chosen:
            whole, seconds = unbroken(command, place)
            for name in WAYS.value:
                found = collections.Counter()
                for i in range(3 * TIMES.value):  # some end before they are hit
                    if found["times"] == TIMES.value:
                        break
                    out = place / f"{command.name} {name} {i}".replace(" ", "_")
                    found.update(strike(command, place, out, name, seconds, whole, chance))
                row = command.name, name, *(str(found[c]) for c in ("times", *COLUMNS))
                table.add_row(*row)
                wrong += sum(found[c] for c in COLUMNS)
                print("|", " | ".join(row), "|", flush=True)  # all of them take a while
    console.show(table)
    return int(wrong > 0)


def make_inputs(place: pathlib.Path) -> None:
    """Pictures with label maps, a data set of them, and a bundle."""
    rng = np.random.default_rng(SEED.value)
    for name in ("images", "labels"):
        (place / name).mkdir()
    for i in range(PICTURES.value):
        picture = rng.integers(0, 256, (240, 320, 3), np.uint8)
        Image.fromarray(picture).save(place / f"images/p{i}.png")
        labels = np.kron(rng.integers(0, 3, (6, 8), np.uint8), np.ones((40, 40), np.uint8))
        Image.fromarray(labels).save(place / f"labels/p{i}.png")
    (place / "names.txt").write_text("cat\ndog\ngrass\n")
    for line in (COMMANDS[0].line.replace("{out}", "data"),
                 COMMANDS[2].line.replace("{out}/b", "bundle")):
        done = start(line, place)
        words = done.communicate()[1]
        if done.returncode:
            raise RuntimeError(f"{line}: {words}")


def unbroken(command: Command, place: pathlib.Path) -> tuple[dict[str, str], float]:
    """What a run that is left alone writes, and how long it takes."""
    out = whole_of(command, place)
    out.mkdir()
    since = time.monotonic()
    process = start(command.line.replace("{out}", str(out)), place)
    words = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"{command.line}: {words}")
    return files_in(out), time.monotonic() - since


def whole_of(command: Command, place: pathlib.Path) -> pathlib.Path:
    return place / f"{command.name} whole".replace(" ", "_")


def strike(command: Command, place: pathlib.Path, out: pathlib.Path, way: str,
           seconds: float, whole: dict[str, str], chance: random.Random) -> collections.Counter:
    """Ends a command once; what was wrong then, see `COLUMNS`."""
    out.mkdir()
    number, mark, found = ENDS[way], uuid.uuid4().hex, collections.Counter()
    with contextlib.ExitStack() as disk:
        sizes = [(whole_of(command, place) / name).stat().st_size for name in whole]
        if way == "full disk":
            # What it replaces is on the disk as well.
            there = sum(sizes) if command.first else 0
            disk.enter_context(mounted(out, there + int(sum(sizes) * chance.uniform(0.1, 0.9))))
        if command.first:
            start(command.first.replace("{out}", str(out)), place).communicate()
        line = command.line.replace("{out}", str(out))
        limit = int(max(sizes) * chance.uniform(0.1, 0.9)) if way == "file limit" else None
        process = start(line, place, mark, limit)
        if number is not None:
            time.sleep(seconds * chance.uniform(0.35, 0.95))
            if process.poll() is not None:  # it was faster
                return found
            # A terminal sends Ctrl-C to all processes; a scheduler its signal to the first one.
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        words = process.communicate()[1]
        found["times"] = 1
        if way == "Ctrl-C":  # -2: at its end
            right = process.returncode in (130, 0, -number)
        else:
            right = number is not None or (process.returncode in (1, 2) and "error: " in words)
        if not right or (number in (None, signal.SIGINT) and "Traceback" in words):
            found["other ends"] = 1
            print(way, process.returncode, words[-2000:], file=sys.stderr)
        until = time.monotonic() + _PATIENCE
        while alive(mark) and time.monotonic() < until:
            time.sleep(0.1)
        found["orphans"] = len(alive(mark))
        wrong = [name for name, content in files_in(out).items()
                 if content != whole.get(name, content)]
        found["damaged"] = len(wrong)
        if way == "full disk":
            subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)
        again = start(line, place)
        words = again.communicate()[1]
        now = files_in(out)
        if other := [k for k in whole if now.get(k) != whole[k]]:
            found["differs"] = 1
            print(way, line, other, again.returncode, words[-2000:], file=sys.stderr)
        extra = sorted(set(now) - set(whole))
        found["left over"] = len(extra)
        if wrong or extra:
            print(way, "damaged", wrong, "left over", extra, file=sys.stderr)
    if not sum(found[c] for c in COLUMNS):
        shutil.rmtree(out)
    return found


@contextlib.contextmanager
def mounted(folder: pathlib.Path, size: int):
    """A folder that is a disk of `size` bytes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def start(line: str, place: pathlib.Path, mark: str = "", limit: int | None = None
          ) -> subprocess.Popen:
    """Starts a command in a group of its own; `limit` is the largest file it may write."""

    def prepare():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "maskclippp_jax", *line.split()], cwd=place, preexec_fn=prepare,
        env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT), INTERRUPTED=mark),
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def alive(mark: str) -> list[int]:
    """Processes, started by whomever, that have a mark in their environment."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"INTERRUPTED={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def files_in(folder: pathlib.Path) -> dict[str, str]:
    """A hash of each file; locks do not count, nor does how fast an evaluation was."""
    read = lambda file: re.sub(rb'"images_per_second": [^,}]*', b"", file.read_bytes())
    return {str(f.relative_to(folder)): hashlib.sha256(read(f)).hexdigest()
            for f in sorted(folder.rglob("*")) if f.is_file() and f.name != ".lock"}


if __name__ == "__main__":
    app.run(main)
