"""Makes prepared data sets and tells what they hold; `prepare` on the command line."""

import functools
import pathlib
import re
import sys
import typing

from rich.table import Table
from rich.text import Text

from maskclippp_jax.data import build, catalogue, records, tiling
from maskclippp_jax.data.prepare import folder
from maskclippp_jax.runtime import console
from maskclippp_jax.runtime.console import counted
from maskclippp_jax.vocabulary import Vocabulary

_CLASSES = 40  # of a table
_TILES = 16    # of a large picture, about


class Options(typing.NamedTuple):
    """What holds for every data set."""

    data_dir: str          # folder of the prepared data sets
    overwrite: bool = False  # whether one that exists is made anew
    strict: bool = False   # whether warnings are errors
    show: int = 0          # so many pictures of each split are drawn


def list_datasets() -> None:
    """Prints what there is, and what is needed for it."""
    line = console.say
    line("--raw_dir holds the archives, or the folders they unpack to.\n")
    for d in catalogue.DATASETS.values():
        counts = ", ".join(f"{n} {split}" for split, n in d.published.items())
        line(f"{d.name}: {d.title}; {d.kind}, {counts}")
        line(f"    licence: {d.licence}; from: {d.download}")
        if d.expected:
            line(f"    --raw_dir holds {d.expected}")
    line("folder: your own pictures; see --help for --images, --labels, --names, --name, "
         "--format, --validation, --group, --nothing, --leave_out, --crowd, --tiles")


def prepare(dataset: catalogue.Dataset, raw_dir: str | None, options: Options) -> None:
    """Makes one of the known data sets of what is in `raw_dir`."""
    if _exists(dataset.name, options):
        return
    reading = dataset.read(raw_dir)
    if not any(reading.splits.values()):
        raise FileNotFoundError(f"no picture of {dataset.name} with its annotation in "
                                f"{raw_dir}, which {_archives_in(raw_dir)}; it should "
                                f"hold {dataset.expected}")

    def count(numbers: dict[str, int]):
        for split, published in dataset.published.items():
            if numbers.get(split, 0) != published:
                _complain(f"{dataset.name} {split}: found {numbers.get(split, 0)} pictures, the "
                          f"published set has {published}", options)

    if not dataset.tiles:
        count({split: len(items) for split, items in reading.splits.items()})
    _write(dataset.name, Vocabulary.shipped(dataset.vocabulary), dataset.kind, reading,
           dataset.title, options, check=lambda summary: dataset.tiles and count(
               {split: s.images for split, s in summary.items()}))


class OwnData(typing.NamedTuple):
    """A user's own files; see `folder.read`."""

    images: str | None
    labels: str | None
    names: str | None
    name: str
    choices: folder.Choices
    tiles: tiling.Tiles | None = None  # None: pictures stay whole


def prepare_folder(own: OwnData, options: Options) -> None:
    """Makes a data set of a user's own files."""
    for flag in ("images", "labels"):
        if not getattr(own, flag):
            raise ValueError(f"got no --{flag}; write: prepare folder --images=DIR --labels=DIR "
                             "--names=FILE")
    name = own.name
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in catalogue.DATASETS:
        raise ValueError(f"--name={name} cannot be the name of a data set of your own; give one in "
                         "small letters, digits and _ that is not taken (see --list)")
    if own.tiles:
        tiling.check(own.tiles)
    if _exists(name, options):
        _tell_of_changes(own, options)
        return
    found = _read(own)
    _write(name, found.vocabulary, found.kind, found.reading, f"own data: {own.images}", options,
           own_names=True, check=_check_masks)


def _read(own: OwnData) -> folder.OwnData:
    """What the files hold, cut into tiles if that is wanted."""
    found = folder.read(own.images, own.labels, own.names, own.choices)
    reading = found.reading
    if not reading.splits:
        raise FileNotFoundError(f"none of the pictures that {own.labels} annotates is in "
                                f"{own.images}")
    if own.tiles is None:
        return found
    # What has no mask teaches nothing, but belongs to a picture that is joined again.
    splits = {split: [(split != "train", item) for item in items]
              for split, items in reading.splits.items()}
    make = functools.partial(tiling.cut, reading.make_records, own.tiles)
    return found._replace(reading=reading._replace(
        splits=splits, make_records=make, tiles=tuple(own.tiles), records_each=_TILES))


def _tell_of_changes(own: OwnData, options: Options) -> None:
    """Says if an own data set was made of other files than those that are there now."""
    try:
        found = _read(own)
    except (ValueError, FileNotFoundError) as error:
        _complain(f"{own.name} cannot be compared with what it would be made from now: {error}",
                  options)
        return
    if build.made_of_others(options.data_dir, own.name, found.vocabulary, found.kind,
                            found.reading):
        _complain(f"{own.name} was made from other labels, pictures or settings than these; "
                  "--overwrite makes it anew", options)


def _exists(name: str, options: Options) -> bool:
    place = pathlib.Path(options.data_dir) / name / records.VERSION
    if options.overwrite or not build.is_there(options.data_dir, name):
        return False
    console.say(f"{place} exists already; --overwrite makes it anew")
    show(name, options)
    return True


def _write(name: str, vocabulary: Vocabulary, kind: str, reading: build.Reading, title: str,
           options: Options, *, own_names: bool = False, check=lambda summary: None) -> None:
    """Builds the data set, prints what it holds, and draws it if asked to."""
    for note in reading.notes:
        console.say(f"{name}: {note}")
    for sentence in reading.missing:
        _complain(f"{name}: {sentence}", options)
    splits = {split: items for split, items in reading.splits.items() if items}
    try:
        summary = build.build(
            options.data_dir, name, vocabulary, kind, reading._replace(splits=splits),
            description=title, own_names=own_names, overwrite=options.overwrite, check=check)
    except build.BadPictures as error:
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        raise
    if own_names:
        _tell_what_can_be_learnt(name, vocabulary, summary, options)
    table = Table("split", "images", "masks", "classes", "smallest", "largest", "MB",
                  title=f"{name} ({kind}) in {pathlib.Path(options.data_dir, name)}")
    for split, s in summary.items():
        size = lambda shape: f"{shape[1]}x{shape[0]}"
        table.add_row(split, f"{s.images}", f"{s.segments}",
                      f"{len(s.classes)} of {vocabulary.num_classes}", size(s.smallest),
                      size(s.largest), f"{s.bytes / 1e6:.1f}")
        if s.dropped:
            console.say(f"{name} {split}: left out {counted(s.dropped, 'picture')} without any "
                        "class, as the published preparation does")
    console.show(table)
    show(name, options)


def _check_masks(summary: dict[str, build.Summary]) -> None:
    """Own data from which nothing can be learnt, and with which nothing can be measured."""
    if any(s.usable for s in summary.values()):
        return
    crowds, tiny = (sum(getattr(s, k) for s in summary.values()) for k in ("crowds", "tiny"))
    if crowds:
        raise ValueError(f"all masks ({crowds}) are marked as crowds (iscrowd), which teach "
                         "nothing; if they are masks of single things, as CVAT's brush makes them, "
                         "give --crowd=keep")
    if tiny:
        examples = next(s.examples for s in summary.values() if s.examples)
        raise ValueError(f"none of the {tiny} annotations has a mask that can be seen "
                         f"({', '.join(examples)}, ...); are they boxes only? draw or export "
                         "polygons or masks")
    raise ValueError("there is no annotation at all; give labels that belong to the pictures")


def _tell_what_can_be_learnt(name: str, vocabulary: Vocabulary, summary: dict[str, build.Summary],
                             options: Options) -> None:
    """Masks of every class, and warnings about those that teach nothing."""
    table = Table("class", *summary, title=f"{name}: masks that can be learnt")
    counts = [[s.usable.get(c, 0) for s in summary.values()]
              for c in range(vocabulary.num_classes)]
    for names, row in list(zip(vocabulary.classes, counts))[:_CLASSES]:
        table.add_row(names[0], *(Text(f"{n}", "" if n else "red") for n in row))
    if len(counts) > _CLASSES:
        table.add_row(f"and {len(counts) - _CLASSES} more", *("" for _ in summary))
    console.show(table)
    for split, s in summary.items():
        absent = [n[0] for c, n in enumerate(vocabulary.classes) if not s.usable.get(c)]
        if absent:
            shown = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
            _complain(f"{name} {split}: {len(absent)} of {vocabulary.num_classes} classes have no "
                      f"mask: {shown}", options)
        if s.crowds:
            _complain(f"{name} {split}: nothing is learnt from {counted(s.crowds, 'mask')} "
                      "marked as crowds (iscrowd); --crowd=keep takes them like the others",
                      options)
        if s.tiny:
            _complain(f"{name} {split}: of {counted(s.tiny, 'mask')} less than {records.LEARNABLE} "
                      f"pixels show (they are empty, tiny, or covered): {', '.join(s.examples)}"
                      f"{', ...' if s.tiny > len(s.examples) else ''}", options)


def _complain(message: str, options: Options) -> None:
    if options.strict:
        raise ValueError(message + "; complete the files, or leave --strict out")
    console.say(("warning:", "yellow"), f" {message}; going on with what is there")


def _archives_in(raw_dir: str) -> str:
    found = sorted(p.name for p in pathlib.Path(raw_dir).glob("*")
                   if re.search(r"\.(zip|tar|tgz|tar\.gz|rar|7z)$", p.name))
    return f"holds the archives {', '.join(found[:8])}" if found else "holds no archive"


def show(name: str, options: Options) -> None:
    """Writes a contact sheet of each split beside the data set, if that is wanted."""
    if not options.show:
        return
    from maskclippp_jax.data import contact_sheet

    for path in contact_sheet.write(options.data_dir, name, options.show):
        console.say(f"drew {path}")
