"""A user's own JSON file in COCO's form: instances or panoptic segments.

Its categories become the classes of a names file by their names, never by their numbers.
"""

import collections
import hashlib
import pathlib
import typing

from maskclippp_jax.data import coco_files
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import coco, own_masks, paths
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.vocabulary import Vocabulary, plain, split_names, unwritable


def read(pictures_at: Files, pattern: str, annotation_path: pathlib.Path,
         names_file: str | None, *, leave_out: typing.Sequence[str], keep_crowds: bool
         ) -> tuple[Reading, Vocabulary, str]:
    """Finds the pictures that a JSON annotates.

    Args:
      pictures_at: where they are.
      pattern: of their names' endings.
      annotation_path: the JSON.
      names_file: the classes; None: its categories.
      leave_out: categories whose masks mean nothing.
      keep_crowds: whether masks marked as crowds count as single ones.

    Raises:
      ValueError: the file is damaged, or a category has no class.
    """
    annotation = File((), str(annotation_path))
    data = annotation.read()
    panoptic = b'"segments_info"' in data
    content = annotation.json(coco_files.Panoptic if panoptic else coco_files.Instances)
    coco_files.check_categories(content["categories"], annotation)
    used = _uses_of_categories(content)
    categories, notes = _without_root(content["categories"], used)
    if names_file is None:
        vocabulary, class_of = _vocabulary_of(categories, annotation, leave_out)
    else:
        vocabulary = Vocabulary.from_file(names_file)
        class_of, said = _match(categories, vocabulary, used, leave_out)
        notes += said
    class_of |= {c["id"]: None for c in content["categories"] if c["id"] not in class_of}
    pictures = paths.Paths(pictures_at.find(f"(.+{pattern})"), pictures_at.folder.name,
                           [coco.file_name(e, annotation) for e in content.get("images", ())])
    fingerprint = pictures_at.fingerprint + hashlib.sha1(data).hexdigest() + repr(
        (sorted(leave_out), keep_crowds))
    if panoptic:
        maps_at, maps = _panoptic_maps(annotation_path, content)
        items, lost = coco.panoptic_items(
            _without_areas(content), pictures.find, paths.Paths(maps).find, class_of, vocabulary,
            annotation, keep_crowds=keep_crowds)
        fingerprint += maps_at.fingerprint + "areas counted"
    else:
        items, lost = coco.instance_items(content, pictures.find, class_of, vocabulary, annotation,
                                          keep_crowds=keep_crowds)
    twice = [file for file, n in collections.Counter(item[1] for item in items).items() if n > 1]
    if twice:
        raise ValueError(f"{annotation} lists the picture {twice[0]} twice, under two ids; keep "
                         "one")
    make = coco.make_panoptic if panoptic else coco.make_instances
    kind = "panoptic" if panoptic else "instance"
    title = "COCO's panoptic segments" if panoptic else "those of COCO"
    notes.insert(0, f"took the labels for {title}, {len(items)} of them have a picture")
    notes += pictures.said("annotation")
    notes += [f"{', '.join(names)} are names of one class" for names in vocabulary.classes
              if names_file is None and len(names) > 1]
    return Reading({"train": items}, make, lost, fingerprint, notes=notes), vocabulary, kind


def _uses_of_categories(content: coco_files.Instances | coco_files.Panoptic
                        ) -> collections.Counter[int]:
    """How many masks each category has."""
    used: collections.Counter[int] = collections.Counter()
    for row in content["annotations"]:
        used.update(s["category_id"] for s in row.get("segments_info", [row]))
    return used


def _without_root(categories: list[coco_files.Category], used: collections.Counter[int]
                  ) -> tuple[list[coco_files.Category], list[str]]:
    """Roboflow puts a category in front that stands for all others and has no masks."""
    root = next((c for c in categories if not used[c["id"]] and c.get("name") and any(
        other.get("supercategory") == c["name"] for other in categories if other is not c)), None)
    if root is None:
        return categories, []
    return ([c for c in categories if c is not root],
            [f"left out the category {root['name']!r}, which has no mask and stands for all "
             "others"])


def _vocabulary_of(categories: list[coco_files.Category], annotation: File,
                   leave_out: typing.Sequence[str]) -> tuple[Vocabulary, dict[int, int | None]]:
    """The categories themselves as classes; a comma separates synonyms, as in a names file."""
    nameless = [str(c["id"]) for c in categories if not c.get("name", "").strip(" ,")]
    if nameless:
        raise ValueError(f"{annotation} has categories without a name: {', '.join(nameless)}; give "
                         "each one")
    left = _left_out(categories, leave_out)
    kept = [c for c in categories if c["id"] not in left]
    if not kept:
        raise ValueError(f"{annotation} has no category that is not left out; wanted some")
    names = [tuple(n.strip() for n in split_names(c["name"]) if n.strip()) for c in kept]
    first: dict[str, typing.Any] = {}
    for category, synonyms in zip(kept, names):
        for name in synonyms:
            if unwritable(name):
                raise ValueError(f"{annotation}: the category {category['id']} is called {name!r}, "
                                 f"which {unwritable(name)}; rename it")
            other = first.setdefault(plain(name), category)
            if other is not category:
                raise ValueError(
                    f"{annotation}: the categories {other['id']} and {category['id']} are both "
                    f"called {name!r}; give --names=FILE with this name once, and both become one "
                    "class")
    vocabulary = Vocabulary(pathlib.Path(annotation.path).name, tuple(names),
                            tuple(bool(c.get("isthing", 1)) for c in kept),
                            tuple(c["id"] for c in kept))
    class_of = {c["id"]: n for n, c in enumerate(kept)}
    return vocabulary, class_of | {number: None for number in left}


def _match(categories: list[coco_files.Category], vocabulary: Vocabulary,
           used: collections.Counter[int], leave_out: typing.Sequence[str]
           ) -> tuple[dict[int, int | None], list[str]]:
    """The class of each category by its name, and what is to be said about it."""
    left = _left_out(categories, leave_out)
    class_of: dict[int, int | None] = {}
    nameless, otherwise, unused = [], [], []
    for category in categories:
        name = category.get("name", "")
        found = None if category["id"] in left else vocabulary.find(name)
        class_of[category["id"]] = found
        if found is None and category["id"] not in left:
            (nameless if used[category["id"]] else unused).append(f"{name!r} ({category['id']})")
        elif found is not None and name not in vocabulary.classes[found]:
            otherwise.append(f"{name!r} is {vocabulary.classes[found][0]!r}")
    if nameless:
        raise ValueError(
            f"{vocabulary.name} has no class of the name of {len(nameless)} of {len(categories)} "
            f"categories: {', '.join(nameless)}; add them, or leave their masks out with "
            "--leave_out=NAME,NAME")
    notes = []
    if otherwise:
        notes.append(f"names that are written otherwise: {', '.join(otherwise)}")
    if unused:
        notes.append(f"left out categories without a class and without masks: {', '.join(unused)}")
    return class_of, notes


def _left_out(categories: list[coco_files.Category], leave_out: typing.Sequence[str]) -> set[int]:
    own_masks.check_left_out(leave_out, [c.get("name", "") for c in categories], "category")
    left = set(map(plain, leave_out))
    return {c["id"] for c in categories if plain(c.get("name", "")) in left}


def _without_areas(content: coco_files.Panoptic) -> coco_files.Panoptic:
    """Without what the file says of areas, which tools leave at 0 or take from other sizes; the
    pixels of the PNG files are counted."""
    return dict(content, annotations=[
        dict(row, segments_info=[{k: v for k, v in s.items() if k != "area"}
                                 for s in row["segments_info"]])
        for row in content["annotations"]])


def _panoptic_maps(annotation_path: pathlib.Path, content: coco_files.Panoptic
                   ) -> tuple[Files, dict[str, File]]:
    """The PNG files of a panoptic annotation: in a folder of its name, or beside it."""
    folder = annotation_path.with_suffix("")
    files = Files(str(folder if folder.is_dir() else annotation_path.parent))
    named = {paths.normal(a["file_name"]).rsplit("/", 1)[-1] for a in content["annotations"]}
    return files, {path: file for path, file in files.find(r"(.+\.png)").items()
                   if paths.normal(path).rsplit("/", 1)[-1] in named}
