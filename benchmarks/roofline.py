"""What no form of a program does without on a CPU: its matrix products, and the bytes it moves.

The products count at the speed of large ones, and the bytes that all other instructions, as XLA
fused them, read and write, at the speed at which this machine multiplies and adds arrays of the
same size. Seconds are those of all cores together. Exponentials and the like are left out.
"""

import collections
import re
import statistics
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import products
from maskclippp_jax.training import compiled_step

_SIZES = 2 ** np.arange(20, 29)  # bytes that an instruction reads and writes, for its speed
_LEAST = 2e9                     # bytes of a measurement
_TURNS = 5
_PARTS = ("dynamic-slice", "dynamic-update-slice")
# What moves nothing itself.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "iota", "while", "call",
         "conditional", "after-all"}


class Work(typing.NamedTuple):
    """What a program cannot do without."""

    flops: float           # of matrix products and convolutions
    moved: dict[int, int]  # how many of its other instructions read and write so many bytes


def work_of(jitted: typing.Callable, *args, times: int = 1) -> Work:
    """The work of a jitted function, done so many times."""
    moved = traffic(jitted.lower(*args).compile().as_text())
    return Work(times * products.flops(jitted, *args),
                {size: times * count for size, count in moved.items()})


def byte_speeds() -> dict[int, float]:
    """Bytes a second of all cores, by the bytes that an instruction reads and writes."""
    return {int(size): _speed_of(int(size)) for size in _SIZES}


def seconds_of_bytes(work: Work, speeds: dict[int, float]) -> float:
    """Of all cores."""
    return sum(count * size / np.interp(size, list(speeds), list(speeds.values()))
               for size, count in work.moved.items())


def _speed_of(size: int) -> float:
    """Two arrays are read and one is written."""
    repeats = max(3, int(_LEAST / size))
    one, other = jnp.ones(size // 12), jnp.full(size // 12, 1e-3)
    run = jax.jit(lambda a, b: jax.lax.fori_loop(0, repeats, lambda _, x: x * b + a, a))
    found = []
    for _ in range(1 + _TURNS):  # the first one compiles
        start = time.process_time()
        jax.block_until_ready(run(one, other))
        found.append(time.process_time() - start)
    return size * repeats / statistics.median(found[1:])


def traffic(text: str) -> collections.Counter:
    """What a compiled program moves beside its matrix products and convolutions.

    Args:
      text: of the program, optimised for a CPU. Bodies of loops count as often as they run, or
        once where that is not known; branches do not count.

    Returns:
      How many instructions read and write so many bytes: {bytes: count}.
    """
    computations, entry = _parse(text)
    found: collections.Counter = collections.Counter()

    def walk(name: str, times: int) -> None:
        shapes = {line.name: line.shape for line in computations[name]}
        for line in computations[name]:
            if line.kind == "while":
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest)
                walk(_called("body", line), times * int(trips[1] if trips else 1))
            elif line.kind == "call":
                walk(_called("to_apply", line), times)
            elif line.kind not in _FREE and not _multiplies(line, computations):
                found[_moved(line, shapes, computations)] += times

    walk(entry, 1)
    return found


class _Line(typing.NamedTuple):
    name: str
    shape: str
    kind: str
    operands: str
    rest: str


def _parse(text: str) -> tuple[dict[str, list[_Line]], str]:
    computations: dict[str, list[_Line]] = {}
    entry = lines = None
    for row in text.splitlines():
        if begin := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", row):
            lines = computations[begin[2]] = []
            entry = begin[2] if begin[1] else entry
        elif part := re.match(
                r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)", row):
            lines.append(_Line(*part.groups()))
    return computations, entry


def _called(what: str, line: _Line) -> str | None:
    found = re.search(rf"{what}=%?([\w.\-]+)", line.rest)
    return found and found[1]


def _multiplies(line: _Line, computations: dict[str, list[_Line]]) -> bool:
    inside = computations.get(_called("calls", line) or "", [])
    return any(kind in ("dot", "convolution") for kind in (line.kind, *(x.kind for x in inside)))


def _moved(line: _Line, shapes: dict[str, str], computations: dict[str, list[_Line]]) -> int:
    """Bytes; of what is cut out of an array or put into one, that part's alone."""
    inside = computations.get(_called("calls", line) or "")
    if inside is None:  # not fused: as if it were, with itself
        inside = [_Line(name, shapes.get(name, ""), "parameter", str(i), "")
                  for i, name in enumerate(_names(line.operands))] + [line]
    shapes, total = {x.name: x.shape for x in inside}, 0
    for parameter in (x for x in inside if x.kind == "parameter"):
        used = [x for x in inside if parameter.name in _names(x.operands)]
        parts = [x for x in used if x.kind in _PARTS and _names(x.operands)[0] == parameter.name]
        if used == parts:
            total += sum(_size(x.shape) for x in parts if x.kind == "dynamic-slice")
        else:
            total += _size(parameter.shape)
    put = [x for x in inside if x.kind == "dynamic-update-slice"]
    if put:  # in place
        return total + sum(_size(shapes[_names(x.operands)[1]]) for x in put)
    return total + _size(line.shape)


def _names(operands: str) -> list[str]:
    return [x.split()[-1].lstrip("%") for x in operands.split(", ") if x]


def _size(shape: str) -> int:
    return sum(compiled_step.array_sizes(shape))
