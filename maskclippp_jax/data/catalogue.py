"""The data sets that `prepare` knows: what they are, where to get them, how to read them."""

import dataclasses
import functools
import typing

from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import ade20k, coco, mess, pascal, scenes, street


@dataclasses.dataclass(frozen=True)
class Dataset:
    name: str
    title: str
    kind: str                   # one of records.KINDS
    vocabulary: str             # names file in data/names
    licence: str
    download: str               # where its owners publish it
    expected: str               # what --raw_dir must hold; "" if it is generated
    published: dict[str, int]   # records of each split
    read: typing.Callable[[str | None], Reading]
    tiles: bool = False         # whether pictures are cut, so that only the result can be counted


_COCO = dict(licence="annotations CC BY 4.0, pictures Flickr terms", download="cocodataset.org")
_COCO_PICTURES = {"train": 118287, "validation": 5000}
_ADE = dict(vocabulary="ade20k_150", licence="non-commercial research",
            download="sceneparsing.csail.mit.edu (instances: Places Challenge 2017)",
            published={"train": 20210, "validation": 2000})
_CONTEXT = dict(licence="Flickr terms", kind="semantic", published={
    "train": 4996, "validation": 5104}, download="cs.stanford.edu/~roozbeh/pascal-context, PASCAL "
    "VOC 2010, PASCAL in Detail (merged json)")
_VOC = dict(licence="Flickr terms", kind="semantic", download="PASCAL VOC 2012",
            expected=pascal.EXPECTED_VOC, published={"train": 1464, "validation": 1449})
_CITY = dict(vocabulary="cityscapes_19", licence="non-commercial, own terms",
             download="cityscapes-dataset.com (login)", expected=street.EXPECTED_CITYSCAPES,
             published={"train": 2975, "validation": 500})
_VISTAS = dict(vocabulary="mapillary_vistas_65", licence="research use",
               download="mapillary.com/dataset/vistas (login)", expected=street.EXPECTED_VISTAS,
               published={"train": 18000, "validation": 2000})
_GENERATED = dict(
    licence="code: this project's; photographs and digits: see data/scenes.py",
    download="generated", expected="")

_MAIN = (
    Dataset("scenes", "generated scenes, all classes (quick start, evaluation)",
            "semantic", "scenes", published={"validation": 600},
            read=functools.partial(scenes.read_all, kind="semantic"), **_GENERATED),
    Dataset("scenes_panoptic", "generated scenes, each digit a segment of its own", "panoptic",
            "scenes", published={"validation": 300},
            read=functools.partial(scenes.read_all, kind="panoptic"), **_GENERATED),
    Dataset("scenes_instance", "generated scenes, the digits alone", "instance", "scenes",
            published={"validation": 300},
            read=functools.partial(scenes.read_all, kind="instance"), **_GENERATED),
    Dataset("scenes_seen", "generated scenes, seen classes only (quick start, tuning)",
            "semantic", "scenes_seen", published={"train": 4000, "validation": 200},
            read=scenes.read_seen, **_GENERATED),
    Dataset("coco_stuff_171", "COCO-Stuff 164k", "semantic", "coco_stuff_171",
            expected=coco.EXPECTED_STUFF, published=_COCO_PICTURES, read=coco.read_stuff, **_COCO),
    Dataset("coco_panoptic_133", "COCO 2017 panoptic", "panoptic", "coco_panoptic_133",
            expected=coco.EXPECTED_PANOPTIC, published=_COCO_PICTURES, read=coco.read_panoptic,
            **_COCO),
    Dataset("coco_instance_80", "COCO 2017 instances", "instance", "coco_instance_80",
            expected=coco.EXPECTED_INSTANCES, published=_COCO_PICTURES, read=coco.read_instances,
            **_COCO),
    Dataset("lvis_1203", "LVIS v1, instances", "instance", "lvis_1203",
            "annotations CC BY 4.0, pictures Flickr terms", "lvisdataset.org, cocodataset.org",
            coco.EXPECTED_LVIS, {"train": 100170, "validation": 19809}, coco.read_lvis),
    Dataset("ade20k_150", "ADE20K (SceneParse150)", "semantic", expected=ade20k.EXPECTED,
            read=functools.partial(ade20k.read, kind="semantic"), **_ADE),
    Dataset("ade20k_150_panoptic", "ADE20K (SceneParse150) panoptic", "panoptic",
            expected=ade20k.EXPECTED_INSTANCES,
            read=functools.partial(ade20k.read, kind="panoptic"), **_ADE),
    Dataset("ade20k_150_instance", "ADE20K (SceneParse150), instances of its 100 things",
            "instance", expected=ade20k.EXPECTED_INSTANCES,
            read=functools.partial(ade20k.read, kind="instance"), **_ADE),
    Dataset("ade20k_847", "ADE20K full, 847 classes", "semantic", "ade20k_847",
            "non-commercial research", "groups.csail.mit.edu/vision/datasets/ADE20K (on request)",
            ade20k.EXPECTED_FULL, {"train": 25574, "validation": 2000}, ade20k.read_full),
    Dataset("pascal_context_59", "PASCAL Context, 59 classes", vocabulary="pascal_context_59",
            expected=pascal.EXPECTED_CONTEXT_59,
            read=functools.partial(pascal.read_context, classes=59), **_CONTEXT),
    Dataset("pascal_context_459", "PASCAL Context, 459 classes", vocabulary="pascal_context_459",
            expected=pascal.EXPECTED_CONTEXT_459,
            read=functools.partial(pascal.read_context, classes=459), **_CONTEXT),
    Dataset("pascal_voc_20", "PASCAL VOC 2012, background is nothing", vocabulary="pascal_voc_20",
            read=functools.partial(pascal.read_voc, classes=20), **_VOC),
    Dataset("pascal_voc_21", "PASCAL VOC 2012, background is a class", vocabulary="pascal_voc_21",
            read=functools.partial(pascal.read_voc, classes=21), **_VOC),
    Dataset("cityscapes_19", "Cityscapes", "semantic",
            read=functools.partial(street.read_cityscapes, kind="semantic"), **_CITY),
    Dataset("cityscapes_19_panoptic", "Cityscapes panoptic", "panoptic",
            read=functools.partial(street.read_cityscapes, kind="panoptic"), **_CITY),
    Dataset("mapillary_vistas_65", "Mapillary Vistas v1.2", "semantic",
            read=functools.partial(street.read_vistas, kind="semantic"), **_VISTAS),
    Dataset("mapillary_vistas_65_panoptic", "Mapillary Vistas v1.2 panoptic", "panoptic",
            read=functools.partial(street.read_vistas, kind="panoptic"), **_VISTAS),
)

# Name, official name and domain, records, licence, what --raw_dir holds.
_MESS = (
    ("dark_zurich", "Dark Zurich, general", 50, "non-commercial", "Dark_Zurich_val_anon.zip"),
    ("foodseg103", "FoodSeg103, general", 2125, "Apache 2.0",
     "FoodSeg103, unpacked (its zip has a password, published on its page)"),
    ("mhp_v1", "LV-MHP v1, general", 980, "non-commercial", "LV-MHP-v1.zip"),
    ("bdd100k", "BDD100K, general", 1000, "non-commercial (login)",
     "bdd100k_images_10k.zip, bdd100k_sem_seg_labels_trainval.zip"),
    ("atlantis", "ATLANTIS, general", 1295, "Flickr pictures", "the repository's folder atlantis"),
    ("dram", "DRAM, general", 718, "non-commercial",
     "DRAM_processed, unpacked (there is a .rar in its zip)"),
    ("isaid", "iSAID, earth monitoring", 4055, "non-commercial (login)",
     "DOTA's validation pictures P*.png, iSAID's P*_instance_color_RGB.png"),
    ("isprs_potsdam", "ISPRS Potsdam, earth monitoring", 504, "on request", "Potsdam.zip"),
    ("worldfloods", "WorldFloods, earth monitoring", 160, "CC BY-NC 4.0",
     "a folder with test/S2/*.tif and test/gt/*.tif"),
    ("floodnet", "FloodNet, earth monitoring", 5571, "CDLA permissive",
     "FloodNet-Supervised_v1.0.zip"),
    ("uavid", "UAVid, earth monitoring", 840, "CC BY-NC-SA 4.0 (login)",
     "uavid_v1.5_official_release_image.zip"),
    ("kvasir_instrument", "Kvasir-Instrument, medical", 118, "non-commercial",
     "kvasir-instrument.zip"),
    ("chase_db1", "CHASE DB1, medical", 20, "CC BY 4.0", "CHASEDB1.zip"),
    ("cryonuseg", "CryoNuSeg, medical", 30, "CC BY-NC-SA 4.0 (Kaggle login)",
     "the folders \"tissue images\" and \"Annotator 1 (biologist ...)\""),
    *((f"paxray_{part}", f"PAXRay {part}, medical", 180, "unclear", "paxray_dataset.zip")
      for part in ("lungs", "mediastinum", "bones", "diaphragm")),
    ("corrosion_cs", "Corrosion Condition State, engineering", 44, "CC0",
     "Corrosion Condition State Classification.zip"),
    ("deepcrack", "DeepCrack, engineering", 237, "unclear", "DeepCrack.zip"),
    ("pst900", "PST900, engineering", 288, "GPL-3.0", "PST900_RGBT_Dataset.zip"),
    ("zerowaste", "ZeroWaste-f, engineering", 929, "CC BY-NC 4.0", "zerowaste-f-final.zip"),
    ("suim", "SUIM, agriculture and biology", 110, "unclear", "TEST.zip"),
    ("cub_200", "CUB-200-2011, agriculture and biology", 5794, "non-commercial",
     "CUB_200_2011.tgz, segmentations.tgz"),
    ("cwfid", "CWFID, agriculture and biology", 21, "non-commercial",
     "the repository's folder; labels as the benchmark has them, crop and weed swapped"),
    ("cwfid_corrected", "CWFID, corrected, agriculture and biology", 21, "non-commercial",
     "the repository's folder; labels as the data set's owners have them"),
)

DATASETS = {d.name: d for d in (*_MAIN, *(
    Dataset(f"mess_{name}", f"{title} (MESS)", "semantic",
            mess.RULES[name].vocabulary or f"mess_{name}", licence,
            "its own page; the list is at github.com/blumenstiel/MESS", expected,
            {mess.RULES[name].split: count}, functools.partial(mess.read, name=name),
            tiles=mess.RULES[name].tiles > 1)
    for name, title, count, licence, expected in _MESS))}
