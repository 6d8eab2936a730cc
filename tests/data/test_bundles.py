"""Bundles of masks: written, read, refused; plain files of masks."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from maskclippp_jax.data import (
    build,
    bundle_tools,
    bundle_writer,
    bundles,
    images,
    mask_files,
    records,
)
from maskclippp_jax.data.generator_input import Preparation
from maskclippp_jax.vocabulary import Vocabulary

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {"a": (40, 50), "b/c": (50, 40)}
PREPARATION = dict(loader_min=20, loader_max=100, short_side=32, multiple=16)
# Of SIZES under PREPARATION; the long side is 40 pixels, padded to 48.
WAY = {"a": ((40, 50), (20, 25), (32, 40), (32, 48)),
       "b/c": ((50, 40), (25, 20), (40, 32), (48, 32))}
EMBEDDINGS = dict(kind="embeddings", void_embedding=[0.5] * 3, logit_scale=10.0, templates=["{}"])


@pytest.mark.parametrize("name, content, says", [
    ("a.json", "{", "a.json is no JSON"), ("a.json", "[{}]", "at .0.: there is no segmentation"),
    ("a.json", '[{"segmentation": {"size": [5, 7], "counts": [9]}}]', "mask 0 has runs of 9 pix"),
    ("a.json", '[{"segmentation": [[0, 0, NaN, 1, 2, 3]]}]', "it holds NaN"),
    ("a.npy", "x", "is no array"), ("a.png", "x", "cannot be read as a picture"),
    ("a.txt", "x", "wanted one of .json"), ("a.jpg", "x", "wanted one of .json")])
def test_files_without_masks_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        mask_files.read_masks(str(tmp_path / name), (5, 7))


def test_a_number_is_a_mask_unless_it_means_nothing(tmp_path):
    labels = np.array([[-1, 0, 1], [255, 1, 7]])
    np.save(tmp_path / "a.npy", labels)
    read = lambda *nothing: mask_files.read_masks(str(tmp_path / "a.npy"), (2, 3), *nothing)
    np.testing.assert_array_equal(read(), [labels == n for n in (0, 1, 7)])
    np.testing.assert_array_equal(read([0, 7]), [labels == n for n in (1, 255)])
    # The rule of the reference.
    np.testing.assert_array_equal(read([]), [labels == n for n in (-1, 0, 1, 7, 255)])


def write_bundle(folder, kind="logits", classes=None, names=SIZES, seed=0, finish=True):
    """A bundle of two pictures with 3 and 0 masks; returns the masks by id."""
    rng, given = np.random.default_rng(seed), {}
    classes = classes or dict(kind="none")
    writer = bundle_writer.Writer(folder, masks=kind, classes=classes, generator=dict(name="test"),
                                  preparation=PREPARATION)
    for name in names:
        count = 3 * (name == "a")
        height, width = WAY[name][3]
        given[name] = rng.normal(size=(count, height // 4, width // 4), scale=3)
        if kind == "probabilities":
            given[name] = 1 / (1 + np.exp(-given[name]))
        elif kind == "binary":
            given[name] = rng.random((count, 9, 13)) > 0.5
        columns = {"embeddings": 3, "closed": 3, "open": 3, "none": 0}[classes["kind"]]
        writer.add(name, given[name], WAY[name],
                   rng.normal(size=(count, columns)) if columns else None)
    if finish:
        writer.finish()
    return given


@pytest.mark.parametrize("kind, atol", [("logits", 5e-3), ("probabilities", 1 / 510 + 1e-6),
                                        ("binary", 0)])
def test_what_is_written_is_read(tmp_path, kind, atol):
    given = write_bundle(tmp_path / "b", kind, EMBEDDINGS)
    bundle = bundles.Bundle(tmp_path / "b")
    assert bundle.most_masks == 3 and bundle.width == 3
    for name, masks_ in given.items():
        found = bundle.read(name)
        values = found.masks / np.float32(255) if kind == "probabilities" else found.masks
        np.testing.assert_allclose(values.astype(np.float32), masks_.astype(np.float32),
                                   atol=atol, rtol=1e-3 * (kind == "logits"))
        assert found.classes.shape == (len(masks_), 3)
        assert (found.kept, found.enlarged) == (
            (None, None) if kind == "binary" else WAY[name][2:])


def test_logits_beyond_float16_stay_finite(tmp_path):
    writer = bundle_writer.Writer(tmp_path, masks="logits", classes=dict(kind="none"),
                                  generator={}, preparation=PREPARATION)
    writer.add("a", np.full((1, 8, 12), 1e6), WAY["a"])
    writer.finish()
    assert np.isfinite(bundles.Bundle(tmp_path).read("a").masks).all()


def test_logits_keep_all_their_digits_if_wanted(tmp_path):
    begin = lambda **kw: bundle_writer.Writer(tmp_path, masks="logits", classes=dict(kind="none"),
                                              generator={}, preparation=PREPARATION, **kw)
    masks = np.random.default_rng(0).normal(size=(2, 8, 12), scale=30).astype(np.float32)
    writer = begin(float32=True)
    writer.add("a", masks, WAY["a"])
    with pytest.raises(ValueError, match="begun with another generator or other settings"):
        begin()
    writer.finish()
    bundle = bundles.Bundle(tmp_path)
    assert bundle.float32 and bundle.read("a").masks.dtype == np.float32
    np.testing.assert_array_equal(bundle.read("a").masks, masks)
    assert bundle_tools.describe(bundle, None, "")[0][0] == ("masks", "logits, float32, stride 4")


@pytest.mark.parametrize("resized, fits", [((252, 640), True), ((253, 640), False)])
def test_sizes_of_a_letterbox_are_those_of_its_generator(tmp_path, resized, fits):
    """A half is rounded to even there, and up everywhere else."""
    writer = bundle_writer.Writer(
        tmp_path, masks="logits", classes=dict(kind="none"), generator={}, stride=160,
        preparation=Preparation(None, None, None, 640, letterbox=640).facts())
    writer.add("a", np.zeros((1, 4, 4)), ((101, 256), (101, 256), resized, (640, 640)))
    writer.finish()
    if not fits:
        with pytest.raises(ValueError, match=r"resized size \[253, 640\], but its preparation"):
            bundles.Bundle(tmp_path)
    else:
        assert bundles.Bundle(tmp_path).read("a").kept == resized
    assert "letterbox" not in Preparation(800, 1333, None, 32).facts()


def test_a_stopped_bundle_goes_on(tmp_path):
    write_bundle(tmp_path / "b", names=["a"], finish=False)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        bundles.Bundle(tmp_path / "b")
    with pytest.raises(ValueError, match="begun with another generator or other settings"):
        write_bundle(tmp_path / "b", "probabilities")
    begin = lambda: bundle_writer.Writer(
        tmp_path / "b", masks="logits", classes=dict(kind="none"), generator=dict(name="test"),
        preparation=PREPARATION)
    assert begin().has("a") and not begin().has("b/c")
    write_bundle(tmp_path / "b", names=["b/c"])
    assert list(bundles.Bundle(tmp_path / "b").pictures) == ["a", "b/c"]
    assert not list((tmp_path / "b").rglob(".*"))
    with pytest.raises(FileExistsError, match="holds a finished bundle"):
        write_bundle(tmp_path / "b")


def change(folder, **new):
    """Writes other arrays into the file of picture a; None removes one."""
    file = bundle_writer.file_of(folder, "a")
    with np.load(file) as old:
        arrays = {k: v for k, v in (dict(old) | new).items() if v is not None}
    np.savez(file, **arrays)


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    closed = dict(kind="closed", vocabulary=[["x"], ["y", "z"]])
    for number, (new, says) in enumerate([
            (dict(mask_logits=np.zeros((3, 8, 10), np.float16), mask_logit_bytes=None),
             "masks of 8x10, but the padded input of 32x48 has 8x12 cells .* whole padded input"),
            (dict(mask_logits=np.full((3, 8, 12), np.nan, np.float16)),
             r"mask 0 \(3 in all\) holds NaN"),
            (dict(class_logits=np.zeros((3, 4), np.float32)),
             "shape .3, 4., wanted .3, 3.: .* 2 classes of its vocabulary and void"),
            (dict(class_logits=None), "holds no class_logits"),
            (dict(class_logits=np.full((3, 3), np.nan)), "class_logits holds NaN"),
            (dict(mask_logit_bytes=None), "no masks of the kind 'logits'"),
            (dict(mask_logits=np.zeros((2, 8, 12), np.float16)), "2 masks, the manifest says 3")]):
        write_bundle(tmp_path / f"{number}", classes=closed)
        change(tmp_path / f"{number}", **new)
        with pytest.raises(ValueError, match=says):
            bundles.Bundle(tmp_path / f"{number}").read("a")


def test_a_file_that_is_cut_short_is_named(tmp_path):
    write_bundle(tmp_path)
    file = bundle_writer.file_of(tmp_path, "a")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="a.npz is no npz file"):
        bundles.Bundle(tmp_path).read("a")


def test_many_threads_may_read(tmp_path):
    write_bundle(tmp_path)
    bundle = bundles.Bundle(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(bundle.read, ["a"] * 400))
    assert all(np.array_equal(f.masks, found[0].masks) for f in found)


@pytest.mark.parametrize("change_, says", [
    (lambda m: m["pictures"]["a"].update(padded=[48, 64]), "padded size .48, 64., but .*32, 48"),
    (lambda m: m["pictures"]["a"].update(resized=[32, 41]), "resized size .32, 41."),
    (lambda m: m["preparation"].update(multiple=32), r"gives \[32, 64\]"),
    (lambda m: m.pop("generator"), "manifest.json: there is no generator"),
    (lambda m: m.pop("stride"), "manifest.json does not say stride, see"),
    (lambda m: m["pictures"]["a"].pop("padded"), "does not say padded of a, see"),
    (lambda m: m.update(pictures=[1]), "at pictures: got array, wanted object"),
    (lambda m: m["pictures"]["a"].update(size=[40, "x"]), r"at pictures.*a.*size.*: got str, wan"),
    (lambda m: m["pictures"]["a"].update(size=[40, -1]), "expected int >= 1"),
    (lambda m: m["classes"].update(kind="closed"), "does not say vocabulary, see"),
    (lambda m: m["classes"].update(kind="closed", vocabulary="x"), "vocabulary: got str, wanted"),
    (lambda m: m.update(version=7), "wanted .'maskclippp masks', 1."),
    (lambda m: m["classes"].update(kind="x"), "at classes.kind: invalid enum value 'x'")])
def test_manifests_that_contradict_themselves_are_refused(tmp_path, change_, says):
    write_bundle(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    change_(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=says):
        bundles.Bundle(tmp_path)


@pytest.mark.parametrize("content, says", [
    (b"", "it is empty"), (b"[" * 100_000, "got array, wanted object"), (b"5", "got int, wanted"),
    (b'{"format": "maskclippp masks", "version": 1, "version": 1}', "gives 'version' twice")])
def test_manifests_that_are_none_are_refused(tmp_path, content, says):
    write_bundle(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"manifest.json.*{says}"):
        bundles.Bundle(tmp_path)


@pytest.mark.parametrize("change_", [
    dict(mask_bits=np.zeros((1, 40, 6), np.uint8)), dict(mask_bits=np.zeros((40, 7), np.uint8)),
    dict(mask_bits=np.zeros((1, 40, 7), np.int64)), dict(mask_size=np.array([40])),
    dict(mask_size=np.array([40, 2**40])), dict(mask_size=np.array([-40, 50]))])
def test_masks_of_bits_must_fill_their_size(tmp_path, change_):
    writer = bundle_writer.Writer(tmp_path, masks="binary", classes=dict(kind="none"),
                                  generator=dict(name="test"))
    writer.add("a", np.ones((1, 40, 50), bool), ((40, 50),))
    writer.finish()
    assert bundles.Bundle(tmp_path).read("a").masks.shape == (1, 40, 50)
    change(tmp_path, **change_)
    with pytest.raises(ValueError, match="a.npz holds mask_bits of .* no masks of the size"):
        bundles.Bundle(tmp_path).read("a")


def test_pictures_of_another_data_set_are_named(tmp_path):
    write_bundle(tmp_path)
    bundle = bundles.Bundle(tmp_path)
    check = lambda sizes, **kw: bundle.check_pictures(sizes, "x", **dict(allow_missing=False) | kw)
    assert check(SIZES) == []
    with pytest.raises(ValueError, match="none of the 1 pictures of x"):
        check({"z": (4, 4)})
    with pytest.raises(ValueError, match=r"lacks 1 picture \(d\) of the 3 of x"):
        check(SIZES | {"d": (4, 4)})
    assert check(SIZES | {"d": (4, 4)}, allow_missing=True) == ["d"]
    with pytest.raises(ValueError, match=r"other sizes than x for 1 picture \(a\): \(40, 50\)"):
        check(SIZES | {"a": (50, 40)})


def make_record(name):
    height, width = SIZES[name]
    picture = images.encode_png(np.full((height, width, 3), 9, np.uint8))
    return [records.semantic_record(picture, name, np.zeros((height, width), int), [True, False])]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("some data")
    build.build(str(folder), "two", Vocabulary.from_text("x\ny\n", "two"), "semantic",
                build.Reading(dict(validation=list(SIZES)), make_record), description="test",
                own_names=True)
    return folder


def command(*line, cwd=ROOT):
    environment = dict(os.environ, JAX_PLATFORMS="cpu", COLUMNS="120", PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, "-m", "maskclippp_jax", "masks", *line], cwd=cwd,
                          env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def source(data):
    return records.open_source(str(data), "two", "validation")


def test_inspect_prints_a_bundle_and_names_what_is_missing(tmp_path, data):
    write_bundle(tmp_path / "b", classes=dict(kind="closed", vocabulary=[["x"], ["q"]]))
    done = command("inspect", f"--bundle={tmp_path}/b", f"--data_dir={data}", "--dataset=two")
    assert done.returncode == 0, done.stderr
    for line in ("closed, 3 columns", "2 of 2", "1 of 2", "0 ... 3, mean 1.5", "short_side 32"):
        assert line in done.stdout
    write_bundle(tmp_path / "less", names=["a"])
    done = command("inspect", f"--bundle={tmp_path}/less", f"--data_dir={data}", "--dataset=two")
    assert done.returncode == 2 and "lacks 1 picture (b/c)" in done.stderr
    assert done.stderr.count("\n") == 1 and "1 of 2" in done.stdout


@pytest.mark.parametrize("ending", [".json", ".png", ".npy"])
def test_files_to_a_bundle_and_back(tmp_path, source, ending):
    given = {}
    for n, (name, size) in enumerate(SIZES.items()):
        given[name] = np.zeros((2, *size), np.float32)
        given[name][0, :10 + n], given[name][1, 20:, 5:] = 1, 1
        file = tmp_path / f"in/{name.replace('/', '%2F')}{ending}"
        file.parent.mkdir(exist_ok=True)
        mask_files.write_masks(file, given[name])
    bundle_tools.from_files(f"{tmp_path}/b", f"{tmp_path}/in/{{id}}{ending}", source, "two",
                            nothing=None, allow_missing=False)
    bundle = bundles.Bundle(tmp_path / "b")
    assert bundle_tools.describe(bundle, source, "two")[1] == []
    bundle_tools.to_files(bundle, f"{tmp_path}/out/{{id}}.json")
    for name, size in SIZES.items():
        got = mask_files.read_masks(f"{tmp_path}/out/{name.replace('/', '%2F')}.json", size)
        np.testing.assert_array_equal(got, given[name] > 0.5)


@pytest.mark.parametrize("size", [(40, 50), (257, 530)])  # in one block, and in several
def test_masks_of_a_generator_leave_at_the_size_of_the_picture(tmp_path, size):
    """As `jax.image.resize` enlarges probabilities, crops and resizes them."""
    given = write_bundle(tmp_path)["a"]
    got = bundle_tools.at_picture_size(bundles.Bundle(tmp_path).read("a"), size)
    resize = lambda x, size: jax.image.resize(x, (3, *size), "linear", antialias=False)
    logits = given.astype(np.float16).astype(np.float32)
    wanted = resize(resize(jax.nn.sigmoid(logits), (32, 48))[:, :32, :40], size)
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_masks_of_a_mirrored_version_leave_mirrored_back(tmp_path, source):
    for name, augmentation in (("plain", {}), ("mirrored", dict(short_side=20, flipped=True))):
        write_bundle(tmp_path / name)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        manifest["augmentation"] = augmentation
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        bundle_tools.to_files(bundles.Bundle(tmp_path / name), f"{tmp_path}/{name}_{{id}}.npy")
    plain, mirrored = (np.load(tmp_path / f"{name}_a.npy") for name in ("plain", "mirrored"))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    assert (mirrored != plain).any()
    rows, _ = bundle_tools.describe(bundles.Bundle(tmp_path / "mirrored"), source, "two")
    assert ("version of the pictures", "short side 20 mirrored") in rows


def test_pictures_leave_under_their_ids(tmp_path, source):
    bundle_tools.write_pictures(source, str(tmp_path))
    assert images.read_image(str(tmp_path / "b%2Fc.png")).shape == (50, 40, 3)


def test_a_conversion_that_failed_leaves_nothing_and_does_not_refuse_the_next_one(
        tmp_path, source):
    write = lambda pattern: bundle_tools.from_files(
        f"{tmp_path}/b", f"{tmp_path}/{pattern}", source, "two", nothing=None, allow_missing=False)
    for name, size in SIZES.items():
        file = name.replace("/", "%2F")
        mask_files.write_masks(tmp_path / f"{file}.json", np.ones((1, *size)))
        photo = np.arange(size[0] * size[1], dtype=np.uint16).reshape(size) * 25
        (tmp_path / f"{file}.png").write_bytes(images.encode_png(photo % 65000))
    (tmp_path / "b%2Fc.json").write_text('[{"segmentation": {"size": [50, 40], "counts": [1]}}]')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="b%2Fc.json, mask 0 has runs of 1 pixels"):
        write("{id}.json")
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b/other").touch()
    with pytest.raises(FileExistsError, match="b holds other files; choose a new folder"):
        write("{id}.png")
    (tmp_path / "b/other").unlink()
    write("{id}.png")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "b"])
    assert set(bundles.Bundle(tmp_path / "b").pictures) == set(SIZES)
    with pytest.raises(FileExistsError, match="holds a finished bundle"):
        write("{id}.png")


@pytest.mark.parametrize("fits, shape", [
    (True, (40, 50)), (True, (20, 25)), (True, (27, 34)), (True, (10, 12)), (True, (160, 201)),
    (False, (50, 40)), (False, (40, 40)), (False, (37, 50)), (False, (20, 30))])
def test_masks_may_be_smaller_but_show_the_whole_picture(tmp_path, source, fits, shape):
    np.save(tmp_path / "a.npy", np.ones((1, *shape), bool))
    write = lambda: bundle_tools.from_files(f"{tmp_path}/b", f"{tmp_path}/{{id}}.npy", source, "x",
                                            nothing=None, allow_missing=True)
    if fits:
        assert write() == 1
    else:
        with pytest.raises(ValueError, match=f"a.npy have {shape[1]}x{shape[0]} .* another shape"):
            write()


def test_missing_files_are_named(tmp_path, source):
    mask_files.write_masks(tmp_path / "a.png", np.zeros((1, 40, 50)))
    write = lambda pattern, allow: bundle_tools.from_files(
        f"{tmp_path}/b", f"{tmp_path}/{pattern}", source, "two", nothing=None, allow_missing=allow)
    with pytest.raises(ValueError, match=r"no masks of 1 picture \(b/c\) of the 2 of two"):
        write("{id}.png", False)
    assert not (tmp_path / "b").exists()
    with pytest.raises(FileNotFoundError, match="no file for any picture of two"):
        write("x{id}.png", True)
    assert write("{id}.png", True) == 1


def test_a_wrong_line_ends_in_one_sentence(tmp_path):
    done = command("inspect", "--bundle=.", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: no bundle in")
    assert done.stderr.count("\n") == 1
