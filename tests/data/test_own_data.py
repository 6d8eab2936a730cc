"""Own data as people have them: each form gives its right value, or a sentence (public reports)."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.data import records
from maskclippp_jax.data.prepare import folder, making
from maskclippp_jax.metrics import run_lengths

SIZE = (60, 80)
RED, BLUE = [10, 10, 40, 10, 40, 30, 10, 30], [50, 35, 75, 35, 75, 55, 50, 55]


def box(polygon) -> np.ndarray:
    left, top, right, _, _, bottom = polygon[:6]
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


class Place:
    """A folder with a picture, labels and names."""

    def __init__(self, path):
        self.path = path
        self.picture("p.png")

    def picture(self, name, **options):
        file = self.path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(file, **options)

    def label(self, array, name="p.png"):
        file = self.path / "labels" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)

    def coco(self, *annotations, categories=("red box", "blue box"), images=None, **more):
        """A JSON of instances; a polygon alone stands for an annotation of the first category."""
        is_whole = lambda a: isinstance(a, dict) and "counts" not in a
        rows = [dict(id=n, image_id=1, category_id=1, iscrowd=0) | (
            a if is_whole(a) else dict(segmentation=a)) for n, a in enumerate(annotations)]
        images = images or [dict(id=1, file_name="p.png", width=80, height=60)]
        (self.path / "a.json").write_text(json.dumps(dict(
            images=images, annotations=rows, categories=[
                c if isinstance(c, dict) else dict(id=n, name=c)
                for n, c in enumerate(categories, start=1)], **more)))

    def read(self, labels="a.json", names=None, **choices) -> folder.OwnData:
        if names is not None:
            (self.path / "names.txt").write_text(names)
        return folder.read(str(self.path / "images"), str(self.path / labels),
                           names and str(self.path / "names.txt"), folder.Choices(**choices))

    def records(self, *args, **kw) -> tuple[folder.OwnData, dict[str, dict]]:
        data = self.read(*args, **kw)
        made = [r for items in data.reading.splits.values() for i in items
                for r in data.reading.make_records(i)]
        return data, {r["image_id"]: r for r in made}

    def masks(self, *args, **kw) -> dict[str, np.ndarray]:
        """The masks of the one picture by the names of their classes."""
        data, made = self.records(*args, **kw)
        record, = made.values()
        names = [data.vocabulary.classes[c][0] for c in record["table"]["class_id"]]
        return dict(zip(names, records.decode_masks(record)))

    def classes(self, *args, **kw) -> np.ndarray:
        """[H, W], -1 where nothing is."""
        (_, made) = self.records(*args, **kw)
        record, = made.values()
        return records.decode_classes(record)


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
    assert data.reading.notes == ["names that are written otherwise: 'Cat' is 'cat', "
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
    assert "left out the category 'labels'" in data.reading.notes[0]


@pytest.mark.parametrize("categories, says", [
    ([dict(id=1, name="cat"), dict(id=2, name="Cat")], "1 and 2 are both called 'Cat'; give --nam"),
    ([dict(id=1, name="cat"), dict(id=1, name="dog")], "two categories of the id 1"),
    ([dict(id=1), dict(id=2, name="dog")], "categories without a name: 1"),
    ([dict(id=1, name=" , ")], "categories without a name: 1")])
def test_categories_that_could_mean_two_things_are_refused(place, categories, says):
    place.coco([RED], categories=categories)
    with pytest.raises(ValueError, match=says):
        place.read()


def test_a_comma_in_a_category_makes_synonyms_and_that_is_said(place):
    place.coco([RED], categories=("cable, wire", "dog,"))
    data = place.read()
    assert data.vocabulary.classes == (("cable", "wire"), ("dog",))
    assert data.reading.notes == ["cable, wire are names of one class"]


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


def numbers(*values, dtype=np.uint8) -> np.ndarray:
    """A label map: the first value in most places, the second in the red box, the third in blue."""
    label = np.full(SIZE, values[0], dtype)
    for value, polygon in zip(values[1:], (RED, BLUE)):
        label[box(polygon)] = value
    return label


def in_color(label):
    return np.stack([label] * 3, -1)


WANTED = numbers(-1, 0, 1, dtype=np.int32)


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


# --- Files of annotation tools --------------------------------------------------------------------

TWO = "red box\nblue box\n"
BOXES = {"red box": box(RED), "blue box": box(BLUE)}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray] = BOXES) -> None:
    assert set(found) == set(wanted)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, wanted[name])


def pairs(polygon) -> list:
    return np.reshape(polygon, (-1, 2)).tolist()


def write_json(place, content, name="labels/p.json"):
    (place.path / name).parent.mkdir(exist_ok=True)
    (place.path / name).write_text(json.dumps(content))


def label_me(*shapes, **more):
    return dict(version="5.4.1", flags={}, shapes=[dict(label="red box", group_id=None) | s
                                                   for s in shapes], imageData=None, **more)


def test_labelme_is_read(place):
    png = io.BytesIO()
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(png, "PNG")
    patch = base64.b64encode(png.getvalue()).decode()
    rectangle = dict(label="blue box", shape_type="rectangle", points=[[50, 35], [75, 55]])
    for red in (dict(shape_type="polygon", points=pairs(RED)), dict(points=pairs(RED)),
                dict(shape_type="mask", points=[[10, 10], [39, 29]], mask=patch)):
        write_json(place, label_me(red, rectangle, imageHeight=60, imageWidth=80))
        same(place.masks("labels", names=TWO))
    write_json(place, label_me(dict(shape_type="circle", points=[[40, 30], [50, 30]])))
    circle = place.masks("labels", names=TWO)["red box"]
    assert abs(circle.sum() - np.pi * 100) < 8 and circle[30, 40] and not circle[30, 52]


@pytest.mark.parametrize("content, says", [
    (label_me(dict(shape_type="line", points=[[1, 1], [5, 5]])), "shape 0 is a line, which has no"),
    (label_me(dict(shape_type="rectangle", points=[[1, 1]])), "a rectangle of 1 points, wanted 2"),
    (label_me(dict(shape_type="mask", points=[[1, 1], [2, 2]], mask="?")), "no picture in base 64"),
    (label_me(dict(label="sky", points=[])), "shape 0: names.txt has no class 'sky'"),
    (label_me(imageHeight=80, imageWidth=60), "of 60x80 pixels, .* was it turned by its EXIF"),
    (label_me(dict(points=[[1]])), "at shapes.0..points.0.: expected array of length 2"),
    (dict(version=1), "neither shapes, as LabelMe writes them, nor obj"),
    ([dict(segmentation=[RED], area=600, predicted_iou=0.9)], "without classes, as SAM's")])
def test_json_files_that_say_too_little_are_named(place, content, says):
    write_json(place, content)
    with pytest.raises(ValueError, match=f"p.json.*{says}"):
        place.masks("labels", names=TWO)


def test_yolos_polygons_are_read_with_their_data_yaml(place):
    (place.path / "labels").mkdir()
    shares = lambda polygon: " ".join(f"{n / side:.6f}" for n, side in zip(polygon, [80, 60] * 4))
    (place.path / "labels/p.txt").write_text(f"0 {shares(RED)}\n\n1 {shares(BLUE)}\n")
    same(place.masks("labels", names=TWO))
    for names in ("names: [red box, blue box]\n", "nc: 2\nnames:\n  0: red box\n  1: blue box\n"):
        (place.path / "data.yaml").write_text(names)
        data = folder.read(str(place.path / "images"), str(place.path / "labels"),
                           str(place.path / "data.yaml"))
        assert data.vocabulary.classes == (("red box",), ("blue box",))
        assert "took the labels for YOLO's polygons, 1 of" in data.reading.notes[0]
    for text, says in (("names: 5", "has no names of classes"), ("[", "is no YAML"),
                       ("names: [cat, cat]", "'cat' is 'cat' of line 1")):
        (place.path / "data.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"data.yaml.*{says}"):
            folder.read(str(place.path / "images"), str(place.path / "labels"),
                        str(place.path / "data.yaml"))


@pytest.mark.parametrize("line, says", [
    ("0 0.5 0.5 0.2 0.2", "line 1 is a box, wanted a polygon"),
    ("7 0 0 1 0 1 1", "line 1 has the class 7, to which names.txt"),
    ("0 10 10 40 10 40 30", "points beyond the picture, .* are they pixels"),
    ("0 0 0 1 0 1 nan", "points beyond the picture"), ("0 0 0 1 0 1", "wanted a class' number, th"),
    ("cat 0 0 1 0 1 1", "wanted a class' number, then")])
def test_lines_that_are_no_polygons_are_named(place, line, says):
    (place.path / "labels").mkdir()
    (place.path / "labels/p.txt").write_text(line)
    with pytest.raises(ValueError, match=f"p.txt, {says}|p.txt, line 1.*{says}"):
        place.masks("labels", names=TWO)


def task(*results, **more):
    return [dict(id=3, data=dict(image="/data/upload/1/ab12-p.png"), annotations=[
        dict(result=[dict(original_width=80, original_height=60) | r for r in results])]) | more]


def percent(polygon):
    return (np.reshape(polygon, (-1, 2)) / [0.8, 0.6]).tolist()


def test_label_studio_is_read(place):
    red = dict(type="polygonlabels", value=dict(points=percent(RED), polygonlabels=["red box"]))
    blue = dict(type="rectanglelabels", value=dict(
        x=50 / 0.8, y=35 / 0.6, width=25 / 0.8, height=20 / 0.6, rotation=0,
        rectanglelabels=["blue box"]))
    write_json(place, task(red, blue, dict(type="choices", value={})), "a.json")
    same(place.masks("a.json", names=TWO))
    # Turned by a quarter around its corner: 20 wide, 30 high, to the left of it.
    blue["value"] |= dict(x=50, y=50 / 3, width=30 / 0.8, height=20 / 0.6, rotation=90)
    write_json(place, task(blue), "a.json")
    wanted = np.zeros(SIZE, bool)
    wanted[10:40, 20:40] = True
    same(place.masks("a.json", names=TWO), {"blue box": wanted})


@pytest.mark.parametrize("tasks, says", [
    (task(dict(type="brushlabels", value=dict(rle=[0, 0], brushlabels=["red box"]))),
     "result 0: what was drawn with a brush is cut short"),
    (task(dict(type="polygonlabels", value=dict(points=[], polygonlabels=[]))), "has 0 labels"),
    (task(dict(type="rectanglelabels", value=dict(x=1.0, rectanglelabels=["red box"]))),
     "a rectangle without height, width, y"),
    (task(annotations=[dict(result=[dict(type="x")])] * 2), "2 annotations by different people"),
    (task() + task(), "a.json lists the picture p twice"),
    (task(data={}), "3 has no picture in its dat"),
    ([dict(id=1)], "at .0, id 1.: there is no")])
def test_tasks_that_cannot_be_used_are_named(place, tasks, says):
    write_json(place, tasks, "a.json")
    with pytest.raises(ValueError, match=says):
        place.masks("a.json", names=TWO)


# --- CVAT, VOC, Supervisely, Datumaro -------------------------------------------------------------


def cvat(*shapes, size='width="80" height="60"', meta="", kind="image"):
    return (f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}'
            f'<{kind} id="0" name="p.png" {size}>{"".join(shapes)}</{kind}></annotations>')


def points(polygon) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(polygon, (-1, 2)))


CVAT_RED = f'<polygon label="red box" occluded="0" points="{points(RED)}" z_order="0"/>'
CVAT_BLUE = '<box label="blue box" xtl="50.0" ytl="35.0" xbr="75.0" ybr="55.0"/>'


def test_cvats_xml_is_read(place):
    file = place.path / "a.xml"
    mask = '<mask label="red box" rle="0, 600" left="10" top="10" width="30" height="20"></mask>'
    turned = ('<box label="blue box" xtl="52.5" ytl="32.5" xbr="72.5" ybr="57.5" '
              'rotation="90.0"><attribute name="x">1</attribute></box><tag label="blue box"/>')
    for red in (CVAT_RED, mask):
        for blue in (CVAT_BLUE, turned):
            file.write_text(cvat(red, blue))
            same(place.masks("a.xml", names=TWO))
    file.write_text(cvat('<ellipse label="red box" cx="40" cy="30" rx="10" ry="5"/>'))
    found = place.masks("a.xml", names=TWO)["red box"]
    assert abs(found.sum() - np.pi * 50) < 8 and found[30, 49] and not found[36, 40]
    meta = "".join(f"<label><name>{n}</name></label>" for n in ("sky", "red box"))
    file.write_text(cvat(CVAT_RED, CVAT_BLUE, meta=f"<meta><task><labels>{meta}</labels></task>"
                         "</meta>"))
    data = place.read("a.xml")
    assert data.vocabulary.classes == (("sky",), ("red box",), ("blue box",))
    assert data.reading.notes == ["took the labels for those of CVAT, 1 of them have a picture"]
    assert set(place.masks("a.xml", leave_out=["blue box", "sky"])) == {"red box"}


BOMB = '<!DOCTYPE a [<!ENTITY a "haha"><!ENTITY b "&a;&a;">]><annotations>&b;</annotations>'


@pytest.mark.parametrize("text, says", [
    (BOMB, "has a document type"), ("<annotations>", "is no XML"),
    ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "has a document type"),
    ("<annotation><object/></annotation>", "VOC's boxes are no masks"),
    (cvat(CVAT_RED, kind="track"), "holds tracks of a video"),
    (cvat(CVAT_RED, size='width="60" height="80"'), "turned by its EXIF orientation"),
    (cvat('<polyline label="red box" points="1,1;2,2"/>'), "p, polyline 0 has no inside"),
    (cvat('<polygon label="red box" points="1;2,2"/>'), "p, polygon 0 has points '1;2,2'"),
    (cvat('<box label="red box" xtl="1"/>'), "box 0 lacks one of the numbers xtl, ytl"),
    (cvat('<mask label="red box" rle="0,5" left="1" top="1" width="2" height="2"/>'), "not fill"),
    (cvat('<mask label="red box" rle="x" left="1" top="1" width="2" height="2"/>'), "not fill"),
    (cvat('<mask label="red box" rle="0,4" left="79" top="1" width="2" height="2"/>'), "beyond"),
    (cvat('<polygon label="sky" points="1,1;2,2;1,2"/>'), "has no class 'sky'")])
def test_xml_that_cannot_be_used_is_named(place, text, says):
    (place.path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=says):
        place.masks("a.xml", names=TWO)


COLORS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (224, 224, 192)], np.uint8)
LABELMAP = ("# label:color_rgb:parts:actions\nbackground:0,0,0::\nred box:128,0,0::\n"
            "blue box:0,128,0::\n")


def in_palette(label, colors=COLORS) -> Image.Image:
    image = Image.fromarray(label.astype(np.uint8)).convert("P")
    image.putpalette(colors.ravel().tolist())
    return image


@pytest.mark.parametrize("indexed", [False, True])
def test_maps_in_the_colours_of_a_labelmap_are_read(place, indexed):
    classes, objects = numbers(0, 1, 2), numbers(0, 2, 1)
    classes[0] = 3  # the edge of VOC's objects
    (place.path / "masks").mkdir()
    (place.path / "masks/labelmap.txt").write_text(LABELMAP)
    for folder_name, label in (("Class", classes), ("Object", objects)):
        (place.path / f"masks/Segmentation{folder_name}").mkdir()
        image = in_palette(label) if indexed else Image.fromarray(COLORS[label])
        image.save(place.path / f"masks/Segmentation{folder_name}/p.png")
        if folder_name == "Class":
            np.testing.assert_array_equal(place.classes("masks"), WANTED)
    same(place.masks("masks"))
    same(place.masks("masks/SegmentationClass", names="blue box\nRed Box,red_box\n"), {
        "Red Box": BOXES["red box"], "blue box": BOXES["blue box"]})
    with pytest.raises(ValueError, match="has no class 'blue box'"):
        place.masks("masks", names="red box\n")
    assert set(place.masks("masks", names="red box\n", leave_out=["blue box"])) == {"red box"}
    (place.path / "masks/labelmap.txt").write_text(LABELMAP[:-10])
    with pytest.raises(ValueError, match="labelmap.txt, line 4: got 'blue"):
        place.masks("masks")
    (place.path / "masks/labelmap.txt").write_text("red box:128,0,0::\nbackground:0,0,0::\n")
    with pytest.raises(ValueError, match="the colour #008000, which labelmap.txt gives to no"):
        place.masks("masks")


def test_maps_in_colours_may_lie_beside_their_labelmap(place):
    place.label(COLORS[numbers(0, 1, 2)])
    (place.path / "labels/labelmap.txt").write_text(LABELMAP)
    np.testing.assert_array_equal(place.classes("labels", names=TWO), WANTED)
    place.label(COLORS[numbers(0, 1, 2)], "q.png")
    (place.path / "labels/p.png").unlink()
    with pytest.raises(FileNotFoundError, match="none of the 1 pictures .* has a map x.png in"):
        place.read("labels", names=TWO)


def test_supervisely_is_read(place):
    png = io.BytesIO()
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(png, "PNG")
    patch = base64.b64encode(zlib.compress(png.getvalue())).decode()
    blue = dict(classTitle="blue box", geometryType="rectangle",
                points=dict(exterior=[[50, 35], [74, 54]], interior=[]))
    for red in (dict(geometryType="bitmap", bitmap=dict(data=patch, origin=[10, 10])),
                dict(geometryType="polygon", points=dict(exterior=pairs(RED), interior=[]))):
        write_json(place, dict(description="", tags=[], size=dict(height=60, width=80), objects=[
            dict(classTitle="red box") | red, blue]), "labels/p.png.json")
        same(place.masks("labels", names=TWO))
    hole = [20, 15, 25, 15, 25, 20, 20, 20]
    red["points"]["interior"] = [pairs(hole)]
    write_json(place, dict(objects=[dict(classTitle="red box") | red]), "labels/p.png.json")
    same(place.masks("labels", names=TWO), {"red box": box(RED) & ~box(hole)})
    for wrong, says in ((dict(geometryType="point"), "object 0 is a point, which has no inside"),
                        (dict(geometryType="bitmap", bitmap=dict(data="aaaa", origin=[1, 1])),
                         "no picture in base 64")):
        write_json(place, dict(objects=[dict(classTitle="red box") | wrong]), "labels/p.png.json")
        with pytest.raises(ValueError, match=says):
            place.masks("labels", names=TWO)


def datumaro(*annotations, size=SIZE):
    return dict(info={}, categories=dict(label=dict(labels=[
        dict(name="red box", parent=""), dict(name="blue box", parent="")])), items=[
            dict(id="p", annotations=list(annotations), image=dict(path="p.png", size=size))])


def test_datumaro_is_read(place):
    blue = dict(id=1, type="bbox", label_id=1, bbox=[50, 35, 25, 20])
    for red in (dict(type="polygon", points=RED), dict(type="mask", rle=run_lengths.encode(
            box(RED)))):
        write_json(place, datumaro(dict(label_id=0, attributes={}) | red, blue,
                                   dict(type="label", label_id=0)), "a.json")
        same(place.masks("a.json"))
        same(place.masks("a.json", names="Blue_Box\nred box\n"), {
            "red box": box(RED), "Blue_Box": box(BLUE)})
    for wrong, says in ((dict(type="points", label_id=0), "annotation 0: the mask is a points, wh"),
                        (dict(type="polygon", points=RED), "annotation 0 has no label"),
                        (dict(type="mask", label_id=0, rle=dict(size=[6, 8], counts=[48])),
                         "is for 8x6 pixels"), (dict(type="mask", label_id=2), "the label 2, of")):
        write_json(place, datumaro(wrong), "a.json")
        with pytest.raises(ValueError, match=says):
            place.masks("a.json")


def test_a_form_can_be_insisted_on(place):
    place.coco([RED])
    assert set(place.masks(form="coco")) == {"red box"}
    with pytest.raises(ValueError, match="a.json is a file of COCO's form, not of --format=cvat"):
        place.read(form="cvat")
    place.label(numbers(255, 0, 1))
    place.classes("labels", names=TWO, form="labelmaps")
    with pytest.raises(FileNotFoundError, match="has YOLO's polygons in .*, as --format=yolo says"):
        place.read("labels", names=TWO, form="yolo")
    with pytest.raises(ValueError, match="--format=coco is one file for all pictures"):
        place.read("labels", names=TWO, form="coco")
    write_json(place, label_me(dict(points=pairs(RED))))
    assert set(place.masks("labels", names=TWO, form="labelme")) == {"red box"}
    with pytest.raises(ValueError, match="p.json is of the form 'labelme', not of --format=json"):
        place.masks("labels", names=TWO, form="json")
    with pytest.raises(ValueError, match="--format=sam is none of coco, labelstudio, cvat"):
        place.read("labels", names=TWO, form="sam")
    with pytest.raises(ValueError, match="has no labelmap.txt in it or above it"):
        place.read("labels", names=TWO, form="voc")


def test_masks_may_lie_in_folders_of_their_classes(place):
    for name, mask in BOXES.items():
        place.label(mask, f"{name.replace(' ', '_')}/p.png")
    same(place.masks("labels", names=TWO))


def test_labels_of_other_names_are_found_by_a_pattern(place):
    place.label(numbers(255, 0, 1), "p_segmentation.png")
    with pytest.raises(FileNotFoundError, match="for other names give a pattern like"):
        place.read("labels", names=TWO)
    np.testing.assert_array_equal(
        place.classes("labels/{stem}_segmentation.png", names=TWO), WANTED)
    # Beside the pictures: a label is no picture.
    (place.path / "labels/p_segmentation.png").rename(place.path / "images/p_mask.png")
    np.testing.assert_array_equal(place.classes("images/{stem}_mask.png", names=TWO), WANTED)
    with pytest.raises(ValueError, match="would be its own label; for labels beside the pictures"):
        place.read("images", names=TWO)


# --- Splits ---------------------------------------------------------------------------------------


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
     "all 1 masks are marked as crowds .* give --crowd=keep"),
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
    assert "1 masks are marked as crowds (iscrowd) and teach nothing; --crowd=keep" in said
    assert "of 1 masks less than 4 pixels show" in said and "p, annotation 1" in said
    source = records.open_source(str(tmp_path / "data"), "t", "train")
    assert source.learnable == records.Learnable(bare=0, masks={0: 1})


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


