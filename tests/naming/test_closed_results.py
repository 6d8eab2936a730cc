"""Results in a generator's own classes, where stored cases do not look."""

import numpy as np
import pytest

from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.naming import closed_results


def masks_of(classes, mask_logits):
    """Of a picture of 32x16 pixels in an input of 32x32, from the best class of each query."""
    logits = np.full((len(classes), 4), -5, np.float32)  # three classes and "no object"
    logits[np.arange(len(classes)), classes] = 5
    sizes = MaskSizes(*(np.array(s, np.int32) for s in ((8, 8), (32, 32), (32, 16))))
    return closed_results.Masks(np.asarray(mask_logits, np.float32), logits, sizes, (32, 16))


def halves():
    """Three queries: the upper half, the lower half, and what lies in the padding."""
    logits = np.full((3, 8, 8), -9.0)
    logits[0, :4], logits[1, 4:] = 9, 9
    logits[2, :, 4:] = 9
    return logits


def test_stuff_of_one_class_is_one_segment_and_things_are_several():
    masks = masks_of([1, 1, 2], halves())
    ids, segments = closed_results.panoptic(masks, [True, False, True])
    assert [s["category_id"] for s in segments] == [1] and (ids == 1).mean() > 0.9
    ids, segments = closed_results.panoptic(masks, [True, True, True])
    assert [s["id"] for s in segments] == [1, 2]
    assert (ids[:14] == 1).all() and (ids[18:] == 2).all()


def test_what_lies_in_the_padding_is_no_segment_and_an_empty_instance():
    masks = masks_of([3, 3, 2], halves())
    ids, segments = closed_results.panoptic(masks, [True] * 3)
    assert not ids.any() and segments == []
    found, query = closed_results.instances(masks, 1)
    assert query.tolist() == [2] and not found.masks.any() and found.scores[0] == 0


def test_no_object_anywhere_is_an_empty_result():
    ids, segments = closed_results.panoptic(masks_of([3, 3, 3], halves()), [True] * 3)
    assert ids.shape == (32, 16) and not ids.any() and segments == []


@pytest.mark.parametrize("turned", [False, True])
def test_scores_of_windows_are_their_mean_where_they_overlap(turned):
    masks = np.full((2, 1, 4, 4), 50.0)
    classes = np.array([[[50.0, 0, 0]], [[0, 50.0, 0]]])  # another class in each window
    resized = (16, 24) if turned else (24, 16)
    scores = closed_results.semantic_scores(masks, classes, np.array([(0, 16), (8, 24)]), resized)
    along = scores.mean(1 if turned else 2)  # [classes, 24]
    np.testing.assert_allclose(along[0], np.repeat([1, 0.5, 0], 8), atol=1e-5)
    np.testing.assert_allclose(along[1], np.repeat([0, 0.5, 1], 8), atol=1e-5)
    labels = closed_results.semantic(scores, resized)
    assert labels.shape == resized and set(np.unique(labels)) == {0, 1}
