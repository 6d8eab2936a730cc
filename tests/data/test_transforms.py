import json
import pathlib

import numpy as np
import pytest

from maskclippp_jax.data import transforms

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "training"
CASE = json.loads((GOLDEN / "augment.json").read_text())
ARRAYS = np.load(GOLDEN / "augment.npz")


def jitter_of(drawn: dict) -> transforms.ColorJitter:
    return transforms.ColorJitter(
        brightness=drawn.get("brightness"), contrast=drawn.get("contrast"),
        saturation=drawn.get("sat"), hue=drawn.get("hue_delta"),
        contrast_first=drawn["contrast_first"])


def levels_allowed(drawn: dict) -> int:
    """OpenCV's vector and scalar code differ by one level in each conversion back from HSV."""
    conversions = ("sat" in drawn) + ("hue_delta" in drawn)
    return round(conversions * max(1.0, drawn.get("contrast", 1.0)) * 2) if conversions else 0


@pytest.mark.parametrize("name", CASE["colour"])
def test_colour_jitter_equals_the_published_one(name):
    drawn = CASE["colour"][name]
    got = transforms.apply_color_jitter(ARRAYS["in/image"], jitter_of(drawn))
    difference = np.abs(got.astype(int) - ARRAYS[f"out/colour/{name}"]).max()
    assert difference <= (1 if "all" not in name else levels_allowed(drawn))
    if "sat" not in drawn and "hue_delta" not in drawn:
        assert difference == 0


@pytest.mark.parametrize("name", CASE["semantic"])
def test_semantic_chain_equals_the_published_one(name):
    drawn = CASE["semantic"][name]
    image, labels = ARRAYS["in/image"], ARRAYS["in/labels"]
    size = transforms.shortest_edge(*labels.shape, drawn["short"], drawn["longest"])
    assert size == tuple(ARRAYS[f"out/semantic/{name}/resized_size"])
    image = transforms.resize_image(image, size)
    labels = transforms.resize_segments(labels, size)
    (top, left), (height, width) = drawn["offset"], drawn["crop"]
    window = (slice(top, top + height), slice(left, left + width))
    image, labels = image[window], labels[window]
    image = transforms.apply_color_jitter(image, jitter_of(drawn["colour"]))
    if drawn["flip"]:
        image, labels = image[:, ::-1], labels[:, ::-1]
    want = ARRAYS[f"out/semantic/{name}/image"]
    assert np.abs(image.astype(int) - want).max() <= levels_allowed(drawn["colour"])

    classes = [c for c in np.unique(labels) if c != 255]
    segments = np.where(labels == 255, 0, labels.astype(int) + 1).astype(np.uint16)
    table = dict(id=np.array(classes) + 1, class_id=np.array(classes),
                 is_crowd=np.zeros(len(classes), bool))
    slots, slot_labels = transforms.to_slots(segments, table, 8, name)
    want = ARRAYS[f"out/semantic/{name}/labels"]
    assert slot_labels[:len(want)].tolist() == want.tolist()
    assert (slot_labels[len(want):] == -1).all()
    for n, mask in enumerate(ARRAYS[f"out/semantic/{name}/masks"]):
        np.testing.assert_array_equal(slots == n + 1, mask)


def test_shortest_edge_equals_the_published_sizes():
    got = [transforms.shortest_edge(*asked) for asked in CASE["sizes_asked"]["shortest_edge"]]
    np.testing.assert_array_equal(got, ARRAYS["out/sizes/shortest_edge"])
    assert transforms.shortest_edge(100, 1000, 512, None) == (512, 5120)  # no longest side


def test_drawn_jitter_stays_in_the_published_ranges():
    drawn = [transforms.draw_color_jitter(np.random.default_rng(i)) for i in range(400)]
    for name, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5),
                            ("saturation", 0.5, 1.5), ("hue", -18, 18)):
        values = [getattr(j, name) for j in drawn if getattr(j, name) is not None]
        assert 140 < len(values) < 260  # a fair coin each
        assert low <= min(values) and max(values) <= high
        assert max(values) - min(values) > 0.9 * (high - low)
    assert 140 < sum(j.contrast_first for j in drawn) < 260


def test_crop_keeps_picture_and_segments_together():
    segments = np.arange(30 * 20).reshape(30, 20).astype(np.uint16)
    image = np.repeat(segments[..., None], 3, 2)
    seen = set()
    for i in range(40):
        a, b = transforms.random_crop(np.random.default_rng(i), image, segments, 24)
        assert b.shape == (24, 20)
        np.testing.assert_array_equal(a[..., 0], b)
        seen.add(int(b[0, 0]) // 20)
    assert seen == set(range(7))


def test_crowds_and_vanished_segments_get_no_slot():
    segments = np.array([[7, 7, 0], [9, 3, 3]], np.uint16)
    table = dict(id=np.array([3, 5, 7, 9]), class_id=np.array([30, 50, 70, 90]),
                 is_crowd=np.array([False, False, True, False]))
    slots, labels = transforms.to_slots(segments, table, 3, "x")
    np.testing.assert_array_equal(slots, [[0, 0, 0], [2, 1, 1]])
    assert labels.tolist() == [30, 90, -1]


def test_too_many_masks_name_the_image_and_the_key():
    table = dict(id=np.array([1, 2]), class_id=np.array([0, 1]), is_crowd=np.zeros(2, bool))
    with pytest.raises(ValueError, match="image a.jpg has 2 masks.*num_masks"):
        transforms.to_slots(np.array([[1, 2]], np.uint16), table, 1, "a.jpg")


def test_of_too_many_masks_the_smallest_are_left_out():
    segments = np.array([[1, 1, 1, 2, 3, 3, 4]], np.uint16)
    table = dict(id=np.array([1, 2, 3, 4, 5]), class_id=np.array([10, 20, 30, 40, 50]),
                 is_crowd=np.zeros(5, bool))
    slots, labels = transforms.to_slots(segments, table, 3, "x", drop_smallest=True)
    assert labels.tolist() == [10, 20, 30] and slots.tolist() == [[1, 1, 1, 2, 3, 3, 0]]
    slots, labels = transforms.to_slots(segments, table, 5, "x", keep_vanished=True)
    assert labels.tolist() == [10, 20, 30, 40, 50] and slots.max() == 4
    slots, labels = transforms.to_slots(segments, table, 4, "x", keep_vanished=True,
                                        drop_smallest=True)
    assert labels.tolist() == [10, 20, 30, 40]  # the vanished one first


def test_degraded_masks_are_displaced_but_keep_most_segments():
    segments = np.ones((64, 64), np.uint16)
    segments[20:44, 20:40] = 2
    overlaps = []
    for i in range(20):
        got = transforms.degrade_segments(np.random.default_rng(i), segments)
        assert set(np.unique(got)) <= {0, 1, 2}
        overlaps.append(((got == 2) & (segments == 2)).sum() / ((got == 2) | (segments == 2)).sum())
    assert 0.2 < np.mean(overlaps) < 0.8


def test_versions_for_augmentation_come_as_they_are_and_mirrored(rng):
    image = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    versions = transforms.versions_of((20, 40), flip=True)
    assert versions == [(20, False), (20, True), (40, False), (40, True)]
    plain, mirrored, large, _ = (transforms.make_version(image, v, 45) for v in versions)
    np.testing.assert_array_equal(plain, image)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    assert large.shape == (30, 45, 3)  # the longest side decides
    assert transforms.versions_of((20, 40), flip=False) == [(20, False), (40, False)]
    as_loaded, flipped = transforms.versions_of((), flip=True)
    assert as_loaded == transforms.Version() and str(flipped) == "as loaded mirrored"
    np.testing.assert_array_equal(transforms.make_version(image, flipped), image[:, ::-1])
    long = transforms.version_size((100, 1000), transforms.Version(500))
    assert long == (400, 4000)
