"""What an earlier version wrote is read by this one; tests/stored.py has made it."""

import zipfile

import numpy as np
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.data import bundles, records
from maskclippp_jax.naming import loading
from tests import stored


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with zipfile.ZipFile(stored.FILE) as archive:
        archive.extractall(folder)
    return folder


def test_the_data_set(place):
    source = records.open_source(str(place / "data"), "scenes_seen", "train")
    assert source.vocabulary.classes == (("red thing",), ("green", "green stuff"), ("blue",))
    assert len(source.records) == 3 and source.learnable.bare == 0
    for number in range(3):
        record = source.records[number]
        assert records.id_of(record) == f"p{number}"
        np.testing.assert_array_equal(records.decode_classes(record), stored.labels_of(number))
    assert records.fingerprint(str(place / "data"), "scenes_seen", "train")


@pytest.mark.parametrize("kind, above", [("binary", 0), ("logits", 0)])
def test_bundles(place, kind, above):
    found = bundles.Bundle(str(place / kind))
    masks = found.read("p0").masks > above
    step = 1 if kind == "binary" else 4
    np.testing.assert_array_equal(
        masks, stored.labels_of(0)[::step, ::step] == np.arange(3)[:, None, None])


def test_a_run_and_the_files_it_was_converted_to_hold_the_same_numbers(place):
    config = loading.experiment_of(str(place / "run"), None)
    load = lambda source: parameters.flatten(loading.load_checkpoint(source, config)[1])
    run = load(str(place / "run"))
    for layout in ("ours", "maskclippp"):
        converted = load(str(place / f"{layout}.safetensors"))
        assert set(converted) == set(run)
        for path, array in run.items():
            np.testing.assert_allclose(np.asarray(converted[path]), np.asarray(array), atol=1e-6,
                                       err_msg=f"{layout}: {path}")
