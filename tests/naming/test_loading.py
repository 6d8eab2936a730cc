"""What `--checkpoint` may name: files with and without a similarity head."""

import logging as python_logging

import numpy as np
import pytest

from maskclippp_jax import configs, params as parameters, weights
from maskclippp_jax.naming import loading


@pytest.mark.parametrize("layout", ["eva_clip", "timm", "ours", "maskclippp"])
def test_a_file_without_a_similarity_head_gets_no_random_one(layout, tmp_path, caplog):
    """It is named as an untuned CLIP is, whatever the seed, and the log says so."""
    config = configs.read("quickstart")
    model, params, _ = loading.load_checkpoint("untuned", config)
    file = str(tmp_path / "clip.safetensors")
    weights.write(tmp_path / "clip.safetensors", weights.export(params, model, layout))
    config.seed += 1
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        got_model, got, what = loading.load_checkpoint(file, config)
    assert got_model == model and what == f"{file} without similarity head"
    assert "holds no similarity head" in caplog.text
    want, got = parameters.flatten(params), parameters.flatten(got)
    assert set(got) == set(want)
    for path, array in want.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


def test_a_name_in_the_folder_of_weights_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file a.pt; give the path of a checkpoint"):
        loading.check_there("a.pt")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a.pt").touch()
    loading.check_there("a.pt")
    with pytest.raises(FileNotFoundError, match="no file EVA02-CLIP-B-16; for the published CLIP "
                       "of this name give --config=published_clip:name=EVA02-CLIP-B-16 --check"):
        loading.check_there("EVA02-CLIP-B-16")


def test_a_part_of_a_similarity_head_is_refused(tmp_path):
    config = configs.read("quickstart")
    params = loading.load_params(
        "random", config.model, 0, loading.abstract(config.model, np.float32, None)[1])
    named = weights.export(params, config.model, "ours")
    weights.write(tmp_path / "whole.safetensors", named)
    assert loading.load_checkpoint(str(tmp_path / "whole.safetensors"), config)[0] == config.model
    del named["similarity/corr_in/bias"]
    weights.write(tmp_path / "part.safetensors", named)
    with pytest.raises(ValueError, match="similarity/corr_in/bias: not in the file"):
        loading.load_checkpoint(str(tmp_path / "part.safetensors"), config)
