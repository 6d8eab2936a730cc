"""The generated scenes of the quick start as data sets."""

import functools

import numpy as np

from maskclippp_jax.data import images, records, scenes
from maskclippp_jax.data.build import Reading
from maskclippp_jax.vocabulary import Vocabulary


def read_all(raw_dir: str | None, kind: str) -> Reading:
    """Scenes of all classes, from the digits and photographs kept for testing; as "semantic",
    "panoptic" or "instance" ground truth, these of the first half alone: what is measured on them
    takes longer, and the quick start a few minutes."""
    del raw_dir  # nothing to read
    count = 600 if kind == "semantic" else 300
    return Reading({"validation": [("test", 2, i) for i in range(count)]},
                   functools.partial(_draw, "scenes", kind))


def read_seen(raw_dir: str | None) -> Reading:
    """Scenes of the seen classes alone."""
    del raw_dir
    return Reading({"train": [("train", 0, i) for i in range(4000)],
                    "validation": [("test", 1, i) for i in range(200)]},
                   functools.partial(_draw, "scenes_seen", "semantic"))


def _draw(vocabulary_name: str, kind: str, item: tuple[str, int, int]) -> list[dict]:
    half, group, number = item
    vocabulary = Vocabulary.shipped(vocabulary_name)
    names = [names[0] for names in vocabulary.classes]
    scene = scenes.draw_scene(np.random.default_rng((20, group, number)), num_things=(1, 4),
                              digits=half, classes=names)
    ids = np.array([names.index(c) if c in names else 255 for c in scenes.CLASSES])
    picture, image_id = images.encode_png(scene.image), f"{half}_{group}_{number:05d}"
    label = ids[scene.label]
    if kind == "semantic":
        return [records.semantic_record(picture, image_id, label, vocabulary.is_thing)]
    source_ids = scene.segments + 1  # 0 is nothing
    numbers, first = np.unique(source_ids, return_index=True)
    rows = [records.Segment(int(c), vocabulary.is_thing[c], source_id=int(n))
            for n, c in zip(numbers, label.ravel()[first])]
    if kind == "instance":
        rows = [row for row in rows if row.is_thing]
        source_ids = np.where(np.isin(source_ids, [r.source_id for r in rows]), source_ids, 0)
    return [records.panoptic_record(picture, image_id, source_ids, rows)]
