"""Files for annotation tools: our own readers, and rules of the tools, give the masks back."""

import json
import sys
import types

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

import maskclippp_jax as mc
from maskclippp_jax.data import annotation_files, brush_codes, outlines, records
from maskclippp_jax.data.annotation_files import Annotated
from maskclippp_jax.data.prepare import folder
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.given import Given
from maskclippp_jax.naming.result import Result
from maskclippp_jax.vocabulary import Vocabulary

SIZE = (90, 120)
NAMES = ("disc", "ring, hoop", "it's two & more", "dot")


def masks_of() -> np.ndarray:
    """A disc; a ring; two parts, one with a hole, at the picture's edge; a single pixel."""
    y, x = np.mgrid[:SIZE[0], :SIZE[1]]
    away = lambda row, column: np.hypot(y - row, x - column)
    parts = (x < 20) & (y > 60) & (away(75, 8) > 4.5) | (away(80, 110) < 9)
    return np.stack([away(25, 25) < 20, (away(40, 80) < 24) & (away(42, 78) > 9), parts,
                     (y == 0) & (x == 119)])


class Place:
    """Two pictures of one name in two folders, and a writer's files of their masks."""

    def __init__(self, path, formats, vocabulary=None):
        self.path = path
        vocabulary = vocabulary or Vocabulary.from_names(NAMES)
        (path / "names.txt").write_text(vocabulary.to_text())
        self.masks = masks_of()
        with mc.AnnotationWriter(path / "out", formats) as writer:
            for name, order in (("a/p", [0, 1, 2, 3]), ("b/p", [3, 1])):
                file = path / "images" / f"{name}.png"
                file.parent.mkdir(parents=True)
                Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(file)
                picture = Annotated(str(file), name, vocabulary, np.array(order),
                                    np.linspace(0.9, 0.5, len(order)), self.masks[order])
                writer.add(types.SimpleNamespace(annotated=lambda n, picture=picture: picture))

    def read(self, labels, names="names.txt", **choices) -> dict[str, dict[str, np.ndarray]]:
        """Of each picture the masks, by the names of their classes."""
        data = folder.read(str(self.path / "images"), str(self.path / "out" / labels),
                           names and str(self.path / names), folder.Choices(**choices))
        found = {}
        for item in data.reading.splits["train"]:
            record, = data.reading.make_records(item)
            names = [data.vocabulary.classes[c][0] for c in record["table"]["class_id"]]
            found[record["image_id"]] = dict(zip(names, records.decode_masks(record)))
        return found

    def same(self, found: dict[str, dict[str, np.ndarray]], least=0.99) -> None:
        first = [name.split(",")[0] for name in NAMES]
        assert set(found) == {"a/p", "b/p"}
        assert set(found["a/p"]) == set(first) and set(found["b/p"]) == {first[3], first[1]}
        for masks in found.values():
            for name, mask in masks.items():
                wanted = self.masks[first.index(name)]
                assert (mask & wanted).sum() >= least * (mask | wanted).sum(), name


def json_of(file):
    return json.loads(file.read_text())


# --- Round trips ----------------------------------------------------------------------------------


def test_coco_comes_back_with_areas_and_boxes(tmp_path):
    place = Place(tmp_path, ["coco"])
    place.same(place.read("coco/instances.json"))
    place.same(place.read("coco/instances.json", names=None))
    content = json_of(tmp_path / "out/coco/instances.json")
    assert [i["file_name"] for i in content["images"]] == ["a/p.png", "b/p.png"]
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4]  # 0 is no class to CVAT
    disc, ring, two, dot, *_ = content["annotations"]
    assert isinstance(disc["segmentation"], list) and "counts" in ring["segmentation"]
    assert disc["area"] == place.masks[0].sum() and disc["bbox"] == [6, 6, 39, 39]
    assert dot["bbox"] == [119, 0, 1, 1] and disc["score"] == pytest.approx(0.9)


def test_labelme_comes_back_and_finds_its_picture(tmp_path):
    place = Place(tmp_path, ["labelme"])
    place.same(place.read("labelme"))
    file = tmp_path / "out/labelme/a/p.json"
    content = json_of(file)
    assert (file.parent / content["imagePath"]).resolve() == tmp_path / "images/a/p.png"
    assert [s["shape_type"] for s in content["shapes"]] == ["polygon", "mask", "mask", "polygon"]
    assert len(content["shapes"][0]["points"]) < 60  # few corners, to be moved by hand


def test_yolo_comes_back_with_holes_and_parts(tmp_path):
    place = Place(tmp_path, ["yolo"])
    place.same(place.read("yolo/labels", names="out/yolo/data.yaml"))
    lines = (tmp_path / "out/yolo/labels/a/p.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3"]  # one line a mask


def test_cvat_comes_back_to_the_pixel(tmp_path):
    place = Place(tmp_path, ["cvat"])
    place.same(place.read("cvat/annotations.xml", names=None), least=1)


def test_voc_comes_back_object_by_object(tmp_path):
    place = Place(tmp_path, ["voc"])
    apart = place.masks.copy()  # where masks overlap only the likelier one is seen
    apart[2] &= ~place.masks[1]
    place.masks = apart
    place.same(place.read("voc", names=None), least=1)


def test_label_studio_comes_back_once_predictions_are_accepted(tmp_path):
    place = Place(tmp_path, ["labelstudio"])
    file = tmp_path / "out/labelstudio/tasks.json"
    tasks = json_of(file)
    kinds = [r["type"] for r in tasks[0]["predictions"][0]["result"]]
    assert kinds == ["polygonlabels", "brushlabels", "brushlabels", "polygonlabels"]
    form = (tmp_path / "out/labelstudio/form.xml").read_text()
    assert all(f'name="{r["from_name"]}"' in form for r in tasks[0]["predictions"][0]["result"])
    for task in tasks:  # as Label Studio exports them
        task["annotations"] = task.pop("predictions")
    file.write_text(json.dumps(tasks))
    place.same(place.read("labelstudio/tasks.json"))


def test_voc_shows_the_likelier_mask_in_its_own_colours(tmp_path):
    Place(tmp_path, ["voc"])
    with Image.open(tmp_path / "out/voc/SegmentationClass/a/p.png") as image:
        numbers, colors = np.array(image), np.array(image.convert("RGB"))
    wanted = np.zeros(SIZE, int)
    for c, mask in reversed(list(enumerate(masks_of(), start=1))):
        wanted[mask] = c
    np.testing.assert_array_equal(numbers, wanted)
    assert colors[25, 25].tolist() == [128, 0, 0] and colors[40, 60].tolist() == [0, 128, 0]
    rows = (tmp_path / "out/voc/labelmap.txt").read_text().splitlines()
    assert rows[1:3] == ["background:0,0,0::", "disc:128,0,0::"]
    boxes = (tmp_path / "out/voc/Annotations/b/p.xml").read_text()
    assert "<xmin>120</xmin>" in boxes and "<ymax>1</ymax>" in boxes
    many = np.arange(300).reshape(15, 20)  # more than 8 bits hold
    np.testing.assert_array_equal(annotation_files.voc_colors(300)[many].reshape(-1, 3)[256],
                                  [0, 0, 32])
    assert annotation_files.voc_png(many).startswith(b"\x89PNG")


# --- Polygons and codes ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_outlines_and_brush_codes_give_any_mask_back(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 60, 2))
    mask = rng.random(size) < rng.uniform(0.1, 0.9)
    if seed % 2:
        mask = np.kron(mask, np.ones((4, 5), bool))
    np.testing.assert_array_equal(brush_codes.decode(brush_codes.encode(mask), mask.shape), mask)
    draw = lambda rings: run_lengths.decode(
        run_lengths.of_polygons([r.tolist() for r in rings], mask.shape))
    drawn = np.zeros(mask.shape, int)
    for part in outlines.parts_of(mask):
        drawn += draw([part.outer])
        for hole in part.holes:
            drawn -= draw([hole])
    np.testing.assert_array_equal(drawn, mask)
    joined = outlines.joined_polygon(mask)
    found = draw([joined]) if joined is not None else np.zeros_like(mask)
    assert (found & mask).sum() >= 0.99 * (found | mask).sum()


def test_an_empty_mask_has_no_outline():
    nothing = np.zeros((4, 5), bool)
    assert outlines.parts_of(nothing) == [] and outlines.joined_polygon(nothing) is None
    assert outlines.polygons(nothing) is None and outlines.polygon(nothing) is None


# Packed as thi.ng's rle-pack does: pieces of different values, other sizes of counts.
def test_brush_codes_of_other_writers_are_read():
    bits = (f"{8:032b}" + "00111" + "0000" * 4  # 8 values of 8 bits; counts of 1 bit
            + "0" + "00" + "1" + f"{9:08b}{0:08b}"
            + "1" + "01" + "1" + f"{0:08b}" + "1" + "10" + "1" + f"{0:08b}"
            + "0" + "11" + "1" + f"{0:08b}{255:08b}")
    code = [int(bits[n:n + 8].ljust(8, "0"), 2) for n in range(0, len(bits), 8)]
    assert brush_codes.decode(code, (1, 2)).tolist() == [[False, True]]
    for wrong, says in ((code[:-1], "cut short"), ([300], "no bytes"), (code[:3] + [0] + code[4:],
                                                                        "for 0 pixels")):
        with pytest.raises(ValueError, match=says):
            brush_codes.decode(wrong, (1, 2))


# --- What is refused, and supervision -------------------------------------------------------------


def test_what_a_writer_cannot_write_is_named(tmp_path):
    with pytest.raises(ValueError, match="wanted a list of some of coco, labelme, yolo, voc, cvat"):
        mc.AnnotationWriter(tmp_path, ["pascal"])
    writer = mc.AnnotationWriter(tmp_path / "out", ["yolo"])
    writer.finish()
    assert not (tmp_path / "out").exists()
    picture = Annotated("p.png", "p", Vocabulary.from_names(NAMES), np.array([0]), np.array([1.0]),
                        masks_of()[:1])
    give = lambda picture: types.SimpleNamespace(annotated=lambda name: picture)
    writer.add(give(picture))
    with pytest.raises(ValueError, match="a second picture p"):
        writer.add(give(picture))
    with pytest.raises(ValueError, match="other classes than those before"):
        writer.add(give(picture._replace(vocabulary=Vocabulary.from_names(["x"]))))


class _Result(Result):
    """A result of three masks, one of them empty, without a model."""

    def __init__(self):
        image = np.zeros((*SIZE, 3), np.uint8)
        given = Given(image, np.arange(1, 4), None, None, path="photos/p.png")
        scores = MaskScores(np.eye(4, dtype=np.float32)[[1, 0, 2]], np.zeros(3, np.float32))
        super().__init__(None, given, Vocabulary.from_names(NAMES), scores)
        self.__dict__["masks"] = masks_of()[[1, 0, 2]]
        self.masks[1] = False


def test_results_offer_every_tools_form_of_masks_that_have_a_pixel(tmp_path):
    result = _Result()
    assert len(result.to_coco_file()["annotations"]) == 2
    assert [s["label"] for s in result.to_labelme()["shapes"]] == ["ring", "it's two & more"]
    assert result.to_labelme()["imagePath"] == "p.png"
    assert [line[0] for line in result.to_yolo().splitlines()] == ["1", "2"]
    assert set(np.unique(result.to_voc()[1])) == {0, 1, 2}
    assert result.to_cvat().count("<mask ") == 2 and "it's two &amp; more" in result.to_cvat()
    assert result.to_labelstudio()["data"]["image"] == "/data/local-files/?d=photos/p.png"


def test_supervision_gets_boxes_masks_and_names(monkeypatch):
    result = _Result()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        result.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=dict))
    found = result.to_supervision()
    assert found["xyxy"].tolist() == [[57, 17, 104, 64], [0, 61, 119, 90]]
    assert found["mask"].shape == (2, *SIZE) and found["class_id"].tolist() == [1, 2]
    assert found["data"]["class_name"].tolist() == ["ring", "it's two & more"]


@pytest.mark.parametrize("radius", [0.4, 3, 9.3, 20, 41.7])
def test_polygons_give_the_mask_by_the_rules_of_coco_opencv_and_pillow(radius):
    """OpenCV's is that of Ultralytics, Pillow's that of LabelMe; both draw the outline as well."""
    y, x = np.mgrid[:SIZE[0], :SIZE[1]]
    for mask in (np.hypot(y - 45, x - 60) < radius, (abs(y - 45) < radius) & (abs(x - 60) < 2)):
        rings = outlines.polygons(mask)
        by_opencv, by_pillow = np.zeros(SIZE, np.uint8), Image.new("L", SIZE[::-1])
        for ring in rings:
            cv2.fillPoly(by_opencv, [ring.astype(np.int32)], 1)
            ImageDraw.Draw(by_pillow).polygon([tuple(p) for p in ring], outline=1, fill=1)
        by_coco = run_lengths.decode(run_lengths.of_polygons([r.tolist() for r in rings], SIZE))
        for drawn in (by_coco, by_opencv > 0, np.asarray(by_pillow) > 0):
            assert (drawn & mask).sum() >= 0.99 * (drawn | mask).sum()


@pytest.mark.slow
def test_tools_read_what_was_written_for_them(tmp_path):
    """With the readers of the tools, as far as they are installed: label-studio-converter."""
    brush = pytest.importorskip("label_studio_converter.brush")
    place = Place(tmp_path, ["labelstudio"])
    for task in json_of(tmp_path / "out/labelstudio/tasks.json"):
        names = set()
        for region in task["predictions"][0]["result"]:
            value = region["value"]
            if "rle" not in value:
                continue
            name, = value["brushlabels"]
            names.add(name)
            found = brush.decode_rle(value["rle"]).reshape(*SIZE, 4)[..., 3] > 0
            wanted = place.masks[[n.split(",")[0] for n in NAMES].index(name)]
            np.testing.assert_array_equal(found, wanted)
        assert "ring" in names
