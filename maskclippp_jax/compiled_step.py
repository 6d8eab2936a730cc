"""An experiment's training step as the compiler sees it, from shapes alone: no weights, no data."""

import math
import re
import typing

import jax
import jax.numpy as jnp

from maskclippp_jax import loading, optim, sharding, train_step
from maskclippp_jax import params as parameters
from maskclippp_jax.data import catalogue
from maskclippp_jax.vocabulary import Vocabulary

# Bytes that cross a chip's links for each byte of the result, on a ring of many chips.
COLLECTIVES = {"all-gather": 1, "all-reduce": 2, "reduce-scatter": 1, "all-to-all": 1,
                "collective-permute": 1}
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s8": 1, "u8": 1,
          "pred": 1, "f64": 8, "s64": 8, "u64": 8}


def lower(config, mesh, batch_size: int) -> jax.stages.Lowered:
    """The training step of an experiment, lowered for the devices of a mesh."""
    vocabulary = Vocabulary.shipped(catalogue.DATASETS[config.train.dataset].vocabulary)
    prompts = loading.prompts_shape(config.model, vocabulary, config.templates)  # [S, T, X]
    make_model = loading.model_maker(config, platform=mesh.devices.flat[0].platform,
                                     constrain=sharding.constrain_batch)
    build, shapes = parameters.abstract(make_model)
    is_trainable = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable, frozen = parameters.partition(shapes, is_trainable)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, trainable, config.model)
    state = train_step.abstract_state(config, trainable, frozen, optimizer)
    shardings = sharding.state_shardings(state, mesh)
    size, like = config.train.size, jax.ShapeDtypeStruct
    batch = dict(image=like((batch_size, size, size, 3), jnp.uint8),
                 image_size=like((batch_size, 2), jnp.int32),
                 segments=like((batch_size, size, size), jnp.uint16),
                 labels=like((batch_size, config.train.num_masks), jnp.int32))
    text = like(prompts, jnp.int32)
    if config.tune.text == "none":
        text = like((*prompts[:2], config.model.image.embed_dim), jnp.float32)
    rows = like((vocabulary.num_classes,), jnp.int32)
    step = train_step.make_step(config, build, optimizer, shardings, mesh)
    with jax.set_mesh(mesh):
        return step.lower(state, batch, rows, text)


def collectives(program: str) -> list[tuple[str, int]]:
    """Kind and bytes of the result of every collective in a compiled program.

    Bodies of loops count once. What is started in the background is counted where it starts.
    """
    found = []
    for kind in COLLECTIVES:
        for result, start in re.findall(rf"= (.*?) {kind}(-start)?\(", program):
            sizes = [math.prod(int(n) for n in shape.split(",") if n) * _BYTES.get(dtype, 4)
                     for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)]
            # The result of a start holds the operands as well, and may hold flags of its own.
            found.append((kind, max(sizes) if start and kind != "all-reduce" else sum(sizes)))
    return found


def largest_batch(fits: typing.Callable[[int], bool], most: int) -> int:
    """The largest number of images that fits, to an eighth: by doubling, then bisection.

    Args:
      fits: tells it of one number; asked once for each.
      most: the search ends here.

    Returns:
      A number that fits; 0 if not even one image does.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    if high > most:
        return low
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
