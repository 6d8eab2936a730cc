"""Own data in the files of annotation tools: each form gives its right value, or a sentence."""

import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.data import records
from maskclippp_jax.data.prepare import folder
from maskclippp_jax.metrics import run_lengths
from tests.own_data import (
    BLUE,
    BOXES,
    RED,
    SIZE,
    TWO,
    WANTED,
    Place,
    box,
    numbers,
    pairs,
    same,
    write_json,
)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


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
    write_json(place, label_me(dict(shape_type="circle", points=[[40, 30], [50, 30]]),
                               dict(label="mark", shape_type="line", points=[[1, 1], [5, 5]])))
    circle = place.masks("labels", names=TWO, leave_out=["mark"])["red box"]
    assert abs(circle.sum() - np.pi * 100) < 8 and circle[30, 40] and not circle[30, 52]


@pytest.mark.parametrize("content, says", [
    (label_me(dict(shape_type="line", points=[[1, 1], [5, 5]])), "shape 0 is a line, which has no"),
    (label_me(dict(shape_type="oriented_rectangle", points=[[1, 1], [5, 5]])), "0 is an orie"),
    (label_me(dict(shape_type="rectangle", points=[[1, 1]])), "a rectangle of 1 point, wanted 2"),
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
                       ("names: ['# 1 bolt', cat]", "'# 1 bolt' starts with \"# \""),
                       ('names: ["a\\nb", cat]', "holds a line break"),
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
    return [dict(id=3, data=dict(image="/data/upload/1/ab12cd34-p.png"), annotations=[
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
    point = dict(type="keypointlabels", value=dict(x=1.0, y=1.0, keypointlabels=["red box"]))
    write_json(place, task(red, blue, point), "a.json")
    with pytest.warns(UserWarning, match="left out 1 key point, which mark no pixels"):
        same(place.masks("a.json", names=TWO))
    # Turned by a quarter around its corner: 20 wide, 30 high, to the left of it.
    blue["value"] |= dict(x=50, y=50 / 3, width=30 / 0.8, height=20 / 0.6, rotation=90)
    write_json(place, task(blue), "a.json")
    wanted = np.zeros(SIZE, bool)
    wanted[10:40, 20:40] = True
    same(place.masks("a.json", names=TWO), {"blue box": wanted})


def test_what_label_studio_puts_in_front_is_no_other_word(place):
    place.picture("eye.png")
    left = task()
    left[0]["data"]["image"] = "/data/upload/1/left-eye.png"
    write_json(place, left, "a.json")
    data = place.read("a.json", names=TWO)
    assert not data.reading.splits.get("train") and data.reading.missing == [
        f"1 picture that {place.path}/a.json names is missing, e.g. /data/upload/1/left-eye.png"]


@pytest.mark.parametrize("form", ["ellipselabels", "labels"])
def test_all_regions_of_label_studio_that_have_an_inside_are_read(place, form):
    oval = dict(x=50, y=50, radiusX=10 / 0.8, radiusY=5 / 0.6, rotation=90)
    write_json(place, task(dict(type=form, value=oval | {form: ["red box"]}),
                           dict(type="ellipse", value=oval)), "a.json")
    found, = place.records("a.json", names=TWO)[1].values()
    mask, = records.decode_masks(found)
    assert abs(mask.sum() - np.pi * 50) < 8 and mask[39, 40] and not mask[30, 46]
    for value in (dict(points=percent(RED)), dict(x=12.5, y=50 / 3, width=37.5, height=100 / 3)):
        red = dict(type="labels", value=value | dict(labels=["red box"]))
        write_json(place, task(red), "a.json")
        same(place.masks("a.json", names=TWO), {"red box": box(RED)})


@pytest.mark.parametrize("tasks, says", [
    (task(dict(type="brushlabels", value=dict(rle=[0, 0], brushlabels=["red box"]))),
     "result 0: what was drawn with a brush is cut short"),
    (task(dict(type="polygonlabels", value=dict(points=[], polygonlabels=[]))), "has 0 labels"),
    (task(dict(type="rectanglelabels", value=dict(x=1.0, rectanglelabels=["red box"]))),
     "a rectangle without height, width, y"),
    (task(dict(type="ellipselabels", value=dict(x=1.0, ellipselabels=["red box"]))),
     "an ellipse without radiusX, radiusY, y"),
    (task(dict(type="labels", value=dict(start=1, labels=["red box"]))), "a region, which has no"),
    (task(dict(type="vectorlabels", value=dict(vectorlabels=["red box"]))), "a vector, which is"),
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
    file.write_text(cvat(CVAT_RED.replace("red box", "# 1 bolt")))
    with pytest.raises(ValueError, match="the name '# 1 bolt' starts with"):
        place.read("a.xml")


@pytest.mark.parametrize("names", [None, "red box, person\n"])
def test_a_label_with_a_comma_has_several_names(place, names):
    label = "person, red box"
    (place.path / "a.xml").write_text(cvat(CVAT_RED.replace("red box", label)))
    write_json(place, datumaro(dict(type="polygon", label_id=0, points=RED), name=label), "b.json")
    place.label(COLORS[numbers(0, 1)], "SegmentationClass/p.png")
    (place.path / "labels/labelmap.txt").write_text(f"background:0,0,0::\n{label}:128,0,0::\n")
    for file in ("a.xml", "b.json", "labels"):
        data, made = place.records(file, names=names)
        assert set(data.vocabulary.classes[0]) == {"red box", "person"}
        np.testing.assert_array_equal(records.decode_masks(made["p"])[0], box(RED))


def test_what_is_left_out_is_a_label_that_is_there(place):
    (place.path / "a.xml").write_text(cvat(CVAT_RED, CVAT_BLUE.replace("blue box", "blue box_1")))
    write_json(place, datumaro(dict(type="polygon", label_id=0, points=RED)), "b.json")
    place.label(COLORS[numbers(0, 1)], "SegmentationClass/p.png")
    (place.path / "labels/labelmap.txt").write_text(LABELMAP)
    for file in ("a.xml", "b.json", "labels"):
        with pytest.raises(ValueError, match="--leave_out names 'reed box', but there is no such "
                           "label; there are red box, blue box"):
            place.read(file, leave_out=["blue_box" if file != "a.xml" else "Red box", "reed box"])
    assert set(place.masks("a.xml", names="red box\n", leave_out=["blue box"])) == {"red box"}
    assert set(place.masks("labels", leave_out=["background"])) == {"red box"}


BOMB = '<!DOCTYPE a [<!ENTITY a "haha"><!ENTITY b "&a;&a;">]><annotations>&b;</annotations>'


@pytest.mark.parametrize("text, says", [
    (BOMB, "has a document type"), ("<annotations>", "is no XML"),
    ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "has a document type"),
    ("<annotation><object/></annotation>", "VOC's boxes are no masks"),
    (cvat(CVAT_RED, kind="track"), "holds tracks of a video"),
    (cvat(CVAT_RED, size='width="60" height="80"'), "turned by its EXIF orientation"),
    (cvat('<polyline label="red box" points="1,1;2,2"/>'), "p, polyline 0 has no inside"),
    (cvat('<polygon label="red box" points="1;2,2"/>'), "p, polygon 0 has points '1;2,2'"),
    (cvat(CVAT_RED, '<polygon points="1,1;2,2;1,2"/>'), "polygon 1 has no label; give it one"),
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


def datumaro(*annotations, size=SIZE, name="red box"):
    return dict(info={}, categories=dict(label=dict(labels=[
        dict(name=name, parent=""), dict(name="blue box", parent="")])), items=[
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
    # As high as the other is wide, and turned around its center.
    blue |= dict(bbox=[52.5, 32.5, 20, 25], attributes=dict(rotation=90.0))
    write_json(place, datumaro(blue), "a.json")
    same(place.masks("a.json"), {"blue box": box(BLUE)})
    for wrong, says in ((dict(type="points", label_id=0), "mask is of the type 'points', wanted"),
                        (blue | dict(attributes=dict(rotation="x")), "has the rotation 'x', want"),
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
