"""Draws docs/quickstart.png: what the models of launch/quickstart.sh say of scenes drawn large.

    launch/quickstart.sh
    .venv/bin/python launch/quickstart_picture.py

Each model names the segments that the small generator finds in the test scenes of two seeds, drawn
with four times the pixels a side that the networks look at; a name is wrong (red, with a cross) if
most pixels of the segment are of another class.
"""

import pathlib

import numpy as np

import maskclippp_jax as mc
from maskclippp_jax.data import scenes
from maskclippp_jax.drawing import visualize
from maskclippp_jax.runtime import storage

SEEDS = (19, 3)  # chosen from twenty, for what the photographs show
MODELS = {"untuned": ("untuned", "quickstart"),
          "tuned on ground truth": ("runs/ground_truth", None),
          "tuned on degraded masks": ("runs/degraded", None)}


def main():
    root, size = pathlib.Path(__file__).parents[1], 64
    generator = mc.load_generator("quickstart")
    models = [mc.load(root / path if config is None else path, config, generator=generator,
                      eval__short_side=size) for path, config in MODELS.values()]
    vocabulary, rows = mc.Vocabulary.load("scenes"), []
    for seed in SEEDS:
        scene = scenes.draw_scene(np.random.default_rng(seed), size=size, num_things=(2, 5),
                                  digits="test", detail=4)
        row = [visualize.Panel(scene.image, np.zeros_like(scene.segments))]
        for model in models:
            ids, segments = model.segment(scene.image, vocabulary).panoptic
            most = [np.bincount(scene.label[ids == s["id"]]).argmax() for s in segments]
            row.append(visualize.Panel(scene.image, ids, [
                (s["name"], s["name"] == scenes.CLASSES[c]) for s, c in zip(segments, most)]))
        rows.append(row)
    drawing = visualize.draw_comparison(rows, ["photograph", *MODELS], side=256)
    few = drawing.quantize(256)  # colours: half the bytes
    storage.write(root / "docs/quickstart.png", visualize.to_png(few, optimize=True))


if __name__ == "__main__":
    main()
