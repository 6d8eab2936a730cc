"""A user's own masks in files of one picture each, as annotation tools write them.

Each function makes the record of an item (id, picture, file or files) of one form.
"""

import base64
import binascii
import pathlib
import re
import typing
import zlib

import numpy as np

from maskclippp_jax.data import coco_files, images, records
from maskclippp_jax.data.prepare import labels
from maskclippp_jax.data.prepare.raw import File
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import typed
from maskclippp_jax.runtime.console import counted
from maskclippp_jax.vocabulary import Vocabulary, plain

_NAMES = ("label", "class", "category", "name")  # keys of a mask's name in a JSON
_CORNERS = 64  # of a circle's polygon

_Entry = typing.TypedDict("_Entry", dict(
    segmentation=list | dict | None, category_id=typed.Id, iscrowd=coco_files.Flag | None,
    **{name: str | int for name in _NAMES}), total=False)


class _Shape(typing.TypedDict):
    """Of LabelMe; points are [x, y] in pixels."""

    label: str
    points: list[tuple[float, float]]
    shape_type: typing.NotRequired[str | None]
    mask: typing.NotRequired[str | None]  # PNG in base 64, of the rectangle of two points


class _Bitmap(typing.TypedDict):
    data: str            # PNG, packed by zlib, in base 64
    origin: list[int]    # left and top


class _Rings(typing.TypedDict, total=False):
    exterior: list[tuple[float, float]]
    interior: list[list[tuple[float, float]]]


class _Object(typing.TypedDict):
    """Of Supervisely."""

    classTitle: str
    geometryType: str
    points: typing.NotRequired[_Rings]
    bitmap: typing.NotRequired[_Bitmap | None]


class _PictureSize(typing.TypedDict):
    height: typed.Side
    width: typed.Side


class _OfPicture(typing.TypedDict):
    """A JSON of one picture: of LabelMe, of Supervisely, or masks under `annotations`."""

    objects: typing.NotRequired[list[_Object]]
    size: typing.NotRequired[_PictureSize]
    annotations: typing.NotRequired[list[_Entry]]
    shapes: typing.NotRequired[list[_Shape]]
    imageHeight: typing.NotRequired[typed.Side | None]
    imageWidth: typing.NotRequired[typed.Side | None]


class Masks(typing.NamedTuple):
    """How masks with names become those of classes."""

    vocabulary: Vocabulary
    left_out: tuple[str, ...]  # as `plain` gives them
    keep_crowds: bool

    def class_named(self, text: str, where: object) -> int | None:
        """The class with this name, None if it is left out; a number at its end is allowed."""
        for name in (text, without_number(text)):
            if plain(name) in self.left_out:
                return None
            if (found := self.vocabulary.find(name)) is not None:
                return found
        raise ValueError(f"{where}: {self.vocabulary.name} has no class {text!r}; add it, or leave "
                         "its masks out with --leave_out=NAME")

    def class_numbered(self, number: int, where: object) -> int:
        """The class with this number."""
        if number not in self.vocabulary.dataset_ids:
            raise ValueError(f"{where} has the class {number}, to which {self.vocabulary.name} "
                             "gives no name")
        return self.vocabulary.dataset_ids.index(number)

    def record(self, image_id: str, image: bytes,
               found: typing.Sequence[tuple[int | None, dict, bool]]) -> list[dict]:
        """The record of a picture and its masks: class (None: left out), run lengths, crowd."""
        kept = [(c, code, crowd) for c, code, crowd in found if c is not None]
        rows = [records.Segment(c, self.vocabulary.is_thing[c], crowd and not self.keep_crowds)
                for c, _, crowd in kept]
        return [records.instance_record(image, image_id, images.size_of(image),
                                        [code for _, code, _ in kept], rows)]


def without_number(name: str) -> str:
    """"cat_1" -> "cat"."""
    return re.sub(r"[ _.-]*\d+$", "", name)


def check_left_out(leave_out: typing.Sequence[str], names: typing.Sequence[str], what: str,
                   others: typing.Sequence[str] = ()) -> None:
    """Refuses --leave_out with what is none of the names that a file lists; `what` they are of."""
    known = {*map(plain, names), *map(plain, others)}
    unknown = [name for name in dict.fromkeys(leave_out) if plain(name) not in known]
    if unknown:
        raise ValueError(f"--leave_out names {', '.join(map(repr, unknown))}, but there is no such "
                         f"{what}; there are {', '.join(names)}")


def from_folder(masks: Masks, item: tuple[str, File, list[File]]) -> list[dict]:
    """`x/<class name>_<number>.png`."""
    return from_class_folders(masks, (*item[:2], [
        (pathlib.PurePath(file.path).stem, file) for file in item[2]]))


def from_class_folders(masks: Masks, item: tuple[str, File, list[tuple[str, File]]]
                       ) -> list[dict]:
    """`<class name>/x.png`: for each file the name of its class."""
    image_id, picture, files = item
    image = labels.read_picture(picture)
    size, found = images.size_of(image), []
    for name, file in files:
        c = masks.class_named(name, file)
        if c is None:
            continue
        mask = labels.upright(images.decode_mask(file.read(), str(file)), picture)
        if mask.shape != size:
            raise ValueError(f"{file} has {mask.shape[1]}x{mask.shape[0]} pixels, its picture "
                             f"{size[1]}x{size[0]}")
        found.append((c, run_lengths.encode(mask), False))
    return masks.record(image_id, image, found)


def from_json(masks: Masks, item: tuple[str, File, File], *, wanted: str | None = None
              ) -> list[dict]:
    """`x.json`: LabelMe's, Supervisely's, or a list of masks, also under `annotations`.

    `wanted` is "labelme", "supervisely" or "json" if it must be of this form.
    """
    image_id, picture, file = item
    content = file.json(list[_Entry] | _OfPicture)
    form = next((form for key, form in (("shapes", "labelme"), ("objects", "supervisely"))
                 if key in content and isinstance(content, dict)), "json")
    if wanted not in (None, form):
        raise ValueError(f"{file} is of the form {form!r}, not of --format={wanted}")
    image = labels.read_picture(picture)
    size = images.size_of(image)
    if isinstance(content, dict) and "shapes" in content:
        check_size((content.get("imageHeight"), content.get("imageWidth")), size, file, picture)
        found = [_of_shape(masks, shape, size, f"{file}, shape {n}")
                 for n, shape in enumerate(content["shapes"])]
        return masks.record(image_id, image, found)
    if isinstance(content, dict) and "objects" in content:
        stated = content.get("size", {})
        check_size((stated.get("height"), stated.get("width")), size, file, picture)
        found = [_of_object(masks, thing, size, f"{file}, object {n}")
                 for n, thing in enumerate(content["objects"])]
        return masks.record(image_id, image, found)
    if isinstance(content, dict) and "annotations" not in content:
        raise ValueError(f"{file} has neither shapes, as LabelMe writes them, nor objects, as "
                         "Supervisely, nor annotations")
    entries = content["annotations"] if isinstance(content, dict) else content
    found = []
    for n, entry in enumerate(entries):
        where = f"{file}, mask {n}"
        name = next((entry[k] for k in _NAMES if k in entry), None)
        if "segmentation" not in entry or (name is None and "category_id" not in entry):
            raise ValueError(f"{where}: wanted segmentation, and category_id or label; masks "
                             "without classes, as SAM's, are for predict and evaluate")
        c = (masks.class_named(str(name), file) if name is not None
             else masks.class_numbered(entry["category_id"], where))
        if c is None:
            continue
        code = coco_files.mask_of(dict(entry, id=n), size, str(file))
        found.append((c, code, bool(entry.get("iscrowd"))))
    return masks.record(image_id, image, found)


def from_yolo(masks: Masks, item: tuple[str, File, File]) -> list[dict]:
    """`x.txt`: a polygon a line, its class' number, then x and y in shares of the sides."""
    image_id, picture, file = item
    image = labels.read_picture(picture)
    size, found = images.size_of(image), []
    scale = np.array(size[::-1], np.float64)
    try:
        lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8, wanted lines of numbers") from None
    for n, line in enumerate(lines, start=1):
        where = f"{file}, line {n}"
        if not line.strip():
            continue
        number, *shares = line.split()
        if len(shares) == 4:
            raise ValueError(f"{where} is a box, wanted a polygon (class x y x y x y ...); export "
                             "labels of segmentation")
        try:
            number, points = int(number), np.array(shares, np.float64).reshape(-1, 2)
        except ValueError:
            raise ValueError(f"{where}: got {line[:60]!r}, wanted a class' number, then x and y of "
                             "each point") from None
        if not ((points >= -0.5) & (points <= 1.5)).all():
            raise ValueError(f"{where} has points beyond the picture, wanted shares of its sides "
                             "in 0 ... 1; are they pixels?")
        code = run_lengths.of_polygons([(points * scale).tolist()], size)
        found.append((masks.class_numbered(number, where), code, False))
    return masks.record(image_id, image, found)


def a(kind: str) -> str:
    """"a line", "an ellipse"."""
    return f"{'an' if kind[:1] in tuple('aeiou') else 'a'} {kind}"


def turned_rectangle(corner: np.ndarray, sides: np.ndarray, degrees: float) -> np.ndarray:
    """The corners [4, 2] of a rectangle that is turned clockwise around its first one, in pixels.

    Args:
      corner: [2] x and y.
      sides: [2] width and height.
      degrees: how far it is turned.
    """
    angle = np.deg2rad(degrees)
    along = sides[0] * np.array([np.cos(angle), np.sin(angle)])
    down = sides[1] * np.array([-np.sin(angle), np.cos(angle)])
    return np.array([corner, corner + along, corner + along + down, corner + down])


def turned_box(center: np.ndarray, sides: np.ndarray, degrees: float) -> np.ndarray:
    """The corners [4, 2] of a rectangle that is turned clockwise around its center, in pixels."""
    corners = turned_rectangle(np.zeros(2), sides, degrees)
    return corners - corners.mean(0) + center


def ellipse(center: np.ndarray, radii: np.ndarray, degrees: float = 0.0) -> np.ndarray:
    """Corners [n, 2] of a polygon for an ellipse that is turned clockwise, in pixels."""
    turns = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    angle = np.deg2rad(degrees)
    along, down = (r * part for r, part in zip(radii, (np.cos(turns), np.sin(turns))))
    return center + np.stack([along * np.cos(angle) - down * np.sin(angle),
                              along * np.sin(angle) + down * np.cos(angle)], -1)


def check_size(stated: tuple, size: tuple[int, int], file: object, picture: File) -> None:
    """Refuses annotations of a picture of another size; None in `stated` fits any."""
    if None not in stated and tuple(stated) != size:
        raise ValueError(f"{file} is of a picture of {stated[1]}x{stated[0]} pixels, "
                         f"{picture} has {size[1]}x{size[0]}" + (
                             "; was it turned by its EXIF orientation?"
                             if tuple(stated) == size[::-1] else ""))


def _of_shape(masks: Masks, shape: _Shape, size: tuple[int, int], where: str
              ) -> tuple[int | None, dict, bool]:
    """Class, run lengths, and that it is no crowd, of a shape of LabelMe."""
    c = masks.class_named(shape["label"], where)
    if c is None:
        return c, {}, False
    points, kind = np.array(shape["points"], np.float64).reshape(-1, 2), shape.get("shape_type")
    wanted = dict(rectangle=2, circle=2, mask=2).get(kind or "polygon", len(points))
    if len(points) != wanted:
        raise ValueError(f"{where} is {a(kind)} of {counted(len(points), 'point')}, wanted "
                         f"{wanted}")
    if kind == "mask":
        return c, _of_patch(shape.get("mask") or "", points, size, where), False
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif kind == "circle":
        points = ellipse(points[0], np.hypot(*(points[1] - points[0])).repeat(2))
    elif kind not in (None, "polygon"):
        raise ValueError(f"{where} is {a(kind)}, which has no inside or is not read; draw a "
                         "polygon, or leave its label out with --leave_out")
    return c, run_lengths.of_polygons([points.tolist()], size), False


def _of_object(masks: Masks, thing: _Object, size: tuple[int, int], where: str
               ) -> tuple[int | None, dict, bool]:
    """Class, run lengths, and that it is no crowd, of an object of Supervisely."""
    c, kind = masks.class_named(thing["classTitle"], where), thing["geometryType"]
    if c is None:
        return c, {}, False
    outer = thing.get("points", {}).get("exterior", [])
    if kind == "bitmap":
        bitmap = thing.get("bitmap") or dict(data="", origin=[])
        if len(bitmap["origin"]) != 2:
            raise ValueError(f"{where} is a bitmap without an origin")
        return c, _of_patch(bitmap["data"], np.array([bitmap["origin"]]), size, where,
                            unpack=_unpacked), False
    if kind == "rectangle" and len(outer) == 2:
        (left, top), (right, bottom) = outer  # pixels, the last ones belong to it
        outer = [(left, top), (right + 1, top), (right + 1, bottom + 1), (left, bottom + 1)]
    elif kind != "polygon":
        raise ValueError(f"{where} is {a(kind)}, which has no inside or is not read; draw a "
                         "polygon or a mask, or leave its class out with --leave_out")
    mask = run_lengths.decode(run_lengths.of_polygons([outer], size))
    for hole in thing.get("points", {}).get("interior", []):
        mask &= ~run_lengths.decode(run_lengths.of_polygons([hole], size))
    return c, run_lengths.encode(mask), False


def _unpacked(data: bytes) -> bytes:
    """What zlib packed; no more than the largest picture has in bits and bytes of PNG."""
    return zlib.decompressobj().decompress(data, run_lengths.MOST_PIXELS)


def _of_patch(text: str, points: np.ndarray, size: tuple[int, int], where: str,
              unpack: typing.Callable[[bytes], bytes] = lambda data: data) -> dict:
    """A mask that LabelMe and Supervisely keep as a picture of its rectangle."""
    try:
        patch = images.decode_mask(unpack(base64.b64decode(text, validate=True)), where)
    except (binascii.Error, zlib.error):
        raise ValueError(f"{where} holds no picture in base 64") from None
    left, top = (int(n) for n in points[0])
    mask = np.zeros(size, bool)
    if left < 0 or top < 0 or top + patch.shape[0] > size[0] or left + patch.shape[1] > size[1]:
        raise ValueError(f"{where} is a mask that reaches beyond the picture")
    mask[top:top + patch.shape[0], left:left + patch.shape[1]] = patch
    return run_lengths.encode(mask)
