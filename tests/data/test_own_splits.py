"""Own data in several splits, divided by people or by us."""

import numpy as np
import pytest

from maskclippp_jax.data import records
from maskclippp_jax.data.prepare import folder
from tests.own_data import BLUE, RED, TWO, Place, box, numbers


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def ids_of(data) -> dict[str, list[str]]:
    return {split: [item[0] for item in items] for split, items in data.reading.splits.items()}


def test_folders_of_pictures_are_splits(place):
    (place.path / "images/p.png").unlink()
    for name in ("train/a", "train/b", "valid/a", "test/c"):
        place.picture(f"{name}.png")
        place.label(numbers(255, 0, 1), f"{name}.png")
    wanted = dict(train=["train/a", "train/b"], validation=["valid/a"], test=["test/c"])
    data = place.read("labels", names=TWO)
    assert ids_of(data) == wanted
    assert ("took the folders of the pictures for splits: 2 train, 1 validation, 1 test"
            in data.reading.notes)
    data = place.read("labels", names=TWO, validation="0.25")
    assert sorted(map(len, ids_of(data).values())) == [1, 3] and "--validation divides all" in (
        data.reading.notes[-1])
    with pytest.raises(ValueError, match="folders of the pictures puts train/a in train and valid/"
                       "a in validation, but both are of the group 'a'"):
        place.read("labels", names=TWO, group="{group}")
    place.picture("d.png")  # in no split
    place.label(numbers(255, 0, 1), "d.png")
    assert list(ids_of(place.read("labels", names=TWO))) == ["train"]


def test_roboflows_files_of_coco_in_folders_of_splits_are_one_data_set(place):
    for split, polygon in (("train", RED), ("valid", BLUE)):
        place.coco([polygon], images=[dict(id=1, file_name="x.png", width=80, height=60)],
                   categories=[dict(id=0, name="boxes", supercategory="none"),
                               dict(id=1, name="red box", supercategory="boxes")])
        place.picture(f"../all/{split}/x.png")
        (place.path / "a.json").rename(place.path / f"all/{split}/_annotations.coco.json")
    (place.path / "all/train/more.json").write_text("{}")
    read = lambda **kw: folder.read(str(place.path / "all"), str(place.path / "all"), None,
                                    folder.Choices(**kw))
    data = read()
    assert ids_of(data) == dict(train=["x"], validation=["x"])
    assert data.vocabulary.classes == (("red box",),)
    assert all(f"{s}: left out the category 'boxes'" in " ".join(data.reading.notes)
               for s in ("train", "validation"))
    item, = data.reading.splits["validation"]
    np.testing.assert_array_equal(records.decode_masks(*data.reading.make_records(item))[0],
                                  box(BLUE))
    with pytest.raises(ValueError, match="these have train, validation; leave it out"):
        read(validation="0.5")
    file = place.path / "all/valid/_annotations.coco.json"
    file.write_text(file.read_text().replace("red box", "blue box"))
    with pytest.raises(ValueError, match="differ in their classes; give all of them as --names"):
        read()
    file.rename(place.path / "all/train_2.json")
    with pytest.raises(ValueError, match="two files for train"):
        read()


def test_files_of_splits_find_pictures_in_folders_of_splits(place):
    for split, folder_name in (("train", "train2017"), ("val", "val2017")):
        place.picture(f"{folder_name}/x.png")
        place.coco([RED], images=[dict(id=1, file_name="x.png", width=80, height=60)])
        (place.path / "labels").mkdir(exist_ok=True)
        (place.path / "a.json").rename(place.path / f"labels/instances_{folder_name}.json")
    data = place.read("labels")
    assert ids_of(data) == dict(train=["x"], validation=["x"])
    assert data.reading.splits["train"][0][1].path.endswith("train2017/x.png")


def test_a_picture_in_two_splits_is_refused(place):
    (place.path / "labels").mkdir()
    for name in ("q.png", "r.png"):
        place.picture(name)
    for split, other in (("train", "q.png"), ("val", "r.png")):
        place.coco([RED], images=[dict(id=1, file_name="p.png"), dict(id=2, file_name=other)])
        (place.path / "a.json").rename(place.path / f"labels/{split}.json")
    with pytest.raises(ValueError, match=r"train.json \(train\) and .*val.json \(validation\) both "
                       "have 1 picture, such as .*p.png; keep each in one"):
        place.read("labels")


@pytest.mark.parametrize("form", ["{split}/{kind}/{name}", "{kind}/{split}/{name}"])
def test_yolos_folders_below_one_are_splits(place, form):
    line = "0 " + " ".join(f"{n / side:.6f}" for n, side in zip(RED, [80, 60] * 4)) + "\n"
    for split in ("train", "valid"):
        place.picture("../all/" + form.format(split=split, kind="images", name="x.png"))
        file = place.path / "all" / form.format(split=split, kind="labels", name="x.txt")
        file.parent.mkdir(parents=True)
        file.write_text(line)
    (place.path / "data.yaml").write_text(
        "names: [red box]\ntrain: ../train/images\nval: ../valid/images\n")
    data = folder.read(str(place.path / "all"), str(place.path / "all"),
                       str(place.path / "data.yaml"))
    assert ids_of(data) == dict(train=["train/x"], validation=["valid/x"])
    record, = data.reading.make_records(data.reading.splits["train"][0])
    np.testing.assert_array_equal(records.decode_masks(record)[0], box(RED))


def test_a_data_yaml_may_call_its_folders_as_it_likes(place):
    for name in ("north/a", "south/b"):
        place.picture(f"{name}.png")
        (place.path / f"labels/{name}.txt").parent.mkdir(parents=True)
        (place.path / f"labels/{name}.txt").write_text("0 0 0 1 0 1 1\n")
    (place.path / "images/p.png").unlink()
    (place.path / "data.yaml").write_text("names: [x]\ntrain: images/north\nval: ./south/\n")
    data = folder.read(str(place.path / "images"), str(place.path / "labels"),
                       str(place.path / "data.yaml"))
    # The folder of --images may stand in front.
    assert ids_of(data) == dict(train=["north/a"], validation=["south/b"])


def test_a_share_keeps_rare_classes_in_both_parts(place):
    names = [f"{n:02d}" for n in range(20)]
    images = [dict(id=n, file_name=f"{name}.png") for n, name in enumerate(names)]
    for name in names:
        place.picture(f"{name}.png")
    place.coco(*(dict(image_id=n, segmentation=[RED]) for n in range(20)), images=images)
    plain = ids_of(place.read(validation="0.2"))
    assert len(plain["validation"]) == 4
    rare = [names.index(name) for name in plain["train"][:2]]
    only = names.index(plain["train"][2])
    place.coco(*(dict(image_id=n, segmentation=[RED]) for n in range(20)),
               *(dict(image_id=n, segmentation=[BLUE], category_id=2) for n in rare),
               dict(image_id=only, segmentation=[BLUE], category_id=3), images=images,
               categories=("red box", "blue box", "once"))
    found = ids_of(place.read(validation="0.2"))
    assert len(found["validation"]) == 4 and len(found["train"]) == 16
    assert len({names[n] for n in rare} & set(found["validation"])) == 1
    assert names[only] in found["train"]
    # The same of label maps, whose classes are in their pixels.
    for n, name in enumerate(names):
        place.label(numbers(255, 0, 1 if n in rare else 0), f"{name}.png")
    found = ids_of(place.read("labels", names=TWO, validation="0.2"))
    assert len(found["validation"]) == 4
    assert len({names[n] for n in rare} & set(found["validation"])) == 1


@pytest.mark.parametrize("share, count", [("0.1", 1), ("0.01", 1), ("0", 0), ("0.99", 3), ("1", 4)])
def test_no_part_of_a_share_is_empty_for_being_small(place, share, count):
    for name in ("q.png", "r.png", "s.png"):
        place.picture(name)
    for name in ("p.png", "q.png", "r.png", "s.png"):
        place.label(numbers(255, 0, 1), name)
    data = place.read("labels", names=TWO, validation=share)
    assert len(ids_of(data).get("validation", ())) == count
    assert f"--validation={share} takes {count} of 4 pictures for val" in data.reading.notes[-1]


def test_an_empty_list_for_validation_is_refused(place):
    place.coco([RED])
    (place.path / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match="val.txt names no picture; write one a line, or leave"):
        place.read(validation=str(place.path / "val.txt"))


def test_pictures_of_a_group_stay_together(place):
    names = [f"patient{n}_{slice}" for n in range(6) for slice in range(3)]
    for name in names:
        place.picture(f"{name}.png")
    place.coco(*(dict(image_id=n, segmentation=[RED]) for n in range(18)),
               images=[dict(id=n, file_name=f"{name}.png") for n, name in enumerate(names)])
    found = ids_of(place.read(validation="0.34", group="{group}_*"))
    groups = {split: {i.split("_")[0] for i in ids} for split, ids in found.items()}
    assert len(groups["validation"]) == 2 and not groups["train"] & groups["validation"]
    assert len(found["validation"]) == 6
    (place.path / "val.txt").write_text("patient1_0\n")
    with pytest.raises(ValueError, match="val.txt puts patient1_.* are of the group 'patient1'"):
        place.read(validation=str(place.path / "val.txt"), group="{group}_*")
    with pytest.raises(ValueError, match="--group={group}-x does not fit 18 of 18 pictures, such"):
        place.read(group="{group}-x")
    with pytest.raises(ValueError, match="--group=patient should have {group} where"):
        place.read(group="patient")


def test_pictures_in_formats_that_are_not_read_are_counted_and_named(place):
    for name in ("a.heic", "b.HEIC", "c.gif"):
        (place.path / "images" / name).write_bytes(b"")
    place.picture("q.PNG")
    place.coco([RED])
    said, = place.read().reading.missing
    assert said.startswith("3 pictures are in formats that are not read (1 .gif, 2 .heic), e.g. a.")
    place.coco([RED], images=[dict(id=1, file_name="q.PNG")])
    assert list(place.records()[1]) == ["q"]


@pytest.mark.parametrize("files, says", [
    ((), "no picture in --images=.*images; wanted .jpg, "),
    (("IMG_1.HEIC",), "no picture in --images=.*images; 1 picture is in formats that are not read "
                      r"\(1 .heic\), e.g. IMG_1.HEIC; save them as JPEG or PNG")])
def test_a_folder_without_a_picture_that_is_read_is_said_to_have_none(place, files, says):
    (place.path / "images" / "p.png").unlink()
    for name in files:
        (place.path / "images" / name).write_bytes(b"")
    place.coco([RED])
    with pytest.raises(FileNotFoundError, match=says):
        place.read()
