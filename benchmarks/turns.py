"""Sides of a comparison by turns in one run, each in a process of its own; see peers.py."""

import concurrent.futures
import multiprocessing
import resource
import statistics
import time
import typing

import numpy as np

# Makes what is measured: a function without arguments that gives arrays.
Load = typing.Callable[[], typing.Callable[[], typing.Sequence[np.ndarray]]]

_loaded: dict[str, typing.Any] = {}  # of the process of one side


class Side(typing.NamedTuple):
    """What one side took."""

    wall: list[float]    # seconds of each turn, by the clock
    cores: list[float]   # seconds of all cores of a CPU together
    cleared_pages: list[int]  # that the system lent, and cleared before
    peak_mb: float       # of the whole process, with libraries and weights
    answer: list[np.ndarray]


def alone(function: typing.Callable, *args) -> typing.Any:
    """What a function gives in a process of its own: a process that is started counts the largest
    memory of the one that started it as its own."""
    with _spawn() as pool:
        return pool.submit(function, *args).result()


def take(sides: typing.Mapping[str, Load], repeats: int) -> dict[str, Side]:
    """Runs every side once to warm up, then all by turns.

    Args:
      sides: by name; what makes each must be picklable.
      repeats: turns of each.
    """
    pools = {name: _spawn() for name in sides}
    try:
        for name, load in sides.items():
            pools[name].submit(_prepare, load).result()  # one after the other
        turns: dict[str, list] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, pool in pools.items():
                turns[name].append(pool.submit(_turn).result())
        return {name: Side(*map(list, zip(*turns[name])), *pool.submit(_facts).result())
                for name, pool in pools.items()}
    finally:
        for pool in pools.values():
            pool.shutdown()


def _spawn() -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def difference(one: Side, other: Side) -> float:
    """The largest difference of their answers, in shares of the largest number."""
    return max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(one.answer, other.answer))


def exponent(sizes: typing.Sequence[float], seconds: typing.Sequence[float]) -> float:
    """The slope of the straight line through their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def spread(numbers: typing.Sequence[float]) -> str:
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} ... {max(numbers):.2f})"


def _prepare(load: Load) -> None:
    _loaded["run"] = load()
    _loaded["answer"] = [np.asarray(x, np.float32) for x in _loaded["run"]()]


def _turn() -> tuple[float, float, int]:
    now = lambda: (time.monotonic(), time.process_time(),
                   resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    start = now()
    _loaded["run"]()
    return tuple(end - begin for end, begin in zip(now(), start))


def _facts() -> tuple[float, list[np.ndarray]]:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, _loaded["answer"]
