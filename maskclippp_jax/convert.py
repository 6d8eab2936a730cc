"""Writes a model under other people's names.

    python -m maskclippp_jax.convert --source=P --output=tuned.safetensors --layout=maskclippp

`--source` is the folder of a training run, or a checkpoint file together with its --config. The
result loads in the public PyTorch reference (layout maskclippp), or as a plain CLIP (layout
eva_clip).
"""

import pathlib

from absl import flags, logging
from ml_collections import config_flags
from safetensors.numpy import save_file

from maskclippp_jax import cli, loading, weights

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment a file belongs to; a run knows its own", lock_config=True)
SOURCE = flags.DEFINE_string("source", None, "run folder or checkpoint file")
OUTPUT = flags.DEFINE_string("output", None, "file to write, .safetensors")
LAYOUT = flags.DEFINE_enum("layout", "maskclippp", sorted(weights.LAYOUTS), "whose names")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace a file that exists")


def main(argv):
    del argv
    for flag in ("source", "output"):
        if not flags.FLAGS[flag].value:
            raise ValueError(f"got no --{flag}; see --help")
    output = pathlib.Path(OUTPUT.value)
    if output.suffix != ".safetensors":
        raise ValueError(f"--output is {output}, wanted a file that ends in .safetensors")
    if output.exists() and not OVERWRITE.value:
        raise FileExistsError(f"{output} exists; give another --output, or --overwrite")
    config = loading.experiment_of(SOURCE.value, CONFIG.value)
    _, params, what = loading.load_checkpoint(SOURCE.value, config)
    named = weights.export(params, LAYOUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    save_file(named, temporary)
    temporary.replace(output)
    logging.info("wrote %s: %d tensors, %.1f MB, from %s", output, len(named),
                 output.stat().st_size / 1e6, what)


if __name__ == "__main__":
    cli.run(main)
