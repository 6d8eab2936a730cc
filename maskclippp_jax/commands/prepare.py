"""Makes a data set: python -m maskclippp_jax.prepare NAME... --raw_dir=DOWNLOADS --data_dir=data

Reads the official archives (or the folders they unpack to) directly. Can be stopped and started
again. `--list` shows what there is. Own data:

    python -m maskclippp_jax.prepare folder --images=DIR --labels=DIR --names=FILE --name=mine

`--labels` holds label maps, folders of masks or JSON files, or is a JSON file in COCO's form; see
data/prepare/folder.py. `--show=K` draws K pictures of each split as training or evaluation gets
them, with their masks and names.
"""

import pathlib
import re
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from maskclippp_jax import cli
from maskclippp_jax.data import build, catalogue, records
from maskclippp_jax.data.prepare import folder as own_data
from maskclippp_jax.vocabulary import Vocabulary

RAW_DIR = flags.DEFINE_string("raw_dir", None, "folder with the official archives")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "folder of the prepared data sets")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "make a data set anew that exists")
STRICT = flags.DEFINE_bool("strict", False, "refuse archives with another number of pictures, "
                           "and pictures or labels without a partner")
LIST = flags.DEFINE_bool("list", False, "show all data sets and stop")
SHOW = flags.DEFINE_integer("show", 0, "draw this many pictures of each split", lower_bound=0)
IMAGES = flags.DEFINE_string("images", None, "own data: folder of the pictures")
LABELS = flags.DEFINE_string("labels", None, "own data: folder of the annotations, or a JSON file")
NAMES = flags.DEFINE_string("names", None, "own data: names file, one class a line")
NAME = flags.DEFINE_string("name", "folder", "own data: name of the data set")
VALIDATION = flags.DEFINE_string("validation", "0", "own data: share of the pictures that are for "
                                 "validation, or a file with their names")
VOID = flags.DEFINE_list("void", ["255"], "own data: numbers in label maps that mean nothing")

_OWN = ("images", "labels", "names", "name", "validation", "void")


def main(names):
    console = Console()
    if LIST.value:
        list_datasets(console)
        return
    unknown = [n for n in names if n not in catalogue.DATASETS and n != "folder"]
    if not names or unknown:
        raise ValueError(f"got {' '.join(unknown) or 'no name'}, wanted some of "
                         f"{', '.join(catalogue.DATASETS)}, or folder; see --list")
    for name in names:
        if name == "folder":
            prepare_folder(console)
        else:
            prepare(catalogue.DATASETS[name], console)


def list_datasets(console: Console) -> None:
    """Prints what there is, and what is needed for it."""
    line = lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False)
    line("--raw_dir holds the archives, or the folders they unpack to.\n")
    for d in catalogue.DATASETS.values():
        counts = ", ".join(f"{n} {split}" for split, n in d.published.items())
        line(f"{d.name}: {d.title}; {d.kind}, {counts}")
        line(f"    licence: {d.licence}; from: {d.download}")
        if d.expected:
            line(f"    --raw_dir holds {d.expected}")
    line("folder: your own pictures; see --help for --images, --labels, --names, --name, "
         "--validation, --void")


def prepare(dataset: catalogue.Dataset, console: Console) -> None:
    """Makes one of the known data sets."""
    for flag in _OWN:
        if flags.FLAGS[flag].present:
            raise ValueError(f"--{flag} is for own data (prepare folder ...), not for "
                             f"{dataset.name}")
    if _exists(dataset.name, console):
        return
    reading = dataset.read(RAW_DIR.value)
    if not any(reading.splits.values()):
        raise FileNotFoundError(f"no picture of {dataset.name} with its annotation in "
                                f"{RAW_DIR.value}, which {_archives_in(RAW_DIR.value)}; it should "
                                f"hold {dataset.expected}")

    def count(numbers: dict[str, int]):
        for split, published in dataset.published.items():
            if numbers.get(split, 0) != published:
                _complain(f"{dataset.name} {split}: found {numbers.get(split, 0)} pictures, the "
                          f"published set has {published}", console)

    if not dataset.tiles:
        count({split: len(items) for split, items in reading.splits.items()})
    _write(dataset.name, Vocabulary.shipped(dataset.vocabulary), dataset.kind, reading,
           dataset.title, console, check=lambda summary: dataset.tiles and count(
               {split: s.images for split, s in summary.items()}))


def prepare_folder(console: Console) -> None:
    """Makes a data set of a user's own files."""
    for flag in ("images", "labels"):
        if not flags.FLAGS[flag].value:
            raise ValueError(f"got no --{flag}; write: prepare folder --images=DIR --labels=DIR "
                             "--names=FILE")
    name = NAME.value
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in catalogue.DATASETS:
        raise ValueError(f"--name={name} cannot be the name of a data set of your own; give one in "
                         "small letters, digits and _ that is not taken (see --list)")
    if not all(v.strip().isdigit() for v in VOID.value):
        raise ValueError(f"--void={','.join(VOID.value)} is no list of numbers like 0,255")
    if _exists(name, console):
        return
    own = own_data.read(IMAGES.value, LABELS.value, NAMES.value, void=list(map(int, VOID.value)),
                        validation=VALIDATION.value)
    if not own.reading.splits:
        raise FileNotFoundError(f"none of the pictures that {LABELS.value} annotates is in "
                                f"{IMAGES.value}")
    _write(name, own.vocabulary, own.kind, own.reading, f"own data: {IMAGES.value}", console,
           own_names=True)


def _exists(name: str, console: Console) -> bool:
    folder = pathlib.Path(DATA_DIR.value) / name / records.VERSION
    if not (folder / "dataset_info.json").exists() or OVERWRITE.value:
        return False
    console.print(f"{folder} exists already; --overwrite makes it anew")
    show(name, console)
    return True


def _write(name: str, vocabulary: Vocabulary, kind: str, reading: build.Reading, title: str,
           console: Console, **kw) -> None:
    """Builds the data set, prints what it holds, and draws it if asked to."""
    for sentence in reading.missing:
        _complain(f"{name}: {sentence}", console)
    splits = {split: items for split, items in reading.splits.items() if items}
    try:
        summary = build.build(
            DATA_DIR.value, name, vocabulary, kind, reading._replace(splits=splits),
            description=title, overwrite=OVERWRITE.value, **kw)
    except build.BadPictures as error:
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        raise
    table = Table("split", "images", "masks", "classes", "smallest", "largest", "MB",
                  title=f"{name} ({kind}) in {pathlib.Path(DATA_DIR.value, name)}")
    for split, s in summary.items():
        size = lambda shape: f"{shape[1]}x{shape[0]}"
        table.add_row(split, f"{s.images}", f"{s.segments}",
                      f"{len(s.classes)} of {vocabulary.num_classes}", size(s.smallest),
                      size(s.largest), f"{s.bytes / 1e6:.1f}")
        if s.dropped:
            console.print(f"{name} {split}: left out {s.dropped} pictures without any class, as "
                          "the published preparation does")
    console.print(table)
    show(name, console)


def _complain(message: str, console: Console) -> None:
    if STRICT.value:
        raise ValueError(message + "; complete the files, or leave --strict out")
    console.print(f"[yellow]warning:[/] {message}; going on with what is there", highlight=False,
                  soft_wrap=True)


def _archives_in(raw_dir: str) -> str:
    found = sorted(p.name for p in pathlib.Path(raw_dir).glob("*")
                   if re.search(r"\.(zip|tar|tgz|tar\.gz|rar|7z)$", p.name))
    return f"holds the archives {', '.join(found[:8])}" if found else "holds no archive"


def show(name: str, console: Console) -> None:
    """Writes a contact sheet of each split beside the data set, if --show asks for it."""
    if not SHOW.value:
        return
    from maskclippp_jax import contact_sheet  # draws, which only this needs

    for path in contact_sheet.write(DATA_DIR.value, name, SHOW.value):
        console.print(f"drew {path}")


if __name__ == "__main__":
    cli.run(main, positional=True)
