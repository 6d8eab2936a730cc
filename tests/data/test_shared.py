"""Prepared data sets that come from somebody else: nothing of them is executed, damage is named."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from maskclippp_jax.data import build, images, records
from maskclippp_jax.vocabulary import Vocabulary


def record_of(number: int) -> dict:
    picture = np.random.default_rng(number).integers(0, 256, (90, 90, 3), np.uint8)
    return records.semantic_record(images.encode_png(picture), str(number),
                                   np.eye(90, dtype=np.uint8), [True, True])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    make(place)
    return place


def make(place) -> pathlib.Path:
    """A data set of four pictures; returns its folder."""
    build.build(str(place), "mine", Vocabulary.from_string("dark;bright"), "semantic",
                build.Reading({"train": list(range(4))}, lambda number: [record_of(number)]),
                description="test", own_names=True)
    return place / "mine" / records.VERSION


@pytest.fixture
def place(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read(place) -> int:
    rows = records.open_source(str(place), "mine", "train").records
    return sum(records.id_of(rows[i]) == str(i) for i in range(len(rows)))


def change(place, name, change_):
    [file] = (place / "mine" / records.VERSION).glob(name)
    data = file.read_bytes()
    file.write_bytes(change_(data))
    return file


RECORDS = "*.array_record*"
BEGIN = 90 * 90  # where the pictures are


@pytest.mark.parametrize("name, change_", [
    (RECORDS, lambda data: b""), (RECORDS, lambda data: data[:len(data) // 2]),
    (RECORDS, lambda data: data[:70000] + bytes(20) + data[70020:]),
    (RECORDS, lambda data: data[:-65536] + bytes(65536)),
    (RECORDS, lambda data: data[:BEGIN] + bytes([data[BEGIN] ^ 1]) + data[BEGIN + 1:]),
    ("dataset_info.json", lambda data: data[:99]), ("dataset_info.json", lambda data: b"[]"),
    ("metadata.json", lambda data: b"{}"), ("metadata.json", lambda data: b"[1]"),
    ("features.json", lambda data: b"{}"), ("features.json", lambda data: data[:99])])
def test_damage_ends_in_a_sentence_that_names_file_and_data_set(place, name, change_):
    assert read(place) == 4
    file = change(place, name, change_)
    with pytest.raises(ValueError, match="the data set mine.* is damaged: ") as error:
        read(place)
    assert file.name in str(error.value) or "dataset_info" in name
    assert "prepare it again" in str(error.value)


def test_a_record_file_that_is_gone_is_named(place):
    change(place, RECORDS, lambda data: data).unlink()
    with pytest.raises(ValueError, match="mine is damaged: .*array_record.* is not there"):
        read(place)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_no_class_is_imported_that_prepare_does_not_write(place, monkeypatch, key):
    (place / "hostile.py").write_text(f"open({str(place / 'hit')!r}, 'w')\nclass Feature: pass\n")
    monkeypatch.syspath_prepend(place)

    def name_it(data):
        content = json.loads(data)
        image = content["featuresDict"]["features"]["image"]
        del image["pythonClassName"]
        image[key] = "hostile.Feature"
        return json.dumps(content).encode()

    change(place, "features.json", name_it)
    with pytest.raises(ValueError, match=r"features.json names hostile.Feature, wanted"):
        read(place)
    assert not os.path.exists(place / "hit")


def test_record_files_elsewhere_are_not_opened(place):
    change(place, "dataset_info.json", lambda data: data.replace(b"{DATASET}-", b"../{DATASET}-"))
    with pytest.raises(ValueError, match="names the file .*which is not in"):
        read(place)
