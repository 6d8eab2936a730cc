"""Makes a data set: python -m maskclippp_jax.prepare NAME... --raw_dir=DOWNLOADS --data_dir=data

Reads the official archives (or the folders they unpack to) directly. Can be stopped and started
again. `--list` shows what there is.
"""

import pathlib

from absl import flags
from rich.console import Console
from rich.table import Table

from maskclippp_jax import cli
from maskclippp_jax.data import catalogue, records

RAW_DIR = flags.DEFINE_string("raw_dir", None, "folder with the official archives")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "folder of the prepared data sets")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "make a data set anew that exists")
STRICT = flags.DEFINE_bool("strict", False, "refuse archives with another number of pictures")
LIST = flags.DEFINE_bool("list", False, "show all data sets and stop")


def main(names):
    console = Console()
    if LIST.value:
        table = Table("name", "what", "licence", "get it from", "--raw_dir holds")
        for d in catalogue.DATASETS.values():
            table.add_row(d.name, d.title, d.licence, d.download, d.expected or "nothing")
        console.print(table)
        return
    unknown = [n for n in names if n not in catalogue.DATASETS]
    if not names or unknown:
        raise ValueError(f"got {' '.join(unknown) or 'no name'}, wanted some of "
                         f"{', '.join(catalogue.DATASETS)}; see --list")
    for name in names:
        prepare(catalogue.DATASETS[name], console)


def prepare(dataset: catalogue.Dataset, console: Console) -> None:
    """Makes one data set and prints what it holds."""
    folder = pathlib.Path(DATA_DIR.value) / dataset.name / records.VERSION
    if (folder / "dataset_info.json").exists() and not OVERWRITE.value:
        console.print(f"{folder} exists already; --overwrite makes it anew")
        return
    splits, make_record = dataset.read(RAW_DIR.value)
    for split, published in dataset.published.items():
        if len(splits[split]) != published:
            message = (f"{dataset.name} {split}: found {len(splits[split])} pictures, the "
                       f"published set has {published}")
            if STRICT.value:
                raise ValueError(message + "; complete the archives, or leave --strict out")
            console.print(f"[yellow]warning:[/] {message}; going on with what is there")
    if not any(map(len, splits.values())):
        raise FileNotFoundError(f"no picture of {dataset.name} in {RAW_DIR.value}; it should hold "
                                f"{dataset.expected}")
    splits = {split: items for split, items in splits.items() if items}
    summary = records.build(
        DATA_DIR.value, dataset.name, dataset.vocabulary, splits, make_record,
        source=str(RAW_DIR.value), description=dataset.title, overwrite=OVERWRITE.value)
    table = Table("split", "images", "classes", "smallest", "largest", "MB",
                  title=f"{dataset.name} in {folder}")
    for split, s in summary.items():
        size = lambda shape: f"{shape[1]}x{shape[0]}"
        table.add_row(split, f"{s.images}", f"{len(s.classes)}", size(s.smallest), size(s.largest),
                      f"{s.bytes / 1e6:.1f}")
    console.print(table)


if __name__ == "__main__":
    cli.run(main, positional=True)
