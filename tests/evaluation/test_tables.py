"""What is drawn for people."""

import numpy as np

from maskclippp_jax.evaluation import tables
from maskclippp_jax.evaluation.truth import IGNORE


def test_a_region_of_which_nothing_is_known_is_neither_right_nor_wrong():
    true = np.array([[0, 0, 1, IGNORE], [0, 0, IGNORE, IGNORE]])
    found = np.array([[0, 0, 0, 2], [0, 1, 1, 2]])
    right = [tables._is_right(true, found, c) for c in range(3)]
    assert right == [True, False, None]
    regions = tables._segments_of(found)[1]
    assert regions == [0, 1, 2]
