"""Named masks in the files of annotation tools, to be opened and corrected there.

Where a tool has polygons, a mask becomes one if a polygon can say it (`outlines`): a single part
without holes. Else it becomes what the tool has for other masks:

    COCO          polygons for several parts, run lengths with holes
    LabelMe       a mask, that is a small picture in its JSON
    YOLO          polygons are all it has: parts and holes are joined by lines without width
    VOC           label maps of classes and of objects: where masks overlap, the likelier one
    CVAT          run lengths for all masks, as its own brush has them
    Label Studio  what its brush draws

Scores go where a tool has a place for them (COCO, LabelMe's description, Label Studio).
"""

import base64
import os
import pathlib
import typing
import urllib.parse
from xml.sax import saxutils

import numpy as np
from PIL import Image

from maskclippp_jax.data import brush_codes, outlines
from maskclippp_jax.drawing import visualize
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.vocabulary import Vocabulary

_NUMBERED = 255  # objects or classes of VOC in a picture of 8 bits, where 255 means nothing


class Annotated(typing.NamedTuple):
    """The named masks of one picture; each has a pixel."""

    file: str               # path of the picture, as it was given
    name: str               # its path below the folder of all pictures, without ending
    vocabulary: Vocabulary
    classes: np.ndarray     # [N] int, places in the vocabulary
    scores: np.ndarray      # [N] float32 in 0 ... 1
    masks: np.ndarray       # [N, H, W] bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.masks.shape[1:]

    @property
    def names(self) -> list[str]:
        return [self.vocabulary.classes[c][0] for c in self.classes]

    @property
    def file_name(self) -> str:
        """As tools that list pictures call it."""
        return self.name + pathlib.PurePath(self.file).suffix


def coco(pictures: typing.Sequence[Annotated]) -> dict:
    """A file of COCO's form for some pictures of one vocabulary."""
    vocabulary = pictures[0].vocabulary
    rows, annotations = [], []
    for number, picture in enumerate(pictures, start=1):
        row, masks = coco_rows(picture, number, len(annotations) + 1)
        rows.append(row)
        annotations += masks
    return dict(images=rows, annotations=annotations, categories=coco_categories(vocabulary))


def coco_categories(vocabulary: Vocabulary) -> list[dict]:
    return [dict(id=number, name=names[0], supercategory="")
            for number, names in zip(_category_ids(vocabulary), vocabulary.classes)]


def _category_ids(vocabulary: Vocabulary) -> list[int]:
    """The classes' own numbers; all one more if there is a 0, which CVAT takes for no class."""
    more = int(0 in vocabulary.dataset_ids)
    return [number + more for number in vocabulary.dataset_ids]


def coco_rows(picture: Annotated, image_id: int, first: int) -> tuple[dict, list[dict]]:
    """The rows of a picture and of its masks, which are counted from `first`."""
    height, width = picture.size
    image = dict(id=image_id, file_name=picture.file_name, width=width, height=height)
    rows, ids = [], _category_ids(picture.vocabulary)
    for number, (c, score, mask) in enumerate(_each(picture), start=first):
        code = run_lengths.encode(mask)
        polygons = outlines.polygons(mask)
        # Counts that are not compressed are what most readers of COCO's files know.
        segmentation = (dict(size=[height, width], counts=_runs(mask.T)) if polygons is None
                        else [p.ravel().tolist() for p in polygons])
        rows.append(dict(
            id=number, image_id=image_id, category_id=ids[c],
            segmentation=segmentation, area=run_lengths.area(code),
            bbox=run_lengths.box(code).tolist(), iscrowd=0, score=float(score)))
    return image, rows


def labelme(picture: Annotated, image_path: str) -> dict:
    """A file of LabelMe.

    Args:
      picture: with its masks.
      image_path: of the picture, as seen from the file's folder.
    """
    shapes = []
    for c, score, mask in _each(picture):
        polygon, patch = outlines.polygon(mask), None
        if polygon is None:
            (left, top), (right, bottom) = corners = _corners(mask)
            small = Image.fromarray(mask[top:bottom + 1, left:right + 1])
            patch = base64.b64encode(visualize.to_png(small)).decode()
            polygon = np.array(corners)
        shapes.append(dict(
            label=picture.vocabulary.classes[c][0], points=polygon.astype(float).tolist(),
            group_id=None, description=f"score {score:.3f}",
            shape_type="polygon" if patch is None else "mask", flags={}, mask=patch))
    height, width = picture.size
    return dict(version="5.5.0", flags={}, shapes=shapes, imagePath=image_path, imageData=None,
                imageHeight=height, imageWidth=width)


def yolo(picture: Annotated) -> str:
    """A text file of YOLO: a line a mask, the place of its class from 0 and one polygon.

    A mask that no polygon can say (of a few pixels) has the box around it.
    """
    height, width = picture.size
    lines = []
    for c, _, mask in _each(picture):
        polygon = outlines.joined_polygon(mask)
        if polygon is None:
            (left, top), (right, bottom) = _corners(mask)
            polygon = np.array([(left, top), (right + 1, top), (right + 1, bottom + 1),
                                (left, bottom + 1)])
        shares = (polygon / [width, height]).ravel()
        lines.append(" ".join([str(c), *(f"{share:.6f}" for share in shares)]) + "\n")
    return "".join(lines)


def yolo_data(vocabulary: Vocabulary) -> str:
    """The data.yaml beside YOLO's folders `images` and `labels`."""
    names = "".join(f"  {n}: {_yaml(names[0])}\n" for n, names in enumerate(vocabulary.classes))
    return f"path: .\ntrain: images\nval: images\nnames:\n{names}"


def voc(picture: Annotated) -> tuple[np.ndarray, np.ndarray]:
    """Label maps of VOC: [H, W] int32 of classes from 1 and of objects from 1; 0 is background.

    Where masks overlap the one with the higher score is seen; objects are counted in their order.
    """
    classes, objects = (np.zeros(picture.size, np.int32) for _ in range(2))
    for n in np.argsort(picture.scores, kind="stable"):
        classes[picture.masks[n]] = picture.classes[n] + 1
        objects[picture.masks[n]] = n + 1
    return classes, objects


def voc_png(numbers: np.ndarray) -> bytes:
    """A label map of VOC in its colours, as the content of a PNG file.

    With a palette, so that its numbers can be read as well; beyond 8 bits of red, green and blue.
    """
    if numbers.max(initial=0) >= _NUMBERED:
        return visualize.to_png(Image.fromarray(voc_colors(numbers.max() + 1)[numbers]))
    image = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    image.putpalette(voc_colors(256).ravel().tolist())
    return visualize.to_png(image)


def voc_colors(count: int) -> np.ndarray:
    """The colours of VOC's numbers, [count, 3] uint8.

    Their bits are dealt out to red, green and blue in turn, as the lowest bits become the highest
    (VOCdevkit's VOClabelcolormap).
    """
    numbers, colors = np.arange(count)[:, None], np.zeros((count, 3), np.int64)
    for bit in range(8):
        colors |= (numbers >> (3 * bit + np.arange(3)) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def voc_labels(vocabulary: Vocabulary) -> str:
    """The labelmap.txt of VOC as CVAT knows it: a class a line, with its colour."""
    names = ["background", *(c[0] for c in vocabulary.classes)]
    rows = [f"{name}:{r},{g},{b}::\n"
            for name, (r, g, b) in zip(names, voc_colors(len(names)).tolist())]
    return "# label:color_rgb:parts:actions\n" + "".join(rows)


def voc_boxes(picture: Annotated) -> str:
    """The XML file of VOC: a box for each mask, whose pixels are counted from 1."""
    text = saxutils.escape
    objects = []
    for c, _, mask in _each(picture):
        (left, top), (right, bottom) = _corners(mask)
        objects.append(
            f"  <object>\n    <name>{text(picture.vocabulary.classes[c][0])}</name>\n"
            "    <difficult>0</difficult>\n    <bndbox>\n"
            f"      <xmin>{left + 1}</xmin>\n      <ymin>{top + 1}</ymin>\n"
            f"      <xmax>{right + 1}</xmax>\n      <ymax>{bottom + 1}</ymax>\n"
            "    </bndbox>\n  </object>\n")
    height, width = picture.size
    return (f"<annotation>\n  <filename>{text(picture.file_name)}</filename>\n"
            f"  <size>\n    <width>{width}</width>\n    <height>{height}</height>\n"
            "    <depth>3</depth>\n  </size>\n  <segmented>1</segmented>\n"
            f"{''.join(objects)}</annotation>\n")


def cvat(pictures: typing.Sequence[Annotated]) -> str:
    """The XML file "CVAT for images 1.1" of some pictures of one vocabulary."""
    images = [cvat_image(picture, number) for number, picture in enumerate(pictures)]
    return cvat_file(pictures[0].vocabulary, images)


def cvat_file(vocabulary: Vocabulary, images: typing.Sequence[str]) -> str:
    """What stands around the pictures in a file of CVAT."""
    labels = "".join(f"        <label>\n          <name>{saxutils.escape(names[0])}</name>\n"
                     "          <attributes></attributes>\n        </label>\n"
                     for names in vocabulary.classes)
    return ('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta>\n    <task>\n      <size>{len(images)}</size>\n"
            "      <mode>annotation</mode>\n"
            f"      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n"
            f"{''.join(images)}</annotations>\n")


def cvat_image(picture: Annotated, number: int) -> str:
    """A picture in a file of CVAT; runs go row by row through a mask's box, outside first."""
    quoted = saxutils.quoteattr
    masks = []
    for c, _, mask in _each(picture):
        (left, top), (right, bottom) = _corners(mask)
        runs = _runs(mask[top:bottom + 1, left:right + 1])
        masks.append(
            f"    <mask label={quoted(picture.vocabulary.classes[c][0])} source=\"auto\" "
            f"occluded=\"0\" rle=\"{', '.join(map(str, runs))}\" left=\"{left}\" top=\"{top}\" "
            f"width=\"{right - left + 1}\" height=\"{bottom - top + 1}\" z_order=\"0\">\n"
            "    </mask>\n")
    height, width = picture.size
    return (f"  <image id=\"{number}\" name={quoted(picture.file_name)} width=\"{width}\" "
            f"height=\"{height}\">\n{''.join(masks)}  </image>\n")


def label_studio(picture: Annotated) -> dict:
    """A task of Label Studio with predictions, for the form of `label_studio_form`.

    The picture's address is that of Label Studio's local files, whose root is the folder that the
    path was given from (/ for whole paths).
    """
    height, width = picture.size
    results = []
    for number, (c, score, mask) in enumerate(_each(picture), start=1):
        names, polygon = [picture.vocabulary.classes[c][0]], outlines.polygon(mask)
        if polygon is None:
            kind, value = "brush", dict(format="rle", rle=brush_codes.encode(mask))
        else:
            percent = polygon * 100 / [width, height]
            kind, value = "polygon", dict(points=percent.tolist(), closed=True)
        results.append(dict(
            id=f"mask{number}", type=f"{kind}labels", from_name=kind, to_name="image",
            original_width=width, original_height=height, image_rotation=0, score=float(score),
            value=value | {f"{kind}labels": names}))
    place = urllib.parse.quote(picture.file.lstrip("/"))
    mean = float(np.mean(picture.scores)) if len(picture.scores) else 0.0
    return dict(data=dict(image=f"/data/local-files/?d={place}"),
                predictions=[dict(model_version="maskclippp", score=mean, result=results)])


def label_studio_form(vocabulary: Vocabulary) -> str:
    """The labelling interface of a project of Label Studio."""
    labels = "".join(f"    <Label value={saxutils.quoteattr(names[0])}/>\n"
                     for names in vocabulary.classes)
    return ('<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <PolygonLabels name="polygon" toName="image">\n{labels}  </PolygonLabels>\n'
            f'  <BrushLabels name="brush" toName="image">\n{labels}  </BrushLabels>\n</View>\n')


def path_from(folder: os.PathLike, file: str) -> str:
    """The path of a picture as seen from a folder on the same disk; else its name alone."""
    place = os.fspath(folder)
    if "://" in place or "://" in file:
        return file.rsplit("/", 1)[-1]
    return os.path.relpath(os.path.abspath(file), os.path.abspath(place))


def _each(picture: Annotated) -> typing.Iterator[tuple[int, float, np.ndarray]]:
    """Class, score and mask."""
    return zip(picture.classes.tolist(), picture.scores.tolist(), picture.masks)


def _corners(mask: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first and the last column and row with a pixel: left, top; right, bottom."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (int(columns[0]), int(rows[0])), (int(columns[-1]), int(rows[-1]))


def _runs(mask: np.ndarray) -> list[int]:
    """How many pixels are outside, inside, outside, ... row by row."""
    flat = np.concatenate([[False], mask.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(changes, prepend=0, append=mask.size).tolist()


def _yaml(name: str) -> str:
    """A text of YAML in single quotes, in which nothing else has a meaning."""
    return "'" + name.replace("'", "''") + "'"
