"""A user's own pictures and annotations.

Annotations come in one of these forms, told apart by what is there (`x` is a picture's name
without its ending, with its sub-folder if there is one):

- label maps, `x.png`: the number of a class in every pixel (its line in the names file from 0, or
  the file's third column);
- folders of masks, `x/<class name>_<number>.png`: what is not 0 is the mask; masks may overlap;
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
from pycocotools import mask as coco_mask

from maskclippp_jax.data import images, records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import coco, labels
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.vocabulary import Vocabulary, split_names

_PICTURE = r"\.(?:jpg|jpeg|JPG|JPEG|png|PNG|bmp|tif|tiff|webp)"
_LAYOUT = "x.png (label maps), x/<class>_<n>.png (folders of masks) or x.json (masks) for x.jpg"


class OwnData(typing.NamedTuple):
    reading: Reading
    vocabulary: Vocabulary
    kind: str


def read(image_dir: str, annotations: str, names_file: str | None, *, void: typing.Sequence[int],
         validation: str = "0") -> OwnData:
    """Finds out what form the annotations have, and pairs them with the pictures.

    Args:
      image_dir: folder of the pictures.
      annotations: folder, or JSON file in COCO's form.
      names_file: one class a line; may be None for COCO's form, which names its categories.
      void: numbers of a label map that mean nothing.
      validation: share of the pictures that make up the validation split, or a text file with
        their names.

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
        reading, vocabulary, kind = _read_coco(pictures_at, pathlib.Path(annotations), names_file)
    else:
        if names_file is None:
            raise ValueError("got no --names; give a file with one class a line, synonyms "
                             "separated by commas")
        vocabulary = Vocabulary.from_file(names_file)
        reading, kind = _read_folder(pictures_at, Files(annotations), vocabulary, void)
    splits = _split(reading.splits["train"], validation)
    chosen = repr([item[0] for item in splits.get("validation", ())])
    fingerprint = reading.fingerprint + hashlib.sha1(chosen.encode()).hexdigest()
    return OwnData(reading._replace(splits=splits, fingerprint=fingerprint), vocabulary, kind)


def _read_folder(pictures_at: Files, labels_at: Files, vocabulary: Vocabulary,
                 void: typing.Sequence[int]) -> tuple[Reading, str]:
    pictures = pictures_at.find(f"(.+){_PICTURE}")
    pngs = labels_at.find(r"(.+)\.(?:png|PNG)")
    folders: dict[str, list[File]] = {}
    for key, file in pngs.items():
        folders.setdefault(key.rpartition("/")[0], []).append(file)
    forms = [("semantic", pngs, functools.partial(_label_map, vocabulary, tuple(void))),
             ("instance", folders, functools.partial(_mask_folder, vocabulary)),
             ("instance", labels_at.find(r"(.+)\.json"), functools.partial(_mask_json, vocabulary))]
    kind, found, make = max(forms, key=lambda form: len(set(form[1]) & set(pictures)))
    if not set(found) & set(pictures):
        raise FileNotFoundError(
            f"none of the {len(pictures)} pictures in {pictures_at.folder} has an annotation in "
            f"{labels_at.folder}; wanted {_LAYOUT}")
    if kind == "semantic" and (clash := set(void) & set(vocabulary.dataset_ids)):
        number = min(clash)
        name = vocabulary.classes[vocabulary.dataset_ids.index(number)][0]
        raise ValueError(f"{number} is the number of the class {name!r} and, by --void, means "
                         "nothing; give the classes numbers in the third column of the names file "
                         "(name, tab, thing or stuff, tab, number), or another --void")
    items, missing = labels.pair(pictures, {k: f for k, f in found.items() if k},
                                 what="picture or annotation")
    fingerprint = pictures_at.fingerprint + labels_at.fingerprint + repr(void)
    return Reading({"train": items}, make, missing, fingerprint), kind


def _label_map(vocabulary: Vocabulary, void: tuple[int, ...],
               item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, label_file = item
    class_of = labels.rank_of(vocabulary.dataset_ids, void, labels.VOID_16)
    label = labels.map_values(labels.read_label(label_file), class_of, label_file,
                              f"to which {vocabulary.name} gives no name (nor does --void name it)")
    return labels.semantic(picture, image_id, label, vocabulary, labels.VOID_16)


def _mask_folder(vocabulary: Vocabulary, item: tuple[str, File, list[File]]) -> list[dict]:
    image_id, picture, mask_files = item
    image = labels.read_picture(picture)
    size = images.size_of(image)
    rows, masks = [], []
    for file in mask_files:
        c = _class_named(vocabulary, pathlib.PurePath(file.path).stem, file)
        mask = _read_mask(file)
        if mask.shape != size:
            raise ValueError(f"{file} has {mask.shape[1]}x{mask.shape[0]} pixels, its picture "
                             f"{size[1]}x{size[0]}")
        rows.append(records.Segment(c, vocabulary.is_thing[c]))
        masks.append(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
    return [records.instance_record(image, image_id, size, masks, rows)]


def _read_mask(file: File) -> np.ndarray:
    """[H, W] bool: what is not 0, or in a picture of colours not black."""
    data, name = file.read(), str(file)
    try:
        return images.decode_label_map(data, name) != 0
    except ValueError:
        return images.decode_image(data, name).any(-1)


def _mask_json(vocabulary: Vocabulary, item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, json_file = item
    image = labels.read_picture(picture)
    size = images.size_of(image)
    content = json_file.json()
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(f"{json_file} holds no list of masks")
    rows, masks = [], []
    for n, entry in enumerate(entries):
        name = next((entry[k] for k in ("label", "class", "category", "name") if k in entry), None)
        if "segmentation" not in entry or (name is None and "category_id" not in entry):
            raise ValueError(f"{json_file}, mask {n}: wanted segmentation, and category_id or "
                             "label")
        if name is not None:
            c = _class_named(vocabulary, str(name), json_file)
        elif entry["category_id"] in vocabulary.dataset_ids:
            c = vocabulary.dataset_ids.index(entry["category_id"])
        else:
            raise ValueError(f"{json_file}, mask {n} has the category_id {entry['category_id']}, "
                             f"to which {vocabulary.name} gives no name")
        rows.append(records.Segment(c, vocabulary.is_thing[c], bool(entry.get("iscrowd", 0))))
        masks.append(coco.encode_mask(entry["segmentation"], size, f"{json_file}, mask {n}"))
    return [records.instance_record(image, image_id, size, masks, rows)]


def _class_named(vocabulary: Vocabulary, text: str, file: File) -> int:
    """The class with this name; a number at its end, and _ for a blank, are allowed."""
    for name in (text, re.sub(r"[ _.-]*\d+$", "", text)):
        for c, names in enumerate(vocabulary.classes):
            if name in names or name.replace("_", " ") in names:
                return c
    raise ValueError(f"{file}: {vocabulary.name} has no class {text!r}")


def _read_coco(pictures_at: Files, annotation_path: pathlib.Path,
               names_file: str | None) -> tuple[Reading, Vocabulary, str]:
    annotation = File((), str(annotation_path))
    content = annotation.json()
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{annotation} has no {key!r}; wanted a JSON file in COCO's form")
    panoptic = any("segments_info" in a for a in content["annotations"])
    categories = content["categories"]
    if names_file is None:
        vocabulary = Vocabulary(
            annotation_path.name, tuple(split_names(c["name"]) for c in categories),
            tuple(bool(c.get("isthing", 1)) for c in categories),
            tuple(c["id"] for c in categories))
        class_of = labels.rank_of(vocabulary.dataset_ids)
    else:
        vocabulary = Vocabulary.from_file(names_file)
        class_of = {c["id"]: _class_of_category(c, vocabulary) for c in categories}
        nameless = [c for c in categories if class_of[c["id"]] is None]
        if nameless:
            listed = ", ".join(f"{c['name']!r} ({c['id']})" for c in nameless[:5])
            raise ValueError(f"{vocabulary.name} has no class for {len(nameless)} of "
                             f"{len(categories)} categories, e.g. {listed}; add them")
    pictures = pictures_at.find(f"([^/]+){_PICTURE}")
    fingerprint = pictures_at.fingerprint + hashlib.sha1(annotation.read()).hexdigest()
    try:
        if panoptic:
            maps_at, maps = _panoptic_maps(annotation_path, content)
            items, lost = coco.panoptic_items(
                content, pictures, maps, class_of, vocabulary, annotation)
            return Reading({"train": items}, coco.make_panoptic, lost,
                           fingerprint + maps_at.fingerprint), vocabulary, "panoptic"
        items, lost = coco.instance_items(content, pictures, class_of, vocabulary, annotation)
    except KeyError as error:
        raise ValueError(f"{annotation}: an entry lacks {error}; wanted COCO's form") from None
    return Reading({"train": items}, coco.make_instances, lost, fingerprint), vocabulary, "instance"


def _panoptic_maps(annotation_path: pathlib.Path, content: dict) -> tuple[Files, dict[str, File]]:
    """The PNG files of a panoptic annotation by stem: in a folder of its name, or beside it."""
    folder = annotation_path.with_suffix("")
    files = Files(str(folder if folder.is_dir() else annotation_path.parent))
    named = {coco.stem_of(a["file_name"]) for a in content["annotations"]}
    return files, {k: f for k, f in files.find(r"([^/]+)\.png").items() if k in named}


def _class_of_category(category: dict, vocabulary: Vocabulary) -> int | None:
    """By name, else by number."""
    for c, names in enumerate(vocabulary.classes):
        if category["name"] in names:
            return c
    ids = vocabulary.dataset_ids
    return ids.index(category["id"]) if category["id"] in ids else None


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
        chosen = {re.sub(f"{_PICTURE}$", "", line.strip())
                  for line in listing.read_text().splitlines() if line.strip()}
        unknown = sorted(chosen - set(keys))
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
