"""Tunes a CLIP on masks.

    maskclippp train --config=quickstart --workdir=runs/mine

Started again with the same line it goes on from the last checkpoint, with the data where it was,
and gives the numbers an unbroken run gives. SIGTERM makes it save and end. On several hosts each
one is started with `--distributed` (see runtime/hosts.py).
"""

from absl import flags

from maskclippp_jax.runtime import cli

POSITIONAL, BUCKETS = "", ("workdir",)
MEMORY = ("a smaller --config.train.batch_size takes less, and so do, with the same numbers, "
          "--config.train.accumulate=2, --config.remat=full and more --config.mesh.fsdp; "
          "`maskclippp plan --batches=fit` says what fits")

CONFIG = cli.define_config("the experiment")
DISTRIBUTED = cli.define_distributed()
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; made, or resumed")
PROFILE = flags.DEFINE_string("profile", "", "steps to record in WORKDIR/profile, such as 20-25; "
                              "xprof and TensorBoard show them")
ALLOW_OTHER_DATA = flags.DEFINE_bool("allow_other_data", False, "go on with a run although its "
                                     "data sets or class names have changed")
WANDB = flags.DEFINE_string("wandb", "", "project of Weights & Biases to log to as well")


def main(arguments):
    from maskclippp_jax.runtime import heap, hosts
    from maskclippp_jax.training import loop

    del arguments
    heap.use_first_thread()
    return hosts.together(DISTRIBUTED.value, lambda: loop.tune(
        CONFIG.value, WORKDIR.value, profile=PROFILE.value, wandb=WANDB.value,
        allow_other_data=ALLOW_OTHER_DATA.value))
