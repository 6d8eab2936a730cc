"""Trains the small mask generator of the quick start, an EoMT, from scratch on generated scenes.

    python launch/pretrain_quickstart_generator.py \
        --output=maskclippp_jax/assets/quickstart_eomt.safetensors

Started again, it goes on from what it kept beside the output, and gives the numbers an unbroken run
gives. It sees scenes of the 59 seen classes only, drawn from the digits and photographs for
training: an unseen class never is in a picture, so no query is ever taught that it is "no object".
Each digit is a mask of its own, each texture one. Beside the weights (the authors' names, float16)
it writes a JSON file with the commands, the step each began at, and the curve: losses, and the
share of the masks of held-out scenes of all classes that one of an object meets with an IoU of 0.5.
"""

import concurrent.futures
import json
import multiprocessing
import pathlib
import sys
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters
from maskclippp_jax.data import scenes
from maskclippp_jax.generators.eomt import EoMT, EoMTConfig
from maskclippp_jax.training import proposals
from maskclippp_jax.vocabulary import Vocabulary
from maskclippp_jax.weights import eomt, rules

OUTPUT = flags.DEFINE_string("output", None, "file for the weights, .safetensors", required=True)
STEPS = flags.DEFINE_integer("steps", 450, "steps", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 16, "scenes a step", lower_bound=1)
POOL = flags.DEFINE_integer("pool", 12000, "different scenes", lower_bound=1)
RATE = flags.DEFINE_float("learning_rate", 1e-3, "the largest")
SEED = flags.DEFINE_integer("seed", 0, "of the scenes, the order and the weights")

EVERY = 50      # steps between two lines of the log, and between two saves
SLOTS = 8       # masks of a scene: two textures and five digits at most
HELD_OUT = 200  # scenes of all classes, of digits and photographs for testing
SEEN = [names[0] for names in Vocabulary.shipped("scenes_seen").classes]


class Pool(typing.NamedTuple):
    """Scenes with their masks."""

    images: np.ndarray    # [n, H, W, 3] uint8
    segments: np.ndarray  # [n, H, W] uint8
    labels: np.ndarray    # [n, SLOTS] int8, class of each segment; -1 = there is none


def main(_):
    config = EoMTConfig.quickstart()
    build, _ = eomt.abstract(config)
    params = begin(config)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, RATE.value, min(200, STEPS.value // 10), STEPS.value, RATE.value / 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))
    state = params, optimizer.init(params)

    @jax.jit
    def step(state, image, segments, labels, masked, key):
        def loss_of(params):
            found = proposals.predictions(build(params), image, masked, key)
            return proposals.loss(found, targets_of(segments, labels))

        (_, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(state[0])
        updates, opt = optimizer.update(gradients, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt), jnp.stack(parts)

    predict = jax.jit(lambda params, image: build(params)(image))
    kept = pathlib.Path(OUTPUT.value).with_suffix(".resume.safetensors")
    state, record = resume(kept, state)
    begun = record["curve"][-1][0] if record["curve"] else 0
    record["starts"].append([begun, " ".join(["python", *sys.argv])])
    pool, test = draw_pool(POOL.value, "train", SEEN), draw_pool(HELD_OUT, "test", scenes.CLASSES)
    start, recent = time.monotonic() - record["seconds"], []
    for done in range(begun, STEPS.value):
        chosen = np.random.default_rng((SEED.value, done)).choice(len(pool.images), BATCH.value)
        state, parts = step(
            state, *(x[chosen] for x in pool),
            proposals.fading(done, STEPS.value, config.query_blocks),
            jax.random.fold_in(jax.random.key(SEED.value), done))
        recent.append(parts)
        if (done + 1) % EVERY == 0 or done + 1 == STEPS.value:
            parts, recent = np.mean(recent, axis=0), []
            recall = recalls(predict, state[0], test)
            record["curve"].append([done + 1, *(round(float(x), 4) for x in (*parts, *recall))])
            record["seconds"] = round(time.monotonic() - start)
            logging.info("step %d/%d  losses of classes %.3f, cells %.3f, dice %.3f  recall at IoU "
                         "0.5: seen %.1f %%, unseen %.1f %%  %.2f s/step", done + 1, STEPS.value,
                         *parts, *(100 * x for x in recall), record["seconds"] / (done + 1))
            save(kept, state, record)
            write(state[0], config, record)
    kept.unlink(missing_ok=True)


def begin(config: EoMTConfig) -> parameters.Tree:
    """Random parameters; places and queries differ from the start, which DINOv2's do by training.

    Positions are sines and cosines of row and column (as of a plain ViT in MAE), queries N(0, 1).
    """
    params = parameters.initialize(lambda: EoMT(config, rngs=nnx.Rngs(SEED.value)))
    (height, width), quarter = config.grid, config.width // 4
    frequencies = np.pi / 2 * 2.0 ** -np.linspace(0, 4, quarter)  # periods of 4 to 64 patches
    rows, columns = np.mgrid[:height, :width].reshape(2, -1, 1) * frequencies
    table = np.concatenate([f(x) for x in (rows, columns) for f in (np.sin, np.cos)], -1)
    queries = np.random.default_rng(SEED.value).standard_normal(params["queries"].shape)
    return params | dict(position_table=jnp.asarray(0.5 * table, jnp.float32),
                         queries=jnp.asarray(queries, jnp.float32))


def targets_of(segments: jax.Array, labels: jax.Array) -> proposals.Targets:
    """Ground truth at half the scenes' size: a cell has the mean of its pixels."""
    batch, height, width = segments.shape
    numbers = jnp.arange(labels.shape[1], dtype=segments.dtype)
    masks = (segments[:, None] == numbers[None, :, None, None]).astype(jnp.float32)
    masks = masks.reshape(batch, -1, height // 2, 2, width // 2, 2)
    return proposals.Targets(masks.mean((3, 5)), labels.astype(jnp.int32))


def draw_pool(count: int, half: str, names: typing.Sequence[str]) -> Pool:
    """Scenes, drawn by all cores."""
    jobs = [(len(part), half, names, (SEED.value, half == "test", number))
            for number, part in enumerate(np.array_split(np.arange(count), 10))]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as workers:
        return Pool(*map(np.concatenate, zip(*workers.map(draw_some, jobs))))


def draw_some(job) -> Pool:
    count, half, names, seed = job
    rng = np.random.default_rng(seed)
    drawn = [scenes.draw_scene(rng, num_things=(0, 5), digits=half, classes=names)
             for _ in range(count)]
    index = [names.index(c) if c in names else -1 for c in scenes.CLASSES]
    labels = np.full((count, SLOTS), -1, np.int8)
    for row, scene in zip(labels, drawn):
        numbers, first = np.unique(scene.segments, return_index=True)
        row[numbers] = [index[c] for c in scene.label.ravel()[first]]
    return Pool(np.stack([s.image for s in drawn]), np.stack([s.segments for s in drawn]), labels)


def recalls(predict: typing.Callable, params: parameters.Tree, test: Pool) -> tuple[float, float]:
    """Shares of the masks of seen and of unseen classes that are met by one that is an object."""
    seen = np.array([c in SEEN for c in scenes.CLASSES])
    met: tuple[list, list] = [], []
    for start in range(0, len(test.images), 50):
        part = Pool(*(x[start:start + 50] for x in test))
        found = jax.device_get(predict(params, part.images))
        objects = jax.nn.softmax(found.class_logits)[..., -1] < 0.5
        masks = np.asarray(jax.image.resize(
            found.mask_logits, (*found.mask_logits.shape[:2], *part.images.shape[1:3]),
            "bilinear")) > 0
        for mask, is_object, segments, labels in zip(masks, objects, part.segments, part.labels):
            mask = mask[np.asarray(is_object)]
            for number in np.flatnonzero(labels >= 0):
                true = segments == number
                shared, both = (mask & true).sum((1, 2)), (mask | true).sum((1, 2))
                met[not seen[labels[number]]].append((shared > 0.5 * both).any())
    return float(np.mean(met[0])), float(np.mean(met[1]))


def save(path: pathlib.Path, state, record: dict) -> None:
    """All that a run needs to go on."""
    unfinished = path.with_suffix(".unfinished")
    save_file({str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}, unfinished,
              metadata={"record": json.dumps(record)})
    unfinished.rename(path)


def resume(path: pathlib.Path, state) -> tuple[typing.Any, dict]:
    """What `save` wrote, or a beginning."""
    if not path.exists():
        return state, dict(seconds=0, starts=[], curve=[])
    with safe_open(path, "numpy") as file:
        record = json.loads(file.metadata()["record"])
        leaves = [file.get_tensor(str(i)) for i in range(len(jax.tree.leaves(state)))]
    logging.info("goes on from %s", path)
    return jax.tree.unflatten(jax.tree.structure(state), leaves), record


def write(params: parameters.Tree, config: EoMTConfig, record: dict) -> None:
    output = pathlib.Path(OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    named = rules.export(jax.device_get(params), eomt.authors_rules(swiglu=False))
    # How much masking is left in each block, whose number tells how many blocks have queries.
    named["network.attn_mask_probs"] = np.zeros(config.query_blocks)
    save_file({k: np.asarray(v, np.float16, order="C") for k, v in named.items()}, output)
    facts = dict(seed=SEED.value, scenes=STEPS.value * BATCH.value, jax=jax.__version__,
                 columns=["step", "loss of classes", "loss of cells", "dice loss",
                          "recall of seen classes", "recall of unseen classes"])
    output.with_suffix(".json").write_text(json.dumps(facts | record) + "\n")


if __name__ == "__main__":
    app.run(main)
