"""The forms of deformable attention's sampling, of one layer: python benchmarks/deformable.py

A layer of FC-CLIP's pixel decoder for a picture of 800 x 1088 pixels, in float32. Points are read
by one look-up of four neighbours that lie beside each other (ours), by four look-ups, or without
any, as a dense product with the weights of all cells (a tent around each point). Heads go one after
the other or together. On the CPU: seconds of all cores together, and what the compiled program
takes for what lies between; and by the compiler for a chip of --topology (with libtpu, no TPU is
needed): bytes that are read and written, memory, and the seconds of FLOPs and bytes at full speed.
Of what goes one after the other the compiler counts one turn, which is multiplied here.
"""

import functools
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.table import Table

from maskclippp_jax.generators import pixel_decoder
from maskclippp_jax.runtime import console
from maskclippp_jax.training import plans

TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "TPU slice whose chip is compiled for; "
                               "empty: this machine alone")
SIZE = flags.DEFINE_string("size", "800x1088", "height x width of the padded picture")
FORMS = flags.DEFINE_list("forms", ["ours", "ours together", "corners", "corners together",
                                    "dense"], "what is measured, beside the first of them")
REPEATS = flags.DEFINE_integer("repeats", 3, "turns; the median counts", lower_bound=1)
_HEADS, _CHANNELS, _POINTS, _STRIDES = 8, 32, 4, (32, 16, 8)
_ROWS = 256  # queries whose dense weights exist at a time, at most


def main(argv):
    del argv
    plans.compile_only()
    height, width = map(int, SIZE.value.split("x"))
    shapes = tuple((height // s, width // s) for s in _STRIDES)
    chip = plans.make_mesh(1, TOPOLOGY.value) if TOPOLOGY.value else None
    arrays = draw(shapes)
    ours = None
    table = Table(title=f"one layer, {SIZE.value}, on {jax.devices()[0].device_kind} and "
                        f"{TOPOLOGY.value or 'nothing else'}")
    table.add_column("form")
    for column in ("CPU, cores s", "CPU, MB between", "chip, GB", "chip, MB between", "chip, ms",
                   "largest difference"):
        table.add_column(column, justify="right")
    for name in FORMS.value:
        title, one_head, together = KNOWN[name]
        program = jax.jit(functools.partial(all_heads, one_head, shapes, together=together))
        seconds, answer = run(program, arrays)
        ours = answer if ours is None else ours
        row = [title, f"{seconds:.2f}", f"{between(program.lower(*arrays).compile()):.0f}"]
        row += price(one_head, shapes, together, arrays, chip) if chip else [""] * 3
        table.add_row(*row, f"{abs(answer - ours).max() / abs(ours).max():.1e}")
        print(row, flush=True)
    console.show(table)


def draw(shapes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, locations a few cells around each query, weights: see `pixel_decoder.sample`."""
    rng = np.random.default_rng(0)
    num = sum(map(math.prod, shapes))
    values = rng.standard_normal((1, num, _HEADS, _CHANNELS), np.float32)
    offsets = 2 * rng.standard_normal((1, num, _HEADS, len(shapes), _POINTS, 2), np.float32)
    middles = np.asarray(pixel_decoder.reference_points(shapes))[None, :, None, None, None]
    weights = rng.random((1, num, _HEADS, len(shapes), _POINTS), np.float32)
    locations = middles + offsets / np.asarray(pixel_decoder.cells(shapes))
    return values, locations, weights / weights.sum((3, 4), keepdims=True)


def all_heads(one_head, shapes, values, locations, weights, *, together: bool):
    """[B, S, A, K], [B, T, A, V, P, 2], [B, T, A, V, P] -> [B, T, A, K]."""
    heads = [jnp.moveaxis(x, 2, 0) for x in (values, locations, weights)]
    call = lambda head: one_head(*head, shapes)
    found = jax.vmap(lambda *head: call(head))(*heads) if together else jax.lax.map(call, heads)
    return jnp.moveaxis(found, 0, 2)


def run(program, arrays) -> tuple[float, np.ndarray]:
    answer, turns = jax.device_get(program(*arrays)), []
    for _ in range(REPEATS.value):
        start = time.process_time()
        jax.block_until_ready(program(*arrays))
        turns.append(time.process_time() - start)
    return statistics.median(turns), answer


def between(compiled) -> float:
    """Megabytes."""
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def price(one_head, shapes, together: bool, arrays, chip) -> list[str]:
    """Cells of the table for a chip."""
    whole = jax.sharding.NamedSharding(chip, jax.sharding.PartitionSpec())
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    def compile(function, given):
        with jax.set_mesh(chip):
            return jax.jit(function).lower(*map(like, given)).compile()

    program = compile(functools.partial(all_heads, one_head, shapes, together=together), arrays)
    turn, turns = program, 1
    if not together:
        queries = rows(arrays[0].shape[1]) if one_head is dense else arrays[0].shape[1]
        given = [arrays[0][:, :, 0], *(x[:, :queries, 0] for x in arrays[1:])]
        turn = compile(functools.partial(one_head, shapes=shapes), given)
        turns = _HEADS * arrays[0].shape[1] // queries
    cost = turn.cost_analysis()
    # See `plans`: what has no price counts -1.
    return [f"{turns * cost['bytes accessed'] / 1e9:.1f}", f"{between(program):.0f}",
            f"{1000 * turns * (cost['optimal_seconds'] % 1):.1f}"]


# ---- One head: [B, S, K], [B, T, V, P, 2], [B, T, V, P] -> [B, T, K] -----------------------------


def corners(values, locations, weights, shapes):
    """Four look-ups a point."""
    total = 0.0
    for level, grid in enumerate(pixel_decoder.cut(values, shapes)):
        batch, height, width, channels = grid.shape
        x, y = (locations[:, :, level, :, i] * side - 0.5 for i, side in ((0, width), (1, height)))
        left, top = jnp.floor(x), jnp.floor(y)
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            i, j = top + row, left + column
            share = (1 - abs(y - i)) * (1 - abs(x - j)) * weights[:, :, level]
            share = jnp.where((i >= 0) & (i < height) & (j >= 0) & (j < width), share, 0.0)
            index = jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1)
            found = jnp.take_along_axis(
                grid.reshape(batch, -1, channels), index.astype(jnp.int32).reshape(
                    batch, -1, 1), 1, mode="clip").reshape(*share.shape, channels)
            total = total + jnp.einsum("btp,btpk->btk", share, found, precision="highest")
    return total


def dense(values, locations, weights, shapes):
    """The weights of all cells, of so many queries at a time, and their product with the values."""
    grids = pixel_decoder.cut(values, shapes)

    def some(part):
        locations, weights = part
        total = 0.0
        for level, grid in enumerate(grids):
            height, width = grid.shape[1:3]
            tent = lambda at, count: jnp.maximum(0, 1 - abs(
                (at * count - 0.5)[..., None] - jnp.arange(count)))  # [B, t, P, count]
            of_cells = jnp.einsum("btp,btph,btpw->bthw", weights[:, :, level],
                                  tent(locations[:, :, level, :, 1], height),
                                  tent(locations[:, :, level, :, 0], width), precision="highest")
            total = total + jnp.einsum("bthw,bhwk->btk", of_cells, grid, precision="highest")
        return total

    parts = [jnp.moveaxis(x.reshape(len(x), -1, rows(x.shape[1]), *x.shape[2:]), 1, 0)
             for x in (locations, weights)]
    return jnp.moveaxis(jax.lax.map(some, parts), 0, 1).reshape(len(values), -1, values.shape[-1])


def rows(queries: int) -> int:
    """Of the dense form: queries at a time, a share of all without remainder."""
    return next(n for n in range(_ROWS, 0, -1) if queries % n == 0)


KNOWN = {
    "ours": ("four neighbours at once, heads apart", pixel_decoder.sample_head, False),
    "ours together": ("four neighbours at once, heads together", pixel_decoder.sample_head, True),
    "corners": ("four look-ups, heads apart", corners, False),
    "corners together": ("four look-ups, heads together", corners, True),
    "dense": ("dense", dense, False),
}

if __name__ == "__main__":
    app.run(main)
