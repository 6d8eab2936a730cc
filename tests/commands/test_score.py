"""Predictions written, read by other tools, and scored by the command."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from array_record.python import array_record_data_source  # noqa: F401, defines flags of its own
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskclippp_jax.data import build, coco_files, images, records
from maskclippp_jax.evaluation import predictions, scoring
from maskclippp_jax.metrics.panoptic import PanopticQuality
from maskclippp_jax.metrics.run_lengths import encode
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.vocabulary import Vocabulary

ROOT = pathlib.Path(__file__).parents[2]
VOCABULARY = Vocabulary.shipped("scenes")
THING, STUFF = VOCABULARY.is_thing.index(True), VOCABULARY.is_thing.index(False)
CLASSES = (THING, STUFF, THING + 1 if VOCABULARY.is_thing[THING + 1] else THING)
NAMES = ("one", "two/b", "three")


def true_label(number):
    """[24, 32]: three stripes of classes, with some void at the bottom."""
    label = np.repeat(np.roll(CLASSES, number), [8, 14, 10])[None].repeat(24, 0)
    label[20:] = 255
    return label


def predicted_label(number):
    """The same, filled, and moved by two columns in the second picture."""
    label = np.repeat(np.roll(CLASSES, number), [8, 14, 10])[None].repeat(24, 0)
    return np.roll(label, 2, 1) if number == 1 else label


def make_record(number):
    image = images.encode_png(np.full((24, 32, 3), 40 * number, np.uint8))
    return [records.semantic_record(image, NAMES[number], true_label(number), VOCABULARY.is_thing)]


def segments_of(label):
    """Panoptic ids and segments of a label map, one segment a class; categories are classes."""
    present = [int(c) for c in np.unique(label) if c != 255]
    ids = np.zeros(label.shape, int)
    for i, c in enumerate(present, start=1):
        ids[label == c] = i
    return ids, [dict(id=i, category_id=c, isthing=VOCABULARY.is_thing[c])
                 for i, c in enumerate(present, start=1)]


def coco_id(number):
    return 100 + number


def write_truth(folder):
    """COCO's files of the same pictures."""
    (folder / "truth").mkdir()
    images, panoptic, instances = [], [], []
    categories = [dict(id=i, name=names[0], isthing=int(thing)) for i, names, thing in zip(
        VOCABULARY.dataset_ids, VOCABULARY.classes, VOCABULARY.is_thing)]
    for number, name in enumerate(NAMES):
        stem = name.replace("/", "%2F")
        images.append(dict(id=coco_id(number), file_name=f"{stem}.jpg", height=24, width=32))
        ids, segments = segments_of(true_label(number))
        coco_files.write_ids(folder / "truth" / f"{stem}.png", ids * 1000)
        panoptic.append(dict(image_id=coco_id(number), file_name=f"{stem}.png", segments_info=[
            dict(id=s["id"] * 1000, category_id=VOCABULARY.dataset_ids[s["category_id"]],
                 iscrowd=0, area=int((ids == s["id"]).sum())) for s in segments]))
        for s in segments:
            if s["isthing"]:
                mask = ids == s["id"]
                left, right = np.flatnonzero(mask.any(0))[[0, -1]]
                polygon = [[int(left), 0, int(right) + 1, 0, int(right) + 1, 20, int(left), 20]]
                instances.append(dict(
                    id=len(instances) + 1, image_id=coco_id(number), iscrowd=0,
                    area=int(mask.sum()), bbox=[int(left), 0, int(right - left + 1), 20],
                    category_id=VOCABULARY.dataset_ids[s["category_id"]],
                    segmentation=polygon if number else encode(mask)))
    things = [c for c in categories if c["isthing"]]
    for file, annotations, chosen in (("panoptic", panoptic, categories),
                                      ("instances", instances, things)):
        (folder / f"{file}.json").write_text(json.dumps(
            dict(images=images, annotations=annotations, categories=chosen)))


def write_predictions(folder, finish=True, numbers=range(3)):
    writer = predictions.Writer(folder, VOCABULARY,
                                {name: coco_id(i) for i, name in enumerate(NAMES)})
    for number in numbers:
        label = predicted_label(number)
        writer.semantic(NAMES[number], label)
        ids, segments = segments_of(label)
        writer.panoptic(NAMES[number], ids, segments)
        things = [s for s in segments if s["isthing"]]
        writer.instances(NAMES[number], np.linspace(0.9, 0.5, len(things)),
                         np.array([s["category_id"] for s in things]),
                         np.stack([(ids == s["id"]) & (np.arange(24) < 20)[:, None]
                                   for s in things]))
    if finish:
        writer.finish(NAMES, dict(model="none"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a place")
    build.build(str(folder / "data"), "scenes", VOCABULARY, "semantic",
                build.Reading(dict(validation=[0, 1, 2]), make_record), description="test")
    write_truth(folder)
    write_predictions(folder / "found")
    return folder


def truths(place):
    return dict(dataset="scenes", data_dir=f"{place}/data",
                panoptic_json=f"{place}/panoptic.json", panoptic_dir=f"{place}/truth",
                instances_json=f"{place}/instances.json", samples=50)


def command(place, *more, **given):
    line = [sys.executable, "-m", "maskclippp_jax", "score",
            *(f"--{k}={v}" for k, v in given.items()), *more]
    environment = dict(os.environ, COLUMNS="100", PYTHONPATH=str(ROOT))
    return subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True,
                          timeout=120)


def test_the_command_gives_what_the_metrics_give(place):
    done = command(place, predictions="found", output="new/results.json", **truths(place))
    assert done.returncode == 0, done.stderr
    got = json.loads((place / "new/results.json").read_text())
    semantic = SemanticSegmentation(VOCABULARY.num_classes, 255)
    panoptic = PanopticQuality(dict(enumerate(VOCABULARY.is_thing)))
    for number in range(3):
        true, found = true_label(number), predicted_label(number)
        semantic.process(found, true)
        ids, segments = segments_of(true)
        segments = [dict(s, iscrowd=0, area=(ids == s["id"]).sum()) for s in segments]
        panoptic.process(*segments_of(found), ids, segments)
    for key in ("mIoU", "pACC"):
        assert got["semantic"][key] == pytest.approx(semantic.evaluate()[key])
    assert 50 < got["semantic"]["mIoU"] < 100
    assert got["panoptic"]["all"] == pytest.approx(panoptic.evaluate()["all"])
    low, high = got["semantic"]["intervals"]["mIoU"]
    assert low < got["semantic"]["mIoU"] < high and got["boundary"]["mBIoU"] > 0
    assert 50 < got["instances"]["AP50"] <= 100 and got["instances"]["pictures"] == 3
    for line in ("PQ of things", "AP of small masks", "mean boundary IoU", "model",
                 "95 % of 50 draws"):
        assert line in done.stdout


def test_other_tools_read_our_files(place):
    truth = COCO(str(place / "instances.json"))
    found = truth.loadRes(str(place / "found/instances.json"))
    assert sorted(found.getImgIds()) == [100, 101, 102]
    row = found.loadAnns(found.getAnnIds(imgIds=[100]))[0]
    mask = predicted_label(0) == VOCABULARY.dataset_ids.index(row["category_id"])
    mask[20:] = False
    np.testing.assert_array_equal(found.annToMask(row), mask)
    content = json.loads((place / "found/panoptic.json").read_text())
    for row, number in zip(content["annotations"], range(3)):
        ids = coco_files.read_ids(place / "found/panoptic" / row["file_name"])
        assert row["image_id"] == coco_id(number)
        assert {s["id"]: s["area"] for s in row["segments_info"]} == dict(
            zip(*(x.tolist() for x in np.unique(ids, return_counts=True))))


def test_lvis_is_scored_by_its_own_rules_from_either_truth(tmp_path):
    archives = ROOT / "tests/fixtures/coco2017/archives"
    prepare = [sys.executable, "-m", "maskclippp_jax", "prepare", "lvis_1203",
               f"--raw_dir={archives}", f"--data_dir={tmp_path}/data"]
    subprocess.run(prepare, cwd=ROOT, check=True, capture_output=True, timeout=120)
    source = records.open_source(f"{tmp_path}/data", "lvis_1203", "validation")
    rows = [source.records[i] for i in range(len(source.records))]
    names = [records.id_of(row) for row in rows]
    writer = predictions.Writer(tmp_path / "found", source.vocabulary,
                                {name: int(name) for name in names})
    for name, row in zip(names, rows):
        masks, classes = records.decode_masks(row), list(row["table"]["class_id"])
        if 224 not in classes:  # a wrong one of a class that is annotated in another picture only
            more = np.ones((1, *records.size_of(row["segments"])), bool)
            masks, classes = np.concatenate([masks, more]), [*classes, 224]
        writer.instances(name, np.linspace(0.5, 0.9, len(masks)), np.array(classes), masks)
    writer.finish(names, dict(model="none"))
    with zipfile.ZipFile(archives / "lvis_v1_val.json.zip") as archive:
        archive.extract("lvis_v1_val.json", tmp_path)
    got = []
    for truth in (dict(dataset="lvis_1203", data_dir=f"{tmp_path}/data"),
                  dict(instances_json=f"{tmp_path}/lvis_v1_val.json")):
        done = command(tmp_path, predictions="found", output="results.json", samples=0, **truth)
        assert done.returncode == 0, done.stderr
        assert "AP of rare classes" in done.stdout and "made_with: model none" in done.stdout
        got.append(json.loads((tmp_path / "results.json").read_text())["instances"])
    assert got[0] == got[1]
    assert got[0]["AP"] == got[0]["APf"] == pytest.approx(100) and got[0]["APr"] is None


def test_ids_of_24_bits_survive_their_colours(tmp_path, rng):
    ids = rng.integers(0, 2**24, (5, 7))
    coco_files.write_ids(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(coco_files.read_ids(tmp_path / "a.png"), ids)


def test_predictions_that_were_stopped_go_on(place, tmp_path):
    write_predictions(tmp_path / "found", finish=False, numbers=range(2))
    with pytest.raises(FileNotFoundError, match="are not finished"):
        predictions.read_manifest(str(tmp_path / "found"))
    with pytest.raises(FileNotFoundError, match="lacks the panoptic results of three"):
        predictions.Writer(tmp_path / "found", VOCABULARY).finish(NAMES, {})
    write_predictions(tmp_path / "found", numbers=[2])
    for file in ("panoptic.json", "instances.json", "predictions.json"):
        assert (tmp_path / "found" / file).read_text() == (place / "found" / file).read_text()
    assert not list((tmp_path / "found").rglob(".*"))
    with pytest.raises(FileExistsError, match="finished predictions"):
        predictions.Writer(tmp_path / "found", VOCABULARY)


def run(found, **given):
    """What the command does, in this process."""
    results, _ = scoring.score(scoring.Request(str(found), **given))
    return results


@pytest.fixture
def copy(place, tmp_path):
    return shutil.copytree(place / "found", tmp_path / "copy")


def test_seen_names_may_be_those_of_a_file(place, tmp_path):
    (tmp_path / "seen.txt").write_text(f"{VOCABULARY.classes[THING][0]}\n")
    got = run(place / "found", dataset="scenes", data_dir=f"{place}/data",
              seen_vocabulary=f"{tmp_path}/seen.txt")["semantic"]
    assert got["mIoU_seen"] == pytest.approx(got["IoU"][THING])


def test_of_a_panoptic_data_set_that_is_scored_which_is_there(place, copy, tmp_path):
    def make(number):
        image = images.encode_png(np.zeros((24, 32, 3), np.uint8))
        ids, segments = segments_of(true_label(number))
        return [records.panoptic_record(image, NAMES[number], ids, [
            records.Segment(s["category_id"], s["isthing"], source_id=s["id"]) for s in segments])]

    build.build(f"{tmp_path}/data", "parts", VOCABULARY, "panoptic",
                build.Reading(dict(validation=[0, 1, 2]), make), description="test")
    request = scoring.Request(str(copy), "parts", f"{tmp_path}/data")
    results, protocol = scoring.score(request)
    assert set(results) == {"semantic", "boundary", "panoptic"} and "not_scored" not in protocol
    shutil.rmtree(copy / "semantic")
    less, protocol = scoring.score(request)
    assert less == dict(panoptic=results["panoptic"])
    assert protocol["not_scored"] == "semantic (no semantic/)"
    (copy / "panoptic.json").unlink()
    with pytest.raises(FileNotFoundError, match="no semantic/ and no panoptic.json in .*copy, wh"):
        scoring.score(request)


def test_missing_pictures_are_named_or_count_as_missed(place, copy):
    for file in ("semantic/three.png", "panoptic/three.png"):
        (copy / file).unlink()
    for name in ("panoptic.json", "predictions.json"):
        content = json.loads((copy / name).read_text())
        if name == "panoptic.json":
            content["annotations"].pop()
        else:
            del content["pictures"]["three"]
        (copy / name).write_text(json.dumps(content))
    rows = json.loads((copy / "instances.json").read_text())
    (copy / "instances.json").write_text(json.dumps([r for r in rows if r["image_id"] != 102]))
    all_of = truths(place)
    kinds = [{k: v for k, v in all_of.items() if k.startswith(p)} for p in
             (("data",), ("panoptic",), ("instances",))]
    for kind in kinds:
        with pytest.raises(ValueError, match=r"lacks 1 picture \(three\) of the ground truth's 3"):
            run(copy, **kind)
    less = run(copy, allow_missing=True, **all_of)
    all_there = run(place / "found", **all_of)
    assert less["semantic"]["mIoU"] < all_there["semantic"]["mIoU"]
    assert less["panoptic"]["all"]["PQ"] < all_there["panoptic"]["all"]["PQ"]
    assert less["instances"]["AP"] < all_there["instances"]["AP"]
    assert less["boundary"]["mBIoU"] < all_there["boundary"]["mBIoU"]


def test_predictions_of_other_pictures_are_refused(place, copy):
    (copy / "semantic/three.png").rename(copy / "semantic/four.png")
    with pytest.raises(ValueError, match=r"has 1 picture \(four\), which the ground truth lacks"):
        run(copy, dataset="scenes", data_dir=f"{place}/data")
    rows = json.loads((copy / "instances.json").read_text())
    (copy / "instances.json").write_text(json.dumps([dict(rows[0], image_id=7)]))
    with pytest.raises(ValueError, match="has the picture 7, which"):
        run(copy, instances_json=f"{place}/instances.json")


@pytest.mark.parametrize("file, content, kind, says", [
    ("predictions.json", '{"vocabulary": "v", "classes": [["x"]], "pictures": {}}', "data",
     "holds classes of v, but scenes has those of scenes"),
    ("instances.json", "[1]", "instances", r"at \[0\]: got int, wanted object"),
    ("instances.json", "[", "instances", "is no JSON"),
    ("panoptic.json", "{}", "panoptic", "there is no annotations"),
    ("instances.json", '[{"image_id": 100, "category_id": 1, "score": 0.5, "segmentation": {}}]',
     "instances", "the predicted mask 0 has nothing, wanted run lengths with size and counts"),
    ("panoptic.json", '{"annotations": [{"file_name": "x.png", "image_id": 1}], "categories": []}',
     "panoptic", r"at annotations\[0\]: there is no segments_info"),
    ("panoptic.json", '{"annotations": [{"file_name": "x.png", "image_id": 1, "segments_info": '
     '[]}], "categories": []}', "panoptic", "no file .*x.png")])
def test_files_of_another_form_are_refused(place, copy, file, content, kind, says):
    (copy / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        run(copy, **{k: v for k, v in truths(place).items() if k.startswith(kind)})


def test_a_label_map_of_another_size_is_named(place, copy):
    other_size = images.encode_png(np.zeros((24, 31), np.uint8))
    (copy / "semantic/one.png").write_bytes(other_size)
    with pytest.raises(ValueError, match=r"semantic/one.png: the prediction is \(24, 31\)"):
        run(copy, dataset="scenes", data_dir=f"{place}/data")


def test_numbers_are_ids_where_each_is_that_of_one_picture():
    names = ["1", "01", "²", "000139", "7", "a", "9" * 30]
    assert predictions.coco_ids(names) == dict(zip(names, ["1", "01", "²", 139, 7, "a", "9" * 30]))


def test_instances_of_pictures_called_1_and_01_stay_apart(tmp_path):
    places = {"1": np.s_[:9, :9], "01": np.s_[10:, 20:]}

    def mask_of(name):
        mask = np.zeros((24, 32), bool)
        mask[places[name]] = True
        return mask

    def make(name):
        image = images.encode_png(np.zeros((24, 32, 3), np.uint8))
        row = records.Segment(THING, True, False)
        return [records.instance_record(image, name, (24, 32), [encode(mask_of(name))], [row])]

    build.build(f"{tmp_path}/data", "things", VOCABULARY, "instance",
                build.Reading(dict(validation=list(places)), make), description="test")
    writer = predictions.Writer(tmp_path / "found", VOCABULARY, predictions.coco_ids(list(places)))
    for name in places:
        writer.instances(name, np.array([0.9]), np.array([THING]), mask_of(name)[None])
    writer.finish(list(places), {})
    given = dict(dataset="things", data_dir=f"{tmp_path}/data")
    assert run(tmp_path / "found", **given)["instances"]["AP"] == pytest.approx(100)
    file = tmp_path / "found/predictions.json"
    file.write_text(file.read_text().replace('"1": "1"', '"1": 1').replace('"01": "01"', '"01": 1'))
    with pytest.raises(ValueError, match="pictures of one id, .* make the predictions anew"):
        run(tmp_path / "found", **given)


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_truth_with_a_category_listed_twice_is_refused(place, tmp_path, kind):
    content = json.loads((place / f"{kind}.json").read_text())
    content["categories"].append(content["categories"][0])
    (tmp_path / "twice.json").write_text(json.dumps(content))
    given = {k: v for k, v in truths(place).items() if k.startswith(kind)}
    with pytest.raises(ValueError, match="twice.json has two categories of the id"):
        run(place / "found", **given | {f"{kind}_json": f"{tmp_path}/twice.json"})


@pytest.mark.parametrize("kind, ranges", [("panoptic", "95 % of 50 draws of pictures, seed 0"),
                                          ("instances", "none")])
def test_the_protocol_tells_of_ranges_that_there_are(place, kind, ranges):
    given = {k: v for k, v in truths(place).items() if k.startswith(kind)}
    _, protocol = scoring.score(scoring.Request(f"{place}/found", samples=50, **given))
    assert protocol["ranges"] == ranges


def test_pictures_of_one_name_in_two_folders_are_told_apart_as_coco_does(tmp_path):
    """Equal scores, and ids in another order than names."""
    def box(left, width):
        mask = np.zeros((20, 30), np.uint8)
        mask[:10, left:left + width] = 1
        return encode(mask)

    files = {11: "b/1.jpg", 12: "a/1.jpg", 13: "0.jpg"}
    images = [dict(id=i, file_name=f, height=20, width=30) for i, f in files.items()]
    truth = [dict(id=n, image_id=i, category_id=1, iscrowd=0, area=100, bbox=[n, 0, 10, 10],
                  segmentation=box(n, 10)) for n, i in enumerate(files, start=1)]
    found = [dict(image_id=i, category_id=1, score=0.5, segmentation=box(left, 10))
             for i, left in ((13, 15), (11, 1), (12, 4))]
    (tmp_path / "true.json").write_text(json.dumps(dict(
        images=images, annotations=truth, categories=[dict(id=1, name="x")])))
    (tmp_path / "instances.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "true.json"))
        scorer = COCOeval(coco, coco.loadRes(found), "segm")
        for step in (scorer.evaluate, scorer.accumulate, scorer.summarize):
            step()
    got = run(tmp_path, instances_json=f"{tmp_path}/true.json")["instances"]
    assert got["pictures"] == 3
    assert [got["AP"], got["AP50"]] == pytest.approx([100 * n for n in scorer.stats[:2]])
    images[0]["file_name"] = "a/1.png"
    (tmp_path / "true.json").write_text(json.dumps(dict(
        images=images, annotations=truth, categories=[dict(id=1, name="x")])))
    with pytest.raises(ValueError, match="has 2 pictures called a/1, wanted files that differ"):
        run(tmp_path, instances_json=f"{tmp_path}/true.json")


def test_a_segment_map_is_the_prediction_of_one_picture_alone(tmp_path):
    def write(folder, *files):
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            coco_files.write_ids(folder / file, np.full((4, 5), 7))
        folder.with_suffix(".json").write_text(json.dumps(dict(
            annotations=[dict(image_id=i, file_name=file, segments_info=[
                dict(id=7, category_id=1, area=20)]) for i, file in enumerate(files)],
            categories=[dict(id=1, name="x", isthing=1)])))

    write(tmp_path / "true", "a/1.png", "b/1.png")
    truth = dict(panoptic_json=f"{tmp_path}/true.json", panoptic_dir=f"{tmp_path}/true")
    write(tmp_path / "panoptic", "a/1.png", "b/1.png")
    assert run(tmp_path, **truth)["panoptic"]["counts"][1]["tp"] == 2
    write(tmp_path / "panoptic", "1.png")
    with pytest.raises(ValueError, match=r"has 1 picture \(1\), which the ground truth lacks"):
        run(tmp_path, allow_missing=True, **truth)


def test_bad_flags_end_in_one_sentence(place):
    for given, says in ((dict(), "got no --predictions"),
                        (dict(predictions="found"), "got no ground truth"),
                        (dict(predictions="found", panoptic_json="panoptic.json"), "give both"),
                        (dict(predictions="found", samples=-1), "samples=-1: -1 is not a non-")):
        done = command(place, output="never.json", **given)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and says in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (place / "never.json").exists()
