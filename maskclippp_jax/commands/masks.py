r"""Bundles of masks: has a generator make them, looks at them, turns them from and to plain files.

    maskclippp masks export --generator=eomt-l-640 --dataset=ade20k_150 --output=B
    maskclippp masks export --config=eval/coco_stuff_eva02_l14_336_maftp_l:ade20k_847 \
        --generator=maftp-l --output=B
    maskclippp masks inspect --bundle=B --dataset=ade20k_150
    maskclippp masks from_files --masks="sam/{id}.json" --bundle=B --dataset=...
    maskclippp masks to_files --masks="out/{id}.png" --bundle=B
    maskclippp masks pictures --output=DIR --dataset=...

`export` runs a generator (published name, file, folder, or hf://owner/name) on the pictures of a
prepared data set; the same line again goes on after a stop. With `--config` these are the pictures
of `config.eval`, brought to the generator at the sizes of that evaluation, as its published
evaluations of MaskCLIP++ do; else as its authors do. With `--config.eval.short_sides` or
`--config.eval.flip` there is a bundle for each version in the folder. `evaluate --bundle` reads
them, and `evaluate --generator` does without.

`inspect` reads a whole bundle and, if a data set is given, compares the two. Files for `from_files`
are label maps (.png, .tif, .npy; every number but those of `--nothing` is a mask), JSON with run
lengths or polygons, of SAM too, arrays of masks (.npy, .npz), or folders with a PNG for each mask
("masks/{id}"). `pictures` writes the pictures of a prepared data set as files
named by their ids: what the scripts in launch/export, or any other program, should make masks of.
"""

from absl import flags, logging

from maskclippp_jax.runtime import cli

POSITIONAL, BUCKETS = "export|inspect|from_files|to_files|pictures", ("generator",)
FOLDERS = ("output",)

CONFIG = cli.define_config("whose evaluation the masks of `export` are for")

BUNDLE = flags.DEFINE_string("bundle", None, "folder of the bundle")
MASKS = flags.DEFINE_string("masks", None, "pattern of files of masks; {id} is a picture's id, "
                            "characters that files cannot have encoded as in URLs")
DATASET = flags.DEFINE_string("dataset", None, "prepared data set")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "folder of the prepared data sets")
SPLIT = flags.DEFINE_string("split", "validation", "of the data set")
ALLOW_MISSING = flags.DEFINE_bool("allow_missing", False, "pictures of the data set may be without "
                                  "masks")
OUTPUT = flags.DEFINE_string("output", None, "folder for the bundle of `export`, or for pictures")
GENERATOR = flags.DEFINE_string("generator", None, "published name, file, folder, or "
                                "hf://owner/name")
DTYPE = flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "of the mask logits that "
                          "`export` stores")
NOTHING = cli.define_nothing()
MAX_PIXELS = cli.define_max_pixels()


def main(names):
    from maskclippp_jax.data import images

    images.limit_pixels(MAX_PIXELS.value)
    commands = dict(export=export, inspect=inspect, from_files=from_files, to_files=to_files,
                    pictures=pictures)
    if len(names) != 1 or names[0] not in commands:
        raise ValueError(f"got {' '.join(names) or 'no command'}, wanted one of "
                         f"{', '.join(commands)}; see --help")
    commands[names[0]]()


def export() -> None:
    from maskclippp_jax import config as configuration
    from maskclippp_jax.data import records
    from maskclippp_jax.evaluation import augmented
    from maskclippp_jax.naming import generated

    _need("generator", "output")
    place, settings, versions = (DATA_DIR.value, DATASET.value, SPLIT.value), None, augmented.PLAIN
    if CONFIG.value:
        if any(flags.FLAGS[name].present for name in ("dataset", "data_dir", "split")):
            raise ValueError("with --config the data set is that of its evaluation: give "
                             "--config.eval.dataset, --config.eval.split and --config.data_dir")
        config = configuration.check(CONFIG.value, workdir=OUTPUT.value)
        settings, versions = config.eval, augmented.versions_of(config.eval)
        place = config.data_dir, settings.dataset.split(",")[0], settings.split
    elif not DATASET.value:
        raise ValueError("got neither --dataset nor --config, which name the pictures; see --help")
    source = records.open_source(*place)
    folders = augmented.folders_of(OUTPUT.value, versions)
    masks = generated.open_generator(GENERATOR.value, source.records, list(folders), settings)
    for folder, of_version in zip(folders.values(), masks):
        count = generated.export(of_version, folder, float32=DTYPE.value == "float32")
        logging.info("wrote %s, %d pictures", folder, count)


def inspect() -> None:
    from rich.table import Table

    from maskclippp_jax.data import bundle_tools, bundles
    from maskclippp_jax.runtime import console

    _need("bundle")
    bundle = bundles.Bundle(BUNDLE.value)
    rows, missing = bundle_tools.describe(bundle, _source() if DATASET.value else None, _dataset())
    table = Table(title=BUNDLE.value, show_header=False)
    for row in rows:
        table.add_row(*row)
    console.show(table)
    if missing and not ALLOW_MISSING.value:
        raise ValueError(f"{BUNDLE.value} lacks {bundles.some(missing)} of {_dataset()}; export "
                         "them, or count them as void with --allow_missing")


def from_files() -> None:
    from maskclippp_jax.data import bundle_tools
    from maskclippp_jax.runtime import storage

    _need("bundle", "masks", "dataset")
    storage.check_writable(BUNDLE.value, folder=True)
    count = bundle_tools.from_files(BUNDLE.value, MASKS.value, _source(), _dataset(),
                                    nothing=NOTHING.value, allow_missing=ALLOW_MISSING.value)
    logging.info("wrote %s, %d pictures", BUNDLE.value, count)


def to_files() -> None:
    from maskclippp_jax.data import bundle_tools, bundles
    from maskclippp_jax.runtime import storage

    _need("bundle", "masks")
    storage.check_writable(MASKS.value.partition("{id}")[0] or ".")
    bundle = bundles.Bundle(BUNDLE.value)
    bundle_tools.to_files(bundle, MASKS.value)
    logging.info("wrote %d files %s", len(bundle.pictures), MASKS.value)


def pictures() -> None:
    from maskclippp_jax.data import bundle_tools

    _need("output", "dataset")
    bundle_tools.write_pictures(_source(), OUTPUT.value)
    logging.info("wrote the pictures of %s to %s", _dataset(), OUTPUT.value)


def _source():
    from maskclippp_jax.data import records

    return records.open_source(DATA_DIR.value, DATASET.value, SPLIT.value)


def _dataset() -> str:
    return f"{DATASET.value} {SPLIT.value}"


def _need(*names: str) -> None:
    for name in names:
        if not flags.FLAGS[name].value:
            raise ValueError(f"got no --{name}; see --help")
    if "masks" in names and "{id}" not in MASKS.value:
        raise ValueError(f"--masks={MASKS.value} is one file for all pictures; write {{id}} where "
                         "a picture's id stands")
