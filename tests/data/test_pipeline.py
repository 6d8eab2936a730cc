"""Batches: padding, order, hosts, resuming."""

import numpy as np
import pytest

from maskclippp_jax.data import images, pipeline, records

SETTINGS = dict(family=pipeline.SemanticFamily(48, (32, 48, 60)), num_masks=6, batch_size=4, seed=3)
PANOPTIC = SETTINGS | dict(family=pipeline.PanopticFamily(48))


def make_records(rng, count=10, side=(40, 56)):
    result = []
    for i in range(count):
        height, width = rng.integers(*side, 2)
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        label = rng.integers(0, 5, (height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)
        label = np.where(label == 4, 255, label)[:height, :width]
        record = records.semantic_record(images.encode_png(image), f"p{i}", label, [True] * 4)
        record["table"] = {k: np.array(v) for k, v in record["table"].items()}
        result.append(record)
    return result


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a) and set(a) == set(b)


def test_the_batch_has_the_promised_shapes_and_padding(rng):
    for batch in take(pipeline.train_batches([make_records(rng)], **SETTINGS), 6):
        assert batch["image"].shape == (4, 48, 48, 3) and batch["image"].dtype == np.uint8
        assert batch["segments"].shape == (4, 48, 48) and batch["segments"].dtype == np.uint16
        assert batch["labels"].shape == (4, 6) and batch["labels"].dtype == np.int32
        for image, size, segments, labels in zip(*(batch[k] for k in (
                "image", "image_size", "segments", "labels"))):
            assert not image[size[0]:].any() and not image[:, size[1]:].any()
            assert not segments[size[0]:].any() and not segments[:, size[1]:].any()
            count = (labels >= 0).sum()
            assert (labels[:count] >= 0).all() and (labels[count:] == -1).all()
            assert set(np.unique(segments)) - {0} == set(range(1, count + 1))
            assert (np.diff(labels[:count]) > 0).all()  # semantic: classes ascend


def test_hosts_share_out_the_stream_of_one_host(rng):
    source = make_records(rng)
    one = take(pipeline.train_batches([source], **SETTINGS), 5)
    two = [take(pipeline.train_batches([source], host=h, hosts=2, **SETTINGS), 5) for h in range(2)]
    for whole, first, second in zip(one, *two):
        for key in whole:
            np.testing.assert_array_equal(whole[key], np.concatenate([first[key], second[key]]))


def test_a_resumed_stream_goes_on_exactly(rng):
    source = make_records(rng)
    whole = take(pipeline.train_batches([source], **SETTINGS), 7)
    rest = take(pipeline.train_batches([source], start_step=4, **SETTINGS), 3)
    assert all(same(a, b) for a, b in zip(whole[4:], rest))
    assert not same(whole[0], whole[4])


def test_another_seed_gives_another_stream(rng):
    source = make_records(rng)
    first = next(pipeline.train_batches([source], **SETTINGS))
    other = next(pipeline.train_batches([source], **{**SETTINGS, "seed": 4}))
    assert not same(first, other)


def test_evaluation_sees_every_picture_once_at_its_stored_size(rng):
    source = make_records(rng, 11, side=(40, 140))
    seen = []
    for batch in pipeline.eval_batches(source, batch_size=4, loader_min=32, loader_max=64):
        assert batch["image"].shape[1] % 64 == 0 and batch["segments"].shape[1] % 64 == 0
        assert batch["labels"].shape[1] == 8
        for b in np.flatnonzero(batch["valid"]):
            seen.append(batch["image_id"][b])
            size = batch["image_size"][b]
            assert size.min() == 32 or size.max() == 64
            stored = records.decode_segments(source[int(seen[-1][1:])]["segments"])
            assert stored.shape == tuple(batch["segments_size"][b])
            np.testing.assert_array_equal(
                batch["segments"][b, :stored.shape[0], :stored.shape[1]] > 0, stored > 0)
        assert (batch["labels"][~batch["valid"]] == -1).all()
    assert sorted(seen) == sorted(f"p{i}" for i in range(11))


def test_evaluation_hosts_see_as_many_batches_and_each_picture_once(rng):
    source = make_records(rng, 9, side=(40, 140))
    settings = dict(batch_size=4, loader_min=None, loader_max=None)
    per_host = [list(pipeline.eval_batches(source, host=h, hosts=2, **settings)) for h in range(2)]
    assert len(per_host[0]) == len(per_host[1])
    seen = []
    for a, b in zip(*per_host):
        assert a["image"].shape == b["image"].shape and a["labels"].shape == b["labels"].shape
        np.testing.assert_array_equal(a["image_sizes"], b["image_sizes"])
        np.testing.assert_array_equal(
            a["image_sizes"], np.concatenate([a["image_size"], b["image_size"]]))
        seen += [n for batch in (a, b) for n, v in zip(batch["image_id"], batch["valid"]) if v]
    assert sorted(seen) == sorted(f"p{i}" for i in range(9))


def test_a_picture_that_cannot_be_decoded_is_named(rng):
    record = make_records(rng, 1)[0] | dict(image=b"\xff\xd8nonsense")
    with pytest.raises(ValueError, match="record p0 cannot be decoded"):
        pipeline.decode(record)


def test_a_batch_that_hosts_cannot_share_is_refused(rng):
    with pytest.raises(ValueError, match="batch_size is 4, but there are 3 hosts"):
        next(pipeline.train_batches([make_records(rng)], hosts=3, **SETTINGS))


@pytest.mark.parametrize("workers", [2])
def test_worker_processes_give_the_same_stream(rng, workers):
    source = make_records(rng)
    here = take(pipeline.train_batches([source], **SETTINGS), 4)
    there = take(pipeline.train_batches([source], workers=workers, **SETTINGS), 4)
    assert all(same(a, b) for a, b in zip(here, there))


def test_the_panoptic_family_fills_the_canvas_and_keeps_every_segment(rng):
    source = make_records(rng)
    for batch in take(pipeline.train_batches([source], **PANOPTIC), 8):
        assert (batch["image_size"] == 48).all()
        for segments, labels in zip(batch["segments"], batch["labels"]):
            count = (labels >= 0).sum()
            assert count == 4  # also those of which the crop left nothing
            assert set(np.unique(segments)) - {0} <= set(range(1, count + 1))
    small = [b for b in take(pipeline.train_batches([source], **PANOPTIC), 20)
             if (b["image"] == 128).all(-1).mean() > 0.5]
    assert small  # scales below 1 are padded with grey


def test_sources_are_mixed_by_weight_and_none_is_lost(rng):
    first, second = make_records(rng, 6), make_records(rng, 6)
    for i, record in enumerate(second):
        record["table"]["class_id"] = record["table"]["class_id"] + 10
    batches = take(pipeline.train_batches([first, second], weights=(3, 1), **SETTINGS), 40)
    labels = np.concatenate([b["labels"][:, 0] for b in batches])
    assert 0.2 < (labels >= 10).mean() < 0.3
    by_size = take(pipeline.train_batches([first, second[:2]], **SETTINGS), 40)
    labels = np.concatenate([b["labels"][:, 0] for b in by_size])
    assert 0.2 < (labels >= 10).mean() < 0.3
    rest = take(pipeline.train_batches([first, second], weights=(3, 1), start_step=25,
                                       **SETTINGS), 3)
    assert all(same(a, b) for a, b in zip(batches[25:], rest))


def test_every_picture_comes_once_a_pass(rng):
    source = make_records(rng, 12)
    for i, record in enumerate(source):
        record["table"]["class_id"] = np.full_like(record["table"]["class_id"], i)
    batches = take(pipeline.train_batches([source], **SETTINGS), 6)
    for part in (batches[:3], batches[3:]):
        assert sorted(np.concatenate([b["labels"][:, 0] for b in part])) == list(range(12))
    assert not np.array_equal(batches[0]["labels"], batches[3]["labels"])


def test_a_broken_record_stops_the_stream_or_becomes_an_empty_picture(rng):
    source = make_records(rng, 4)
    source[2]["image"] = b"nonsense"
    with pytest.raises(ValueError, match="record p2 cannot be decoded"):
        next(pipeline.train_batches([source], **SETTINGS))
    batch = next(pipeline.train_batches([source], skip_broken=True, **SETTINGS))
    assert batch["broken"].sum() == 1
    empty = batch["broken"].argmax()
    assert (batch["labels"][empty] == -1).all() and not batch["segments"][empty].any()


def test_padding_is_counted_by_canvas():
    got = pipeline.padding_of([(64, 64), (60, 64), (65, 64)], batch_size=2, canvas_multiple=64)
    assert got.canvases == 2 and got.filling == pytest.approx(1 / 4)
    assert got.pixels == pytest.approx(1 - (64 + 60 + 65) / (64 + 64 + 128))
