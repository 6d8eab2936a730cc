import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from maskclippp_jax.data import (
    coco_files,
    generator_input,
    images,
    label_maps,
    mask_files,
    picture_files,
    regions,
    transforms,
)
from maskclippp_jax.naming import inference


def write_grey_png(path, rows, bits):
    """A grey PNG of 1, 2 or 4 bits a pixel, which Pillow cannot write."""
    width = -(-len(rows[0]) * bits // 8)  # bytes
    line = lambda row: int("".join(f"{v:0{bits}b}" for v in row).ljust(8 * width, "0"), 2)
    lines = (b"\0" + line(row).to_bytes(width, "big") for row in rows)

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b""))


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
    np.testing.assert_array_equal(images.read_label_map(str(tmp_path / "p.png"), (2, 2)),
                                  label % 256)
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


@pytest.mark.parametrize("bits, row", [(1, [0, 1, 1]), (2, [0, 1, 3]), (4, [7, 15])])
def test_label_maps_of_few_bits_are_not_spread(tmp_path, bits, row):
    write_grey_png(tmp_path / "few.png", [row], bits)
    assert images.read_label_map(str(tmp_path / "few.png")).tolist() == [row]


def test_a_label_map_that_changes_numbers_is_refused(tmp_path):
    label = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    label.save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg is a JPEG file, which may change numbers"):
        images.read_label_map(str(tmp_path / "a.jpg"))
    label.save(tmp_path / "a.tif", compression="tiff_lzw")
    assert images.read_label_map(str(tmp_path / "a.tif"))[7, 7] == 63


@pytest.mark.parametrize("value, wanted", [(0, 0), (200, 1), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_the_same_however_dark_the_picture(tmp_path, value, wanted):
    cv2.imwrite(str(tmp_path / "16.png"), np.full((2, 3), value, np.uint16))
    assert (images.read_image(str(tmp_path / "16.png")) == wanted).all()


@pytest.mark.parametrize("pixels", [np.float32(0.5), np.int32(255), np.int32(65536)])
def test_pixels_of_32_bits_are_refused(tmp_path, pixels):
    picture = Image.fromarray(np.full((2, 2), pixels))
    picture.save(tmp_path / "f.tiff")
    with pytest.raises(ValueError, match="f.tiff has pixels of 32 bits"):
        images.read_image(str(tmp_path / "f.tiff"))
    with pytest.raises(ValueError, match="the picture has pixels of 32 bits"):
        images.from_pil(picture)


def tiff(array, **options) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, array, **options)
    return content.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_black_and_white_stay_where_a_file_stores_them_inverted(dtype):
    stored = np.array([[0, 1], [1, 0]], dtype) * np.iinfo(dtype).max
    data = tiff(stored, photometric="miniswhite")
    assert images.decode_image(data, "a")[..., 1].tolist() == [[255, 0], [0, 255]]
    assert images.decode_mask(data, "a").tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("colors", [[(0, 0, 0)] * 2, [(68, 1, 84), (253, 231, 36)]])
def test_a_palette_that_tells_black_from_nothing_leaves_the_numbers(colors):
    mask = np.arange(12).reshape(3, 4) % 2
    picture, content = Image.fromarray(mask.astype(np.uint8), "L").convert("P"), io.BytesIO()
    picture.putdata(mask.ravel().tolist())
    picture.putpalette(np.ravel(colors).tolist())
    picture.save(content, "PNG")
    np.testing.assert_array_equal(images.decode_mask(content.getvalue(), "m.png"), mask == 1)


@pytest.mark.parametrize("inside, outside", [((255, 255, 255), (0, 0, 0)), ((0, 0, 9), (0, 0, 0))])
def test_a_mask_with_a_palette_is_where_its_colours_are_not_black(inside, outside):
    for colors, stored in (((inside, outside), 0), ((outside, inside), 1)):
        picture = Image.new("P", (8, 6), 1 - stored)
        picture.putpalette(np.ravel(colors).tolist())
        picture.paste(stored, (2, 1, 6, 3))
        content = io.BytesIO()
        picture.save(content, "PNG")
        found = images.decode_mask(content.getvalue(), "a")
        assert found.sum() == 8 and found[1:3, 2:6].all()


def test_one_page_is_read_of_label_maps_and_masks_and_several_are_refused(tmp_path):
    pages = np.stack([np.eye(4, dtype=np.uint8)] * 3)
    file = tmp_path / "a.tif"
    file.write_bytes(tiff(pages, photometric="minisblack"))
    for read in (images.decode_label_map, images.decode_segments, images.decode_mask):
        with pytest.raises(ValueError, match="a.tif holds 3 pages, wanted one mask or label map"):
            read(file.read_bytes(), "a.tif")
    with pytest.raises(ValueError, match="holds 3 pages"):
        images.check_label_map(str(file), (4, 4))
    assert images.read_image(str(file)).shape == (4, 4, 3)  # of a picture, the first
    with tifffile.TiffWriter(file) as writer:  # with a smaller copy, as maps have
        writer.write(pages[0], photometric="minisblack")
        writer.write(pages[0, ::2, ::2], photometric="minisblack", subfiletype=1)
    images.check_label_map(str(file), (4, 4))
    assert images.read_label_map(str(file)).tolist() == pages[0].tolist()


@pytest.mark.parametrize("form", ["TIFF", "PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_and_turned_maps_are_those_of_the_upright_picture(tmp_path, form, orientation):
    labels = np.zeros((16, 24), np.uint8)
    labels[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{form.lower()}"
    Image.fromarray(labels).save(file, form, exif=exif)
    data = file.read_bytes()
    shown = images.decode_image(data, "a")[..., 0]
    assert images.size_of(data) == (16, 24)
    assert images.shown_size(data) == images.header_size(str(file)) == shown.shape
    np.testing.assert_array_equal(images.turned(labels, data), (shown > 127) * np.uint8(255))
    if form == "TIFF":  # a label map of this form is turned by Pillow
        images.check_label_map(str(file), images.read_label_map(str(file)).shape)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the damage
@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "webp", "bmp"])
def test_damaged_files_give_a_picture_or_one_sentence(tmp_path, rng, form):
    path = tmp_path / f"damaged.{form}"
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = {"exif": exif} if form in ("png", "jpeg", "webp") else {}
    Image.fromarray(rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)).save(path, **extra)
    whole = path.read_bytes()
    for _ in range(40):
        data = bytearray(whole[:rng.integers(0, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.integers(0, 5) if data else 0):
            data[rng.integers(0, len(data))] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            assert images.read_image(str(path)).shape[2] == 3
        except ValueError as error:
            assert str(path) in str(error)


def header_of(width: int, height: int) -> bytes:
    """A PNG that asks for so many pixels and has none."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
        + chunk(b"IEND", b""))


@pytest.mark.parametrize("width, height", [(9500, 9500), (30000, 30000), (60000, 2000)])
def test_a_picture_is_too_large_by_its_header(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(header_of(width, height))
    for read in (images.read_image, images.header_size, images.read_label_map):
        with pytest.raises(ValueError, match="bomb.png has .* pixels.*--max_pixels"):
            read(str(path))
    with pytest.raises(ValueError, match="--max_pixels"):
        coco_files.read_ids(path)


def test_the_limit_can_be_raised_and_lowered(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="has 12x9 pixels, more than the 100"):
        images.check_shape(9, 12, "x")
    assert images.limit_pixels(108) == 108
    images.check_shape(9, 12, "x")


def test_a_picture_that_is_too_long_for_its_shorter_side_is_refused(tmp_path):
    """Its shorter side is brought to that of the network, the longer one grows with it."""
    path = str(tmp_path / "line.png")
    Image.new("RGB", (5000, 1)).save(path)
    with pytest.raises(ValueError, match="line.png has 5000x1 pixels, wanted a longer side"):
        picture_files.check(picture_files.find([path]), skip_broken=False)
    with pytest.raises(ValueError, match="has 5000x1 pixels"):
        inference.network_sizes(np.array([[1, 5000]]), 336, 0, 14)
    with pytest.raises(ValueError, match="has 5000x1 pixels"):
        generator_input.windows(np.zeros((1, 5000, 3), np.uint8), 512)
    assert transforms.shortest_edge(1, 20000, 640, 4096) == (1, 4096)
    assert transforms.fitting_size(1, 20000, 1.0, (640, 640)) == (1, 640)


def test_a_photograph_is_no_label_map(tmp_path):
    path = str(tmp_path / "photo.npy")
    np.save(path, np.arange(5000).reshape(50, 100))
    with pytest.raises(ValueError, match="looks like a photograph: it holds 5000 different values"):
        label_maps.masks_in(mask_files.read(path, (4, 4)), None, path)


def test_superpixels_hold_together_on_noise(rng):
    noise = rng.integers(0, 256, (200, 300, 3)).astype(np.uint8)
    assert 12 <= regions.superpixels(noise).max() <= 36


def test_superpixels_of_a_large_picture_have_its_size():
    image = np.zeros((600, 1400, 3), np.uint8)
    image[:, 700:] = 255
    found = regions.superpixels(image, num_regions=6)
    assert found.shape == (600, 1400)
    assert not set(np.unique(found[:, :690])) & set(np.unique(found[:, 710:]))


@pytest.mark.parametrize("cut", [regions.superpixels, regions.grid])
def test_no_region_at_all_is_refused(cut):
    with pytest.raises(ValueError, match="=0, wanted at least 1"):
        cut(np.zeros((10, 10, 3), np.uint8), 0)


@pytest.mark.parametrize("read", [images.size_of, images.shown_size])
def test_sizes_of_damaged_pictures_are_told_in_a_sentence(read):
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(content, "JPEG", exif=exif)
    whole = content.getvalue()
    assert images.size_of(whole) == (6, 8) and images.shown_size(whole) == (8, 6)
    for end in range(0, 200, 7):  # within its header
        with pytest.raises(ValueError, match="a.jpg cannot be read as a picture"):
            read(whole[:end], "a.jpg")


def test_heic_is_read_with_its_plug_in_and_named_without(tmp_path, monkeypatch):
    file = tmp_path / "a.heic"
    file.write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    monkeypatch.setattr(images, "_reads_heif", lambda: False)
    with pytest.raises(ValueError, match="a.heic is a HEIC picture; pip install pillow-heif"):
        images.header_size(str(file))
    monkeypatch.setattr(images, "_reads_heif", lambda: True)
    with pytest.raises(ValueError, match="cannot be read as a picture"):  # it has no pixels
        images.header_size(str(file))
    pillow_heif = pytest.importorskip("pillow_heif")
    monkeypatch.undo()
    picture = Image.fromarray(np.full((40, 60, 3), 90, np.uint8))
    pillow_heif.from_pillow(picture).save(file)
    assert ".heic" in images.endings() and images.header_size(str(file)) == (40, 60)
    assert abs(images.read_image(str(file)).astype(int) - 90).max() < 4
