"""What is drawn for people."""

import types

import numpy as np

from maskclippp_jax.drawing import visualize
from maskclippp_jax.evaluation import passes, tables
from maskclippp_jax.evaluation.truth import IGNORE
from maskclippp_jax.naming.segmenter import Found
from maskclippp_jax.vocabulary import Vocabulary


def test_a_region_of_which_nothing_is_known_is_neither_right_nor_wrong():
    true = np.array([[0, 0, 1, IGNORE], [0, 0, IGNORE, IGNORE]])
    found = np.array([[0, 0, 0, 2], [0, 1, 1, 2]])
    right = [tables._is_right(true, found, c) for c in range(3)]
    assert right == [True, False, None]
    regions = tables._segments_of(found)[1]
    assert regions == [0, 1, 2]


def test_segments_that_were_found_are_shown_with_what_most_of_each_is():
    true = np.array([[0, 0, 0, 1], [IGNORE, IGNORE, 2, 1]])
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    truth = types.SimpleNamespace(
        image=dict(a=image).__getitem__,
        vocabulary=Vocabulary.from_names(["cat", "dog, puppy", "grass"]),
        semantic=lambda image_id: true)
    ids = np.array([[7, 7, 7, 4], [9, 9, 7, 4]])
    found = [dict(id=4, category_id=1), dict(id=7, category_id=2), dict(id=9, category_id=0)]
    picture = passes.Picture("a", Found(np.zeros(0, np.int32), None, (ids, found), None))
    view = tables.view_of_segments(picture, truth)
    np.testing.assert_array_equal(view.image, image)
    np.testing.assert_array_equal(view.segments, [[2, 2, 2, 1], [3, 3, 2, 1]])
    assert view.names == [("dog", "dog"), ("grass", "cat"), ("cat", None)]
    given, generated = (np.asarray(visualize.draw_views([[view]], ["m"], generated=g))
                        for g in (False, True))
    half = given.shape[1] // 2  # the model's column is the same, the first one is not
    np.testing.assert_array_equal(given[:, half:], generated[:, half:])
    assert (given[:, :half] != generated[:, :half]).any()
