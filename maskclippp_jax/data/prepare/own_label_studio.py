"""A JSON file of Label Studio: one task a picture."""

import functools
import hashlib
import typing

import numpy as np

from maskclippp_jax.data import brush_codes, images
from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import labels, own_masks, paths
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import storage


class _Value(typing.TypedDict, total=False):
    """Of Label Studio; numbers are percent of the picture's sides."""

    points: list[tuple[float, float]]
    x: float
    y: float
    width: float
    height: float
    rotation: float
    polygonlabels: list[str]
    rectanglelabels: list[str]
    rle: list[int]  # of a brush, see `brush_codes`
    brushlabels: list[str]


class _Result(typing.TypedDict):
    type: str
    value: typing.NotRequired[_Value]


class _Work(typing.TypedDict):
    result: list[_Result]
    was_cancelled: typing.NotRequired[bool | None]


class Task(typing.TypedDict):
    """A picture in Label Studio's JSON."""

    id: typing.NotRequired[int | str]
    data: dict[str, typing.Any]
    annotations: list[_Work]


def are_in(path: str) -> bool:
    """Whether a JSON file is a list, which no file of COCO is."""
    head = storage.path(path).read_bytes()[:64].removeprefix(b"\xef\xbb\xbf")
    return head.lstrip().startswith(b"[")


def read(pictures_at: Files, pattern: str, path: str, masks: own_masks.Masks) -> Reading:
    """Finds the pictures of the tasks.

    Args:
      pictures_at: where they are.
      pattern: of their names' endings.
      path: of the JSON.
      masks: the classes.

    Raises:
      ValueError: it is no JSON of Label Studio, or two tasks are of one picture.
    """
    file = File((), path)
    tasks = file.json(list[Task])
    if not tasks:
        raise ValueError(f"{path} is an empty list, wanted a file of COCO's form or the tasks of "
                         "Label Studio")
    pictures = paths.Paths(pictures_at.find(f"(.+{pattern})"))
    items, lost, seen = [], [], set()
    for n, task in enumerate(tasks):
        name = next((v for v in task["data"].values() if isinstance(v, str)), None)
        if name is None:
            raise ValueError(f"{path}: the task {task.get('id', n)} has no picture in its data")
        place = name.rpartition("?d=")[2]  # of local files: "/data/local-files/?d=photos/p.jpg"
        picture = pictures.find(place) or pictures.find(_without_id(place))
        if picture is None:
            lost.append(name)
            continue
        if picture[0] in seen:
            raise ValueError(f"{path} has two tasks of the picture {picture[0]}; keep one")
        seen.add(picture[0])
        items.append((*picture, task))
    missing = [f"{len(lost)} pictures that {path} names are missing, e.g. "
               f"{', '.join(sorted(lost)[:3])}"] if lost else []
    content = hashlib.sha1(file.read()).hexdigest()
    fingerprint = pictures_at.fingerprint + content + repr(masks.left_out)
    note = f"took the labels for those of Label Studio, {len(items)} tasks have a picture"
    return Reading({"train": items}, functools.partial(_make, masks), missing,
                   fingerprint, notes=[note])


def _make(masks: own_masks.Masks, item: tuple[str, File, Task]) -> list[dict]:
    """A task of Label Studio."""
    image_id, picture, task = item
    image = labels.read_picture(picture)
    size, found = images.size_of(image), []
    scale = np.array(size[::-1], np.float64) / 100
    works = [w for w in task["annotations"] if not w.get("was_cancelled") and w["result"]]
    if len(works) > 1:
        raise ValueError(f"{image_id}: the task {task.get('id')} has {len(works)} annotations by "
                         "different people; keep one")
    for n, result in enumerate(works[0]["result"] if works else ()):
        where, value = f"{image_id}, result {n}", result.get("value", {})
        if result["type"] == "polygonlabels":
            points = np.array(value.get("points", ()), np.float64).reshape(-1, 2) * scale
        elif result["type"] == "rectanglelabels":
            points = _turned_rectangle(value, scale, where)
        elif result["type"] != "brushlabels":
            continue  # choices, texts and the like
        names = value.get(result["type"]) or []
        if len(names) != 1:
            raise ValueError(f"{where} has {len(names)} labels, wanted one")
        code = (_of_brush(value, size, where) if result["type"] == "brushlabels"
                else run_lengths.of_polygons([points.tolist()], size))
        found.append((masks.class_named(names[0], where), code, False))
    return masks.record(image_id, image, found)


def _of_brush(value: _Value, size: tuple[int, int], where: str) -> dict:
    try:
        return run_lengths.encode(brush_codes.decode(value.get("rle", ()), size))
    except ValueError as error:
        raise ValueError(f"{where}: what was drawn with a brush {error}") from None


def _turned_rectangle(value: _Value, scale: np.ndarray, where: str) -> np.ndarray:
    """The corners of a rectangle that is turned clockwise around its first one, in pixels."""
    lacking = {"x", "y", "width", "height"} - set(value)
    if lacking:
        raise ValueError(f"{where} is a rectangle without {', '.join(sorted(lacking))}")
    corner = np.array([value["x"], value["y"]]) * scale
    width, height = np.array([value["width"], value["height"]]) * scale
    angle = np.deg2rad(value.get("rotation", 0.0))
    along = width * np.array([np.cos(angle), np.sin(angle)])
    down = height * np.array([-np.sin(angle), np.cos(angle)])
    return np.array([corner, corner + along, corner + along + down, corner + down])


def _without_id(name: str) -> str:
    """Label Studio puts some characters in front of the name of what was uploaded: "1a2b-p.jpg"."""
    folder, _, file = name.rpartition("/")
    first, dash, rest = file.partition("-")
    return f"{folder}/{rest}" if dash and rest and first.isalnum() else name
