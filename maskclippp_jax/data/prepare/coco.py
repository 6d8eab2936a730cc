"""COCO 2017 from the archives of its owners: COCO-Stuff, COCO panoptic, COCO instances, LVIS v1.

The pictures are in train2017.zip and val2017.zip; each ground truth has archives of its own. The
stuff-thing maps unpack to folders of the same names as the pictures, so unpacked they are looked
for below a folder `stuffthingmaps*`.
"""

import typing

import numpy as np
from pycocotools import mask as coco_mask

from maskclippp_jax.data import records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import labels
from maskclippp_jax.data.prepare.raw import File, Files
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
    splits, missing = {}, []
    for split, folder in _SPLITS.items():
        pairs, alone = labels.pair(
            files.find(rf"{folder}/(\d{{12}})\.jpg"),
            files.find(rf"{folder}/(\d{{12}})\.png", below="stuffthingmaps[^/]*"), what=split)
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
        content = annotation.json()
        class_of = class_of_category(content, vocabulary, annotation)
        splits[split], lost = panoptic_items(content, pictures, maps, class_of, vocabulary,
                                             annotation)
        missing += lost
    return Reading(splits, make_panoptic, missing, files.fingerprint)


def panoptic_items(content: dict, pictures: dict[str, File], maps: dict[str, File],
                   class_of: dict[int, int], vocabulary: Vocabulary,
                   annotation: File) -> tuple[list[tuple], list[str]]:
    """Items for `make_panoptic` of a COCO panoptic JSON, and sentences about files it lacks.

    Args:
      content: of the JSON.
      pictures: by the stem of `file_name`.
      maps: PNG with the segment ids, by the stem.
      class_of: class id of each category id.
      vocabulary: of the classes.
      annotation: the JSON, for messages.
    """
    names = {e["id"]: stem_of(e["file_name"]) for e in content["images"]}
    items, lost, annotated = [], [], set()
    for entry in content["annotations"]:
        if entry["image_id"] not in names or entry["image_id"] in annotated:
            raise ValueError(f"{annotation} annotates the image {entry['image_id']} "
                             f"{'twice' if entry['image_id'] in names else 'without listing it'}")
        annotated.add(entry["image_id"])
        stem, map_stem = names[entry["image_id"]], stem_of(entry["file_name"])
        if stem not in pictures or map_stem not in maps:
            lost.append(f"{map_stem}.png" if stem in pictures else f"{stem}.jpg")
            continue
        rows = []
        for s in entry["segments_info"]:
            c = _class(class_of, s["category_id"], annotation)
            rows.append(records.Segment(c, vocabulary.is_thing[c], bool(s.get("iscrowd", 0)),
                                        s["id"], s.get("area"), s.get("bbox")))
        items.append((stem, pictures[stem], maps[map_stem], rows))
    return items, missing_files(lost, annotation)


def stem_of(path: str) -> str:
    """Name of a file without folders and ending."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def make_panoptic(item: tuple[str, File, File, list[records.Segment]]) -> list[dict]:
    image_id, picture, map_file, rows = item
    return [records.panoptic_record(
        labels.read_picture(picture), image_id, labels.read_colors(map_file), rows)]


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
        content = annotation.json()
        splits[split], lost = instance_items(
            content, files.find(rf"{folder}/(\d{{12}})\.jpg"),
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
        content = annotation.json()
        splits[split], lost = instance_items(
            content, pictures, class_of_category(content, vocabulary, annotation), vocabulary,
            annotation)
        missing += lost
    return Reading(splits, make_instances, missing, files.fingerprint)


def instance_items(content: dict, pictures: dict[str, File], class_of: dict[int, int],
                   vocabulary: Vocabulary, annotation: File) -> tuple[list[tuple], list[str]]:
    """Items for `make_instances` of a COCO or LVIS JSON, and sentences about files it lacks."""
    masks: dict[typing.Any, list] = {entry["id"]: [] for entry in content["images"]}
    if len(masks) < len(content["images"]):
        raise ValueError(f"{annotation} lists an image id twice; keep one")
    for a in content["annotations"]:
        if a["image_id"] not in masks:
            raise ValueError(f"{annotation}: annotation {a['id']} belongs to the image "
                             f"{a['image_id']}, which is not listed")
        c = _class(class_of, a["category_id"], annotation)
        row = records.Segment(c, vocabulary.is_thing[c], bool(a.get("iscrowd", 0)), a["id"],
                              a.get("area"), a.get("bbox"))
        masks[a["image_id"]].append((row, a["segmentation"]))
    items, lost = [], []
    for entry in content["images"]:
        stem = stem_of(entry.get("file_name") or entry["coco_url"])  # LVIS has the address alone
        if stem not in pictures:
            lost.append(f"{stem}.jpg")
            continue
        classes = [[_class(class_of, i, annotation) for i in entry.get(key, ())]
                   for key in ("neg_category_ids", "not_exhaustive_category_ids")]
        items.append((stem, pictures[stem], (entry["height"], entry["width"]), masks[entry["id"]],
                      *classes))
    return items, missing_files(lost, annotation)


def make_instances(item: tuple) -> list[dict]:
    image_id, picture, size, annotated, negative, not_exhaustive = item
    masks = [encode_mask(segmentation, size, f"{image_id}, annotation {row.source_id}")
             for row, segmentation in annotated]
    return [records.instance_record(
        labels.read_picture(picture), image_id, size, masks, [row for row, _ in annotated],
        negative_classes=negative, not_exhaustive_classes=not_exhaustive)]


def encode_mask(segmentation: list | dict, size: tuple[int, int], name: str) -> dict:
    """Polygons or a run-length code as a compressed run-length code, dict(size, counts).

    Polygons go through pycocotools' rasteriser, as in every published number. Those that are none
    (fewer than three points) are left out.

    Args:
      segmentation: list of polygons [x, y, x, y, ...], or dict(size, counts) with counts as a list
        or a compressed string.
      size: height, width.
      name: for messages.

    Raises:
      ValueError: a code of another size, or neither polygon nor code.
    """
    if isinstance(segmentation, list):
        polygons = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
        if not polygons:
            return coco_mask.encode(np.zeros(size, np.uint8, order="F"))
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(f"{name}: the mask is neither a list of polygons nor a run-length code "
                         "with size and counts")
    if tuple(segmentation["size"]) != tuple(size):
        raise ValueError(f"{name}: the mask is for {segmentation['size'][1]}x"
                         f"{segmentation['size'][0]} pixels, the picture has {size[1]}x{size[0]}")
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != size[0] * size[1]:
            raise ValueError(f"{name}: the runs of the mask do not add up to {size[1]}x{size[0]}")
        return coco_mask.frPyObjects(segmentation, *size)
    counts = segmentation["counts"]
    return dict(size=list(size), counts=counts.encode() if isinstance(counts, str) else counts)


def class_of_category(content: dict, vocabulary: Vocabulary, annotation: File) -> dict[int, int]:
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


def _class(class_of: dict[int, int], category: int, annotation: File) -> int:
    if category not in class_of:
        raise ValueError(f"{annotation} uses the category {category}, which it does not list")
    return class_of[category]


def missing_files(names: list[str], annotation: File) -> list[str]:
    """A sentence about files that an annotation names and that are not there, if any."""
    if not names:
        return []
    return [f"{len(names)} files that {annotation} names are missing, e.g. "
            f"{', '.join(sorted(names)[:3])}"]
