"""Progress of long work: a bar with rate and time left, or lines in a log."""

import sys
import time
import typing

import tqdm
from absl import logging
from rich.console import Console

_EVERY = 10.0  # seconds between two lines of a log
_DELAY = 0.5   # seconds after which a notebook shows a bar, of which an empty line stays

T = typing.TypeVar("T")


def track(items: typing.Iterable[T], what: str, *, total: int | None = None,
          unit: str = "pictures", step: int | typing.Callable[[T], int] = 1,
          shown: bool = True) -> typing.Iterator[T]:
    """The items, one after the other, while people see how far the work on them is.

    In a terminal or a notebook a bar, which vanishes at the end; elsewhere a line of the log every
    ten seconds.

    Args:
      items: the work.
      what: is done with them, such as "naming".
      total: how many there are, if `len` does not tell.
      unit: what they are.
      step: how much one of them counts, or a function of it.
      shown: whether anything is shown.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if not shown:
        yield from items
        return
    count = step if callable(step) else lambda item: step
    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        with tqdm.tqdm(desc=what, total=total, unit=f" {unit}", file=sys.stderr, leave=False,
                       delay=0 if console.is_terminal else _DELAY, dynamic_ncols=True) as bar:
            for item in items:
                yield item
                bar.update(count(item))
        return
    done, start, first = 0, None, 0  # the first one may wait for a compiler, and tells no rate
    for item in items:
        yield item
        now, done = time.monotonic(), done + count(item)
        if start is None:
            start = last = now
            first = done
        elif now - last >= _EVERY:
            last = now
            logging.info("%s", line(what, done, total, unit, (done - first) / (now - start)))


def line(what: str, done: int, total: int | None, unit: str, rate: float) -> str:
    """A line of a log: "naming: 120 of 1000 pictures, 12.3/s, 1:12 left"."""
    if total is None:
        return f"{what}: {done} {unit}, {rate:.1f}/s"
    left = round((total - done) / max(rate, 1e-9))
    return f"{what}: {done} of {total} {unit}, {rate:.1f}/s, {left // 60}:{left % 60:02d} left"
