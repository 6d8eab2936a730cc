"""A user's own pictures and annotations.

Annotations come in one of these forms, told apart by what is there (`x` is a picture's name
without its ending, with its sub-folder if there is one):

- label maps, `x.png`: the number of a class in every pixel (its place in the names file from 0, or
  the file's third column), or its colour (the fourth);
- folders of masks, `x/<class name>_<number>.png`: what is not 0 is the mask, of cut-outs what is
  not transparent; masks may overlap;
- one JSON file a picture, `x.json`: a list of masks, each with `segmentation` (run-length code or
  polygons, as in COCO) and `category_id` (a number as above) or `label` (a name);
- one JSON file for all, in COCO's instance or panoptic form (the PNG files of the latter lie beside
  it, or in a folder of its name).
"""

import functools
import hashlib
import pathlib
import re
import typing

import numpy as np

from maskclippp_jax.data import coco_files, images, label_maps, records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import labels, own_coco, paths
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.vocabulary import Vocabulary, plain

_PICTURE = r"\.(?:jpg|jpeg|JPG|JPEG|png|PNG|bmp|tif|tiff|webp)"
_LAYOUT = "x.png (label maps), x/<class>_<n>.png (folders of masks) or x.json (masks) for x.jpg"


class OwnData(typing.NamedTuple):
    reading: Reading
    vocabulary: Vocabulary
    kind: str


class Choices(typing.NamedTuple):
    """What files cannot tell."""

    nothing: typing.Sequence[int] | None = None  # numbers of label maps, see `label_maps`
    leave_out: typing.Sequence[str] = ()  # classes of the files whose masks mean nothing
    keep_crowds: bool = False  # whether masks marked as crowds count as single ones
    validation: str = "0"      # share of the pictures, or a text file with their names


def read(image_dir: str, annotations: str, names_file: str | None, choices: Choices = Choices()
         ) -> OwnData:
    """Finds out what form the annotations have, and pairs them with the pictures.

    Args:
      image_dir: folder of the pictures.
      annotations: folder, or JSON file in COCO's form.
      names_file: one class a line; may be None for COCO's form, which names its categories.
      choices: what the files cannot tell.

    Raises:
      FileNotFoundError: a file or folder is not there, or no picture has an annotation.
      ValueError: the names do not fit the annotations, or a list does not fit the pictures.
    """
    if not pathlib.Path(image_dir).is_dir():
        raise FileNotFoundError(f"no folder --images={image_dir}; give the one of your pictures")
    if not pathlib.Path(annotations).is_dir() and not (
            annotations.endswith(".json") and pathlib.Path(annotations).is_file()):
        raise FileNotFoundError(f"no --labels={annotations}; give a folder with {_LAYOUT}, or a "
                                "JSON file in COCO's form")
    pictures_at = Files(image_dir)
    if annotations.endswith(".json"):
        reading, vocabulary, kind = own_coco.read(
            pictures_at, _PICTURE, pathlib.Path(annotations), names_file,
            leave_out=choices.leave_out, keep_crowds=choices.keep_crowds)
    else:
        if names_file is None:
            raise ValueError("got no --names; give a file with one class a line, synonyms "
                             "separated by commas")
        vocabulary = Vocabulary.from_file(names_file, skip=choices.nothing or ())
        reading, kind = _read_folder(pictures_at, Files(annotations), vocabulary, choices)
    splits = _split(reading.splits["train"], choices.validation)
    chosen = repr([item[0] for item in splits.get("validation", ())])
    fingerprint = reading.fingerprint + hashlib.sha1(chosen.encode()).hexdigest()
    return OwnData(reading._replace(splits=splits, fingerprint=fingerprint), vocabulary, kind)


def _read_folder(pictures_at: Files, labels_at: Files, vocabulary: Vocabulary,
                 choices: Choices) -> tuple[Reading, str]:
    pictures = pictures_at.find(f"(.+){_PICTURE}")
    pngs = labels_at.find(r"(.+)\.(?:png|PNG|tif|tiff)")
    folders: dict[str, list[File]] = {}
    for key, file in pngs.items():
        folders.setdefault(key.rpartition("/")[0], []).append(file)
    of_masks = _Masks(vocabulary, tuple(map(plain, choices.leave_out)), choices.keep_crowds)
    forms = [("semantic", pngs, functools.partial(_label_map, vocabulary, choices.nothing)),
             ("instance", folders, functools.partial(_mask_folder, of_masks)),
             ("instance", labels_at.find(r"(.+)\.json"), functools.partial(_mask_json, of_masks))]
    kind, found, make = max(forms, key=lambda form: len(set(form[1]) & set(pictures)))
    jpegs = labels_at.find(r"(.+)\.(?:jpe?g|JPE?G)")
    if labels_at.folder != pictures_at.folder and len(set(jpegs) & set(pictures)) > len(
            set(found) & set(pictures)):
        raise ValueError(f"the labels in {labels_at.folder} are JPEG files ({next(iter(jpegs))}"
                         ".jpg, ...), which change numbers; save label maps as PNG")
    if not set(found) & set(pictures):
        raise FileNotFoundError(
            f"none of the {len(pictures)} pictures in {pictures_at.folder} has an annotation in "
            f"{labels_at.folder}; wanted {_LAYOUT}")
    notes = []
    if kind == "semantic":
        if choices.leave_out:
            raise ValueError("--leave_out is for masks with names, these are label maps; give the "
                             "numbers that mean nothing as --nothing")
        notes.append(_numbers(vocabulary, choices.nothing))
    items, missing = labels.pair(pictures, {k: f for k, f in found.items() if k},
                                 what="picture or annotation")
    fingerprint = pictures_at.fingerprint + labels_at.fingerprint + repr(choices)
    return Reading({"train": items}, make, missing, fingerprint, notes=notes), kind


def _numbers(vocabulary: Vocabulary, nothing: typing.Sequence[int] | None) -> str:
    """What the numbers of label maps mean, for people.

    Raises:
      ValueError: a number means a class and nothing, or is none of label maps.
    """
    ids = vocabulary.dataset_ids
    for number, names in zip(ids, vocabulary.classes):
        if number in (nothing or ()):
            raise ValueError(f"{number} is the number of the class {names[0]!r} and, by --nothing, "
                             "means nothing; give the class another number in the third column of "
                             "the names file (name, tab, thing or stuff, tab, number), or leave "
                             "the column out")
        if number >= 2**16:
            raise ValueError(f"{vocabulary.name} gives the class {names[0]!r} the number {number}, "
                             f"but label maps hold 0 ... {2**16 - 1}")
    void = ", ".join(map(str, _void(vocabulary, nothing))) or "no number"
    shown = [f"{number} is {names[0]!r}" for number, names in zip(ids, vocabulary.classes)]
    if len(shown) > 6:
        shown[3:-1] = ["..."]
    return f"in the label maps {', '.join(shown)}; {void} means nothing"


def _void(vocabulary: Vocabulary, nothing: typing.Sequence[int] | None) -> list[int]:
    """The numbers that mean nothing: what the user says, else 255 and 65535 if no class has them.
    """
    if nothing is not None:
        return list(nothing)
    return [n for n in label_maps.NOTHING if n not in vocabulary.dataset_ids]


def _label_map(vocabulary: Vocabulary, nothing: typing.Sequence[int] | None,
               item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, label_file = item
    stored, in_color = images.decode_segments(label_file.read(), str(label_file))
    stored = labels.upright(stored, picture)
    void = _void(vocabulary, nothing)
    if in_color:
        label = _of_colors(stored, vocabulary, void, label_file)
        return labels.semantic(picture, image_id, label, vocabulary, labels.VOID_16)
    numbers, ids = np.unique(stored), vocabulary.dataset_ids
    unknown = sorted({*numbers.tolist()} - {*ids, *void})
    hint = f"to which {vocabulary.name} gives no name (nor does --nothing name it)"
    from_1 = 0 in numbers and min(ids) == 0 and unknown == [max(ids) + 1]
    if from_1 or unknown == [0]:
        hint += "; if the classes count from 1 and 0 means nothing, give --nothing=0"
    if nothing is None and len(ids) == 1 and numbers.tolist() in ([0, 255], [255], [0, 1]):
        raise ValueError(
            f"{label_file} holds {' and '.join(map(str, numbers))}, and there is one class: say "
            "what means nothing, --nothing=0 (and give the class its number in the third column of "
            "the names file: name, tab, thing, tab, number) or --nothing=255")
    label = labels.map_values(stored, labels.rank_of(ids, void, labels.VOID_16), label_file, hint)
    return labels.semantic(picture, image_id, label, vocabulary, labels.VOID_16)


def _of_colors(codes: np.ndarray, vocabulary: Vocabulary, void: typing.Sequence[int],
               file: File) -> np.ndarray:
    """Classes of a label map in colours, by the colours of the names file."""
    if not vocabulary.colors:
        raise ValueError(f"{file} is in colour; give every class its colour in the fourth column "
                         f"of {vocabulary.name} (name, tab, thing or stuff, tab, number, tab, "
                         "#rrggbb), or save maps of numbers")
    known = [r + 256 * g + 65536 * b for r, g, b in filter(None, vocabulary.colors)]
    classes = [n for n, color in enumerate(vocabulary.colors) if color]
    place = records.positions(codes, np.array([*known, *void]))
    if place.min(initial=0) < 0:
        code = int(codes[place < 0][0])
        red, green, blue = code & 255, code >> 8 & 255, code >> 16
        black = "; if black means nothing, give --nothing=0" if code == 0 else ""
        raise ValueError(f"{file} holds the colour #{red:02x}{green:02x}{blue:02x}, which "
                         f"{vocabulary.name} gives to no class{black}")
    return np.array([*classes, *[labels.VOID_16] * len(void)])[place]


class _Masks(typing.NamedTuple):
    """How masks with names become those of classes."""

    vocabulary: Vocabulary
    left_out: tuple[str, ...]  # as `plain` gives them
    keep_crowds: bool

    def class_named(self, text: str, file: File) -> int | None:
        """The class with this name, None if it is left out; a number at its end is allowed."""
        for name in (text, re.sub(r"[ _.-]*\d+$", "", text)):
            if plain(name) in self.left_out:
                return None
            if (found := self.vocabulary.find(name)) is not None:
                return found
        raise ValueError(f"{file}: {self.vocabulary.name} has no class {text!r}; add it, or leave "
                         "its masks out with --leave_out=NAME")


def _mask_folder(of_masks: _Masks, item: tuple[str, File, list[File]]) -> list[dict]:
    image_id, picture, mask_files = item
    image = labels.read_picture(picture)
    size = images.size_of(image)
    rows, masks = [], []
    for file in mask_files:
        c = of_masks.class_named(pathlib.PurePath(file.path).stem, file)
        if c is None:
            continue
        mask = labels.upright(images.decode_mask(file.read(), str(file)), picture)
        if mask.shape != size:
            raise ValueError(f"{file} has {mask.shape[1]}x{mask.shape[0]} pixels, its picture "
                             f"{size[1]}x{size[0]}")
        rows.append(records.Segment(c, of_masks.vocabulary.is_thing[c]))
        masks.append(run_lengths.encode(mask))
    return [records.instance_record(image, image_id, size, masks, rows)]


_NAMES = ("label", "class", "category", "name")  # keys of a mask's name in a JSON


_Entry = typing.TypedDict("_Entry", dict(
    segmentation=list | dict | None, category_id=typed.Id, iscrowd=coco_files.Flag | None,
    **{name: str | int for name in _NAMES}), total=False)


class _Entries(typing.TypedDict):
    annotations: list[_Entry]


def _mask_json(of_masks: _Masks, item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, json_file = item
    vocabulary = of_masks.vocabulary
    image = labels.read_picture(picture)
    size = images.size_of(image)
    content = json_file.json(list[_Entry] | _Entries)
    entries = content["annotations"] if isinstance(content, dict) else content
    rows, masks = [], []
    for n, entry in enumerate(entries):
        name = next((entry[k] for k in _NAMES if k in entry), None)
        if "segmentation" not in entry or (name is None and "category_id" not in entry):
            raise ValueError(f"{json_file}, mask {n}: wanted segmentation, and category_id or "
                             "label")
        if name is not None:
            c = of_masks.class_named(str(name), json_file)
        elif entry["category_id"] in vocabulary.dataset_ids:
            c = vocabulary.dataset_ids.index(entry["category_id"])
        else:
            raise ValueError(f"{json_file}, mask {n} has the category_id {entry['category_id']}, "
                             f"to which {vocabulary.name} gives no name")
        if c is None:
            continue
        is_crowd = bool(entry.get("iscrowd")) and not of_masks.keep_crowds
        rows.append(records.Segment(c, vocabulary.is_thing[c], is_crowd))
        masks.append(coco_files.mask_of(dict(entry, id=n), size, str(json_file)))
    return [records.instance_record(image, image_id, size, masks, rows)]


def _split(items: list[tuple], validation: str) -> dict[str, list[tuple]]:
    """Pictures of the list, or those whose names have the smallest hashes, are for validation."""
    keys = [item[0] for item in items]
    try:
        share = float(validation)
    except ValueError:
        listing = pathlib.Path(validation)
        if not listing.is_file():
            raise FileNotFoundError(f"--validation={validation} is no file (with one picture's "
                                    "name a line), nor a share like 0.1") from None
        known, unknown, chosen = paths.Paths({key: key for key in keys}), [], set()
        for line in storage.read_text(listing).splitlines():
            name = re.sub(f"{_PICTURE}$", "", line.strip())
            found = name and known.find(name)
            if found:
                chosen.add(found[1])
            elif name:
                unknown.append(name)
        if unknown:
            raise ValueError(f"{validation} names {len(unknown)} pictures that are not there or "
                             f"have no annotation, e.g. {', '.join(unknown[:3])}") from None
    else:
        if not 0 <= share <= 1:
            raise ValueError(f"--validation={validation} is no share; give 0 ... 1, or a file")
        by_hash = sorted(keys, key=lambda key: hashlib.sha1(key.encode()).digest())
        chosen = set(by_hash[:round(share * len(keys))])
    splits = {"train": [i for i in items if i[0] not in chosen],
              "validation": [i for i in items if i[0] in chosen]}
    return {split: found for split, found in splits.items() if found}
