"""Panoptic quality of small pictures worked out by hand. (Equality with COCO's scorer is a stored
case, see test_parity.)"""

import numpy as np
import pytest

from maskclippp_jax.metrics.panoptic import PanopticQuality

THING, STUFF = 3, 7
CATEGORIES = {STUFF: False, THING: True}


def rows(*parts):
    """A map of one row: (id, pixels) after each other."""
    return np.concatenate([np.full(n, i) for i, n in parts])[None]


def truth(i, category=THING, area=None, crowd=0):
    return dict(id=i, category_id=category, area=area, iscrowd=crowd)


def predicted(i, category=THING):
    return dict(id=i, category_id=category)


def counts(metric, category=THING):
    found = metric.evaluate()["counts"][category]
    return found["tp"], found["fp"], found["fn"], found["iou_sum"]


def test_void_is_left_out_of_the_union():
    metric = PanopticQuality(CATEGORIES)
    # 6 pixels in common; the prediction has 4 more, 2 of them on void.
    metric.process(rows((5, 10)), [predicted(5)], rows((1, 6), (2, 2), (0, 2)),
                   [truth(1, area=6), truth(2, STUFF, area=2)])
    assert counts(metric) == (1, 0, 0, 6 / 8)
    assert counts(metric, STUFF) == (0, 0, 1, 0)


def test_an_iou_of_exactly_half_is_no_match():
    metric = PanopticQuality(CATEGORIES)
    metric.process(rows((5, 4), (0, 4)), [predicted(5)], rows((1, 8)), [truth(1, area=8)])
    assert counts(metric) == (0, 1, 1, 0)


def test_seen_and_unseen_categories_are_told_apart_where_there_are_both():
    picture = (rows((5, 8), (6, 4)), [predicted(5), predicted(6, STUFF)],
               rows((1, 8), (2, 4)), [truth(1, area=16), truth(2, STUFF, area=4)])
    for seen, wanted in (([THING], (0, 100)), ([STUFF], (100, 0)), ([], None),
                         ([THING, STUFF], None), (None, None)):
        metric = PanopticQuality(CATEGORIES, seen)
        metric.process(*picture)  # the thing has an IoU of a half, the stuff is perfect
        got = metric.evaluate()
        assert ("seen" in got, "unseen" in got) == (wanted is not None,) * 2
        if wanted:
            assert (got["seen"]["PQ"], got["unseen"]["PQ"]) == wanted


def test_the_recorded_area_counts_and_not_the_pixels():
    metric = PanopticQuality(CATEGORIES)
    metric.process(rows((5, 8)), [predicted(5)], rows((1, 8)), [truth(1, area=12)])
    assert counts(metric) == (1, 0, 0, 8 / 12)


@pytest.mark.parametrize("recorded", [{}, dict(area=None), dict(area=0)])
def test_pixels_are_counted_where_no_area_is_recorded(recorded):
    metric = PanopticQuality(CATEGORIES)
    metric.process(rows((5, 6), (0, 2)), [predicted(5)], rows((1, 8)),
                   [dict(id=1, category_id=THING, iscrowd=0, **recorded)])
    assert counts(metric) == (1, 0, 0, 6 / 8)


def test_another_category_is_no_match_however_well_it_fits():
    metric = PanopticQuality(CATEGORIES)
    metric.process(rows((5, 8)), [predicted(5, STUFF)], rows((1, 8)), [truth(1, area=8)])
    assert counts(metric) == (0, 0, 1, 0) and counts(metric, STUFF) == (0, 1, 0, 0)


@pytest.mark.parametrize("void, false_positives", [(4, 1), (5, 0)])
def test_more_than_half_on_void_is_excused_half_is_not(void, false_positives):
    metric = PanopticQuality(CATEGORIES)
    metric.process(rows((5, 8)), [predicted(5)], rows((0, void), (1, 8 - void)),
                   [truth(1, STUFF, area=8 - void)])
    assert counts(metric) == (0, false_positives, 0, 0)


def test_void_and_the_crowd_of_the_category_excuse_together():
    metric = PanopticQuality(CATEGORIES)
    metric.process(rows((5, 9)), [predicted(5)], rows((0, 2), (8, 3), (1, 4)),
                   [truth(8, area=3, crowd=1), truth(1, STUFF, area=4)])
    assert counts(metric) == (0, 0, 0, 0)  # 5 of 9, and a crowd is never missed
    metric.reset()
    metric.process(rows((5, 9)), [predicted(5)], rows((0, 2), (8, 3), (1, 4)),
                   [truth(8, STUFF, area=3, crowd=1), truth(1, STUFF, area=4)])
    assert counts(metric) == (0, 1, 0, 0)  # a crowd of another category excuses nothing


def test_of_several_crowds_of_a_category_the_last_one_counts():
    crowds = [truth(8, area=6, crowd=1), truth(9, area=2, crowd=1)]
    for order, false_positives in ((crowds, 1), (crowds[::-1], 0)):
        metric = PanopticQuality(CATEGORIES)
        metric.process(rows((5, 8)), [predicted(5)], rows((8, 6), (9, 2)), order)
        assert counts(metric) == (0, false_positives, 0, 0)


def test_means_are_over_categories_that_occur_and_pq_is_not_their_product():
    metric = PanopticQuality({1: True, 2: True, 4: False, 9: True})
    metric.process(rows((1, 4), (2, 2), (3, 2)),
                   [predicted(1, 1), predicted(2, 2), predicted(3, 4)],
                   rows((1, 4), (2, 4)), [truth(1, 1, area=4), truth(2, 1, area=4)])
    # category 1: a match of IoU 1 and one missed; 2 and 4: a false positive each; 9: nowhere.
    got = metric.evaluate()
    assert got["per_category"][1] == dict(PQ=pytest.approx(100 / 1.5), SQ=100,
                                          RQ=pytest.approx(100 / 1.5))
    assert got["per_category"][9] is None
    assert got["all"]["PQ"] == pytest.approx(100 / 4.5) and got["all"]["categories"] == 3
    assert got["all"]["SQ"] == pytest.approx(100 / 3)
    assert got["things"]["PQ"] == pytest.approx(100 / 3) and got["things"]["categories"] == 2
    assert got["stuff"] == dict(PQ=0, SQ=0, RQ=0, categories=1)


def test_nothing_at_all_gives_none():
    metric = PanopticQuality({1: True})
    metric.process(np.zeros((2, 2), int), [], np.zeros((2, 2), int), [])
    assert metric.evaluate()["all"] == dict(PQ=None, SQ=None, RQ=None, categories=0)


def test_an_area_below_the_pixels_makes_no_quality_above_100():
    metric = PanopticQuality(CATEGORIES)
    metric.process(prediction=rows((5, 4)), predicted=[predicted(5)], truth=rows((1, 4)),
                   true=[truth(1, area=3.75)])
    assert metric.evaluate()["all"]["PQ"] == 100


@pytest.mark.parametrize("change, says", [
    (dict(predicted=[]), "the predicted map holds the ids .5., which no predicted segment has"),
    (dict(true=[truth(2, area=1)]), "the true map holds the ids .1."),
    (dict(predicted=[predicted(5), predicted(6)]), "predicted segments .6. have no pixel"),
    (dict(predicted=[predicted(5, 4)]), "unknown categories .4."),
    (dict(predicted=[predicted(5), predicted(5)]), "wanted different ones"),
    (dict(prediction=np.full((1, 4), 5.0)), "ids are float64 and int64, wanted integers"),
    (dict(prediction=np.full((2, 2), 5)), "bring the prediction to the stored size")])
def test_bad_input_is_refused_and_nothing_counted(change, says):
    metric = PanopticQuality(CATEGORIES)
    given = dict(prediction=rows((5, 4)), predicted=[predicted(5)], truth=rows((1, 4)),
                 true=[truth(1, area=4)]) | change
    with pytest.raises(ValueError, match=says):
        metric.process(**given)
    assert not metric.counts.any() and metric.pictures.count == 0


def test_ids_of_24_bits_are_told_apart():
    metric = PanopticQuality(CATEGORIES)
    big = 2**24 - 1
    metric.process(rows((big, 4), (1, 4)), [predicted(big), predicted(1)],
                   rows((1, 4), (big, 4)), [truth(1, area=4), truth(big, area=4)])
    assert counts(metric) == (2, 0, 0, 2)
