"""Records of all kinds."""

import io

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from pycocotools import mask as coco_mask

from maskclippp_jax.data import images, records

IMAGE = images.encode_png(np.zeros((6, 8, 3), np.uint8))


def stored(record: dict) -> dict:
    """The record as it is read back."""
    del record["visible"]
    return records.features().deserialize_example_np(records.serialize(record), decoders={
        k: tfds.decode.SkipDecoding() for k in ("image", "segments")})


def test_a_record_is_the_same_bytes_in_every_process():
    """Protobuf writes maps in the order of a hash that is another one in each."""
    record = records.semantic_record(IMAGE, "x", np.zeros((6, 8), np.uint8), [True])
    del record["visible"]
    data = records.serialize(record)
    names = (b"image_id", b"negative_classes", b"segments", b"table/area", b"table/source_id")
    places = [data.index(name) for name in names]
    assert places == sorted(places)


def test_overlapping_masks_come_back_whole(rng):
    masks = np.zeros((4, 6, 8), bool)
    masks[0, :5, :6] = True   # large
    masks[1, 1:3, 1:3] = True  # small, inside it
    masks[2, 2:6, 4:8] = True  # overlaps both of the others
    masks[3] = True            # a crowd over everything: it lies at the bottom
    rows = [records.Segment(c, True, c == 3, source_id=10 + c) for c in range(4)]
    codes = [coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in masks]
    record = stored(records.instance_record(IMAGE, "x", (6, 8), codes, rows))
    np.testing.assert_array_equal(records.decode_masks(record), masks)
    assert record["table"]["area"].tolist() == [30, 4, 16, 48]
    assert record["table"]["bbox"].tolist() == [
        [0, 0, 6, 5], [1, 1, 2, 2], [4, 2, 4, 4], [0, 0, 8, 6]]
    # The map shows the smaller one, and a code is kept only for what it does not show.
    np.testing.assert_array_equal(records.decode_segments(record["segments"]), np.where(
        masks[1], 2, np.where(masks[2], 3, np.where(masks[0], 1, 4))))
    assert [bool(code) for code in record["table"]["rle"]] == [True, False, False, True]


def test_a_picture_without_segments_has_an_empty_table():
    empty = np.zeros((6, 8), np.int32)
    for record in (records.semantic_record(IMAGE, "x", empty + 255, [True] * 3),
                   records.panoptic_record(IMAGE, "x", empty, []),
                   records.instance_record(IMAGE, "x", (6, 8), [], [])):
        record = stored(record)
        assert len(record["table"]["id"]) == 0 and record["table"]["bbox"].shape == (0, 4)
        assert records.decode_masks(record).shape == (0, 6, 8)
        assert (records.decode_classes(record) == -1).all()


def test_numbers_survive_in_full():
    """24-bit segment ids, and areas that 32-bit floats would round."""
    ids = np.array([[0, 2 ** 24 - 1] * 4] * 6)
    row = records.Segment(2, True, source_id=2 ** 24 - 1, area=2 ** 24 + 1.0, bbox=(0.1, 0, 1, 2))
    table = stored(records.panoptic_record(IMAGE, "x", ids, [row]))["table"]
    assert table["source_id"].tolist() == [2 ** 24 - 1]
    assert table["area"].tolist() == [2 ** 24 + 1] and table["bbox"].tolist() == [[0.1, 0, 1, 2]]


def test_what_a_label_map_may_not_hold_is_named():
    label = np.zeros((6, 8), np.uint8)
    for wrong in (3, 254):
        label[2, 2] = wrong
        with pytest.raises(ValueError, match=f"x: the label map holds {wrong}, wanted 0 ... 2"):
            records.semantic_record(IMAGE, "x", label, [True] * 3)
    with pytest.raises(ValueError, match="holds -1"):
        records.semantic_record(IMAGE, "x", label.astype(int) * 0 - 1, [True] * 3)
    thing = records.Segment(0, True, source_id=7)
    with pytest.raises(ValueError, match="segment id 7 is used twice"):
        records.panoptic_record(IMAGE, "x", label * 0, [thing, thing])
    with pytest.raises(ValueError, match="segment id 0 is given to a segment, but means nothing"):
        records.panoptic_record(IMAGE, "x", label * 0, [thing._replace(source_id=0)])
    with pytest.raises(ValueError, match="pixels of segment 254, but it is not described"):
        records.panoptic_record(IMAGE, "x", label, [thing])


def test_positions_equal_a_search_one_by_one(rng):
    known = rng.permutation(1000)[:17]
    values = rng.integers(-5, 1100, (20, 30))
    naive = [[list(known).index(v) if v in known else -1 for v in row] for row in values.tolist()]
    np.testing.assert_array_equal(records.positions(values, known), naive)


def test_pictures_are_stored_upright_in_rgb():
    def encoded(picture: Image.Image, **kw) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kw.pop("format", "JPEG"), quality=95, **kw)
        return buffer.getvalue()

    decode = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB
                                       | cv2.IMREAD_IGNORE_ORIENTATION)
    array = np.zeros((8, 16, 3), np.uint8)
    array[:, :8, 0] = 255
    picture = Image.fromarray(array)
    for kept in (encoded(picture), encoded(picture, format="PNG"), encoded(picture.convert("L"))):
        assert images.upright_rgb(kept, "x") == kept  # to the byte
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode(images.upright_rgb(encoded(picture, exif=exif), "x")).shape == (16, 8, 3)
    cmyk = decode(images.upright_rgb(encoded(picture.convert("CMYK")), "x"))
    assert cmyk[:, :6, 0].min() > 200 and cmyk[:, 10:, 0].max() < 60
    for other in ("TIFF", "BMP"):
        np.testing.assert_array_equal(
            decode(images.upright_rgb(encoded(picture, format=other), "x")), array)
    palette = encoded(picture.convert("P"), format="PNG")
    np.testing.assert_array_equal(decode(images.upright_rgb(palette, "x")), array)
    with pytest.raises(ValueError, match="x cannot be read as a picture"):
        images.upright_rgb(kept[:len(kept) // 2], "x")

