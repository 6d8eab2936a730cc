"""Masks of a picture in files: every form gives the same masks, what is none of them a sentence."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.data import mask_files, picture_files
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.naming import given

SIZE = (6, 8)
MASKS = np.zeros((11, *SIZE), bool)  # they overlap; eleven, so that 10 comes after 2
for n in range(11):
    MASKS[n, n % 5:n % 5 + 2, n % 7:] = True


def png(array) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def write(folder, form) -> str:
    """The masks in one form; its path."""
    rows = [dict(segmentation=run_lengths.encode(m), area=int(m.sum()), predicted_iou=0.9)
            for m in MASKS]
    path = folder / f"a.{form}"
    if form == "json":
        path.write_text(json.dumps(rows))
    elif form == "sam.json":
        path.write_text(json.dumps(dict(image=dict(image_id=1, width=8, height=6),
                                        annotations=rows)))
    elif form == "npy":
        np.save(path, MASKS)
    elif form == "bytes.npy":
        np.save(path, MASKS[:, None] * np.uint8(255))  # [N, 1, H, W], as SAM's predictor has them
    elif form == "shares.npy":
        np.save(path, np.where(MASKS, 0.75, 0.25).astype(np.float16))
    elif form == "npz":
        np.savez(path, masks=MASKS)
    elif form == "each.npz":
        np.savez(path, **{f"mask {n}": m for n, m in enumerate(MASKS)})
    else:
        path.mkdir()
        (path / "metadata.csv").write_text("id,area\n")
        for n, mask in enumerate(MASKS):
            cut_out = np.dstack([np.full((*SIZE, 3), 90, np.uint8), mask * np.uint8(255)])
            content = (mask * np.uint8(255), mask.astype(np.uint8), cut_out)[n % 3]
            (path / f"{n}.png").write_bytes(png(content))
    return str(path)


@pytest.mark.parametrize("form", ["json", "sam.json", "npy", "bytes.npy", "shares.npy", "npz",
                                  "each.npz", "folder"])
def test_every_form_gives_the_same_overlapping_masks_to_all_commands(tmp_path, form):
    path = write(tmp_path, form)
    np.testing.assert_array_equal(mask_files.read_masks(path, SIZE), MASKS)
    mask_files.check(path, SIZE)
    named = given.read(np.zeros((*SIZE, 3), np.uint8), path)
    assert named.segments is None and named.ids.tolist() == list(range(1, 12))
    np.testing.assert_array_equal(named.masks.masks > 0, MASKS)


@pytest.mark.parametrize("one", [True, np.uint8(1), np.uint8(255), np.float32(1)])
def test_what_sam_returns_are_the_same_masks(one):
    rows = [dict(segmentation=mask * one, bbox=[0, 0, 2, 2]) for mask in MASKS]
    found = given.read(np.zeros((*SIZE, 3), np.uint8), rows)
    np.testing.assert_array_equal(found.masks.masks > 0, MASKS)


def save_npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.mark.parametrize("name, content, says", [
    ("a.npz", b"x", "is no npz file of arrays"),
    ("a.npy", save_npy(np.full((1, 6, 8), 2.0)), "numbers in 2 ... 2, wanted shares"),
    ("a.npy", save_npy(np.full((1, 6, 8), np.nan)), "wanted shares"),
    ("a.npy", save_npy(np.eye(8, dtype=int)[None] * 7), "numbers in 0 ... 7, wanted bool"),
    ("a.npy", save_npy(np.arange(48).reshape(1, 6, 8) % 3 * 127 + 1), "wanted bool"),
    ("a.npy", save_npy(np.zeros(5)), "wanted a label map"),
    ("a/0.png", b"x", "cannot be read as a picture")])
def test_arrays_that_are_no_masks_are_refused(tmp_path, name, content, says):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        mask_files.read(str(tmp_path / name.split("/")[0]), SIZE)


def test_several_arrays_are_masks_of_one_size(tmp_path):
    np.savez(tmp_path / "a.npz", masks=MASKS, scores=np.ones(11))
    with pytest.raises(ValueError, match="wanted one array, or masks"):
        mask_files.read(str(tmp_path / "a.npz"), SIZE)


def test_masks_that_are_not_there_or_of_another_size_are_told_before_anything_is_read(tmp_path):
    folder = write(tmp_path, "folder")
    with pytest.raises(ValueError, match="0.png has 8x6 pixels, its picture 8x7"):
        mask_files.check(folder, (7, 8))
    (tmp_path / "a.folder/11.png").write_bytes(png(np.zeros((7, 8), np.uint8)))
    with pytest.raises(ValueError, match="8x6 pixels and 8x7; give masks of one size"):
        mask_files.read(folder, SIZE)
    for name, says in (("b.json", "no file"), ("b.png", "no file"), ("b", "no folder of masks")):
        with pytest.raises(FileNotFoundError, match=says):
            mask_files.check(str(tmp_path / name), SIZE)


def test_one_json_of_coco_and_a_bundle_serve_many_pictures(tmp_path):
    from maskclippp_jax.data import bundle_writer

    for name in ("x/a.png", "y/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(png(np.zeros((*SIZE, 3), np.uint8)))
    rows = [dict(image_id=7, segmentation=run_lengths.encode(MASKS[0])), dict(image_id=7, bbox=[])]
    content = dict(images=[dict(id=7, file_name="C:\\data\\x\\a.png"),
                           dict(id=8, file_name="y/a.png"), dict(id=9, file_name="z/a.png")],
                   annotations=rows)
    file = tmp_path / "all.json"
    file.write_text(json.dumps(content))
    first, second = picture_files.find([str(tmp_path / "in")], masks=str(file))
    found = given.read(first.path, first.masks)
    np.testing.assert_array_equal(found.masks.masks, [MASKS[0], np.zeros(SIZE, bool)])
    assert second.name == "y/a" and second.masks == []  # listed, and nothing was found in it

    writer = bundle_writer.Writer(tmp_path / "bundle", masks="binary", classes=dict(kind="none"),
                                  generator=dict(name="files"))
    for name in ("x/a", "y/a"):
        writer.add(name, MASKS[:3 if name == "x/a" else 0], (SIZE,))
    writer.finish()
    first, second = picture_files.find([str(tmp_path / "in")], bundle=str(tmp_path / "bundle"))
    np.testing.assert_array_equal(given.read(first.path, first.masks).masks.masks, MASKS[:3])
    assert not len(given.read(second.path, second.masks).ids)

    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/x/a.png").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no masks of 1 picture \(.*in/b.png\)"):
        picture_files.find([str(tmp_path / "in")], masks=str(file))
    file.write_text(json.dumps(dict(content, annotations=[dict(image_id=5)])))
    with pytest.raises(ValueError, match="a mask of the picture 5, which it does not list"):
        picture_files.find([str(tmp_path / "in")], masks=str(file))


def coco(pictures, **sizes):
    """A JSON of COCO's form, each picture with a square of its own; sizes are of all of them."""
    return json.dumps(dict(
        images=[dict(id=n, file_name=name, **sizes) for n, name in enumerate(pictures)],
        annotations=[dict(image_id=n, segmentation=[[n, 0, n + 2, 0, n + 2, 2, n, 2]])
                     for n in range(len(pictures))]))


def test_one_picture_gets_its_own_masks_out_of_a_json_of_several(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(png(np.zeros((*SIZE, 3), np.uint8)))
    file = tmp_path / "all.json"
    file.write_text(coco(["in/a.jpg", "in/b.png"], height=6, width=8))
    masks = given.read(tmp_path / "b.png", file).masks.masks
    assert masks.shape == (1, *SIZE) and masks[0, :2, 1:3].all() and masks.sum() == 4
    np.testing.assert_array_equal(mask_files.read_masks(str(file), SIZE, picture="b"), masks)
    with pytest.raises(ValueError, match=r"of 2 pictures \(in/a.jpg, in/b.png\), none of which is"):
        given.read(tmp_path / "c.png", file)
    with pytest.raises(ValueError, match="nothing tells which is this one; give the picture by"):
        given.read(np.zeros((*SIZE, 3), np.uint8), file)
    file.write_text(coco(["a.png"]))  # masks of one picture are this one's
    assert len(given.read(tmp_path / "c.png", file).ids) == 1


@pytest.mark.parametrize("listed, pictures, says", [
    (["b/x.png"], ["a/x.png", "b/x.png"], "masks of one picture x, which .*a/x.png and .*b/x.png"),
    (["x.png", "y.png"], ["a/x.png", "b/x.png"], "name one of them, or list both there"),
    (["x.png", "x.png"], ["x.png"], "lists 2 pictures of the file_name x.png")])
def test_one_entry_of_a_json_is_one_picture(tmp_path, listed, pictures, says):
    (tmp_path / "all.json").write_text(coco(listed))
    for name in pictures:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=says):
        picture_files.find([str(tmp_path / name) for name in pictures],
                           masks=str(tmp_path / "all.json"))


def test_polygons_for_a_picture_of_another_size_are_refused(tmp_path):
    picture, file = str(tmp_path / "a.png"), tmp_path / "a.json"
    (tmp_path / "a.png").write_bytes(png(np.zeros((*SIZE, 3), np.uint8)))
    for names in (["a.png"], ["a.png", "b.png"]):
        file.write_text(coco(names, height=3, width=4))
        with pytest.raises(ValueError, match="a.json are of a picture of 4x3 pixels, this one has"):
            given.read(picture, file)
        found = picture_files.find([picture], masks=str(file))
        with pytest.raises(ValueError, match="a.png are of a picture of 4x3 .* this one has 8x6"):
            picture_files.check(found, skip_broken=False)
        file.write_text(coco(names, height=6, width=8))
        picture_files.check(picture_files.find([picture], masks=str(file)), skip_broken=False)
    content = json.loads(coco(["a.png"], height=3, width=4))
    content["annotations"][0]["segmentation"] = run_lengths.encode(MASKS[0, :3, :4])
    file.write_text(json.dumps(content))  # run lengths have a size of their own
    assert mask_files.read_masks(str(file), SIZE).shape == (1, 3, 4)


def test_a_folder_of_pictures_that_are_not_read_is_not_one_without_masks(tmp_path):
    for name in ("notes.csv", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"")
    mask_files.check(str(tmp_path), SIZE)
    assert mask_files.read(str(tmp_path), SIZE).shape == (0, *SIZE)
    Image.new("L", SIZE[::-1]).save(tmp_path / "0.JPG")
    for look in (mask_files.check, mask_files.read):
        with pytest.raises(ValueError, match=r"holds 1 picture \(0.JPG\), wanted .* in .png, .tif"):
            look(str(tmp_path), SIZE)


@pytest.mark.parametrize("value", [1, 255])
def test_masks_may_cover_all(value):
    assert mask_files.of_array(np.full((2, *SIZE), value, np.uint8), "masks").all()


def test_masks_beside_the_pictures_are_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.zeros((*SIZE, 3), np.uint8)))
    write(tmp_path, "folder")
    (tmp_path / "a.folder").rename(tmp_path / "a")
    found, = picture_files.find([str(tmp_path)], masks=f"{tmp_path}/{{stem}}")
    assert found.name == "a" and found.masks == str(tmp_path / "a")
