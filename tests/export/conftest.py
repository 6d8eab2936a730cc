"""The model that is taken away."""

import pytest

import maskclippp_jax as mc
from tests.tiny_model import TINY


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """As small as it gets, without a generator."""
    file = tmp_path_factory.mktemp("configuration") / "tiny.py"
    file.write_text(TINY)
    return mc.load("untuned", str(file), keep_embeddings=False)
