"""What is checked of a configuration."""

import dataclasses

import pytest

from maskclippp_jax import config as configuration
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
