"""What one training step does: the loss of a batch, its gradients, and the new state.

A pure function of (state, batch), jitted once; `train`, `plan` and `parity` use the same one.
"""

import typing

import jax
import jax.numpy as jnp
import ml_collections
import optax

from maskclippp_jax import params as parameters
from maskclippp_jax.models import clip_resnet, maskclippp, resample, similarity
from maskclippp_jax.runtime import programs, sharding
from maskclippp_jax.training import losses, optim


def abstract_state(config: ml_collections.ConfigDict, trainable: parameters.Tree,
                   frozen: parameters.Tree, optimizer: optax.GradientTransformation
                   ) -> parameters.Tree:
    """Shapes of the state of a run, from shapes (or arrays) of its parameters.

    `step`, `trainable`, `frozen`, `opt`, and with `config.ema_decay` also `ema`, the moving average
    of the trainable part.
    """
    shape = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    state = dict(step=jax.ShapeDtypeStruct((), jnp.int32), trainable=shape(trainable),
                 frozen=shape(frozen), opt=jax.eval_shape(optimizer.init, trainable))
    return state | (dict(ema=shape(trainable)) if config.ema_decay else {})


def make_step(config: ml_collections.ConfigDict, build: typing.Callable,
              optimizer: optax.GradientTransformation, shardings: parameters.Tree, mesh):
    """The jitted step: (state, batch, synonym rows [C], text) -> (state, metrics).

    The state is as in `abstract_state`. The batch has image [B, H, W, 3], image_size [B, 2],
    segments [B, H, W] and labels [B, N]. `text` is the token ids [S, T, X] of all names if the text
    tower is tuned, else their unit embeddings [S, T, E]. Randomness (dropout) follows from the seed
    and the step. Batch norms that normalise by the batch leave their running averages among the
    frozen parameters.

    Args:
      config: the experiment.
      build: parameters -> model (`params.abstract`).
      optimizer: of the trainable part.
      shardings: of the state.
      mesh: the devices.
    """
    base_rate = optim.schedule(config.optimizer, config.train.steps)
    text_tuned = config.tune.text != "none"
    image_trains = image_in_training(config)

    def loss_of(trainable, frozen, part, rows, text, num_images, key):
        model = build(parameters.combine(trainable, frozen))
        text_embeddings = text[rows]  # [C, T, E], or [C, T, X] ids
        if text_tuned:
            text_embeddings = encode_prompts(model, text_embeddings)
        return grid_masks_loss(model, part, text_embeddings, config.loss, num_images=num_images,
                               key=key, image_key=key if image_trains else None)

    def step(state, batch, rows, text):
        model_config = config.model
        batch = dict(batch, grid_masks=resample.segments_to_grid(
            batch["segments"], model_config.image.patch_size, batch["labels"].shape[1]))
        del batch["segments"]
        num_images = counted_masks(batch, config.loss).any(-1).sum()
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

        def run(part, key):
            (_, sums), gradients = value_and_grad(
                state["trainable"], state["frozen"], part, rows, text, num_images, key)
            return sums, gradients

        if config.train.accumulate == 1:
            sums, gradients = run(batch, key)
        else:  # the loss is a sum over images: the parts add up to the whole batch's
            parts = sharding.split_batch(batch, config.train.accumulate)
            keys = jax.random.split(key, config.train.accumulate)
            add = lambda total, x: (jax.tree.map(jnp.add, total, run(*x)), None)
            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
                run, jax.tree.map(lambda x: x[0], parts), keys[0]))
            (sums, gradients), _ = jax.lax.scan(add, zero, (parts, keys))

        updates, opt = optimizer.update(gradients, state["opt"], state["trainable"])
        trainable = optax.apply_updates(state["trainable"], updates)
        new = dict(state, step=state["step"] + 1, opt=opt, trainable=trainable)
        if sums["statistics"] is not None:
            new["frozen"] = _follow_statistics(state["frozen"], sums["statistics"])
        if config.ema_decay:
            new["ema"] = optax.incremental_update(trainable, state["ema"], 1 - config.ema_decay)
        norm = optax.tree.norm(gradients)
        metrics = dict(
            loss=sums["loss"], masks=sums["masks"],
            mask_accuracy=sums["right"] / jnp.maximum(sums["masks"], 1),
            grad_norm=norm, learning_rate=base_rate(state["step"]),
            not_finite=jax.lax.cond(
                jnp.isfinite(norm) & jnp.isfinite(sums["loss"]), lambda: jnp.int32(-1),
                lambda: first_not_finite(state["trainable"], gradients)))
        for group, multiplier in (("image", config.optimizer.image_multiplier),
                                  ("text", config.optimizer.text_multiplier)):
            if group in gradients:
                metrics[f"learning_rate/{group}"] = multiplier * metrics["learning_rate"]
        for group in gradients:
            metrics[f"grad_norm/{group}"] = optax.tree.norm(gradients[group])
            metrics[f"update_norm/{group}"] = optax.tree.norm(updates[group])
        return new, metrics

    whole = sharding.replicated(mesh)
    return programs.jit(
        step, platform=mesh.devices.flat[0].platform, donate_argnums=0,
        in_shardings=(shardings, sharding.batch_sharding(mesh), whole, whole),
        out_shardings=(shardings, whole))


def image_in_training(config: ml_collections.ConfigDict) -> bool:
    """Whether the image tower drops branches, and normalises by the batch.

    A tower of which nothing is tuned stays as in evaluation (as in the public reference).
    """
    stored = (isinstance(config.model.image, clip_resnet.ResNetConfig)
              and config.tune.batch_norm == "stored")
    return config.tune.image != "none" and not stored


def _follow_statistics(frozen: parameters.Tree, batch: dict) -> parameters.Tree:
    """The frozen parameters with the running averages of the image tower after a batch."""
    leaves = parameters.flatten(frozen)
    batch = parameters.flatten(dict(image=batch))
    stored = {path: leaves[path] for path in batch}
    return parameters.unflatten(leaves | clip_resnet.follow_statistics(stored, batch))


def first_not_finite(trainable: parameters.Tree, gradients: parameters.Tree) -> jax.Array:
    """The place in `names_of_arrays` of the first array with a NaN or infinity; -1: all are finite.

    It reads all of them, so that it is only asked when the norm of the gradients, which any such
    number spoils, is not finite.
    """
    arrays = [*parameters.flatten(trainable).values(), *parameters.flatten(gradients).values()]
    finite = jnp.stack([jnp.isfinite(x).all() for x in arrays])
    return jnp.where(finite.all(), -1, finite.argmin()).astype(jnp.int32)


def names_of_arrays(trainable: parameters.Tree) -> list[str]:
    """What `first_not_finite` counts, in words."""
    paths = list(parameters.flatten(trainable))
    return [f"the parameter {p}" for p in paths] + [f"the gradient of {p}" for p in paths]


def encode_prompts(model: maskclippp.MaskCLIPpp, token_ids: jax.Array) -> jax.Array:
    """Unit embeddings [C, T, E] float32 of prompts [C, T, X], encoded by all devices together."""
    flat = token_ids.reshape(-1, token_ids.shape[-1])
    embeddings = sharding.spread(lambda ids: similarity.unit(model.encode_text(ids)), flat)
    return embeddings.reshape(*token_ids.shape[:2], -1)


def counted_masks(batch: dict, settings) -> jax.Array:
    """[B, N] bool: the masks that enter the loss.

    With `ignore_empty`, masks that down-sampling lost are left out: no patch tells them apart.
    """
    counted = batch["labels"] >= 0
    return counted & (batch["grid_masks"].sum(-1) > 0) if settings.ignore_empty else counted


def grid_masks_loss(model: maskclippp.MaskCLIPpp, batch: dict, text_embeddings: jax.Array,
                    settings, *, num_images: jax.Array | None = None,
                    key: jax.Array | None = None, image_key: jax.Array | None = None
                    ) -> tuple[jax.Array, dict]:
    """Loss of a batch whose masks lie on the token grid.

    Args:
      model: the model with all its parameters.
      batch: image [B, H, W, 3], image_size [B, 2], grid_masks [B, N, L], labels [B, N].
      text_embeddings: [C, T, E] unit vectors, one name a class.
      settings: config.loss.
      num_images: images with counted masks of the whole batch, if this is a part of it.
      key: of dropout in the head; None: none.
      image_key: the same of the image tower, see `image_in_training`.

    Returns:
      (loss, dict(loss, masks: how many counted, right: how many of them were named right,
      statistics: as in `ImageFeatures`)).
    """
    labels, counted = batch["labels"], counted_masks(batch, settings)
    features = model.encode_image(batch["image"], batch["image_size"], batch["grid_masks"],
                                  key=image_key)
    logits = model.classify(features, text_embeddings, key=key)  # [B, N, C]
    loss = losses.balanced_cross_entropy(
        logits / settings.temperature, labels, counted, num_images=num_images,
        balance_classes=settings.balance_classes)
    right = (logits.argmax(-1) == labels) & counted
    return loss, dict(loss=loss, masks=counted.sum(), right=right.sum(),
                      statistics=features.statistics)
