"""A user's own pictures, with annotations in every form."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskclippp_jax.data import build, records
from maskclippp_jax.data.prepare import folder

SIZE = (20, 30)


@pytest.fixture
def own(tmp_path):
    """Six pictures; each has a square and a bar over it, except the last, which has no annotation.

    Returns the folder; pictures are in images/, names in names.txt.
    """
    (tmp_path / "names.txt").write_text("sky\tstuff\t4\nblack cat,cat\tthing\t7\nbar\tthing\t9\n")
    for i in range(6):
        path = tmp_path / f"images/{'day' if i % 2 else 'night'}/{i}.{'jpg' if i % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 40 * i, np.uint8)).save(path)
    return tmp_path


def keys(count=5) -> list[str]:
    return [f"{'day' if i % 2 else 'night'}/{i}" for i in range(count)]


def masks_of(i: int) -> dict[str, np.ndarray]:
    square, bar = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    square[2:12, 3:13 + i] = True
    bar[5:8] = True
    return dict(cat=square, bar=bar)


def write_label_maps(own) -> str:
    for i, key in enumerate(keys()):
        label = np.full(SIZE, 4, np.uint8)
        label[masks_of(i)["cat"]] = 7
        label[masks_of(i)["bar"]] = 9
        label[0] = 255
        save(own / f"labels/{key}.png", label)
    return str(own / "labels")


def write_mask_folders(own) -> str:
    for i, key in enumerate(keys()):
        save(own / f"labels/{key}/black_cat_1.png", masks_of(i)["cat"].astype(np.uint8) * 255)
        save(own / f"labels/{key}/bar.png", masks_of(i)["bar"])
    return str(own / "labels")


def write_mask_json(own) -> str:
    for i, key in enumerate(keys()):
        square, bar = (coco_mask.encode(np.asfortranarray(m, np.uint8))
                       for m in masks_of(i).values())
        square["counts"] = square["counts"].decode()
        runs = np.flatnonzero(np.diff(np.r_[0, masks_of(i)["bar"].T.ravel(), 1]))
        uncompressed = np.diff(np.r_[0, runs, SIZE[0] * SIZE[1]]).tolist()
        content = [dict(segmentation=square, label="cat"),
                   dict(segmentation=dict(size=SIZE, counts=uncompressed), category_id=9)]
        path = own / f"labels/{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"annotations": content} if i == 0 else content))
    return str(own / "labels")


def write_coco_instances(own) -> str:
    annotations = []
    for i in range(5):
        for category, mask in zip((1, 2), masks_of(i).values()):
            code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            annotations.append(dict(
                id=len(annotations) + 1, image_id=i, category_id=category, iscrowd=0,
                segmentation=dict(size=SIZE, counts=code["counts"].decode())))
    return write_coco(own, annotations, [dict(id=1, name="cat"), dict(id=2, name="bar")])


def write_coco_panoptic(own) -> str:
    annotations = []
    for i in range(5):
        ids = np.full(SIZE, 70000)
        ids[masks_of(i)["cat"]] = 300
        ids[masks_of(i)["bar"]] = 0
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1)
        save(own / f"instances/{i}.png", colors.astype(np.uint8))
        annotations.append(dict(image_id=i, file_name=f"{i}.png", segments_info=[
            dict(id=300, category_id=1, area=3), dict(id=70000, category_id=5, area=0)]))
    return write_coco(own, annotations, [dict(id=1, name="cat", isthing=1),
                                         dict(id=5, name="sky", isthing=0)])


def write_coco(own, annotations, categories) -> str:
    images = [dict(id=i, file_name=f"{i}.jpg", height=SIZE[0], width=SIZE[1]) for i in range(5)]
    (own / "instances.json").write_text(json.dumps(dict(
        images=images, annotations=annotations, categories=categories)))
    return str(own / "instances.json")


def save(path: pathlib.Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def read(own, annotations, names="names.txt", **kw) -> folder.OwnData:
    return folder.read(str(own / "images"), annotations, names and str(own / names),
                       folder.Choices(**kw))


def records_of(data: folder.OwnData) -> dict[str, dict]:
    made = [record for items in data.reading.splits.values() for item in items
            for record in data.reading.make_records(item)]
    return {record["image_id"]: record for record in made}


def test_label_maps_are_read_by_the_numbers_of_the_names_file(own):
    data = read(own, write_label_maps(own))
    assert data.kind == "semantic" and data.vocabulary.classes[1] == ("black cat", "cat")
    found = records_of(data)
    assert sorted(found) == sorted(keys())
    for i, key in enumerate(keys()):
        wanted = np.zeros(SIZE, int)
        wanted[masks_of(i)["cat"]] = 1
        wanted[masks_of(i)["bar"]] = 2
        wanted[0] = -1
        np.testing.assert_array_equal(records.decode_classes(found[key]), wanted)
        assert found[key]["table"]["is_thing"].tolist() == [False, True, True]
    assert data.reading.missing == [
        f"1 of 6 picture or annotation files have no partner, e.g. {own}/images/day/5.jpg"]


@pytest.mark.parametrize("write", [write_mask_folders, write_mask_json, write_coco_instances])
@pytest.mark.parametrize("named", [True, False])
def test_overlapping_masks_come_from_folders_and_json(own, write, named):
    annotations = write(own)
    if not named and not annotations.endswith(".json"):
        with pytest.raises(ValueError, match="got no --names"):
            read(own, annotations, names=None)
        return
    data = read(own, annotations, names="names.txt" if named else None)
    assert data.kind == "instance"
    found = records_of(data)
    assert len(found) == 5
    names = [n[0] for n in data.vocabulary.classes]
    assert names == (["sky", "black cat", "bar"] if named else ["cat", "bar"])
    for key, record in found.items():
        wanted = masks_of(int(key[-1]))
        masks = records.decode_masks(record)
        classes = [names[c].split()[-1] for c in record["table"]["class_id"]]
        assert sorted(classes) == ["bar", "cat"]
        for name, mask in zip(classes, masks):
            np.testing.assert_array_equal(mask, wanted[name])


def test_panoptic_json_finds_its_maps_in_the_folder_of_its_name(own):
    for names in ("names.txt", None):
        data = read(own, write_coco_panoptic(own), names=names)
        assert data.kind == "panoptic"
        found = records_of(data)
        for i in range(5):
            table = found[f"{i}"]["table"]
            assert table["source_id"].tolist() == [300, 70000]
            assert table["is_thing"].tolist() == [True, False]
            shown = [data.vocabulary.classes[c][-1] for c in table["class_id"]]
            assert shown == ["cat", "sky"]
            visible = masks_of(i)["cat"] & ~masks_of(i)["bar"]
            np.testing.assert_array_equal(records.decode_masks(found[f"{i}"])[0], visible)
            rest = np.prod(SIZE) - (masks_of(i)["cat"] | masks_of(i)["bar"]).sum()
            assert table["area"].tolist() == [visible.sum(), rest]  # and not what the file says


def test_crowds_of_a_panoptic_json_can_be_kept(own):
    file = pathlib.Path(write_coco_panoptic(own))
    content = json.loads(file.read_text())
    content["annotations"][0]["segments_info"][0]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    for keep in (False, True):
        table = records_of(read(own, str(file), keep_crowds=keep))["0"]["table"]
        assert table["is_crowd"].tolist() == [not keep, False]
    with pytest.raises(ValueError, match="--crowd=keep is for masks marked as crowds, of which la"):
        read(own, write_label_maps(own), keep_crowds=True)


def test_a_share_or_a_list_makes_the_validation_split(own):
    annotations = write_label_maps(own)
    splits = read(own, annotations, validation="0.4").reading.splits
    assert {k: len(v) for k, v in splits.items()} == {"train": 3, "validation": 2}
    again = read(own, annotations, validation="0.4").reading.splits
    assert [i[0] for i in again["validation"]] == [i[0] for i in splits["validation"]]
    (own / "val.txt").write_text("day/1.jpg\n\nnight/4\n")
    splits = read(own, annotations, validation=str(own / "val.txt")).reading.splits
    assert [i[0] for i in splits["validation"]] == ["day/1", "night/4"]
    assert list(read(own, annotations, validation="1").reading.splits) == ["validation"]
    # Another list of the same length: a stopped build must not go on with it.
    before = read(own, annotations, validation=str(own / "val.txt")).reading.fingerprint
    (own / "val.txt").write_text("day/1\nnight/2\n")
    assert read(own, annotations, validation=str(own / "val.txt")).reading.fingerprint != before
    (own / "val.txt").write_text("day/1\nday/5\nnight/9\n")
    with pytest.raises(ValueError, match="names 2 pictures that are not there .* day/5, night/9"):
        read(own, annotations, validation=str(own / "val.txt"))
    with pytest.raises(ValueError, match="--validation=2 is no share"):
        read(own, annotations, validation="2")
    with pytest.raises(FileNotFoundError, match="--validation=nothing is no file"):
        read(own, annotations, validation="nothing")


def test_all_that_is_wrong_with_the_pictures_is_said_together(own, tmp_path):
    annotations = pathlib.Path(write_label_maps(own))
    save(annotations / "day/1.png", np.full((5, 6), 7, np.uint8))
    save(annotations / "night/2.png", np.full(SIZE, 3, np.uint8))
    (annotations / "day/3.png").write_bytes(b"nothing")
    data = read(own, str(annotations))
    with pytest.raises(build.BadPictures) as caught:
        build.build(str(tmp_path / "data"), "mine", data.vocabulary, data.kind, data.reading,
                    description="")
    problems = "\n".join(caught.value.problems)
    assert "3 of 5 pictures cannot be used" in str(caught.value)
    assert "day/1: the picture has 30x20 pixels, its annotation 6x5" in problems
    assert "night/2.png holds 3, to which names.txt gives no name (nor does --nothing" in problems
    assert "day/3.png cannot be read as a picture" in problems


@pytest.mark.parametrize("name, words", [
    ("dog", "names.txt has no class 'dog'"), ("catt_3", "names.txt has no class 'catt_3'")])
def test_masks_of_a_class_without_a_name_are_named(own, name, words):
    annotations = write_mask_folders(own)
    save(own / f"labels/day/1/{name}.png", np.ones(SIZE, bool))
    with pytest.raises(ValueError, match=f"day/1/{name}.png: {words}"):
        records_of(read(own, annotations))


@pytest.mark.parametrize("entry, words", [
    (dict(segmentation=[[0, 0, 5, 0, 5, 5]]), "mask 0: wanted segmentation, and category_id or"),
    (dict(label="cat"), "mask 0: wanted segmentation"),
    (dict(segmentation=[], category_id=5), "has the class 5, to which names.txt gives no"),
    (dict(segmentation=dict(size=[3, 4], counts=[12]), label="cat"), "the mask is for 4x3 pixels"),
])
def test_a_json_of_masks_that_lacks_something_is_named(own, entry, words):
    annotations = write_mask_json(own)
    (own / "labels/day/1.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match=f"day/1.json.*{words}"):
        records_of(read(own, annotations))


def test_annotations_that_do_not_fit_at_all_are_explained(own):
    for wrong in ("nothing", "nothing.json", "names.txt"):
        with pytest.raises(FileNotFoundError, match="no --labels=.*give a folder with x.png"):
            read(own, str(own / wrong))
    with pytest.raises(FileNotFoundError, match="no folder --images=/nowhere"):
        folder.read("/nowhere", str(own), None)
    (own / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="none of the 6 pictures .* has an annotation"):
        read(own, str(own / "other"))
    annotations = write_label_maps(own)
    with pytest.raises(ValueError, match="9 is the number of the class 'bar' and, by --nothing,"):
        read(own, annotations, nothing=[0, 9])
    content = json.loads(pathlib.Path(write_coco_instances(own)).read_text())
    content["categories"].append(dict(id=3, name="dog"))
    content["annotations"].append(dict(content["annotations"][0], category_id=3))
    (own / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no class of the name of 1 of 3 categories: 'dog' \(3\)"):
        read(own, str(own / "instances.json"))
    del content["annotations"][0]["image_id"]
    (own / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"at annotations\[0, id 1\]: there is no image_id"):
        read(own, str(own / "instances.json"), names=None)
    (own / "instances.json").write_text("[]")
    with pytest.raises(ValueError, match="instances.json is an empty list, wanted a file of COCO"):
        read(own, str(own / "instances.json"))


def test_two_pictures_of_one_name_are_refused(own):
    annotations = write_label_maps(own)
    save(own / "images/day/1.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match="two files for day/1"):
        read(own, annotations)


def test_the_names_of_own_data_travel_with_them(own, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "maskclippp_jax", "prepare", "folder", f"--images={own / 'images'}",
         f"--labels={write_label_maps(own)}", f"--names={own / 'names.txt'}", "--name=mine",
         "--validation=0.4", f"--data_dir={tmp_path / 'data'}"],
        capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    assert result.returncode == 0, result.stderr
    assert "warning: mine: 1 of 6 picture or annotation files have no partner" in result.stdout
    assert "mine (semantic)" in result.stdout
    (own / "names.txt").unlink()
    source = records.open_source(str(tmp_path / "data"), "mine", "validation")
    assert source.kind == "semantic" and len(source.records) == 2
    assert source.vocabulary.classes == (("sky",), ("black cat", "cat"), ("bar",))
    assert source.vocabulary.is_thing == (False, True, True)
