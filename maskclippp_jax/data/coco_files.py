"""Panoptic segments and instances in COCO's own files, truth and predictions alike.

Pictures go by the name of their file without its ending (`picture_names`), which is what files of a
data set have in common; ids of pictures are numbers in some files and names in others.
"""

import collections
import pathlib
import typing
import urllib.parse

import cv2
import numpy as np
from etils import epath

from maskclippp_jax.data import images
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import storage, typed

Flag = typing.Literal[0, 1] | bool


class Image(typing.TypedDict):
    id: typed.Id | str
    file_name: typing.NotRequired[str | None]
    coco_url: typing.NotRequired[str | None]  # of LVIS, which gives the address alone
    height: typing.NotRequired[typed.Side | None]
    width: typing.NotRequired[typed.Side | None]
    neg_category_ids: typing.NotRequired[list[typed.Id]]
    not_exhaustive_category_ids: typing.NotRequired[list[typed.Id]]


class Category(typing.TypedDict):
    id: typed.Id
    name: typing.NotRequired[str]
    isthing: typing.NotRequired[Flag]
    supercategory: typing.NotRequired[str | None]
    frequency: typing.NotRequired[typing.Literal["r", "c", "f"]]


class Annotation(typing.TypedDict):
    image_id: typed.Id | str
    category_id: typed.Id
    id: typing.NotRequired[typed.Id | str | None]
    # Polygons or run lengths, which `run_lengths.read` checks.
    segmentation: typing.NotRequired[list | dict | None]
    iscrowd: typing.NotRequired[Flag | None]
    area: typing.NotRequired[float | None]
    bbox: typing.NotRequired[list[float] | None]


class Instances(typing.TypedDict):
    """A JSON of instances, of COCO or LVIS."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class Segment(typing.TypedDict):
    id: typed.Id
    category_id: typed.Id
    iscrowd: typing.NotRequired[Flag | None]
    area: typing.NotRequired[float | None]
    bbox: typing.NotRequired[list[float] | None]


class Segments(typing.TypedDict):
    image_id: typed.Id | str
    file_name: str
    segments_info: list[Segment]


class Panoptic(typing.TypedDict):
    """A panoptic JSON of COCO."""

    images: typing.NotRequired[list[Image]]
    annotations: list[Segments]
    categories: list[Category]


class InstanceResult(typing.TypedDict):
    image_id: typed.Id | str
    category_id: typed.Id
    score: float
    segmentation: dict


class PanopticPicture(typing.NamedTuple):
    name: str
    file: epath.Path      # PNG with ids as colours, see `read_ids`
    segments: list[dict]  # id, category_id and, in truth, iscrowd and area


class InstancePicture(typing.NamedTuple):
    name: str
    segments: list[dict]  # category_id, segmentation (run lengths) and, in truth, iscrowd and area
    negative: list[int]        # of LVIS: categories that are certainly absent
    not_exhaustive: list[int]  # and those of which there may be more


def picture_name(file: str) -> str:
    """"val/a%2Fb.png" -> "a/b": what `file_of` makes of a name is undone."""
    return urllib.parse.unquote(pathlib.PurePosixPath(file).stem)


def check_categories(categories: typing.Sequence[Category], where: object) -> None:
    """Raises a ValueError if two categories of a JSON, which messages call `where`, have one id."""
    often = collections.Counter(c["id"] for c in categories).most_common(1)
    if often and often[0][1] > 1:
        raise ValueError(f"{where} has two categories of the id {often[0][0]}; give each its own")


def picture_names(files: typing.Sequence[str], where: str) -> list[str]:
    """The `picture_name` of each file or, if two have the same, all paths without their endings.

    Args:
      files: as a JSON names them.
      where: the JSON, for messages.

    Raises:
      ValueError: these are not different either.
    """
    names = [picture_name(file) for file in files]
    if len(set(names)) == len(names):
        return names
    paths = [pathlib.PurePosixPath(file) for file in files]
    names = [urllib.parse.unquote(str(path.parent / path.stem)) for path in paths]
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{where} has {count} pictures called {name}, wanted files that differ "
                         "without their endings; keep or rename one")
    return names


def file_of(name: str, ending: str) -> str:
    """The name of a picture's file; characters that files cannot have are encoded as in URLs."""
    return f"{urllib.parse.quote(name, safe=' ')}{ending}"


def read_panoptic(file: str, folder: str) -> tuple[dict[int, bool], list[PanopticPicture]]:
    """Reads a panoptic JSON file.

    Args:
      file: path of the JSON.
      folder: of its PNG files.

    Returns:
      For each id of a category whether it is a thing, and the pictures in the file's order.

    Raises:
      FileNotFoundError: the JSON, or one of its PNG files, is not there.
      ValueError: it is no panoptic JSON, or names a picture twice.
    """
    content = typed.read(file, Panoptic)
    check_categories(content["categories"], file)
    is_thing = {}
    for category in content["categories"]:
        if "isthing" not in category:
            raise ValueError(f"{file} does not say of the category {category['id']} whether it "
                             "isthing, wanted a panoptic JSON of COCO")
        is_thing[category["id"]] = bool(category["isthing"])
    pictures = []
    rows = content["annotations"]
    for name, row in zip(picture_names([row["file_name"] for row in rows], file), rows):
        png = storage.path(folder) / row["file_name"]
        if not png.is_file():
            raise FileNotFoundError(f"no file {png}, which {file} names; is {folder} its folder?")
        segments = [dict(s, iscrowd=int(s.get("iscrowd") or 0)) for s in row["segments_info"]]
        pictures.append(PanopticPicture(name, png, segments))
    return is_thing, pictures


def read_instances(file: str) -> tuple[list[int], dict[int, str] | None,
                                       dict[int | str, InstancePicture]]:
    """Reads the ground truth of instances.

    Args:
      file: path of a JSON with images, annotations (polygons or run lengths) and categories, of
        COCO or LVIS.

    Returns:
      The ids of the categories, their frequencies ("r", "c", "f") if it is of LVIS, and the
      pictures by their id in the file.
    """
    content = typed.read(file, Instances)
    check_categories(content["categories"], file)
    pictures, sizes, files = {}, {}, []
    for image in content["images"]:
        file_name = image.get("file_name") or image.get("coco_url")
        if not file_name or not image.get("height") or not image.get("width"):
            raise ValueError(f"{file} has the image {image['id']} without file_name, height or "
                             "width, wanted a JSON of COCO or LVIS")
        if image["id"] in sizes:
            raise ValueError(f"{file} lists the image id {image['id']} twice; keep one")
        sizes[image["id"]] = image["height"], image["width"]
        files.append(file_name)
    for name, image in zip(picture_names(files, file), content["images"]):
        pictures[image["id"]] = InstancePicture(
            name, [], image.get("neg_category_ids", []),
            image.get("not_exhaustive_category_ids", []))
    for row in content["annotations"]:
        image = row["image_id"]
        if image not in pictures:
            raise ValueError(f"{file} has an annotation of the picture {image}, which it does not "
                             "list")
        segmentation = mask_of(row, sizes[image], f"{file}, picture {image}")
        area = row.get("area")
        pictures[image].segments.append(dict(
            category_id=row["category_id"], segmentation=segmentation,
            iscrowd=int(row.get("iscrowd") or 0),
            area=float(run_lengths.area(segmentation)) if area is None else area))
    frequency = {c["id"]: c["frequency"] for c in content["categories"] if "frequency" in c}
    return [c["id"] for c in content["categories"]], frequency or None, pictures


def read_results(file: str) -> list[InstanceResult]:
    """Reads predicted instances.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no JSON of COCO's results.
    """
    return typed.read(file, list[InstanceResult])


def mask_of(annotation: Annotation, size: tuple[int, int], name: str) -> dict:
    """The mask of an annotation as compressed run lengths; without a segmentation it is empty.

    Args:
      annotation: as it stands in the file.
      size: height and width of its picture.
      name: of file or picture, for messages.

    Raises:
      ValueError: damaged, or for another size.
    """
    number = annotation.get("id")
    try:
        return run_lengths.read(annotation.get("segmentation") or [], size)
    except ValueError as error:
        raise ValueError(f"{name}, annotation {number}: the mask {error}") from None


def read_ids(file: epath.Path) -> np.ndarray:
    """The ids of a panoptic PNG, R + 256 G + 65536 B: [H, W] int32."""
    data = storage.path(file).read_bytes()
    images.check_header(data, str(file))
    colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if colours is None:
        raise ValueError(f"{file} cannot be read as a picture")
    return colours.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def write_ids(file: epath.Path, ids: np.ndarray) -> None:
    """Writes a panoptic PNG of ids below 2 ** 24: [H, W] integer."""
    colours = (ids.astype(np.int32)[..., None] >> np.array([16, 8, 0])).astype(np.uint8)  # BGR
    write_png(file, colours)


def write_png(file: epath.Path, array: np.ndarray) -> None:
    """Writes a PNG whole or not at all: [H, W] uint8 or uint16, or [H, W, 3] uint8 in BGR."""
    ok, data = cv2.imencode(".png", array)
    assert ok
    storage.write(file, data.tobytes(), durable=False)
