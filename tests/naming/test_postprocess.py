"""Results of soft masks: tiles against everything at full size, rules against loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax.data import mask_chain
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.models import resample
from maskclippp_jax.naming import blocks as in_blocks, postprocess
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.postprocess import Classes, Heads, Proposals
from maskclippp_jax.runtime import sharding

pytestmark = pytest.mark.usefixtures("explicit_ranks")

CANVAS = (64, 96)
TILE = (16, 32)
THINGS = [True, False, True, False, False]
COLUMNS = 8
SLOTS = 12


def bilinear(maps, size):
    """[..., h, w] -> [..., H, W] in float64: half-pixel centres, no antialiasing."""
    for axis, n in zip((-2, -1), size):
        count = maps.shape[axis]
        place = np.maximum((np.arange(n) + 0.5) * count / n - 0.5, 0)
        low = np.minimum(np.floor(place).astype(int), count - 1)
        part = (place - low).reshape(-1, *[1] * (-axis - 1))
        high = np.minimum(low + 1, count - 1)
        maps = np.take(maps, low, axis) * (1 - part) + np.take(maps, high, axis) * part
    return maps


def full_size(masks, sizes, size):
    """The masks of one picture at its size, step by step."""
    stored, enlarged, kept = (tuple(map(int, s)) for s in sizes)
    masks = masks[:, :stored[0], :stored[1]].astype(np.float64)
    return bilinear(bilinear(masks, enlarged)[:, :kept[0], :kept[1]], size)


def smooth_masks(rng, count, size):
    """Blobs with soft rims, some of them faint."""
    rows, columns = np.mgrid[:size[0], :size[1]]
    centre, radius = rng.random((count, 2)) * size, rng.uniform(2, 8, count)
    distance = np.hypot(rows - centre[:, 0, None, None], columns - centre[:, 1, None, None])
    strength = rng.choice([1.0, 0.8, 0.45], (count, 1, 1), p=[0.6, 0.3, 0.1])
    return (strength / (1 + np.exp(2 * (distance - radius[:, None, None])))).astype(np.float32)


def make_picture(rng, size, count, num_classes=len(THINGS), generator=(83, 107)):
    """A picture of `count` masks in SLOTS slots, without a batch axis."""
    sizes = mask_chain.generated_mask_sizes(np.array(generator), 32)
    stored = tuple(sizes.stored)
    masks = np.zeros((SLOTS, 24, 40), np.float32)  # a canvas, larger than what is stored
    masks[:count, :stored[0], :stored[1]] = smooth_masks(rng, count, stored)
    scores = np.zeros((SLOTS, COLUMNS), np.float32)
    void = np.ones(SLOTS, np.float32)
    drawn = rng.dirichlet(np.full(num_classes + 1, 0.3), count)
    scores[:count, :num_classes], void[:count] = drawn[:, :-1], drawn[:, -1]
    return Proposals(masks, np.arange(SLOTS) < count, sizes, np.array(size, np.int32),
                     MaskScores(scores, void))


def batch_of(*pictures):
    return jax.tree.map(lambda *x: np.stack(x), *pictures)


def classes(threshold=0.0, is_thing=THINGS):
    return Classes.of(is_thing, COLUMNS, threshold)


@pytest.fixture(scope="module")
def all_heads():
    return postprocess.make_heads(Heads(True, True, 20), TILE)


def run(heads, picture, threshold=0.0):
    """The results of one picture."""
    return jax.tree.map(lambda x: np.asarray(x)[0],
                        heads(batch_of(picture), classes(threshold), CANVAS))


@jax.jit
def label_map(masks, sizes, size, scores):
    """Labels and their scores of one picture, without the other heads."""
    flat = jnp.zeros(1, bool)
    return postprocess.augmented_labels(masks[None], jax.tree.map(lambda x: x[None], sizes), flat,
                                        scores[None], len(THINGS), size, CANVAS, tile=TILE)


@pytest.mark.parametrize("size", [(61, 90), (33, 96), (15, 20)])
def test_label_maps_equal_enlarging_all_and_summing(all_heads, rng, size):
    picture = make_picture(rng, size, 9)
    full = full_size(picture.masks, picture.mask_sizes, size)
    want = np.einsum("nc,nhw->chw", picture.scores.classes.astype(float), full)
    labels, best = (x[:size[0], :size[1]] for x in jax.device_get(label_map(
        picture.masks, picture.mask_sizes, picture.output_size,
        picture.scores.classes)))
    np.testing.assert_allclose(best, want.max(0), atol=3e-6)
    first, second = np.sort(want, 0)[-1], np.sort(want, 0)[-2]
    clear = first - second > 1e-6
    np.testing.assert_array_equal(labels[clear], want.argmax(0)[clear])
    assert clear.mean() > 0.95 and len(np.unique(labels)) > 2
    np.testing.assert_array_equal(run(all_heads, picture).labels[:size[0], :size[1]], labels)


def test_equal_classes_give_the_first_and_uncovered_pixels_class_0(all_heads, rng):
    picture = make_picture(rng, (61, 90), 6)
    picture = picture._replace(masks=(picture.masks > 0.5).astype(np.float32))
    scores = picture.scores.classes
    scores[:, 3] = scores[:, 1] = 10
    labels = run(all_heads, picture).labels[:61, :90]
    covered = full_size(picture.masks, picture.mask_sizes, (61, 90)).sum(0) > 0
    assert set(np.unique(labels[covered])) == {1} and not labels[~covered].any()
    assert not covered.all()


SEGMENTS = {  # ids of the segment of every pixel
    "blobs": lambda rng: np.kron(rng.integers(0, 7, (5, 6)), np.ones((8, 8), int)),
    "noise": lambda rng: rng.integers(0, 7, (40, 48)),
    "one": lambda rng: np.full((40, 48), 3),
    "none": lambda rng: np.zeros((40, 48), int),
}


@pytest.mark.parametrize("passed", [(37, 45), (64, 78), (17, 21)],
                         ids=["same", "larger", "smaller"])
@pytest.mark.parametrize("kind", SEGMENTS)
def test_label_maps_of_segments_equal_summing_all_their_masks(rng, monkeypatch, kind, passed):
    """Also where the pixels that mix segments come in several parts, and rows in a last block that
    is not full; two classes are equal."""
    monkeypatch.setattr(postprocess, "_MIXED", 40)
    size = (37, 45)
    segments = np.zeros((44, 50), np.uint16)
    segments[:37, :45] = SEGMENTS[kind](rng)[:37, :45]
    scores = rng.dirichlet(np.ones(5), 6)[:, [0, 1, 2, 1, 3]].astype(np.float32)
    got = np.asarray(jax.jit(postprocess.segment_labels)(
        segments, np.array(size, np.int32), np.array(passed, np.int32), scores))
    masks = (segments[None, :37, :45] == np.arange(1, 7)[:, None, None]).astype(float)
    full = bilinear(bilinear(masks, passed), size)
    want = np.einsum("nc,nhw->chw", scores.astype(float), full)
    assert got.shape == segments.shape and 3 not in got
    top = np.sort(want[[0, 1, 2, 4]], 0)
    clear = (top[-1] - top[-2] > 1e-6) | (top[-1] == 0)
    np.testing.assert_array_equal(got[:37, :45][clear], want.argmax(0)[clear])
    assert clear.mean() > 0.99
    assert (len(np.unique(got[:37, :45])) > 2) == (kind in ("blobs", "noise"))


def test_the_first_of_equal_masks_wins_a_pixel(all_heads, rng):
    picture = make_picture(rng, (61, 90), 4)
    picture.masks[:4] = picture.masks[1]
    picture.scores.classes[:4] = np.array([0.1, 0.4, 0.4, 0.2])[:, None] * np.eye(COLUMNS)[0]
    picture.scores.void[:4] = 0
    winner = run(all_heads, picture).facts.winner[:61, :90]
    full = full_size(picture.masks[1:2], picture.mask_sizes, (61, 90))[0]
    clear = abs(full - 0.5) > 1e-5
    np.testing.assert_array_equal(winner[clear], np.where(full >= 0.5, 2, -2)[clear])
    assert len(np.unique(winner)) == 2


def panoptic_by_the_text(scores, void, full, is_thing, object_threshold, overlap_threshold):
    """The rules of the specification, mask by mask, at full size."""
    probabilities = np.concatenate([scores, void[:, None]], -1)
    best, category = probabilities.max(-1), probabilities.argmax(-1)
    keep = [q for q in range(len(full)) if category[q] < len(is_thing)
            and best[q] > np.float32(object_threshold)]
    ids, segments, stuff = np.zeros(full.shape[1:], int), [], {}
    if not keep:
        return ids, segments
    winner = np.array(keep)[(best[keep, None, None] * full[keep]).argmax(0)]
    for q in keep:
        won, covered = winner == q, full[q] >= 0.5
        if not (won.sum() and covered.sum() and (won & covered).sum()):
            continue
        if won.sum() / covered.sum() < overlap_threshold:
            continue
        if category[q] in stuff:
            ids[won & covered] = stuff[category[q]]
            continue
        segments.append((len(segments) + 1, category[q]))
        ids[won & covered] = len(segments)
        if not is_thing[category[q]]:
            stuff[category[q]] = len(segments)
    return ids, segments


@pytest.mark.parametrize("seed", range(6))
def test_panoptic_segments_equal_the_rules_at_full_size(all_heads, seed):
    rng = np.random.default_rng(seed)
    size, thresholds = (61, 90), [(0.0, 0.0), (0.2, 0.7), (0.0, 0.8)][seed % 3]
    picture = make_picture(rng, size, 11)
    results = run(all_heads, picture, thresholds[0])
    ids, segments = postprocess.panoptic_segments(
        results.facts.winner[:size[0], :size[1]], results.facts.covered, results.categories,
        THINGS, thresholds[1])
    full = full_size(picture.masks[:11], picture.mask_sizes, size)
    scores = picture.scores
    want, expected = panoptic_by_the_text(scores.classes[:11, :5].astype(float),
                                          scores.void[:11].astype(float), full, THINGS, *thresholds)
    assert [(s["id"], s["category_id"]) for s in segments] == expected
    assert all(s["isthing"] == THINGS[s["category_id"]] for s in segments)
    assert (ids != want).mean() < 2e-3  # pixels where rounding decides
    assert len(segments) >= 2


def test_panoptic_draws_merge_stuff_and_drop_overlapped_masks():
    """The draws above are worth something: both rules are met in them."""
    merged = dropped = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        picture = make_picture(rng, (61, 90), 11)
        full = full_size(picture.masks[:11], picture.mask_sizes, (61, 90))
        scores, void = (x[:11].astype(float) for x in picture.scores)
        loose = panoptic_by_the_text(scores[:, :5], void, full, THINGS, 0, 0)[1]
        apart = panoptic_by_the_text(scores[:, :5], void, full, [True] * 5, 0, 0)[1]
        tight = panoptic_by_the_text(scores[:, :5], void, full, THINGS, 0, 0.8)[1]
        merged, dropped = merged + len(apart) - len(loose), dropped + len(loose) - len(tight)
    assert merged > 0 and dropped > 0


def test_thresholds_are_met_exactly_and_stuff_is_remembered_once_it_passed():
    strip = lambda *parts: np.concatenate([np.full(n, v, np.int16) for v, n in parts])[None]
    # Masks 1, 2, 3 are one stuff class: 7 of 10, 8 of 10, and 2 of 1 pixels won; the others are
    # things, of which 5 wins pixels only with less than a half, and 6 covers nothing.
    winner = strip((1, 7), (2, 6), (-2, 2), (3, 1), (-3, 1), (4, 3), (-5, 4), (6, 2), (0, 5))
    covered = np.array([10, 10, 1, 3, 4, 0])
    ids, segments = postprocess.panoptic_segments(winner, covered, np.array([1, 1, 1, 0, 2, 0]),
                                                  THINGS, 0.8)
    assert segments == [dict(id=1, category_id=1, isthing=False),
                        dict(id=2, category_id=0, isthing=True)]
    np.testing.assert_array_equal(
        ids, strip((0, 7), (1, 6), (0, 2), (1, 1), (0, 1), (2, 3), (0, 4), (0, 2), (0, 5)))


def test_half_itself_counts_for_segments_and_not_for_instances(all_heads):
    picture = make_picture(np.random.default_rng(0), (24, 32), 1, generator=(24, 32))
    same = np.array([24, 32], np.int32)
    picture = picture._replace(mask_sizes=MaskSizes(same, same, same),
                               masks=np.zeros((SLOTS, 24, 32), np.float32))
    picture.masks[0, :4] = 0.5
    picture.scores.classes[0] = np.eye(COLUMNS)[0]
    picture.scores.void[0] = 0
    results = run(all_heads, picture)
    assert (results.facts.covered[0], results.facts.above[0]) == (4 * 32, 0)
    ids, segments = postprocess.panoptic_segments(
        results.facts.winner[:24, :32], results.facts.covered, results.categories, THINGS, 0.8)
    assert len(segments) == 1 and (ids[:4] == 1).all() and not ids[4:].any()
    found = postprocess.instances(results.instance_scores, results.instance_classes,
                                  results.instance_masks, results.facts.bits, (24, 32))
    assert found.scores[0] == 0 and not found.masks.any()


@pytest.mark.parametrize("count, size", [(11, (61, 90)), (2, (30, 41))])
def test_instances_equal_the_rules_at_full_size(all_heads, rng, count, size):
    picture = make_picture(rng, size, count)
    results = run(all_heads, picture)
    got = postprocess.instances(results.instance_scores, results.instance_classes,
                                results.instance_masks, results.facts.bits, size)
    full = full_size(picture.masks[:count], picture.mask_sizes, size)
    scores = picture.scores.classes[:count, :5]
    best = np.argsort(-scores.ravel(), kind="stable")[:20]
    want = [(q, k) for q, k in zip(best // 5, best % 5) if THINGS[k]]
    assert got.classes.tolist() == [k for _, k in want] and len(want) < min(20, count * 5)
    for score, mask, (q, k) in zip(got.scores, got.masks, want):
        inside = full[q] > 0.5
        assert (mask != inside).mean() < 1e-3
        mean = (full[q] * inside).sum() / (inside.sum() + 1e-6)
        assert score == pytest.approx(scores[q, k] * mean, abs=1e-5)
    boxes = postprocess.boxes(got.masks)
    for box, mask in zip(boxes, got.masks):
        left, top, right, bottom = map(int, box)
        assert mask[top:bottom, left:right].sum() == mask.sum()
        if mask.any():
            assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any()
            assert mask[:, right - 1].any()


def test_neither_padded_columns_nor_empty_slots_take_places_among_instances():
    scores = np.zeros((3, COLUMNS), np.float32)
    scores[:, 0] = 0.5, 0.4, 0.9  # the last slot is empty
    facts = postprocess.MaskFacts(None, None, np.full(3, 10), np.full(3, 8.0), None)
    found, classes, masks = jax.jit(functools.partial(postprocess.top_pairs, count=5))(
        scores, np.array([True, True, False]), Classes.of([True] * 3, COLUMNS), facts)
    assert list(zip(masks.tolist(), classes.tolist())) == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1)]
    np.testing.assert_allclose(found, [0.4, 0.32, 0, 0, 0], atol=1e-6)


def test_a_mask_without_a_pixel_has_a_box_of_zeros():
    assert postprocess.boxes(np.zeros((1, 3, 4), bool)).tolist() == [[0] * 4]


def test_a_picture_without_masks_gives_nothing(all_heads, rng):
    results = run(all_heads, make_picture(rng, (61, 90), 0))
    assert not results.labels.any() and not results.facts.winner.any()
    assert (results.instance_classes == -1).all()
    ids, segments = postprocess.panoptic_segments(results.facts.winner, results.facts.covered,
                                                  results.categories, THINGS, 0.8)
    assert not ids.any() and segments == []


def test_empty_slots_and_a_larger_canvas_change_nothing(all_heads, rng):
    """Slots with masks of nonsense, and a canvas that fits exactly."""
    picture = make_picture(rng, (48, 64), 7)
    want = run(all_heads, picture)
    noisy = picture._replace(masks=picture.masks.copy())
    noisy.masks[7:] = 1
    exact = jax.tree.map(lambda x: np.asarray(x)[0],
                         all_heads(batch_of(noisy), classes(), (48, 64)))
    np.testing.assert_array_equal(exact.labels, want.labels[:48, :64])
    np.testing.assert_array_equal(exact.facts.winner, want.facts.winner[:48, :64])
    np.testing.assert_array_equal(exact.instance_classes, want.instance_classes)
    np.testing.assert_array_equal(exact.facts.covered[:7], want.facts.covered[:7])
    assert not want.facts.winner[48:].any() and not want.facts.winner[:, 64:].any()


@pytest.mark.parametrize("size", [(61, 90), (150, 70), (1, 200)])
def test_blocks_of_a_picture_give_what_one_canvas_gives(all_heads, rng, monkeypatch, size):
    monkeypatch.setattr(postprocess, "tile_for", lambda: TILE)
    monkeypatch.setitem(in_blocks._BLOCK, "cpu", (64, 64))
    picture = make_picture(rng, size, 9)
    sizes = MaskSizes(*(x.tolist() for x in picture.mask_sizes))
    look = functools.partial(all_heads, batch_of(picture), classes())
    blocks = jax.tree.map(lambda x: x[0], in_blocks.look_at(look, sizes, size))
    assert len(blocks) * len(blocks[0]) > 1
    whole = jax.tree.map(lambda x: np.asarray(x)[0], look(
        canvas=tuple(-(-side // 8) * 8 for side in size)))
    cut = lambda x: x[..., :size[0], :size[1]]
    labels = in_blocks.join([[b.labels for b in row] for row in blocks])
    np.testing.assert_array_equal(cut(labels), cut(whole.labels))
    facts = in_blocks.join_facts([[b.facts for b in row] for row in blocks])
    np.testing.assert_array_equal(cut(facts.winner), cut(whole.facts.winner))
    bits = lambda x: cut(np.unpackbits(x.bits, axis=-1))
    np.testing.assert_array_equal(bits(facts), bits(whole.facts))
    for name in ("covered", "above"):
        np.testing.assert_array_equal(getattr(facts, name), getattr(whole.facts, name))
    np.testing.assert_allclose(facts.total, whole.facts.total, rtol=1e-5)
    assert facts.above.any()


def test_no_block_reads_more_than_its_window(rng):
    read = jax.jit(lambda first, *stages: resample.bilinear_taps(16, *stages, first=first).index)
    for _ in range(2000):
        stored, enlarged, kept, target = (int(n) for n in rng.integers(1, 300, 4))
        stages = resample.Stage(min(kept, enlarged), target), resample.Stage(stored, enlarged)
        window = resample.window_of(16, *stages)
        index = np.asarray(read(int(rng.integers(0, target)), *stages))
        assert index.max() - index.min() < window
        assert window == resample.few(window)


def test_few_numbers_stand_for_all():
    assert [resample.few(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 64, 65, 97, 129)] == [
        1, 2, 3, 4, 6, 8, 12, 16, 64, 96, 128, 192]


def test_other_pictures_and_vocabularies_compile_nothing(rng):
    heads = postprocess.make_heads(Heads(True, True, 20), TILE)
    run(heads, make_picture(rng, (61, 90), 9))
    picture = make_picture(rng, (20, 96), 3, num_classes=7, generator=(40, 150))
    heads(batch_of(picture), classes(0.3, [True] * 7), CANVAS)
    assert heads._cache_size() == 1


def test_a_mesh_gives_what_one_device_gives(all_heads, rng):
    pictures = [make_picture(rng, (61 - i, 90 - 2 * i), 3 + i) for i in range(8)]
    want = [run(all_heads, p) for p in pictures]
    mesh = sharding.make_mesh(2)
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch_of(*pictures), sharding.batch_sharding(mesh))
        got = all_heads(batch, jax.device_put(classes(), sharding.replicated(mesh)), CANVAS)
        assert len(got.labels.sharding.device_set) == 8
    for i in range(8):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: np.asarray(x)[i], got),
                     want[i])


def test_masks_of_8_bits_are_255ths(rng):
    picture = make_picture(rng, (61, 90), 9)
    eight = np.round(picture.masks * 255).astype(np.uint8)
    run_one = lambda masks: label_map(masks, picture.mask_sizes, picture.output_size,
                                      picture.scores.classes)
    (labels, best), want = run_one(eight), run_one(eight.astype(np.float32) / 255)
    np.testing.assert_allclose(best, want[1], atol=1e-6)
    assert (labels != want[0]).mean() < 1e-3
    assert jax.jit(resample.soft)(np.uint8([0, 255])).tolist() == [0, 1]


def test_versions_of_a_picture_are_averaged_and_flips_flipped_back(rng):
    size = np.array([50, 70], np.int32)
    stored = np.array([[10, 14], [10, 14], [20, 28]], np.int32)
    sizes = MaskSizes(stored, stored * 4, stored * 4 - [[0, 3], [0, 3], [2, 0]])
    masks = np.zeros((3, 4, 20, 30), np.float32)
    scores = rng.dirichlet(np.full(5, 0.5), (3, 4)).astype(np.float32)
    flipped = np.array([False, True, True])
    total = np.zeros((5, 50, 70))
    for v in range(3):
        masks[v, :, :stored[v, 0], :stored[v, 1]] = smooth_masks(rng, 4, stored[v])
        full = full_size(masks[v], MaskSizes(*(s[v] for s in sizes)), size)
        maps = np.einsum("nc,nhw->chw", scores[v].astype(float), full)
        total += (maps[..., ::-1] if flipped[v] else maps) / 3
    average = jax.jit(functools.partial(postprocess.augmented_labels, canvas=CANVAS, tile=TILE))
    labels, best = average(masks, sizes, flipped, scores, 5, size)
    np.testing.assert_allclose(best[:50, :70], total.max(0), atol=3e-6)
    top = np.sort(total, 0)
    clear = top[-1] - top[-2] > 1e-5
    np.testing.assert_array_equal(labels[:50, :70][clear], total.argmax(0)[clear])
    assert clear.mean() > 0.95 and len(np.unique(labels)) > 2


@pytest.mark.parametrize("kind", ["generated", "given"])
def test_masks_reach_the_token_grid_through_every_size(rng, kind):
    patch, canvas, network = 7, (42, 70), np.array([42, 59])
    generator = np.array([80, 113])
    if kind == "generated":
        sizes = mask_chain.generated_mask_sizes(generator, 32)
        assert [x.tolist() for x in sizes] == [[24, 32], [96, 128], [80, 113]]
    else:
        sizes = mask_chain.given_mask_sizes(np.array([24, 32]), generator)
        assert [x.tolist() for x in sizes] == [[24, 32], [80, 113], [80, 113]]
    masks = smooth_masks(rng, 5, (24, 32))
    got = jax.jit(mask_chain.to_grid, static_argnums=(3, 4))(masks, sizes, network, patch, canvas)
    seen = np.zeros((5, *canvas))
    seen[:, :42, :59] = full_size(masks, sizes, network)
    np.testing.assert_allclose(got, bilinear(seen, (6, 10)).reshape(5, -1), atol=1e-5)


@pytest.mark.parametrize("size, windows", [
    pytest.param((62, 92), 2, id="as the canvases"), pytest.param((48, 72), 1, id="smaller"),
    pytest.param((9, 12), 0, id="masks are shrunk")])
def test_tiles_read_windows_of_the_size_they_need(rng, size, windows):
    """True sizes in the ratio of the canvases, and in others."""
    masks = rng.random((1, 3, 48, 60)).astype(np.float32)
    size = np.array(size)
    sizes = MaskSizes(*[np.array([48, 60])] * 3)

    @jax.jit
    def run(masks, sizes, size):
        taps = mask_chain.mask_taps(sizes, size, CANVAS)
        rows, columns = (resample.Taps(*(x[None] for x in axis)) for axis in taps)
        axes = [resample._Axis.of(*x) for x in ((rows, 48, TILE[0]), (columns, 60, TILE[1]))]
        tiles = resample.map_tiles(lambda tile, _: tile.enlarge(tile.cut(masks)), rows, columns,
                                   (48, 60), TILE)
        return tiles, [axes[0].fits(axes[0].window(slack)) & axes[1].fits(axes[1].window(slack))
                       for slack in resample._SLACKS]

    tiles, fits = jax.device_get(run(masks, sizes, size))
    assert sum(fits) == windows
    joined = postprocess._join(jnp.asarray(tiles), CANVAS)
    np.testing.assert_allclose(joined[:, :size[0], :size[1]],
                               bilinear(masks[0].astype(float), size), atol=1e-6)
    assert not joined[:, size[0]:].any() and not joined[:, :, size[1]:].any()


MANY = 2**16  # columns of a vocabulary of 40 000 names


@pytest.mark.parametrize("winner", [2**15 - 1, 2**15, 39_999])
def test_numbers_beyond_16_bits_are_not_wrapped_in_label_maps(winner):
    taps = resample.bilinear_taps(4, resample.Stage(4, 4))
    one = resample.Taps(*(x[None] for x in taps))
    scores = np.zeros((1, MANY), np.float32)
    scores[0, winner] = 0.9
    soft, _ = postprocess.semantic_labels(jnp.full((1, 1, 4, 4), 50.0), one, one, scores[None],
                                          40_000, tile=(4, 8))
    size = np.array([4, 4], np.int32)
    segments, scores = jnp.ones((4, 4), jnp.uint16), jnp.asarray(scores)
    np.testing.assert_array_equal(soft, winner)
    np.testing.assert_array_equal(postprocess.segment_labels(segments, size, size, scores), winner)


def test_labels_are_narrow_as_long_as_all_classes_fit():
    assert [postprocess.narrow(n) for n in (2**15, 2**15 + 1)] == [jnp.int16, jnp.int32]


def test_the_winner_among_more_masks_than_16_bits_number_is_found():
    count, size = 2**15 + 3, np.array([2, 2], np.int32)
    weights = np.full(count, 0.1, np.float32)
    weights[-1] = 0.9
    taps = resample.bilinear_taps(2, resample.Stage(2, 2))
    facts = postprocess.mask_facts(np.ones((count, 2, 2), bool), taps, taps, size, weights,
                                   tile=(2, 8), with_bits=False)
    np.testing.assert_array_equal(facts.winner, count)


@pytest.mark.parametrize("tile", [(64, 128), (256, 512)])
def test_the_largest_published_case_needs_little_memory(tile):
    """847 classes, 250 masks, a picture of 1024 x 2048: all results within 2 GB of the device."""
    like = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    pair = like(1, 2, dtype=jnp.int32)
    batch = Proposals(like(1, 250, 200, 400), like(1, 250, dtype=bool),
                      MaskSizes(pair, pair, pair), pair,
                      MaskScores(like(1, 250, 1024), like(1, 250)))
    heads = postprocess.make_heads(Heads(True, True, 100), tile)
    compiled = heads.lower(batch, Classes.of([True] * 847, 1024), canvas=(1024, 2048)).compile()
    memory = compiled.memory_analysis()
    used = (memory.argument_size_in_bytes + memory.output_size_in_bytes
            + memory.temp_size_in_bytes)
    assert memory.argument_size_in_bytes > 8e7 and used < 1e9


def test_more_classes_than_are_worked_on_at_once(rng):
    """Three chunks of classes of which the last is not full, and columns beyond them."""
    size, columns, num_classes = np.array([20, 30], np.int32), 512, 300
    sizes = MaskSizes(*[np.array([[10, 15]], np.int32)] * 3)
    masks = rng.random((1, 8, 10, 15)).astype(np.float32)
    scores = np.zeros((1, 8, columns), np.float32)
    scores[..., :num_classes] = rng.random((1, 8, num_classes))
    run = jax.jit(functools.partial(postprocess.augmented_labels, canvas=(20, 30), tile=TILE))
    labels, best = run(masks, sizes, np.zeros(1, bool), scores, num_classes, size)
    maps = np.einsum("nc,nhw->chw", scores[0].astype(float), bilinear(masks[0].astype(float), size))
    np.testing.assert_allclose(best, maps.max(0), rtol=1e-5)
    clear = np.diff(np.sort(maps, 0)[-2:], axis=0)[0] > 1e-5
    np.testing.assert_array_equal(np.asarray(labels)[clear], maps.argmax(0)[clear])
    assert len({k // 128 for k in np.unique(labels)}) == 3 and clear.mean() > 0.95


SCORES = {  # [N, C] of masks that are sure, unsure, of equal classes, nearly void, or of one class
    "peaked": lambda rng, shape: rng.dirichlet(np.full(shape[1], 0.02), shape[0]),
    "flat": lambda rng, shape: 1 + 1e-3 * rng.random(shape),
    "tied": lambda rng, shape: rng.integers(0, 3, shape) / 4,
    "void": lambda rng, shape: 1e-12 * rng.random(shape) * (rng.random(shape) < 0.1),
    "rising": lambda rng, shape: np.linspace(0.5, 0.5001, shape[1]) * rng.random((shape[0], 1)),
    "one": lambda rng, shape: np.arange(shape[1]) == shape[1] - 1 + np.zeros(shape),
}


@pytest.mark.parametrize("kind", SCORES)
def test_stopping_early_gives_the_labels_of_asking_every_class(rng, monkeypatch, kind):
    """Two versions, one mirrored, of a picture much smaller than its canvas, and one that fills it;
    classes in several chunks and columns without any."""
    num_classes, columns = 150, 256
    shapes = (2, 10, num_classes)
    pictures = []
    for size, stored in [((21, 33), (6, 9)), ((64, 96), (16, 24))]:
        masks = np.zeros((2, 10, 16, 24), np.float32)
        for version in masks:
            version[:8, :stored[0], :stored[1]] = smooth_masks(rng, 8, stored)
            version[version < 0.01] = 0
        scores = np.zeros((2, 10, columns), np.float32)
        scores[:, :8, :num_classes] = [SCORES[kind](rng, shapes[1:])[:8] for _ in masks]
        sizes = MaskSizes(*(np.tile(np.array(s, np.int32), (2, 1)) for s in (stored, size, size)))
        pictures.append((masks, sizes, np.array([False, True]), scores, np.array(size, np.int32)))

    def labels():
        run = jax.jit(lambda masks, sizes, flipped, scores, size: postprocess.augmented_labels(
            masks, sizes, flipped, scores, num_classes, size, CANVAS, tile=TILE))
        return [run(*picture) for picture in pictures]

    early = labels()
    monkeypatch.setattr(postprocess, "_most_of_a_class",
                        lambda shares, by_class: jnp.full((len(shares), len(by_class)), jnp.inf))
    monkeypatch.setattr(postprocess, "_may_beat", lambda small, _: jnp.ones(len(small), bool))
    for mine, full in zip(early, labels()):
        np.testing.assert_array_equal(mine[0], full[0])
        np.testing.assert_allclose(mine[1], full[1], rtol=1e-6)
