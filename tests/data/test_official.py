"""Every published data set, from its archives and from its unpacked folders, as a user makes it.

`tests/fixtures` holds tiny archives of the official names and layouts, and the maps that the
published preparation scripts make of them.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from maskclippp_jax.data import catalogue, images, records

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
OFFICIAL = [name for name in catalogue.DATASETS if not name.startswith("scenes")]
SPLITS = {"train2017": "train", "training": "train", "val2017": "validation", "val": "validation"}
VOID = {"ade20k_847": 65535, "pascal_context_459": 65535, "mapillary_vistas_65": 65}


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    if archive.suffix == ".zip":
        zipfile.ZipFile(archive).extractall(folder)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")


def lay_out_archives(downloads: pathlib.Path) -> None:
    """One folder with everything as it comes from the owners' pages."""
    for archive in FIXTURES.glob("*/archives/*"):
        shutil.copy(archive, downloads)
    mess = downloads / "unpacked"
    unpack(FIXTURES / "mess/extracted.zip", mess)

    def pack(name, root, *parts, inside=""):
        """Moves folders into an archive, with junk as macOS leaves it in zips."""
        files = [p for part in parts or ["."] for p in (mess / root / part).rglob("*")
                 if p.is_file()]
        files += [mess / root / p for p in parts if (mess / root / p).is_file()]
        if name.endswith("gz"):
            with tarfile.open(downloads / name, "w:gz") as tar:
                for file in files:
                    tar.add(file, f"./{inside}{file.relative_to(mess / root)}")
        else:
            with zipfile.ZipFile(downloads / name, "w") as archive:
                for file in files:
                    path = pathlib.PurePath(inside) / file.relative_to(mess / root)
                    archive.write(file, path)
                    archive.writestr(str(path.with_name(f"._{path.name}")), b"junk")
                    archive.writestr(f"__MACOSX/{path}", b"junk")

    pack("Dark_Zurich_val_anon.zip", "Dark_Zurich")
    for name in ("LV-MHP-v1", "paxray_dataset", "PST900_RGBT_Dataset", "DeepCrack",
                 "FloodNet-Supervised_v1.0", "Corrosion Condition State Classification", "cwfid"):
        pack(f"{name}.zip", name, inside=f"{name}/")
    pack("bdd100k_images_10k.zip", "bdd100k", "images", inside="bdd100k/")
    pack("bdd100k_sem_seg_labels_trainval.zip", "bdd100k", "labels", inside="bdd100k/")
    pack("uavid_v1.5_official_release_image.zip", "uavid_v1.5")
    pack("CHASEDB1.zip", "CHASEDB1")
    pack("zerowaste-f-final.zip", "zerowaste-f")
    pack("TEST.zip", "SUIM")
    pack("segmentations.tgz", "CUB_200_2011", "segmentations")
    pack("CUB_200_2011.tgz", "CUB_200_2011", "images", "images.txt", "train_test_split.txt",
         inside="CUB_200_2011/")
    # Archives in archives.
    pack("3_Ortho_IRRG.zip", "ISPRS_Potsdam", "3_Ortho_IRRG")
    pack("5_Labels_all.zip", "ISPRS_Potsdam/Labels")
    pack("images.tar.gz", "kvasir-instrument", "images")
    pack("masks.tar.gz", "kvasir-instrument", "masks")
    for outer, inside, inner, compression in (
            ("Potsdam.zip", "Potsdam/", ["3_Ortho_IRRG.zip", "5_Labels_all.zip"],
             zipfile.ZIP_STORED),
            ("kvasir-instrument.zip", "kvasir-instrument/", ["images.tar.gz", "masks.tar.gz"],
             zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(downloads / outer, "w", compression) as archive:
            for name in inner:
                archive.write(downloads / name, inside + name)
                (downloads / name).unlink()
            if outer.startswith("kvasir"):
                archive.write(mess / "kvasir-instrument/test.txt", inside + "test.txt")
    for packed in ("Dark_Zurich", "LV-MHP-v1", "paxray_dataset", "PST900_RGBT_Dataset", "DeepCrack",
                   "FloodNet-Supervised_v1.0", "Corrosion Condition State Classification", "cwfid",
                   "bdd100k", "uavid_v1.5", "CHASEDB1", "zerowaste-f", "SUIM", "CUB_200_2011",
                   "ISPRS_Potsdam", "kvasir-instrument"):
        shutil.rmtree(mess / packed)


def lay_out_folders(downloads: pathlib.Path) -> None:
    """The same, unpacked side by side."""
    for archive in FIXTURES.glob("*/archives/*"):
        folder = downloads / archive.parts[-3]
        if archive.name.startswith("stuffthingmaps"):
            folder = folder / "stuffthingmaps"  # it would mix with the pictures
        if archive.suffix in (".zip", ".tar", ".gz"):
            unpack(archive, folder)
        else:
            shutil.copy(archive, folder)
    for inner in (downloads / "coco2017/annotations").glob("*.zip"):
        unpack(inner, downloads / "coco2017")
    unpack(FIXTURES / "mess/extracted.zip", downloads / "mess")


@pytest.fixture(scope="module", params=["archives", "folders"])
def data_dir(request, tmp_path_factory):
    """All data sets, made by one command."""
    downloads = tmp_path_factory.mktemp("downloads")
    (lay_out_archives if request.param == "archives" else lay_out_folders)(downloads)
    prepared = tmp_path_factory.mktemp("data")
    result = subprocess.run(
        [sys.executable, "-m", "maskclippp_jax", "prepare", *OFFICIAL, f"--raw_dir={downloads}",
         f"--data_dir={prepared}"], capture_output=True, text=True,
        env=os.environ | {"COLUMNS": "120"})
    assert result.returncode == 0, result.stderr + result.stdout
    # Everything here is a small part of the published set, and the command says so.
    assert result.stdout.count("the published set has") >= len(OFFICIAL)
    assert sorted(p.name for p in prepared.iterdir()) == sorted(OFFICIAL)
    return prepared


def expected(*path: str) -> dict:
    return json.loads(FIXTURES.joinpath(*path).read_text())["examples"]


def read(data_dir, name) -> dict:
    """Records by split and id."""
    found = {}
    for split in records.splits_of(str(data_dir), name):
        source = records.open_source(str(data_dir), name, split)
        assert source.kind == catalogue.DATASETS[name].kind
        assert source.vocabulary.name == catalogue.DATASETS[name].vocabulary
        for record in map(source.records.__getitem__, range(len(source.records))):
            found[split, bytes(record["image_id"]).decode()] = record
    return found


def digest(array: np.ndarray) -> str:
    return hashlib.sha1(json.dumps([*array.shape]).encode()
                        + np.ascontiguousarray(array).astype("<i4").tobytes()).hexdigest()


def key_of(example) -> tuple[str, str]:
    return SPLITS.get(example["split"], example["split"]), example["image"].split("/")[-1]


def check_picture(record, example) -> None:
    pixels = images.decode_image(record["image"], example["image"])
    assert images.size_of(record["image"]) == pixels.shape[:2]
    if "rgb_sha1_int32" in example:
        assert digest(pixels) == example["rgb_sha1_int32"]
    elif pixels.shape[:2] == (example["height"], example["width"]):  # not resized
        np.testing.assert_allclose(pixels.mean((0, 1)), example["mean_rgb"], atol=1.5)


def check_semantic(data_dir, name, examples, field) -> None:
    found = read(data_dir, name)
    is_thing = np.array(records.open_source(
        str(data_dir), name, next(iter(found))[0]).vocabulary.is_thing)
    for example in examples:
        if example.get("all_void"):
            assert key_of(example) not in found
            continue
        record = found.pop(key_of(example))
        check_picture(record, example)
        label = records.decode_classes(record, VOID.get(name, 255))
        assert digest(label) == example[field]["sha1_int32"]
        table = record["table"]
        present, areas = np.unique(label[label != VOID.get(name, 255)], return_counts=True)
        assert table["class_id"].tolist() == present.tolist()
        assert table["area"].tolist() == areas.tolist()
        assert table["is_thing"].tolist() == is_thing[present].tolist()
        assert not table["is_crowd"].any()
    assert not found


@pytest.mark.parametrize("name, fixture, field", [
    ("coco_stuff_171", ("coco2017", "expected_stuff.json"), "label"),
    ("ade20k_150", ("ade20k_2016", "expected.json"), "semantic"),
    ("ade20k_847", ("ade20k_full", "expected.json"), "resized"),
    ("pascal_context_59", ("pascal_context", "expected.json"), "pc59"),
    ("pascal_context_459", ("pascal_context", "expected.json"), "pc459"),
    ("pascal_voc_20", ("voc2012", "expected.json"), "voc20"),
    ("pascal_voc_21", ("voc2012", "expected.json"), "voc21"),
    ("cityscapes_19", ("cityscapes", "expected.json"), "semantic"),
    ("mapillary_vistas_65", ("mapillary_vistas", "expected.json"), "semantic")])
def test_semantic_maps_equal_the_published_ones(data_dir, name, fixture, field):
    check_semantic(data_dir, name, expected(*fixture), field)


@pytest.mark.parametrize("name", [n for n in OFFICIAL if n.startswith("mess_")])
def test_mess_maps_equal_the_published_ones(data_dir, name):
    own = name.removeprefix("mess_").removesuffix("_corrected")
    examples = [e for e in expected("mess", "expected.json") if e["image"].split("/")[0] == own]
    check_semantic(data_dir, name, examples,
                   "benchmark_label" if name == "mess_cwfid" else "label")


def columns(record, *names) -> list[tuple]:
    return [tuple(v.tolist() for v in row) for row in zip(*(record["table"][n] for n in names))]


@pytest.mark.parametrize("name, fixture", [
    ("coco_panoptic_133", ("coco2017", "expected_panoptic.json")),
    ("cityscapes_19_panoptic", ("cityscapes", "expected.json")),
    ("mapillary_vistas_65_panoptic", ("mapillary_vistas", "expected.json"))])
def test_panoptic_segments_equal_the_published_ones(data_dir, name, fixture):
    found = read(data_dir, name)
    for example in expected(*fixture):
        record = found.pop(key_of(example))
        check_picture(record, example)
        source_ids = np.concatenate([[0], record["table"]["source_id"]])
        segments = records.decode_segments(record["segments"])
        if "panoptic" in example:
            assert digest(source_ids[segments]) == example["panoptic"]["sha1_int32"]
        void = 65 if name.startswith("mapillary") else 255
        assert digest(records.decode_classes(record, void)) == example["semantic"]["sha1_int32"]
        got = columns(record, "source_id", "class_id", "is_thing", "is_crowd", "area", "bbox")
        assert [[*row] for row in got] == example["segments"]
    assert not found


def test_ade20k_panoptic_keeps_the_areas_recorded_before_pasting(data_dir):
    found = read(data_dir, "ade20k_150_panoptic")
    hidden = 0
    for example in expected("ade20k_2016", "expected.json"):
        record = found.pop(key_of(example))
        check_picture(record, example)
        segments = records.decode_segments(record["segments"])
        assert digest(segments) == example["panoptic"]["sha1_int32"]
        visible = records.decode_masks(record).sum((1, 2))
        got = [[c, thing, area, seen, box] for (c, thing, area, box), seen in zip(
            columns(record, "class_id", "is_thing", "area", "bbox"), visible.tolist())]
        assert got == example["segments"]
        hidden += (visible == 0).sum()
    assert not found and hidden == 1


@pytest.mark.parametrize("name, fixture", [
    ("coco_instance_80", ("coco2017", "expected_instances")),
    ("lvis_1203", ("coco2017", "expected_lvis")),
    ("ade20k_150_instance", ("ade20k_2016", "expected"))])
def test_instances_equal_the_published_ones(data_dir, name, fixture):
    found = read(data_dir, name)
    arrays = np.load(FIXTURES / fixture[0] / f"{fixture[1]}.npz")
    for example in expected(fixture[0], f"{fixture[1]}.json"):
        record = found.pop(key_of(example))
        check_picture(record, example)
        masks = records.decode_masks(record)
        np.testing.assert_array_equal(masks, arrays[example["masks"]["npz"]])
        if name == "lvis_1203":
            pixels = masks.sum((1, 2)).tolist()
            assert example["instances"] == [
                [*row, n] for row, n in zip(columns(record, "source_id", "class_id"), pixels)]
            assert record["negative_classes"].tolist() == example["neg"]
            assert record["not_exhaustive_classes"].tolist() == example["not_exhaustive"]
            continue
        crowd = ["is_crowd"] if name == "coco_instance_80" else []
        got = columns(record, "source_id", "class_id", *crowd, "area", "bbox")
        wanted = [row if crowd else [*row[:2], *row[3:]] for row in example["instances"]]
        assert [[*row] for row in got] == wanted
    assert not found


def test_an_ordinary_tfds_reader_reads_it_decoded(data_dir):
    import tensorflow_datasets as tfds
    builder = tfds.builder_from_directory(
        data_dir / "coco_panoptic_133" / records.VERSION)
    example = builder.as_data_source("train")[0]
    assert example["image"].dtype == np.uint8 and example["image"].shape[-1] == 3
    assert example["segments"].dtype == np.uint16
    assert example["segments"].shape[:2] == example["image"].shape[:2]
    assert example["table"]["area"].dtype == np.float64
