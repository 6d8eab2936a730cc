"""The record of a training run: `metrics.jsonl`, TensorBoard events, and a line for people.

Metrics stay on the device until `flush`, so that the device never waits for the host. Only process
0 writes.
"""

import json
import math
import time
import typing

import jax
from absl import logging
from etils import epath
from tensorboardX import SummaryWriter


class RunLog:
    def __init__(self, workdir: epath.Path, first_step: int, steps: int, batch_size: int):
        """Opens the record; lines of steps a killed run logged but did not save are removed."""
        self._steps, self._batch_size = steps, batch_size
        self._pending: list[tuple[int, dict]] = []
        self._since, self._since_step = time.monotonic(), first_step
        self._file = workdir / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        if self._file.exists():
            kept = [line for line in self._file.read_text().splitlines()
                    if _step_of(line) is not None and _step_of(line) <= first_step]
            temporary = self._file.with_name(".metrics.jsonl.tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(self._file)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def add(self, step: int, metrics: typing.Mapping[str, jax.Array | float]) -> None:
        """Remembers the metrics of a finished step (counted from 1)."""
        self._pending.append((step, dict(metrics)))

    def flush(self) -> None:
        """Reads the metrics back, writes them, and reports progress.

        Raises:
          FloatingPointError: a loss is not finite; names the step.
        """
        if not self._pending:
            return
        rows = [dict(step=step, **{k: float(v) for k, v in metrics.items()})
                for step, metrics in jax.device_get(self._pending)]
        self._pending = []
        broken = next((r for r in rows if not math.isfinite(r["loss"])), None)
        if self._writes:
            self._write([r for r in rows if broken is None or r["step"] < broken["step"]])
        if broken is not None:
            raise FloatingPointError(
                f"the loss of step {broken['step']} is {broken['loss']}; the last checkpoint is "
                "from before it. Lower optimizer.learning_rate, or look at that step's pictures")
        self._report(rows)

    def close(self) -> None:
        self.flush()
        if self._writes:
            self._board.close()

    def _write(self, rows):
        with self._file.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])
        self._board.flush()

    def _report(self, rows):
        now, last = time.monotonic(), rows[-1]
        seconds = (now - self._since) / max(last["step"] - self._since_step, 1)  # a step
        self._since, self._since_step = now, last["step"]
        mean = lambda name: sum(r[name] for r in rows) / len(rows)
        logging.info(
            "step %d/%d  loss %.4f  mask accuracy %.1f %%  %.1f images/s  %s left",
            last["step"], self._steps, mean("loss"), 100 * mean("mask_accuracy"),
            self._batch_size / max(seconds, 1e-9),
            _duration(seconds * (self._steps - last["step"])))


def _step_of(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return None  # a line cut by a killed run


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
