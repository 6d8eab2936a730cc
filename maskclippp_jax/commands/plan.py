"""Compiles an experiment's real steps, for a TPU slice one does not hold too, and tells their cost.

    maskclippp plan --config=NAME --topology=v5e:4x4 [--workdir=D]
    maskclippp plan --config=NAME --step=evaluation --masks=250
    maskclippp plan --step=generator --generator=fcclip-l --topology=v5e:1x1 --picture=480x640
    maskclippp plan --step=generator --generator=eomt-l-640 --dtype=bfloat16 --batches=1,8

Slices need `jax[tpu]` beside the requirements, but no TPU: the compiler of libtpu runs on any
machine. `--topology=local` compiles for the devices at hand, whatever they are. Memory and FLOPs
are the compiler's own. For TPUs the seconds are the compiler's as well, which leave out the
collectives; for GPUs those of the FLOPs or of the bytes at full speed, whichever take longer. So
does the attention kernel on TPUs, at the share of the matrix unit that a head fills (64 of 128
columns: half the speed). The seconds of collectives are their bytes over the device's links.
Added up, as if nothing overlapped, they compare plans and promise nothing.

`--step=evaluation` is the naming of a generator's masks, with the data sets of `config.eval`, as
one program; `evaluate` runs its parts (resizing, image tower, names, label maps) in turn.
`--step=generator` is a published mask generator's pass over one picture, on one chip, and needs no
configuration. `predict` and `evaluate` run it in float32; `--dtype=bfloat16` is that of
`mc.load_generator`. On an accelerator `predict` takes eight pictures of one padded size at once.
`--batches=4,8,16` gives one row for each number of images a device; `--batches=fit` looks for the
largest that fits, by doubling and bisection, to an eighth. `--sweep` compares meshes and
recomputation (`remat`) of training steps.
"""

import dataclasses

from absl import flags, logging

from maskclippp_jax.runtime import cli

POSITIONAL, BUCKETS = "", ("workdir",)

CONFIG = cli.define_config("the experiment")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "TPU slice, e.g. v5e:4x4, v6e:16x16; "
                               "or 'local', the devices at hand")
STEP = flags.DEFINE_enum("step", "training", ["training", "evaluation", "generator"],
                        "what is compiled")
GENERATOR = flags.DEFINE_string("generator", None, "of --step=generator: the name of a published "
                                "one, see `maskclippp convert --list`")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "of a generator's arithmetic; "
                          "left out: float32")
PICTURE = flags.DEFINE_string("picture", "512x683", "of an evaluation or a generator: height x "
                              "width as stored")
MASKS = flags.DEFINE_integer("masks", 100, "of an evaluation: masks of a picture", lower_bound=1)
BATCHES = flags.DEFINE_string("batches", None, "images a device: a list such as 4,8, or 'fit'; "
                              "left out: the configuration's batch over all devices")
SWEEP = flags.DEFINE_bool("sweep", False, "compare meshes and recomputation")
WORKDIR = flags.DEFINE_string("workdir", None, "folder for plan.json; left out: only the table")
FAST = flags.DEFINE_bool("fast", False, "compile with less care: sooner, slightly pessimistic")


def main(arguments):
    from maskclippp_jax import config as configuration
    from maskclippp_jax.drawing import report
    from maskclippp_jax.runtime import storage
    from maskclippp_jax.training import plans

    del arguments
    if SWEEP.value and STEP.value != "training":
        raise ValueError("--sweep compares training steps; leave it out with --step=evaluation")
    if (STEP.value == "generator") != bool(GENERATOR.value):
        raise ValueError("--generator=NAME and --step=generator belong together; give both or none")
    if DTYPE.value and STEP.value != "generator":
        raise ValueError("--dtype is for --step=generator; an experiment has its own, "
                         f"--config.dtype={DTYPE.value}")
    if STEP.value == "generator":
        if CONFIG.value is not None:
            raise ValueError("a generator has no configuration; leave --config out")
        found = plans.compare_generator(
            GENERATOR.value, TOPOLOGY.value, batches=read_batches(BATCHES.value),
            picture=read_picture(PICTURE.value), dtype=DTYPE.value or "float32", fast=FAST.value)
    else:
        found = plans.compare(
            CONFIG.value, TOPOLOGY.value, step=STEP.value, batches=read_batches(BATCHES.value),
            sweep=SWEEP.value, picture=read_picture(PICTURE.value), num_masks=MASKS.value,
            fast=FAST.value)
    plans.show(found)
    if WORKDIR.value:
        workdir = storage.path(WORKDIR.value)
        workdir.mkdir(parents=True, exist_ok=True)
        report.write_json(workdir / "plan.json", dict(
            config=CONFIG.value and configuration.to_json(CONFIG.value),
            plans=[dataclasses.asdict(p) for p in found]))
        logging.info("wrote %s", workdir / "plan.json")


def read_picture(given: str) -> tuple[int, int]:
    """The numbers of --picture."""
    sides = given.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise ValueError(f"--picture is {given!r}, wanted height x width such as 512x683")
    return int(sides[0]), int(sides[1])


def read_batches(given: str | None) -> list[int] | str | None:
    """The numbers of --batches, ascending."""
    if given in (None, "fit"):
        return given
    try:
        found = sorted(int(n) for n in given.split(","))
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise ValueError(f"--batches is {given!r}, wanted numbers such as 4,8, or 'fit'")
    return found
