"""The command `prepare`: what it says, refuses, resumes, and draws."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.data import build, catalogue, images, pipeline, records, scenes, transforms
from maskclippp_jax.vocabulary import Vocabulary

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
ADE = FIXTURES / "ade20k_2016/archives"


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "maskclippp_jax", "prepare", *map(str, arguments)]


def prepare(*arguments, check=True) -> subprocess.CompletedProcess:
    result = subprocess.run(command(*arguments), capture_output=True, text=True,
                            env=os.environ | {"COLUMNS": "120"})
    assert not check or result.returncode == 0, result.stderr
    return result


def refused(*arguments) -> str:
    """What a command says that ends with exit code 2; the last line is one sentence."""
    result = prepare(*arguments, check=False)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in result.stderr
    return result.stderr


def own_files(folder: pathlib.Path, count: int, side: int = 40) -> list[str]:
    """Pictures with label maps; returns the flags that make a data set of them."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        noise = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"images/{i:04d}.png")
        Image.fromarray(noise[..., 0] // 128).save(folder / f"labels/{i:04d}.png")
    (folder / "names.txt").write_text("dark\nbright\n")
    return ["folder", f"--images={folder / 'images'}", f"--labels={folder / 'labels'}",
            f"--names={folder / 'names.txt'}", "--name=mine"]


def test_the_list_shows_all_data_sets_with_licence_and_archives():
    listing = prepare("--list").stdout
    for name, dataset in catalogue.DATASETS.items():
        assert f"\n{name}: {dataset.title}; {dataset.kind}, " in listing
        assert f"licence: {dataset.licence}; from: {dataset.download}" in listing
        assert dataset.expected in listing


def test_a_summary_tells_what_was_made_and_warns_about_missing_pictures(tmp_path):
    result = prepare("ade20k_150", f"--raw_dir={ADE}", f"--data_dir={tmp_path}")
    assert "ade20k_150 train: found 2 pictures, the published set has 20210" in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("│ validation"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "validation", "2", "11", "10 of 150", "64x48", "64x48", "0.0"]


@pytest.mark.parametrize("arguments, words", [
    (["ade20k"], "got ade20k, wanted some of scenes"),
    ([], "got no name"),
    (["ade20k_150"], "got no --raw_dir"),
    (["ade20k_150", "--raw_dir=/nowhere"], "no folder /nowhere"),
    (["ade20k_150", f"--raw_dir={ADE}", "--strict"], "has 20210; complete the files"),
    (["ade20k_150", f"--raw_dir={ADE}", "--names=x.txt"], "--names is for own data"),
    # Archives of another set or year.
    (["pascal_voc_21", f"--raw_dir={FIXTURES / 'pascal_context/archives'}"],
     "holds the archives VOCtrainval_03-May-2010.tar, trainval.tar.gz; it should hold "
     "VOCtrainval_11-May-2012.tar"),
    (["folder", "--images=x"], "got no --labels"),
    (["folder", "--images=x", "--labels=y", "--name=scenes"], "--name=scenes cannot be"),
    (["folder", "--images=x", "--labels=y", "--nothing=none"], "wanted numbers of 0"),
])
def test_wrong_input_ends_in_one_sentence_and_writes_nothing(tmp_path, arguments, words):
    assert words in refused(*arguments, f"--data_dir={tmp_path / 'data'}")
    assert not (tmp_path / "data").exists()


def test_a_killed_build_goes_on_and_keeps_what_is_finished(tmp_path):
    flags = own_files(tmp_path, 256, side=128)
    growing = tmp_path / f"data/mine/.incomplete-{records.VERSION}"
    process = subprocess.Popen(command(*flags, f"--data_dir={tmp_path / 'data'}"),
                               stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not list(growing.glob(".mine*.json")):  # a shard is finished
            assert process.poll() is None, "the build ended before it could be killed"
            time.sleep(0.01)
        process.kill()
        process.wait()
        until = time.monotonic() + 20
        while living(process.pid):  # its workers end as well, each in the middle of a shard
            assert time.monotonic() < until, "processes outlive the build"
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with pytest.raises(FileNotFoundError, match="make it with: maskclippp prepare"):
        records.open_source(str(tmp_path / "data"), "mine", "train")
    kept = {p.name: p.stat().st_mtime_ns for p in growing.glob("*.array_record*")
            if (growing / f".{p.name}.json").exists()}
    assert 0 < len(kept) < 8
    (growing / ".tmp-1-half").touch()
    prepare(*flags, f"--data_dir={tmp_path / 'data'}")
    made = tmp_path / f"data/mine/{records.VERSION}"
    assert len(list(made.glob("*.array_record*"))) == 8 and not list(made.glob(".*"))
    source = records.open_source(str(tmp_path / "data"), "mine", "train")
    assert len(source.records) == 256
    for i in range(256):
        assert source.records[i]["image"] == (tmp_path / f"images/{i:04d}.png").read_bytes()
    assert kept == {name: (made / name).stat().st_mtime_ns for name in kept}
    assert not growing.exists()


def living(group: int) -> list[str]:
    """The processes of a group; those that have ended and that nobody has asked about do not count.
    """
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            found += [stat.parent.name] * (int(its_group) == group and state != "Z")
    return found


@pytest.mark.parametrize("moved", [False, True])
def test_a_build_killed_while_it_replaces_a_data_set_is_repaired(tmp_path, moved):
    """`moved`: the old one is put aside and the new one not in its place yet; else the old one is
    removed in part."""
    reading = build.Reading({"train": [0]}, lambda number: [record_of(number)])
    make = lambda **kw: build.build(str(tmp_path), "mine", Vocabulary.from_string("dark;bright"),
                                    "semantic", reading, description="test", own_names=True, **kw)
    make()
    folder = tmp_path / "mine" / records.VERSION
    aside = folder.with_name(f".replaced-{records.VERSION}")
    if moved:
        folder.rename(aside)
    else:
        shutil.copytree(folder, aside)
        (aside / "dataset_info.json").unlink()
    assert build.is_there(str(tmp_path), "mine") and not aside.exists()
    assert len(records.open_source(str(tmp_path), "mine", "train").records) == 1
    if moved:
        folder.rename(aside)
        with pytest.raises(FileExistsError, match="give --overwrite"):
            make()
        folder.rename(aside)
    else:
        aside.mkdir()
        (aside / "rest").touch()
    make(overwrite=True)
    assert sorted(os.listdir(folder.parent)) == [".lock", records.VERSION]


def record_of(number: int) -> dict:
    picture = images.encode_png(np.full((8, 8, 3), 60, np.uint8))
    return records.semantic_record(picture, str(number), np.eye(8, dtype=np.uint8), [True, True])


def test_two_prepares_do_not_write_one_data_set(tmp_path):
    import fcntl
    (tmp_path / "data/ade20k_150").mkdir(parents=True)
    flags = ["ade20k_150", f"--raw_dir={ADE}", f"--data_dir={tmp_path / 'data'}"]
    with open(tmp_path / "data/ade20k_150/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another prepare is writing" in refused(*flags)
    prepare(*flags)


def test_a_full_disk_registers_nothing_and_the_build_can_go_on(tmp_path):
    """On a real small disk where one can be mounted, else under a limit on the size of a file."""
    flags = own_files(tmp_path, 100, side=110)  # about 4 MB
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk],
                             capture_output=True).returncode == 0
    try:
        if mounted:
            message = refused(*flags, f"--data_dir={disk}")
        else:
            # SIGXFSZ is ignored by Python, so that writing fails as on a full disk.
            limited = f"ulimit -f 200; {' '.join(command(*flags, f'--data_dir={disk}'))}"
            result = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
            assert result.returncode == 2
            message = result.stderr
        assert "no space left for" in message and "what is finished is kept" in message
        with pytest.raises(FileNotFoundError):
            records.open_source(str(disk), "mine", "train")
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        prepare(*flags, f"--data_dir={disk}")
        assert len(records.open_source(str(disk), "mine", "train").records) == 100
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)


def test_an_existing_data_set_is_left_alone_unless_told_otherwise(tmp_path):
    flags = own_files(tmp_path / "own", 3) + [f"--data_dir={tmp_path / 'data'}"]
    prepare(*flags)
    folder = tmp_path / f"data/mine/{records.VERSION}"
    before = folder.stat().st_ino
    assert "exists already; --overwrite" in prepare(*flags).stdout
    assert folder.stat().st_ino == before
    # A failing --overwrite leaves the old one.
    (tmp_path / "own/labels/0001.png").write_bytes(b"no picture")
    assert "0001.png cannot be read as a picture" in refused(*flags, "--overwrite")
    assert len(records.open_source(str(tmp_path / "data"), "mine", "train").records) == 3
    (tmp_path / "own/labels/0001.png").unlink()
    made = prepare(*flags, "--overwrite").stdout
    assert "1 of 3 picture or annotation files have no partner" in made
    assert len(records.open_source(str(tmp_path / "data"), "mine", "train").records) == 2


def test_a_build_from_changed_files_begins_anew(tmp_path):
    """Shards of a refused build are kept, but not once their pictures may be others."""
    flags = own_files(tmp_path, 40) + [f"--data_dir={tmp_path / 'data'}"]
    label = tmp_path / "labels/0039.png"
    Image.fromarray(np.full((40, 40), 9, np.uint8)).save(label)
    message = refused(*flags)
    assert "1 of 40 pictures cannot be used" in message
    assert "labels/0039.png holds 9, to which names.txt gives no name" in message
    for file in (label, tmp_path / "labels/0000.png"):
        Image.fromarray(np.ones((40, 40), np.uint8)).save(file)
    prepare(*flags)
    source = records.open_source(str(tmp_path / "data"), "mine", "train")
    assert source.records[0]["table"]["class_id"].tolist() == [1]


def test_contact_sheets_are_drawn_for_every_split(tmp_path):
    shutil.copytree(FIXTURES / "coco2017/archives", tmp_path / "raw")
    flags = [f"--raw_dir={tmp_path / 'raw'}", f"--data_dir={tmp_path / 'data'}", "--show=3"]
    assert prepare("coco_instance_80", *flags).stdout.count("drew ") == 2
    for split, examples in (("train", 3), ("validation", 2)):
        sheet = np.asarray(Image.open(tmp_path / f"data/coco_instance_80/{split}.png"))
        assert sheet.shape[0] > 300 * -(-examples // 2) and sheet.std() > 20


def test_panoptic_records_are_trainable_without_their_crowds(tmp_path):
    prepare("coco_panoptic_133", f"--raw_dir={FIXTURES / 'coco2017/archives'}",
            f"--data_dir={tmp_path}")
    source = records.open_source(str(tmp_path), "coco_panoptic_133", "validation")
    record = source.records[0]
    image, segments, name = pipeline.decode(record)
    assert name == "000000000201" and image.shape[:2] == segments.shape
    slots, labels = transforms.to_slots(segments, record["table"], 8, name)
    assert labels.tolist() == [100, 119, 2, -1, -1, -1, -1, -1]  # no slot for the crowd
    crowd = segments == record["table"]["id"][record["table"]["is_crowd"]][0]
    assert crowd.any() and (slots[crowd] == 0).all()
    batch = next(pipeline.train_batches(
        [source.records], family=pipeline.PanopticFamily(32), num_masks=8, batch_size=2, seed=0))
    assert {int(c) for c in batch["labels"].ravel()} <= {-1, 2, 100, 119, 121, 41, 131}


def test_strict_counts_tiles_before_anything_is_registered(tmp_path):
    with zipfile.ZipFile(FIXTURES / "mess/extracted.zip") as archive:
        archive.extractall(tmp_path / "raw")
    flags = ["mess_uavid", f"--raw_dir={tmp_path / 'raw'}", f"--data_dir={tmp_path / 'data'}"]
    message = refused(*flags, "--strict")
    assert "mess_uavid validation: found 2 pictures, the published set has 840" in message
    with pytest.raises(FileNotFoundError):
        records.open_source(str(tmp_path / "data"), "mess_uavid", "validation")
    prepare(*flags)


def test_two_records_of_one_id_are_refused(tmp_path):
    """The id is what results are filed under."""
    same = lambda item: [records.semantic_record(
        images.encode_png(np.zeros((4, 4, 3), np.uint8)), "x", np.zeros((4, 4), int), [True])]
    with pytest.raises(ValueError, match="two pictures of train have the id x"):
        build.build(str(tmp_path), "mine", Vocabulary.from_string("a"), "semantic",
                    build.Reading({"train": [1, 2]}, same), description="", own_names=True)
    with pytest.raises(FileNotFoundError):
        records.open_source(str(tmp_path), "mine", "train")


def test_two_pictures_of_one_key_are_refused(tmp_path):
    """Artists of DRAM who share a name, say."""
    for style in ("Realism", "Cubism"):
        for kind, ending in (("test", "jpg"), ("labels", "png")):
            folder = tmp_path / f"raw/DRAM_processed/{kind}/{style}/Someone"
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / f"1.{ending}")
    message = refused("mess_dram", f"--raw_dir={tmp_path / 'raw'}", f"--data_dir={tmp_path}")
    assert "two files for Someone_1" in message


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path):
    for archive in ("train2017.zip", "stuffthingmaps_trainval2017.zip"):
        with zipfile.ZipFile(FIXTURES / "coco2017/archives" / archive) as source:
            [name] = [n for n in source.namelist() if "000000000103" in n]
            source.extract(name, tmp_path / "raw" / archive[:-4])
    message = refused("coco_stuff_171", f"--raw_dir={tmp_path / 'raw'}", f"--data_dir={tmp_path}")
    assert "all were left out because they have no class" in message


def test_a_truncated_archive_is_named(tmp_path):
    archive = tmp_path / "ADEChallengeData2016.zip"
    data = (ADE / archive.name).read_bytes()
    archive.write_bytes(data[:len(data) // 2])
    message = refused("ade20k_150", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert "ADEChallengeData2016.zip is no archive or was cut short" in message
    assert not (tmp_path / "data").exists()


def test_pictures_of_another_size_than_their_labels_are_all_named(tmp_path):
    with zipfile.ZipFile(ADE / "ADEChallengeData2016.zip") as archive:
        archive.extractall(tmp_path)
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000002")):
        label = tmp_path / f"ADEChallengeData2016/annotations/{split}/{stem}.png"
        Image.fromarray(np.ones((7, 9), np.uint8)).save(label)
    label = tmp_path / "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"
    Image.fromarray(np.full((40, 52), 151, np.uint8)).save(label)  # there are 150 classes
    message = refused("ade20k_150", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert "ADE_train_00000001: the picture has 64x48 pixels, its annotation 9x7" in message
    assert "ADE_val_00000002: the picture has 48x64 pixels, its annotation 9x7" in message
    assert "ADE_train_00000002.png holds 151, which the data set does not know" in message
    assert "3 of 4 pictures cannot be used" in message


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


def test_a_scene_drawn_larger_shows_the_same_parts_of_the_photographs():
    draw = lambda seed, **kw: scenes.draw_scene(np.random.default_rng(seed), **kw)
    for seed in range(5):
        small, large = (draw(seed, num_things=(0, 0), detail=detail) for detail in (1, 4))
        assert large.image.shape == (256, 256, 3) and large.names == small.names
        assert (large.label[2::4, 2::4] == small.label).mean() > 0.97
        shrunk = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
        inside = large.label[2::4, 2::4] == small.label
        assert np.abs(shrunk - small.image)[inside].mean() < 8  # the noise alone makes it 2.4
    several = draw(3, detail=4)
    assert (np.unique(several.label, return_counts=True)[1] >= 16 * 30).all()


def test_every_part_of_an_unseen_class_is_seen_elsewhere():
    seen = [c.split() for c in scenes.CLASSES if c not in scenes.UNSEEN]
    for name in scenes.UNSEEN:
        first, second = name.split()
        assert any(first == a for a, _ in seen) and any(second == b for _, b in seen)
    assert Vocabulary.shipped("scenes").classes == tuple((c,) for c in scenes.CLASSES)
    assert Vocabulary.shipped("scenes_seen").classes == tuple(
        (c,) for c in scenes.CLASSES if c not in scenes.UNSEEN)


def test_every_digit_of_a_scene_is_a_segment_of_its_own():
    several = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = scenes.draw_scene(rng, classes=["red two", "grey brick"], num_things=(3, 3),
                                  num_stuff=(1, 1))
        classes = {int(n): set(scene.label[scene.segments == n]) for n in np.unique(scene.segments)}
        assert all(len(c) == 1 for c in classes.values())
        digits = [n for n, c in classes.items() if scenes.IS_THING[min(c)]]
        several += len(digits) > 1
        assert 0 in classes and 0 not in digits  # the texture behind them
    assert several > 10  # all of one class: a label map cannot tell them apart


def test_scenes_of_all_kinds_are_of_the_same_pictures():
    of_kind = {}
    for name in ("scenes", "scenes_panoptic", "scenes_instance"):
        dataset = catalogue.DATASETS[name]
        reading = dataset.read(None)
        of_kind[dataset.kind], = reading.make_records(reading.splits["validation"][3])
    semantic, panoptic, instance = of_kind.values()
    assert semantic["image"] == panoptic["image"] == instance["image"]
    label, segments, digits = (records.decode_segments(r["segments"]) for r in of_kind.values())
    classes = np.full(1 + len(panoptic["table"]["id"]), -1)
    classes[panoptic["table"]["id"]] = panoptic["table"]["class_id"]
    np.testing.assert_array_equal(classes[segments], label.astype(int) - 1)
    things = np.array((False, *panoptic["table"]["is_thing"]))[segments]
    np.testing.assert_array_equal(digits > 0, things)
    assert instance["table"]["is_thing"].all() and len(instance["table"]["id"]) == (
        panoptic["table"]["is_thing"].sum())
