"""The example in an exported folder reads what the package reads, and says what it cannot."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

import maskclippp_jax as mc
from maskclippp_jax.data import images, pipeline
from tests.data.test_images import write_grey_png

pytest.importorskip("onnx")

CLASSES = ["red", "green", "blue", "grey"]
HEIGHT, WIDTH = 40, 60


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Without a generator; its encoders see a wide picture whole, and any as one cell."""
    place = tmp_path_factory.mktemp("export") / "folder"
    tiny.export(place, CLASSES, sizes=[(96, 64), (64, 96), (8, 8)])
    return place


@pytest.fixture(scope="module")
def run(folder):
    return imported(folder)


def imported(folder):
    """The folder's run.py as a module."""
    spec = importlib.util.spec_from_file_location(f"run_{folder.name}", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def labels(count=4):
    """[H, W] uint8, 0 ... count - 1 in columns."""
    return np.repeat(np.arange(WIDTH)[None] * count // WIDTH, HEIGHT, 0).astype(np.uint8)


def colors():
    """[H, W, 3] uint8, another colour in each corner."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows * 6, columns * 4, 255 - rows * 3 - columns * 2], -1).astype(np.uint8)


def write_picture(kind, path):
    rgb = colors()
    alpha, wide = rgb[..., 0], rgb[..., 1].astype(np.uint16) * 251
    picture, exif = Image.fromarray(rgb), Image.Exif()
    exif[0x0112] = 6
    if kind == "turned":
        picture.save(path, "JPEG", exif=exif)
    elif kind == "grey of 16 bits":
        Image.fromarray(wide).save(path, "PNG")
    elif kind == "inverted 16 bits":
        tifffile.imwrite(path, wide, photometric="miniswhite")
    elif kind == "wide 16 bits":
        tifffile.imwrite(path, wide.astype(np.int32), photometric="minisblack")
    elif kind == "cut-out":
        Image.fromarray(np.dstack([rgb, alpha])).save(path, "PNG")
    elif kind == "grey cut-out":
        Image.fromarray(np.dstack([rgb, alpha])).convert("LA").save(path, "PNG")
    elif kind == "clear palette":
        picture.quantize(16).save(path, "PNG", transparency=bytes(range(0, 256, 16)))
    else:
        picture.convert("CMYK").save(path, "TIFF")


@pytest.mark.parametrize("kind", ["turned", "grey of 16 bits", "inverted 16 bits", "wide 16 bits",
                                  "cut-out", "grey cut-out", "clear palette", "CMYK"])
def test_pictures_are_read_as_the_package_reads_them(kind, run, tmp_path):
    write_picture(kind, tmp_path / "picture")
    wanted = images.read_image(str(tmp_path / "picture"))
    assert np.ptp(wanted) > 100
    np.testing.assert_array_equal(np.asarray(run.read_picture(tmp_path / "picture")), wanted)


def write_labels(kind, path):
    if kind == "palette":
        palette = Image.fromarray(labels()).convert("P")
        palette.putpalette([9] * 768)
        palette.save(path, "PNG")
    elif kind == "16 bits":
        Image.fromarray(labels().astype(np.uint16) * 255).save(path, "PNG")
    elif kind == "32 bits":
        tifffile.imwrite(path, labels().astype(np.int32) - 1, photometric="minisblack")
    elif kind == "nothing":
        Image.fromarray(np.where(labels() == 1, 255, labels()).astype(np.uint8)).save(path, "PNG")
    else:
        bits = int(kind[0])
        write_grey_png(path, labels(2**bits).tolist(), bits)


@pytest.mark.parametrize("kind, ids", [
    ("1 bit", [0, 1]), ("2 bits", [0, 1, 2, 3]), ("4 bits", list(range(16))),
    ("16 bits", [0, 255, 510, 765]), ("32 bits", [0, 1, 2]), ("palette", [0, 1, 2, 3]),
    ("nothing", [0, 2, 3])])
def test_label_maps_are_read_as_the_package_reads_them(kind, ids, run, tmp_path):
    path = tmp_path / "masks.png"
    write_labels(kind, path)
    found = run.read_label_map(path)
    np.testing.assert_array_equal(found, images.read_label_map(str(path)))
    given, numbers = run.of_label_map(found, np.array(found.shape))
    assert numbers == ids and given["masks"].shape == (1, len(ids), HEIGHT, WIDTH)


@pytest.mark.parametrize("picture, masks", [
    ("grey of 16 bits", "4 bits"), ("cut-out", "16 bits"), ("clear palette", "nothing")])
def test_scores_are_those_of_the_model_for_every_kind_of_file(picture, masks, run, tiny, tmp_path):
    write_picture(picture, tmp_path / "picture")
    write_labels(masks, tmp_path / "masks.png")
    scores, ids = run.name(tmp_path / "picture", tmp_path / "masks.png")
    wanted = tiny.name(tmp_path / "picture", tmp_path / "masks.png", CLASSES)
    assert ids == wanted.ids.tolist()
    # Scores of up to 1; float32 through another library.
    np.testing.assert_allclose(scores, wanted.scores, atol=2e-5)


@pytest.mark.parametrize("longest", [None, 70, 300])
def test_a_picture_is_loaded_at_the_size_of_the_package(longest, run, monkeypatch):
    monkeypatch.setitem(run.MANIFEST, "picture", dict(shorter_side=50, longest_side=longest))
    assert run.load(Image.new("RGB", (60, 40))).shape == (
        1, *pipeline.loaded_size((40, 60), 50, longest), 3)


def test_a_picture_of_one_cell_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setitem(run.MANIFEST, "encoders", [dict(program="encoder_8x8", width=8, height=8)])
    Image.fromarray(colors()).save(tmp_path / "picture.png")
    Image.fromarray(labels()).save(tmp_path / "masks.png")
    scores, ids = run.name(tmp_path / "picture.png", tmp_path / "masks.png")
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
    assert ids == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["onnx", "stablehlo"])
def test_folders_of_fixed_numbers_give_the_same(kind, tiny, tmp_path):
    tiny.export(tmp_path / kind, CLASSES, format=kind, sizes=[(96, 64)], num_masks=np.int64(6),
                batch=2)
    run, picture = imported(tmp_path / kind), tmp_path / "picture.png"
    Image.fromarray(colors()).save(picture)
    for count in (1, 4, 6, 7):
        masks = tmp_path / f"{count}.png"
        Image.fromarray(labels(count)).save(masks)
        if count > 6:
            with pytest.raises(ValueError, match=r"7.png has 7 masks, and .* exported for 6; "):
                run.name(picture, masks)
            continue
        scores, ids = run.name(picture, masks)
        wanted = tiny.name(picture, masks, CLASSES)
        assert ids == wanted.ids.tolist() == list(range(count))
        np.testing.assert_allclose(scores, wanted.scores, atol=2e-5)


def test_a_generators_masks_fill_up_fixed_numbers(tmp_path):
    model = mc.load("untuned", "quickstart", generator="quickstart")
    Image.fromarray(colors()).save(tmp_path / "picture.png")
    wanted = model.segment(tmp_path / "picture.png", CLASSES)
    assert len(wanted.ids)
    model.export(tmp_path / "x", CLASSES, sizes=[(96, 64)], num_masks=len(wanted.ids) + 3, batch=2)
    scores, ids = imported(tmp_path / "x").name(tmp_path / "picture.png")
    assert ids == wanted.ids.tolist()
    np.testing.assert_allclose(scores, wanted.scores, atol=2e-5)


def refusals(place):
    """Arguments, and what is said of them."""
    write = lambda name, array: Image.fromarray(array).save(place / name)
    write("picture.png", colors())
    write_picture("turned", place / "turned.jpg")
    write("masks.png", labels())
    write("small.png", labels()[::2])
    write("fractions.tif", labels().astype(np.float32))
    write("colors.png", colors())
    write("masks.jpg", labels())
    tifffile.imwrite(place / "inverted.tif", labels(), photometric="miniswhite")
    tifffile.imwrite(place / "pages.tif", np.stack([labels()] * 2), photometric="minisblack")
    tifffile.imwrite(place / "32.tif", labels().astype(np.int32), photometric="minisblack")
    np.save(place / "masks.npy", labels())
    (place / "text.jpg").write_text("no picture")
    (place / "cut.jpg").write_bytes((place / "turned.jpg").read_bytes()[:700])
    no_map = r"is no label map \(%s\), wanted one page of whole numbers .*; save it as PNG"
    return [
        (["turned.jpg", "masks.png"], "masks.png has 60x40 pixels, its picture 40x60; give one of"),
        (["picture.png", "small.png"], "small.png has 60x20 pixels, its picture 60x40; give one"),
        (["picture.png", "fractions.tif"], no_map % "TIFF, mode F, .*"),
        (["picture.png", "colors.png"], no_map % "PNG, mode RGB, .*"),
        (["picture.png", "masks.jpg"], no_map % "JPEG, .*"),
        (["picture.png", "inverted.tif"], no_map % "TIFF, mode L, stored as L;I, .*"),
        (["picture.png", "pages.tif"], no_map % ".* pages: 2"),
        (["picture.png", "masks.npy"], "masks.npy cannot be read .* wanted a label map as PNG or"),
        (["picture.png", "."], "cannot be read .Is a directory., wanted a label map as PNG or"),
        (["picture.png"], "got no masks, and this folder has no generator .*; give a label map"),
        (["none.jpg", "masks.png"], "none.jpg cannot be read .No such file .*, wanted a picture"),
        (["text.jpg", "masks.png"], "text.jpg cannot be read .*, wanted a picture, such as JPEG"),
        (["cut.jpg", "masks.png"], "cut.jpg cannot be read .*, wanted a picture, such as JPEG"),
        (["fractions.tif", "masks.png"], "has pixels of 32 bits .mode F., wanted a picture of 8"),
        (["32.tif", "masks.png"], "has pixels of 32 bits .mode I., wanted a picture of 8 or 16"),
    ]


def test_what_cannot_be_named_ends_in_a_sentence(run, tmp_path):
    for arguments, sentence in refusals(tmp_path):
        with pytest.raises(run.Refused, match=sentence) as error:
            run.name(*(tmp_path / name for name in arguments))
        assert len(str(error.value).splitlines()) == 1


def test_the_command_line_names_says_and_helps(folder, tmp_path):
    refusals(tmp_path)

    def call(*arguments):
        return subprocess.run([sys.executable, folder / "run.py", *arguments], cwd=tmp_path,
                              capture_output=True, text=True,
                              env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})

    forms = ["run.py photo.jpg masks.png", "run.py photo.jpg\n"]
    done = call("--help")
    assert done.returncode == 0 and all(form in done.stdout for form in forms)
    done = call()
    assert done.returncode == 2 and all(form in done.stderr for form in forms)
    assert "Traceback" not in done.stderr
    done = call("none.jpg", "masks.png")
    assert done.returncode == 2 and done.stderr.startswith("none.jpg cannot be read")
    assert len(done.stderr.splitlines()) == 1
    done = call("picture.png", "masks.png")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        f"mask {n}" for n in range(4)]
