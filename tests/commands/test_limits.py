"""Inputs larger than what is worked on: one sentence with what to do, and little memory."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import maskclippp_jax as mc
from maskclippp_jax.data import build, images, label_maps, records
from maskclippp_jax.vocabulary import Vocabulary
from tests import whole_runs

SIDE = 30_000
# Runs the command line and says how many KiB of memory it took at most.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-m", "maskclippp_jax", *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A configuration, a large JPEG of which there is little more than the header, its label map,
    a small picture, and names files of many classes."""
    folder = tmp_path_factory.mktemp("limits")
    (folder / "tiny.py").write_text(whole_runs.CONFIG)
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG")
    large = bytearray(content.getvalue())
    sides = large.index(b"\xff\xc0") + 5
    large[sides:sides + 4] = struct.pack(">HH", SIDE, SIDE)
    for name, data in (("large/a.jpg", large), ("small/a.jpg", content.getvalue())):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(data)
    (folder / "labels").mkdir()
    (folder / "labels/a.png").write_bytes(images.encode_png(np.zeros((64, 64), np.uint8)))
    for count in (17_000, 70_000):
        (folder / f"{count}.txt").write_text("".join(f"word{i}\n" for i in range(count)))
    return folder


def refused(place, *words) -> tuple[str, float]:
    """The sentence of a command line that is refused and writes nothing, and GiB of memory."""
    # Python keeps a compiled tiny.py beside it.
    files = lambda: sorted(x for x in place.rglob("*") if "__pycache__" not in x.parts)
    before = files()
    done = subprocess.run([sys.executable, "-c", MEASURED, *words], cwd=place, capture_output=True,
                          text=True, env=whole_runs.environment())
    assert done.returncode == 2, done.stderr
    assert files() == before
    *_, sentence = done.stderr.splitlines()
    assert "Traceback" not in done.stderr and sentence.startswith("error: ")
    return sentence, int(done.stdout.split()[-1]) / 2**20


PREDICT = ("predict", "--checkpoint=untuned", "--config=tiny.py", "--regions=grid")


def test_a_picture_of_30000_pixels_a_side_is_refused_by_its_header(place):
    words = *PREDICT, "large", "--classes=red"
    sentence, memory = refused(place, *words)
    assert f"{SIDE**2} pixels, more than the 89478485" in sentence and "--max_pixels" in sentence
    assert memory < 1
    sentence, memory = refused(place, *words, f"--max_pixels={SIDE**2}")
    assert f"{SIDE}x{SIDE} pixels" in sentence and "--tiles=1024" in sentence
    assert memory < 1
    sentence, memory = refused(place, "prepare", "folder", "--images=large", "--labels=labels",
                               "--names=17000.txt", "--name=large", "--data_dir=large")
    assert "1 of 1 picture cannot be used" in sentence and memory < 1


def test_a_picture_that_is_given_as_an_array_is_refused_too(place, monkeypatch):
    monkeypatch.setattr(images, "_WHOLE", 64 * 63)
    model = mc.load("untuned", f"{place}/tiny.py", generator="quickstart", keep_embeddings=False)
    image = np.zeros((64, 64, 3), np.uint8)
    for masks in (np.zeros((64, 64), int), model.generator):
        with pytest.raises(ValueError, match="64x64 pixels, more than the 4032 .*tiles=1024"):
            model.name(image, masks, ["red"])
    assert len(model.name(image, np.zeros((64, 64), int), ["red"], tiles=48, overlap=8)) == 1


def test_masks_that_would_not_fit_into_the_memory_are_not_made(place, monkeypatch):
    model = mc.load("untuned", f"{place}/tiny.py", keep_embeddings=False)
    image, masks = np.zeros((64, 64, 3), np.uint8), np.ones((3, 64, 64), bool)
    for given, each in ((masks, 4), (np.arange(64).repeat(64).reshape(64, 64) % 3, 1)):
        monkeypatch.setattr("maskclippp_jax.naming.result._LARGEST", 3 * 64 * 64 * each)
        assert model.name(image, given, ["red"]).masks.shape == (3, 64, 64)
        monkeypatch.setattr("maskclippp_jax.naming.result._LARGEST", 3 * 64 * 64 * each - 1)
        with pytest.raises(ValueError, match="the 3 masks of a picture of 64x64 .*--tiles=1024"):
            model.name(image, given, ["red"]).masks


def test_more_classes_than_files_of_label_maps_hold_are_refused(place):
    sentence, _ = refused(place, *PREDICT, "small", "--names_file=70000.txt")
    assert "70000.txt has 70000 classes" in sentence and "65535" in sentence
    sentence, _ = refused(place, "prepare", "folder", "--images=small", "--labels=labels",
                          "--names=70000.txt", "--name=many", "--data_dir=data")
    assert "number 65536, but label maps hold 0 ... 65535" in sentence
    with pytest.raises(ValueError, match="holds 65535, wanted at most 65534"):
        label_maps.stored(np.array([[-1, 65535]]))
    np.testing.assert_array_equal(label_maps.stored(np.array([[-1, 65534]])), [[65535, 65534]])


def test_more_segments_than_a_record_numbers_are_refused():
    rows = [records.Segment(0, True)._replace(source_id=i + 1) for i in range(2**16)]
    with pytest.raises(ValueError, match="65536 segments, and a record holds 65535"):
        records.panoptic_record(b"", "a", np.arange(2**16).reshape(256, 256), rows)


def test_more_classes_than_can_be_measured_are_refused(place):
    vocabulary = Vocabulary.from_file(str(place / "17000.txt"))
    build.build(str(place / "data"), "many", vocabulary, "semantic",
                build.Reading({"validation": [0], "train": [0]}, _record), description="test",
                own_names=True)
    sentence, _ = refused(
        place, "evaluate", "--config=tiny.py", "--config.data_dir=data", "--workdir=out",
        "--config.eval.dataset=many", "--checkpoint=untuned")
    assert "17000 classes, wanted at most 16383" in sentence


def _record(number):
    return [records.semantic_record(images.encode_png(np.zeros((64, 64, 3), np.uint8)), "a",
                                    np.full((64, 64), 16_999), [True] * 17_000)]
