"""Naming pictures of many sizes, with nothing compiled before: python -m benchmarks.sizes

One photograph at fifty sizes, the quick start's model, the real `predict` in a process of its own:
with label maps, and with the small generator. Tells the seconds of all cores of a CPU together,
those by the clock, the peak of the memory, the seconds by the clock that XLA took to compile or to
read what is kept, and which of our programs came more than once; and the same of a second start,
which finds the programs that the first one kept, and of one with a single picture.
"""

import json
import pathlib
import tempfile

import numpy as np
from absl import app, flags
from PIL import Image
from skimage import data

from benchmarks import process

PICTURES = flags.DEFINE_integer("pictures", 50, "of as many sizes", lower_bound=1)
_SIDES = 200, 1000  # pixels


def main(argv):
    del argv
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        make_inputs(place)
        for what in ("--masks=labels/{stem}.png", "--generator=quickstart"):
            home = place / what.strip("-").partition("=")[0]  # of its programs and names
            for start, pictures in (("first", "images"), ("second", "images"),
                                    ("one picture", "images/p0.jpg")):
                found = process.predict(place, home, pictures, what, "--config=quickstart")
                print(json.dumps(dict(masks=what, start=start, **found)), flush=True)


def make_inputs(place: pathlib.Path) -> None:
    rng, photograph = np.random.default_rng(0), Image.fromarray(data.astronaut())
    for name in ("images", "labels"):
        (place / name).mkdir()
    for i in range(PICTURES.value):
        width, height = rng.integers(*_SIDES, 2).tolist()
        photograph.resize((width, height)).save(place / f"images/p{i}.jpg")
        cells = rng.integers(0, 5, (4, 4), np.uint8)
        labels = np.kron(cells, np.ones((_SIDES[1] // 4,) * 2, np.uint8))[:height, :width]
        Image.fromarray(labels).save(place / f"labels/p{i}.png")


if __name__ == "__main__":
    app.run(main)
