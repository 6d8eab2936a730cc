"""A run that has done all its steps goes on to more; any other change is refused."""

import json
import logging

import numpy as np
import pytest
from etils import epath

from maskclippp_jax.configs import quickstart
from maskclippp_jax.runs import checkpoint, run_log
from maskclippp_jax.training import loop
from maskclippp_jax.weights import hub


def start(workdir, steps, **changes):
    config = quickstart.get_config().unlock()
    config.train.steps = steps
    for key, value in changes.items():
        config.optimizer[key] = value
    checkpoint.open_run(epath.Path(workdir), config.lock(), "a\nb\n", {"scenes": "1"})
    return config


def test_a_finished_run_goes_on_to_more_steps(tmp_path, caplog):
    start(tmp_path, 20)
    (tmp_path / "checkpoints/10").mkdir(parents=True)
    with pytest.raises(ValueError, match="train.steps was 20, is now 40.*when it has done all"):
        start(tmp_path, 40)
    (tmp_path / "checkpoints/20").mkdir()
    with pytest.raises(ValueError, match="train.steps was 20, is now 15"):
        start(tmp_path, 15)
    with pytest.raises(ValueError, match="optimizer.learning_rate was"):
        start(tmp_path, 40, learning_rate=0.5)
    assert checkpoint.steps_of(epath.Path(tmp_path)) == 20
    config = start(tmp_path, 40)
    assert checkpoint.steps_of(epath.Path(tmp_path)) == 40
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 40
    with caplog.at_level(logging.INFO, "absl"):
        loop.say_how_it_goes_on(config, 20)
    assert "finished after 20 steps and goes on to 40" in caplog.text
    assert "of 40 steps, 0.00053 at first (it ended with 5e-05), 5e-05 at the end" in caplog.text
    with pytest.raises(ValueError, match="train.steps was 40, is now 20"):
        start(tmp_path, 20)
    assert checkpoint.steps_of(epath.Path(tmp_path / "none")) is None


def test_looks_at_validation_data_are_told(tmp_path, caplog):
    log = run_log.RunLog(epath.Path(tmp_path), 0, 4, 2, array_names=["a"])
    common = dict(loss=np.float32(1), mask_accuracy=np.float32(0.5), not_finite=np.int32(-1))
    log.add(1, common)
    log.add(2, common | {"eval/mask_accuracy": 62.345, "eval/seen": 70.0, "distance/image": 0.25})
    with caplog.at_level(logging.INFO, "absl"):
        log.flush()
    said = [r.getMessage() for r in caplog.records if "validation" in r.getMessage()]
    assert said == ["validation after step 2: mask accuracy 62.3 %, seen classes 70.0 %; distance "
                    "from the original weights: image 0.25"]
    log.close()


def test_tries_at_the_hub_are_told_once():
    logger, said = logging.getLogger(hub._RETRIES), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    first = hub._FirstRetry("hf://a/b")
    logger.addHandler(handler)
    logger.addFilter(first)
    try:
        for n in range(5):
            logger.warning("'[Errno -2] no name' thrown while requesting HEAD https://x")
            logger.warning("Retrying in %ds [Retry %d/5].", 2**n, n)
    finally:
        logger.removeFilter(first)
        logger.removeHandler(handler)
    assert said == ["hf://a/b cannot be reached yet ([Errno -2] no name); trying again for half a "
                    "minute"]
