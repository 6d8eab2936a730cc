"""Parameters as trees: distances, and weights between two models."""

import jax
import numpy as np
import pytest

from maskclippp_jax import params as parameters

ORIGINAL = {"image": {0: np.float32([3, 4]), 1: np.float32([0])},
            "similarity": {"w": np.float32([1.0])}, "logit_scale": np.float32(2)}
TUNED = {"image": {0: np.float32([3, 5]), 1: np.float32([2])},
         "similarity": {"w": np.float32([7.0])}, "logit_scale": np.float32(2)}


def test_distances_are_relative_and_by_part():
    found = jax.jit(parameters.distances)(ORIGINAL, TUNED)
    assert {k: float(v) for k, v in found.items()} == dict(
        image=pytest.approx(5**0.5 / 5), similarity=6, logit_scale=0)


@pytest.mark.parametrize("share, image", [(0, [3, 4]), (0.5, [3, 4.5]), (1, [3, 5]), (2, [3, 6])])
def test_interpolation_moves_along_a_line_and_keeps_the_tuned_head(share, image):
    found = parameters.interpolate(ORIGINAL, TUNED, share)
    np.testing.assert_array_equal(found["image"][0], image)
    assert found["similarity"]["w"] == 7 and found["logit_scale"] == 2
