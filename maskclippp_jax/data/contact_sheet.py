"""Draws examples of a prepared data set, so that a person sees at once whether it is right."""

import pathlib

import numpy as np

from maskclippp_jax.data import pipeline, records
from maskclippp_jax.drawing import colors, visualize
from maskclippp_jax.runtime import storage

_SIDE = 448         # pixels of a training picture, less if those of the data set are smaller
_MAX_MASKS = 2048   # slots of a picture; nothing is computed with them


def write(data_dir: str, name: str, count: int) -> list[pathlib.Path]:
    """Draws `count` pictures of every split into PNG files beside the data set.

    Pictures of `train` are drawn after augmentation, by the published recipe for their kind; those
    of other splits as they are stored.

    Returns:
      The files.
    """
    paths = []
    for split in records.splits_of(data_dir, name):
        source = records.open_source(data_dir, name, split)
        if not len(source.records):
            continue
        examples = (_augmented if split == "train" else _stored)(source, count)
        how = "after augmentation" if split == "train" else "as stored"
        sheet = visualize.draw_contact_sheet(
            examples, f"{name} ({source.kind}), {split}: {len(examples)} of {len(source.records)} "
            f"pictures, {how}")
        paths.append(pathlib.Path(data_dir) / name / f"{split}.png")
        storage.write(paths[-1], visualize.to_png(sheet))
    return paths


def _augmented(source: records.Source, count: int) -> list[visualize.Example]:
    """Pictures at equal distances in the data set, as training gets them."""
    some = [source.records[i] for i in _spread(len(source.records), 20)]
    side = min(_SIDE, int(np.median([min(_size(r)) for r in some])))
    family = pipeline.PanopticFamily(side)
    if source.kind == "semantic":
        family = pipeline.SemanticFamily(side, tuple(x * side // 10 for x in range(3, 20)))
    examples = []
    for i in _spread(len(source.records), count):
        record = source.records[i]
        row = pipeline.augmented(record, family, _MAX_MASKS, np.random.default_rng(i))
        (height, width), classes = row["image_size"], row["labels"][row["labels"] >= 0]
        examples.append(_example(
            source, row["image"][:height, :width], row["segments"][:height, :width], classes,
            [source.vocabulary.classes[c][0] for c in classes],
            f"{records.id_of(record)}, {width}x{height}"))
    return examples


def _stored(source: records.Source, count: int) -> list[visualize.Example]:
    """Pictures at equal distances in the data set."""
    examples = []
    for i in _spread(len(source.records), count):
        record = source.records[i]
        image, segments, image_id = pipeline.decode(record)
        table = record["table"]
        rows = np.zeros(int(max(segments.max(), *table["id"], 0)) + 1, np.int64)
        rows[table["id"]] = np.arange(1, len(table["id"]) + 1)
        names = [source.vocabulary.classes[c][0] + (" (crowd)" if crowd else "")
                 for c, crowd in zip(table["class_id"], table["is_crowd"])]
        examples.append(_example(source, image, rows[segments], table["class_id"], names,
                                 f"{image_id}, {image.shape[1]}x{image.shape[0]}"))
    return examples


def _example(source, image, segments, classes, names, caption) -> visualize.Example:
    classes = [int(c) for c in classes]
    tints = colors.segment_colors(segments, classes,
                                  colors.colors_in(np.array([-1, *classes])[segments]))
    nothing = (segments == 0).mean()
    caption += f", {len(names)} mask{'s' * (len(names) != 1)}"
    if nothing:  # neither 0 % nor 100 % if that is not the whole truth
        share = 100 if nothing == 1 else min(max(100 * nothing, 1), 99)
        caption += f", {share:.0f} % without a class"
    return visualize.Example(image, segments, names, tints, caption)


def _spread(total: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(int)).tolist()


def _size(record: dict) -> tuple[int, int]:
    return records.decode_segments(record["segments"]).shape
