"""Own data as people have them: each gives its right value, or a sentence (public reports)."""

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.data import records
from maskclippp_jax.data.prepare import folder, making
from tests.own_data import BLUE, RED, SIZE, WANTED, Place, box, in_color, numbers


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# --- Classes by their names -----------------------------------------------------------------------


def test_categories_become_classes_by_name_and_never_by_number(place):
    place.coco(dict(segmentation=[RED], category_id=1), dict(segmentation=[BLUE], category_id=2),
               categories=("Cat", "traffic_light"))
    found = place.masks(names="bird\ntraffic light\ncat\n")
    assert set(found) == {"cat", "traffic light"}
    np.testing.assert_array_equal(found["cat"], box(RED))
    data = place.read(names="bird\ntraffic light\ncat\n")
    assert data.reading.notes[1:] == ["names that are written otherwise: 'Cat' is 'cat', "
                                      "'traffic_light' is 'traffic light'"]
    with pytest.raises(ValueError, match=r"the name of 2 of 2 categories: 'Cat' \(1\), "
                       r"'traffic_light' \(2\); add them, or .* --leave_out"):
        place.read(names="bird\ndog\n")
    with pytest.raises(ValueError, match="'traffic_light' could be 'traffic light' or 'traffic-li"):
        place.read(names="cat\ntraffic light\ntraffic-light\n")


def test_a_category_is_left_out_only_if_that_is_asked_for(place):
    place.coco(dict(segmentation=[RED], category_id=1), dict(segmentation=[BLUE], category_id=2),
               categories=("background", "cat"))
    with pytest.raises(ValueError, match=r"1 of 2 categories: 'background' \(1\)"):
        place.read(names="cat\n")
    for names in ("cat\n", None):
        found = place.masks(names=names, leave_out=["Background"])
        assert set(found) == {"cat"}
        np.testing.assert_array_equal(found["cat"], box(BLUE))
    with pytest.raises(ValueError, match="--leave_out names 'sky', but there is no such category"):
        place.read(names="cat\n", leave_out=["sky"])


def test_roboflows_root_category_is_left_out_and_that_is_said(place):
    place.coco(dict(segmentation=[RED], category_id=1), categories=[
        dict(id=0, name="labels", supercategory="none"),
        dict(id=1, name="red box", supercategory="labels"),
        dict(id=2, name="blue box", supercategory="labels")])
    data = place.read()
    assert data.vocabulary.classes == (("red box",), ("blue box",))
    assert "left out the category 'labels'" in data.reading.notes[1]


@pytest.mark.parametrize("categories, says", [
    ([dict(id=1, name="cat"), dict(id=2, name="Cat")], "1 and 2 are both called 'Cat'; give --nam"),
    ([dict(id=1, name="cat"), dict(id=1, name="dog")], "two categories of the id 1"),
    ([dict(id=1), dict(id=2, name="dog")], "categories without a name: 1"),
    ([dict(id=1, name=" , ")], "categories without a name: 1"),
    ([dict(id=7, name="# 1 bolt")], "category 7 is called '# 1 bolt', which starts with \"# \""),
    ([dict(id=7, name="a\tb")], r"is called 'a\\tb', which holds a line break or another control"),
    ([dict(id=7, name="a\u2028b")], "which holds a line break or another control")])
def test_categories_that_could_mean_two_things_are_refused(place, categories, says):
    place.coco([RED], categories=categories)
    with pytest.raises(ValueError, match=says):
        place.read()


def test_a_comma_in_a_category_makes_synonyms_and_that_is_said(place):
    place.coco([RED], categories=("cable, wire", "dog,"))
    data = place.read()
    assert data.vocabulary.classes == (("cable", "wire"), ("dog",))
    assert data.reading.notes == ["took the labels for those of COCO, 1 of them have a picture",
                                  "cable, wire are names of one class"]


# --- Pictures by their names ----------------------------------------------------------------------


@pytest.mark.parametrize("name, file", [
    ("..\\..\\media\\upload\\1\\q.png", "q.png"), ("/home/me/q.jpg", "q.png"),
    ("a%20b.png", "a b.png"), ("cafe\u0301.png", "caf\u00e9.png"),
    ("caf\u00e9.png", "cafe\u0301.png"), ("IP1_jpg.rf.7a62.png", "IP1_jpg.rf.7a62.png")])
def test_a_picture_is_found_however_its_path_was_written(place, name, file):
    place.picture(file)
    place.coco([RED], images=[dict(id=1, file_name=name, width=80, height=60)])
    _, made = place.records()
    assert list(made) == [file.rsplit(".", 1)[0]]


def test_a_picture_under_two_ids_is_named(place):
    place.picture("a b.png")
    place.coco([RED], images=[dict(id=1, file_name="a b.png"), dict(id=2, file_name="a%20b.png")])
    with pytest.raises(ValueError, match="lists the picture .*/a b.png twice, under two ids; keep"):
        place.read()


def test_two_pictures_of_one_name_in_two_folders_are_two_pictures(place):
    place.picture("train/f.png")
    place.picture("val/f.png")
    images = [dict(id=n, file_name=f"{part}/f.png") for n, part in ((1, "train"), (2, "val"))]
    place.coco(dict(segmentation=[RED], image_id=1), dict(segmentation=[BLUE], image_id=2),
               images=images)
    _, made = place.records()
    assert set(made) == {"train/f", "val/f"}
    np.testing.assert_array_equal(records.decode_masks(made["val/f"])[0], box(BLUE))
    place.coco([RED], images=[dict(id=1, file_name="f.png")])
    with pytest.raises(ValueError, match="'f.png' could be .*f.png or .*f.png; name its folder"):
        place.read()


@pytest.mark.parametrize("name", ["f.png", "images/f.png", "..\\images\\f.png"])
def test_a_picture_beside_folders_is_meant_by_its_whole_path(place, name):
    place.picture("f.png")
    place.picture("more/f.png")
    place.coco([RED], images=[dict(id=1, file_name=name)])
    assert list(place.records()[1]) == ["f"]
    place.coco([RED], images=[dict(id=1, file_name="elsewhere/f.png")])
    with pytest.raises(ValueError, match="'elsewhere/f.png' could be f.png or more/f.png"):
        place.read()


@pytest.mark.parametrize("name, said", [
    ("cam2/f.png", True), ("D:\\all\\cam2\\f.jpg", True), ("f.png", False), ("./f.png", False),
    ("/f.png", False), ("D:\\all\\cam1\\f.png", False), ("images/cam1/f.png", False)])
def test_a_picture_in_another_folder_than_named_is_said_to_be_there(place, name, said):
    place.picture("cam1/f.png")
    place.coco([RED], images=[dict(id=1, file_name=name)])
    data, made = place.records()
    assert list(made) == ["f"] and data.reading.notes[1:] == [
        f"1 annotation names other folders, such as {name} for cam1/f.png"] * said
    # Where another name fits, this one means another picture.
    if said:
        place.coco([RED], images=[dict(id=n, file_name=file) for n, file in enumerate(
            [name, "images/cam1/f.png"], start=1)])
        data, made = place.records()
        assert list(made) == ["f"] and len(data.reading.notes) == 1
        assert data.reading.missing[0].startswith("1 file that")


def test_a_list_for_validation_may_be_from_elsewhere(place):
    for name in ("a.png", "b.png"):
        place.picture(name)
        place.label(np.zeros(SIZE, np.uint8), name)
    (place.path / "val.txt").write_bytes(b"\xef\xbb\xbf./data/obj/a.jpg\r\n")
    data = place.read("labels", names="cat\ndog\n", validation=str(place.path / "val.txt"))
    assert [i[0] for i in data.reading.splits["validation"]] == ["a"]


# --- Masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("segmentation", [
    [RED], RED, np.reshape(RED, (4, 2)).tolist(), [np.reshape(RED, (4, 2)).tolist()],
    [[10, 10], [10, 10, 20, 20], RED]])
def test_a_polygon_has_one_meaning_however_it_is_written(place, segmentation):
    place.coco(segmentation)
    np.testing.assert_array_equal(place.masks()["red box"], box(RED))


@pytest.mark.parametrize("segmentation, says", [
    ([[1, 2, 3, 4, 5, 6, 7]], "p, annotation 0: the mask has a polygon of 7 numbers"),
    (dict(size=[60, 80], counts="Rc0d0"), "annotation 0: the mask has runs of 630 pixels in all"),
    (dict(size=[60, 80], counts="abc"), "no compressed run lengths"),
    (dict(size=[60, 80], counts=[1, 2]), "runs of 3 pixels in all, wanted the 4800"),
    (dict(size=[6, 8], counts=[48]), "is for 8x6 pixels, the picture has 80x60")])
def test_damaged_masks_are_named_with_picture_and_annotation(place, segmentation, says):
    place.coco(segmentation)
    with pytest.raises(ValueError, match=says):
        place.masks()


def test_a_json_without_sizes_takes_those_of_the_pictures(place):
    place.coco(dict(segmentation=[RED], bbox=[], area=None, id=None),
               images=[dict(id=1, file_name="p.png")])
    np.testing.assert_array_equal(place.masks()["red box"], box(RED))


def test_crowds_can_be_kept(place):
    runs = dict(size=list(SIZE), counts=[0, 4800])
    place.coco(dict(segmentation=runs, iscrowd=1))
    for keep in (False, True):
        _, made = place.records(keep_crowds=keep)
        assert made["p"]["table"]["is_crowd"].tolist() == [not keep]


def test_the_mask_of_a_cut_out_is_where_it_is_opaque(place):
    picture = np.full((*SIZE, 4), 200, np.uint8)
    picture[..., 3] = 255 * box(RED)
    place.label(picture, "p/red box.png")
    plain = np.where(box(BLUE), 7, 0).astype(np.uint8)
    place.label(plain, "p/blue box.png")
    found = place.masks("labels", names="red box\nblue box\n")
    np.testing.assert_array_equal(found["red box"], box(RED))
    np.testing.assert_array_equal(found["blue box"], box(BLUE))
    opaque = np.full((*SIZE, 4), 255, np.uint8)
    opaque[..., :3] = box(RED)[..., None]
    place.label(opaque, "p/red box.png")
    np.testing.assert_array_equal(
        place.masks("labels", names="red box\nblue box\n")["red box"], box(RED))


def test_masks_of_a_class_may_be_left_out(place):
    place.label(box(RED), "p/red box_1.png")
    place.label(box(BLUE), "p/sky_1.png")
    with pytest.raises(ValueError, match="no class 'sky_1'; add it, or leave its masks out"):
        place.masks("labels", names="red box\n")
    assert set(place.masks("labels", names="red box\n", leave_out=["sky"])) == {"red box"}


# --- Label maps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("label, names, choices", [
    (numbers(255, 0, 1), "red\nblue\n", {}),
    (numbers(65535, 0, 1, dtype=np.uint16), "red\nblue\n", {}),
    (in_color(numbers(255, 0, 1)), "red\nblue\n", {}),
    (np.dstack([in_color(numbers(255, 0, 1)), np.full(SIZE, 255, np.uint8)]), "red\nblue\n", {}),
    (numbers(0, 1, 2), "red\nblue\n", dict(nothing=[0])),  # classes count from 1 then
    (numbers(0, 1, 2), "red\tthing\t1\nblue\tthing\t2\n", dict(nothing=[0])),
    (numbers(9, 255, 7), "red\tthing\t255\nblue\tthing\t7\n", dict(nothing=[9])),
    (numbers(300, 1000, 255, dtype=np.uint16), "red\tthing\t1000\nblue\tthing\t255\n",
     dict(nothing=[300]))])
def test_label_maps_of_every_kind_mean_the_same(place, label, names, choices):
    place.label(label)
    np.testing.assert_array_equal(place.classes("labels", names=names, **choices), WANTED)


def test_a_map_in_colours_is_read_by_those_of_the_names_file(place):
    colors = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 128)], np.uint8)
    place.label(colors[numbers(0, 1, 2)])
    names = "red\tthing\t\t#FF0000\nblue\tthing\t\t#000080\n"
    np.testing.assert_array_equal(place.classes("labels", names=names, nothing=[0]), WANTED)
    with pytest.raises(ValueError, match="the colour #000000, .* if black means nothing, give --n"):
        place.classes("labels", names=names)
    with pytest.raises(ValueError, match="is in colour; give every class its colour in the fourth"):
        place.classes("labels", names="red\nblue\n")


@pytest.mark.parametrize("modes", [("RGB",), ("RGB", "L"), ("RGB", "P"), ("RGB", "1")])
def test_colours_are_matched_in_the_whole_set_and_red_and_yellow_are_like_others(place, modes):
    """255 and 65535, which mean nothing among numbers, are red and yellow among colours."""
    colors = np.array([(255, 0, 0), (255, 255, 0), (0, 0, 0), (255, 255, 255)], np.uint8)
    names = "".join(f"{name}\tthing\t{n}\t#{bytes(colors[3 - n]).hex()}\n"
                    for n, name in enumerate("abcd"))
    wanted = [numbers(3, 2, 1), numbers(1, 0, 0)]
    place.picture("q.png")
    for label, mode, name in zip(wanted, (modes[0], modes[-1]), ("p.png", "q.png")):
        place.label(np.asarray(colors[3 - label]), name)
        with Image.open(place.path / "labels" / name) as image:
            image.convert(mode).save(place.path / "labels" / name)
    data, made = place.records("labels", names=names)
    assert data.reading.notes[-1].startswith("took the colours of the label maps for those of nam")
    for label, name in zip(wanted, "pq"):
        np.testing.assert_array_equal(records.decode_classes(made[name]), label)


def with_red(*greys) -> np.ndarray:
    label = in_color(numbers(*greys))
    label[:2] = 255, 0, 0
    return label


@pytest.mark.parametrize("label, names, says", [
    (with_red(0, 1), "a\tthing\t0\t#000000\n", "colour #010101, .* if this grey means n"),
    (with_red(0, 255), "a\tthing\t0\t#000000\n", "if white means nothing, give --nothi"),
    (with_red(0, 9), "a\tthing\t0\t#090909\nb\tthing\t1\t#090909\n",
     "the colour #090909 is that of the class 'a' and of the class 'b'; give each its own"),
    (with_red(0, 9), "a\tthing\t0\t#090909\n",
     "the colour #090909 is that of --nothing=9 and of the class 'a'"),
    (numbers(0, 255), "a\tthing\t0\t#ffffff\nb\tthing\t1\t#000000\n",
     "is grey, and its numbers could mean classes or the colours of names.txt; save the maps in")])
def test_colours_that_could_mean_two_things_are_refused(place, label, names, says):
    names += "" if label.ndim == 2 else "red\tthing\t7\t#ff0000\n"
    place.label(label)
    with pytest.raises(ValueError, match=says):
        place.classes("labels", names=names, **(dict(nothing=[9]) if "--nothing=9" in says else {}))


@pytest.mark.parametrize("label", [in_color(numbers(0, 1, 2)), numbers(255, 255), numbers(0, 0)])
def test_numbers_stay_numbers_where_names_have_colours(place, label):
    names = "a\tthing\t0\t#ffffff\nb\tthing\t1\t#ff0000\nc\tthing\t2\t#000000\n"
    place.label(label)
    wanted = (label if label.ndim == 2 else label[..., 0]).astype(int)
    np.testing.assert_array_equal(place.classes("labels", names=names),
                                  np.where(wanted == 255, -1, wanted))


@pytest.mark.parametrize("label, names, says", [
    (numbers(0, 1, 2), "red\nblue\n", "holds 2, to which .*if the classes count from 1 and 0"),
    (numbers(0, 1, 2), "red\tthing\t1\nblue\tthing\t2\n", "holds 0, .* give --nothing=0"),
    (numbers(0, 255), "lesion\n", "holds 0 and 255, and there is one class: say what means noth"),
    (numbers(0, 7), "red\nblue\n", "holds 7, to which names.txt gives no name"),
    (np.dstack([in_color(numbers(255, 0)), numbers(0, 255)]), "red\nblue\n", "is transparent in")])
def test_label_maps_that_could_mean_two_things_are_refused(place, label, names, says):
    place.label(label)
    with pytest.raises(ValueError, match=says):
        place.classes("labels", names=names)


def test_what_the_numbers_mean_is_said(place):
    place.label(numbers(255, 0, 1))
    data = place.read("labels", names="red\nblue\n")
    assert data.reading.notes == [
        "took the labels for label maps, 1 of them have a picture",
        "in the label maps 0 is 'red', 1 is 'blue'; 255, 65535 means nothing"]
    with pytest.raises(ValueError, match="gives the class 'red' the number 70000, but label maps"):
        place.read("labels", names="red\tthing\t70000\nblue\n")
    with pytest.raises(ValueError, match="--leave_out is for masks with names"):
        place.read("labels", names="red\nblue\n", leave_out=["red"])


def test_jpeg_labels_are_refused(place):
    (place.path / "labels").mkdir()
    Image.fromarray(numbers(0, 1)).save(place.path / "labels/p.jpg")
    with pytest.raises(ValueError, match="are JPEG files .p.jpg, ...., which change numbers"):
        place.read("labels", names="red\nblue\n")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_is_turned_with_its_photograph_where_only_that_fits(place, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    place.picture("p.png", exif=exif)
    stored, turned = numbers(255, 0, 1), orientation >= 5
    with Image.open(place.path / "images/p.png") as picture:
        upright = np.asarray(_upright(stored, picture))
    place.label(upright)
    wanted = np.where(upright == 255, -1, upright.astype(int))
    np.testing.assert_array_equal(place.classes("labels", names="red\nblue\n"), wanted)
    if turned:
        place.label(stored)
        np.testing.assert_array_equal(place.classes("labels", names="red\nblue\n"), wanted)


def _upright(label, picture):
    from PIL import ImageOps

    copy = Image.fromarray(label)
    copy.getexif()[0x0112] = picture.getexif()[0x0112]
    return ImageOps.exif_transpose(copy)


# --- Nothing to learn -----------------------------------------------------------------------------


def prepare(place, tmp_path, capsys, **kw) -> str:
    names = kw.pop("names", None)
    making.prepare_folder(making.OwnData(
        str(place.path / "images"), str(place.path / kw.pop("labels", "a.json")), names, "t",
        folder.Choices(**kw)), making.Options(str(tmp_path / "data")))
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("annotations, says", [
    ([dict(segmentation=[])], "none of the 1 annotations has a mask that can be seen .p, annot"),
    ([dict(bbox=[1, 1, 5, 5])], "are they boxes only"), ([dict(segmentation=None)], "boxes only"),
    ([dict(segmentation=dict(size=[60, 80], counts=[0, 4800]), iscrowd=1)],
     "all masks .1. are marked as crowds .* give --crowd=keep"),
    ([], "there is no annotation at all")])
def test_data_that_teach_nothing_are_refused(place, tmp_path, capsys, annotations, says):
    place.coco(*annotations)
    with pytest.raises(ValueError, match=says):
        prepare(place, tmp_path, capsys)
    with pytest.raises(FileNotFoundError, match="no data set in"):
        records.open_source(str(tmp_path / "data"), "t", "train")


def test_what_cannot_be_learnt_is_counted_and_said(place, tmp_path, capsys):
    place.coco([RED], [[1, 1, 2, 1, 2, 2]], dict(segmentation=[BLUE], iscrowd=1))
    said = prepare(place, tmp_path, capsys)
    assert "1 of 2 classes have no mask: blue box" in said
    assert "nothing is learnt from 1 mask marked as crowds (iscrowd); --crowd=keep" in said
    assert "of 1 mask less than 4 pixels show" in said and "p, annotation 1" in said
    source = records.open_source(str(tmp_path / "data"), "t", "train")
    assert source.learnable == records.Learnable(bare=0, masks={0: 1})


def test_names_with_brackets_are_told_as_they_are(place, tmp_path, capsys):
    place.coco([RED], categories=("[red]fox", "wolf [/b]"))
    said = prepare(place, tmp_path, capsys)
    assert "│ [red]fox │ 1" in said and "│ wolf [/b] │ 0" in said
    assert "1 of 2 classes have no mask: wolf [/b]; going on" in said


def test_a_data_set_has_a_fingerprint_of_its_content(place, tmp_path, capsys):
    def hash_after(polygon, name, folder):
        place.coco([polygon], categories=(name, "other"))
        prepare(place, tmp_path / folder, capsys)
        return records.fingerprint(str(tmp_path / folder / "data"), "t", "train")

    first = hash_after(RED, "cat", "a")
    assert hash_after(RED, "cat", "b") == first
    moved = [n + 1 for n in RED]  # as many bytes
    assert len({first, hash_after(RED, "dog", "c"), hash_after(moved, "cat", "d")}) == 3
    with pytest.raises(FileNotFoundError, match="no data set"):
        records.fingerprint(str(tmp_path / "e"), "t", "train")
