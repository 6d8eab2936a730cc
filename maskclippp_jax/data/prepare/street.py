"""Cityscapes and Mapillary Vistas, from the archives of their owners.

Cityscapes ships no maps of the 19 evaluated classes: they are a look-up of `labelIds`. Its
instances are 16-bit: a value below 1000 is a class (of a thing: a group, so a crowd), else class *
1000 + number. Mapillary's semantic maps have a palette (65 = nothing), its panoptic ones the form
of COCO's, with category = class + 1; `panoptic_2018.json` lies in the panoptic folder.
"""

import functools

import numpy as np

from maskclippp_jax.data import coco_files, records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import coco, labels
from maskclippp_jax.data.prepare.raw import File, Files

EXPECTED_CITYSCAPES = "leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip"
EXPECTED_VISTAS = "mapillary-vistas-dataset_public_v1.2.zip (or v2.0)"
_LAST_LABEL = 33  # of Cityscapes; the licence plate (-1) is not drawn


def read_cityscapes(raw_dir: str | None, kind: str) -> Reading:
    """Reads Cityscapes as "semantic" or "panoptic"; the test labels are placeholders, left out."""
    files = Files(raw_dir, ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"))
    splits, missing = {}, []
    for split, folder in (("train", "train"), ("validation", "val")):
        name = r"([a-z-]+_\d{6}_\d{6})"
        stored = {"semantic": "labelIds", "panoptic": "instanceIds"}[kind]
        splits[split], alone = labels.pair(
            files.find(rf"leftImg8bit/{folder}/[^/]+/{name}_leftImg8bit\.png"),
            files.find(rf"gtFine/{folder}/[^/]+/{name}_gtFine_{stored}\.png"), what=split)
        missing += alone
    make = {"semantic": _city_semantic, "panoptic": _city_panoptic}[kind]
    return Reading(splits, make, missing, files.fingerprint)


def _city_semantic(item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, label_file = item
    label = labels.map_values(labels.read_label(label_file), _city_classes(), label_file)
    return labels.semantic(picture, image_id, label, labels.shipped("cityscapes_19"))


def _city_panoptic(item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, instance_file = item
    stored = labels.read_label(instance_file)
    is_thing = labels.shipped("cityscapes_19").is_thing
    rows = []
    for value in np.unique(stored):
        label = value if value < 1000 else value // 1000
        if label not in _city_classes():
            raise ValueError(f"{instance_file} holds the value {value}, which is no label")
        c = _city_classes()[label]
        if c == labels.VOID:
            stored[stored == value] = 0
            continue
        rows.append(records.Segment(c, is_thing[c], bool(is_thing[c] and value < 1000), int(value)))
    return [records.panoptic_record(labels.read_picture(picture), image_id, stored, rows)]


@functools.cache
def _city_classes() -> dict[int, int]:
    evaluated = labels.shipped("cityscapes_19").dataset_ids
    return labels.rank_of(evaluated, void=set(range(_LAST_LABEL + 1)) - set(evaluated))


def read_vistas(raw_dir: str | None, kind: str) -> Reading:
    """Reads Mapillary Vistas v1.2 as "semantic" or "panoptic" (v2.0 carries its labels too)."""
    files = Files(raw_dir, ("mapillary-vistas-dataset_public_v*.zip",))
    splits, missing = {}, []
    for split, folder in (("train", "training"), ("validation", "validation")):
        pictures = files.find(rf"{folder}/images/([\w-]+)\.jpg")
        maps = files.find(rf"{folder}/(?:v1.2/)?"
                          rf"{'labels' if kind == 'semantic' else 'panoptic'}/([\w-]+)\.png")
        if kind == "semantic":
            splits[split], lost = labels.pair(pictures, maps, what=split)
        else:
            annotation = files.get(rf"{folder}/(?:v1.2/)?panoptic/panoptic_2018\.json")
            splits[split], lost = [], []
            if annotation is not None:
                vocabulary = labels.shipped("mapillary_vistas_65")
                content = annotation.json(coco_files.Panoptic)
                splits[split], lost = coco.panoptic_items(
                    content, coco.by_stem(pictures), coco.by_stem(maps),
                    coco.class_of_category(content, vocabulary, annotation), vocabulary,
                    annotation)
        missing += lost
    make = {"semantic": _vistas_semantic, "panoptic": coco.make_panoptic}[kind]
    return Reading(splits, make, missing, files.fingerprint)


def _vistas_semantic(item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, label_file = item
    label = labels.map_values(labels.read_label(label_file), labels.rank_of(range(65), void=[65]),
                              label_file)
    return labels.semantic(picture, image_id, label, labels.shipped("mapillary_vistas_65"))
