"""Makes data sets: from official archives, or from your own pictures and masks.

    maskclippp prepare NAME... --raw_dir=DOWNLOADS --data_dir=data

Reads the official archives (or the folders they unpack to) directly. Can be stopped and started
again. `--list` shows what there is. Own data:

    maskclippp prepare folder --images=DIR --labels=DIR --names=FILE --name=mine

`--labels` is one of these; what it was taken for is said, `--format=WORD` insists on one:

    WORD         --labels         holds
    labelmaps    labels           x.png for x.jpg: a class' number in every pixel, or its colour
    voc          export           SegmentationClass/x.png (and SegmentationObject/x.png) in the
                                  colours of labelmap.txt: Pascal VOC's, CVAT's "Segmentation mask"
    masks        labels           x/cat_1.png, x/cat_2.png: a mask each
    classes      labels           cat/x.png: a mask each
    labelme      labels           x.json
    supervisely  ann              x.jpg.json
    json         labels           x.json: a list of masks with segmentation and label
    yolo         labels           x.txt: polygons in shares of the sides; --names=data.yaml
    coco         instances.json   COCO's instances or panoptic segments (of Roboflow, CVAT, ...)
    cvat         annotations.xml  "CVAT for images"
    labelstudio  tasks.json       JSON export: polygons, rectangles, ellipses, brushes
    datumaro     default.json     Datumaro's JSON

    labels/{stem}_mask.png        is a pattern of files with other names

    maskclippp prepare folder --images=photos --labels=photos --names=names.txt --name=mine
    maskclippp prepare folder --images=images --labels=labels --names=data.yaml --name=mine
    maskclippp prepare folder --images=photos --labels=instances.json --name=mine

docs/own-data.md shows each. `--names` is a names file (one class a line, synonyms after commas) or
YOLO's data.yaml; coco, voc, cvat and datumaro name their classes themselves.

Folders train, valid (or val), test of the pictures, or a file of coco or cvat for each (--labels is
the folder that holds them), become splits. `--validation=0.1` divides what is not divided yet: a
class that several pictures have is in both parts, and `--group="{group}_*"` keeps patient7_01 and
patient7_02 in one. `--tiles=1024 --overlap=128` cuts large pictures into squares that overlap by at
least so many pixels; `evaluate` joins them again. `--show=K` draws K pictures of each split as
training or evaluation gets them, with their masks and names.
"""

from absl import flags

from maskclippp_jax.runtime import cli

POSITIONAL, BUCKETS = "NAME...|folder", ()

RAW_DIR = flags.DEFINE_string("raw_dir", None, "folder with the official archives")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "folder of the prepared data sets")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "make a data set anew that exists")
STRICT = flags.DEFINE_bool("strict", False, "refuse archives with another number of pictures, "
                           "and pictures or labels without a partner")
LIST = flags.DEFINE_bool("list", False, "show all data sets and stop")
SHOW = flags.DEFINE_integer("show", 0, "draw this many pictures of each split", lower_bound=0)
IMAGES = flags.DEFINE_string("images", None, "own data: folder of the pictures")
LABELS = flags.DEFINE_string("labels", None, "own data: folder or pattern of the annotations, or a "
                             "JSON file")
NAMES = flags.DEFINE_string("names", None, "own data: names file, one class a line, or a data.yaml")
NAME = flags.DEFINE_string("name", "folder", "own data: name of the data set")
FORMAT = flags.DEFINE_string("format", None, "own data: the form of the annotations, if it should "
                             "not be found out: coco, labelstudio, cvat, datumaro, voc (colours "
                             "with a labelmap.txt), labelmaps, masks, classes (folders), labelme, "
                             "supervisely, json (lists of masks), yolo")
VALIDATION = flags.DEFINE_string("validation", None, "own data: share of the pictures that are for "
                                 "validation, or a file with their names (default: as folders "
                                 "train, val, test say, if there are such, else none)")
GROUP = flags.DEFINE_string("group", None, "own data: pattern of pictures' names; those that agree "
                            "in {group} stay in one split, such as {group}_*")
NOTHING = cli.define_nothing()
MAX_PIXELS = cli.define_max_pixels()
LEAVE_OUT = flags.DEFINE_list("leave_out", [], "own data: names of classes whose masks mean "
                              "nothing, such as background")
CROWD = flags.DEFINE_enum("crowd", "ignore", ["ignore", "keep"], "own data: whether masks marked "
                          "as crowds (iscrowd, as CVAT marks those of its brush) are left aside "
                          "in training, as COCO means it, or kept as masks like the others")

TILES = flags.DEFINE_integer("tiles", None, "own data: cut pictures into squares of this side, "
                             "pixels; smaller ones stay whole")
OVERLAP = flags.DEFINE_integer("overlap", 128, "own data: pixels by which --tiles overlap at least")

_OWN = ("images", "labels", "names", "name", "format", "validation", "group", "nothing",
        "leave_out", "crowd", "tiles", "overlap")


def main(names):
    from maskclippp_jax.data import catalogue, images, tiling
    from maskclippp_jax.data.prepare import making
    from maskclippp_jax.data.prepare.folder import Choices
    from maskclippp_jax.runtime import storage

    images.limit_pixels(MAX_PIXELS.value)
    if LIST.value:
        making.list_datasets()
        return
    unknown = [n for n in names if n not in catalogue.DATASETS and n != "folder"]
    if not names or unknown:
        raise ValueError(f"got {' '.join(unknown) or 'no name'}, wanted some of "
                         f"{', '.join(catalogue.DATASETS)}, or folder; see --list")
    storage.check_writable(DATA_DIR.value, folder=True)
    options = making.Options(DATA_DIR.value, OVERWRITE.value, STRICT.value, SHOW.value)
    tiles = None if TILES.value is None else tiling.Tiles(TILES.value, OVERLAP.value)
    if tiles is None and flags.FLAGS["overlap"].present:
        raise ValueError(f"--overlap={OVERLAP.value} is for --tiles, their side in pixels; give "
                         "both")
    for name in names:
        if name == "folder":
            making.prepare_folder(making.OwnData(
                IMAGES.value, LABELS.value, NAMES.value, NAME.value, Choices(
                    NOTHING.value, LEAVE_OUT.value, CROWD.value == "keep", FORMAT.value,
                    VALIDATION.value, GROUP.value), tiles), options)
            continue
        for flag in _OWN:
            if flags.FLAGS[flag].present:
                raise ValueError(f"--{flag} is for own data (prepare folder ...), not for {name}")
        making.prepare(catalogue.DATASETS[name], RAW_DIR.value, options)
