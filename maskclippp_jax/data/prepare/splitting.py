"""Which of a user's own pictures are for training, validation and test."""

import collections
import concurrent.futures
import hashlib
import os
import pathlib
import re
import typing

import yaml

from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import coco, paths
from maskclippp_jax.runtime import progress, storage
from maskclippp_jax.runtime.console import counted

Items = list[tuple]  # each starts with the id of a picture and its file

# What people call the parts of a data set.
SPLITS = dict(train="train", training="train", val="validation", valid="validation",
              validation="validation", test="test", testing="test")
_MOST_FILES = 40  # with annotations of a whole split; where there are more, each is of a picture


def divide(reading: Reading, root: pathlib.Path, folders: dict[str, str], validation: str | None,
           group: str | None, ending: str) -> tuple[dict[str, Items], list[str]]:
    """Which pictures are for what, and what is to be said about it.

    Args:
      reading: of one split, "train", or of several that files of annotations make.
      root: folder of all pictures.
      folders: of a data.yaml, see `folders_of_yaml`.
      validation: a share, or a file with names of pictures; None: as the folders say.
      group: see `groups_of`.
      ending: regular expression of the endings of pictures.

    Raises:
      FileNotFoundError, ValueError: a list or a share that is none, or splits beside splits.
    """
    each = [item[0] for items in reading.splits.values() for item in items]
    groups = groups_of(each, group)
    if list(reading.splits) != ["train"]:
        if validation is not None:
            raise ValueError(f"--validation={validation} is for labels that are not split "
                             f"yet; these have {', '.join(reading.splits)}; leave it out")
        if group is not None:
            check_groups(reading.splits, groups, "the files of annotations")
        return reading.splits, []
    items = reading.splits["train"]
    found = by_folder(items, root, folders)
    told = ", ".join(f"{len(part)} {split}" for split, part in (found or {}).items())
    if validation is None:
        check_groups(found or {}, groups, "the folders of the pictures")
        notes = [f"took the folders of the pictures for splits: {told}"] if found else []
        return found or _parts(items, set()), notes
    notes = [f"--validation divides all pictures anew; their folders would give {told}"
             ] if found else []
    try:
        share = float(validation)
    except ValueError:
        listing = pathlib.Path(validation)
        if not listing.is_file():
            raise FileNotFoundError(f"--validation={validation} is no file (with one "
                                    "picture's name a line), nor a share like 0.1") from None
        splits, said = by_list(items, listing, ending)
        check_groups(splits, groups, str(listing))
        return splits, notes + said
    if not 0 <= share <= 1:
        raise ValueError(f"--validation={validation} is no share; give 0 ... 1, or a file")
    splits = by_share(reading, items, share, groups)
    said = f"{len(splits.get('validation', ()))} of {counted(len(items), 'picture')}"
    return splits, [f"--validation={validation} takes {said} for validation", *notes]


def of_name(name: str) -> str | None:
    """The split that one of the words in a name means, "instances_val2017" too; else None."""
    found = {SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def files_in(folder: str) -> dict[str, str]:
    """Files of all annotations of a split each, as Roboflow writes them into folders train, valid.

    Raises:
      ValueError: two of them are of one split.
    """
    root, found = pathlib.Path(folder), {}
    files = [f for f in sorted(root.rglob("*")) if f.suffix in (".json", ".xml")]
    if len(files) > _MOST_FILES:  # of one picture each
        return {}
    for file in files:
        place = file.relative_to(root).with_suffix("").as_posix()
        split = of_name(place)
        mark = b'"categories"' if file.suffix == ".json" else b"<annotations"
        if split is None or mark not in file.read_bytes():
            continue
        if split in found:
            raise ValueError(f"{folder} has two files for {split}: {found[split]} and {file}; give "
                             "a folder with one, or name one file")
        found[split] = str(file)
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def folders_of_yaml(path: str | None) -> dict[str, str]:
    """The ends of folders that a data.yaml of YOLO calls train, val and test, and their splits."""
    if path is None or not path.endswith((".yaml", ".yml")):
        return {}
    content = yaml.safe_load(storage.read_text(path))
    found = {}
    for key, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        given = content.get(key)
        for folder in given if isinstance(given, list) else [given]:
            end = re.sub(r"^(?:\.{0,2}/)+", "", folder.strip()).rstrip("/") if isinstance(
                folder, str) else ""
            if end and not end.endswith(".txt"):
                found[end] = split
    return found if len(set(found.values())) == len(found) > 1 else {}


def by_folder(items: Items, root: pathlib.Path, named: dict[str, str] | None = None
              ) -> dict[str, Items] | None:
    """Splits after the folders of the pictures; None if not all of them lie in such a folder.

    Args:
      items: see above.
      root: the folder of all pictures.
      named: ends of folders, and the split that each means, as a data.yaml of YOLO says.
    """
    splits: dict[str, Items] = {"train": [], "validation": [], "test": []}
    for item in items:
        place = pathlib.Path(item[1].path).parent
        split = next((s for end, s in (named or {}).items()
                      if place.as_posix().endswith(f"/{end}")), None)
        below = place.relative_to(root).as_posix() if place.is_relative_to(root) else ""
        split = split or next((SPLITS[part] for part in below.lower().split("/")
                               if part in SPLITS), None)
        if split is None:
            return None
        splits[split].append(item)
    found = {split: items for split, items in splits.items() if items}
    return found if len(found) > 1 else None


def by_list(items: Items, listing: pathlib.Path, ending: str) -> tuple[dict[str, Items], list[str]]:
    """Pictures that a text file names, one a line, are for validation; and what is to be said.

    Args:
      items: see above.
      listing: the file; its paths may be of elsewhere.
      ending: regular expression of the endings of pictures.

    Raises:
      ValueError: it names others.
    """
    known, unknown, chosen = paths.Paths({item[0]: item[0] for item in items}), [], set()
    for line in storage.read_text(listing).splitlines():
        name = re.sub(f"{ending}$", "", line.strip())
        found = name and known.find(name)
        if found:
            chosen.add(found[1])
        elif name:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{listing} names {counted(len(unknown), 'picture')} that are not there "
                         f"or have no annotation, e.g. {', '.join(unknown[:3])}")
    if not chosen:
        raise ValueError(f"{listing} names no picture; write one a line, or leave --validation out")
    return _parts(items, chosen), [f"{listing}: {said}" for said in known.said("line")]


def by_share(reading: Reading, items: Items, share: float, groups: dict[str, str]
             ) -> dict[str, Items]:
    """Groups of pictures whose names have the smallest hashes are for validation.

    A class that several groups have is in both parts: groups with rare classes change sides, and
    others come back for them, if that takes no class away. Neither part is empty for being too
    small, if there are two groups.

    Args:
      reading: makes records of the items, which tell the classes.
      items: see above.
      share: of the pictures that are for validation, 0 ... 1.
      groups: the group of each picture, by its id.
    """
    members = collections.Counter(groups.values())
    order = sorted(members, key=lambda name: hashlib.sha1(name.encode()).digest())
    wanted, chosen, count = round(share * len(items)), set(), 0
    for name in order:
        if abs(count + members[name] - wanted) < abs(count - wanted):
            chosen.add(name)
            count += members[name]
    if not chosen and share > 0 and len(order) > 1:
        chosen = {min(order, key=members.get)}
    if len(chosen) == len(order) > 1 and share < 1:
        chosen.remove(min(order, key=members.get))
    if chosen and len(chosen) < len(order):
        classes: dict[str, set[int]] = {name: set() for name in order}
        for item, found in zip(items, _classes_of(reading, items)):
            classes[groups[item[0]]] |= found
        chosen = _with_rare_classes(order, chosen, classes, members)
    return _parts(items, {key for key, name in groups.items() if name in chosen})


def groups_of(keys: typing.Sequence[str], pattern: str | None) -> dict[str, str]:
    """The group of each picture, by its id.

    Args:
      keys: ids: paths without endings.
      pattern: of ids; {group} stands for the group's name and * for anything else, so that
        "{group}_*" makes one group of "patient7_01" and "patient7_02". None: each is its own.

    Raises:
      ValueError: no {group} in the pattern, or pictures that it does not fit.
    """
    if pattern is None:
        return {key: key for key in keys}
    if pattern.count("{group}") != 1:
        raise ValueError(f"--group={pattern} should have {{group}} where the name of a group "
                         "stands in those of pictures, and * for the rest: {group}_*")
    before, after = (re.escape(part).replace(r"\*", ".*") for part in pattern.split("{group}"))
    found = {key: re.fullmatch(f"(?:.*/)?{before}(.+?){after}", key) for key in keys}
    other = [key for key, match in found.items() if not match]
    if other:
        raise ValueError(f"--group={pattern} does not fit {len(other)} of {len(keys)} pictures, "
                         f"such as {other[0]}")
    return {key: match[1] for key, match in found.items()}


def check_groups(splits: dict[str, Items], groups: dict[str, str], why: str) -> None:
    """Refuses splits that have pictures of one group in two parts; `why` says whose they are."""
    first: dict[str, tuple[str, str]] = {}
    for split, items in splits.items():
        for key, *_ in items:
            other, before = first.setdefault(groups[key], (split, key))
            if other != split:
                raise ValueError(f"{why} puts {before} in {other} and {key} in {split}, but both "
                                 f"are of the group {groups[key]!r} (--group)")


def _parts(items: Items, chosen: set[str]) -> dict[str, Items]:
    splits = {"train": [i for i in items if i[0] not in chosen],
              "validation": [i for i in items if i[0] in chosen]}
    return {split: found for split, found in splits.items() if found}


def _classes_of(reading: Reading, items: Items) -> typing.Iterator[set[int]]:
    """The classes of each picture; those that cannot be read are named when all is written."""
    if reading.make_records is coco.make_instances:
        yield from ({row.class_id for row, _ in item[3]} for item in items)
        return
    if reading.make_records is coco.make_panoptic:
        yield from ({row.class_id for row in item[3]} for item in items)
        return

    def look(item) -> set[int]:
        try:
            return {int(c) for record in reading.make_records(item)
                    for c in record["table"]["class_id"]}
        except ValueError:
            return set()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from progress.track(pool.map(look, items), "looking for rare classes",
                                  total=len(items))


def _with_rare_classes(order: list[str], chosen: set[str], classes: dict[str, set[int]],
                       members: typing.Mapping[str, int]) -> set[str]:
    """The chosen groups, changed until every class of two or more groups is on both sides."""
    sides = [[name for name in order if name in chosen], [n for n in order if n not in chosen]]
    counts = [collections.Counter(c for name in side for c in classes[name]) for side in sides]
    total = counts[0] + counts[1]

    def may_leave(name: str, side: int) -> bool:
        return all(counts[side][c] > 1 for c in classes[name] if total[c] > 1)

    def move(name: str, side: int) -> None:
        sides[side].remove(name)
        sides[1 - side].append(name)
        counts[side].subtract(classes[name])
        counts[1 - side].update(classes[name])

    for c in sorted((c for c in total if total[c] > 1), key=lambda c: (total[c], c)):
        for side in (0, 1):
            if counts[side][c]:
                continue
            there = [n for n in sides[1 - side] if c in classes[n] and may_leave(n, 1 - side)]
            if not there:
                continue
            came = min(there, key=lambda name: (members[name], order.index(name)))
            move(came, 1 - side)
            back = [n for n in sides[side] if n != came and members[n] <= members[came]
                    and may_leave(n, side)]
            if back:
                move(max(back, key=lambda name: members[name]), side)
    return set(sides[0])
