"""Trains the small CLIP of the quick start from scratch on pairs of scenes and captions.

    python launch/pretrain_quickstart.py --output=maskclippp_jax/assets/quickstart_clip.safetensors

Contrastive training as in CLIP (Radford et al. 2021): a picture must find its own caption among those
of the batch, and the other way round. Captions say what is in a picture, never where; masks are not
used. Equal captions in a batch count as one target. Beside the weights (float16, under EVA-CLIP's
names) it writes the loss curve, `<output>.json`, with the command, the seed and the versions.
"""

import concurrent.futures
import json
import multiprocessing
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters
from maskclippp_jax.data import scenes
from maskclippp_jax.data.tokenizer import Tokenizer
from maskclippp_jax.models import maskclippp, similarity
from maskclippp_jax.weights import eva_clip, rules

OUTPUT = flags.DEFINE_string("output", None, "file to write", required=True)
STEPS = flags.DEFINE_integer("steps", 5000, "optimiser steps")
SECONDS = flags.DEFINE_float("seconds", None, "shorten the run to about this many seconds")
BATCH = flags.DEFINE_integer("batch", 128, "pairs a step")
POOL = flags.DEFINE_integer("pool", 60000, "different scenes")
SEED = flags.DEFINE_integer("seed", 0, "of the scenes, the order and the weights")
RATE = flags.DEFINE_float("learning_rate", 1e-3, "largest learning rate")

# Kinds of scenes: how many digits, how many textures, and their share of the pool. Simple pictures
# teach the words, crowded ones that a picture holds several things.
KINDS = (((1, 1), (1, 1), 0.35), ((0, 0), (1, 1), 0.1), ((1, 2), (1, 2), 0.25),
         ((2, 5), (1, 2), 0.3))


def main(_):
    config = maskclippp.MaskCLIPppConfig.quickstart(num_templates=1)
    images, captions = draw_pool(POOL.value, SEED.value)
    tokenizer = Tokenizer(config.text.context_length, words=config.text.words)
    unknown = tokenizer.unknown_words(sorted(set(captions)))
    if unknown:
        raise ValueError(f"captions hold words the model does not know: {unknown}")
    token_ids = tokenizer(captions)
    token_ids = token_ids[:, :int(token_ids.argmax(-1).max()) + 1]

    make = lambda: maskclippp.MaskCLIPpp(config, by_head=False, rngs=nnx.Rngs(SEED.value))
    build, _ = parameters.abstract(make)
    params = parameters.initialize(make)
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE.value, 300, STEPS.value, RATE.value / 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98),
                            optax.add_decayed_weights(0.05), optax.scale(-1.0))
    opt = optimizer.init(params)

    def loss_of(params, image, ids, same):
        model = build(params)
        size = jnp.full((len(image), 2), image.shape[1])
        z = similarity.unit(model.encode_image(image, size).image_embedding)
        t = similarity.unit(model.encode_text(ids))
        logits = z @ t.T * jnp.minimum(jnp.exp(params["logit_scale"]), 100.0)
        target = same / same.sum(-1, keepdims=True)
        loss = (optax.softmax_cross_entropy(logits, target).mean()
                + optax.softmax_cross_entropy(logits.T, target).mean()) / 2
        found = jnp.take_along_axis(same, logits.argmax(-1)[:, None], 1).mean()
        return loss, found

    @jax.jit
    def step(params, opt, factor, image, ids, same):
        (loss, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, image, ids, same)
        updates, opt = optimizer.update(gradients, opt, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: factor * u, updates)), opt, loss, found

    rng, start, curve, recent = np.random.default_rng(SEED.value), time.monotonic(), [], []
    steps, i = STEPS.value, 0
    while i < steps:
        chosen = rng.choice(len(images), BATCH.value, replace=False)
        ids = token_ids[chosen]
        same = (ids[:, None] == ids[None]).all(-1).astype(np.float32)
        params, opt, loss, found = step(params, opt, np.float32(rate(i * STEPS.value / steps)),
                                        images[chosen], ids, same)
        recent.append((float(loss), float(found)))
        i += 1
        if i == 30 and SECONDS.value:
            steps = min(steps, int(SECONDS.value / (time.monotonic() - start) * 30))
        if i % 100 == 0 or i == steps:
            seconds = time.monotonic() - start
            if SECONDS.value:  # keep to the time, whatever else the machine does
                steps = min(STEPS.value, max(i, int(i * SECONDS.value / seconds)))
            loss, found = np.mean(recent, axis=0)
            recent = []
            curve.append(dict(step=i, loss=round(float(loss), 4), found=round(float(found), 4)))
            logging.info("step %d/%d  loss %.3f  caption found %.1f %%  %.0f pairs/s", i, steps, loss,
                         100 * found, i * BATCH.value / seconds)
    write(params, config, curve, steps, time.monotonic() - start)


def draw_pool(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Scenes [n, 64, 64, 3] uint8 and their captions, drawn by all cores."""
    jobs, first = [], 0
    for things, stuff, share in KINDS:
        for part in range(10):
            jobs.append((things, stuff, int(count * share / 10), (seed, first)))
            first += 1
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as workers:
        drawn = list(workers.map(draw_some, jobs))
    return (np.concatenate([images for images, _ in drawn]),
            [c for _, captions in drawn for c in captions])


def draw_some(job) -> tuple[np.ndarray, list[str]]:
    things, stuff, count, seed = job
    rng = np.random.default_rng(seed)
    found = [scenes.draw_scene(rng, num_things=things, num_stuff=stuff, digits="train")
             for _ in range(count)]
    return np.stack([s.image for s in found]), [s.caption for s in found]


def write(params, config, curve, steps, seconds):
    output = pathlib.Path(OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    leaves = {path: leaf for path, leaf in parameters.flatten(jax.device_get(params)).items()
              if not path.startswith(eva_clip.ABSENT)}  # masks and their head are not trained here
    named = rules.export(parameters.unflatten(leaves), eva_clip.RULES)
    save_file({k: np.asarray(v, np.float16, order="C") for k, v in named.items()}, output)
    record = dict(command=" ".join(["python", *sys.argv]), seed=SEED.value, steps=steps,
                  pairs=steps * BATCH.value, seconds=round(seconds), jax=jax.__version__, curve=curve)
    output.with_suffix(".json").write_text(json.dumps(record, indent=1))
    logging.info("wrote %s (%.1f MB)", output, output.stat().st_size / 1e6)


if __name__ == "__main__":
    app.run(main)
