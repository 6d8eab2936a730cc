"""The record of a training run: what was learnt, how fast, and a line for people.

`metrics.jsonl` has what follows from seed and step, and so is the same however often a run was
stopped; `speed.jsonl` has what does not: images/s, the share of time spent waiting for data, the
share of the device's peak FLOP/s (MFU), and its memory; `times.jsonl` where the time of all starts
went (`ledger`). The first two go to TensorBoard as well, and to Weights & Biases if asked for.
Metrics stay on the device until `flush`, so that the device never waits for the host. Only process
0 writes.
"""

import contextlib
import hashlib
import json
import math
import time
import typing

import jax
import numpy as np
from absl import logging
from etils import epath
from tensorboardX import SummaryWriter

from maskclippp_jax.drawing import visualize
from maskclippp_jax.runs import ledger
from maskclippp_jax.runtime import devices, storage

_SEND_EVERY = 60  # seconds; logs in a bucket are sent whole each time


class RunLog:
    def __init__(self, workdir: epath.Path, first_step: int, steps: int, batch_size: int, *,
                 array_names: typing.Sequence[str], wandb=None,
                 times: ledger.Ledger | None = None):
        """Opens the record; lines of steps a killed run logged but did not save are removed.

        Args:
          workdir: the run's folder; one in a bucket is brought up to date by `send`.
          first_step: steps that are done.
          steps: of the whole run.
          batch_size: images a step.
          array_names: of the numbers in `not_finite` (`train_step.names_of_arrays`).
          wandb: a run of Weights & Biases, or None.
          times: of this start, which has begun before; None: it begins here.
        """
        self._times, self._from_step, self._last_step = times or ledger.Ledger(), first_step, 0
        self._times.started()
        self._steps, self._batch_size, self._array_names = steps, batch_size, array_names
        self._wandb = wandb
        self._views: dict[int, list] = {}
        self._pending: list[tuple[int, dict]] = []
        self._since, self._since_step, self._waited = time.monotonic(), first_step, 0.0
        self._writes = jax.process_index() == 0
        self.flops = None  # of a step, on each device; set once it is compiled
        files = ("metrics.jsonl", "speed.jsonl", ledger.FILE)
        self._outbox = storage.Outbox(workdir, taken_up=files if self._writes else ())
        self.folder, self._sent = self._outbox.folder, time.monotonic()
        self._metrics, self._speed, self._times_file = (self.folder / name for name in files)
        if not self._writes:
            return
        for file in (self._metrics, self._speed):
            if file.exists():
                kept = [line for line in file.read_bytes().splitlines()
                        if _step_of(line) is not None and _step_of(line) <= first_step]
                storage.write(file, b"".join(line + b"\n" for line in kept))
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=first_step + 1)
        storage.write(self._times_file, "".join(
            json.dumps(line) + "\n" for line in ledger.read(self._times_file)))
        self._write_times(first_step)

    @contextlib.contextmanager
    def waiting(self):
        """Time spent in here is time the device may have had to wait for data."""
        start = time.monotonic()
        with self._times.spending("waiting for data"):
            yield
        self._waited += time.monotonic() - start

    def add(self, step: int, metrics: typing.Mapping[str, jax.Array | float]) -> None:
        """Remembers the metrics of a finished step (counted from 1)."""
        self._pending.append((step, dict(metrics)))

    def add_pictures(self, step: int, views: list[visualize.View]) -> None:
        """Remembers pictures with named masks, to be drawn beside the true names.

        They become `pictures/<step>.png`; call it before the step's metrics are flushed.

        Args:
          step: which has just been added.
          views: a `visualize.View` each.
        """
        if self._writes and views:
            self._views[step] = views

    def flush(self) -> None:
        """Reads the metrics back, writes them, and reports progress.

        Raises:
          FloatingPointError: a loss, parameter or gradient is not finite; names it and the step.
        """
        if not self._pending:
            return
        rows = [dict(step=step, **{k: float(v) for k, v in metrics.items()})
                for step, metrics in jax.device_get(self._pending)]
        self._pending = []
        first = [int(row.pop("not_finite")) for row in rows]
        broken = next((i for i, row in enumerate(rows)
                       if first[i] >= 0 or not math.isfinite(row["loss"])), None)
        if self._writes:
            self._write(self._metrics, rows[:broken])
        if broken is not None:
            self._outbox.send()
            where = (f"; {self._array_names[first[broken]]} is the first array that is not finite"
                     if first[broken] >= 0 else "")
            raise FloatingPointError(
                f"the loss of step {rows[broken]['step']} is {rows[broken]['loss']}{where}. The "
                "last checkpoint is from before it. Lower optimizer.learning_rate, or look at that "
                "step's pictures")
        self._report(rows)
        if time.monotonic() - self._sent > _SEND_EVERY:
            self.send()

    def send(self) -> None:
        """Flushes; then a bucket holds all there is."""
        self.flush()
        self._outbox.send()
        self._sent = time.monotonic()

    def close(self) -> None:
        """The last of the run; says where its time went."""
        self.flush()
        if self._writes:
            self._board.close()
            self._write_times(self._last_step)
            logging.info("time: %s", ledger.sentence(ledger.read(self._times_file)))
            self._outbox.send()
            if self._wandb is not None:
                self._wandb.finish()

    def _write(self, path, rows):
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        storage.sync(path)  # it must not be behind a checkpoint, which reaches the disk as well
        for row in rows:
            values = {name: value for name, value in row.items() if name != "step"}
            pictures = self._draw(row["step"])
            for name, value in values.items():
                self._board.add_scalar(name, value, row["step"])
            if self._wandb is not None:
                self._wandb.log(values | pictures, step=row["step"])
        self._board.flush()

    def _write_times(self, step: int) -> None:
        self._last_step = step
        line = self._times.line(self._from_step, step, self._steps)
        with self._times_file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _draw(self, step: int) -> dict:
        """Draws the pictures of a step, if there are any; returns what Weights & Biases gets."""
        if step not in self._views:
            return {}
        drawing = visualize.draw_views([self._views.pop(step)], [f"step {step}"])
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        storage.write(folder / f"{step}.png", visualize.to_png(drawing))
        self._board.add_image("eval/pictures", np.asarray(drawing), step, dataformats="HWC")
        if self._wandb is None:
            return {}
        import wandb  # it is there, as a run of its was given
        return {"eval/pictures": wandb.Image(drawing)}

    def _report(self, rows):
        now, last = time.monotonic(), rows[-1]
        seconds = max((now - self._since) / max(last["step"] - self._since_step, 1), 1e-9)  # a step
        speed = self._measure(seconds, (now - self._since))
        self._since, self._since_step, self._waited = now, last["step"], 0.0
        if self._writes:
            self._write(self._speed, [dict(step=last["step"], **speed)])
            self._write_times(last["step"])
        mean = lambda name: sum(r[name] for r in rows) / len(rows)
        logging.info(
            "step %d/%d  loss %.4f  mask accuracy %.1f %%  %.1f images/s%s  %s left",
            last["step"], self._steps, mean("loss"), 100 * mean("mask_accuracy"),
            speed["images_per_second"],
            f"  MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else "",
            ledger.duration(seconds * (self._steps - last["step"])))
        for row in rows:
            if look := _look_of(row):
                logging.info("validation after step %d: %s", row["step"], look)

    def _measure(self, seconds: float, whole: float) -> dict[str, float]:
        """What `speed.jsonl` holds, where the device tells."""
        speed = dict(images_per_second=self._batch_size / seconds,
                     input_wait_share=self._waited / max(whole, 1e-9))
        device = jax.local_devices()[0]
        kind, memory = devices.describe(device), device.memory_stats()
        if kind is not None and self.flops is not None:
            speed["mfu"] = self.flops / seconds / kind.flops
        if memory:
            speed["memory_gib"] = memory["bytes_in_use"] / 2**30
            speed["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        return speed


def import_wandb(project: str):
    """Weights & Biases on process 0, if a project is named; else None.

    Raises:
      ValueError: it is not installed.
    """
    if not project or jax.process_index():
        return None
    try:
        import wandb  # only who asks for it needs it
    except ImportError:
        raise ValueError(f"--wandb={project} needs Weights & Biases; pip install wandb, or leave "
                         "the flag out") from None
    return wandb


def open_wandb(wandb, project: str, workdir: epath.Path, config: dict):
    """A run of Weights & Biases, the same one when the folder's run resumes."""
    return wandb.init(project=project, name=workdir.name, config=config, resume="allow",
                      dir=None if storage.on_bucket(workdir) else str(workdir),
                      id=hashlib.sha256(str(workdir).encode()).hexdigest()[:16])


class Profile:
    """Records steps a to b of process 0."""

    def __init__(self, steps: str):
        """Reads "a-b"; "" records nothing.

        Raises:
          ValueError: anything else.
        """
        first, dash, last = steps.partition("-")
        if steps and not (dash and first.isdigit() and last.isdigit()
                          and 1 <= int(first) <= int(last)):
            raise ValueError(f"--profile is {steps!r}, wanted the first and last step, such as "
                             "20-25")
        self._first, self._last = (int(first), int(last)) if steps else (0, 0)
        self._running = False

    def before(self, step: int, folder: epath.Path) -> None:
        if step == self._first and jax.process_index() == 0:
            jax.profiler.start_trace(str(folder / "profile"))
            self._running = True

    def after(self, step: int, metrics: typing.Mapping[str, jax.Array]) -> None:
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._running = False


def row_of(line: bytes) -> dict | None:
    """What a line of a log holds, its step among it; None of a line that a killed run cut, or that
    is no text (as a machine without power may leave it)."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _look_of(row: typing.Mapping[str, float]) -> str:
    """What a look at validation data has found, for people; empty if a step had none."""
    if "eval/mask_accuracy" not in row:
        return ""
    parts = [f"{name} {row[key]:.1f} %" for name, key in (
        ("mask accuracy", "eval/mask_accuracy"), ("seen classes", "eval/seen"),
        ("unseen", "eval/unseen")) if key in row]
    moved = [f"{name} {row[key]:.2g}" for name, key in (
        ("image", "distance/image"), ("text", "distance/text")) if row.get(key)]
    return "; ".join(filter(None, [", ".join(parts), moved and
                                   f"distance from the original weights: {', '.join(moved)}"]))


def _step_of(line: bytes) -> int | None:
    row = row_of(line)
    return None if row is None else row["step"]
