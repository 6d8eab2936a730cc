"""Compiles an experiment's real steps for a TPU slice one does not hold, and tells what they cost.

    python -m maskclippp_jax.plan --config=configs/x.py --topology=v5e:4x4 [--workdir=D]

Needs `jax[tpu]` beside the requirements, but no TPU: the compiler of libtpu runs on any machine.
Memory and FLOPs are the compiler's own. Its seconds leave out what it cannot price (most of the
time of collectives, custom kernels), so they compare plans and promise nothing.

`--batches=4,8,16` gives one row for each number of images a chip; `--batches=fit` looks for the
largest power of two that fits. `--sweep` compares meshes and recomputation (`remat`).
"""

import dataclasses
import itertools
import os
import re
import time
import typing

# Before JAX starts: compile for TPUs, do not look for any (the last two keep libtpu quiet).
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
                  TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-4")

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from maskclippp_jax import cli, config as configuration, loading, optim, report, sharding
from maskclippp_jax import params as parameters
from maskclippp_jax import train_step
from maskclippp_jax.data import catalogue
from maskclippp_jax.vocabulary import Vocabulary

CONFIG = config_flags.DEFINE_config_file("config", None, "file of the experiment", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "TPU slice, e.g. v5e:4x4, v6e:16x16")
BATCHES = flags.DEFINE_string("batches", None, "images a chip: a list such as 4,8, or 'fit'; "
                              "left out: train.batch_size over all chips")
SWEEP = flags.DEFINE_bool("sweep", False, "compare meshes and recomputation")
WORKDIR = flags.DEFINE_string("workdir", None, "folder for plan.json; left out: only the table")
FAST = flags.DEFINE_bool("fast", False, "compile with less care: sooner, slightly pessimistic")

# Of one device of each kind, as JAX counts them: bfloat16 FLOP/s, memory in GiB. From Google's
# public documentation of Cloud TPU; a v4 device is one of a chip's two cores.
CHIPS = {"TPU v4": (275e12 / 2, 16), "TPU v5 lite": (197e12, 16), "TPU v5": (459e12, 95),
         "TPU v6 lite": (918e12, 32)}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_MOST = 256  # images a chip `fit` tries


@dataclasses.dataclass(frozen=True)
class Plan:
    """One compiled training step; per chip unless it says otherwise."""

    topology: str
    chips: int
    data: int
    fsdp: int
    remat: str
    images_per_chip: int
    memory_gib: float | None        # None: does not fit
    available_gib: float
    tera_flops: float | None
    gigabytes: float | None         # read and written in the chip's memory
    collectives: dict[str, int]     # by kind, how many in the program
    collective_gigabytes: float | None  # results of them all
    seconds: float | None           # what the compiler can price
    images_per_second: float | None  # of the whole slice, if those seconds were all
    mfu: float | None               # share of the peak FLOP/s, if those seconds were all
    compile_seconds: float


def main(argv):
    del argv
    config = configuration.check(CONFIG.value, workdir=WORKDIR.value or "unused")
    if FAST.value:
        jax.config.update("jax_optimization_level", "O1")
    chips = sharding.make_mesh(1, TOPOLOGY.value).size
    meshes, remats = [config.mesh.fsdp], [config.remat]
    if SWEEP.value:
        meshes = sorted({1, min(chips, 4), chips})
        remats = list(configuration.REMAT)
    plans: list[Plan] = []
    for fsdp, remat in itertools.product(meshes, remats):
        settings = config.copy_and_resolve_references().unlock()
        settings.mesh.fsdp, settings.remat = fsdp, remat
        for images in batches_to_try(settings, chips):
            logging.info("compiling for %s: %d x %d, remat %s, %d images a chip", TOPOLOGY.value,
                         chips // fsdp, fsdp, remat, images)
            plans.append(plan_training(settings, TOPOLOGY.value, images))
            if BATCHES.value == "fit" and plans[-1].memory_gib is None:
                break
    show(plans)
    if WORKDIR.value:
        workdir = epath.Path(WORKDIR.value)
        workdir.mkdir(parents=True, exist_ok=True)
        report.write_json(workdir / "plan.json", dict(
            config=configuration.to_json(config), plans=[dataclasses.asdict(p) for p in plans]))
        logging.info("wrote %s", workdir / "plan.json")


def batches_to_try(config, chips: int) -> typing.Sequence[int]:
    """Images a chip, ascending."""
    if BATCHES.value == "fit":
        return [2**k for k in range(_MOST.bit_length())]
    if BATCHES.value is None:
        if config.train.batch_size % chips:
            raise ValueError(f"train.batch_size is {config.train.batch_size}, but {TOPOLOGY.value} "
                             f"has {chips} devices; give --batches=1,2,4 (images a chip)")
        return [config.train.batch_size // chips]
    try:
        found = sorted(int(n) for n in BATCHES.value.split(","))
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise ValueError(f"--batches is {BATCHES.value!r}, wanted numbers such as 4,8, or 'fit'")
    return found


def plan_training(config, topology: str, images_per_chip: int) -> Plan:
    """Compiles the training step of an experiment for a slice."""
    mesh = sharding.make_mesh(config.mesh.fsdp, topology)
    device = mesh.devices.flat[0]
    peak, available = CHIPS.get(device.device_kind, (None, None))
    if peak is None:
        raise ValueError(f"{topology} has devices of kind {device.device_kind!r}, known are "
                         f"{', '.join(CHIPS)}")
    start = time.monotonic()
    plan = Plan(topology, mesh.size, mesh.shape["data"], mesh.shape["fsdp"], config.remat,
                images_per_chip, None, available, None, None, {}, None, None, None, None, 0.0)
    try:
        compiled = lower_training(config, mesh, images_per_chip * mesh.size).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(plan, compile_seconds=time.monotonic() - start)
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    # The compiler counts -1 for each operation it cannot price; the rest of a step below one second
    # is what is left modulo 1.
    seconds = cost["optimal_seconds"] % 1.0
    counts, moved = collectives(text)
    return dataclasses.replace(
        plan, memory_gib=memory.peak_memory_in_bytes / 2**30, tera_flops=cost["flops"] / 1e12,
        gigabytes=cost["bytes accessed"] / 1e9, collectives=counts,
        collective_gigabytes=moved / 1e9, seconds=seconds,
        images_per_second=images_per_chip * mesh.size / seconds,
        mfu=cost["flops"] / seconds / peak, compile_seconds=time.monotonic() - start)


def lower_training(config, mesh, batch_size: int) -> jax.stages.Lowered:
    """The training step of an experiment, lowered for the devices of a mesh."""
    vocabulary = Vocabulary.shipped(catalogue.DATASETS[config.train.dataset].vocabulary)
    prompts = loading.prompts_shape(config.model, vocabulary, config.templates)  # [S, T, X]
    make_model = loading.model_maker(config, platform=mesh.devices.flat[0].platform,
                                     constrain=sharding.constrain_batch)
    build, shapes = parameters.abstract(make_model)
    is_trainable = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable, frozen = parameters.partition(shapes, is_trainable)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, trainable, config.model)
    state = train_step.abstract_state(config, trainable, frozen, optimizer)
    shardings = sharding.state_shardings(state, mesh)
    size, like = config.train.size, jax.ShapeDtypeStruct
    batch = dict(image=like((batch_size, size, size, 3), jnp.uint8),
                 image_size=like((batch_size, 2), jnp.int32),
                 segments=like((batch_size, size, size), jnp.uint16),
                 labels=like((batch_size, config.train.num_masks), jnp.int32))
    text = like(prompts, jnp.int32)
    if config.tune.text == "none":
        text = like((*prompts[:2], config.model.image.embed_dim), jnp.float32)
    rows = like((vocabulary.num_classes,), jnp.int32)
    step = train_step.make_step(config, build, optimizer, shardings, mesh)
    with jax.set_mesh(mesh):
        return step.lower(state, batch, rows, text)


def collectives(program: str) -> tuple[dict[str, int], int]:
    """How many collectives of each kind a compiled program holds, and the bytes of their results.

    Bodies of loops count once.
    """
    counts, moved = {}, 0
    sizes = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s8": 1,
             "u8": 1, "pred": 1, "f64": 8, "s64": 8, "u64": 8}
    for kind in _COLLECTIVES:
        found = re.findall(rf"= (.*?) {kind}(?:-start)?\(", program)
        if found:
            counts[kind] = len(found)
        for result in found:
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
                count = np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64)
                moved += int(count) * sizes.get(dtype, 4)
    return counts, moved


def show(plans: typing.Sequence[Plan]) -> None:
    """The table for people."""
    table = Table(title=f"training on {plans[0].topology} ({plans[0].chips} devices of "
                  f"{plans[0].available_gib} GiB)")
    for column in ("mesh", "remat", "images a chip", "GiB a chip", "TFLOP", "GB moved",
                   "collectives", "seconds", "images/s", "of peak"):
        table.add_column(column, justify="right")
    number = lambda x, form: "–" if x is None else format(x, form)
    for p in plans:
        table.add_row(
            f"{p.data}x{p.fsdp}", p.remat, f"{p.images_per_chip}",
            "[red]does not fit[/]" if p.memory_gib is None else f"{p.memory_gib:.1f}",
            number(p.tera_flops, ".2f"), number(p.gigabytes, ".0f"),
            " ".join(f"{n} {kind}" for kind, n in p.collectives.items()) or "–",
            number(p.seconds, ".3f"), number(p.images_per_second, ".0f"),
            "–" if p.mfu is None else f"{100 * p.mfu:.0f} %")
    console = Console()
    console.print(table)
    console.print("seconds, images/s and share of peak are what the compiler can price: compare, "
                  "do not expect", highlight=False)


if __name__ == "__main__":
    cli.run(main)
