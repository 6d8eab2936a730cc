"""An experiment's steps as the compiler sees them, from shapes alone: no weights, no pictures."""

import math
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.data import catalogue, mask_batches, mask_chain, pipeline, records
from maskclippp_jax.naming import generator, inference, loading, segmenter
from maskclippp_jax.naming.postprocess import Classes, Heads
from maskclippp_jax.runtime import sharding
from maskclippp_jax.training import optim, train_step
from maskclippp_jax.vocabulary import Vocabulary

# Bytes that cross a chip's links for each byte of the result, on a ring of many chips.
COLLECTIVES = {"all-gather": 1, "all-reduce": 2, "reduce-scatter": 1, "all-to-all": 1,
                "collective-permute": 1}
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s8": 1, "u8": 1,
          "pred": 1, "f64": 8, "s64": 8, "u64": 8}


_MULTIPLE = 32  # generators pad their input to it


def lower_training(config, mesh, batch_size: int) -> jax.stages.Lowered:
    """The training step of an experiment, lowered for the devices of a mesh."""
    vocabulary, _ = _classes_and_kind(config, config.train.dataset.split(",")[0],
                                      config.train.split)
    prompts = loading.prompts_shape(config.model, vocabulary, config.templates)  # [S, T, X]
    make_model = loading.model_maker(config, platform=mesh.devices.flat[0].platform,
                                     layout=sharding.LAYOUT)
    build, shapes = parameters.abstract(make_model)
    is_trainable = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable, frozen = parameters.partition(shapes, is_trainable)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, trainable, config.model)
    state = train_step.abstract_state(config, trainable, frozen, optimizer)
    shardings = sharding.state_shardings(state, mesh)
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    like = lambda shape, dtype, where: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    state = jax.tree.map(lambda x, where: like(x.shape, x.dtype, where), state, shardings)
    size = config.train.size
    batch = dict(image=like((batch_size, size, size, 3), jnp.uint8, split),
                 image_size=like((batch_size, 2), jnp.int32, split),
                 segments=like((batch_size, size, size), jnp.uint16, split),
                 labels=like((batch_size, config.train.num_masks), jnp.int32, split))
    text = like(prompts, jnp.int32, whole)
    if config.tune.text == "none":
        text = like((*prompts[:2], config.model.image.embed_dim), jnp.float32, whole)
    rows = like((vocabulary.num_classes,), jnp.int32, whole)
    step = train_step.make_step(config, build, optimizer, shardings, mesh)
    with jax.set_mesh(mesh):
        return step.lower(state, batch, rows, text)


def lower_evaluation(config, mesh, batch_size: int, picture: tuple[int, int], num_masks: int
                     ) -> jax.stages.Lowered:
    """The step that names the masks of a generator, lowered for the devices of a mesh.

    The masks come with logits of the classes of `config.eval.dataset`, the results are those that
    its data sets ask for.

    Args:
      config: the experiment.
      mesh: the devices.
      batch_size: pictures a step over all of them.
      picture: height and width, pixels, as stored.
      num_masks: of a picture.
    """
    settings, patch = config.eval, config.model.image.patch_size
    platform = mesh.devices.flat[0].platform
    found = [_classes_and_kind(config, name, settings.split) for name in
             settings.dataset.split(",")]
    vocabulary, kinds = found[0][0], [kind for _, kind in found]
    wanted = Heads("semantic" in kinds, "panoptic" in kinds,
                   settings.num_instances if "instance" in kinds else 0)
    _, params = parameters.abstract(loading.model_maker(config, platform=platform))

    loaded = np.array(pipeline.loaded_size(picture, settings.loader_min, settings.loader_max))
    of_generator = inference.shorter_side_to(loaded[None], settings.mask_short_side)
    sizes = mask_chain.generated_mask_sizes(of_generator, _MULTIPLE)
    network = inference.network_sizes(loaded[None], settings.short_side, settings.max_tokens, patch)
    canvas = pipeline.up(loaded.tolist(), pipeline.CANVAS)
    stored = mask_batches.mask_canvas(sizes.stored[0].tolist(), loaded.tolist())
    num_masks = mask_batches.slots_for(num_masks)

    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    of_batch = lambda dtype, *shape: jax.ShapeDtypeStruct(
        (batch_size, *shape), dtype, sharding=split)
    batch = dict(
        image=of_batch(jnp.uint8, *canvas, 3), masks=of_batch(jnp.float16, num_masks, *stored),
        mask_valid=of_batch(jnp.bool_, num_masks),
        classes=of_batch(jnp.float32, num_masks, vocabulary.num_classes + 1),
        **{k: of_batch(jnp.int32, 2)
           for k in ("image_size", "output_size", "stored", "enlarged", "kept")})
    rows = inference.num_rows(vocabulary)
    names = inference.Names(
        np.zeros((rows, len(config.templates), config.model.text.embed_dim), np.float32),
        np.zeros(rows, np.int32))
    names = jax.eval_shape(inference.make_folder(config.model), params, names)
    opinion = segmenter.opinion_of(None, vocabulary, np.zeros(rows, np.float32))
    classes = Classes.of(vocabulary.is_thing, rows)
    shared = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=whole),
        (params, names, opinion, classes))
    run = segmenter.make_segmenter(config.model, wanted, "open", ensemble=True, platform=platform)
    # An evaluation runs the parts one after the other, each compiled for the shapes it depends on.
    whole_run = jax.jit(run, static_argnames=("canvas", "output_canvas"))
    with jax.set_mesh(mesh):
        return whole_run.lower(shared[0], batch, of_batch(jnp.int32, 2), *shared[1:],
                         canvas=inference.canvas_of(network, patch),
                         output_canvas=pipeline.up(picture, pipeline.CANVAS))


def lower_generator(config: generator.Config, mesh, picture: tuple[int, int], *, batch_size: int,
                    dtype) -> jax.stages.Lowered:
    """A mask generator's pass over pictures of one size, as they come from the loader.

    Args:
      config: sizes of the network.
      mesh: of one device.
      picture: height and width, pixels, as stored.
      batch_size: pictures.
      dtype: see `generator.make_program`.
    """
    platform, whole = mesh.devices.flat[0].platform, sharding.replicated(mesh)
    way = generator.way_of(picture, config, generator.PREPARATIONS[type(config)], "this generator")
    _, params = generator.abstract(config)
    params = jax.eval_shape(lambda x: generator.in_dtype(x, config, dtype), params)
    like = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
    shapes = jax.tree.map(lambda x: like(x.shape, x.dtype), params)
    sizes = like((batch_size, 2), jnp.int32)
    run = generator.make_program(config, dtype=dtype, platform=platform)
    with jax.set_mesh(mesh):
        return run.lower(shapes, like((batch_size, *way.padded, 3), jnp.uint8), sizes, sizes,
                         canvas=way.padded)


def _classes_and_kind(config, dataset: str, split: str) -> tuple[Vocabulary, str]:
    """Of a data set that is known, or else prepared."""
    known = catalogue.DATASETS.get(dataset)
    if known is not None:
        return Vocabulary.shipped(known.vocabulary), known.kind
    source = records.open_source(config.data_dir, dataset, split)
    return source.vocabulary, source.kind


def collectives(program: str) -> list[tuple[str, int]]:
    """Kind and bytes of the result of every collective in a compiled program.

    Bodies of loops count once. What is started in the background is counted where it starts.
    """
    found = []
    for kind in COLLECTIVES:
        for result, start in re.findall(rf"= (.*?) {kind}(-start)?\(", program):
            sizes = array_sizes(result)
            # The result of a start holds the operands as well, and may hold flags of its own.
            found.append((kind, max(sizes) if start and kind != "all-reduce" else sum(sizes)))
    return found


def array_sizes(shapes: str) -> list[int]:
    """Bytes of each array in a shape as a compiled program writes it: "(f32[2,3], u8[4])"."""
    return [math.prod(int(n) for n in sides.split(",") if n) * _BYTES.get(dtype, 4)
            for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)]


class Kernel(typing.NamedTuple):
    """A kernel in a compiled program, as its author counts it."""

    flops: float
    bytes: float
    used: float  # share of the matrix unit's columns, as its name tells it


def kernels(program: str) -> list[Kernel]:
    """The kernels for TPUs in a compiled program that tell what they cost."""
    found = []
    for line in program.splitlines():
        cost = re.search(r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"', line)
        if cost and 'custom_call_target="tpu_custom_call"' in line:
            columns = re.search(r"(\d+)_of_(\d+)", line)
            used = int(columns[1]) / int(columns[2]) if columns else 1.0
            found.append(Kernel(float(cost[1]), float(cost[2]), used))
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
