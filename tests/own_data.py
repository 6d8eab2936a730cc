"""A folder of own data with one picture, and what its labels mean."""

import json

import numpy as np
from PIL import Image

from maskclippp_jax.data import records
from maskclippp_jax.data.prepare import folder

SIZE = (60, 80)
RED, BLUE = [10, 10, 40, 10, 40, 30, 10, 30], [50, 35, 75, 35, 75, 55, 50, 55]


def box(polygon) -> np.ndarray:
    left, top, right, _, _, bottom = polygon[:6]
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


class Place:
    """A folder with a picture, labels and names."""

    def __init__(self, path):
        self.path = path
        self.picture("p.png")

    def picture(self, name, **options):
        file = self.path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(file, **options)

    def label(self, array, name="p.png"):
        file = self.path / "labels" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)

    def coco(self, *annotations, categories=("red box", "blue box"), images=None, **more):
        """A JSON of instances; a polygon alone stands for an annotation of the first category."""
        is_whole = lambda a: isinstance(a, dict) and "counts" not in a
        rows = [dict(id=n, image_id=1, category_id=1, iscrowd=0) | (
            a if is_whole(a) else dict(segmentation=a)) for n, a in enumerate(annotations)]
        images = images or [dict(id=1, file_name="p.png", width=80, height=60)]
        (self.path / "a.json").write_text(json.dumps(dict(
            images=images, annotations=rows, categories=[
                c if isinstance(c, dict) else dict(id=n, name=c)
                for n, c in enumerate(categories, start=1)], **more)))

    def read(self, labels="a.json", names=None, **choices) -> folder.OwnData:
        if names is not None:
            (self.path / "names.txt").write_text(names)
        return folder.read(str(self.path / "images"), str(self.path / labels),
                           names and str(self.path / "names.txt"), folder.Choices(**choices))

    def records(self, *args, **kw) -> tuple[folder.OwnData, dict[str, dict]]:
        data = self.read(*args, **kw)
        made = [r for items in data.reading.splits.values() for i in items
                for r in data.reading.make_records(i)]
        return data, {r["image_id"]: r for r in made}

    def masks(self, *args, **kw) -> dict[str, np.ndarray]:
        """The masks of the one picture by the names of their classes."""
        data, made = self.records(*args, **kw)
        record, = made.values()
        names = [data.vocabulary.classes[c][0] for c in record["table"]["class_id"]]
        return dict(zip(names, records.decode_masks(record)))

    def classes(self, *args, **kw) -> np.ndarray:
        """[H, W], -1 where nothing is."""
        (_, made) = self.records(*args, **kw)
        record, = made.values()
        return records.decode_classes(record)


def numbers(*values, dtype=np.uint8) -> np.ndarray:
    """A label map: the first value in most places, the second in the red box, the third in blue."""
    label = np.full(SIZE, values[0], dtype)
    for value, polygon in zip(values[1:], (RED, BLUE)):
        label[box(polygon)] = value
    return label


def in_color(label):
    return np.stack([label] * 3, -1)


WANTED = numbers(-1, 0, 1, dtype=np.int32)
TWO = "red box\nblue box\n"
BOXES = {"red box": box(RED), "blue box": box(BLUE)}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray] = BOXES) -> None:
    assert set(found) == set(wanted)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, wanted[name])


def pairs(polygon) -> list:
    return np.reshape(polygon, (-1, 2)).tolist()


def write_json(place, content, name="labels/p.json"):
    (place.path / name).parent.mkdir(exist_ok=True)
    (place.path / name).write_text(json.dumps(content))
