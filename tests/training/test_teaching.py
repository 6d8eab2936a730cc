"""What is refused, and what is said, before a run begins to learn."""

import numpy as np
import pytest

from maskclippp_jax.data import images, records
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.training import teaching
from maskclippp_jax.vocabulary import Vocabulary

TWO = Vocabulary.from_names(["cat", "dog"])


def row(*masks, crowd=False) -> dict:
    """A record of masks of the class 0."""
    codes = [run_lengths.encode(m) for m in masks]
    return records.instance_record(images.encode_png(np.zeros((8, 8, 3), np.uint8)), "x", (8, 8),
                                   codes, [records.Segment(0, True, crowd) for _ in masks])


FULL, EMPTY = np.ones((8, 8), bool), np.zeros((8, 8), bool)


def source(*rows, learnable=None) -> records.Source:
    return records.Source(list(rows), TWO, "instance", learnable)


@pytest.mark.parametrize("rows", [[row(EMPTY)], [row(FULL, crowd=True)], [row()], [row()] * 300])
def test_data_without_a_mask_to_learn_stop_a_run(rows):
    with pytest.raises(ValueError, match="a, b has no mask that can be learnt"):
        teaching.check(dict(a=source(*rows), b=source(*rows)), TWO)
    counted = source(*rows, learnable=records.Learnable(len(rows), {}))
    with pytest.raises(ValueError, match="a has no mask that can be learnt"):
        teaching.check(dict(a=counted), TWO)
    teaching.check(dict(a=source(*rows), b=source(row(FULL))), TWO)


def test_one_mask_among_many_pictures_is_enough_wherever_it_is():
    for place in (0, 137, 511):
        rows = [row()] * 512
        rows[place] = row(FULL)
        teaching.check(dict(a=source(*rows)), TWO)


def test_one_class_alone_stops_a_run():
    with pytest.raises(ValueError, match="has one class, 'cat': training tells classes apart"):
        teaching.check(dict(a=source(row(FULL))), Vocabulary.from_names(["cat"]))


def test_pictures_and_classes_that_teach_nothing_are_said(caplog):
    teaching.check(dict(a=source(row(FULL), row(), learnable=records.Learnable(1, {0: 1}))), TWO)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "50 % of the pictures of a have no mask that can be learnt" in said
    assert "1 of 2 classes have no mask that can be learnt: dog" in said
