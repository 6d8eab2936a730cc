"""Trains the small CLIP of the quick start from scratch on pairs of scenes and captions.

    python launch/pretrain_quickstart.py --stage=digits --output=digits.safetensors
    python launch/pretrain_quickstart.py --stage=scenes --start=digits.safetensors \
        --output=maskclippp_jax/assets/quickstart_clip.safetensors

Contrastive training as in CLIP (Radford et al. 2021): a picture must find its own caption among
those of the batch, and the other way round. Captions say what is in a picture, never where; masks
are not used. Colours and textures tell most captions apart, so a model could do well without ever
reading a digit; hence the first stage mostly leaves the textures out of the captions, and begins
with small pictures of one digit, a quarter of the work. The second stage shows scenes and asks for
digits, textures, or both. Beside the weights (float16; EVA-CLIP's names, or timm's for the encoder
of another kind, `--config=quickstart_pe`) it writes a JSON file with command and loss curve.
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
from safetensors.numpy import save_file

from maskclippp_jax import configs, params as parameters, weights
from maskclippp_jax.data import scenes
from maskclippp_jax.data.tokenizer import Tokenizer
from maskclippp_jax.models import maskclippp, pe, similarity
from maskclippp_jax.models.text import truncate_prompts
from maskclippp_jax.naming import loading

OUTPUT = flags.DEFINE_string("output", None, "file for the weights, .safetensors", required=True)
CONFIG = flags.DEFINE_string("config", "quickstart", "the experiment whose encoders are trained, "
                             "as other commands take it")
STAGE = flags.DEFINE_enum("stage", None, ["digits", "scenes"], "see above", required=True)
START = flags.DEFINE_string("start", None, "weights to start from, written by the stage before")
SCALE = flags.DEFINE_float("scale", 1.0, "multiplies the steps of all phases")
BATCH = flags.DEFINE_integer("batch", 128, "pairs a step")
POOL = flags.DEFINE_integer("pool", 40000, "different scenes of each phase")
SEED = flags.DEFINE_integer("seed", 0, "of the scenes, the order and the weights")


class Phase(typing.NamedTuple):
    steps: int
    size: int                                      # pixels
    kinds: tuple[tuple[tuple, tuple, float], ...]  # digits, textures, share of the scenes


class Stage(typing.NamedTuple):
    phases: tuple[Phase, ...]
    captions: dict[str, float]  # share of the batches whose captions tell everything, ...
    learning_rate: float        # the largest


ONE = ((1, 1), (1, 1))
STAGES = dict(
    digits=Stage(
        (Phase(4000, 32, ((*ONE, 1.0),)),
         Phase(2500, 64, ((*ONE, 0.4), ((0, 0), (1, 1), 0.1), ((1, 2), (1, 2), 0.25),
                          ((2, 5), (1, 2), 0.25)))),
        dict(things=0.7, full=0.3), 1e-3),
    scenes=Stage(
        (Phase(1000, 64, ((*ONE, 0.3), ((0, 0), (1, 2), 0.15), ((1, 2), (1, 2), 0.25),
                          ((2, 5), (1, 2), 0.3))),),
        dict(full=0.4, things=0.35, stuff=0.25), 5e-4))
EVERY = 100   # steps between two lines of the log


class Pool(typing.NamedTuple):
    """Scenes with their captions."""

    images: np.ndarray               # [n, H, W, 3] uint8
    captions: dict[str, np.ndarray]  # token ids [n, X] of each form


def main(_):
    config = configs.read(CONFIG.value).model
    tokenizer = Tokenizer(config.text.context_length, words=config.text.words)
    stage = STAGES[STAGE.value]
    phases = [phase._replace(steps=round(phase.steps * SCALE.value)) for phase in stage.phases]
    total = sum(phase.steps for phase in phases)

    make = lambda: maskclippp.MaskCLIPpp(config, heads="apart", rngs=nnx.Rngs(SEED.value))
    build, shapes = parameters.abstract(make)
    params = parameters.initialize(make)
    if START.value:
        params = loading.load_params(START.value, config, SEED.value, shapes)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(0.05),
        optax.scale_by_learning_rate(optax.warmup_cosine_decay_schedule(
            0.0, stage.learning_rate, min(300, total // 4), total, stage.learning_rate / 100)))
    opt = optimizer.init(params)

    def loss_of(params, image, ids, same):
        model = build(params)
        size = jnp.full((len(image), 2), image.shape[1])
        z = similarity.unit(model.encode_image(image, size).image_embedding)
        t = similarity.unit(model.encode_text(ids))
        logits = z @ t.T * jnp.minimum(jnp.exp(params["logit_scale"]), 100.0)
        target = same / same.sum(-1, keepdims=True)  # equal captions are equally right
        loss = (optax.softmax_cross_entropy(logits, target).mean()
                + optax.softmax_cross_entropy(logits.T, target).mean()) / 2
        found = jnp.take_along_axis(same, logits.argmax(-1)[:, None], 1).mean()
        return loss, found

    @jax.jit
    def step(params, opt, image, ids, same):
        (loss, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, image, ids, same)
        updates, opt = optimizer.update(gradients, opt, params)
        return optax.apply_updates(params, updates), opt, loss, found

    things = [name for name, is_thing in zip(scenes.CLASSES, scenes.IS_THING) if is_thing]
    prompts = tokenizer([f"a photo of a {name}." for name in things])[:, :16]

    @jax.jit
    def read(params, image):
        """The thing whose prompt fits a picture best."""
        model = build(params)
        size = jnp.full((len(image), 2), image.shape[1])
        z = similarity.unit(model.encode_image(image, size).image_embedding)
        return (z @ similarity.unit(model.encode_text(prompts)).T).argmax(-1)

    rng, start, curve, recent, done = np.random.default_rng(SEED.value), time.monotonic(), [], [], 0
    for number, phase in enumerate(phases):
        pool = draw_pool(tokenizer, phase.kinds, POOL.value, phase.size, (SEED.value, number))
        test = draw_pool(tokenizer, ((*ONE, 1.0),), 600, phase.size, (SEED.value, number, 1),
                         "test")
        truth = (test.captions["things"][:, None, :16] == prompts[None]).all(-1).argmax(-1)
        for _ in range(phase.steps):
            chosen = rng.choice(len(pool.images), BATCH.value, replace=False)
            form = rng.choice(list(stage.captions), p=list(stage.captions.values()))
            ids = truncate_prompts(pool.captions[form][chosen])
            same = (ids[:, None] == ids[None]).all(-1).astype(np.float32)
            params, opt, loss, found = step(params, opt, pool.images[chosen], ids, same)
            recent.append((loss, found))
            done += 1
            if done % EVERY == 0 or done == total:
                loss, found = np.mean(recent, axis=0)
                recent, seconds = [], time.monotonic() - start
                reading = float((np.asarray(read(params, test.images)) == truth).mean())
                curve.append([done, *(round(float(x), 4) for x in (loss, found, reading))])
                logging.info(
                    "step %d/%d (%d pixels)  loss %.3f  caption found %.1f %%  single test digits "
                    "named %.1f %%  %.0f pairs/s", done, total, phase.size, loss, 100 * found,
                    100 * reading, done * BATCH.value / seconds)
    write(params, config, curve, total, time.monotonic() - start)


def draw_pool(tokenizer: Tokenizer, kinds, count: int, size: int, seed: tuple[int, ...],
              digits: str = "train") -> Pool:
    """Scenes and their captions, drawn by all cores."""
    jobs = [(things, stuff, round(count * share / 10), size, digits, (*seed, k, part))
            for k, (things, stuff, share) in enumerate(kinds) for part in range(10)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as workers:
        drawn = list(workers.map(draw_some, jobs))
    captions = [c for _, cs in drawn for c in cs]
    unknown = tokenizer.unknown_words(sorted(set(captions)))
    if unknown:
        raise ValueError(f"captions hold words the model does not know: {unknown}")
    return Pool(np.concatenate([images for images, _ in drawn]), dict(
        full=tokenizer(captions), things=tokenizer([c.split(" on ")[0] + "." * (" on " in c)
                                                    for c in captions]),
        stuff=tokenizer(["a photo of " + c.removeprefix("a photo of ").split(" on ")[-1]
                         for c in captions])))


def draw_some(job) -> tuple[np.ndarray, list[str]]:
    things, stuff, count, size, digits, seed = job
    rng = np.random.default_rng(seed)
    found = [scenes.draw_scene(rng, size=size, num_things=things, num_stuff=stuff, digits=digits)
             for _ in range(count)]
    return np.stack([s.image for s in found]), [s.caption for s in found]


def write(params: parameters.Tree, config: maskclippp.MaskCLIPppConfig, curve: list, steps: int,
          seconds: float) -> None:
    output = pathlib.Path(OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Of a plain CLIP, without head and masks.
    layout = "timm" if isinstance(config.image, pe.PEConfig) else "eva_clip"
    named = weights.export(jax.device_get(params), config, layout)
    save_file({k: np.asarray(v, np.float16, order="C") for k, v in named.items()}, output)
    record = dict(command=" ".join(["python", *sys.argv]), seed=SEED.value, steps=steps,
                  pairs=steps * BATCH.value, seconds=round(seconds), jax=jax.__version__,
                  columns=["step", "loss", "captions found", "single test digits named"],
                  curve=curve)
    if START.value:
        record["start"] = json.loads(pathlib.Path(START.value).with_suffix(".json").read_text())
    output.with_suffix(".json").write_text(json.dumps(record) + "\n")
    logging.info("wrote %s (%.1f MB)", output, output.stat().st_size / 1e6)


if __name__ == "__main__":
    app.run(main)
