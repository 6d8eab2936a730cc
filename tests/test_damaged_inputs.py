"""Files damaged at random: every reader gives a result or a sentence, never anything else.

Mutations know the structure of the file: values become others of another type or size, keys
vanish, lists grow and shrink, bytes flip. They are the same in every run.
"""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.data import bundle_writer, bundles, coco_files, label_maps, mask_files
from maskclippp_jax.data.prepare import folder
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.vocabulary import Vocabulary

SIZE = (12, 16)
ODD = (None, True, "", "x", -1, 0, 1, 2**31, 2**70, 1e308, 0.5, [], {}, [[]], [1, 2, 3], {"id": 1},
       "é" * 10, [[1, 2, 3, 4, 5, 6]], {"size": [12, 16], "counts": [192]})
COUNT = 250  # mutations of each reader; a third of them where pictures are read as well


def mutate(content, rng):
    """A copy in which something is another value, or missing, or there twice."""
    content = copy.deepcopy(content)
    places = [(content, None)]

    def collect(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    collect(content)
    for _ in range(rng.integers(1, 3)):
        node, key = places[rng.integers(len(places))]
        if key is None or key not in (node if isinstance(node, dict) else range(len(node))):
            continue
        what = rng.integers(4)
        if what == 0:
            del node[key]
        elif what == 1 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return content


def flip(data: bytes, rng) -> bytes:
    """Some bytes are others, or the end is missing."""
    damaged = bytearray(data)
    if rng.random() < 0.2:
        return bytes(damaged[:rng.integers(len(damaged))])
    for place in rng.integers(0, len(damaged), rng.integers(1, 4)):
        damaged[place] = rng.integers(256)
    return bytes(damaged)


def outcomes(read, damaged, count=COUNT) -> dict[str, int]:
    """How often `read(damaged(rng))` gave a result, and how often a sentence."""
    found = dict(read=0, refused=0)
    for seed in range(count):
        content = damaged(np.random.default_rng(seed))
        try:
            read(content)
            found["read"] += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(error) and "\n" not in str(error).strip(), (seed, str(error))
            found["refused"] += 1
        except Exception as error:
            raise AssertionError(f"mutation {seed} gave {error!r} for {content!r:.500}") from error
    assert found["refused"] > count / 20
    return found


def picture(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)


CODE = run_lengths.encode(np.eye(*SIZE, dtype=bool))
INSTANCES = dict(
    images=[dict(id=1, file_name="p.png", height=12, width=16), dict(id=2, file_name="q.png")],
    annotations=[
        dict(id=1, image_id=1, category_id=1, segmentation=[[1, 1, 9, 1, 9, 9]], iscrowd=0,
             area=20.5, bbox=[1, 1, 8, 8]),
        dict(id=2, image_id=1, category_id=2, segmentation=CODE, iscrowd=1),
        dict(id=3, image_id=2, category_id=2, segmentation=dict(size=[12, 16], counts=[9, 183]))],
    categories=[dict(id=1, name="cat", supercategory="animal"), dict(id=2, name="dog, puppy")])


@pytest.mark.parametrize("names", [None, "cat\ndog\npuppy\n"])
def test_own_data_in_cocos_form(tmp_path, names):
    for name in ("p.png", "q.png"):
        picture(tmp_path / "images" / name)
    if names:
        (tmp_path / "names.txt").write_text(names)

    def read(content):
        (tmp_path / "a.json").write_text(json.dumps(content))
        data = folder.read(str(tmp_path / "images"), str(tmp_path / "a.json"),
                           names and str(tmp_path / "names.txt"))
        for items in data.reading.splits.values():
            for item in items:
                data.reading.make_records(item)

    # A names file that has each name apart fits no category of two: all would be refused.
    base = INSTANCES if names is None else INSTANCES | dict(
        categories=[dict(id=1, name="Cat"), dict(id=2, name="puppy")])
    assert outcomes(read, lambda rng: mutate(base, rng), COUNT // 3)["read"] > 5


def test_truth_and_results_of_instances(tmp_path):
    whole = INSTANCES | dict(images=[dict(i, height=12, width=16) for i in INSTANCES["images"]])
    results = [dict(image_id=1, category_id=1, score=0.5, segmentation=CODE)]

    def read_truth(content):
        (tmp_path / "a.json").write_text(json.dumps(content))
        coco_files.read_instances(str(tmp_path / "a.json"))

    def read_results(content):
        (tmp_path / "b.json").write_text(json.dumps(content))
        for row in coco_files.read_results(str(tmp_path / "b.json")):
            run_lengths.read(row["segmentation"])

    assert outcomes(read_truth, lambda rng: mutate(whole, rng))["read"] > 20
    outcomes(read_results, lambda rng: mutate(results, rng))


LABEL_ME = dict(version="5", shapes=[
    dict(label="cat", points=[[1, 1], [9, 1], [9, 9]], shape_type="polygon"),
    dict(label="dog", points=[[1, 1], [5, 5]], shape_type="rectangle")],
    imageHeight=12, imageWidth=16)
MASKS = [dict(segmentation=CODE, label="cat"), dict(segmentation=[[1, 1, 9, 1, 9, 9]],
                                                    category_id=1)]
TASKS = [dict(id=1, data=dict(image="/x/p.png"), annotations=[dict(result=[
    dict(type="polygonlabels", value=dict(points=[[1, 1], [50, 1], [50, 50]],
                                          polygonlabels=["cat"])),
    dict(type="rectanglelabels", value=dict(x=1, y=1, width=9, height=9, rotation=5,
                                            rectanglelabels=["dog"]))])])]


@pytest.mark.parametrize("name, content", [
    ("labels/p.json", LABEL_ME), ("labels/p.json", MASKS), ("a.json", TASKS)])
def test_json_files_of_annotation_tools(tmp_path, name, content):
    picture(tmp_path / "images/p.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "names.txt").write_text("cat\ndog\n")

    def read(damaged):
        (tmp_path / name).write_text(json.dumps(damaged))
        data = folder.read(str(tmp_path / "images"), str(tmp_path / name.removesuffix("/p.json")),
                           str(tmp_path / "names.txt"))
        for items in data.reading.splits.values():
            for item in items:
                data.reading.make_records(item)

    outcomes(read, lambda rng: mutate(content, rng), COUNT // 3)


def test_files_of_masks(tmp_path):
    def read(content):
        (tmp_path / "a.json").write_bytes(content)
        mask_files.read_masks(str(tmp_path / "a.json"), SIZE)

    rows = [dict(segmentation=CODE), dict(segmentation=[[1, 1, 9, 1, 9, 9]])]
    outcomes(read, lambda rng: json.dumps(mutate(rows, rng)).encode())
    outcomes(read, lambda rng: flip(json.dumps(rows).encode(), rng))


def test_label_maps(tmp_path):
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(SIZE)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.arange(192).reshape(SIZE))
    for name in ("a.png", "a.npy"):
        whole = (tmp_path / name).read_bytes()

        def read(content, file=tmp_path / f"damaged {name}"):
            file.write_bytes(content)
            label_maps.masks_in(mask_files.read(str(file), (4, 4)), None, file)

        outcomes(read, lambda rng, whole=whole: flip(whole, rng))


def test_bundles(tmp_path):
    writer = bundle_writer.Writer(
        tmp_path, masks="logits", stride=4, classes=dict(kind="closed", vocabulary=[["cat"]]),
        generator=dict(name="test"), preparation=dict(loader_min=None, loader_max=None,
                                                      short_side=None, multiple=4))
    writer.add("a", np.zeros((2, 3, 4), np.float32), [SIZE] * 4, np.zeros((2, 2)))
    writer.finish()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    arrays = bundle_writer.file_of(tmp_path, "a").read_bytes()

    def read(content):
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        bundle = bundles.Bundle(str(tmp_path))
        for name in bundle.pictures:
            bundle.read(name)

    def read_arrays(content):
        bundle_writer.file_of(tmp_path, "a").write_bytes(content)
        bundles.Bundle(str(tmp_path)).read("a")

    outcomes(read_arrays, lambda rng: flip(arrays, rng))
    bundle_writer.file_of(tmp_path, "a").write_bytes(arrays)
    outcomes(read, lambda rng: mutate(manifest, rng))


def test_names_files(tmp_path):
    text = "cat, kitten\tthing\t3\t#ff0000\ndog\tstuff\t5\nbird\n".encode()

    def read(content):
        (tmp_path / "names.txt").write_bytes(content)
        Vocabulary.from_file(str(tmp_path / "names.txt"))

    outcomes(read, lambda rng: flip(text, rng))
