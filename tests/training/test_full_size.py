"""The published best model at full size: minutes and gigabytes, so not by default.

    launch/test.sh -m slow -s
"""

import resource
import time

import jax
import numpy as np
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.data import pipeline
from maskclippp_jax.naming import loading
from maskclippp_jax.runtime import sharding
from maskclippp_jax.training import optim, train_step
from maskclippp_jax.vocabulary import Vocabulary, draw_synonyms


@pytest.mark.slow
def test_one_step_of_the_published_best_model_runs():
    import importlib.util
    spec = importlib.util.spec_from_file_location("best", "configs/coco_stuff_eva02_l14_336.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config().unlock()
    config.dtype = "float32"     # bfloat16 is emulated on a CPU
    config.train.accumulate = 4  # the same step; all four pictures at once would take 26 GB
    vocabulary = Vocabulary.shipped("coco_stuff_171")
    prompts = loading.tokenize(config.model, vocabulary, config.templates)
    make_model = loading.model_maker(config)
    build, shapes = parameters.abstract(make_model)
    is_trainable = optim.trainable_predicate("attention", "attention", config.model)
    part, _ = parameters.partition(shapes, is_trainable)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, part, config.model)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1],
                         axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    size, count = config.train.size, 8
    batch = dict(
        image=rng.integers(0, 256, (config.train.batch_size, size, size, 3)).astype(np.uint8),
        image_size=np.full((config.train.batch_size, 2), size, np.int32),
        segments=rng.integers(0, count + 1, (config.train.batch_size, 7, 7)).repeat(64, 1).repeat(
            64, 2).astype(np.uint16),
        labels=np.tile(np.r_[np.arange(count) * 20, np.full(config.train.num_masks - count, -1)],
                       (config.train.batch_size, 1)).astype(np.int32))
    with jax.set_mesh(mesh):
        params = loading.load_params("random", config.model, config.seed, shapes)
        trainable, frozen = parameters.partition(params, is_trainable)
        state = dict(step=np.zeros((), np.int32), trainable=trainable, frozen=frozen,
                     opt=optimizer.init(trainable))
        del params
        shardings = sharding.state_shardings(state, mesh)
        state = jax.device_put(state, shardings)
        step = train_step.make_step(config, build, optimizer, shardings, mesh)
        batch = pipeline.to_device(batch, sharding.batch_sharding(mesh))
        rows = draw_synonyms(vocabulary, rng)
        seconds = []
        for _ in range(2):
            start = time.monotonic()
            state, metrics = step(state, batch, rows, prompts)
            found = {k: float(v) for k, v in metrics.items()}
            seconds.append(time.monotonic() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{parameters.count(shapes) / 1e6:.1f} M parameters, "
          f"{parameters.count(part) / 1e6:.1f} M trainable; first step {seconds[0]:.0f} s with "
          f"compilation, second {seconds[1]:.0f} s; peak memory {peak:.1f} GiB; {found}")
    assert np.isfinite(found["loss"]) and found["grad_norm"] > 0 and int(state["step"]) == 2
