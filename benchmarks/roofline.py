"""What a CPU cannot do without: python -m benchmarks.roofline

Of a training step and of an encoding as `benchmarks.peers` has them: the matrix products that they
ask for at the speed of large ones, and the bytes that all their other instructions, as XLA fused
them, read and write, at the speed at which this machine multiplies and adds arrays of the same
size; beside the time they take. Seconds are those of all cores together.
"""

import collections
import re
import statistics
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks import peers
from maskclippp_jax.training import compiled_step

_SIZES = 2 ** np.arange(20, 29)  # bytes that an instruction reads and writes, for its speed
_LEAST = 2e9                     # bytes of a measurement
_PARTS = ("dynamic-slice", "dynamic-update-slice")
# What moves nothing itself.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "iota", "while", "call",
         "conditional", "after-all"}


def main(argv):
    del argv
    speeds = [speed_of(size) for size in _SIZES]
    for size, speed in zip(_SIZES, speeds):
        print(f"{size / 1e6:6.1f} MB: {speed / 1e9:5.1f} GB a second of all cores", flush=True)
    multiply = peers.our_products("multiply", 1536)
    flop_speed = peers.FLOPS["multiply"]("", 1536) / seconds_of(multiply)
    print("| case | products, s | others, GB | others, s | both, s | taken, s |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, (program, once) in dict(step=training(), encoding=encoding()).items():
        text, flops = program
        moved = traffic(text)
        by_bytes = sum(count * size / np.interp(size, _SIZES, speeds)
                       for size, count in moved.items())
        total = sum(count * size for size, count in moved.items())
        print(f"| {name} | {flops / flop_speed:.2f} | {total / 1e9:.1f} | {by_bytes:.2f} | "
              f"{flops / flop_speed + by_bytes:.2f} | {seconds_of(once):.2f} |", flush=True)


def training():
    """The text and the FLOPs of a compiled training step, and what runs it."""
    step, mesh, state, inputs = peers.our_step(2)
    with jax.set_mesh(mesh):
        text = step.lower(state, *inputs).compile().as_text()
    return (text, peers.step_flops("b16", 2)), peers.our_training("b16", 2)


def encoding():
    """The same of an encoding with 100 masks."""
    tower, params, lay = peers.encoding("b16", 100)
    text = tower.lower(params, lay()).compile().as_text()
    return (text, peers.encoder_flops("b16", 100)), peers.our_encoder("b16", 100)


def seconds_of(once: typing.Callable[[], typing.Any]) -> float:
    """Of all cores, the median."""
    once()
    found = []
    for _ in range(peers.TURNS.value):
        start = time.process_time()
        once()
        found.append(time.process_time() - start)
    return statistics.median(found)


def speed_of(size: int) -> float:
    """Bytes a second of all cores at which arrays are multiplied and added, two read and one
    written, of `size` bytes together."""
    repeats = max(3, int(_LEAST / size))
    one, other = jnp.ones(int(size) // 12), jnp.full(int(size) // 12, 1e-3)
    run = jax.jit(lambda a, b: jax.lax.fori_loop(0, repeats, lambda _, x: x * b + a, a))
    return size * repeats / seconds_of(lambda: jax.block_until_ready(run(one, other)))


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


if __name__ == "__main__":
    app.run(main)
