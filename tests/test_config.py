"""Configurations: what is checked, and their way through JSON."""

import dataclasses
import json

import pytest

from configs import coco_stuff_eva02_l14_336, quickstart
from maskclippp_jax import config as configuration


@pytest.mark.parametrize("module", [quickstart, coco_stuff_eva02_l14_336])
def test_a_configuration_survives_json(module):
    config = module.get_config()
    back = configuration.from_json(json.loads(json.dumps(configuration.to_json(config))))
    assert back.model == config.model
    assert configuration.to_json(back) == configuration.to_json(config)
    with pytest.raises(AttributeError):
        back.train.stpes = 3


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
