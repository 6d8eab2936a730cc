"""What a CPU's programs work in stays where it is between their calls."""

import platform
import subprocess
import sys

import pytest

# A program that works in an array of 64 MB: pages that the system clears for a call of it, before,
# while memory is kept, and after it was given back, and pages that the process has, in these two.
PROGRAM = """
import resource, sys
from maskclippp_jax.runtime import heap
heap.use_first_thread()
import jax, jax.numpy as jnp

work = jax.jit(lambda x: jax.lax.fori_loop(0, 2, lambda _, a: a * 2 + x[0], x).sum())
x = jnp.ones((4096, 4096))

def cleared():
    results = [float(work(x)) for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    results.append(float(work(x)))
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert set(results) == {7.0 * x.size}
    return pages

held = lambda: int(open("/proc/self/statm").read().split()[1])
print(cleared())
if sys.argv[1] == "keep":
    heap.keep()
    heap.keep()  # as after each step
print(cleared(), held())
heap.give_back()
print(cleared(), held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize("wanted", ["keep", "as usual"])
def test_a_program_called_again_works_in_the_same_memory(wanted):
    array = 64 * 2**20 // 4096  # pages
    done = subprocess.run([sys.executable, "-c", PROGRAM, wanted], capture_output=True, text=True,
                          check=True)
    before, inside, held_inside, after, held_after = map(int, done.stdout.split())
    assert before > 0.9 * array and after > 0.9 * array
    if wanted == "keep":
        assert inside < 0.1 * array
        assert held_after < held_inside - 0.9 * array
    else:
        assert inside > 0.9 * array
