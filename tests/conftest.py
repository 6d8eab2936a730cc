"""Eight CPU devices and exact matrix products, before JAX starts."""

import gc
import glob
import os
import shutil
import tempfile

from tests import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of the same small models are compiled once for all tests of a session, also those in
# processes of their own. The key is the program itself, so nothing stale is ever used.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(
    tempfile.gettempdir(), "maskclippp_jax_tests_"
    f"{os.getppid() if 'PYTEST_XDIST_WORKER' in os.environ else os.getpid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags.devices(8)}".strip()
# For processes that tests start as well, so that they run the same programs.
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"

import jax
import numpy as np
import pytest

gc.set_threshold(50_000, *gc.get_threshold()[1:])  # as the command line has it


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        for folder in glob.glob(f"{tempfile.gettempdir()}/maskclippp_jax_tests_{os.getpid()}"):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def explicit_ranks():
    """Broadcasts must name their axes: a forgotten one is an error, not a silent [B, B]."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(7)
