"""A small model, alone and with a generator, for each file of tests."""

import pytest

import maskclippp_jax as mc
from tests import tiny_eomt
from tests.tiny_model import TINY


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("own configuration") / "tiny.py"
    file.write_text(TINY)
    return str(file)


@pytest.fixture(scope="module")
def model(tiny):
    return mc.load("untuned", tiny, keep_embeddings=False)


@pytest.fixture(scope="module")
def finder(tiny, tmp_path_factory):
    folder = tiny_eomt.write_folder(tmp_path_factory.mktemp("generator"))
    return mc.load("untuned", tiny, generator=folder, keep_embeddings=False)
