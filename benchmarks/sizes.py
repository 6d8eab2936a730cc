"""Naming pictures of many sizes, with nothing compiled before: python benchmarks/sizes.py

One photograph at fifty sizes, the quick start's model, the real `predict` in a process of its own:
with label maps, and with the small generator. Tells the seconds of all cores of a CPU together,
those by the clock, those by the clock that XLA took to compile or to read what is kept, and which
of our programs came more than once; and the same of a second start, which finds the programs that
the first one kept, and of one with a single picture.
"""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags
from PIL import Image
from skimage import data

ROOT = pathlib.Path(__file__).parents[1]
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
                found = predict(place, home, pictures, what, "--config=quickstart")
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


def predict(place: pathlib.Path, home: pathlib.Path, pictures: str, *settings: str) -> dict:
    """What `predict` in a process of its own took.

    Args:
      place: where pictures are, and results will be.
      home: folder for all that is kept between two starts.
      pictures: folder or file in `place`.
      *settings: flags; names are given.
    """
    home.mkdir(exist_ok=True)
    # An installed package has its bytecode; without this one ours is compiled at every start.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "maskclippp_jax", "predict", pictures, "--checkpoint=untuned",
             "--classes=red one;grey grass;brown brick", "--output=named",
             f"--programs={home}/programs", *settings], cwd=place, stderr=log,
            env=dict(environment, HOME=str(home), JAX_LOG_COMPILES="1", JAX_PLATFORMS="cpu",
                     PYTHONPATH=str(ROOT)))
        _, status, used = os.wait4(process.pid, 0)
        clock = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        said = log.read()
    if process.returncode:
        raise RuntimeError(said[-2000:])
    found = re.findall(r"Finished XLA compilation of jit\((\w+)\) in ([\d.]+) sec", said)
    compiled = collections.Counter(name for name, _ in found)
    return dict(cores_s=round(used.ru_utime + used.ru_stime, 1), clock_s=round(clock, 1),
                peak_mb=round(used.ru_maxrss / 1e3),
                compiling_s=round(sum(float(seconds) for _, seconds in found), 1),
                compiled={name: count for name, count in compiled.most_common() if count > 1})


if __name__ == "__main__":
    app.run(main)
