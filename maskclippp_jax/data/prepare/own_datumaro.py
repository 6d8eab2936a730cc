"""Datumaro's JSON."""

import contextlib
import typing

import numpy as np

from maskclippp_jax.data import images
from maskclippp_jax.data.prepare import labels, own_listed, own_masks
from maskclippp_jax.data.prepare.raw import File
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import typed


class _Annotation(typing.TypedDict):
    type: str
    label_id: typing.NotRequired[typed.Id | None]
    points: typing.NotRequired[list[float]]  # x, y, x, y, ... in pixels
    rle: typing.NotRequired[dict]
    bbox: typing.NotRequired[list[float]]    # left, top, width, height
    attributes: typing.NotRequired[dict[str, typing.Any] | None]


class _Media(typing.TypedDict, total=False):
    path: str
    size: list[int] | None  # height and width


class _Item(typing.TypedDict):
    id: str
    annotations: list[_Annotation]
    image: typing.NotRequired[_Media | None]
    media: typing.NotRequired[_Media | None]


class _Label(typing.TypedDict):
    name: str


class _Labels(typing.TypedDict):
    labels: list[_Label]


class _Categories(typing.TypedDict):
    label: _Labels


class _Content(typing.TypedDict):
    categories: _Categories
    items: list[_Item]


def read(path: str) -> own_listed.Listed:
    """The items of a JSON of Datumaro.

    Raises:
      ValueError: it is none.
    """
    content = File((), path).json(_Content)
    names = [label["name"] for label in content["categories"]["label"]["labels"]]
    rows = []
    for item in content["items"]:
        media = item.get("image") or item.get("media") or {}
        ways = tuple(dict.fromkeys(filter(None, (media.get("path"), item["id"]))))
        size = tuple(media.get("size") or (None, None))
        shapes = [(_name_of(a, names, f"{path}, {item['id']}"), a) for a in item["annotations"]]
        rows.append((ways, (size, shapes)))
    return own_listed.Listed("Datumaro", names, rows, _make)


def _name_of(annotation: _Annotation, names: list[str], where: str) -> str | None:
    number = annotation.get("label_id")
    if number is not None and not 0 <= number < len(names):
        raise ValueError(f"{where} uses the label {number}, of which there are {len(names)}")
    return None if number is None else names[number]


def _make(masks: own_masks.Masks, item: tuple[str, File, tuple]) -> list[dict]:
    image_id, picture, (stated, shapes) = item
    image = labels.read_picture(picture)
    size, found = images.size_of(image), []
    own_masks.check_size(stated, size, f"{image_id} in the JSON", picture)
    for n, (name, shape) in enumerate(shapes):
        where = f"{image_id}, annotation {n}"
        if shape["type"] in ("label", "caption"):
            continue
        if name is None:
            raise ValueError(f"{where} has no label; give it one, or remove it")
        c = masks.class_named(name, where)
        if c is None:
            continue
        try:
            found.append((c, _code_of(shape, size), False))
        except ValueError as error:
            raise ValueError(f"{where}: the mask {error}") from None
    return masks.record(image_id, image, found)


def _code_of(shape: _Annotation, size: tuple[int, int]) -> dict:
    if shape["type"] == "polygon":
        return run_lengths.of_polygons([shape.get("points") or []], size)
    if shape["type"] == "mask":
        return run_lengths.read(shape.get("rle") or {}, size)
    if shape["type"] == "bbox" and len(shape.get("bbox") or ()) == 4:
        corner, sides = np.array(shape["bbox"]).reshape(2, 2)
        turned = (shape.get("attributes") or {}).get("rotation") or 0.0  # degrees, of CVAT
        with contextlib.suppress(TypeError, ValueError):
            turned = float(turned)  # some write it as a text
        if not isinstance(turned, float) or not np.isfinite(turned):
            raise ValueError(f"has the rotation {turned!r}, wanted degrees")
        return run_lengths.of_polygons([own_masks.turned_box(
            corner + sides / 2, sides, turned).tolist()], size)
    raise ValueError(f"is of the type {shape['type']!r}, wanted polygon, mask or bbox; export one "
                     "of these, or leave its label out with --leave_out")
