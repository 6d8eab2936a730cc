"""Inference heads beside their literal form, in one run: python benchmarks/heads.py

The literal form does what the public reference does: all masks enlarged to the picture twice (to
the generator's input, then to the picture), the map of all classes, then its argmax; likewise for
panoptic and instance results, and for label maps of ground-truth masks. Both run compiled. Absolute
times are of this machine; their ratio and the bytes are what to look at. On a CPU the time is that
of all its cores together, which other programs on the machine disturb little.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.table import Table

from maskclippp_jax.data import mask_chain
from maskclippp_jax.models import resample
from maskclippp_jax.models.resample import Stage
from maskclippp_jax.naming import postprocess
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.postprocess import Classes, Heads, Proposals
from maskclippp_jax.runtime import console

SIZE = flags.DEFINE_string("size", "512x683", "height x width of the picture")
MASKS = flags.DEFINE_multi_integer("masks", [100, 250], "numbers of masks")
CLASSES = flags.DEFINE_multi_integer("classes", [20, 150, 847, 10000], "numbers of classes")
REPEATS = flags.DEFINE_integer("repeats", 3, "the best of these counts")
LIMIT = flags.DEFINE_float("limit_gb", 8, "literal forms that need more memory are left out")
TILE = flags.DEFINE_string("tile", None, "output pixels worked on at once, e.g. 64x128")

_SHORT, _MULTIPLE = 800, 32  # of the generator's input


def main(argv):
    del argv
    size = tuple(map(int, SIZE.value.split("x")))
    tile = tuple(map(int, TILE.value.split("x"))) if TILE.value else None
    table = Table(title=f"{size[0]} x {size[1]} on {jax.devices()[0].device_kind}")
    for column in ("results", "masks", "classes", "ours s", "MB", "literal s", "MB", "ratio"):
        table.add_column(column, justify="left" if column == "results" else "right")
    for num_masks in MASKS.value:
        for num_classes in CLASSES.value:
            for wanted in (Heads(), Heads(False, True, num_instances=100)):
                if wanted.panoptic and num_classes != CLASSES.value[0]:
                    continue  # hardly depends on it
                table.add_row(*measure(size, num_masks, num_classes, wanted, tile))
            table.add_row(*measure_segments(size, num_masks, num_classes))
    console.show(table)


def measure(size, num_masks: int, num_classes: int, wanted: Heads, tile) -> list[str]:
    """One row of the table."""
    batch, canvas = make_batch(size, num_masks, num_classes)
    classes = Classes.of([True] * num_classes, batch.scores.classes.shape[-1])
    heads = postprocess.make_heads(wanted, tile).lower(batch, classes, canvas=canvas).compile()
    mine = best_time(lambda: heads(batch, classes))
    sizes = tuple(tuple(map(int, x[0])) for x in batch.mask_sizes)
    row = ["panoptic, instances" if wanted.panoptic else "semantic", f"{num_masks}",
           f"{num_classes}", f"{mine:.2f}", f"{megabytes(heads):.0f}"]
    literal = jax.jit(functools.partial(literal_heads, wanted=wanted, sizes=sizes, size=size,
                                        num_classes=num_classes))
    return row + beside(mine, literal, batch.masks[0], batch.scores.classes[0])


def measure_segments(size, num_masks: int, num_classes: int) -> list[str]:
    """The row of a label map from a picture's segments, which pass through another size."""
    rng = np.random.default_rng(0)
    passed = [side * _SHORT // min(size) for side in size]
    y, x = (np.arange(side)[:, None] for side in size)
    row, column = rng.random((2, 1, num_masks)) * np.array(size)[:, None, None]
    distance = np.square(y - row)[:, None] + np.square(x - column)[None]  # [H, W, N]
    segments = jnp.asarray(distance.argmin(-1) + 1)
    scores = jnp.asarray(rng.dirichlet(np.full(num_classes, 0.1), num_masks), jnp.float32)
    ours = jax.jit(postprocess.segment_labels).lower(
        segments, np.array(size), np.array(passed), scores).compile()
    mine = best_time(lambda: ours(segments, np.array(size), np.array(passed), scores))
    literal = jax.jit(functools.partial(literal_segments, size=size, passed=passed))
    return ["ground truth", f"{num_masks}", f"{num_classes}", f"{mine:.2f}",
            f"{megabytes(ours):.0f}", *beside(mine, literal, segments, scores)]


def beside(mine: float, literal, *arrays) -> list[str]:
    """The last columns: the literal form, jitted, and the ratio."""
    literal = literal.lower(*arrays).compile()
    if megabytes(literal) > 1000 * LIMIT.value:
        return ["–", f"{megabytes(literal):.0f}", "–"]
    theirs = best_time(lambda: literal(*arrays))
    return [f"{theirs:.2f}", f"{megabytes(literal):.0f}", f"{theirs / mine:.1f}"]


def make_batch(size, num_masks: int, num_classes: int) -> tuple[Proposals, tuple[int, int]]:
    """A random picture and its canvas; the vocabulary is padded to a power of two times 64."""
    rng = np.random.default_rng(0)
    generator = np.array([side * _SHORT // min(size) for side in size], np.int32)
    sizes = mask_chain.generated_mask_sizes(generator, _MULTIPLE)
    columns = 64
    while columns < num_classes:
        columns *= 2
    scores = np.zeros((num_masks, columns), np.float32)
    scores[:, :num_classes] = rng.dirichlet(np.full(num_classes, 0.1), num_masks)
    batch = Proposals(
        rng.random((num_masks, *sizes.stored), np.float32), np.ones(num_masks, bool), sizes,
        np.array(size, np.int32), MaskScores(scores, np.zeros(num_masks, np.float32)))
    canvas = tuple(-(-side // 64) * 64 for side in size)
    return jax.tree.map(lambda x: jnp.asarray(x)[None], batch), canvas


def literal_heads(masks, scores, *, wanted: Heads, sizes, size, num_classes: int):
    """All masks, and all classes, at full size."""
    stored, enlarged, kept = sizes
    axes = [resample.bilinear_taps(enlarged[i], Stage(stored[i], enlarged[i])) for i in range(2)]
    large = resample.resize_masks(masks, *axes)[:, :kept[0], :kept[1]]
    axes = [resample.bilinear_taps(size[i], Stage(kept[i], size[i])) for i in range(2)]
    full = resample.resize_masks(large, *axes)  # [N, H, W]
    scores = scores[:, :num_classes]
    if wanted.semantic:
        return jnp.einsum("nc,nhw->chw", scores, full, precision="highest").argmax(0)
    best = scores.max(-1)
    winner = (best[:, None, None] * full).argmax(0)
    covered = full >= 0.5
    won = winner[None] == jnp.arange(len(full))[:, None, None]
    areas = won.sum((1, 2)), covered.sum((1, 2)), (won & covered).sum((1, 2))
    found, place = jax.lax.top_k(scores.ravel(), wanted.num_instances)
    chosen = full[place // num_classes]  # [D, H, W]
    inside = chosen > 0.5
    mean = (chosen * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    return winner, areas, found * mean, inside


def literal_segments(segments, scores, *, size, passed):
    """All masks at the size that they pass through, and all classes at full size."""
    masks = segments[None] == jnp.arange(1, 1 + len(scores))[:, None, None]
    for before, after in ((size, passed), (passed, size)):
        masks = resample.resize_masks(masks, *(
            resample.bilinear_taps(after[i], Stage(before[i], after[i])) for i in range(2)))
    return jnp.einsum("nc,nhw->chw", scores, masks, precision="highest").argmax(0)


def best_time(run) -> float:
    clock = time.process_time if jax.default_backend() == "cpu" else time.monotonic
    times = []
    for _ in range(REPEATS.value):
        start = clock()
        jax.block_until_ready(run())
        times.append(clock() - start)
    return min(times)


def megabytes(compiled) -> float:
    """Device memory of a program: arguments, results, and what lies between."""
    memory = compiled.memory_analysis()
    return (memory.argument_size_in_bytes + memory.output_size_in_bytes
            + memory.temp_size_in_bytes) / 1e6


if __name__ == "__main__":
    app.run(main)
