"""COCO 2017 from the archives of its owners: COCO-Stuff, COCO panoptic, COCO instances, LVIS v1.

The pictures are in train2017.zip and val2017.zip; each ground truth has archives of its own. The
stuff-thing maps unpack to folders of the same names as the pictures, so unpacked they are looked
for below a folder `stuffthingmaps*`.
"""

import typing

import numpy as np

from maskclippp_jax.data import coco_files, images, records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import labels
from maskclippp_jax.data.prepare.paths import stem_of
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.runtime.console import counted
from maskclippp_jax.vocabulary import Vocabulary

_PICTURES = ("train2017.zip", "val2017.zip")
EXPECTED_STUFF = "train2017.zip, val2017.zip, stuffthingmaps_trainval2017.zip"
EXPECTED_PANOPTIC = "train2017.zip, val2017.zip, panoptic_annotations_trainval2017.zip"
EXPECTED_INSTANCES = "train2017.zip, val2017.zip, annotations_trainval2017.zip"
EXPECTED_LVIS = "train2017.zip, val2017.zip, lvis_v1_train.json.zip, lvis_v1_val.json.zip"
_SPLITS = {"train": "train2017", "validation": "val2017"}
_NO_THING = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # ids COCO never segmented


def read_stuff(raw_dir: str | None) -> Reading:
    """Semantic maps: dataset id = pixel + 1."""
    files = Files(raw_dir, (*_PICTURES, "stuffthingmaps_trainval2017.zip"))
    official = r"stuffthingmaps(?!_detectron2)[^/]*"
    if not files.find(rf"({official}/(?:train|val)2017/\d{{12}})\.png") and files.find(
            r"(stuffthingmaps_detectron2/(?:train|val)2017/\d{12})\.png"):
        raise ValueError(f"{raw_dir} holds stuffthingmaps_detectron2, maps that a script of "
                         "detectron2 has numbered anew (0 ... 170), and not the official ones; "
                         "give stuffthingmaps_trainval2017.zip")
    splits, missing = {}, []
    for split, folder in _SPLITS.items():
        pairs, alone = labels.pair(
            files.find(rf"{folder}/(\d{{12}})\.jpg"),
            files.find(rf"{folder}/(\d{{12}})\.png", below=official), what=split)
        splits[split] = [(split, *pair) for pair in pairs]
        missing += alone
    return Reading(splits, _stuff, missing, files.fingerprint)


def _stuff(item: tuple[str, str, File, File]) -> list[dict]:
    split, image_id, picture, label_file = item
    class_of = labels.rank_of(sorted(set(range(182)) - {i - 1 for i in _NO_THING}), void=[255])
    label = labels.map_values(labels.read_label(label_file), class_of, label_file)
    if split == "train" and (label == labels.VOID).all():
        return []  # as in the published preparation
    return labels.semantic(picture, image_id, label, labels.shipped("coco_stuff_171"))


def read_panoptic(raw_dir: str | None) -> Reading:
    """Segments of things and stuff; the pictures of the annotation lie in zips inside the zip."""
    files = Files(raw_dir, (*_PICTURES, "panoptic_*2017.zip"))
    splits, missing = {}, []
    for split, folder in _SPLITS.items():
        annotation = files.get(rf"annotations/panoptic_{folder}\.json")
        splits[split] = []
        if annotation is None:
            continue
        pictures = files.find(rf"{folder}/(\d{{12}})\.jpg")
        maps = files.find(rf"panoptic_{folder}/(\d{{12}})\.png")
        vocabulary = labels.shipped("coco_panoptic_133")
        content = annotation.json(coco_files.Panoptic)
        class_of = class_of_category(content, vocabulary, annotation)
        splits[split], lost = panoptic_items(
            content, by_stem(pictures), by_stem(maps), class_of, vocabulary, annotation)
        missing += lost
    return Reading(splits, make_panoptic, missing, files.fingerprint)


# The id and the file of what a path in a JSON names; None if it is not there.
Find = typing.Callable[[str], tuple[str, File] | None]


def by_stem(files: dict[str, File]) -> Find:
    """Files of official archives by their names without folder and ending."""
    def find(path: str) -> tuple[str, File] | None:
        stem = stem_of(path)
        return (stem, files[stem]) if stem in files else None
    return find


def panoptic_items(content: coco_files.Panoptic, pictures: Find, maps: Find,
                   class_of: dict[int, int | None], vocabulary: Vocabulary,
                   annotation: File, *, keep_crowds: bool = False
                   ) -> tuple[list[tuple], list[str]]:
    """Items for `make_panoptic` of a COCO panoptic JSON, and sentences about files it lacks.

    Args:
      content: of the JSON.
      pictures: finds one by its `file_name`.
      maps: finds a PNG with the segment ids.
      class_of: class id of each category id, None: its segments mean nothing.
      vocabulary: of the classes.
      annotation: the JSON, for messages.
      keep_crowds: whether segments marked as crowds count as single ones.
    """
    names = {e["id"]: file_name(e, annotation) for e in content.get("images", ())}
    items, lost, annotated = [], [], set()
    for entry in content["annotations"]:
        if entry["image_id"] not in names or entry["image_id"] in annotated:
            raise ValueError(f"{annotation} annotates the image {entry['image_id']} "
                             f"{'twice' if entry['image_id'] in names else 'without listing it'}")
        annotated.add(entry["image_id"])
        name = names[entry["image_id"]]
        picture, map_file = pictures(name), maps(entry["file_name"])
        if picture is None or map_file is None:
            lost.append(entry["file_name"] if picture else name)
            continue
        rows, left_out = [], []
        for s in entry["segments_info"]:
            c = _class(class_of, s["category_id"], annotation)
            if c is None:
                left_out.append(s["id"])
                continue
            rows.append(records.Segment(
                c, vocabulary.is_thing[c], bool(s.get("iscrowd")) and not keep_crowds, s["id"],
                s.get("area"), _box(s)))
        items.append((*picture, map_file[1], rows, left_out))
    return items, missing_files(lost, annotation)


def file_name(entry: coco_files.Image, annotation: File) -> str:
    """The file of a picture; LVIS gives its address alone."""
    name = entry.get("file_name") or entry.get("coco_url")
    if not name:
        raise ValueError(f"{annotation} has the image {entry['id']} without a file_name; wanted "
                         "COCO's form")
    return name


def make_panoptic(item: tuple[str, File, File, list[records.Segment], list[int]]) -> list[dict]:
    image_id, picture, map_file, rows, left_out = item
    ids = labels.read_colors(map_file)
    if left_out:
        ids[np.isin(ids, left_out)] = 0
    return [records.panoptic_record(labels.read_picture(picture), image_id, ids, rows)]


def read_instances(raw_dir: str | None) -> Reading:
    """The 80 things as polygons and run-length codes; pictures without any are kept."""
    files = Files(raw_dir, (*_PICTURES, "annotations_trainval2017.zip"))
    splits, missing = {}, []
    for split, folder in _SPLITS.items():
        annotation = files.get(rf"annotations/instances_{folder}\.json")
        splits[split] = []
        if annotation is None:
            continue
        vocabulary = labels.shipped("coco_instance_80")
        content = annotation.json(coco_files.Instances)
        splits[split], lost = instance_items(
            content, by_stem(files.find(rf"{folder}/(\d{{12}})\.jpg")),
            class_of_category(content, vocabulary, annotation), vocabulary, annotation)
        missing += lost
    return Reading(splits, make_instances, missing, files.fingerprint)


def read_lvis(raw_dir: str | None) -> Reading:
    """Instances of 1,203 classes; pictures of both COCO folders, named by their address alone."""
    files = Files(raw_dir, (*_PICTURES, "lvis_v1_*.json.zip"))
    pictures = {}
    for folder in _SPLITS.values():
        pictures |= files.find(rf"{folder}/(\d{{12}})\.jpg")
    splits, missing = {}, []
    for split, short in (("train", "train"), ("validation", "val")):
        annotation = files.get(rf"lvis_v1_{short}\.json")
        splits[split] = []
        if annotation is None:
            continue
        vocabulary = labels.shipped("lvis_1203")
        content = annotation.json(coco_files.Instances)
        splits[split], lost = instance_items(
            content, by_stem(pictures), class_of_category(content, vocabulary, annotation),
            vocabulary, annotation)
        missing += lost
    return Reading(splits, make_instances, missing, files.fingerprint)


def instance_items(content: coco_files.Instances, pictures: Find,
                   class_of: dict[int, int | None], vocabulary: Vocabulary, annotation: File, *,
                   keep_crowds: bool = False) -> tuple[list[tuple], list[str]]:
    """Items for `make_instances` of a COCO or LVIS JSON, and sentences about files it lacks.

    Args:
      content: of the JSON.
      pictures: by the stem of `file_name`.
      class_of: class id of each category id, None: its masks are left out.
      vocabulary: of the classes.
      annotation: the JSON, for messages.
      keep_crowds: whether masks marked as crowds count as single ones.
    """
    masks: dict[typing.Any, list] = {entry["id"]: [] for entry in content["images"]}
    if len(masks) < len(content["images"]):
        raise ValueError(f"{annotation} lists an image id twice; keep one")
    for a in content["annotations"]:
        if a["image_id"] not in masks:
            raise ValueError(f"{annotation}: annotation {a.get('id')} belongs to the image "
                             f"{a['image_id']}, which is not listed")
        c = _class(class_of, a["category_id"], annotation)
        if c is None:
            continue
        number = a.get("id")
        row = records.Segment(c, vocabulary.is_thing[c], bool(a.get("iscrowd")) and not keep_crowds,
                              number if isinstance(number, int) else 0, a.get("area"), _box(a))
        masks[a["image_id"]].append((row, a))
    items, lost = [], []
    for entry in content["images"]:
        name = file_name(entry, annotation)
        picture = pictures(name)
        if picture is None:
            lost.append(name)
            continue
        classes = [[c for i in entry.get(key, ())
                    if (c := _class(class_of, i, annotation)) is not None]
                   for key in ("neg_category_ids", "not_exhaustive_category_ids")]
        size = entry.get("height"), entry.get("width")
        items.append((*picture, size, masks[entry["id"]], *classes))
    return items, missing_files(lost, annotation)


def make_instances(item: tuple) -> list[dict]:
    image_id, picture, size, annotated, negative, not_exhaustive = item
    image = labels.read_picture(picture)
    size = images.size_of(image) if None in size else size
    masks = [coco_files.mask_of(a, size, image_id) for _, a in annotated]
    return [records.instance_record(
        image, image_id, size, masks, [row for row, _ in annotated],
        negative_classes=negative, not_exhaustive_classes=not_exhaustive)]


def _box(annotation: typing.Mapping) -> list[float] | None:
    """Left, top, width, height; None if the file does not give all four."""
    box = annotation.get("bbox") or ()
    return list(box) if len(box) == 4 else None


def class_of_category(content: typing.Mapping, vocabulary: Vocabulary, annotation: File
                      ) -> dict[int, int]:
    """Class id of each category id.

    Raises:
      ValueError: other categories than the vocabulary has.
    """
    listed = {c["id"] for c in content["categories"]}
    known = set(vocabulary.dataset_ids)
    if listed != known:
        differing = sorted(listed ^ known)
        raise ValueError(
            f"{annotation} has {len(listed)} categories, {vocabulary.name} {len(known)}; they "
            f"differ in the ids {', '.join(map(str, differing[:8]))}"
            f"{', ...' if len(differing) > 8 else ''}; is the file of another year or set?")
    return labels.rank_of(vocabulary.dataset_ids)


def _class(class_of: dict[int, int | None], category: int, annotation: File) -> int | None:
    if category not in class_of:
        raise ValueError(f"{annotation} uses the category {category}, which it does not list")
    return class_of[category]


def missing_files(names: list[str], annotation: File) -> list[str]:
    """A sentence about files that an annotation names and that are not there, if any."""
    if not names:
        return []
    be = "is" if len(names) == 1 else "are"
    return [f"{counted(len(names), 'file')} that {annotation} names {be} missing, e.g. "
            f"{', '.join(sorted(names)[:3])}"]
