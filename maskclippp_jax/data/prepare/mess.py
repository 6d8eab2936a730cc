"""The 22 test sets of the MESS benchmark (Blumenstiel et al. 2023), each from its own archive.

Labels become one map of class ids, 255 = nothing. Large pictures are cut into squares of 1024
pixels, row by row from the top left and numbered from 0; the last ones are padded, pictures with
0, labels with 255. Root folders may have any name; if there is one of the usual name, only files in
it count, so one folder can hold all sets.
"""

import dataclasses
import functools
import io
import typing

import numpy as np
import tifffile

from maskclippp_jax.data import images, records
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import labels
from maskclippp_jax.data.prepare.raw import File, Files

_TILE = 1024  # pixels


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where a set keeps its files, and what its labels mean."""

    picture: str                       # pattern of the path; see raw.Files.find
    label: str
    classes: typing.Callable[[File], np.ndarray]  # label file -> [H, W] class ids, 255 = nothing
    below: str | None = None           # usual names of the root
    archives: tuple[str, ...] = ()
    split: str = "test"
    vocabulary: str = ""               # if not of the set's own name
    tiles: int = 1                     # about how many squares a picture is cut into
    # Which of the pairs belong to the split, from lists in the files; None: all.
    keys: typing.Callable[[Files, str | None], list[str]] | None = None
    pixels: typing.Callable[[File], np.ndarray] | None = None  # pictures no decoder reads


def read(raw_dir: str | None, name: str) -> Reading:
    """Reads the set `mess_<name>`."""
    rule = RULES[name]
    files = Files(raw_dir, rule.archives)
    pictures = files.find(rule.picture, rule.below)
    found = files.find(rule.label, rule.below)
    missing = []
    if name == "mhp_v1":
        found = _persons(found)
    if rule.keys is not None:
        wanted = rule.keys(files, rule.below)
        lost = [k for k in wanted if k not in pictures or k not in found]
        if pictures and lost:
            missing = [f"{len(lost)} of {len(wanted)} pictures of the list are missing, e.g. "
                       f"{', '.join(lost[:3])}"]
        pictures, found = ({k: f[k] for k in wanted if k in f} for f in (pictures, found))
    pairs, alone = labels.pair(pictures, found, what=rule.split)
    return Reading({rule.split: pairs}, functools.partial(_make, name), missing or alone,
                   files.fingerprint, records_each=rule.tiles)


def _make(name: str, item: tuple[str, File, typing.Any]) -> list[dict]:
    key, picture, label_file = item
    rule = RULES[name]
    vocabulary = labels.shipped(rule.vocabulary or f"mess_{name}")
    label = rule.classes(label_file)
    if rule.tiles == 1:
        return labels.semantic(picture, key, label, vocabulary)
    pixels = (rule.pixels(picture) if rule.pixels
              else images.decode_image(picture.read(), str(picture)))
    if pixels.shape[:2] != label.shape:
        raise ValueError(f"{picture} has {pixels.shape[1]}x{pixels.shape[0]} pixels, its label map "
                         f"{label.shape[1]}x{label.shape[0]}")
    return [records.semantic_record(images.encode_png(tile), f"{key}_{n}", tile_label,
                                    vocabulary.is_thing, labels.VOID)
            for n, (tile, tile_label) in enumerate(cut(pixels, label))]


def cut(pixels: np.ndarray, label: np.ndarray) -> typing.Iterator[tuple[np.ndarray, np.ndarray]]:
    """Squares of 1024 pixels of a picture [H, W, 3] and its label [H, W], the last ones padded."""
    for top in range(0, label.shape[0], _TILE):
        for left in range(0, label.shape[1], _TILE):
            window = (slice(top, top + _TILE), slice(left, left + _TILE))
            tile = np.zeros((_TILE, _TILE, 3), np.uint8)
            tile_label = np.full((_TILE, _TILE), labels.VOID, label.dtype)
            height, width = label[window].shape
            tile[:height, :width], tile_label[:height, :width] = pixels[window], label[window]
            yield tile, tile_label


# Labels to class ids.

def _numbers(class_of: dict[int, int]) -> typing.Callable[[File], np.ndarray]:
    return lambda file: labels.map_values(labels.read_label(file), class_of, file)


def _colors(*table: tuple[int, int, int]) -> typing.Callable[[File], np.ndarray]:
    return lambda file: labels.map_colors(labels.read_colors(file), table, file)


def _dark_zurich(file: File) -> np.ndarray:
    """Cityscapes labels; what `invGray` marks cannot be told even by people: nothing."""
    evaluated = [0, 7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    label = labels.map_values(labels.read_label(file), labels.rank_of(evaluated), file)
    invalid = file._replace(path=file.path.replace("_labelIds.png", "_invGray.png"))
    return np.where(labels.read_label(invalid) == 255, labels.VOID, label)


def _persons(found: dict[str, File]) -> dict[str, tuple[File, ...]]:
    """Files "<picture>_<persons>_<person>" by picture."""
    people: dict[str, tuple[File, ...]] = {}
    for key, file in found.items():
        picture = key.split("_")[0]
        people[picture] = (*people.get(picture, ()), file)
    return people


def _mhp(files: tuple[File, ...]) -> np.ndarray:
    """Where persons overlap, the larger class number."""
    return np.max([_numbers(labels.rank_of(range(19)))(file) for file in files], axis=0)


def _potsdam(file: File) -> np.ndarray:
    """Colours are impure in places: channels above 128 count as 255."""
    colors = labels.read_colors(file)
    pure = sum((((colors >> shift) & 255) > 128) * (255 << shift) for shift in (0, 8, 16))
    return labels.map_colors(pure, (
        (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)), file)


def _kvasir(file: File) -> np.ndarray:
    return (images.decode_image(file.read(), str(file))[..., 0] == 255).astype(np.int32)


def _paxray(channel: int) -> typing.Callable[[File], np.ndarray]:
    return lambda file: np.load(io.BytesIO(file.read()))[channel].astype(np.int32)


def _cub(file: File) -> np.ndarray:
    """Votes of five people, 51 each; the class is the number of the folder."""
    number = int(file.path.split("/")[-2].split(".")[0])
    return np.where(labels.read_label(file) > 128, number, 0)


# Sentinel-2 bands B1 ... B12 of WorldFloods, means and standard deviations as published with MESS.
_MEANS = (3787.0604973, 3758.07467509, 3238.08247208, 3418.90147615, 3450.23315812, 4030.94700446,
          4164.17468251, 3981.96268494, 4226.74862547, 1868.29658114, 399.3878948, 2391.66101119,
          1790.32497137)
_DEVIATIONS = (2634.44474043, 2794.09579088, 2549.4940614, 2811.78109878, 2776.93269704,
               2632.13814197, 2657.43035126, 2500.47885249, 2589.29159887, 1820.90184704,
               761.3640411, 1500.02533014, 1241.9817628)


def _worldfloods_pixels(file: File) -> np.ndarray:
    """Infrared, red, and blue where one would expect green: as the benchmark has it."""
    try:
        bands = tifffile.imread(io.BytesIO(file.read()))
    except (ValueError, tifffile.TiffFileError) as error:  # a compression may need imagecodecs
        raise ValueError(f"{file} cannot be read ({error})") from None
    bands = bands if bands.shape[0] == len(_MEANS) else np.moveaxis(bands, -1, 0)
    if bands.shape[0] != len(_MEANS):
        raise ValueError(f"{file} has the shape {bands.shape}, wanted {len(_MEANS)} bands")
    chosen = []
    for band in (7, 3, 1):
        white = np.float32(_MEANS[band]) + np.float32(_DEVIATIONS[band])
        bright = np.clip(bands[band].astype(np.float32) / white, 0, 1)
        chosen.append((bright * 255).astype(np.uint8))
    return np.stack(chosen, -1)


# Lists of the test pictures.

def _listed(pattern: str) -> typing.Callable[[Files, str | None], list[str]]:
    """Names in a text file, without endings."""
    def keys(files, below):
        listing = files.get(pattern, below)
        return [n.rsplit(".", 1)[0] for n in listing.read().decode().split()] if listing else []
    return keys


class _PaxrayPicture(typing.TypedDict):
    image: str


class _Paxray(typing.TypedDict):
    test: list[_PaxrayPicture]


def _paxray_keys(files, below):
    listing = files.get(r"paxray\.json", below)
    entries = listing.json(_Paxray)["test"] if listing else []
    return [e["image"].rsplit("/", 1)[-1].rsplit(".", 1)[0] for e in entries]


def _cub_keys(files, below):
    names, split = files.get(r"images\.txt", below), files.get(r"train_test_split\.txt", below)
    if names is None or split is None:
        return []
    is_train = dict(line.split() for line in split.read().decode().splitlines())
    named = (line.split() for line in names.read().decode().splitlines())
    return [path.rsplit("/", 1)[-1].removesuffix(".jpg") for number, path in named
            if is_train[number] == "0"]


_CWFID = dict(
    picture=r"images/(\d{3})_image\.png", label=r"annotations/(\d{3})_annotation\.png",
    below="cwfid[^/]*", archives=("cwfid*.zip",), vocabulary="mess_cwfid",
    keys=lambda files, below: [f"{n:03d}" for n in (
        1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28, 29, 30, 32, 35, 39, 44, 47, 48, 54, 60)])
_PAXRAY = dict(picture=r"images/([^/]+)\.png", label=r"labels/([^/]+)\.npy", keys=_paxray_keys,
               below="paxray_dataset", archives=("paxray_dataset.zip",))
_BINARY = _numbers({0: 0, 255: 1})

RULES = {
    "dark_zurich": Rule(
        r"rgb_anon/val/night/GOPR0356/(\w+)_rgb_anon\.png",
        r"gt/val/night/GOPR0356/(\w+)_gt_labelIds\.png", _dark_zurich, "Dark_Zurich[^/]*",
        ("Dark_Zurich_val_anon.zip",), split="validation"),
    "foodseg103": Rule(
        r"img_dir/test/(\d+)\.jpg", r"ann_dir/test/(\d+)\.png",
        _numbers(labels.rank_of(range(104))), "FoodSeg103", ("FoodSeg103.zip",)),
    "mhp_v1": Rule(
        r"images/(\d+)\.jpg", r"annotations/(\d+)_(\d+_\d+)\.png", _mhp, "LV-MHP-v1",
        ("LV-MHP-v1.zip",), keys=_listed(r"test_list\.txt")),
    "bdd100k": Rule(
        r"images/10k/val/([\w-]+)\.jpg", r"labels/sem_seg/masks/val/([\w-]+)\.png",
        _numbers(labels.rank_of(range(19), void=[255])), "bdd100k[^/]*",
        ("bdd100k_images_10k.zip", "bdd100k_sem_seg_labels_trainval.zip"), split="validation"),
    "atlantis": Rule(
        r"images/test/[^/]+/([^/]+)\.jpg", r"masks/test/[^/]+/([^/]+)\.png",
        _numbers(labels.rank_of(range(1, 57), void=[0])), "(?i:atlantis)[^/]*",
        ("atlantis*.zip", "ATLANTIS*.zip")),
    "dram": Rule(
        r"test/(?:[^/]+/)*([^/]+)/([^/]+)\.jpg", r"labels/(?:[^/]+/)*([^/]+)/([^/]+)\.png",
        _numbers({**dict.fromkeys(range(21), 11), 255: labels.VOID,
                  **labels.rank_of((3, 4, 5, 8, 9, 10, 12, 13, 15, 16, 17))}), "DRAM_processed",
        ("DRAM_processed.zip",)),
    "isaid": Rule(
        r"(P\d+)\.png", r"(P\d+)_instance_color_RGB\.png",
        _colors((0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191),
                (0, 63, 255), (0, 127, 63), (0, 127, 127), (0, 0, 127), (0, 0, 191), (0, 0, 255),
                (0, 191, 127), (0, 127, 191), (0, 127, 255), (0, 100, 155)),
        archives=("iSAID*.zip", "part1.zip", "images.zip"), split="validation", tiles=9),
    "isprs_potsdam": Rule(
        r"(top_potsdam_\d+_\d+)_IRRG\.tif", r"(top_potsdam_\d+_\d+)_label\.tif", _potsdam,
        archives=("Potsdam.zip", "3_Ortho_IRRG.zip", "5_Labels_all.zip"), tiles=36,
        keys=lambda files, below: [f"top_potsdam_{a}" for a in (
            "2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13",
            "6_14", "6_15", "7_13")]),
    "worldfloods": Rule(
        r"test/S2/([^/]+)\.tif", r"test/gt/([^/]+)\.tif",
        _numbers(labels.rank_of((1, 2, 3), void=[0])), "(?i:worldfloods)[^/]*",
        ("[wW]orld[fF]loods*.zip", "test.zip"), tiles=15, pixels=_worldfloods_pixels),
    "floodnet": Rule(
        r"test/test-org-img/([^/]+)\.jpg", r"test/test-label-img/([^/]+)_lab\.png",
        _numbers(labels.rank_of(range(10))), "FloodNet-Supervised_v1.0",
        ("FloodNet-Supervised_v1.0.zip",), tiles=12),
    "uavid": Rule(
        r"uavid_val/(seq\d+)/Images/(\d+)\.png", r"uavid_val/(seq\d+)/Labels/(\d+)\.png",
        _colors((0, 0, 0), (128, 0, 0), (128, 64, 128), (0, 128, 0), (128, 128, 0), (64, 0, 128),
                (192, 0, 192), (64, 64, 0)),
        archives=("uavid_v1.5_official_release_image.zip",), split="validation", tiles=12),
    "kvasir_instrument": Rule(
        r"images/(\w+)\.jpg", r"masks/(\w+)\.png", _kvasir, "kvasir-instrument",
        ("kvasir-instrument.zip", "images.tar.gz", "masks.tar.gz"), keys=_listed(r"test\.txt")),
    "chase_db1": Rule(  # the first eight, 01L ... 04R, are for training
        r"(Image_(?:0[5-9]|1\d)[LR])\.jpg", r"(Image_(?:0[5-9]|1\d)[LR])_1stHO\.png",
        _numbers({0: 0, 1: 1}), "CHASEDB1", ("CHASEDB1.zip",)),
    "cryonuseg": Rule(
        r"tissue images/([^/]+)\.tif",
        r"Annotator 1 \(biologist second round of manual marks up\)/mask binary/([^/]+)\.png",
        _BINARY, "(?i:cryonuseg)[^/]*", ("[cC]ryo[nN]u[sS]eg*.zip", "archive.zip")),
    "paxray_lungs": Rule(classes=_paxray(0), **_PAXRAY),
    "paxray_mediastinum": Rule(classes=_paxray(10), **_PAXRAY),
    "paxray_bones": Rule(classes=_paxray(24), **_PAXRAY),
    "paxray_diaphragm": Rule(classes=_paxray(163), **_PAXRAY),
    "corrosion_cs": Rule(
        r"original/Test/images/([^/]+)\.jpe?g", r"original/Test/masks/([^/]+)\.png",
        _numbers(labels.rank_of(range(4))), "Corrosion Condition State Classification",
        ("Corrosion Condition State Classification.zip",)),
    "deepcrack": Rule(
        r"test_img/([^/]+)\.jpg", r"test_lab/([^/]+)\.png", _BINARY, "DeepCrack[^/]*",
        ("DeepCrack*.zip",)),
    "pst900": Rule(  # the picture is the thermal one
        r"test/thermal/([^/]+)\.png", r"test/labels/([^/]+)\.png",
        _numbers(labels.rank_of(range(5))), "PST900[^/]*", ("PST900_RGBT_Dataset.zip",)),
    "zerowaste": Rule(
        r"splits_final_deblurred/test/data/([^/]+)\.PNG",
        r"splits_final_deblurred/test/sem_seg/([^/]+)\.PNG", _numbers(labels.rank_of(range(5))),
        archives=("zerowaste-f-final.zip",)),
    "suim": Rule(
        r"TEST/images/([^/]+)\.jpg", r"TEST/masks/([^/]+)\.bmp",
        _colors((0, 0, 0), (0, 0, 255), (0, 255, 0), (0, 255, 255), (255, 0, 0), (255, 0, 255),
                (255, 255, 0), (255, 255, 255)), archives=("TEST.zip", "SUIM*.zip")),
    "cub_200": Rule(
        r"images/\d{3}\.[^/]+/([^/]+)\.jpg", r"segmentations/\d{3}\.[^/]+/([^/]+)\.png", _cub,
        "CUB_200_2011|segmentations", ("CUB_200_2011.tgz", "segmentations.tgz"), keys=_cub_keys),
    # Official colours: crop green, weed red. The benchmark has the two the other way round.
    "cwfid": Rule(classes=_colors((0, 0, 0), (255, 0, 0), (0, 255, 0)), **_CWFID),
    "cwfid_corrected": Rule(classes=_colors((0, 0, 0), (0, 255, 0), (255, 0, 0)), **_CWFID),
}
