"""ADE20K-150 (SceneParse150) and ADE20K-847, from the archives of their owners.

The 150 classes come as semantic maps (8-bit grey, class = pixel - 1, 0 is nothing), and their 100
things also as instances (red: number among the things, green: number of the instance). Panoptic
ground truth is made of both as in the published preparation: stuff from the semantic map, things
pasted over it; the recorded areas are those before the pasting.

The full set codes its classes as floor(R / 10) * 256 + G. Pictures whose sides both pass 512 pixels
are shrunk, as in the published protocol; they are stored without loss.
"""

import cv2
import numpy as np

from maskclippp_jax.data import images, records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import labels
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.vocabulary import Vocabulary

EXPECTED = "ADEChallengeData2016.zip"
EXPECTED_INSTANCES = "ADEChallengeData2016.zip, annotations_instance.tar"
EXPECTED_FULL = "<name>_<number>.zip of release 2021_17_01"
_SPLITS = {"train": "training", "validation": "validation"}
_SIDE = 512  # pixels; of the full set, see above


def read(raw_dir: str | None, kind: str) -> Reading:
    """Reads ADE20K-150 as "semantic", "panoptic" or "instance"."""
    files = Files(raw_dir, ("ADEChallengeData2016.zip", "annotations_instance.tar"))
    splits, missing = {}, []
    for split, folder in _SPLITS.items():
        found = {what: files.find(rf"{what}/{folder}/(ADE_\w+_\d{{8}})\.(?:jpg|png)")
                 for what in ("images", "annotations", "annotations_instance")}
        wanted = {"semantic": ["annotations"], "instance": ["annotations_instance"],
                  "panoptic": ["annotations", "annotations_instance"]}[kind]
        splits[split], alone = labels.pair(
            found["images"], *(found[w] for w in wanted), what=split)
        missing += alone
    make = {"semantic": _semantic, "panoptic": _panoptic, "instance": _instance}[kind]
    return Reading(splits, make, missing, files.fingerprint)


def _semantic(item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, label = item
    return labels.semantic(picture, image_id, _read_semantic(label), _vocabulary())


def _panoptic(item: tuple[str, File, File, File]) -> list[dict]:
    image_id, picture, semantic_file, instance_file = item
    label = _read_semantic(semantic_file)
    thing_classes, instances = _read_instances(instance_file)
    if label.shape != instances.shape:
        raise ValueError(f"{semantic_file} and {instance_file} differ in size")
    # Areas and boxes as the published annotation records them, before anything is pasted.
    stuff = [c for c in np.unique(label) if c != labels.VOID and not _vocabulary().is_thing[c]]
    rows = [_measured(records.Segment(int(c), False, source_id=1000 + int(c)), label == c)
            for c in stuff]
    rows += [_measured(records.Segment(c, True, source_id=number), instances == number)
             for number, c in thing_classes.items()]
    source_ids = np.where(np.isin(label, stuff), 1000 + label, 0)
    source_ids = np.where(instances > 0, instances, source_ids)
    return [records.panoptic_record(labels.read_picture(picture), image_id, source_ids, rows)]


def _instance(item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, instance_file = item
    thing_classes, instances = _read_instances(instance_file)
    rows = [records.Segment(c, True, source_id=n) for n, c in thing_classes.items()]
    return [records.panoptic_record(labels.read_picture(picture), image_id, instances, rows)]


def _measured(row: records.Segment, mask: np.ndarray) -> records.Segment:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return row._replace(area=float(mask.sum()), bbox=(left, top, width, height))


def _read_semantic(file: File) -> np.ndarray:
    """[H, W] class ids, 255 = nothing."""
    return labels.map_values(labels.read_label(file),
                             labels.rank_of(range(1, 151), void=[0]), file)


def _read_instances(file: File) -> tuple[dict[int, int], np.ndarray]:
    """Class ids by number of the instance, ascending; and [H, W] of those numbers."""
    colors = labels.read_colors(file)
    categories, numbers = colors & 255, (colors >> 8) & 255
    things = np.flatnonzero(_vocabulary().is_thing)
    classes = {}
    for number in np.unique(numbers[numbers > 0]):
        found = np.unique(categories[numbers == number])
        if len(found) > 1 or not 1 <= found[0] <= len(things):
            raise ValueError(f"{file}: instance {number} has the categories {found.tolist()}, "
                             f"wanted one of 1 ... {len(things)}")
        classes[int(number)] = int(things[found[0] - 1])
    return classes, numbers


def _vocabulary() -> Vocabulary:
    return labels.shipped("ade20k_150")


def read_full(raw_dir: str | None) -> Reading:
    """Reads ADE20K-847; the archive has a personal name."""
    files = Files(raw_dir, ["ADE20K*.zip"])
    if not files.find(r"ADE20K_2021_17_01/images/ADE/.+(/ADE_.+_seg)\.png"):
        files = Files(raw_dir, ["*_*.zip"])
    splits, missing = {}, []
    for split, short in (("train", "train"), ("validation", "val")):
        stem = rf"ADE20K_2021_17_01/images/ADE/.+/(ADE_{short}_\d{{8}})"
        splits[split], alone = labels.pair(
            files.find(rf"{stem}\.jpg"), files.find(rf"{stem}_seg\.png"), what=split)
        missing += alone
    return Reading(splits, _full, missing, files.fingerprint)


def _full(item: tuple[str, File, File]) -> list[dict]:
    image_id, picture, label_file = item
    colors = labels.read_colors(label_file)
    dataset_ids = (colors & 255) // 10 * 256 + ((colors >> 8) & 255)
    label = records.positions(dataset_ids, np.array(_full_vocabulary().dataset_ids))
    label = np.where(label < 0, labels.VOID_16, label)
    image = labels.read_picture(picture)
    height, width = label.shape
    if min(height, width) > _SIDE:
        pixels = images.decode_image(image, str(picture))
        if pixels.shape[:2] != label.shape:
            raise ValueError(f"{picture} has {pixels.shape[1]}x{pixels.shape[0]} pixels, its label "
                             f"map {width}x{height}")
        size = tuple(_SIDE if side == min(height, width)
                     else round(side / min(height, width) * _SIDE) for side in (height, width))
        image = images.encode_png(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR))
        # OpenCV's nearest neighbour: source floor(i * in / out).
        rows, columns = (np.arange(m) * n // m for n, m in zip(label.shape, size))
        label = label[rows][:, columns]
    return [records.semantic_record(image, image_id, label, _full_vocabulary().is_thing,
                                    labels.VOID_16)]


def _full_vocabulary() -> Vocabulary:
    return labels.shipped("ade20k_847")
