"""A user's own pictures and annotations.

Annotations come in one of these forms, told apart by what is there (`x` is a picture's name
without its ending, with its sub-folder if there is one):

- label maps, `x.png`: the number of a class in every pixel (its place in the names file from 0, or
  the file's third column), or its colour (the fourth);
- folders of masks, `x/<class name>_<number>.png` or `<class name>/x.png`: what is not 0 is the
  mask, of cut-outs what is not transparent; masks may overlap;
- maps in the colours of a labelmap.txt: `SegmentationClass/x.png`, `SegmentationObject/x.png`, as
  CVAT exports masks, and VOC's;
- one JSON file a picture, `x.json`: of LabelMe or Supervisely; or a list of masks, each with
  `segmentation` (run lengths or polygons, as in COCO) and `category_id` (a number as above) or
  `label` (a name);
- polygons of YOLO, `x.txt`: the number of a class, then x and y in shares of the picture's sides;
- one JSON file for all: in COCO's instance or panoptic form (the PNG files of the latter lie beside
  it, or in a folder of its name), of Label Studio or Datumaro; or the XML of CVAT.

Files of other names are found by a pattern, `labels/{stem}_mask.png`.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
import re
import typing

import numpy as np
import yaml

from maskclippp_jax.data import images, label_maps, records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import (
    labels,
    own_coco,
    own_cvat,
    own_datumaro,
    own_label_studio,
    own_listed,
    own_masks,
    splitting,
)
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.runtime import storage
from maskclippp_jax.runtime.console import counted
from maskclippp_jax.vocabulary import Vocabulary, check_names, plain, unwritable

_PICTURE = rf"\.(?i:{'|'.join(ending[1:] for ending in images.endings())})"
_OTHER_PICTURES = tuple(ending for ending in (
    "heic", "heif", "avif", "gif", "jp2", "jxl", "psd", "dng", "cr2", "nef", "arw", "raw", "dcm",
    "svg", "ppm", "pgm", "tga") if f".{ending}" not in images.endings())
# Folders that people keep apart below one: photographs, and what is drawn on them.
_IMAGES, _LABELS = {"images", "img"}, {"labels", "masks", "ann", "annotations"}
_LAYOUT = ("x.png (label maps), x/<class>_<n>.png or <class>/x.png (masks), x.json (LabelMe, "
           "Supervisely, masks) or x.txt (YOLO) for x.jpg")
_GREY = 1 + 256 + 65536  # times a number: the colour whose red, green and blue are this number


# What --format may say: one file for all pictures, and files of one picture each.
_FILES = dict(coco="a file of COCO's form", labelstudio="a file of Label Studio",
              cvat="an XML of CVAT", datumaro="a file of Datumaro")
_JSONS = ("labelme", "supervisely", "json")
FORMS = (*_FILES, "voc", "labelmaps", "masks", "classes", *_JSONS, "yolo")


class OwnData(typing.NamedTuple):
    reading: Reading
    vocabulary: Vocabulary
    kind: str


class Choices(typing.NamedTuple):
    """What files cannot tell."""

    nothing: typing.Sequence[int] | None = None  # numbers of label maps, see `label_maps`
    leave_out: typing.Sequence[str] = ()  # classes of the files whose masks mean nothing
    keep_crowds: bool = False  # whether masks marked as crowds count as single ones
    form: str | None = None    # one of `FORMS`; None: what it looks like
    # Share of the pictures, or a text file with their names; None: as their folders say.
    validation: str | None = None
    group: str | None = None   # pattern of the pictures that stay together, see `splitting`


def read(image_dir: str, annotations: str, names_file: str | None, choices: Choices = Choices()
         ) -> OwnData:
    """Finds out what form the annotations have, and pairs them with the pictures.

    Args:
      image_dir: folder of the pictures.
      annotations: folder, pattern of files with {stem} for a picture's name, or a file for all.
      names_file: one class a line; may be None for forms that name their classes.
      choices: what the files cannot tell.

    Raises:
      FileNotFoundError: a file or folder is not there, or no picture, or none has an annotation.
      ValueError: the names do not fit the annotations, or a list does not fit the pictures.
    """
    if choices.form not in (None, *FORMS):
        raise ValueError(f"--format={choices.form} is none of {', '.join(FORMS)}")
    if not pathlib.Path(image_dir).is_dir():
        raise FileNotFoundError(f"no folder --images={image_dir}; give the one of your pictures")
    is_file = annotations.endswith((".json", ".xml")) and pathlib.Path(annotations).is_file()
    folder, pattern = _pattern_of(annotations)
    if not is_file and not pathlib.Path(folder).is_dir():
        raise FileNotFoundError(f"no --labels={annotations}; give a folder with {_LAYOUT}, a "
                                "pattern like labels/{stem}_mask.png, or a file of COCO, CVAT, "
                                "Label Studio or Datumaro")
    if not Files(image_dir).find(f"(.+{_PICTURE})"):
        others = _of_other_formats(image_dir) or [f"wanted {', '.join(images.endings())}"]
        raise FileNotFoundError(f"there is no picture in --images={image_dir}; {others[0]}")
    parts = {} if is_file or pattern or choices.form not in (None, *_FILES) else (
        splitting.files_in(folder))
    if parts:
        found = _read_each(parts, image_dir, names_file, choices)
    else:
        read_all = _read_file if is_file else _read_folder
        found = read_all(Files(image_dir), annotations, names_file, choices)
    reading = found.reading
    splits, notes = splitting.divide(
        reading, pathlib.Path(image_dir).absolute(), splitting.folders_of_yaml(names_file),
        choices.validation, choices.group, _PICTURE)
    chosen = repr([(split, [item[0] for item in items]) for split, items in splits.items()
                   if split != "train"])
    return found._replace(reading=reading._replace(
        splits=splits, notes=[*reading.notes, *notes],
        missing=[*reading.missing, *_of_other_formats(image_dir)],
        fingerprint=reading.fingerprint + hashlib.sha1(chosen.encode()).hexdigest()))


def _read_each(files: dict[str, str], image_dir: str, names_file: str | None, choices: Choices
               ) -> OwnData:
    """One data set of several files, whose pictures lie beside them, or below --images."""
    root = pathlib.Path(image_dir).absolute()
    parts: dict[str, OwnData] = {}
    for split, file in files.items():
        beside = pathlib.Path(file).absolute().parent
        below = [f for f in sorted(root.iterdir())
                 if f.is_dir() and splitting.of_name(f.name) == split]
        inside = root in beside.parents and Files(str(beside)).find(f"(.+){_PICTURE}")
        place = beside if inside else below[0] if len(below) == 1 else root
        parts[split] = _read_file(Files(str(place)), file, names_file, choices)
    first, *others = parts.values()
    for other in others:
        if (other.kind, other.vocabulary.classes) != (first.kind, first.vocabulary.classes):
            raise ValueError(f"{' and '.join(files.values())} differ in their classes; give all of "
                             "them as --names=FILE")
    said = {split: part.reading for split, part in parts.items()}
    first_in: dict[File, str] = {}
    for split, reading in said.items():
        twice = [item[1] for item in reading.splits["train"]
                 if first_in.setdefault(item[1], split) != split]
        if twice:
            other = first_in[twice[0]]
            raise ValueError(f"{files[other]} ({other}) and {files[split]} ({split}) both have "
                             f"{counted(len(twice), 'picture')}, such as {twice[0]}; keep each in "
                             "one of them")
    return first._replace(reading=first.reading._replace(
        splits={split: reading.splits["train"] for split, reading in said.items()},
        missing=[m for reading in said.values() for m in reading.missing],
        notes=[f"{split}: {n}" for split, reading in said.items() for n in reading.notes],
        fingerprint="".join(reading.fingerprint for reading in said.values())))


def _of_other_formats(image_dir: str) -> list[str]:
    """A sentence about pictures in formats that are not read, if there are any."""
    others = Files(image_dir).find(rf"(.+\.(?i:{'|'.join(_OTHER_PICTURES)}))")
    if not others:
        return []
    counts = collections.Counter(name.rsplit(".", 1)[-1].lower() for name in others)
    told = ", ".join(f"{n} .{ending}" for ending, n in sorted(counts.items()))
    are = "picture is" if len(others) == 1 else "pictures are"
    return [f"{len(others)} {are} in formats that are not read ({told}), e.g. "
            f"{next(iter(others))}; save them as JPEG or PNG"
            + ", or pip install pillow-heif for HEIC" * bool({"heic", "heif"} & set(counts))]


def _read_file(pictures_at: Files, path: str, names_file: str | None, choices: Choices) -> OwnData:
    """One file for all pictures."""
    form = _form_of_file(path)
    if choices.form not in (None, form):
        raise ValueError(f"{path} is {_FILES[form]}, not of --format={choices.form}")
    if form == "coco":
        return OwnData(*own_coco.read(
            pictures_at, _PICTURE, pathlib.Path(path), names_file, leave_out=choices.leave_out,
            keep_crowds=choices.keep_crowds))
    listed = dict(cvat=own_cvat, labelstudio=own_label_studio, datumaro=own_datumaro)[form].read(
        path)
    masks = _masks(listed.names, names_file, path, choices)
    reading = own_listed.reading_of(listed, pictures_at, _PICTURE, path, masks)
    return OwnData(reading, masks.vocabulary, "instance")


def _form_of_file(path: str) -> str:
    """Which of the forms a file may have; only its shape is looked at."""
    if path.endswith(".xml"):
        return "cvat"
    data = storage.path(path).read_bytes()
    if data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return "labelstudio"  # no file of COCO is a list
    return "datumaro" if b'"items"' in data and b'"images"' not in data else "coco"


def _masks(names: typing.Sequence[str] | None, names_file: str | None, path: str, choices: Choices
           ) -> own_masks.Masks:
    """The classes of a names file, or those that the annotations list themselves."""
    left_out = tuple(map(plain, choices.leave_out))
    if names is not None and names_file is None:  # with one, what is misspelt is no class of it
        # A labelmap.txt has "background", which is no class.
        own_masks.check_left_out(choices.leave_out, names, "label", ["background"])
    if names_file is not None:
        vocabulary = _read_names(names_file, choices.nothing or ())
    elif names is None:
        raise ValueError("got no --names; give a file with one class a line, synonyms "
                         "separated by commas, or a data.yaml of YOLO")
    else:
        kept = [name for name in names if plain(name) not in left_out]
        vocabulary = dataclasses.replace(Vocabulary.from_names(kept), name=pathlib.Path(path).name)
    return own_masks.Masks(vocabulary, left_out, choices.keep_crowds)


def _read_names(path: str, skip: typing.Sequence[int]) -> Vocabulary:
    """A names file, or the names in a data.yaml of YOLO: a list, or a name for each number."""
    if not path.endswith((".yaml", ".yml")):
        return Vocabulary.from_file(path, skip)
    if not storage.path(path).is_file():
        raise FileNotFoundError(f"no names file {path}")
    try:
        content = yaml.safe_load(storage.read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML ({error})") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(
            isinstance(k, int) and k >= 0 and isinstance(v, str) for k, v in names.items()):
        raise ValueError(f"{path} has no names of classes, wanted names: [cat, dog], or a name for "
                         "each number")
    if wrong := next(filter(unwritable, names.values()), None):
        raise ValueError(f"{path}: the name {wrong!r} {unwritable(wrong)}; write it without that")
    rows = [f"{name}\tthing\t{number}" for number, name in sorted(names.items())]
    vocabulary = Vocabulary.from_text("\n".join(rows), pathlib.Path(path).name)
    check_names("\n".join(rows), path)
    return vocabulary


def _pattern_of(annotations: str) -> tuple[str, str]:
    """"labels/{stem}_mask.png" -> the folder "labels", and a regular expression of files in it."""
    if "{stem}" not in annotations:
        return annotations, ""
    before, _, after = annotations.partition("{stem}")
    folder, _, start = before.rpartition("/")
    return folder or ("/" if before.startswith("/") else "."), (
        f"{re.escape(start)}(.+){re.escape(after)}")


class _Form(typing.NamedTuple):
    """A form that annotations may have."""

    name: str         # of --format
    title: str
    kind: str
    files: dict       # by the id of a picture
    make: typing.Callable


def _read_folder(pictures_at: Files, annotations: str, names_file: str | None, choices: Choices
                 ) -> OwnData:
    folder, pattern = _pattern_of(annotations)
    if choices.form in _FILES:
        raise ValueError(f"--format={choices.form} is one file for all pictures, --labels="
                         f"{annotations} is none; name the file")
    if not pattern and choices.form in (None, "voc") and (maps := _colored(folder)) is not None:
        return _read_colored(pictures_at, folder, maps, names_file, choices)
    if choices.form == "voc":
        raise ValueError(f"{folder} has no labelmap.txt in it or above it, which tells the colours "
                         "of --format=voc; for numbers in place of colours leave --format out")
    labels_at, masks = Files(folder), _masks(None, names_file, annotations, choices)
    pictures = pictures_at.find(f"(.+){_PICTURE}", leave_out=pattern)
    # Of YOLO and Supervisely: train/images/x.jpg, train/labels/x.txt
    apart = labels_at.folder == pictures_at.folder and bool(_below(_IMAGES, pictures))
    if apart:
        pictures = _below(_IMAGES, pictures)
    forms = _forms(labels_at, pattern, pictures, masks, choices, apart)
    if choices.form is not None:
        wanted = "json" if choices.form in _JSONS else choices.form
        forms = [form for form in forms if form.name == wanted]
    form = max(forms, key=lambda form: len(set(form.files) & set(pictures)))
    common = len(set(form.files) & set(pictures))
    # A picture is never its own label.
    itself = next((key for key, file in form.files.items() if pictures.get(key) == file), None)
    if itself is not None:
        raise ValueError(f"{form.files[itself]} would be its own label; for labels beside the "
                         "pictures give a pattern like --labels=images/{stem}_mask.png")
    jpegs = labels_at.find(r"(.+)\.(?:jpe?g|JPE?G)")
    if not pattern and labels_at.folder != pictures_at.folder and len(
            set(jpegs) & set(pictures)) > common:
        raise ValueError(f"the labels in {labels_at.folder} are JPEG files ({next(iter(jpegs))}"
                         ".jpg, ...), which change numbers; save label maps as PNG")
    if not common and choices.form is not None:
        raise FileNotFoundError(
            f"none of the {len(pictures)} pictures in {pictures_at.folder} has {form.title} in "
            f"{labels_at.folder}, as --format={choices.form} says; leave it out to see what "
            "is there")
    if not common:
        raise FileNotFoundError(
            f"none of the {len(pictures)} pictures in {pictures_at.folder} has an annotation in "
            f"{labels_at.folder}; wanted {_LAYOUT}; for other names give a pattern like "
            "--labels=labels/{stem}_mask.png")
    notes = [f"took the labels for {form.title}, {common} of them have a picture"]
    if form.kind == "semantic":
        if choices.leave_out:
            raise ValueError("--leave_out is for masks with names, these are label maps; give the "
                             "numbers that mean nothing as --nothing")
        _refuse_crowds(choices)
        in_colors = bool(masks.vocabulary.colors) and any(
            _has_colors(file, masks.vocabulary, choices.nothing)
            for key, file in form.files.items() if key in pictures)
        notes.append((_colors if in_colors else _numbers)(masks.vocabulary, choices.nothing))
        form = form._replace(make=functools.partial(form.make, in_colors))
    items, missing = labels.pair(pictures, {k: f for k, f in form.files.items() if k},
                                 what="picture or annotation")
    fingerprint = pictures_at.fingerprint + labels_at.fingerprint + repr((pattern, choices))
    return OwnData(Reading({"train": items}, form.make, missing, fingerprint, notes=notes),
                   masks.vocabulary, form.kind)


def _refuse_crowds(choices: Choices) -> None:
    if choices.keep_crowds:
        raise ValueError("--crowd=keep is for masks marked as crowds, of which label maps have "
                         "none; leave it out")


def _colored(folder: str) -> pathlib.Path | None:
    """The folder with the labelmap.txt of maps in colours: this one, or that above it."""
    here = pathlib.Path(folder)
    return next((f for f in (here, here.absolute().parent) if (f / "labelmap.txt").is_file()), None)


def _read_colored(pictures_at: Files, folder: str, root: pathlib.Path, names_file: str | None,
                  choices: Choices) -> OwnData:
    """SegmentationClass, and SegmentationObject if it is there, with their labelmap.txt in root."""
    colors = own_cvat.read_labelmap(File((), str(root / "labelmap.txt")))
    masks = _masks(list(colors.names.values()), names_file, str(root / "labelmap.txt"), choices)
    maps_at, pictures = Files(str(root)), pictures_at.find(f"(.+){_PICTURE}")
    classes, objects = (maps_at.find(rf"Segmentation{what}/(.+)\.png")
                        for what in ("Class", "Object"))
    classes = classes or Files(folder).find(r"(.+)\.png")  # maps without folders of their own
    if not objects:
        _refuse_crowds(choices)
    # Pictures and maps may lie in the same folder.
    pictures = {key.removeprefix("JPEGImages/"): file for key, file in pictures.items()
                if not key.startswith("Segmentation")}
    items, missing = labels.pair(pictures, *filter(None, (classes, objects)),
                                 what="picture or annotation")
    if not items:
        raise FileNotFoundError(f"none of the {len(pictures)} pictures in {pictures_at.folder} has "
                                f"a map x.png in {folder}")
    make = functools.partial(own_cvat.from_colors if objects else own_cvat.from_class_colors,
                             masks, colors)
    notes = [f"took the labels for maps in the colours of {root / 'labelmap.txt'}"
             f"{', each object apart' if objects else ''}, {len(items)} of them have a picture"]
    fingerprint = pictures_at.fingerprint + maps_at.fingerprint + repr(choices)
    return OwnData(Reading({"train": items}, make, missing, fingerprint, notes=notes),
                   masks.vocabulary, "instance" if objects else "semantic")


def _below(folders: set[str], files: dict[str, File]) -> dict[str, File]:
    """Files in folders of some names, without these in their keys."""
    found = {}
    for key, file in files.items():
        *parts, name = key.split("/")
        if folders & set(parts):
            found["/".join([*(part for part in parts if part not in folders), name])] = file
    return found


def _forms(labels_at: Files, pattern: str, pictures: dict[str, File], masks: own_masks.Masks,
           choices: Choices, apart: bool) -> list[_Form]:
    """Every form, with the files that could be of it."""
    def find(endings: str) -> dict[str, File]:
        if apart:
            return _below(_LABELS, labels_at.find(rf"(.+)\.(?:{endings})"))
        if not pattern:
            return labels_at.find(rf"(.+)\.(?:{endings})")
        return labels_at.find(pattern) if re.search(rf"\.(?:{endings})$", pattern) else {}

    pngs, jsons = find("png|PNG|tif|tiff"), find("json")
    for key in list(jsons):  # Supervisely names the JSON of x.jpg x.jpg.json
        if (stem := re.sub(f"{_PICTURE}$", "", key)) not in jsons:
            jsons[stem] = jsons.pop(key)
    folders: dict[str, list[File]] = {}
    by_class: dict[str, list[tuple[str, File]]] = {}
    for key, file in pngs.items():
        folders.setdefault(key.rpartition("/")[0], []).append(file)
        name, _, image_id = key.partition("/")
        if image_id in pictures and key not in pictures:
            by_class.setdefault(image_id, []).append((name, file))
    of = lambda make: functools.partial(make, masks)
    return [
        _Form("labelmaps", "label maps", "semantic", pngs,
              functools.partial(_label_map, masks.vocabulary, choices.nothing)),
        _Form("masks", "folders of masks", "instance", folders, of(own_masks.from_folder)),
        _Form("classes", "masks in folders of their classes", "instance", by_class,
              of(own_masks.from_class_folders)),
        _Form("json", "JSON files of masks", "instance", jsons, functools.partial(
            own_masks.from_json, masks, wanted=choices.form)),
        _Form("yolo", "YOLO's polygons", "instance", find("txt"), of(own_masks.from_yolo))]


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


def _has_colors(file: File, vocabulary: Vocabulary, nothing: typing.Sequence[int] | None) -> bool:
    """Whether a label map is one of colours: it shows some, or is of several greys that are all
    colours of classes, in red, green and blue. Numbers may be stored so as well."""
    data = file.read()
    try:
        numbers, in_color = images.decode_segments(data, str(file))
        if not in_color:
            images.decode_colors(data, str(file))  # refuses what has no red, green and blue
    except ValueError:
        return False  # what cannot be read is named with all others
    greys = {_GREY * n for n in np.unique(numbers).tolist()}
    return in_color or len(greys) > 1 and greys <= set(_class_of_color(vocabulary, nothing))


def _colors(vocabulary: Vocabulary, nothing: typing.Sequence[int] | None) -> str:
    """What the colours of label maps mean, for people.

    Raises:
      ValueError: a colour means two things.
    """
    meaning: dict[int, str] = {}
    named = [(code, f"the class {names[0]!r}") for code, names in zip(
        map(_code, vocabulary.colors), vocabulary.classes) if code is not None]
    greys = _greys(nothing)
    for code, what in [*((code, f"--nothing={n}") for code, n in greys.items()), *named]:
        if (other := meaning.setdefault(code, what)) != what:
            raise ValueError(f"the colour {_shown(code)} is that of {other} and of {what}; give "
                             "each its own, or leave one out")
    void = ", ".join(map(_shown, greys)) or "no colour"
    return (f"took the colours of the label maps for those of {vocabulary.name}; {void} means "
            "nothing")


def _code(color: tuple[int, int, int] | None) -> int | None:
    return color and color[0] + 256 * color[1] + 65536 * color[2]


def _shown(code: int) -> str:
    return "#" + "".join(f"{code >> shift & 255:02x}" for shift in (0, 8, 16))


def _greys(nothing: typing.Sequence[int] | None) -> dict[int, int]:
    """The colours that mean nothing, and what the user calls each. There are no others: 255 and
    65535, which mean nothing in maps of numbers, would be red and yellow."""
    return {_GREY * n: n for n in nothing or () if n < 256}


def _class_of_color(vocabulary: Vocabulary, nothing: typing.Sequence[int] | None) -> dict[int, int]:
    return dict.fromkeys(_greys(nothing), labels.VOID_16) | {
        _code(color): c for c, color in enumerate(vocabulary.colors) if color}


def _label_map(vocabulary: Vocabulary, nothing: typing.Sequence[int] | None, in_colors: bool,
               item: tuple[str, File, File]) -> list[dict]:
    """A label map; `in_colors` says that those of its set are matched by the names' colours."""
    image_id, picture, label_file = item
    data = label_file.read()
    stored, in_color = images.decode_segments(data, str(label_file))
    if in_colors and not in_color:  # greys and palettes are colours like the others then
        stored = images.decode_shown_colors(data, str(label_file))
    stored = labels.upright(stored, picture)
    if in_colors or in_color:
        label = _of_colors(stored, vocabulary, nothing, label_file)
        return labels.semantic(picture, image_id, label, vocabulary, labels.VOID_16)
    void = _void(vocabulary, nothing)
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
    class_of = labels.rank_of(ids, void, labels.VOID_16)
    by_color = _class_of_color(vocabulary, nothing) if vocabulary.colors else {}
    # One number alone tells nothing of its set.
    if len(numbers) > 1 and {_GREY * n for n in numbers.tolist()} <= set(by_color) and any(
            by_color[_GREY * n] != class_of.get(n) for n in numbers.tolist()):
        raise ValueError(f"{label_file} is grey, and its numbers could mean classes or the colours "
                         f"of {vocabulary.name}; save the maps in RGB, or leave the colours out "
                         "of the names file")
    label = labels.map_values(stored, class_of, label_file, hint)
    return labels.semantic(picture, image_id, label, vocabulary, labels.VOID_16)


def _of_colors(codes: np.ndarray, vocabulary: Vocabulary, nothing: typing.Sequence[int] | None,
               file: File) -> np.ndarray:
    """Classes of a label map in colours, by the colours of the names file."""
    if not vocabulary.colors:
        raise ValueError(f"{file} is in colour; give every class its colour in the fourth column "
                         f"of {vocabulary.name} (name, tab, thing or stuff, tab, number, tab, "
                         "#rrggbb), put CVAT's labelmap.txt beside the maps, or save maps of "
                         "numbers")
    class_of = _class_of_color(vocabulary, nothing)
    place = records.positions(codes, np.array([*class_of]))
    if place.min(initial=0) < 0:
        code, hint = int(codes[place < 0][0]), ""
        if code == _GREY * (code & 255):
            name = {0: "black", 255: "white"}.get(code & 255, "this grey")
            hint = (f"; if {name} means nothing, give --nothing={code & 255}; if the maps hold "
                    "numbers, leave the colours out of the names file")
        raise ValueError(f"{file} holds the colour {_shown(code)}, which {vocabulary.name} gives "
                         f"to no class{hint}")
    return np.array([*class_of.values()])[place]
