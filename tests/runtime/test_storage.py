"""Files in buckets, on an emulator: nothing half written, nothing out of date, one copy."""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from maskclippp_jax.data import bundle_writer, coco_files, images
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.evaluation import augmented, predictions
from maskclippp_jax.runs import checkpoint
from maskclippp_jax.runtime import storage
from maskclippp_jax.vocabulary import Vocabulary
from maskclippp_jax.weights import files
from tests import buckets, whole_runs


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    with buckets.emulated(tmp_path_factory.mktemp("home")) as file_system:
        yield file_system


@pytest.fixture
def bucket(emulator, tmp_path, monkeypatch):
    """A folder of the bucket, for one test alone, and an empty cache."""
    monkeypatch.setattr(storage, "CACHE", tmp_path / "cache")
    storage.check.cache_clear()
    return storage.path(f"gs://{buckets.NAME}/{tmp_path.name}")


def copies(monkeypatch):
    """The names of all that is copied from now on."""
    names, get = [], storage._file_system().get
    monkeypatch.setattr(storage._file_system(), "get",
                        lambda sources, places: (names.extend(sources), get(sources, places)))
    return names


def test_a_small_file_is_written_whole_or_not_at_all(bucket, tmp_path, monkeypatch):
    for folder in (bucket, tmp_path):
        storage.write(folder / "a.txt", "früh")
        storage.write(str(folder / "a.txt"), b"later")
        assert (folder / "a.txt").read_bytes() == b"later"

    def full(self, target):
        raise OSError("No space left")

    monkeypatch.setattr(type(tmp_path), "replace", full)
    monkeypatch.setattr(type(storage.path(tmp_path)), "replace", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write(tmp_path / "a.txt", "half")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"later"]


def test_local_copies_are_made_once_and_anew_when_the_bucket_holds_something_else(
        bucket, monkeypatch):
    for name in ("set/1.0/a.txt", "set/1.0/more/b.txt", "set/1.0 old/c.txt", "set/1.0"):
        storage.write(bucket / name, name)
    copied = copies(monkeypatch)
    folder = pathlib.Path(storage.local_copy(bucket / "set/1.0/"))
    assert folder.name == "1.0"
    assert {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.txt")} == {
        "a.txt": "set/1.0/a.txt", "more/b.txt": "set/1.0/more/b.txt"}
    file = bucket / "set/1.0/a.txt"
    one = storage.local_copy(file)
    assert storage.local_copy(str(file)) == one and pathlib.Path(one).name == "a.txt"
    assert len(copied) == 3
    storage.write(file, "SET/1.0/A.TXT")  # as long as before
    assert pathlib.Path(storage.local_copy(file)).read_text() == "SET/1.0/A.TXT"
    assert (pathlib.Path(storage.local_copy(bucket / "set/1.0")) / "a.txt").read_text() == (
        "SET/1.0/A.TXT")
    assert storage.local_copy("here/a.txt") == "here/a.txt"
    with pytest.raises(FileNotFoundError, match="no file or folder gs://.*set/2.0"):
        storage.local_copy(bucket / "set/2.0")


def test_of_several_that_want_a_copy_one_makes_it(bucket, monkeypatch):
    for number in range(4):
        storage.write(bucket / f"set/{number}", bytes(100 * number))
    copied = copies(monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = set(pool.map(storage.local_copy, [bucket / "set"] * 4))
    assert len(found) == 1 and len(copied) == 4
    assert [p.stat().st_size for p in sorted(pathlib.Path(*found).iterdir())] == [0, 100, 200, 300]


def test_a_copy_that_was_cut_off_is_made_again(bucket, monkeypatch):
    storage.write(bucket / "set/a", "all of it")
    real = storage._file_system().get

    def killed(sources, places):
        pathlib.Path(places[0]).write_text("all")
        pathlib.Path(places[0]).with_name("junk").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage._file_system(), "get", killed)
    with pytest.raises(KeyboardInterrupt):
        storage.local_copy(bucket / "set")
    monkeypatch.setattr(storage._file_system(), "get", real)
    folder = pathlib.Path(storage.local_copy(bucket / "set"))
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"a": "all of it"}


def test_what_changes_while_it_is_copied_is_refused(bucket, monkeypatch):
    storage.write(bucket / "set/a", "old")
    real = storage._file_system().get

    def get(sources, places):
        real(sources, places)
        storage.write(bucket / "set/a", "new")

    monkeypatch.setattr(storage._file_system(), "get", get)
    with pytest.raises(OSError, match="changed while it was copied"):
        storage.local_copy(bucket / "set")
    monkeypatch.setattr(storage._file_system(), "get", real)
    assert (pathlib.Path(storage.local_copy(bucket / "set")) / "a").read_text() == "new"


def test_files_that_grow_are_sent_whole_and_taken_up_again(bucket, tmp_path, monkeypatch):
    storage.write(bucket / "log", "1\n")
    outbox = storage.Outbox(bucket, taken_up=("log", "absent"))
    assert [p.name for p in outbox.folder.iterdir()] == ["log"]
    with (outbox.folder / "log").open("a") as log:
        log.write("2\n")
    (outbox.folder / "board").mkdir()
    (outbox.folder / "board/events").write_text("e")
    assert (bucket / "log").read_text() == "1\n"
    sent, put = [], storage._file_system().put
    monkeypatch.setattr(storage._file_system(), "put",
                        lambda files, targets: (sent.append(targets), put(files, targets)))
    outbox.send()
    assert (bucket / "log").read_text() == "1\n2\n" and (bucket / "board/events").read_text() == "e"
    outbox.send()
    (outbox.folder / "board/events").write_text("ee")
    outbox.send()
    assert [len(targets) for targets in sent] == [2, 1]
    assert storage.Outbox(tmp_path).folder == tmp_path  # a folder needs no sending


@pytest.mark.parametrize("local", [True, False])
def test_a_folder_moves_into_the_place_of_another(bucket, tmp_path, local):
    place = storage.path(tmp_path / "x") if local else bucket
    for name in ("from/1/a", "from/1/b/c", "from/11/d", "to/1/old"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write(place / name, name)
    storage.move(place / "from/1", place / "to/1")
    storage.move(place / "from/11", place / "new/11")
    assert (place / "to/1/a").read_text() == "from/1/a"
    assert (place / "to/1/b/c").read_text() == "from/1/b/c"
    assert (place / "new/11/d").read_text() == "from/11/d"
    for name in ("from/1", "from/11", "to/1/old"):
        assert not (place / name).exists()


@pytest.mark.parametrize("name, write, words", [
    ("gs://no-such/x", False, "no bucket no-such, which gs://no-such/x names; make it"),
    ("gs://bucket/a[1]", False, r"gs://bucket/a\[1\] has a \[ in its name"),
    ("gs://bucket", True, "wanted a folder of a bucket"), ("gs://", False, "wanted a folder"),
    ("s3://bucket/x", False, "s3://bucket/x is an address"),
    ("gs://bucket/x", True, "may not be written: the account lacks storage.objects.create, "
     "storage.objects.delete; give it the role Storage Object Admin")])
def test_what_cannot_be_used_is_refused_with_a_sentence(bucket, monkeypatch, name, write, words):
    if "role" in words:
        buckets.allow(monkeypatch, "storage.objects.get", "storage.objects.list")
        storage.check(name)
    with pytest.raises(ValueError, match=words):
        storage.check(name, write=write)


def test_without_the_package_a_sentence_says_what_to_install():
    program = ("import sys; sys.modules['gcsfs'] = None; "
               "from maskclippp_jax.runtime import storage; "
               "storage.path('x'); storage.path('gs://bucket/x')")
    done = subprocess.run([sys.executable, "-c", program], cwd=whole_runs.ROOT, capture_output=True,
                          text=True)
    assert done.stderr.splitlines()[-1] == (
        "ValueError: gs:// needs the package gcsfs; pip install 'etils[epath-gcs]', or name a "
        "local folder")


def test_a_checkpoint_in_a_bucket_falls_back_over_damaged_and_half_saved_ones(bucket, emulator):
    states = {step: dict(step=jnp.int32(step), a=jnp.arange(300.0) + step) for step in (1, 2)}
    with checkpoint.open_checkpoints(bucket) as checkpoints:
        for step, state in states.items():
            checkpoint.save(checkpoints, state, step)
    names = emulator.find(f"{bucket}/checkpoints/2")
    largest = max(names, key=emulator.size)
    # One more that is half there: all but what says that it is whole.
    for name in names:
        if not name.endswith("checkpoints/2/commit_success.txt"):
            emulator.cp_file(name, name.replace("/checkpoints/2/", "/checkpoints/3/"))
    assert int(checkpoint.restore(bucket, states[1])["step"]) == 2
    assert not (bucket / "checkpoints/3").exists()
    content = bytearray(emulator.cat(largest))
    content[len(content) // 2] ^= 16
    emulator.pipe(largest, bytes(content))
    found = checkpoint.restore(bucket, states[1])
    np.testing.assert_array_equal(found["a"], states[1]["a"])
    assert (bucket / "damaged/2").exists() and not (bucket / "checkpoints/2").exists()
    emulator.rm(max(emulator.find(f"{bucket}/checkpoints/1"), key=emulator.size))
    with pytest.raises(ValueError, match="no checkpoint in .* can be read .step 1"):
        checkpoint.restore(bucket, states[1])


def test_a_run_whose_first_checkpoint_in_a_bucket_is_half_saved_starts_anew(bucket, emulator):
    state = dict(step=jnp.int32(4), a=jnp.arange(300.0))
    for _ in range(10):
        for name in ("_CHECKPOINT_METADATA", "state/d/1", "state/commit_success.txt"):
            emulator.pipe_file(f"{bucket}/checkpoints/4/{name}", b"some bytes")
        assert checkpoint.restore(bucket, state) is None
        assert not emulator.find(f"{bucket}/checkpoints")
    with checkpoint.open_checkpoints(bucket) as checkpoints:
        checkpoint.save(checkpoints, state, 4)
    assert int(checkpoint.restore(bucket, state)["step"]) == 4


def test_weights_are_read_from_a_bucket(bucket, tmp_path):
    arrays = {name: np.arange(6, dtype=np.float32) + i for i, name in enumerate("ab")}
    for name in arrays:
        save_file({name: arrays[name]}, tmp_path / f"{name}.safetensors")
        storage.write(bucket / f"{name}.safetensors",
                      (tmp_path / f"{name}.safetensors").read_bytes())
    storage.write(bucket / "all.safetensors.index.json", json.dumps(
        dict(weight_map={name: f"{name}.safetensors" for name in arrays})))
    np.savez(tmp_path / "x.npz", **{"params/img/a": arrays["a"], "params/txt/b": arrays["b"]})
    storage.write(bucket / "x.npz", (tmp_path / "x.npz").read_bytes())
    for path, name, key in (("a.safetensors", "a", "a"), ("x.npz:txt", "b", "txt/b"),
                            ("all.safetensors.index.json", "b", "b")):
        np.testing.assert_array_equal(files.read(f"{bucket}/{path}")[key], arrays[name])


def test_bundles_are_read_from_a_bucket(bucket, tmp_path, rng):
    masks = rng.random((3, 5, 7)) > 0.5
    for version, augmentation in (("plain", None), ("mirrored", dict(flipped=True))):
        writer = bundle_writer.Writer(tmp_path / version, masks="binary", generator=dict(name="g"),
                                      classes=dict(kind="none"), augmentation=augmentation)
        writer.add("day/1", masks, sizes=[(5, 7)])
        writer.finish()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            storage.write(bucket / file.relative_to(tmp_path).as_posix(), file.read_bytes())
    np.testing.assert_array_equal(Bundle(f"{bucket}/plain").read("day/1").masks, masks)
    versions = augmented.transforms.versions_of((), flip=True)
    found = augmented.open_bundles(str(bucket), versions)
    assert [b.folder.name for b in found] == ["plain", "mirrored"]
    with pytest.raises(FileNotFoundError, match="no bundle in gs://"):
        Bundle(f"{bucket}/none")


def test_predictions_are_written_to_a_bucket_and_read_again(bucket, rng):
    ids = rng.integers(2, size=(4, 6))
    writer = predictions.Writer(f"{bucket}/named", Vocabulary.from_string("a;b"))
    writer.semantic("day/1", ids)
    writer.panoptic("day/1", ids, [dict(id=1, category_id=0, isthing=True)])
    writer.finish(["day/1"], dict(how="drawn"))
    assert predictions.read_manifest(f"{bucket}/named")["protocol"] == dict(how="drawn")
    maps = predictions.semantic_files(f"{bucket}/named")
    np.testing.assert_array_equal(images.read_label_map(str(maps["day/1"])), ids)
    picture = predictions.panoptic_pictures(f"{bucket}/named")["day/1"]
    np.testing.assert_array_equal(coco_files.read_ids(picture.file), ids)
    with pytest.raises(FileExistsError, match="finished predictions"):
        predictions.Writer(f"{bucket}/named", Vocabulary.from_string("a;b"))


@pytest.mark.parametrize("name, flags, words", [
    ("prepare", ["scenes", "--data_dir=gs://bucket/data"], "wants it on a disk; copy it with"),
    ("predict", ["--checkpoint=gs://missing/run"], "there is no bucket missing")])
def test_a_command_says_so_if_it_cannot_use_a_bucket(bucket, tmp_path, name, flags, words):
    done = whole_runs.command(tmp_path, name, *flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
