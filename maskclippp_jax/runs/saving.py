"""Saves the checkpoints of a training run in the background, and keeps the newest and the best."""

from __future__ import annotations

import contextlib
import logging as standard_logging
import math
import time
import typing

import jax
from absl import logging
from etils import epath, epy

from maskclippp_jax.runs import checkpoint, run_log
from maskclippp_jax.runtime import heap

with epy.lazy_imports():
    import orbax.checkpoint as ocp

_BY = "eval/mask_accuracy"  # what the best checkpoints are chosen by
_GRACE = 30  # seconds in which processes that fail together may still finish a save

# What a full disk is called by the different parts that write.
_FULL = ("No space left", "quota exceeded", "RESOURCE_EXHAUSTED")


class Best:
    """Which of the checkpoints with a look at `config.eval`'s data set are the best ones.

    A preservation policy of Orbax. What it goes by stands in `metrics.jsonl`, which is written
    before a checkpoint is.
    """

    def __init__(self, workdir: epath.Path, count: int):
        """Starts with the looks of earlier starts.

        Args:
          workdir: the run's folder.
          count: how many of the best are kept.
        """
        self._count, self._accuracy = count, {}  # percent, by step
        if count and (workdir / "metrics.jsonl").exists():
            for line in (workdir / "metrics.jsonl").read_bytes().splitlines():
                if (row := run_log.row_of(line)) is not None:
                    self.add(row["step"], row)

    def add(self, step: int, metrics: typing.Mapping[str, float]) -> bool:
        """Whether the metrics of a step are of a look that counts, to be saved then."""
        if self._count and _BY in metrics:
            self._accuracy[step] = float(metrics[_BY])
        return step in self._accuracy

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        looks = {c.step: self._accuracy[c.step] for c in checkpoints if c.step in self._accuracy}
        best = sorted(looks, key=lambda step: (looks[step], step))[-self._count:]
        return [c.step in best for c in checkpoints]

    def sentence(self, workdir: epath.Path) -> str:
        """How to use the best one that is there; empty if none is."""
        paths = {step: workdir / "checkpoints" / str(step) for step in self._accuracy}
        there = [s for s, path in paths.items() if path.exists() and checkpoint.is_whole(path)]
        if not there:
            return ""
        step = max(there, key=lambda step: (self._accuracy[step], step))
        return (f"the best of its looks was after step {step} (mask accuracy "
                f"{self._accuracy[step]:.1f} %): --checkpoint={paths[step]}")


class Saver:
    """Saves the checkpoints of a run in the background, one after the other."""

    def __init__(self, checkpoints: ocp.v1.training.Checkpointer, owner: checkpoint.Owner):
        """See `open_saver`, which makes it."""
        self._checkpoints, self._owner, self.failures = checkpoints, owner, _Failures()

    def check(self) -> None:
        """To be called before anything of the run is written.

        Raises:
          OSError: there was another start.
          Exception: whatever has made the last save fail on this process.
        """
        self._raise_failure()
        self._owner.check()

    def save(self, state: dict, step: int) -> None:
        """Saves in the background, once the one before is whole; the state may be donated at once.

        Raises:
          Exception: whatever has made the last save fail on this process.
        """
        self.finish()
        of_an_older_start = self._checkpoints.directory / str(step)
        if jax.process_index() == 0 and of_an_older_start.exists():
            checkpoint.remove(of_an_older_start)
        heap.give_back()  # the state is copied, which need not lie beside what a step works in
        checkpoint.save(self._checkpoints, state, step)

    def finish(self, seconds: float = math.inf) -> None:
        """Waits until all is saved, or for some seconds.

        Raises:
          Exception: whatever has made the last save fail on this process.
        """
        until = time.monotonic() + seconds
        while self._checkpoints.is_saving_in_progress() and time.monotonic() < until:
            self._raise_failure()
            time.sleep(0.05)

    def _raise_failure(self):
        for error in self.failures.errors:
            raise error


class _Failures(standard_logging.Handler):
    """Why the part of a checkpoint that this process saves could not be saved.

    Orbax logs it at once, but raises it only after all processes have met once more; the others,
    whose parts may be whole, first wait for this one.
    """

    def __init__(self):
        super().__init__(standard_logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: standard_logging.LogRecord) -> None:
        if record.module == "async_checkpointer" and record.exc_info:
            self.errors.append(record.exc_info[1])


@contextlib.contextmanager
def open_saver(workdir: epath.Path, owner: checkpoint.Owner, keep: int, best: Best, newest: int
               ) -> typing.Iterator[Saver]:
    """What saves the checkpoints of a run that goes on; all are whole when the block ends.

    Args:
      workdir, keep, best, newest: see `checkpoint.open_checkpoints`.
      owner: of `checkpoint.open_run`.

    Raises:
      OSError: it cannot be written (says what is left of the run), or there was another start.
    """
    checkpoints = checkpoint.open_checkpoints(workdir, keep, best, newest=newest)
    saver, logger = Saver(checkpoints, owner), logging.get_absl_logger()
    logger.addHandler(saver.failures)
    try:
        try:
            yield saver
            saver.finish()
        except BaseException:
            # A process that fails alone would wait for others that wait for it. It ends at once
            # (see `hosts.together`); if all fail together, what they were saving becomes whole.
            if jax.process_count() > 1:
                with contextlib.suppress(Exception):
                    saver.finish(_GRACE)
            else:
                checkpoints.close()
            raise
        checkpoints.close()
    except (OSError, ValueError) as error:  # tensorstore's errors are ValueErrors
        owner.check(everywhere=True)  # a later start removes what this one has half saved
        full = any(words in str(error) for words in _FULL)
        if not full and not (isinstance(error, ValueError) and error in saver.failures.errors):
            raise
        folder = workdir / "checkpoints"
        whole = sorted(int(p.name) for p in (folder.iterdir() if folder.exists() else ())
                       if checkpoint.is_whole(p))
        left = f"the last whole checkpoint is of step {whole[-1]}" if whole else "nothing was saved"
        raise OSError(f"{workdir} could not be written ({' '.join(str(error).split())[:300]}); "
                      f"{left}; {'make room' if full else 'see to that'} and start the same line "
                      "again") from None
    finally:
        logger.removeHandler(saver.failures)
