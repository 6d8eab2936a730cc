import cv2
import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.data import images, regions
from maskclippp_jax import visualize


def test_every_kind_of_picture_becomes_rgb(tmp_path, rng):
    rgb = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    picture = Image.fromarray(rgb)
    read = lambda name: images.read_image(str(tmp_path / name))
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read("a.png"), rgb)
    picture.convert("L").save(tmp_path / "grey.png")
    assert read("grey.png").shape == (9, 12, 3)
    cv2.imwrite(str(tmp_path / "16.png"), rgb[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read("16.png")[..., 1], rgb[..., 0])
    Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert read("cmyk.jpg")[..., 0].min() > 200 and read("cmyk.jpg")[..., 1].max() < 60
    Image.new("RGBA", (5, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read("clear.png") == 255).all()
    picture.convert("P").save(tmp_path / "palette.png")
    assert read("palette.png").shape == (9, 12, 3)
    Image.new("RGB", (1, 1), (7, 8, 9)).save(tmp_path / "one.png")
    assert read("one.png").tolist() == [[[7, 8, 9]]]
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read("turned.jpg").shape == (12, 9, 3)


def test_what_is_no_picture_is_named(tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[:len(data) // 2])
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("cut.jpg", "text.jpg"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture"):
            images.read_image(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no file"):
        images.read_image(str(tmp_path / "none.jpg"))


def test_label_maps_keep_their_numbers(tmp_path):
    label = np.array([[0, 1], [2, 300]], np.uint16)
    cv2.imwrite(str(tmp_path / "16.png"), label)
    np.testing.assert_array_equal(images.read_label_map(str(tmp_path / "16.png"), (2, 2)), label)
    palette = Image.fromarray((label % 256).astype(np.uint8), "L").convert("P")
    palette.putpalette([9] * 768)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(images.read_label_map(str(tmp_path / "p.png"), (2, 2)), label % 256)
    Image.fromarray(label > 0).save(tmp_path / "1.png")
    np.testing.assert_array_equal(images.read_label_map(str(tmp_path / "1.png"), (2, 2)), label > 0)
    with pytest.raises(ValueError, match="has 2x2 pixels, its picture 4x3"):
        images.read_label_map(str(tmp_path / "16.png"), (3, 4))
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="colour picture"):
        images.read_label_map(str(tmp_path / "rgb.png"), (2, 2))


def test_regions_cover_the_picture_and_count_from_one(rng):
    for shape in ((60, 80), (1, 1), (3, 50)):
        image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
        for cut in (regions.superpixels, regions.grid):
            found = np.unique(cut(image))
            assert found.tolist() == list(range(1, len(found) + 1))
    assert regions.grid(np.zeros((60, 80, 3), np.uint8)).max() == 16


@pytest.mark.parametrize("shape", [(1, 1), (40, 300), (3000, 1200)])
def test_overlays_work_at_any_size(shape, rng):
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    labels = (np.indices(shape).sum(0) // 10 % 60) - 1
    names = [f"class {i} with a name that goes on and on" for i in range(60)]
    picture = visualize.draw_overlay(image, labels, names, {0: 0.5})
    assert picture.height >= min(shape[0], 1024) and picture.width <= 1024 + 600


def test_colours_of_the_first_classes_differ():
    colours = {visualize.class_color(i) for i in range(100)}
    assert len(colours) == 100
