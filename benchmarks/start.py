"""Starts with a large model: python -m benchmarks.start

A file of random weights of an EVA02-CLIP-L/14-336 as EVA-CLIP names them (1.7 GB), one photograph
of 512 x 512 and sixteen squares of it, the real `predict` in a process of its own. Tells seconds
of all cores of a CPU together, those by the clock, and the peak of the memory: of a first start,
and of others, which find the programs and the embeddings of names that the first one kept. And of
the loading of that model alone, by `load`, with the memory that the process then has of its own.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
from absl import app, flags
from PIL import Image
from skimage import data

from benchmarks import process, turns
from maskclippp_jax import api

CONFIG = flags.DEFINE_string("config", "coco_stuff_eva02_l14_336", "experiment of the model")
LAYOUT = flags.DEFINE_string("layout", "eva_clip", "of its file; see convert")
STARTS = flags.DEFINE_integer("starts", 4, "how many", lower_bound=1)


def main(argv):
    del argv
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        Image.fromarray(data.astronaut()).save(place / "photograph.png")
        subprocess.run(
            [sys.executable, "-m", "maskclippp_jax", "convert", "--source=untuned",
             f"--config={CONFIG.value}", "--config.weights=random", f"--layout={LAYOUT.value}",
             "--output=model.safetensors"], cwd=place, check=True, stderr=subprocess.DEVNULL,
            env=dict(os.environ, PYTHONPATH=str(process.ROOT)))
        for start in range(STARTS.value):
            found = process.predict(place, place / "home", "photograph.png", "--regions=grid",
                                    f"--config={CONFIG.value}",
                                    "--config.weights=model.safetensors")
            print(json.dumps(dict(start=start + 1, **found)), flush=True)
        for _ in range(STARTS.value):
            print(json.dumps(turns.alone(load, CONFIG.value, str(place / "model.safetensors"))),
                  flush=True)


def load(config: str, file: str) -> dict:
    """What it takes to bring a model to the device, once libraries are imported."""
    start = time.monotonic(), time.process_time()
    model = api.load("untuned", config, weights=file)
    jax.block_until_ready(model._namer.params)
    status = pathlib.Path("/proc/self/status").read_text()
    return dict(what="load", clock_s=round(time.monotonic() - start[0], 2),
                cores_s=round(time.process_time() - start[1], 2),
                own_mb=round(int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1e3))


if __name__ == "__main__":
    app.run(main)
