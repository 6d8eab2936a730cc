"""Tunes a CLIP on masks: python -m maskclippp_jax.train --config=configs/x.py --workdir=D

Started again with the same line it goes on from the last checkpoint, with the data where it was,
and gives the numbers an unbroken run gives.
"""

import jax
import numpy as np
import optax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from maskclippp_jax import checkpoint, cli, config as configuration, loading, losses, optim, report
from maskclippp_jax import params as parameters
from maskclippp_jax import sharding
from maskclippp_jax.data import pipeline, records
from maskclippp_jax.models import maskclippp, resample, similarity
from maskclippp_jax.run_log import RunLog
from maskclippp_jax.vocabulary import Vocabulary, draw_synonyms

CONFIG = config_flags.DEFINE_config_file("config", None, "file of the experiment", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; made, or resumed")


def main(argv):
    del argv
    config = configuration.check(CONFIG.value, workdir=WORKDIR.value)
    workdir = epath.Path(WORKDIR.value).absolute()

    # Data, and the names it speaks of.
    source = records.open_source(config.data_dir, config.train.dataset, config.train.split)
    vocabulary = Vocabulary.shipped(source.vocabulary)
    prompts = loading.tokenize(config.model, vocabulary, config.templates)  # [S, T, X]

    # Model, and the part of it that learns.
    mesh = sharding.make_mesh(config.mesh.fsdp)
    if config.train.batch_size % mesh.size:
        raise ValueError(f"train.batch_size is {config.train.batch_size}, but there are "
                         f"{mesh.size} devices; choose a multiple")
    make_model = loading.model_maker(config, constrain=sharding.constrain_batch)
    build, shapes = parameters.abstract(make_model)
    is_trainable = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable_shapes, _ = parameters.partition(shapes, is_trainable)
    optimizer = optim.make_optimizer(
        config.optimizer, config.train.steps, trainable_shapes, config.model)
    base_rate = optim.schedule(config.optimizer, config.train.steps)
    params = loading.load_params(config.weights, config.model, make_model, shapes)
    checkpoint.open_run(workdir, config, vocabulary.to_text())
    report.print_parameters(optim.parameter_table(
        shapes, is_trainable, config.optimizer, config.model))

    with jax.set_mesh(mesh), checkpoint.open_checkpoints(workdir) as checkpoints:
        trainable, frozen = parameters.partition(params, is_trainable)
        state = dict(step=np.zeros((), np.int32), trainable=trainable, frozen=frozen,
                     opt=jax.eval_shape(optimizer.init, trainable))
        shardings = sharding.state_shardings(state, mesh)
        state |= jax.device_put({k: state[k] for k in ("step", "trainable", "frozen")},
                                {k: shardings[k] for k in ("step", "trainable", "frozen")})
        state["opt"] = jax.jit(optimizer.init, out_shardings=shardings["opt"])(state["trainable"])

        # A frozen text tower embeds all names once; a tuned one the chosen ones in every step.
        whole = sharding.replicated(mesh)
        text = jax.device_put(prompts, whole)
        if config.tune.text == "none":
            text = jax.device_put(loading.embed_names(config.model, frozen["text"], prompts), whole)

        del params, trainable, frozen

        restored = checkpoint.restore(checkpoints, state)
        state = state if restored is None else restored
        first_step = int(state["step"])
        if restored is not None:
            logging.info("resuming after step %d", first_step)

        step_function = make_step(
            build, optimizer, base_rate, config.tune.text != "none", shardings, mesh)
        batches = pipeline.train_batches(
            source.records, start_step=first_step, host=jax.process_index(),
            hosts=jax.process_count(),
            batch_size=config.train.batch_size, seed=config.seed, size=config.train.size,
            short_sides=config.train.short_sides, color_jitter=config.train.color_jitter,
            num_masks=config.train.num_masks, masks=config.train.masks,
            workers=config.train.workers)

        log = RunLog(workdir, first_step, config.train.steps, config.train.batch_size)
        with jax.transfer_guard("disallow"):
            for step in range(first_step, config.train.steps):
                batch = pipeline.to_device(next(batches), sharding.batch_sharding(mesh))
                rows = jax.device_put(draw_synonyms(
                    vocabulary, np.random.default_rng((config.seed, step))), whole)
                state, metrics = step_function(state, batch, rows, text)
                log.add(step + 1, metrics)
                done = step + 1
                if done % config.log_every == 0 or done == config.train.steps:
                    log.flush()  # also stops on a loss that is not finite, before it is saved
                if done % config.checkpoint_every == 0 or done == config.train.steps:
                    log.flush()
                    checkpoint.save(checkpoints, state, done)
        log.close()
    logging.info("tuned for %d steps; next: python -m maskclippp_jax.evaluate --config=... "
                 "--checkpoint=%s --workdir=...", config.train.steps, workdir)


def make_step(build, optimizer, base_rate, text_tuned: bool, shardings, mesh):
    """The jitted step: (state, batch, synonym rows [C], text) -> (state, metrics).

    `text` is the token ids [S, T, X] of all names if the text tower is tuned, else their unit
    embeddings [S, T, E].
    """

    def loss_of(trainable, frozen, batch, rows, text):
        model = build(parameters.combine(trainable, frozen))
        text_embeddings = text[rows]  # [C, T, E], or [C, T, X] ids
        if text_tuned:
            text_embeddings = encode_prompts(model, text_embeddings)
        return masks_loss(model, batch, text_embeddings)

    def step(state, batch, rows, text):
        (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state["trainable"], state["frozen"], batch, rows, text)
        updates, opt = optimizer.update(gradients, state["opt"], state["trainable"])
        new = dict(step=state["step"] + 1, opt=opt, frozen=state["frozen"],
                   trainable=optax.apply_updates(state["trainable"], updates))
        return new, metrics | dict(grad_norm=optax.tree.norm(gradients),
                                   learning_rate=base_rate(state["step"]))

    whole = sharding.replicated(mesh)
    return jax.jit(step, in_shardings=(shardings, sharding.batch_sharding(mesh), whole, whole),
                   out_shardings=(shardings, whole), donate_argnums=0)


def encode_prompts(model: maskclippp.MaskCLIPpp, token_ids: jax.Array) -> jax.Array:
    """Unit embeddings [C, T, E] float32 of prompts [C, T, X], encoded by all devices together."""
    flat = token_ids.reshape(-1, token_ids.shape[-1])
    embeddings = sharding.spread(lambda ids: similarity.unit(model.encode_text(ids)), flat)
    return embeddings.reshape(*token_ids.shape[:2], -1)


def masks_loss(model: maskclippp.MaskCLIPpp, batch: dict, text_embeddings: jax.Array):
    """Loss of a batch of label maps, and its metrics: `grid_masks_loss` of the segments' masks.

    Args:
      model: the model with all its parameters.
      batch: image [B, H, W, 3], image_size [B, 2], segments [B, H, W], labels [B, N].
      text_embeddings: [C, T, E] unit vectors, one name a class.
    """
    grid_masks = resample.segments_to_grid(
        batch["segments"], model.config.image.patch_size, batch["labels"].shape[1])
    return grid_masks_loss(model, batch, grid_masks, text_embeddings)


def grid_masks_loss(model: maskclippp.MaskCLIPpp, batch: dict, grid_masks: jax.Array,
                    text_embeddings: jax.Array):
    """Loss of a batch of masks on the token grid [B, N, L].

    Returns:
      (loss, dict(loss, mask_accuracy in 0..1, masks: how many counted)).
    """
    labels = batch["labels"]
    features = model.encode_image(batch["image"], batch["image_size"], grid_masks)
    logits = model.classify(features.mask_embeddings, text_embeddings)  # [B, N, C]
    # Masks that down-sampling lost are not counted: no patch tells them apart.
    counted = (labels >= 0) & (grid_masks.sum(-1) > 0)
    loss = losses.balanced_cross_entropy(logits, labels, counted)
    return loss, dict(loss=loss, mask_accuracy=losses.accuracy(logits, labels, counted),
                      masks=counted.sum())


if __name__ == "__main__":
    cli.run(main)
