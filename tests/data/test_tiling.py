"""Large pictures in tiles: where they lie, what is in them, and that joining gives the whole."""

import json

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.data import images, records, tiling
from maskclippp_jax.data.prepare import folder, making
from maskclippp_jax.data.tiling import Tiles, Window
from maskclippp_jax.evaluation import joining
from maskclippp_jax.evaluation.passes import Picture
from maskclippp_jax.evaluation.truth import IGNORE, open_truth
from maskclippp_jax.naming.segmenter import Found


@pytest.mark.parametrize("size", [(16, 16), (40, 64), (65, 64), (200, 130), (64, 1000)])
@pytest.mark.parametrize("overlap", [0, 16, 63])
def test_tiles_cover_a_picture_and_overlap_enough(size, overlap):
    tiles = Tiles(64, overlap)
    windows = tiling.windows(size, tiles)
    count = np.zeros(size, int)
    for w in windows:
        assert w.shape == tuple(min(side, 64) for side in size)
        count[w.slices] += 1
    assert count.min() >= 1
    for one, two in zip(windows, windows[1:]):
        if one.top == two.top:
            assert one.right - two.left >= overlap
    if max(size) <= 64:
        assert windows == [Window(0, 0, *size)]


def test_a_pixel_is_deepest_in_the_tile_whose_edges_are_far():
    one, two = tiling.windows((4, 12), Tiles(8, 4))
    depths = [tiling.depth(w, (4, 12))[0] for w in (one, two)]
    assert depths[0].tolist() == [7.5, 6.5, 5.5, 4.5, 3.5, 2.5, 1.5, 0.5]
    assert (depths[0][4:] > depths[1][:4]).tolist() == [True, True, False, False]
    alone, = tiling.windows((4, 8), Tiles(8, 4))
    assert len(np.unique(tiling.depth(alone, (4, 8)))) == 1


@pytest.mark.parametrize("tiles", [Tiles(0, 0), Tiles(64, 64), Tiles(64, -1)])
def test_tiles_that_cannot_be_are_refused(tiles):
    with pytest.raises(ValueError, match="^got --"):
        tiling.check(tiles)


def test_ids_of_tiles_tell_where_they_lie():
    name = tiling.id_of("a/b@1,2 of x", Window(3, 4, 67, 68), (100, 200))
    assert tiling.place_of(name) == ("a/b@1,2 of x", (3, 4), (100, 200))
    assert tiling.place_of("a@b") is None


SIZE = (100, 150)
TILES = Tiles(64, 16)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two pictures, of which one is larger than a tile, with masks that overlap, and as a map."""
    root, rng = tmp_path_factory.mktemp("tiles"), np.random.default_rng(0)
    for kind in ("images", "labels", "boxes"):
        (root / kind).mkdir()
    (root / "names.txt").write_text("red\nblue\ngreen\n")
    for name, size in (("large", SIZE), ("small", (40, 50))):
        label = np.full(size, 255, np.uint8)
        label[5:30, 5:size[1] - 5] = 0
        label[20:, 10:40] = 1
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(
            root / "images" / f"{name}.png")
        Image.fromarray(label).save(root / "labels" / f"{name}.png")
        box = lambda x, y, right, bottom: [[x, y, right, y, right, bottom, x, bottom]]
        (root / "boxes" / f"{name}.json").write_text(json.dumps([
            dict(label="red", segmentation=box(2, 2, size[1] - 2, 30)),
            dict(label="blue", segmentation=box(10, 10, 30, size[0])),
            dict(label="green", segmentation=box(12, 12, 20, 20))]))
    return root


def prepare(place, labels, data_dir, name="mine", tiles=TILES):
    making.prepare_folder(making.OwnData(
        str(place / "images"), str(place / labels), str(place / "names.txt"), name,
        folder.Choices(validation="1"), tiles), making.Options(str(data_dir)))
    return open_truth(str(data_dir), name, "validation")


@pytest.mark.parametrize("labels", ["labels", "boxes"])
def test_tiles_of_a_data_set_hold_what_the_whole_has(place, tmp_path, labels):
    tiled = prepare(place, labels, tmp_path)
    whole = prepare(place, labels, tmp_path, "whole", tiles=None)
    assert not whole.tiles and set(tiled.tiles) == {"large", "small"} == set(whole.ids)
    assert len(tiled.tiles["large"]) == 6 and tiled.tiles["small"] == ["small"]
    for name in ("large", "small"):
        np.testing.assert_array_equal(tiled.image(name), whole.image(name))
    row_of = {name: i for i, name in enumerate(whole.ids)}
    masks = dict(zip((record := whole.records[row_of["large"]])["table"]["id"].tolist(),
                     records.decode_masks(record)))
    classes = dict(zip(masks, record["table"]["class_id"].tolist()))
    for i, name in enumerate(tiled.ids):
        if name == "small":
            continue
        _, (top, left), size = tiling.place_of(name)
        record, window = tiled.records[i], (slice(top, top + 64), slice(left, left + 64))
        assert size == SIZE
        table = record["table"]
        shown = {i: m[window] for i, m in masks.items() if m[window].any()}
        assert table["id"].tolist() == list(shown)
        np.testing.assert_array_equal(records.decode_masks(record),
                                      np.reshape(list(shown.values()), (-1, 64, 64)))
        assert table["class_id"].tolist() == [classes[i] for i in shown]
        assert table["area"].tolist() == [m.sum() for m in shown.values()]
        for (x, y, width, height), mask in zip(table["bbox"], shown.values()):
            rows, columns = np.nonzero(mask)
            assert (x, y, x + width, y + height) == (
                columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    if labels == "labels":
        np.testing.assert_array_equal(tiled.semantic("large"), whole.semantic("large"))
        assert tiled.pictures == ["large", "small"]


def test_label_maps_of_tiles_are_joined_and_masks_counted_once(place, tmp_path):
    truth = prepare(place, "labels", tmp_path)
    joining.check(truth, allow_missing=False)
    with pytest.raises(ValueError, match="tiles of larger pictures, none of which may be missing"):
        joining.check(truth, allow_missing=True)
    pictures = []
    for name in truth.ids:
        labels = np.where(truth.semantic(name) == IGNORE, 0, truth.semantic(name))
        true = np.append(truth.records[truth.ids.index(name)]["table"]["class_id"], -1)
        found = Found(np.zeros(len(true), np.int32), labels.astype(np.int16), None, None)
        pictures.append(Picture(name, found, true))
    order = np.random.default_rng(0).permutation(len(pictures))
    done = {name: (tiles, labels) for name, tiles, labels in joining.whole_pictures(
        [pictures[i] for i in order], truth)}
    assert set(done) == {"large", "small"}
    for name, (tiles, labels) in done.items():
        true = truth.semantic(name)
        np.testing.assert_array_equal(labels[true != IGNORE], true[true != IGNORE])
        counted = np.concatenate([tile.labels for tile in tiles])
        assert sorted(counted[counted >= 0].tolist()) == [0, 1]
    largest = max((area, i) for name in truth.tiles["large"]
                  for i, area in truth.masks_in(name) if i == 1)[0]
    shown, = [dict(truth.masks_in(t.image_id))[1] for t in done["large"][0] if 0 in t.labels]
    assert shown == largest


def test_tiles_without_masks_teach_nothing_but_belong_to_a_picture(place):
    data = folder.read(str(place / "images"), str(place / "labels"), str(place / "names.txt"))
    large = next(i for i in data.reading.splits["train"] if i[0] == "large")
    count = lambda keep: len(tiling.cut(data.reading.make_records, TILES, (keep, large)))
    assert count(True) == 6 > count(False)
    tile = tiling.cut(data.reading.make_records, TILES, (True, large))[0]
    assert images.size_of(tile["image"]) == images.size_of(tile["segments"]) == (64, 64)


def test_a_data_set_made_from_other_labels_is_noticed(place, tmp_path, capsys):
    prepare(place, "labels", tmp_path)
    capsys.readouterr()
    prepare(place, "labels", tmp_path)
    assert "made from other" not in capsys.readouterr().out
    prepare(place, "labels", tmp_path, tiles=None)
    assert "mine was made from other labels, pictures or settings" in " ".join(
        capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="--overwrite makes it anew"):
        making.prepare_folder(making.OwnData(
            str(place / "images"), str(place / "boxes"), str(place / "names.txt"), "mine",
            folder.Choices(validation="1"), TILES), making.Options(str(tmp_path), strict=True))
