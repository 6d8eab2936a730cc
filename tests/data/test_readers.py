"""What readers of official data sets do with files that are missing, odd, or of another set."""

import io
import json
import pathlib
import zipfile

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image

from maskclippp_jax.data import images, records
from maskclippp_jax.data.prepare import ade20k, coco, labels, mess, pascal, raw, street

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


def save(path: pathlib.Path, array: np.ndarray) -> raw.File:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return raw.File((), str(path))


def rewrite_zip(source: pathlib.Path, target: pathlib.Path, change) -> None:
    """Copies an archive; `change(name, data)` gives the new content, None leaves a member out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)


@pytest.fixture
def coco_raw(tmp_path):
    """A copy of the archives in which JSON files can be changed."""
    def make(archive: str, member: str, change) -> str:
        def edit(name, data):
            if member not in name:
                return data
            content = json.loads(data)
            change(content)
            return json.dumps(content).encode()
        for file in (FIXTURES / "coco2017/archives").iterdir():
            if file.name == archive:
                rewrite_zip(file, tmp_path / file.name, edit)
            else:
                (tmp_path / file.name).write_bytes(file.read_bytes())
        return str(tmp_path)
    return make


PANOPTIC = ("panoptic_annotations_trainval2017.zip", "panoptic_val2017.json")
INSTANCES = ("annotations_trainval2017.zip", "instances_val2017.json")


def test_panoptic_maps_that_the_json_lists_and_the_archive_lacks_are_named(tmp_path):
    """An unzip program that believes the overflowed counter stops early, without an error."""
    for name in ("train2017.zip", "val2017.zip"):
        (tmp_path / name).write_bytes((FIXTURES / "coco2017/archives" / name).read_bytes())
    archive = "panoptic_annotations_trainval2017.zip"

    def shorten(name, data):
        if name.endswith("train2017.zip"):
            inner = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(inner, "w") as new:
                for member in old.namelist()[:-1]:
                    new.writestr(member, old.read(member))
            return inner.getvalue()
        return data

    rewrite_zip(FIXTURES / "coco2017/archives" / archive, tmp_path / archive, shorten)
    reading = coco.read_panoptic(str(tmp_path))
    assert {k: len(v) for k, v in reading.splits.items()} == {"train": 2, "validation": 2}
    assert len(reading.missing) == 1
    assert reading.missing[0].startswith("1 file that annotations/panoptic_train2017.json")
    assert reading.missing[0].endswith("000000000103.png")


@pytest.mark.parametrize("change, words", [
    (lambda c: c["categories"].pop(), "has 132 categories, coco_panoptic_133 133.*ids 200"),
    (lambda c: c["categories"].append(dict(id=183, name="other")), "differ in the ids 183.*year"),
    (lambda c: c["annotations"].append(c["annotations"][0]), "annotates the image 201 twice"),
    (lambda c: c["images"].pop(0), "annotates the image 201 without listing it"),
    (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=12),
     "uses the category 12, which it does not list")])
def test_a_panoptic_json_that_does_not_fit_is_explained(coco_raw, change, words):
    with pytest.raises(ValueError, match=words):
        coco.read_panoptic(coco_raw(*PANOPTIC, change))


@pytest.mark.parametrize("change, words", [
    (lambda c: c["images"].append(c["images"][0]), "lists an image id twice"),
    (lambda c: c["annotations"][0].update(image_id=7), "belongs to the image 7, which is not"),
    (lambda c: c["categories"].pop(0), "has 79 categories")])
def test_an_instance_json_that_does_not_fit_is_explained(coco_raw, change, words):
    with pytest.raises(ValueError, match=words):
        coco.read_instances(coco_raw(*INSTANCES, change))


def test_stuff_maps_of_detectron2_are_never_taken_for_the_official_ones(tmp_path):
    def write(folder, value):
        for split in ("train2017", "val2017"):
            place = tmp_path / folder / split
            place.mkdir(parents=True, exist_ok=True)
            name = "000000000001." + ("jpg" if folder == "." else "png")
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(place / name)

    write(".", 0)
    write("stuffthingmaps_detectron2", 170)
    with pytest.raises(ValueError, match="holds stuffthingmaps_detectron2, maps that a script"):
        coco.read_stuff(str(tmp_path))
    write("stuffthingmaps_trainval2017", 181)
    reading = coco.read_stuff(str(tmp_path))
    for items in reading.splits.values():
        assert [labels.read_label(item[3]).max() for item in items] == [181]


def test_a_json_cut_short_is_named(tmp_path):
    (tmp_path / "lvis_v1_val.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="lvis_v1_val.json is no JSON .Input data was truncated"):
        coco.read_lvis(str(tmp_path))


def test_pixels_of_no_described_segment_are_named(coco_raw):
    reading = coco.read_panoptic(coco_raw(
        *PANOPTIC, lambda c: c["annotations"][0]["segments_info"].pop()))
    with pytest.raises(ValueError, match="000000000201: there are pixels of segment 13158600"):
        reading.make_records(reading.splits["validation"][0])


def test_stuff_maps_know_their_gaps(tmp_path):
    """Another packaging of COCO-Stuff has a class 183; ids between are no classes either."""
    picture = save(tmp_path / "1.png", np.zeros((2, 2, 3), np.uint8))
    for pixel in (11, 182, 200):
        label = save(tmp_path / "label.png", np.full((2, 2), pixel, np.uint8))
        with pytest.raises(ValueError, match=f"label.png holds {pixel}, which the data set"):
            coco._stuff(("train", "x", picture, label))
    void = save(tmp_path / "label.png", np.full((2, 2), 255, np.uint8))
    assert coco._stuff(("train", "x", picture, void)) == []
    assert len(coco._stuff(("validation", "x", picture, void))) == 1


def test_label_files_give_their_numbers_whatever_their_form(tmp_path):
    numbers = np.array([[0, 1], [2, 255]], np.uint8)
    palette = Image.fromarray(numbers)
    palette = palette.convert("P")
    palette.putpalette([c for i in range(256) for c in (0, 0, 128 if i == 1 else i)])
    palette.save(tmp_path / "palette.png")  # as VOC: class 1 has a colour that others use
    Image.fromarray(numbers > 0).save(tmp_path / "bits.png")
    cv2.imwrite(str(tmp_path / "wide.png"), numbers.astype(np.uint16) * 256)
    read = lambda name: labels.read_label(raw.File((), str(tmp_path / name))).tolist()
    assert read("palette.png") == numbers.tolist()
    assert read("bits.png") == [[0, 1], [1, 1]]
    assert read("wide.png") == (numbers.astype(int) * 256).tolist()
    codes = labels.read_colors(save(tmp_path / "rgb.png", np.full((1, 1, 3), 255, np.uint8)))
    assert codes.tolist() == [[2 ** 24 - 1]]  # 32 bits: 255 * 256 overflows 8 and 16


def test_ade20k_instances_of_two_categories_are_refused(tmp_path):
    colors = np.zeros((2, 2, 3), np.uint8)
    colors[0, :, 1] = 5           # instance 5 ...
    colors[0, :, 0] = [7, 8]      # ... of two categories
    file = save(tmp_path / "x.png", colors)
    with pytest.raises(ValueError, match=r"instance 5 has the categories \[7, 8\]"):
        ade20k._read_instances(file)
    colors[0, :, 0] = 101
    with pytest.raises(ValueError, match=r"categories \[101\], wanted one of 1 ... 100"):
        ade20k._read_instances(save(tmp_path / "x.png", colors))


@pytest.mark.parametrize("size, stored", [
    ((512, 900), (512, 900)), ((513, 513), (512, 512)), ((400, 3000), (400, 3000)),
    ((601, 517), (595, 512)), ((520, 1041), (512, 1025))])
def test_ade20k_full_is_shrunk_if_both_sides_pass_512(tmp_path, rng, size, stored):
    colors = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    files = save(tmp_path / "x.png", image), save(tmp_path / "y.png", colors)
    [record] = ade20k._full(("x", *files))
    segments = records.decode_segments(record["segments"])
    assert segments.shape == stored == images.size_of(record["image"])
    if size == stored:
        np.testing.assert_array_equal(images.decode_image(record["image"], "x"), image)
    # OpenCV's nearest neighbour, on the dataset's own numbers.
    numbers = colors[..., 0].astype(int) // 10 * 256 + colors[..., 1]
    small = cv2.resize(numbers.astype(np.float64), stored[::-1], interpolation=cv2.INTER_NEAREST)
    known = labels.shipped("ade20k_847").dataset_ids
    classes = records.decode_classes(record)
    assert classes.max() > 0 and (classes == -1).any()
    for c in (0, 100, int(classes.max())):
        np.testing.assert_array_equal(classes == c, small == known[c])


def test_ade20k_full_is_found_under_a_personal_name(tmp_path):
    source = FIXTURES / "ade20k_full/archives/ADE20K_2021_17_01.zip"
    (tmp_path / "someone_1a2b3c4d.zip").write_bytes(source.read_bytes())
    reading = ade20k.read_full(str(tmp_path))
    assert {k: len(v) for k, v in reading.splits.items()} == {"train": 1, "validation": 3}


def test_context_maps_and_lists_that_do_not_fit_are_named(tmp_path):
    target = tmp_path / "x.mat"
    scipy.io.savemat(target, {"LabelMap": np.full((2, 2), 460, np.uint16)})
    picture = save(tmp_path / "1.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="x.mat holds 460"):
        pascal._context_459(("x", picture, raw.File((), str(target))))
    for content in ({"other": np.ones(3)}, None):
        if content:
            scipy.io.savemat(target, content)
        else:
            target.write_bytes(b"no matrix at all" * 20)
        with pytest.raises(ValueError, match="x.mat is no label map.*download it again"):
            pascal._context_459(("x", picture, raw.File((), str(target))))
    archive = FIXTURES / "pascal_context/archives"
    (tmp_path / "trainval_merged.json").write_bytes(
        (archive / "trainval_merged.json").read_bytes())
    reading = pascal.read_context(str(tmp_path), 59)  # no picture is there
    assert not any(reading.splits.values())
    assert reading.missing[0].startswith("3 files that ")


def test_pictures_of_a_voc_list_that_are_missing_are_named(tmp_path):
    import tarfile
    with tarfile.open(FIXTURES / "voc2012/archives/VOCtrainval_11-May-2012.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    next(tmp_path.rglob("SegmentationClass/2007_000042.png")).unlink()
    reading = pascal.read_voc(str(tmp_path), 21)
    assert [item[0] for item in reading.splits["validation"]] == ["2007_000033"]
    assert "2007_000042" in reading.missing[0]


def test_cityscapes_values_beyond_its_labels_are_named(tmp_path):
    picture = save(tmp_path / "1.png", np.zeros((2, 2, 3), np.uint8))
    for value, make in ((34, street._city_semantic), (34, street._city_panoptic),
                        (40001, street._city_panoptic)):
        cv2.imwrite(str(tmp_path / "x.png"), np.full((2, 2), value, np.uint16))
        with pytest.raises(ValueError, match=f"{value}"):
            make(("x", picture, raw.File((), str(tmp_path / "x.png"))))


def test_vistas_2_keeps_the_old_labels_in_a_folder_of_their_version(tmp_path):
    with zipfile.ZipFile(next((FIXTURES / "mapillary_vistas/archives").iterdir())) as archive:
        archive.extractall(tmp_path)
    for kind in ("labels", "panoptic", "instances"):
        (tmp_path / "validation/v1.2").mkdir(exist_ok=True)
        (tmp_path / "validation" / kind).rename(tmp_path / "validation/v1.2" / kind)
    save(tmp_path / "validation/v2.0/labels" / ("a" * 22 + ".png"), np.zeros((2, 2), np.uint8))
    for kind in ("semantic", "panoptic"):
        reading = street.read_vistas(str(tmp_path), kind)
        assert len(reading.splits["validation"]) == 2 and not reading.missing


def test_tiles_cover_a_picture_row_by_row_and_are_padded(rng):
    pixels = rng.integers(1, 256, (1030, 2050, 3)).astype(np.uint8)
    label = rng.integers(0, 5, (1030, 2050))
    tiles = list(mess.cut(pixels, label))
    assert len(tiles) == 6 and all(t.shape == (1024, 1024, 3) for t, _ in tiles)
    np.testing.assert_array_equal(tiles[1][0], pixels[:1024, 1024:2048])
    np.testing.assert_array_equal(tiles[5][1][:6, :2], label[1024:, 2048:])
    assert (tiles[5][1][6:] == 255).all() and (tiles[5][0][:, 2:] == 0).all()


def test_unknown_colours_are_named(tmp_path):
    file = save(tmp_path / "x.png", np.full((2, 2, 3), 200, np.uint8))
    for name in ("uavid", "suim", "isaid"):
        with pytest.raises(ValueError, match=r"x.png holds the colour \(200, 200, 200\), which"):
            mess.RULES[name].classes(file)
    # Impure ones of Potsdam count as pure.
    assert (mess.RULES["isprs_potsdam"].classes(file) == 0).all()
