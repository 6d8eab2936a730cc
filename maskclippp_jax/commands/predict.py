"""Names the masks of any pictures.

    python -m maskclippp_jax.predict --checkpoint=P --images="photos/*.jpg" \
        --masks="photos/{stem}.png" --classes="cat;dog,puppy;grass" --output=named

`--masks` is the pattern of PNG label maps (each number but 0 is a mask); without it the picture is
cut into regions of like colour (`--regions=superpixels`) or rectangles (`--regions=grid`). For
every picture it writes an overlay, a label map and a JSON file with the scores.
"""

import glob
import pathlib
import sys

import jax
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from maskclippp_jax import cli, inference, loading, report, storage, visualize
from maskclippp_jax.data import images, regions, transforms
from maskclippp_jax.vocabulary import Vocabulary

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment a file belongs to; a run knows its own", lock_config=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run folder, checkpoint file, or 'untuned'")
IMAGES = flags.DEFINE_string("images", None, "pattern of picture files")
MASKS = flags.DEFINE_string("masks", None, "pattern of label maps; {stem} is the picture's name")
REGIONS = flags.DEFINE_enum("regions", "superpixels", ["superpixels", "grid"],
                            "how to cut a picture without masks")
CLASSES = flags.DEFINE_string("classes", None, "names: classes apart by ;, synonyms by ,")
NAMES_FILE = flags.DEFINE_string("names_file", None, "the same as a file, one class a line")
OUTPUT = flags.DEFINE_string("output", "named", "folder for the results")

_CANVAS = 64     # pixels; canvases are multiples of it, so that few programs are compiled
_MASK_SLOTS = 32  # and mask slots of this


def main(argv):
    del argv
    for flag in ("checkpoint", "images"):
        if not flags.FLAGS[flag].value:
            raise ValueError(f"got no --{flag}; see --help")
    if bool(CLASSES.value) == bool(NAMES_FILE.value):
        raise ValueError("give either --classes=\"cat;dog,puppy\" or --names_file=FILE")
    vocabulary = (Vocabulary.from_string(CLASSES.value) if CLASSES.value
                  else Vocabulary.from_file(NAMES_FILE.value))
    files = sorted(f for f in glob.glob(IMAGES.value, recursive=True) if pathlib.Path(f).is_file())
    if not files:
        raise FileNotFoundError(f"no file matches --images={IMAGES.value}")
    stems = [pathlib.Path(f).stem for f in files]
    twice = sorted({s for s in stems if stems.count(s) > 1})
    if twice:
        raise ValueError(f"--images={IMAGES.value} matches several files named "
                         f"{', '.join(twice[:3])}, whose results would overwrite each other; "
                         "name one folder at a time")
    if MASKS.value and "{stem}" not in MASKS.value and len(files) > 1:
        raise ValueError(f"--masks={MASKS.value} is one file for {len(files)} pictures; write "
                         "{stem} where the picture's name stands")
    # Read everything once before anything is written, so that a bad file costs nothing.
    for file in files:
        read(file)

    config = loading.experiment_of(CHECKPOINT.value, CONFIG.value)
    model_config, params, what = loading.load_checkpoint(CHECKPOINT.value, config)
    logging.info("loaded %s", what)
    warn_unknown(config, model_config, vocabulary)
    names = jax.device_put(inference.embed_vocabulary(config, model_config, params, vocabulary))
    params = jax.device_put(params)
    name_masks = inference.make_namer(model_config, semantic=False)
    folder = storage.path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for k, file in enumerate(files, start=1):
        image, segments = read(file)
        origin = mask_file(file) if MASKS.value else f"no masks given: {REGIONS.value}"
        if segments is None:
            segments = (regions.superpixels if REGIONS.value == "superpixels"
                        else regions.grid)(image)
        scores, ids = name_segments(
            config, model_config, params, names, name_masks, image, segments)
        write(folder, file, image, segments, ids, scores[:, :vocabulary.num_classes], vocabulary,
              origin)
        logging.info("%d/%d  %s  %d masks (%s)", k, len(files), file, len(ids), origin)
    logging.info("wrote %s/*.overlay.png, *.labels.png, *.json", folder)


def mask_file(file: str) -> str:
    """The label map that belongs to a picture file."""
    return MASKS.value.replace("{stem}", pathlib.Path(file).stem)


def read(file: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture [H, W, 3] and its segments [H, W] int32 (0 = nothing), None if no masks given."""
    image = images.read_image(file)
    return image, images.read_label_map(mask_file(file), image.shape[:2]) if MASKS.value else None


def warn_unknown(config, model_config, vocabulary: Vocabulary) -> None:
    """Says which words a small model has never seen; it cannot tell them apart."""
    tokenizer = loading.make_tokenizer(model_config, getattr(config, "sentencepiece", ""))
    unknown = tokenizer.unknown_words(n for c in vocabulary.classes for n in c)
    if unknown:
        print(f"warning: this model has never seen {', '.join(map(repr, unknown))}; it knows the "
              f"words {' '.join(model_config.text.words)}", file=sys.stderr)


def name_segments(config, model_config, params, names, name_masks, image: np.ndarray,
                  segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the masks of one picture.

    Args:
      config: the experiment; the sizes of `config.eval` are used.
      model_config, params, names, name_masks: see `inference`.
      image: [H, W, 3] uint8.
      segments: [H, W] integer, 0 = nothing.

    Returns:
      scores [n, S'] float32 and the segment ids [n] they belong to, ascending.
    """
    settings = config.eval
    ids, slots = np.unique(segments, return_inverse=True)
    slots = slots.reshape(segments.shape) + (0 if ids[0] == 0 else 1)
    ids = ids[ids != 0]
    loaded = image
    if settings.loader_min is not None:
        loaded = transforms.resize_image(image, transforms.shortest_edge(
            *segments.shape, settings.loader_min, settings.loader_max))
    up = lambda n, multiple: -(-n // multiple) * multiple
    canvas = lambda x: tuple(up(n, _CANVAS) for n in x.shape[:2])
    batch = dict(
        image=transforms.pad_to_canvas(loaded, canvas(loaded))[None],
        segments=transforms.pad_to_canvas(slots.astype(np.uint16), canvas(slots))[None],
        labels=np.zeros((1, up(max(len(ids), 1), _MASK_SLOTS)), np.int32))
    sizes = inference.sizes_of(
        dict(image_size=[loaded.shape[:2]], segments_size=[segments.shape]),
        settings.short_side or model_config.image.image_size, settings.mask_short_side,
        max_tokens=settings.max_tokens, patch=model_config.image.patch_size)
    network = inference.canvas_of(sizes.network, model_config.image.patch_size)
    result = name_masks(params, batch, sizes, names, network)
    return jax.device_get(result.scores)[0, :len(ids)], ids


def write(folder: epath.Path, file: str, image, segments, ids, scores, vocabulary: Vocabulary,
          origin: str) -> None:
    """Overlay, label map (class + 1, 0 = nothing) and JSON of one picture."""
    stem = pathlib.Path(file).stem
    best = scores.argmax(-1) if len(ids) else np.zeros(0, int)
    table = np.full(int(segments.max(initial=0)) + 1, -1)
    table[ids] = best
    label_map = table[segments]
    shown = [c[0] for c in vocabulary.classes]
    strongest = {int(c): float(scores[best == c, c].max()) for c in np.unique(best)}
    storage.write(folder / f"{stem}.labels.png", visualize.label_map_png(label_map + 1))
    storage.write(folder / f"{stem}.overlay.png", visualize.to_png(
        visualize.draw_overlay(image, label_map, shown, strongest)))
    pixels = np.bincount(segments.ravel())
    masks = []
    for i, row, c in zip(ids, scores, best):
        top = np.argsort(-row, kind="stable")[:5]
        masks.append(dict(segment=int(i), name=shown[c], score=float(row[c]),
                          pixels=int(pixels[i]),
                          best=[dict(name=shown[t], score=float(row[t])) for t in top]))
    report.write_json(folder / f"{stem}.json", dict(
        image=file, masks_from=origin, classes=[list(c) for c in vocabulary.classes], masks=masks))


if __name__ == "__main__":
    cli.run(main, buckets=("checkpoint", "names_file", "output"))
