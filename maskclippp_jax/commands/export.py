r"""Takes a model away: a folder that names masks without this package.

    maskclippp export --checkpoint=runs/x --vocabulary=ade20k_150 --output=named
    maskclippp export --checkpoint=runs/x --classes="cat;dog,puppy" --generator=eomt-l-640 \
        --output=deploy --dtype=float16 --size=448x336,336x448
    maskclippp export --checkpoint=runs/x --vocabulary=names.txt --format=stablehlo --output=D

The folder holds an image encoder with masks, a classifier of the vocabulary, an EoMT if
`--generator` gives one, their parameters as safetensors, manifest.json with all that a caller must
do before and after, and run.py, which names a picture's masks with the folder alone: with numpy,
Pillow and onnxruntime (or jax). `--format=onnx` is for ONNX Runtime and what else reads ONNX;
`--format=stablehlo`, of `jax.export`, is one artefact for CPUs, CUDA and TPUs. Every program is run
and compared with ours before the folder appears. docs/export.md tells what is in it.
"""

import re

from absl import flags, logging

from maskclippp_jax.runtime import cli

POSITIONAL, BUCKETS = "", ("checkpoint", "generator", "vocabulary")

CONFIG = cli.define_config("the experiment a file belongs to; a run knows its own")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run folder, checkpoint file, 'untuned', or "
                                 "the name of a published MaskCLIP++ or CLIP")
OUTPUT = flags.DEFINE_string("output", None, "folder to write")
FORMAT = flags.DEFINE_enum("format", "onnx", ["onnx", "stablehlo"], "of the programs")
CLASSES = flags.DEFINE_string("classes", None, "names: classes apart by ;, synonyms by ,")
VOCABULARY = flags.DEFINE_string("vocabulary", None, "a shipped vocabulary, or a names file "
                                 "(.txt), one class a line")
GENERATOR = flags.DEFINE_string("generator", None, "an EoMT that finds masks: published name, "
                                "file, folder, or hf://owner/name")
SIZE = flags.DEFINE_list("size", [], "WxH of what the image tower sees, pixels; an encoder for "
                         "each (default: a broad and a high one of 16:9)")
MASKS = flags.DEFINE_integer("masks", None, "of every picture (default: any number)", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", None, "pictures at once, of one size (default: any number)",
                             lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"],
                          "of the arithmetic; bfloat16 for stablehlo only")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace an earlier export")


def main(arguments):
    from maskclippp_jax.vocabulary import Vocabulary

    del arguments
    for flag in ("checkpoint", "output"):
        if not flags.FLAGS[flag].value:
            raise ValueError(f"got no --{flag}; see --help")
    if (CLASSES.value is None) == (VOCABULARY.value is None):
        raise ValueError("give either --classes=\"cat;dog,puppy\" or --vocabulary=ade20k_150")
    vocabulary = (Vocabulary.load(VOCABULARY.value) if CLASSES.value is None
                  else Vocabulary.from_string(CLASSES.value))
    sizes = tuple(map(_size_of, SIZE.value))

    from maskclippp_jax.export import folder  # slow to import, as `api` is

    wishes = folder.Wishes(FORMAT.value, sizes, MASKS.value, BATCH.value, DTYPE.value)
    wishes.check()
    target = folder.check_target(OUTPUT.value, overwrite=OVERWRITE.value)

    from maskclippp_jax import api

    model = api.load(CHECKPOINT.value, CONFIG.value, generator=GENERATOR.value)
    logging.info("loaded %s", model.title)
    checked = model.export(
        OUTPUT.value, vocabulary, format=FORMAT.value, sizes=sizes, num_masks=MASKS.value,
        batch=BATCH.value, dtype=DTYPE.value, overwrite=OVERWRITE.value)
    for name, found in checked.items():
        logging.info("%s.%s: largest difference %.1e (%.0e is allowed); %.3f s of all cores "
                     "for a picture, ours %.3f", name, FORMAT.value, found.difference,
                     folder.TOLERANCES[DTYPE.value], found.seconds, found.ours)
    size = sum(f.stat().st_size for f in target.iterdir())
    logging.info("wrote %s: %.1f MB, for %d classes; try: python %s photo.jpg masks.png",
                 target, size / 1e6, vocabulary.num_classes, target / "run.py")


def _size_of(text: str) -> tuple[int, int]:
    """"448x336" as (width, height)."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.strip())
    if not found:
        raise ValueError(f"got --size={text}, wanted WIDTHxHEIGHT in pixels, like 448x336, several "
                         "separated by commas")
    return int(found[1]), int(found[2])
