"""Exports of CVAT: its XML of pictures, and its masks as colours with a labelmap.txt (also VOC's).
"""

import re
import typing
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from maskclippp_jax.data import images, records
from maskclippp_jax.data.prepare import labels, own_listed, own_masks
from maskclippp_jax.data.prepare.raw import File
from maskclippp_jax.metrics import run_lengths

# What has no inside, so that it is no mask.
_FLAT = ("polyline", "points", "skeleton", "cuboid")
_EDGE = 224 + 256 * 224 + 65536 * 192  # the colour of VOC around objects, where nothing is known


def read(path: str) -> own_listed.Listed:
    """The pictures of "CVAT for images 1.1".

    Raises:
      ValueError: it is no XML of CVAT, or of a video.
    """
    root = parse(File((), path).read(), path)
    if root.tag != "annotations":
        raise ValueError(f"{path} is an XML of {root.tag!r}, wanted annotations of CVAT"
                         + (" (VOC's boxes are no masks; give --labels=SegmentationClass)"
                            if root.tag == "annotation" else ""))
    if root.find("track") is not None:
        raise ValueError(f"{path} holds tracks of a video; export it as \"CVAT for images\"")
    rows = []
    for image in root.iter("image"):
        if not image.get("name"):
            raise ValueError(f"{path} has an image without a name")
        size = tuple(int(n) if (n := image.get(k, "")).isdigit() else None
                     for k in ("height", "width"))
        shapes = [(shape.tag, dict(shape.attrib)) for shape in image]
        rows.append(((image.get("name"),), (size, shapes)))
    used = [attributes["label"] for _, (_, shapes) in rows for _, attributes in shapes
            if attributes.get("label")]
    meta = root.find("meta")
    named = [] if meta is None else [n.text or "" for n in meta.iterfind(".//label/name")]
    return own_listed.Listed("CVAT", list(dict.fromkeys([*named, *used])), rows, _make)


def parse(data: bytes, name: object) -> ElementTree.Element:
    """XML as a tree; a document type, with which entities come, is refused.

    Raises:
      ValueError: it is no XML, or has a document type.
    """
    parser, builder = expat.ParserCreate(), ElementTree.TreeBuilder()

    def refuse(*_):
        raise ValueError(f"{name} has a document type (<!DOCTYPE ...>), which annotations never "
                         "need and which may hide what harms; remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"{name} is no XML ({error})") from None
    return builder.close()


def _make(masks: own_masks.Masks, item: tuple[str, File, tuple]) -> list[dict]:
    """A picture of the XML."""
    image_id, picture, (stated, shapes) = item
    image = labels.read_picture(picture)
    size, found = images.size_of(image), []
    own_masks.check_size(stated, size, f"{image_id} in the XML", picture)
    for n, (kind, attributes) in enumerate(shapes):
        where = f"{image_id}, {kind} {n}"
        if kind == "tag":
            continue
        if not attributes.get("label"):
            raise ValueError(f"{where} has no label; give it one, or remove it")
        c = masks.class_named(attributes["label"], where)
        if c is None:
            continue
        if kind in _FLAT:
            raise ValueError(f"{where} has no inside; draw a polygon or a mask, or leave its label "
                             "out with --leave_out")
        found.append((c, _code_of(kind, attributes, size, where), False))
    return masks.record(image_id, image, found)


def _code_of(kind: str, attributes: dict[str, str], size: tuple[int, int], where: str) -> dict:
    """The run lengths of a shape."""
    def numbers(*keys: str) -> np.ndarray:
        try:
            values = np.array([float(attributes[key]) for key in keys])
        except (KeyError, ValueError):
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            raise ValueError(f"{where} lacks one of the numbers {', '.join(keys)}")
        return values

    turned = numbers("rotation")[0] if "rotation" in attributes else 0.0
    if kind == "polygon":
        try:
            points = np.array([[float(n) for n in point.split(",")]
                               for point in attributes.get("points", "").split(";")])
            return run_lengths.of_polygons([points.tolist()], size)
        except ValueError:
            raise ValueError(f"{where} has points {attributes.get('points', '')[:40]!r}, wanted "
                             "x,y;x,y;...") from None
    if kind == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        center, sides = np.array([left + right, top + bottom]) / 2, np.array([right - left,
                                                                              bottom - top])
        return run_lengths.of_polygons(
            [own_masks.turned_box(center, sides, turned).tolist()], size)
    if kind == "ellipse":
        points = own_masks.ellipse(numbers("cx", "cy"), numbers("rx", "ry"), turned)
        return run_lengths.of_polygons([points.tolist()], size)
    if kind != "mask":
        raise ValueError(f"{where} is no shape of CVAT that is known here")
    left, top, width, height = numbers("left", "top", "width", "height").astype(int).tolist()
    return _of_runs(attributes.get("rle", ""), (left, top, width, height), size, where)


def _of_runs(text: str, box: tuple[int, int, int, int], size: tuple[int, int], where: str) -> dict:
    """A mask of CVAT: runs outside, inside, ... row by row through its box."""
    left, top, width, height = box
    runs = [int(run) if run.strip().isdigit() else -1 for run in text.split(",")]
    if min(runs) < 0 or width < 1 or height < 1 or sum(runs) != width * height:
        raise ValueError(f"{where} has runs that do not fill its box of {width}x{height} pixels; "
                         "is it damaged?")
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise ValueError(f"{where} reaches beyond the picture of {size[1]}x{size[0]} pixels")
    mask = np.zeros(size, bool)
    mask[top:top + height, left:left + width] = np.repeat(
        np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return run_lengths.encode(mask)


class Colors(typing.NamedTuple):
    """What the colours of maps mean, red + 256 green + 65536 blue -> a label."""

    names: dict[int, str]
    nothing: tuple[int, ...]


def read_labelmap(file: File) -> Colors:
    """A labelmap.txt: name:red,green,blue:parts:actions; the label "background" means nothing.

    Raises:
      ValueError: other lines, or a colour that two labels have.
    """
    try:
        lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8") from None
    names, nothing = {}, [_EDGE]
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"(.+?):(\d+),(\d+),(\d+):[^:]*:[^:]*", line.strip())
        if not found or max(map(int, found.groups()[1:])) > 255:
            raise ValueError(f"{file}, line {number}: got {line[:60]!r}, wanted "
                             "name:red,green,blue::, as CVAT writes it")
        code = sum(int(n) << shift for n, shift in zip(found.groups()[1:], (0, 8, 16)))
        if code in names or code in nothing:
            raise ValueError(f"{file}, line {number}: {found[1]!r} has the colour of another "
                             "label; give each its own")
        if found[1] == "background":
            nothing.append(code)
        else:
            names[code] = found[1]
    if not names:
        raise ValueError(f"{file} names no label but background; wanted name:red,green,blue::")
    return Colors(names, tuple(nothing))


def from_colors(masks: own_masks.Masks, colors: Colors, item: tuple[str, File, File, File]
                ) -> list[dict]:
    """Objects: each colour of SegmentationObject is one, whose class SegmentationClass shows."""
    image_id, picture, class_file, object_file = item
    image = labels.read_picture(picture)
    size, found = images.size_of(image), []
    classes, objects = (labels.upright(images.decode_shown_colors(f.read(), str(f)), picture)
                        for f in (class_file, object_file))
    for file, codes in ((class_file, classes), (object_file, objects)):
        own_masks.check_size(codes.shape, size, file, picture)
    class_of = _classes_of(masks, colors, classes, class_file)
    for code in np.unique(objects).tolist():
        mask = objects == code
        seen, counts = np.unique(classes[mask], return_counts=True)
        c = class_of[int(seen[counts.argmax()])]
        if code not in (0, _EDGE) and c is not None:
            found.append((c, run_lengths.encode(mask), False))
    return masks.record(image_id, image, found)


def from_class_colors(masks: own_masks.Masks, colors: Colors, item: tuple[str, File, File]
                      ) -> list[dict]:
    """Label maps: the colours of SegmentationClass alone."""
    image_id, picture, file = item
    codes = labels.upright(images.decode_shown_colors(file.read(), str(file)), picture)
    class_of = _classes_of(masks, colors, codes, file)
    place = records.positions(codes, np.array([*class_of]))
    label = np.array([labels.VOID_16 if c is None else c for c in class_of.values()])[place]
    return labels.semantic(picture, image_id, label, masks.vocabulary, labels.VOID_16)


def _classes_of(masks: own_masks.Masks, colors: Colors, codes: np.ndarray, file: File
                ) -> dict[int, int | None]:
    """The class of each colour of a map; None: it means nothing."""
    found: dict[int, int | None] = {}
    for code in np.unique(codes).tolist():
        if code not in colors.names and code not in colors.nothing:
            shown = "".join(f"{code >> shift & 255:02x}" for shift in (0, 8, 16))
            raise ValueError(f"{file} holds the colour #{shown}, which labelmap.txt gives to no "
                             "label")
        name = colors.names.get(code)
        found[code] = None if name is None else masks.class_named(name, file)
    return found
