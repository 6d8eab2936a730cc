"""What is checked of a configuration."""

import dataclasses
import types

import jax
import pytest

from maskclippp_jax import config as configuration, configs
from maskclippp_jax.configs import quickstart


def test_sizes_of_a_model_that_does_not_exist_here_are_refused():
    stored = configuration.to_json(quickstart.get_config())
    stored["model"]["image"]["type"] = "NewTowerConfig"
    with pytest.raises(ValueError, match="sizes of a NewTowerConfig .* does not know"):
        configuration.from_json(stored)


def test_all_problems_are_listed_together():
    config = quickstart.get_config().unlock()
    config.dtype, config.train.size = "float8", 30
    config.model = dataclasses.replace(config.model, similarity=dataclasses.replace(
        config.model.similarity, num_templates=3))
    with pytest.raises(ValueError, match="dtype is 'float8'.*multiple of 8.*3 templates"):
        configuration.check(config, workdir="x")


@pytest.mark.parametrize("key, value, says", [
    ("train.steps", 10**30, "train.steps is 1000000000000000000000000000000; it can be 1 ..."),
    ("train.batch_size", -1, "train.batch_size is -1; it can be 1 ..."),
    ("train.accumulate", 0, "train.accumulate is 0; it can be 1 ..."),
    ("train.accumulate", 3, "train.accumulate is 3; it must divide train.batch_size"),
    ("train.num_masks", 70_000, "train.num_masks is 70000; it can be 1 ... 65534"),
    ("seed", -1, "seed is -1; it can be 0 ..."), ("keep_best", -2, "keep_best is -2; it can be 0"),
    ("eval.batch_size", 0, "eval.batch_size is 0; it can be 1 ..."),
    ("eval.alpha", 1.5, "eval.alpha is 1.5; it can be 0 ... 1"),
    ("eval.objectness", -0.5, "eval.objectness is -0.5; it can be 0 ... 1"),
    ("ema_decay", float("nan"), "ema_decay is nan; it can be 0 ... 1"),
    ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate is nan; it can be 0 ..."),
    ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate is inf; it can be 0 ..."),
    ("optimizer.learning_rate", 0.0, "optimizer.learning_rate is 0; nothing would be learnt"),
    ("templates", "foo", "templates has 'foo'; it is a list of texts, each with one {}"),
    ("templates", ("a {}", "a {x}"), "templates has 'a {x}'"),
    ("templates", ("{} of {}",), "templates has '{} of {}'"),
    ("templates", ("a {",), "templates has 'a {'"), ("templates", (3,), "templates has 3"),
    ("templates", ("a {:d}",), "templates has 'a {:d}'"), ("templates", (), "templates has ()"),
    ("loss.temperature", 0.0, "loss.temperature is 0.0; it can be 1e-06 ...")])
def test_numbers_out_of_range_are_refused(key, value, says):
    config = quickstart.get_config().unlock()
    *parts, last = key.split(".")
    place = config
    for part in parts:
        place = place[part]
    with place.ignore_type():
        place[last] = value
    with pytest.raises(ValueError) as caught:
        configuration.check(config, workdir="x")
    assert says in str(caught.value)


@pytest.mark.parametrize("text, says", [
    ("", "own.py has no function get_config"), ("x = 1", "own.py has no function get_config"),
    ("def (", r"own.py cannot be read .SyntaxError: invalid syntax"),
    ("def get_config():\n    raise RuntimeError('boom')", "cannot be read .RuntimeError: boom"),
    ("def get_config():\n    return {'a': 1}", "own.py returned dict, wanted a ConfigDict"),
    ("def get_config():\n    pass", "own.py returned NoneType, wanted a ConfigDict"),
    ("def get_config(x):\n    pass", "TypeError: get_config.. missing 1 required"),
    ("import nothere", "No module named 'nothere'"),
    ("def get_config():\n    raise ValueError('in its own words')", "^in its own words$")])
def test_what_is_no_configuration_is_refused(tmp_path, text, says):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ValueError, match=says):
        configs.read(str(tmp_path / "own.py"))
    with pytest.raises(ValueError, match="has no argument 'foo'; it has dataset, names"):
        configs.read("own_data:foo")


def test_a_gpu_attends_as_the_environment_says(monkeypatch):
    monkeypatch.delenv(configuration.GPU_ATTENTION, raising=False)
    assert configuration.heads_on("gpu") == "together"
    monkeypatch.setenv(configuration.GPU_ATTENTION, "cudnn")
    assert configuration.heads_on("gpu") == "cudnn"
    assert [configuration.heads_on(x) for x in ("cpu", "tpu", None)] == ["apart", "fused", "apart"]
    monkeypatch.setenv(configuration.GPU_ATTENTION, "flash")
    with pytest.raises(ValueError, match="GPU_ATTENTION is 'flash'; it can be together, cudnn"):
        configuration.heads_on("gpu")


@pytest.mark.parametrize("capability, refused", [
    ("7.5", True), ("gfx90a", True), (None, True), ("8.0", False), ("12.0", False)])
def test_a_gpu_that_cudnn_does_not_attend_on_is_refused(monkeypatch, capability, refused):
    device = types.SimpleNamespace(device_kind="Tesla T4")
    if capability:
        device.compute_capability = capability
    monkeypatch.setenv(configuration.GPU_ATTENTION, "cudnn")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    if not refused:
        assert configuration.heads_on() == "cudnn"
        return
    with pytest.raises(ValueError, match=rf"8.0 or more .*Tesla T4. has {capability}; leave "):
        configuration.heads_on()
