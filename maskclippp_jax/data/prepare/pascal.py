"""PASCAL Context (59 and 459 classes) and PASCAL VOC 2012 (20 and 21), from their archives.

Context comes in two forms that do not agree everywhere: the merged JSON of the PASCAL-in-Detail
challenge, from which the 59-class maps are made and whose `phase` is the split of both, and one
MATLAB file a picture with the 459 classes. Its 10,103 pictures are not those of VOC's own lists.
"""

import functools
import io
import typing

import numpy as np
import scipy.io

from maskclippp_jax.data import coco_files, records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import coco, labels
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import typed

EXPECTED_CONTEXT_59 = "VOCtrainval_03-May-2010.tar, trainval_merged.json"
EXPECTED_CONTEXT_459 = "VOCtrainval_03-May-2010.tar, trainval_merged.json, trainval.tar.gz"
EXPECTED_VOC = "VOCtrainval_11-May-2012.tar"


class _Picture(typing.TypedDict):
    image_id: typed.Id
    phase: str
    file_name: str
    height: typed.Side
    width: typed.Side


class _Merged(typing.TypedDict):
    """trainval_merged.json."""

    images: list[_Picture]
    annos_segmentation: typing.NotRequired[list[coco_files.Annotation]]


def read_context(raw_dir: str | None, classes: int) -> Reading:
    """Reads PASCAL Context with 59 or 459 classes."""
    files = Files(raw_dir, ("VOCtrainval_03-May-2010.tar", "trainval.tar.gz"))
    pictures = files.find(r"VOC2010/JPEGImages/(\d{4}_\d{6})\.jpg")
    maps = files.find(r"trainval/(\d{4}_\d{6})\.mat")
    annotation = files.get(r"trainval_merged\.json")
    splits: dict[str, list] = {"train": [], "validation": []}
    if annotation is None:
        return Reading(splits, _context_59)
    content = annotation.json(_Merged)
    entries = {e["image_id"]: e for e in content["images"]}
    if len(entries) < len(content["images"]):
        raise ValueError(f"{annotation} lists an image id twice; download it again")
    regions: dict[int, list] = {i: [] for i in entries}
    if classes == 59:
        for a in content.get("annos_segmentation", ()):
            if a["image_id"] not in regions:
                raise ValueError(f"{annotation} annotates the image {a['image_id']} without "
                                 "listing it; download it again")
            regions[a["image_id"]].append(a)
    lost = []
    for number, entry in entries.items():
        split = {"train": "train", "val": "validation"}.get(entry["phase"])
        if split is None:
            continue  # test: no pictures are published here
        stem = entry["file_name"].removesuffix(".jpg")
        if stem not in pictures or (classes == 459 and stem not in maps):
            lost.append(f"{stem}.{'mat' if stem in pictures else 'jpg'}")
        elif classes == 59:
            size = (entry["height"], entry["width"])
            splits[split].append((stem, pictures[stem], size, regions[number]))
        else:
            splits[split].append((stem, pictures[stem], maps[stem]))
    return Reading(splits, _context_59 if classes == 59 else _context_459,
                   coco.missing_files(lost, annotation), files.fingerprint)


def _context_59(item: tuple[str, File, tuple[int, int], list]) -> list[dict]:
    image_id, picture, size, regions = item
    stored = np.zeros(size, np.uint16)
    for region in regions:  # in the order of the file: a later one overwrites
        stored[run_lengths.decode(coco_files.mask_of(region, size, image_id))] = (
            region["category_id"])
    label = records.positions(stored, np.array(labels.shipped("pascal_context_59").dataset_ids))
    label = np.where(label < 0, labels.VOID, label)  # classes beyond the 59 are nothing
    return labels.semantic(picture, image_id, label, labels.shipped("pascal_context_59"))


def _context_459(item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, map_file = item
    try:
        stored = scipy.io.loadmat(io.BytesIO(map_file.read()))["LabelMap"].astype(np.int32)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{map_file} is no label map ({error}); download it again") from None
    class_of = labels.rank_of(range(1, 460), void=[0], void_id=labels.VOID_16)
    label = labels.map_values(stored, class_of, map_file)
    return labels.semantic(picture, image_id, label, labels.shipped("pascal_context_459"),
                           labels.VOID_16)


def read_voc(raw_dir: str | None, classes: int) -> Reading:
    """Reads VOC 2012 with its 20 classes, or 21 with background."""
    files = Files(raw_dir, ("VOCtrainval_11-May-2012.tar",))
    pictures = files.find(r"VOC2012/JPEGImages/(\d{4}_\d{6})\.jpg")
    maps = files.find(r"VOC2012/SegmentationClass/(\d{4}_\d{6})\.png")
    splits, missing = {}, []
    for split, short in (("train", "train"), ("validation", "val")):
        listing = files.get(rf"VOC2012/ImageSets/Segmentation/{short}\.txt")
        names = listing.read().decode().split() if listing else []
        present = [n for n in names if n in pictures and n in maps]
        missing += coco.missing_files(sorted(set(names) - set(present)), listing)
        splits[split] = [(n, pictures[n], maps[n]) for n in present]
    return Reading(splits, functools.partial(_voc, classes), missing, files.fingerprint)


def _voc(classes: int, item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, map_file = item
    class_of = (labels.rank_of(range(21), void=[255]) if classes == 21
                else labels.rank_of(range(1, 21), void=[0, 255]))
    label = labels.map_values(labels.read_label(map_file), class_of, map_file)
    return labels.semantic(picture, image_id, label, labels.shipped(f"pascal_voc_{classes}"))
