"""The mask generator that ships with the project: it loads, and finds what its record says."""

import json
import pathlib

import numpy as np

import maskclippp_jax as mc
from maskclippp_jax.data import scenes
from maskclippp_jax.data.bundle_tools import at_picture_size
from maskclippp_jax.metrics import mask_recall
from maskclippp_jax.weights.published_generators import QUICKSTART_GENERATOR

FILE = pathlib.Path(QUICKSTART_GENERATOR)


def test_its_name_and_its_file_give_the_same_generator():
    named, of_file = mc.load_generator("quickstart"), mc.load_generator(FILE)
    assert named.config == of_file.config and named.vocabulary == of_file.vocabulary
    assert named.vocabulary.name == "scenes_seen" and named.task == of_file.task == "panoptic"
    assert FILE.stat().st_size < 6e6


def test_it_finds_what_its_record_says_also_of_classes_it_never_saw():
    record = json.loads(FILE.with_suffix(".json").read_text())
    said = dict(zip(record["columns"], record["curve"][-1]))
    generator, found = mc.load_generator("quickstart"), ([], [])
    for seed in range(60):
        scene = scenes.draw_scene(np.random.default_rng((99, seed)), num_things=(1, 4),
                                  digits="test")
        masks = at_picture_size(generator(scene.image).masks, scene.label.shape) > 0.5
        numbers = np.unique(scene.segments)
        overlaps = mask_recall.best_iou(
            masks, scene.segments == numbers[:, None, None], np.ones(scene.label.shape, bool))
        for number, iou in zip(numbers, overlaps):
            name = scenes.CLASSES[scene.label[scene.segments == number][0]]
            found[name in scenes.UNSEEN].append(iou > 0.5)
    for part, values in zip(("seen", "unseen"), found):
        # 60 scenes have some 50 unseen segments and three times as many seen ones.
        assert abs(np.mean(values) - said[f"recall of {part} classes"]) < 0.12, part
        assert np.mean(values) > 0.6
