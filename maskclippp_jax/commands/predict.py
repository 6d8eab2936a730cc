r"""Names the segments of pictures.

    maskclippp predict photo.jpg more/*.jpg FOLDER --checkpoint=P --classes="cat;dog,puppy;grass" \
        --generator=eomt-l-640
    maskclippp predict photos --masks="masks/{stem}.png" --checkpoint=P --names_file=names.txt

A folder stands for all pictures in it and below. `--generator` finds the masks: a published one by
its name (eomt-l-640, fcclip-l, ...: `maskclippp convert --list` shows all, `maskclippp weights`
which are here), a file, a folder, or hf://owner/name. Or `--masks` is a pattern: of label maps
(PNG; each number but those of `--nothing` is a mask), of other files ("sam/{stem}.json": COCO's run
lengths or polygons; .npy, .npz: arrays), of folders with a PNG for each mask, or one JSON of COCO's
form; all but label maps may overlap. Or masks are in a `--bundle` (`maskclippp masks`). Or the
picture is cut into regions of like colour (`--regions=superpixels`) or rectangles
(`--regions=grid`), which only shows that it works.

For every picture it writes an overlay, a label map (a number is the class' place in the list from
0; nothing is 255, or 65535 in maps of 16 bits) and a JSON file with the scores into --output, in
the folders below the one that holds all pictures. {stem} is the picture's path there, without its
ending. `--view=photograph --view=segments` draws overlays that have both side by side.
`--format=coco,labelme,yolo,voc,cvat,labelstudio` writes files that annotation tools open, each
tool's in a folder of its name below --output; add json for those above.

`--tiles=1024` looks at squares of large pictures one by one, which overlap; masks that neighbours
agree on become one, so that seams do not show. A picture of 20000x20000 pixels needs --max_pixels
as well.

Masks that fit none of the names get the nearest one all the same, unless `--minimum_score=0.4` or
`--else="other;background"` leaves them without one: they are nothing in the label map then.
"""

import os

from absl import flags, logging

from maskclippp_jax.drawing import VIEWS
from maskclippp_jax.runtime import cli
from maskclippp_jax.runtime.background import Background

RESULTS = (".overlay.png", ".labels.png", ".json")  # of a picture
_UNWRITTEN = 2  # results that wait to be written: with masks at full size one may take gigabytes
POSITIONAL, BUCKETS = "PICTURE|FOLDER...", ("checkpoint", "generator", "names_file", "output")
FOLDERS = ("output",)
MEMORY = "--batch_size=1 takes less, and --tiles=1024 for large pictures"

CONFIG = cli.define_config("the experiment a file belongs to; a run knows its own")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run folder, checkpoint file, 'untuned', or "
                                 "the name of a published MaskCLIP++ (maskclippp-l) or CLIP")
MASKS = flags.DEFINE_string("masks", None, "pattern of masks: label maps, JSON (run lengths, "
                            "polygons, SAM's), .npy, .npz, or folders of PNGs; {stem} is the "
                            "picture's name; or one JSON of COCO's form for all")
BUNDLE = flags.DEFINE_string("bundle", None, "folder of a bundle of masks")
GENERATOR = flags.DEFINE_string("generator", None, "finds the masks: published name, file, folder, "
                                "or hf://owner/name")
REGIONS = flags.DEFINE_enum("regions", None, ["superpixels", "grid"],
                            "cuts pictures without looking for objects")
CLASSES = flags.DEFINE_string("classes", None, "names: classes apart by ;, synonyms by ,")
NAMES_FILE = flags.DEFINE_string("names_file", None, "the same as a file, one class a line")
ELSE = flags.DEFINE_string("else", None, "distractors, such as \"other;background\": masks that "
                           "they fit best get no name")
MINIMUM_SCORE = flags.DEFINE_float("minimum_score", 0.0, "masks whose best name scores less get "
                                   "none", lower_bound=0, upper_bound=1)
OUTPUT = flags.DEFINE_string("output", "named", "folder for the results")
FORMAT = flags.DEFINE_list("format", ["json"], "what is written: json (overlay, label map, JSON), "
                           "coco, labelme, yolo, voc, cvat, labelstudio")
VIEW = flags.DEFINE_multi_enum("view", ["segments"], VIEWS,
                               "what the overlay shows; several times: side by side")
NOTHING = cli.define_nothing()
MAX_PIXELS = cli.define_max_pixels()
SKIP_BROKEN = flags.DEFINE_bool("skip_broken", False, "leave out pictures that cannot be read")
TILES = flags.DEFINE_integer("tiles", None, "of large pictures: side of squares that are looked at "
                             "one by one, pixels, such as 1024")
OVERLAP = flags.DEFINE_integer("overlap", 128, "pixels by which --tiles overlap at least")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "pictures the device works on at once; "
                                  "without it 1 on a CPU, 8 on accelerators", lower_bound=1)
FAST = flags.DEFINE_bool("fast", False, "pad pictures so that most share the generator's program "
                         "and batch; all but an EoMT see padding and find other masks then")


def main(arguments):
    from maskclippp_jax.data import bundles, images, label_maps, picture_files, regions, tiling
    from maskclippp_jax.runtime.console import counted
    from maskclippp_jax.vocabulary import Vocabulary

    images.limit_pixels(MAX_PIXELS.value)
    if not CHECKPOINT.value:
        raise ValueError("got no --checkpoint; see --help")
    if bool(CLASSES.value) == bool(NAMES_FILE.value):
        raise ValueError("give either --classes=\"cat;dog,puppy\" or --names_file=FILE")
    vocabulary = (Vocabulary.from_string(CLASSES.value) if CLASSES.value
                  else Vocabulary.from_file(NAMES_FILE.value))
    if ELSE.value is not None:
        vocabulary.followed_by(Vocabulary.from_string(ELSE.value))  # refuses what cannot be
    if "json" in FORMAT.value:  # which label maps go with
        label_maps.check_classes(vocabulary.num_classes, NAMES_FILE.value or "--classes")
    if sum(f.value is not None for f in (MASKS, BUNDLE, GENERATOR, REGIONS)) > 1:
        raise ValueError("give one of --generator, --masks, --bundle and --regions")
    if TILES.value is not None:
        tiling.check(tiling.Tiles(TILES.value, OVERLAP.value))
    elif flags.FLAGS["overlap"].present:
        raise ValueError(f"--overlap={OVERLAP.value} is for --tiles, their side in pixels; give "
                         "both")
    if FAST.value and not GENERATOR.value:
        raise ValueError("--fast is for a --generator, and none is given; leave it out")
    formats = [name for name in FORMAT.value if name != "json"]
    if formats or not FORMAT.value:
        from maskclippp_jax.naming import annotation_writer

        annotation_writer.check_formats(formats)
    results_in = dict.fromkeys(formats)  # folders below --output
    pictures = picture_files.find(
        arguments, masks=MASKS.value, bundle=BUNDLE.value,
        leave_out=[OUTPUT.value, *(os.path.join(OUTPUT.value, f) for f in results_in)])
    # Headers are looked at before anything is written, so that a bad file costs nothing.
    pictures, skipped = picture_files.check(pictures, skip_broken=SKIP_BROKEN.value,
                                            in_tiles=TILES.value is not None)
    if "://" not in OUTPUT.value:
        picture_files.check_results(
            pictures, OUTPUT.value, RESULTS if "json" in FORMAT.value else (), results_in,
            [f for f in (MASKS.value, NAMES_FILE.value) if f and "{stem}" not in f])
    if MASKS.value is BUNDLE.value is GENERATOR.value is REGIONS.value is None:
        raise ValueError("nothing says where masks come from; give --generator=eomt-l-640 (or "
                         "another one: convert --list), or masks in files, "
                         "--masks=\"masks/{stem}.png\"; --regions=superpixels cuts the picture "
                         "into regions of like colour")

    from maskclippp_jax import api  # slow to import; what was typed wrongly is said at once

    generator = GENERATOR.value and api.load_generator(GENERATOR.value, fast=FAST.value)
    model = api.load(CHECKPOINT.value, CONFIG.value, generator=generator)
    logging.info("loaded %s", model.title)
    if model.generator:
        logging.info("masks are of %s", model.generator.title)
    cut = dict(superpixels=regions.superpixels, grid=regions.grid).get(REGIONS.value)
    masks_of = model.generator or cut
    masks_from = (f"generator {GENERATOR.value}" if GENERATOR.value
                  else MASKS.value or BUNDLE.value or f"no masks given: {REGIONS.value}")

    def leave_out(place: int, error: Exception) -> None:
        if not SKIP_BROKEN.value:
            raise error
        skipped.append(str(error))

    results = model.name_many(
        ((p.path, masks_of if p.masks is None else p.masks) for p in pictures), vocabulary,
        batch_size=BATCH_SIZE.value, tiles=TILES.value, overlap=OVERLAP.value,
        nothing=NOTHING.value, minimum_score=MINIMUM_SCORE.value, distractors=ELSE.value or (),
        total=len(pictures), on_error=leave_out)
    masks, nameless, written, without, zeros, left_numbers = 0, 0, 0, [], 0, set()
    writer = annotation_writer.AnnotationWriter(OUTPUT.value, formats) if formats else None

    def write(picture, result) -> None:
        if "json" in FORMAT.value:
            result.save(OUTPUT.value, picture.name, masks_from=(
                picture.masks if isinstance(picture.masks, str) else masks_from),
                views=VIEW.value)
        if writer:
            writer.add(result, picture.name)

    with Background(_UNWRITTEN) as background:
        for picture, result in zip(pictures, results):
            if result is not None:
                background.do(write, picture, result)
                written, unnamed = written + 1, int((result.classes < 0).sum())
                masks, nameless = masks + len(result) - unnamed, nameless + unnamed
                without += [] if len(result) else [picture.path]
                zeros += result.from_label_map and 0 in result.ids
                left_numbers |= set(result.nothing)
    if writer:
        writer.finish()
    for problem in skipped:
        logging.warning("left out: %s", problem)
    if not written:
        raise ValueError(f"no picture can be used; {skipped[0]}")
    if without:
        logging.warning("no mask in %s", bundles.some(without))
    if left_numbers:
        logging.info("in the label maps %s meant nothing",
                     ", ".join(map(str, sorted(left_numbers))))
    if zeros:
        logging.info("in %s 0 was a mask like the others; --nothing=0 leaves it out",
                     counted(zeros, "label map"))
    if nameless:
        logging.info("%s got no name%s", counted(nameless, "mask"),
                     "; the JSON files say why" if "json" in FORMAT.value else "")
    left = f"; left out {len(skipped)}" if skipped else ""
    files = [f"*{ending}" for ending in RESULTS] if "json" in FORMAT.value else []
    logging.info("named %s of %s%s; wrote %s/%s", counted(masks, "mask"),
                 counted(written, "picture"), left, OUTPUT.value,
                 ", ".join([*files, *(f"{name}/" for name in results_in)]))
