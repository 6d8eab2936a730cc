"""A JSON file of Label Studio: one task a picture."""

import re
import typing
import warnings

import numpy as np

from maskclippp_jax.data import brush_codes, images
from maskclippp_jax.data.prepare import labels, own_listed, own_masks
from maskclippp_jax.data.prepare.raw import File
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime.console import counted

_POINTS = "keypointlabels"  # as of prompts of SAM; they have no inside


class _Value(typing.TypedDict, total=False):
    """Of Label Studio; numbers are percent of the picture's sides."""

    points: list[tuple[float, float]]
    x: float
    y: float
    width: float
    height: float
    radiusX: float  # of an ellipse, whose center is x, y
    radiusY: float
    rotation: float
    rle: list[int]  # of a brush, see `brush_codes`
    polygonlabels: list[str]
    rectanglelabels: list[str]
    ellipselabels: list[str]
    brushlabels: list[str]
    labels: list[str]  # of a region of any kind


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


def read(path: str) -> own_listed.Listed:
    """The tasks of a JSON.

    Raises:
      ValueError: it is no JSON of Label Studio.
    """
    tasks = File((), path).json(list[Task])
    if not tasks:
        raise ValueError(f"{path} is an empty list, wanted a file of COCO's form or the tasks of "
                         "Label Studio")
    rows, points = [], 0
    for n, task in enumerate(tasks):
        name = next((v for v in task["data"].values() if isinstance(v, str)), None)
        if name is None:
            raise ValueError(f"{path}: the task {task.get('id', n)} has no picture in its data")
        points += sum(r["type"] == _POINTS for work in task["annotations"] for r in work["result"])
        place = name.rpartition("?d=")[2]  # of local files: "/data/local-files/?d=photos/p.jpg"
        rows.append(((place, _without_id(place)), task))
    if points:
        warnings.warn(f"{path}: left out {counted(points, 'key point')}, which mark no pixels",
                      stacklevel=2)
    return own_listed.Listed("Label Studio", None, rows, _make)


def _make(masks: own_masks.Masks, item: tuple[str, File, Task]) -> list[dict]:
    """A task of Label Studio."""
    image_id, picture, task = item
    image = labels.read_picture(picture)
    size, found = images.size_of(image), []
    works = [w for w in task["annotations"] if not w.get("was_cancelled") and w["result"]]
    if len(works) > 1:
        raise ValueError(f"{image_id}: the task {task.get('id')} has {len(works)} annotations by "
                         "different people; keep one")
    for n, result in enumerate(works[0]["result"] if works else ()):
        where, value = f"{image_id}, result {n}", result.get("value", {})
        if not result["type"].endswith("labels") or result["type"] == _POINTS:
            continue  # choices, texts and the like, and regions whose labels are a result apart
        if result["type"] not in _Value.__annotations__:
            kind = own_masks.a(result["type"].removesuffix("labels"))
            raise ValueError(f"{where} is {kind}, which is not read; draw a polygon, a rectangle, "
                             "an ellipse or with a brush, or remove it")
        names = value.get(result["type"]) or []
        if len(names) != 1:
            raise ValueError(f"{where} has {len(names)} labels, wanted one")
        c = masks.class_named(names[0], where)
        if c is not None:
            found.append((c, _code_of(_kind_of(result["type"], value), value, size, where), False))
    return masks.record(image_id, image, found)


def _kind_of(label: str, value: _Value) -> str:
    """The form of a region: what its type says, else what its value has."""
    if label != "labels":
        return label.removesuffix("labels")
    keys = dict(points="polygon", radiusX="ellipse", rle="brush", width="rectangle")
    return next((kind for key, kind in keys.items() if key in value), "region")


def _code_of(kind: str, value: _Value, size: tuple[int, int], where: str) -> dict:
    """The run lengths of a region."""
    scale = np.array(size[::-1], np.float64) / 100

    def numbers(*keys: str) -> np.ndarray:
        if lacking := set(keys) - set(value):
            raise ValueError(f"{where} is {own_masks.a(kind)} without "
                             f"{', '.join(sorted(lacking))}")
        return np.array([value[key] for key in keys]).reshape(2, 2) * scale

    turned = value.get("rotation", 0.0)
    if kind == "brush":
        return _of_brush(value, size, where)
    if kind == "polygon":
        points = np.array(value.get("points", ()), np.float64).reshape(-1, 2) * scale
    elif kind == "rectangle":
        points = own_masks.turned_rectangle(*numbers("x", "y", "width", "height"), turned)
    elif kind == "ellipse":
        points = own_masks.ellipse(*numbers("x", "y", "radiusX", "radiusY"), turned)
    else:
        raise ValueError(f"{where} is {own_masks.a(kind)}, which has no inside; draw a polygon, a "
                         "rectangle, an ellipse or with a brush, or leave its label out with "
                         "--leave_out")
    return run_lengths.of_polygons([points.tolist()], size)


def _of_brush(value: _Value, size: tuple[int, int], where: str) -> dict:
    try:
        return run_lengths.encode(brush_codes.decode(value.get("rle", ()), size))
    except ValueError as error:
        raise ValueError(f"{where}: what was drawn with a brush {error}") from None


def _without_id(name: str) -> str:
    """Label Studio puts 8 hexadecimal digits in front of what was uploaded: "1a2b3c4d-p.jpg"."""
    return re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", name)
