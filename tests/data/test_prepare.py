"""From official archives to records."""

import hashlib
import io
import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from maskclippp_jax.data import records, scenes
from maskclippp_jax.data.prepare import ade20k
from maskclippp_jax.vocabulary import Vocabulary

ADE = pathlib.Path(__file__).parents[1] / "fixtures" / "ade20k_2016"


def build(tmp_path, raw, **kw):
    splits, make_record = ade20k.read(str(raw))
    return records.build(str(tmp_path), "ade20k_150", "ade20k_150", splits, make_record,
                         source=str(raw), description="test", **kw)


def label_of(record) -> np.ndarray:
    segments = records.decode_segments(record["segments"])
    table = record["table"]
    lut = np.full(segments.max() + 1, 255)
    lut[table["id"]] = table["class_id"]
    return lut[segments]


@pytest.mark.parametrize("raw", ["archives", "extracted"])
def test_ade20k_equals_the_expected_maps(tmp_path, raw):
    summary = build(tmp_path, ADE / raw)
    expected = json.loads((ADE / "expected.json").read_text())
    assert {k: v.images for k, v in summary.items()} == {"train": 2, "validation": 2}
    for split, folder in (("train", "training"), ("validation", "validation")):
        source = records.open_source(str(tmp_path), "ade20k_150", split)
        assert source.vocabulary == "ade20k_150"
        found = {bytes(r["image_id"]).decode(): r for r in source.records}
        wanted = [e for e in expected["examples"] if e["split"] == folder]
        assert set(found) == {e["image"] for e in wanted}
        for example in wanted:
            record = found[example["image"]]
            label = label_of(record)
            digest = hashlib.sha1(json.dumps([*label.shape]).encode()
                                  + label.astype("<i4").tobytes()).hexdigest()
            assert digest == example["semantic"]["sha1_int32"]
            rgb = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
            np.testing.assert_allclose(rgb.mean((0, 1)), example["mean_rgb"], atol=1.5)
            things = [Vocabulary.shipped("ade20k_150").is_thing[c]
                      for c in record["table"]["class_id"]]
            assert list(record["table"]["is_thing"]) == things


def test_an_ordinary_tfds_reader_reads_it_decoded(tmp_path):
    build(tmp_path, ADE / "archives")
    builder = tfds.builder_from_directory(tmp_path / "ade20k_150" / "1.0.0")
    example = builder.as_data_source("train")[0]
    assert example["image"].dtype == np.uint8 and example["image"].shape[-1] == 3
    assert example["segments"].dtype == np.uint16
    assert example["segments"].shape[:2] == example["image"].shape[:2]


def test_a_finished_data_set_is_not_overwritten_and_a_stopped_build_goes_on(tmp_path):
    build(tmp_path, ADE / "archives")
    folder = tmp_path / "ade20k_150" / "1.0.0"
    with pytest.raises(FileExistsError, match="--overwrite"):
        build(tmp_path, ADE / "archives")
    before = sorted(p.name for p in folder.iterdir())
    build(tmp_path, ADE / "archives", overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == before
    # As a killed build leaves it: no dataset_info.json, one shard half written.
    (folder / "dataset_info.json").unlink()
    shard = next(folder.glob("*train*record*"))
    (folder / f".tmp-{shard.name}").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="make it with: python -m maskclippp_jax.prepare"):
        records.open_source(str(tmp_path), "ade20k_150", "train")
    build(tmp_path, ADE / "archives")
    assert not list(folder.glob(".tmp-*"))
    assert len(records.open_source(str(tmp_path), "ade20k_150", "train").records) == 2


def test_a_picture_without_label_map_is_named(tmp_path):
    shutil.copytree(ADE / "extracted", tmp_path / "raw")
    (tmp_path / "raw/ADEChallengeData2016/annotations/training/ADE_train_00000002.png").unlink()
    with pytest.raises(FileNotFoundError, match="ADE_train_00000002"):
        ade20k.read(str(tmp_path / "raw"))


def test_a_missing_raw_folder_says_what_it_should_hold(tmp_path):
    with pytest.raises(FileNotFoundError, match="ADEChallengeData2016.zip"):
        ade20k.read(str(tmp_path))


def encoded(picture: Image.Image, **kw) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, **kw)
    return buffer.getvalue()


def test_pictures_are_stored_upright_in_rgb():
    array = np.zeros((8, 16, 3), np.uint8)
    array[:, :8, 0] = 255
    plain = encoded(Image.fromarray(array))
    assert ade20k.rgb_bytes(plain, "x") == plain  # kept to the byte
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    decode = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB
                                       | cv2.IMREAD_IGNORE_ORIENTATION)
    assert decode(ade20k.rgb_bytes(
        encoded(Image.fromarray(array), exif=exif), "x")).shape == (16, 8, 3)
    cmyk = decode(ade20k.rgb_bytes(encoded(Image.fromarray(array).convert("CMYK")), "x"))
    assert cmyk[:, :6, 0].min() > 200 and cmyk[:, 10:, 0].max() < 60
    with pytest.raises(ValueError, match="x cannot be decoded"):
        ade20k.rgb_bytes(plain[:len(plain) // 2], "x")


def test_scenes_are_deterministic_exact_and_leave_the_unseen_out():
    draw = lambda seed, **kw: scenes.draw_scene(np.random.default_rng(seed), **kw)
    for seed in range(30):
        a, b = draw(seed), draw(seed)
        np.testing.assert_array_equal(a.image, b.image)
        present, areas = np.unique(a.label, return_counts=True)
        assert present.min() >= 0 and areas.min() >= 30
        assert set(a.names) == {scenes.CLASSES[i] for i in present}
        assert all(name in a.caption for name in a.names)
    seen = [c for c in scenes.CLASSES if c not in scenes.UNSEEN]
    for seed in range(30):
        assert not set(draw(seed, classes=seen).names) & scenes.UNSEEN


def test_every_part_of_an_unseen_class_is_seen_elsewhere():
    seen = [c.split() for c in scenes.CLASSES if c not in scenes.UNSEEN]
    for name in scenes.UNSEEN:
        first, second = name.split()
        assert any(first == a for a, _ in seen) and any(second == b for _, b in seen)
    assert Vocabulary.shipped("scenes").classes == tuple((c,) for c in scenes.CLASSES)
    assert Vocabulary.shipped("scenes_seen").classes == tuple(
        (c,) for c in scenes.CLASSES if c not in scenes.UNSEEN)
