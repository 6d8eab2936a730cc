"""What benchmarks count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import products, roofline, turns

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


def test_bytes_of_what_is_no_product_are_those_of_fused_instructions_and_of_parts_in_loops():
    one = np.zeros((1000, 1000), np.float32)
    traffic = lambda f, *args: roofline.traffic(jax.jit(f).lower(*args).compile().as_text())
    assert traffic(lambda a, b: jnp.sin(a) + b, one, one) == {12_000_000: 1}
    assert traffic(lambda a, b: jnp.sin(a @ b), one, one) == {8_000_000: 1}
    found = traffic(lambda a: jax.lax.map(lambda x: jnp.sin(x) @ x, a),
                    np.zeros((4, 500, 500), np.float32))
    total = sum(size * count for size, count in found.items())
    assert 4 * 3 * 2e6 <= total < 4 * 3 * 2e6 + 5e6  # cut out, sine, put in; the result's zeros


def test_work_is_products_and_bytes_as_often_as_a_program_runs():
    one = np.zeros((1000, 1000), np.float32)
    found = roofline.work_of(jax.jit(lambda a, b: jnp.sin(a @ b)), one, one, times=3)
    assert found == roofline.Work(3 * 2e9, {8_000_000: 3})
    assert roofline.seconds_of_bytes(found, {1_000_000: 1e6, 15_000_000: 3e6}) == 12.0


def test_exponents_are_slopes_of_logarithms():
    sizes = np.array([1, 2, 4, 8])
    assert turns.exponent(sizes, 3.0 * sizes ** 1.5) == pytest.approx(1.5)
    assert turns.exponent(sizes, [2, 2, 2, 2]) == pytest.approx(0)
