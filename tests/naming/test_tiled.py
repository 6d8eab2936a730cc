"""Large pictures named tile by tile: joined masks, seams, and one tile the same as none."""

import types

import numpy as np
import pytest

import maskclippp_jax as mc
from maskclippp_jax.data import scenes, tiling
from maskclippp_jax.data.tiling import Tiles, Window
from maskclippp_jax.naming import given, postprocess, tiled
from maskclippp_jax.naming.ensembles import MaskScores

CLASSES = ["red one", "grey grass", "blue two"]
SIZE, TILES = (100, 150), Tiles(64, 24)


def result_of(soft, scores):
    """What `Cut.add` wants to know of the named masks of a tile."""
    return types.SimpleNamespace(
        soft_masks=soft, scores=scores, void=np.zeros(len(soft), np.float32),
        pixels=(soft > 0.5).sum((1, 2)), ids=np.arange(1, len(soft) + 1))


def join(tiles, size=SIZE, of=TILES):
    """The masks that tiles, a function from a window to soft masks and scores, make together."""
    cut = tiled.Cut(np.zeros((*size, 3), np.uint8), lambda image: None, None, of)
    for window in cut.windows:
        cut.add(result_of(*tiles(window)))
    return cut.finish()


def test_pieces_of_one_mask_are_joined_and_others_are_not():
    whole = np.zeros((3, *SIZE), bool)
    whole[0, 10:90, 20:140] = True   # in all tiles
    whole[1, 30:50, 5:20] = True     # in one column of tiles
    whole[2, 30:60, 40:80] = True    # inside of the first one

    def tiles(window):
        masks = whole[(slice(None), *window.slices)]
        shown = np.flatnonzero(masks.any((1, 2)))[::-1]  # in any order
        # Each tile has another opinion; pixels say how much it counts.
        return masks[shown].astype(np.float32), np.stack(
            [[n, window.left, window.top] for n in shown]).astype(np.float32)

    found, scores = join(tiles)
    assert found.ids.tolist() == [1, 2, 3] and len(found.large) == 3
    order = scores.classes[:, 0].astype(int)
    assert sorted(order.tolist()) == [0, 1, 2]
    np.testing.assert_allclose(found.large.soft(), whole[order], atol=1e-6)
    np.testing.assert_array_equal([found.large.mask(n) for n in range(3)], whole[order])
    assert found.large.pixels.tolist() == whole[order].sum((1, 2)).tolist()
    for n, mask in zip(order, scores.classes):
        counts = np.array([whole[n][w.slices].sum() for w in tiling.windows(SIZE, TILES)])
        lefts = np.array([w.left for w in tiling.windows(SIZE, TILES)])
        assert mask[1] == pytest.approx((counts * lefts).sum() / counts.sum(), rel=1e-5)


def test_masks_that_disagree_where_tiles_overlap_stay_apart_and_share_the_seam():
    def tiles(window):
        return np.full((1, *window.shape), 1, np.float32), np.eye(2, dtype=np.float32)[
            [int(window.left > 0)]]

    found, scores = join(lambda w: tiles(w), (64, 100), Tiles(64, 0))
    # Tiles at 0 and 36 overlap by 28; both say that all there is one mask.
    assert len(found.large) == 1 and scores.classes.tolist() == [[0.5, 0.5]]

    def halves(window):  # the same object in both, but a tile's own half alone
        mask = np.zeros(window.shape, np.float32)
        mask[:32] = 1
        return (mask if window.left else 1 - mask)[None], tiles(window)[1]

    found, scores = join(halves, (64, 100), Tiles(64, 0))
    assert len(found.large) == 2
    labels = found.large.labels(scores.classes)
    # Both count by how far they are from their edge: in the middle of the overlap they change.
    assert (labels[40] == [0] * 64 + [-1] * 36).all() and (labels[10] == [-1] * 36 + [1] * 64).all()


def test_a_mask_that_is_nowhere_above_half_is_named_where_it_is_strongest():
    shares = np.zeros((3, *SIZE), np.float32)
    shares[0, :20, :20], shares[0, 99, 149] = 0.4, 0.01
    shares[1, 50:] = 0.9  # the last one has no pixel
    for masks in (shares, shares > 0.3):
        cut = tiled.Cut(np.zeros((*SIZE, 3), np.uint8), masks, None, TILES)
        for window, part in zip(cut.windows, cut.parts()):
            assert (1 in part.ids) == (window.top == window.left == 0) and 3 not in part.ids
            scores = np.eye(3, dtype=np.float32)[part.ids - 1]
            result = result_of(part.masks.masks, scores)
            result.ids = part.ids
            cut.add(result)
        found, scores = cut.finish()
        labels = found.large.labels(scores.classes)
        assert (labels[:20, :20] == 0).all() and (labels[50:] == 1).all()


@pytest.fixture
def random_masks(rng):
    """Masks in pieces with their scores, and the same computed at once."""
    size, windows = (700, 900), tiling.windows((700, 900), Tiles(512, 100))
    pieces, weights = [], np.zeros(size)
    soft = [np.zeros(size) for _ in range(5)]
    for w in windows:
        weights[w.slices] += tiling.depth(w, size)
    for n in range(5):
        pieces.append([])
        for t in rng.permutation(len(windows))[:3]:
            mask = np.kron(rng.random((8, 8)), np.ones((64, 64)))[
                :windows[t].shape[0], :windows[t].shape[1]]
            mask = np.rint(np.where(mask < 0.4, 0, mask) * 255) / 255
            pieces[n] += tiled._pack(mask, int(t), windows[t])
            soft[n][windows[t].slices] += mask * tiling.depth(windows[t], size)
    scores = rng.random((5, 4)).astype(np.float32)
    return tiled.LargeMasks(size, windows, pieces), np.stack(soft) / weights, scores


def test_blocks_give_what_all_pixels_at_once_give(random_masks):
    large, soft, scores = random_masks
    np.testing.assert_allclose(large.soft(), soft, atol=1e-5)
    sure = np.abs(soft - 0.5) > 1e-4
    for n in range(5):
        np.testing.assert_array_equal(large.mask(n)[sure[n]], (soft[n] > 0.5)[sure[n]])
    assert large.pixels.tolist() == [large.mask(n).sum() for n in range(5)]
    of_class = np.einsum("nhw,nc->chw", soft, scores)
    labels = np.where(soft.any(0), of_class.argmax(0), -1)
    first, second = np.sort(of_class, 0)[:-3:-1]
    clear = (first - second > 1e-4) | ~soft.any(0)
    found = large.labels(scores)
    np.testing.assert_array_equal(found[clear], labels[clear])
    scores[2] = 0  # does not compete
    others = [0, 1, 3, 4]
    assert ((large.labels(scores) == -1) == ~soft[others].any(0)).all()


def test_panoptic_segments_are_those_of_the_rule_for_small_pictures(random_masks):
    large, soft, scores = random_masks
    ids, segments = large.panoptic(MaskScores(scores, np.zeros(5)), [True] * 4, 0.0, 0.0)
    weighted = soft * scores.max(-1)[:, None, None]
    winner = weighted.argmax(0)
    inside = np.take_along_axis(soft, winner[None], 0)[0]
    winner = np.where(inside >= 0.5, 1, -1) * (winner + 1) * (inside > 0)
    wanted, of_rule = postprocess.panoptic_segments(
        winner, (soft >= 0.5).sum((1, 2)), scores.argmax(-1), [True] * 4, 0.0)
    assert segments == of_rule
    assert (ids == wanted).mean() > 0.999  # but for the rounding of ties


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests import whole_runs

    place = tmp_path_factory.mktemp("tiled")
    (place / "tiny.py").write_text(whole_runs.CONFIG)
    return mc.load("untuned", str(place / "tiny.py"), keep_embeddings=False)


def draw():
    parts = [[scenes.draw_scene(np.random.default_rng(3 * i + j), size=64) for j in range(3)]
             for i in range(2)]
    glue = lambda name: np.concatenate([np.concatenate([getattr(s, name) for s in row], 1)
                                        for row in parts])
    return glue("image"), glue("label").astype(np.int32)


def test_one_tile_is_the_same_as_none(model):
    image, labels = draw()
    for masks in (labels, labels[None] == np.unique(labels)[:4, None, None], mc.superpixels):
        one = model.name(image, masks, CLASSES, tiles=192, overlap=8)
        none = model.name(image, masks, CLASSES)
        np.testing.assert_array_equal(one.scores, none.scores)
        np.testing.assert_array_equal(one.labels, none.labels)
        assert one.to_json() == none.to_json()


def test_a_label_map_in_tiles_is_named_piece_by_piece(model):
    image, labels = draw()
    numbers, overlap = np.unique(labels), 16
    whole = model.name(image, labels, CLASSES, tiles=64, overlap=overlap)
    assert whole.ids.tolist() == numbers.tolist() and whole.labels.shape == labels.shape
    total, weight = np.zeros_like(whole.scores), np.zeros(len(numbers))
    for w in tiling.windows(labels.shape, Tiles(64, overlap)):
        part = model.name(np.ascontiguousarray(image[w.slices]), labels[w.slices], CLASSES)
        rows = np.searchsorted(numbers, part.ids)
        total[rows] += part.scores * part.pixels[:, None]
        weight[rows] += part.pixels
    np.testing.assert_allclose(whole.scores, total / weight[:, None], atol=1e-5)
    np.testing.assert_array_equal(whole.labels, whole.classes[np.searchsorted(numbers, labels)])


def test_results_of_tiles_draw_and_write_themselves(model, tmp_path):
    image, labels = draw()
    stack = labels[None] == np.unique(labels)[:, None, None]
    for masks in (stack, mc.superpixels):
        result = model.name(image, masks, CLASSES, tiles=64, overlap=16)
        assert result.pixels.tolist() == result.masks.sum((1, 2)).tolist()
        assert len(result.annotated().masks) == (result.pixels > 0).sum() == len(
            result.to_coco_file()["annotations"])
        result.save(tmp_path, "a")
        assert {f.name for f in tmp_path.iterdir()} == {"a.json", "a.labels.png", "a.overlay.png"}
        ids, segments = result.panoptic
        assert ids.shape == labels.shape and ids.max() == len(segments)
    one = model.name(image, stack, CLASSES, tiles=64, overlap=16)
    np.testing.assert_array_equal(one.masks, stack)
    few = model.name(image, stack, CLASSES, tiles=64, overlap=16, minimum_score=1)
    assert few.names == [None] * len(stack) and (few.labels == -1).all()
    many = list(model.name_many([(image, stack), (image[:32, :32], stack[:, :32, :32])], CLASSES,
                                tiles=64, overlap=16, batch_size=3, show_progress=False))
    np.testing.assert_allclose(many[0].scores, one.scores, atol=1e-5)
    assert len(many[1]) == len(stack)


def test_tiles_that_cannot_be_are_refused(model):
    image, labels = draw()
    with pytest.raises(ValueError, match="--overlap=64, wanted 0 ... 63"):
        model.name(image, labels, CLASSES, tiles=64, overlap=64)
    entry = types.SimpleNamespace(bundle="b", read=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(given, "read", lambda *args, **kw: given.Given(
            image, np.arange(1), labels, None, bundle=entry.bundle))
        with pytest.raises(ValueError, match="leave --tiles out"):
            tiled.Cut(image, entry, None, Tiles(64, 0))
    assert Window(0, 0, 4, 4).common(Window(4, 0, 8, 4)) is None
