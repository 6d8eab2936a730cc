"""Panoptic segments and instances in COCO's own files, truth and predictions alike.

Pictures go by the name of their file without its ending (`picture_name`), which is what files of a
data set have in common; ids of pictures are numbers in some files and names in others.
"""

import json
import pathlib
import typing
import urllib.parse

import cv2
import numpy as np
from etils import epath
from pycocotools import mask as rle

from maskclippp_jax.runtime import storage


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
      ValueError: it is no panoptic JSON.
    """
    content = _read_json(file, "annotations", "categories")
    pictures = []
    for row in content["annotations"]:
        if "segments_info" not in row or "file_name" not in row:
            raise ValueError(f"{file} has an annotation without segments_info or file_name, wanted "
                             "a panoptic JSON of COCO")
        png = storage.path(folder) / row["file_name"]
        if not png.is_file():
            raise FileNotFoundError(f"no file {png}, which {file} names; is {folder} its folder?")
        segments = [dict(s, iscrowd=s.get("iscrowd", 0)) for s in row["segments_info"]]
        pictures.append(PanopticPicture(picture_name(row["file_name"]), png, segments))
    return {c["id"]: bool(c["isthing"]) for c in content["categories"]}, pictures


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
    content = _read_json(file, "images", "annotations", "categories")
    pictures = {}
    for image in content["images"]:
        name = image.get("file_name") or image.get("coco_url")  # LVIS has the address alone
        if not name:
            raise ValueError(f"{file} has the image {image['id']} without a file_name, wanted a "
                             "JSON of COCO or LVIS")
        pictures[image["id"]] = InstancePicture(
            picture_name(name), [], image.get("neg_category_ids", []),
            image.get("not_exhaustive_category_ids", []))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for row in content["annotations"]:
        image = row["image_id"]
        if image not in pictures:
            raise ValueError(f"{file} has an annotation of the picture {image}, which it does not "
                             "list")
        segmentation = run_lengths(row["segmentation"], *sizes[image])
        pictures[image].segments.append(dict(
            category_id=row["category_id"], segmentation=segmentation,
            iscrowd=row.get("iscrowd", 0),
            area=row.get("area", float(rle.area(segmentation)))))
    frequency = {c["id"]: c["frequency"] for c in content["categories"] if "frequency" in c}
    return [c["id"] for c in content["categories"]], frequency or None, pictures


def read_results(file: str) -> list[dict]:
    """Reads predicted instances: image_id, category_id, score and segmentation of each.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no JSON of COCO's results.
    """
    rows = _read_json(file)
    wanted = {"image_id", "category_id", "score", "segmentation"}
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, dict) or not wanted <= set(row):
            raise ValueError(f"{file} holds {str(row)[:60]!r}, wanted a list of results of COCO's "
                             f"form with {', '.join(sorted(wanted))}")
    return rows


def run_lengths(segmentation: list | dict, height: int, width: int) -> dict:
    """Polygons, or run lengths in either form, as compressed run lengths."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)
    return segmentation


def read_ids(file: epath.Path) -> np.ndarray:
    """The ids of a panoptic PNG, R + 256 G + 65536 B: [H, W] int32."""
    content = np.frombuffer(storage.path(file).read_bytes(), np.uint8)
    colours = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if len(content) else None
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
    storage.write(file, data.tobytes())


def _read_json(file: str, *keys: str):
    path = storage.path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file {file}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error})") from None
    missing = [k for k in keys if not isinstance(content, dict) or k not in content]
    if missing:
        raise ValueError(f"{file} has no {', '.join(missing)}; wanted a JSON of COCO's form")
    return content
