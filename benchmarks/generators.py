"""EoMT of real size with random weights on one picture: python benchmarks/generators.py

From the picture in memory to masks and classes in memory: letterbox, network, nothing else. Every
model runs in a process of its own, whose peak memory is shown beside what the compiler says that
the program needs. On a CPU "cores s" is the time of all cores together, which other programs on the
machine disturb little; the GFLOP are those of the compiler.
"""

import concurrent.futures
import json
import multiprocessing
import resource
import time

import jax
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.data import generator_input
from maskclippp_jax.weights import eomt, published_generators

SIZE = flags.DEFINE_string("size", "512x683", "height x width of the picture")
MODELS = flags.DEFINE_list("models", ["eomt-s-640", "eomt-b-640", "eomt-l-640"],
                           "names as in `maskclippp convert --list`")
DTYPE = flags.DEFINE_enum("dtype", "float32", list(configuration.DTYPES), "of the arithmetic")
REPEATS = flags.DEFINE_integer("repeats", 3, "the best of these counts")


def main(argv):
    del argv
    size = tuple(map(int, SIZE.value.split("x")))
    table = Table(title=f"{size[0]} x {size[1]}, {DTYPE.value}, on {jax.devices()[0].device_kind}")
    columns = ("M parameters", "compile s", "s", "cores s", "weights MB", "program MB", "peak MB")
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    for name in MODELS.value:
        with concurrent.futures.ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(measure, name, size, DTYPE.value, REPEATS.value).result()
        print(json.dumps(dict(model=name, **found)))
        table.add_row(name, *(f"{found[c]:.1f}" for c in columns))
    Console().print(table)


def measure(name: str, size: tuple[int, int], dtype: str, repeats: int) -> dict[str, float]:
    """One row of the table."""
    config = published_generators.find(name).config
    build, shapes = eomt.abstract(config, dtype=jax.numpy.dtype(dtype),
                                  heads=configuration.heads_on())
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(rng.standard_normal(x.shape, np.float32) / 50), shapes)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    side = config.image_size[0]
    start = time.monotonic()
    run = jax.jit(lambda params, image: build(params)(image)).lower(
        params, jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)).compile()
    compiling = time.monotonic() - start
    seconds, of_cores = [], []
    for _ in range(repeats):
        start = time.monotonic(), time.process_time()
        found = jax.device_get(run(params, generator_input.letterbox(image, side)[None]))
        seconds.append(time.monotonic() - start[0])
        of_cores.append(time.process_time() - start[1])
    assert all(np.isfinite(x).all() for x in found)
    memory, count = run.memory_analysis(), parameters.count(params)
    return {
        "M parameters": count / 1e6, "compile s": compiling, "s": min(seconds),
        "cores s": min(of_cores), "weights MB": 4 * count / 1e6,
        "program MB": (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


if __name__ == "__main__":
    app.run(main)
