"""How our time grows with masks, classes, pixels and pictures: python -m benchmarks.exponents

The cases of peers.py in more sizes, by turns in one run. An exponent is the slope of the straight
line through the logarithms of sizes and of seconds of all cores: 0 for what costs nothing more, 1
for what costs as much more as there is more of it.
"""

import statistics
import typing

import numpy as np
from absl import app, flags

from benchmarks import peers, turns


class Growth(typing.NamedTuple):
    """A case of peers.py whose size grows."""

    case: str  # {} stands for the size
    sizes: tuple[int, ...]
    power: int = 1  # of a size, that is as many as what grows


GROWTHS = {
    "masks": Growth("encode b16 {}", (25, 50, 100, 200, 400)),
    "classes": Growth("evaluate b16 {}", (100, 300, 1000, 3000, 10000)),
    "pixels": Growth("encode b16:{} 100", (192, 272, 384, 544, 768), 2),  # by the shorter side
    "batch": Growth("train b16 {}", (1, 2, 4))}
CHOSEN = flags.DEFINE_list("growths", list(GROWTHS), "what grows")


def main(argv):
    del argv
    for name in CHOSEN.value:
        growth = GROWTHS[name]
        found = turns.take({size: ours(growth.case.format(size)) for size in growth.sizes},
                           peers.TURNS.value)
        seconds = [statistics.median(found[size].cores) for size in growth.sizes]
        slope = turns.exponent(np.array(growth.sizes) ** growth.power, seconds)
        print(f"| {name} | {', '.join(map(str, growth.sizes))} | "
              f"{', '.join(f'{x:.2f}' for x in seconds)} | {slope:.2f} |", flush=True)


def ours(case: str) -> turns.Load:
    what, model, number = case.split()
    return peers.sides_of(what, model, int(number))["ours"]


if __name__ == "__main__":
    app.run(main)
