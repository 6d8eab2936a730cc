"""How fast training pictures reach the device: python benchmarks/input_pipeline.py

Makes a data set of COCO's sizes (640x480 JPEGs of real photographs' detail, label maps of 171
classes), then measures each stage alone on one core, the whole pipeline on all cores, and the
padding of evaluation canvases. `--step_seconds` of one chip's training step (see `plan`) gives the
cores a chip needs.
"""

import functools
import io
import os
import pathlib
import tempfile
import time

import cv2
import jax
import numpy as np
from absl import app, flags
from PIL import Image
from rich.table import Table

from maskclippp_jax.configs import common
from maskclippp_jax.data import build, pipeline, records, transforms
from maskclippp_jax.runtime import console, sharding
from maskclippp_jax.vocabulary import Vocabulary

PICTURES = flags.DEFINE_integer("pictures", 2000, "pictures of the data set")
SIZE = flags.DEFINE_integer("size", 448, "side of the training canvas")
BATCH = flags.DEFINE_integer("batch_size", 32, "pictures a batch")
SECONDS = flags.DEFINE_float("seconds", 8, "how long each measurement takes")
WORKERS = flags.DEFINE_multi_integer("workers", [0, 2], "worker processes of the whole pipeline")
STEP_SECONDS = flags.DEFINE_float("step_seconds", None, "seconds of a step of one chip")
STEP_IMAGES = flags.DEFINE_integer("step_images", 4, "pictures of that step")

# Shares of pictures by height x width, roughly as published sets have them: COCO's usual camera
# shapes, ADE20K's shorter side of 512, PASCAL's 500 x 375, Cityscapes' one size.
SHAPES = {
    "coco": {(480, 640): .40, (427, 640): .22, (640, 480): .13, (640, 427): .08, (426, 640): .06,
             (360, 640): .03, (500, 375): .02, (640, 640): .02, (333, 500): .02, (375, 500): .02},
    "ade20k": {(512, 683): .52, (683, 512): .12, (512, 768): .10, (512, 512): .08, (256, 256): .06,
               (512, 910): .05, (768, 512): .04, (300, 400): .03},
    "pascal_context": {(375, 500): .45, (333, 500): .25, (500, 375): .15, (500, 333): .08,
                       (500, 500): .04, (281, 500): .03},
    "cityscapes": {(1024, 2048): 1.0}}


def main(argv):
    del argv
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Vocabulary.shipped("coco_stuff_171")
        reading = build.Reading({"train": list(range(PICTURES.value))},
                                functools.partial(make_record, vocabulary.is_thing))
        build.build(folder, "benchmark", vocabulary, "semantic", reading, description="benchmark")
        source = records.open_source(folder, "benchmark", "train").records
        stages(source)
        rates = {w: whole(source, w) for w in WORKERS.value}
    table = Table(title=f"whole pipeline, batches of {BATCH.value}, {os.cpu_count()} cores")
    for column in ("worker processes", "pictures/s", "pictures/s/core"):
        table.add_column(column, justify="right")
    for workers, rate in rates.items():
        table.add_row(f"{workers}" if workers else "threads", f"{rate:.0f}",
                      f"{rate / os.cpu_count():.0f}")
    console.show(table)
    if STEP_SECONDS.value:
        per_core = max(rates.values()) / os.cpu_count()
        console.say(f"one chip takes {STEP_IMAGES.value / STEP_SECONDS.value:.1f} pictures/s: "
                    f"{STEP_IMAGES.value / STEP_SECONDS.value / per_core:.2f} cores")
    padding()


def make_record(is_thing, number: int) -> list[dict]:
    """A picture with the detail of a photograph, and regions of a few classes."""
    rng = np.random.default_rng(number)
    height, width = (480, 640) if rng.random() < 0.7 else (640, 480)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 160):  # detail at several scales compresses as photographs do
        noise = rng.normal(0, 45 / cells**0.35, (cells * height // width + 1, cells, 3))
        image += cv2.resize(noise.astype(np.float32), (width, height),
                            interpolation=cv2.INTER_CUBIC)
    jpeg = io.BytesIO()
    Image.fromarray(np.clip(image + 120, 0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=90)
    classes = rng.choice(171, 8, replace=False)
    regions = cv2.resize(rng.random((12, 16)).astype(np.float32), (width, height),
                         interpolation=cv2.INTER_CUBIC)
    label = classes[np.clip((regions * 8).astype(int), 0, 7)]
    label[rng.random(label.shape) < 0.002] = 255
    return [records.semantic_record(jpeg.getvalue(), f"{number:06d}", label, is_thing)]


def stages(source) -> None:
    """Each stage on one core."""
    settings = common.base().unlock()
    common.semantic_family(settings, SIZE.value)
    family = pipeline.family_of(settings.train)
    raw = [source[i] for i in range(min(64, len(source)))]
    decoded = [pipeline.decode(r) for r in raw]
    rng = np.random.default_rng(0)
    augmented = [family(rng, image, segments) for image, segments, _ in decoded]
    rows = [dict(image=transforms.pad_to_canvas(i, (SIZE.value,) * 2),
                 segments=transforms.pad_to_canvas(s, (SIZE.value,) * 2)) for i, s in augmented]
    some = rows[:BATCH.value]
    batch = {k: np.stack([r[k] for r in some]) for k in some[0]}
    whole = sharding.batch_sharding(sharding.make_mesh(1))
    table = Table(title="stages alone, one core")
    table.add_column("stage")
    table.add_column("pictures/s", justify="right")
    for name, run, count in (
            ("read and parse a record", lambda i: source[i % len(source)], 1),
            ("decode picture and segments", lambda i: pipeline.decode(raw[i % len(raw)]), 1),
            ("  the picture alone, OpenCV", lambda i: cv2.imdecode(
                np.frombuffer(raw[i % len(raw)]["image"], np.uint8), cv2.IMREAD_COLOR_RGB), 1),
            ("  the picture alone, Pillow", lambda i: np.asarray(
                Image.open(io.BytesIO(raw[i % len(raw)]["image"])).convert("RGB")), 1),
            ("augment", lambda i: family(rng, *decoded[i % len(decoded)][:2]), 1),
            ("  resize alone", lambda i: transforms.resize_image(
                decoded[i % len(decoded)][0], (SIZE.value, SIZE.value * 4 // 3)), 1),
            ("  colour alone", lambda i: transforms.apply_color_jitter(
                augmented[i % len(augmented)][0], transforms.draw_color_jitter(rng)), 1),
            ("number masks, pad", lambda i: transforms.pad_to_canvas(transforms.to_slots(
                augmented[i % len(augmented)][1], raw[i % len(raw)]["table"], 64, "x")[0],
                (SIZE.value,) * 2), 1),
            ("stack a batch", lambda i: {k: np.stack([r[k] for r in some]) for k in some[0]},
             len(some)),
            ("hand a batch to the device", lambda i: jax.block_until_ready(
                pipeline.to_device(batch, whole)), len(some))):
        table.add_row(name, f"{rate_of(run, SECONDS.value / 4) * count:.0f}")
    console.show(table)


def rate_of(run, seconds: float) -> float:
    """Calls a second."""
    run(0)
    start, calls = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        run(calls)
        calls += 1
    return calls / (time.monotonic() - start)


def whole(source, workers: int) -> float:
    """Pictures a second from disk to batch."""
    settings = common.base().unlock()
    common.semantic_family(settings, SIZE.value)
    batches = pipeline.train_batches(
        [source], family=pipeline.family_of(settings.train), num_masks=64,
        batch_size=BATCH.value, seed=0, workers=workers)
    for _ in range(3):
        next(batches)
    return rate_of(lambda i: next(batches), SECONDS.value) * BATCH.value


def padding() -> None:
    """Share of evaluation canvases that is padding."""
    table = Table(title="padding of evaluation canvases, batches of 8, 2000 pictures")
    for column in ("sizes like", "canvases", "of the pixels", "filling of batches"):
        table.add_column(column, justify="right")
    for name, shares in SHAPES.items():
        shapes = [s for s, share in shares.items() for _ in range(round(2000 * share))]
        waste = pipeline.padding_of(shapes, batch_size=8)
        table.add_row(name, f"{waste.canvases}", f"{100 * waste.pixels:.1f} %",
                      f"{100 * waste.filling:.1f} %")
    console.show(table)


if __name__ == "__main__":
    pathlib.Path("configs/common.py").stat()  # run from the project's folder
    app.run(main)
