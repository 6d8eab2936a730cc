"""Compiles an experiment's real steps for a TPU slice one does not hold, and tells what they cost.

    python -m maskclippp_jax.plan --config=configs/x.py --topology=v5e:4x4 [--workdir=D]

Needs `jax[tpu]` beside the requirements, but no TPU: the compiler of libtpu runs on any machine.
Memory and FLOPs are the compiler's own. Its seconds leave out what it cannot price (collectives,
custom kernels); the seconds of collectives are their bytes over the chip's links. Added up, as if
nothing overlapped, they compare plans and promise nothing.

`--batches=4,8,16` gives one row for each number of images a chip; `--batches=fit` looks for the
largest that fits, by doubling and bisection, to an eighth. `--sweep` compares meshes and
recomputation (`remat`).
"""

import dataclasses
import itertools
import os
import time
import typing

# Before JAX starts: compile for TPUs, do not look for any (the last two keep libtpu quiet).
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
                  TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-4")

import jax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from maskclippp_jax import cli, compiled_step, config as configuration, devices, report, sharding

CONFIG = config_flags.DEFINE_config_file("config", None, "file of the experiment", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "TPU slice, e.g. v5e:4x4, v6e:16x16")
BATCHES = flags.DEFINE_string("batches", None, "images a chip: a list such as 4,8, or 'fit'; "
                              "left out: train.batch_size over all chips")
SWEEP = flags.DEFINE_bool("sweep", False, "compare meshes and recomputation")
WORKDIR = flags.DEFINE_string("workdir", None, "folder for plan.json; left out: only the table")
FAST = flags.DEFINE_bool("fast", False, "compile with less care: sooner, slightly pessimistic")

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
    collective_gigabytes: dict[str, float]  # by kind, their results
    seconds: float | None           # what the compiler can price
    collective_seconds: float | None  # at the full speed of the links
    images_per_second: float | None  # of the whole slice, if these seconds were all
    mfu: float | None               # share of the peak FLOP/s, if these seconds were all
    compile_seconds: float


def main(argv):
    del argv
    config = CONFIG.value
    if config is not None:  # no weights are read
        config = config.copy_and_resolve_references()
        config.weights = config.weights or "random"
    config = configuration.check(config, workdir=WORKDIR.value or "unused")
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
        found: list[Plan] = []

        def fits(images: int) -> bool:
            logging.info("compiling for %s: %d x %d, remat %s, %d images a chip", TOPOLOGY.value,
                         chips // fsdp, fsdp, remat, images)
            found.append(plan_training(settings, TOPOLOGY.value, images))
            return found[-1].memory_gib is not None

        if BATCHES.value == "fit":
            logging.info("the largest that fits: %d images a chip",
                         compiled_step.largest_batch(fits, _MOST))
        else:
            for images in batches_to_try(settings, chips):
                fits(images)
        plans += sorted(found, key=lambda plan: plan.images_per_chip)
    show(plans)
    if WORKDIR.value:
        workdir = epath.Path(WORKDIR.value)
        workdir.mkdir(parents=True, exist_ok=True)
        report.write_json(workdir / "plan.json", dict(
            config=configuration.to_json(config), plans=[dataclasses.asdict(p) for p in plans]))
        logging.info("wrote %s", workdir / "plan.json")


def batches_to_try(config, chips: int) -> typing.Sequence[int]:
    """Images a chip, ascending."""
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
    chip = devices.describe(device)
    if chip is None:
        raise ValueError(f"{topology} has devices of kind {device.device_kind!r}, known are "
                         f"{', '.join(devices.KINDS)}")
    start = time.monotonic()
    plan = Plan(topology, mesh.size, mesh.shape["data"], mesh.shape["fsdp"], config.remat,
                images_per_chip, None, chip.memory_gib, None, None, {}, {}, None, None, None, None,
                0.0)
    try:
        compiled = compiled_step.lower(config, mesh, images_per_chip * mesh.size).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(plan, compile_seconds=time.monotonic() - start)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    # The compiler counts -1 for each operation it cannot price; the rest of a step below one second
    # is what is left modulo 1.
    seconds = cost["optimal_seconds"] % 1.0
    found = compiled_step.collectives(compiled.as_text())
    sent = sum(compiled_step.COLLECTIVES[kind] * size for kind, size in found)
    total = seconds + sent / chip.link_bytes
    kinds = {kind: [size for k, size in found if k == kind] for kind, _ in found}
    return dataclasses.replace(
        plan, memory_gib=memory.peak_memory_in_bytes / 2**30, tera_flops=cost["flops"] / 1e12,
        gigabytes=cost["bytes accessed"] / 1e9,
        collectives={kind: len(sizes) for kind, sizes in kinds.items()},
        collective_gigabytes={kind: sum(sizes) / 1e9 for kind, sizes in kinds.items()},
        seconds=seconds, collective_seconds=sent / chip.link_bytes,
        images_per_second=images_per_chip * mesh.size / total,
        mfu=cost["flops"] / total / chip.flops, compile_seconds=time.monotonic() - start)


def show(plans: typing.Sequence[Plan]) -> None:
    """The table for people."""
    table = Table(title=f"training on {plans[0].topology} ({plans[0].chips} devices of "
                  f"{plans[0].available_gib} GiB)")
    for column in ("mesh", "remat", "images a chip", "GiB a chip", "TFLOP", "GB read, written",
                   "GB sent", "ms", "ms sending", "images/s", "of peak"):
        table.add_column(column, justify="right")
    number = lambda x, form: "–" if x is None else format(x, form)
    for p in plans:
        fits, ms = p.memory_gib is not None, lambda seconds: seconds and 1000 * seconds
        table.add_row(
            f"{p.data}x{p.fsdp}", p.remat, f"{p.images_per_chip}",
            f"{p.memory_gib:.1f}" if fits else "[red]too much[/]",
            number(p.tera_flops, ".2f"), number(p.gigabytes, ".0f"),
            number(sum(p.collective_gigabytes.values()) if fits else None, ".2f"),
            number(ms(p.seconds), ".1f"), number(ms(p.collective_seconds), ".1f"),
            number(p.images_per_second, ".0f"), "–" if p.mfu is None else f"{100 * p.mfu:.0f} %")
    console = Console()
    console.print(table)
    console.print("times are those the compiler can price, and bytes sent over the speed of the "
                  "links: compare, do not expect", highlight=False)


if __name__ == "__main__":
    cli.run(main)
