r"""Trains and evaluates variants of an experiment with several seeds: one table, one plot.

    maskclippp sweep --config=quickstart --workdir=runs/sweep \
        --vary="train.masks=degraded" --vary="optimizer.image_multiplier=0.05|0.5|5" --seeds=0,1,2

Every `--vary` changes one key of the configuration, or with a colon before its name one argument of
the configuration's file, to each of its values in turn (separated by |); everything else stays.
The first row is the configuration itself. `--override=key=value` holds for all runs.

    maskclippp sweep --encoders="published_clip:name=PE-Core-B-16|coco_stuff_tipsv2_l14" \
        --workdir=runs/encoders --override=data_dir=data --override=sentencepiece=tokenizer.model

How good are encoders before tuning? Each configuration's pre-trained CLIP is evaluated on the true
masks of its data set, with the mean over its templates: mask accuracy and mIoU, beside its speed,
parameters and memory (the whole process on this machine; what an accelerator holds is not in it).

Each run is a `train` of its own in WORKDIR/<variant>/seed<k>; one that has ended is not repeated,
so the same line started again goes on, and further variants or seeds may be added to it. What was
made with another configuration is refused.
"""

from absl import flags

POSITIONAL, BUCKETS = "", ("workdir",)
MEMORY = "a smaller --config.train.batch_size, or --config.remat=full, takes less"

# A path, not a configuration: the runs read it.
CONFIG = flags.DEFINE_string("config", None, "name or file of the "
                             "experiment, with its argument if any")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs, the table and the plot")
VARY = flags.DEFINE_multi_string("vary", [], "key=value|value|..., :argument=value|value|...")
OVERRIDE = flags.DEFINE_multi_string("override", [], "key=value for all runs")
ENCODERS = flags.DEFINE_string("encoders", None, "configurations to compare before tuning, "
                               "separated by |; nothing is trained")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "one run of each variant for each")
JOBS = flags.DEFINE_integer("jobs", 1, "runs at the same time", lower_bound=1)


def main(arguments):
    from maskclippp_jax.runtime import storage
    from maskclippp_jax.training import sweeps

    del arguments
    if ENCODERS.value:
        if not WORKDIR.value or CONFIG.value or VARY.value:
            raise ValueError("--encoders wants --workdir, and neither --config nor --vary")
        sweeps.compare_encoders(ENCODERS.value.split("|"), storage.path(WORKDIR.value),
                                OVERRIDE.value)
        return
    if not CONFIG.value or not WORKDIR.value:
        raise ValueError("got no --config or no --workdir; see --help")
    if not all(seed.isdigit() for seed in SEEDS.value) or not SEEDS.value:
        raise ValueError(f"--seeds is {','.join(SEEDS.value)!r}, wanted numbers such as 0,1,2")
    if len(set(map(int, SEEDS.value))) < len(SEEDS.value):
        raise ValueError(f"--seeds is {','.join(SEEDS.value)}, which names one twice; keep one")
    sweeps.run(CONFIG.value, storage.path(WORKDIR.value), vary=VARY.value,
               overrides=OVERRIDE.value, seeds=SEEDS.value, jobs=JOBS.value)
