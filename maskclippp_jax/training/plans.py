"""Plans: an experiment's compiled steps, for devices one need not hold, and what they cost.

`plan` on the command line tells where the numbers come from.
"""

import dataclasses
import itertools
import os
import time
import typing

import jax
from absl import logging
from rich.table import Table
from rich.text import Text

from maskclippp_jax import config as configuration
from maskclippp_jax.runtime import console, devices, sharding
from maskclippp_jax.training import compiled_step
from maskclippp_jax.weights import published_generators

LOCAL = "local"
_MOST = 256  # images a chip `fit` tries


@dataclasses.dataclass(frozen=True)
class Plan:
    """One compiled step; per chip unless it says otherwise. None: does not fit, or not known."""

    step: str
    topology: str
    chips: int
    data: int
    fsdp: int
    remat: str
    images_per_chip: int
    fits: bool
    available_gib: float | None
    memory_gib: float | None = None
    tera_flops: float | None = None
    gigabytes: float | None = None  # read and written in the chip's memory
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)  # by kind, how many
    collective_gigabytes: dict[str, float] = dataclasses.field(default_factory=dict)  # results
    seconds: float | None = None    # of computing
    collective_seconds: float | None = None  # at the full speed of the links
    images_per_second: float | None = None  # of the whole slice, if these seconds were all
    mfu: float | None = None        # share of the peak FLOP/s, if these seconds were all
    compile_seconds: float = 0.0


def compile_only() -> None:
    """Before JAX looks for devices: there are none, TPUs are only compiled for.

    The last two variables keep libtpu quiet.
    """
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
                      TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-4")


def make_mesh(fsdp: int, topology: str) -> jax.sharding.Mesh:
    return sharding.make_mesh(fsdp, None if topology == LOCAL else topology)


def compare(config, topology: str, *, step: str, batches: typing.Sequence[int] | str | None = None,
            sweep: bool = False, picture: tuple[int, int] = (512, 683), num_masks: int = 100,
            fast: bool = False) -> list[Plan]:
    """Plans of an experiment's step for devices one need not hold.

    Args:
      config: the experiment; no weights are read.
      topology: TPU slice, such as v5e:4x4, or "local".
      step: "training", or "evaluation" of a generator's masks.
      batches: images a device; "fit": the largest number that fits; None: the experiment's batch
        over all devices.
      sweep: whether meshes and recomputation of a training step are compared.
      picture: height and width of an evaluation's pictures as stored.
      num_masks: of such a picture.
      fast: whether to compile with less care: sooner, slightly pessimistic.

    Raises:
      ValueError: the configuration cannot be used, or there is no such slice.
    """
    if config is not None:
        config = config.copy_and_resolve_references()
        config.weights = config.weights or "random"
    config = configuration.check(config, workdir="unused")
    training = step == "training"
    if topology != LOCAL:
        compile_only()
    if fast:
        jax.config.update("jax_optimization_level", "O1")
    chips = make_mesh(1, topology).size
    meshes, remats = [config.mesh.fsdp if training else 1], [config.remat]
    if sweep:
        meshes = sorted({1, min(chips, 4), chips})
        remats = list(configuration.REMAT)
    plans: list[Plan] = []
    for fsdp, remat in itertools.product(meshes, remats):
        settings = config.copy_and_resolve_references().unlock()
        settings.mesh.fsdp, settings.remat = fsdp, remat

        def plan(images: int) -> Plan:
            logging.info("compiling for %s: %d x %d, remat %s, %d images a chip", topology,
                         chips // fsdp, fsdp, remat, images)
            if training:
                return plan_training(settings, topology, images)
            return plan_evaluation(settings, topology, images, picture, num_masks)

        plans += _each(plan, batches or [_own_batch(settings, training, topology, chips)])
    return plans


def _own_batch(config, training: bool, topology: str, chips: int) -> int:
    """Images a chip of the experiment's batch."""
    if not training:  # fills its last batch up, and so any batch
        return -(-config.eval.batch_size // chips)
    if config.train.batch_size % chips:
        raise ValueError(f"train.batch_size is {config.train.batch_size}, but {topology} has "
                         f"{chips} devices; give --batches=1,2,4 (images a chip)")
    return config.train.batch_size // chips


def plan_training(config, topology: str, images_per_chip: int) -> Plan:
    """Compiles the training step of an experiment."""
    mesh = make_mesh(config.mesh.fsdp, topology)
    return _plan("training", config.remat, topology, mesh, images_per_chip, lambda:
                 compiled_step.lower_training(config, mesh, images_per_chip * mesh.size))


def plan_evaluation(config, topology: str, images_per_chip: int, picture: tuple[int, int],
                    num_masks: int) -> Plan:
    """Compiles the evaluation of an experiment on masks of a generator."""
    mesh = make_mesh(1, topology)
    return _plan("evaluation", config.remat, topology, mesh, images_per_chip, lambda:
                 compiled_step.lower_evaluation(config, mesh, images_per_chip * mesh.size, picture,
                                                num_masks))


def compare_generator(name: str, topology: str, *,
                      batches: typing.Sequence[int] | str | None = None,
                      picture: tuple[int, int] = (512, 683), dtype: str = "float32",
                      fast: bool = False) -> list[Plan]:
    """Plans of a published mask generator's pass over pictures of one padded size, on one chip.

    Args:
      name: as `published_generators.find` takes it.
      topology: TPU slice, of which one chip is planned, or "local".
      batches: numbers of pictures; "fit": the largest that fits; None: one.
      picture: height and width as stored.
      dtype: of the arithmetic, see `api.load_generator`.
      fast: see `compare`.

    Raises:
      ValueError: no such generator, no such slice, or the picture is too large for it.
    """
    entry = published_generators.find(name)
    if entry is None:
        raise ValueError(f"no published generator {name}{published_generators.nearest(name)}; "
                         "`maskclippp convert --list` shows all")
    if topology != LOCAL:
        compile_only()
    if fast:
        jax.config.update("jax_optimization_level", "O1")
    whole = make_mesh(1, topology)
    one = jax.sharding.Mesh(whole.devices.ravel()[:1].reshape(1, 1), whole.axis_names)

    def plan(images: int) -> Plan:
        logging.info("compiling for %s: %d images", topology, images)
        return _plan(f"generator {entry.name}, {dtype}", "none", topology, one, images,
                     lambda: compiled_step.lower_generator(
                         entry.config, one, picture, batch_size=images,
                         dtype=jax.numpy.dtype(dtype)))

    return _each(plan, batches or [1])


def _each(plan: typing.Callable[[int], Plan], batches: typing.Sequence[int] | str) -> list[Plan]:
    """Plans of numbers of images a chip, or of those that "fit" looks at.

    Where one does not fit, a sentence tells the largest that would; for it one and two images are
    planned as well, unless two other numbers fit.
    """
    found: list[Plan] = []
    if batches != "fit":
        found += [plan(images) for images in batches]
        for images in (1, 2):
            fitting = [p for p in found if p.fits]
            least = min((p.images_per_chip for p in found if not p.fits), default=0)
            if images < least and len(fitting) < 2 and all(
                    p.images_per_chip != images for p in found):
                found.append(plan(images))
        found.sort(key=lambda plan: plan.images_per_chip)
        if not all(p.fits for p in found):
            logging.warning(_what_would_fit(found))
        return found

    def fits(images: int) -> bool:
        found.append(plan(images))
        return found[-1].fits

    logging.info("the largest that fits: %d images a chip",
                 compiled_step.largest_batch(fits, _MOST))
    return sorted(found, key=lambda plan: plan.images_per_chip)


def _what_would_fit(plans: typing.Sequence[Plan]) -> str:
    """A sentence for plans, some of which do not fit: the largest number of images that would.

    That is read off the line through the memory of the two largest that fit, which grows ever less
    steeply with the images.
    """
    least = next(p for p in plans if not p.fits)
    says = f"{least.images_per_chip} images a chip do not fit into {least.available_gib:.4g} GiB"
    fitting = [p for p in plans if p.fits and p.images_per_chip < least.images_per_chip]
    if len(fitting) < 2:
        most = fitting[0].images_per_chip if fitting else 0
        return f"{says}, {most} do" if most else (
            f"{says}; more chips, mesh.fsdp or remat=full leave more room to a training step")
    first, second = fitting[-2:]
    each = max((second.memory_gib - first.memory_gib)
               / (second.images_per_chip - first.images_per_chip), 1e-9)
    most = second.images_per_chip + int((least.available_gib - second.memory_gib) / each)
    return (f"{says}, about {min(most, least.images_per_chip - 1)} would: the compiler counts "
            f"{first.memory_gib:.3g} GiB for {first.images_per_chip} and {second.memory_gib:.3g} "
            f"for {second.images_per_chip}")


def _plan(step: str, remat: str, topology: str, mesh: jax.sharding.Mesh, images_per_chip: int,
          lower: typing.Callable[[], jax.stages.Lowered]) -> Plan:
    device = mesh.devices.flat[0]
    chip = devices.describe(device)
    if chip is None and device.platform == "tpu":
        raise ValueError(f"{topology} has devices of kind {device.device_kind!r}, known are "
                         f"{', '.join(devices.KINDS)}")
    available = devices.memory_gib(device) if topology == LOCAL else chip.memory_gib
    start = time.monotonic()
    plan = Plan(step, topology, mesh.size, mesh.shape["data"], mesh.shape["fsdp"], remat,
                images_per_chip, False, available)
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(plan, compile_seconds=time.monotonic() - start)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    # On a CPU the peak leaves out what lies between arguments and results.
    memory_gib = max(memory.peak_memory_in_bytes, memory.argument_size_in_bytes
                     + memory.output_size_in_bytes - memory.alias_size_in_bytes
                     + memory.temp_size_in_bytes) / 2**30
    program = compiled.as_text()
    found = compiled_step.collectives(program)
    kinds = {kind: [size for k, size in found if k == kind] for kind, _ in found}
    plan = dataclasses.replace(
        plan, fits=available is None or memory_gib <= available, memory_gib=memory_gib,
        tera_flops=cost["flops"] / 1e12, gigabytes=cost["bytes accessed"] / 1e9,
        collectives={kind: len(sizes) for kind, sizes in kinds.items()},
        collective_gigabytes={kind: sum(sizes) / 1e9 for kind, sizes in kinds.items()},
        compile_seconds=time.monotonic() - start)
    if chip is None:
        return plan
    if device.platform == "tpu":
        # The compiler counts -1 for each operation it cannot price; the rest of a step below one
        # second is what is left modulo 1.
        seconds = cost["optimal_seconds"] % 1.0
        # Kernels it prices as they say, as if they filled the matrix unit.
        seconds += sum(max(k.flops / k.used / chip.flops, k.bytes / chip.memory_bytes)
                       - max(k.flops / chip.flops, k.bytes / chip.memory_bytes)
                       for k in compiled_step.kernels(program))
    else:
        seconds = max(cost["flops"] / chip.flops, cost["bytes accessed"] / chip.memory_bytes)
    sent = sum(compiled_step.COLLECTIVES[kind] * size for kind, size in found)
    total = seconds + sent / chip.link_bytes
    return dataclasses.replace(
        plan, seconds=seconds, collective_seconds=sent / chip.link_bytes,
        images_per_second=images_per_chip * mesh.size / total,
        mfu=cost["flops"] / total / chip.flops)


def show(plans: typing.Sequence[Plan]) -> None:
    """The table for people."""
    number = lambda x, form: "–" if x is None else format(x, form)
    table = Table(title=f"{plans[0].step} on {plans[0].topology} ({plans[0].chips} devices of "
                  f"{number(plans[0].available_gib, '.4g')} GiB)")
    for column in ("mesh", "remat", "images a chip", "GiB a chip", "TFLOP", "GB read, written",
                   "GB sent", "ms", "ms sending", "images/s", "of peak"):
        table.add_column(column, justify="right")
    for p in plans:
        ms = lambda seconds: seconds and 1000 * seconds
        memory = "too much" if p.memory_gib is None else f"{p.memory_gib:.1f}"
        table.add_row(
            f"{p.data}x{p.fsdp}", p.remat, f"{p.images_per_chip}",
            Text(memory, "" if p.fits else "red"),
            number(p.tera_flops, ".2f"), number(p.gigabytes, ".0f"),
            number(None if p.memory_gib is None else sum(p.collective_gigabytes.values()), ".2f"),
            number(ms(p.seconds), ".1f"), number(ms(p.collective_seconds), ".1f"),
            number(p.images_per_second, ".0f"), "–" if p.mfu is None else f"{100 * p.mfu:.0f} %")
    console.show(table)
    console.say("times leave out what cannot be priced, and bytes are sent at the full speed of "
                "the links: compare, do not expect")
