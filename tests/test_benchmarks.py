"""What benchmarks count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import products

_A, _B = np.zeros((3, 5), np.float32), np.zeros((5, 7), np.float32)


@pytest.mark.parametrize("function, flops", [
    (lambda a, b: jnp.tanh(a @ b) + 1, 2 * 3 * 5 * 7),
    (jax.jit(lambda a, b: jnp.einsum("ij,jk->k", a, b)), 2 * 5 * 7),  # sums over i before
    (lambda a, b: jax.lax.map(lambda x: x @ b, jnp.stack([a] * 4)), 4 * 2 * 3 * 5 * 7),
    (jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), 3 * 2 * 3 * 5 * 7),
    (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: b[:3] * 2), 2 * 3 * 5 * 7)])
def test_flops_of_matrix_products(function, flops):
    assert products.flops(function, _A, _B) == flops


def test_flops_of_convolutions():
    pictures, kernel = np.zeros((2, 8, 8, 3), np.float32), np.zeros((4, 4, 3, 5), np.float32)
    patches = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert products.flops(patches, pictures, kernel) == 2 * 2 * 2 * 2 * 5 * 4 * 4 * 3
