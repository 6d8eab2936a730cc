"""A training run, from its configuration to its last checkpoint; `train` on the command line."""

import contextlib
import typing

import jax
import ml_collections
import numpy as np
import optax
from absl import logging

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.data import pipeline, records
from maskclippp_jax.drawing import report
from maskclippp_jax.naming import loading
from maskclippp_jax.runs import checkpoint, ledger, run_log, saving
from maskclippp_jax.runtime import heap, hosts, sharding, storage
from maskclippp_jax.training import optim, teaching, train_step, validation
from maskclippp_jax.vocabulary import Vocabulary, draw_synonyms


def tune(config: ml_collections.ConfigDict | None, workdir: str | None, *, profile: str = "",
         wandb: str = "", allow_other_data: bool = False) -> None:
    """Tunes a CLIP on masks, or goes on with a run; returns early if it was asked to end (SIGTERM).

    Args:
      config: the experiment.
      workdir: folder of the run, here or in a bucket; made, or resumed.
      profile: steps to record in it, "a-b"; "" records nothing.
      wandb: project of Weights & Biases to log to as well; "" for none.
      allow_other_data: whether a run may go on although its data or class names have changed.

    Raises:
      ValueError, FileNotFoundError: data, weights, folder or configuration cannot be used.
      FloatingPointError: a loss is not finite; names the step.
      OSError: the run cannot be written, or a later start has taken it over.
    """
    preemption, recorded = hosts.Preemption(), run_log.Profile(profile)
    times = ledger.Ledger()
    board = run_log.import_wandb(wandb)
    config = configuration.check(config, workdir=workdir)
    workdir, steps = storage.path(workdir), config.train.steps

    data = open_data(config)
    mesh = connect_devices(config)
    learner = make_learner(config)
    params = loading.load_params(config.weights, config.model, config.seed, learner.shapes)
    steps_before = checkpoint.steps_of(workdir)
    owner = checkpoint.open_run(workdir, config, data.vocabulary.to_text(), data.fingerprints,
                                allow_other_data=allow_other_data)
    show_parameters(workdir, config, learner)

    with jax.set_mesh(mesh):
        state, shardings = start_state(config, learner, params, mesh)
        text = embed_names(config, params, data.prompts, mesh)
        validate = make_validator(config, data, learner, params, mesh)
        del params
        state = resume(workdir, state)
        first_step = int(state["step"])
        if steps_before is not None and steps_before < steps:
            say_how_it_goes_on(config, steps_before)

        log = run_log.RunLog(
            workdir, first_step, steps, config.train.batch_size,
            array_names=train_step.names_of_arrays(learner.trainable_shapes),
            wandb=board and run_log.open_wandb(
                board, wandb, workdir, configuration.to_json(config)), times=times)
        step = train_step.make_step(config, learner.build, learner.optimizer, shardings, mesh)
        batches = read_batches(config, data.sources, first_step, log)
        done = saved = first_step
        compiled, best = None, saving.Best(workdir, config.keep_best)
        with (saving.open_saver(workdir, owner, config.keep, best, first_step) as saver,
              contextlib.ExitStack() as at_end, jax.transfer_guard("disallow")):
            at_end.callback(heap.give_back)
            while done < steps and not preemption.reached(done):
                batch = pipeline.to_device(next(batches), sharding.batch_sharding(mesh))
                rows = sharding.put(draw_synonyms(
                    data.vocabulary, np.random.default_rng((config.seed, done))),
                    sharding.replicated(mesh))
                if compiled is None:
                    with times.spending("compiling"):
                        compiled = step.lower(state, batch, rows, text).compile()
                    log.flops = flops_of(compiled, config)
                recorded.before(done + 1, log.folder)
                state, metrics = compiled(state, batch, rows, text)
                if jax.default_backend() == "cpu":
                    heap.keep()
                done += 1
                if validate and (done % config.eval_every == 0 or done == steps):
                    with times.spending("validating"):
                        heap.give_back()
                        numbers, views = validate(state)
                    metrics |= numbers
                    log.add_pictures(done, views)
                log.add(done, metrics)
                recorded.after(done, metrics)
                if done % config.log_every == 0:
                    saver.check()
                    log.flush()  # also stops on a loss that is not finite, before it is saved
                if best.add(done, metrics) or done % config.checkpoint_every == 0:
                    saver.check()
                    log.send()  # the record is never behind the checkpoint
                    with times.spending("saving"):
                        saver.save(state, done)
                    saved = done
            saver.check()
            log.send()
            with times.spending("saving"):
                if done > saved:
                    saver.save(state, done)
                saver.finish()
        log.close()
    say_what_is_next(workdir, config, best, done)


class Data(typing.NamedTuple):
    """What a run learns from."""

    sources: list[records.Source]
    vocabulary: Vocabulary  # of all of them
    prompts: np.ndarray     # [S, T, X] int32 token ids of every name in every template
    looked_at: tuple[records.Source, np.ndarray] | None  # see `validation.open_source`
    fingerprints: dict[str, str]  # of every split that is read


def open_data(config: ml_collections.ConfigDict) -> Data:
    """Opens the data sets of an experiment, and the names they speak of.

    Raises:
      FileNotFoundError, ValueError: one is not there, or they differ in their classes.
    """
    names = config.train.dataset.split(",")
    sources = [records.open_source(config.data_dir, name, config.train.split) for name in names]
    vocabulary = sources[0].vocabulary
    for name, source in zip(names, sources):
        if source.vocabulary.classes != vocabulary.classes:
            raise ValueError(f"the data set {name} has other classes ({source.vocabulary.name}) "
                             f"than the first one ({vocabulary.name}); mix data sets of the same")
    teaching.check(dict(zip(names, sources)), vocabulary)
    loading.warn_of_unknown_words(config.model, vocabulary)
    looked_at = validation.open_source(config) if config.eval_every else None
    read = [(name, config.train.split) for name in names]
    if looked_at is not None:
        read.append((config.eval.dataset, config.eval.split))
    fingerprints = {f"{name} {split}": records.fingerprint(config.data_dir, name, split)
                    for name, split in read}
    prompts = loading.tokenize(config.model, vocabulary, config.templates, config.sentencepiece)
    return Data(sources, vocabulary, prompts, looked_at, fingerprints)


def connect_devices(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    """The devices of all processes, which have met.

    Raises:
      ValueError: the batch cannot be spread over them.
    """
    mesh = sharding.make_mesh(config.mesh.fsdp)
    hosts.connect(mesh)
    if config.train.batch_size % mesh.size:
        raise ValueError(f"train.batch_size is {config.train.batch_size}, but there are "
                         f"{mesh.size} devices; choose a multiple")
    return mesh


class Learner(typing.NamedTuple):
    """The model, and the part of it that learns."""

    make_model: typing.Callable
    build: typing.Callable                        # see `params.abstract`, as `shapes`
    shapes: parameters.Tree
    is_trainable: typing.Callable[[str], bool]    # by a parameter's path
    trainable_shapes: parameters.Tree
    optimizer: optax.GradientTransformation


def make_learner(config: ml_collections.ConfigDict) -> Learner:
    """Lays the model of an experiment out, and its optimiser; nothing is in memory yet."""
    make_model = loading.model_maker(config, layout=sharding.LAYOUT)
    build, shapes = parameters.abstract(make_model)
    is_trainable = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable_shapes, _ = parameters.partition(shapes, is_trainable)
    optimizer = optim.make_optimizer(
        config.optimizer, config.train.steps, trainable_shapes, config.model)
    return Learner(make_model, build, shapes, is_trainable, trainable_shapes, optimizer)


def show_parameters(workdir, config: ml_collections.ConfigDict, learner: Learner) -> None:
    """Prints what learns, how fast, with which decay, and keeps it as parameters.json."""
    if jax.process_index():
        return
    table = optim.parameter_table(learner.shapes, learner.is_trainable, config.optimizer,
                                  config.model)
    report.print_parameters(table)
    report.write_json(workdir / "parameters.json",
                      [dict(zip(optim.TABLE_COLUMNS, row)) for row in table])


def start_state(config: ml_collections.ConfigDict, learner: Learner, params: parameters.Tree,
                mesh: jax.sharding.Mesh) -> tuple[dict, dict]:
    """The state before the first step, on the devices, and how its arrays lie there."""
    trainable, frozen = parameters.partition(params, learner.is_trainable)
    shardings = sharding.state_shardings(
        train_step.abstract_state(config, trainable, frozen, learner.optimizer), mesh)
    state = dict(step=np.zeros((), np.int32), trainable=trainable, frozen=frozen)
    state = sharding.put(state, {k: shardings[k] for k in state})
    state["opt"] = jax.jit(learner.optimizer.init, out_shardings=shardings["opt"])(
        state["trainable"])
    if config.ema_decay:
        state["ema"] = jax.tree.map(jax.numpy.copy, state["trainable"])
    return state, shardings


def embed_names(config: ml_collections.ConfigDict, params: parameters.Tree, prompts: np.ndarray,
                mesh: jax.sharding.Mesh) -> jax.Array:
    """What a step gets of the names, on all devices.

    A frozen text tower embeds all of them once, [S, T, E]; a tuned one gets the token ids and
    embeds the chosen ones in every step.
    """
    text = prompts
    if config.tune.text == "none":
        text = loading.embed_names(
            config.model, params["text"], prompts, folder=loading.text_folder(config))
    return sharding.put(text, sharding.replicated(mesh))


def make_validator(config: ml_collections.ConfigDict, data: Data, learner: Learner,
                   params: parameters.Tree, mesh: jax.sharding.Mesh) -> typing.Callable | None:
    """See `validation.make_validator`; None if the run has no looks at validation data."""
    if data.looked_at is None:
        return None
    trainable, _ = parameters.partition(params, learner.is_trainable)
    return validation.make_validator(config, *data.looked_at, jax.device_get(trainable), mesh)


def resume(workdir, state: dict) -> dict:
    """The newest state that was saved, if there is one, else the one given."""
    restored = checkpoint.restore(workdir, state)
    if restored is None:
        return state
    logging.info("resuming after step %d", int(restored["step"]))
    return restored


def say_how_it_goes_on(config: ml_collections.ConfigDict, before: int) -> None:
    """Tells the schedule of a run that was finished after some steps and does more now."""
    steps = config.train.steps
    rate = optim.schedule(config.optimizer, steps)
    ended = optim.schedule(config.optimizer, before)(before)
    logging.info("the run was finished after %d steps and goes on to %d: from here its learning "
                 "rate follows the schedule of %d steps, %.2g at first (it ended with %.2g), %.2g "
                 "at the end", before, steps, steps, rate(before), ended, rate(steps))


def read_batches(config: ml_collections.ConfigDict, sources: typing.Sequence[records.Source],
                 first_step: int, log: run_log.RunLog) -> typing.Iterator[dict]:
    """This host's share of the batches after a step, without end; see `pipeline.train_batches`.

    Raises:
      ValueError: more records could not be decoded than `train.skip_broken` allows.
    """
    settings = config.train
    batches = pipeline.train_batches(
        [s.records for s in sources], weights=settings.dataset_weights,
        family=pipeline.family_of(settings), num_masks=settings.num_masks,
        batch_size=settings.batch_size, seed=config.seed, start_step=first_step,
        host=jax.process_index(), hosts=jax.process_count(), masks=settings.masks,
        drop_smallest=settings.drop_smallest, skip_broken=settings.skip_broken > 0,
        workers=settings.workers)
    broken = 0  # records of this host that could not be decoded
    while True:
        with log.waiting():
            batch = next(batches)
        broken += int(batch.pop("broken").sum())
        if broken > settings.skip_broken:
            raise ValueError(f"{broken} records could not be decoded (named above), "
                             f"train.skip_broken allows {settings.skip_broken}; prepare the data "
                             "set again")
        yield batch


def flops_of(compiled: jax.stages.Compiled, config: ml_collections.ConfigDict) -> float | None:
    """FLOPs of a step on each device; None where the compiler does not tell."""
    flops = (compiled.cost_analysis() or {}).get("flops")
    return flops and flops * config.train.accumulate  # the body of its loop is counted once


def say_what_is_next(workdir, config: ml_collections.ConfigDict, best: saving.Best,
                     done: int) -> None:
    steps = config.train.steps
    if done < steps:
        logging.info("asked to end (SIGTERM): saved after step %d of %d; the same line goes on "
                     "from there", done, steps)
        return
    if words := best.sentence(workdir):
        logging.info(words)
    logging.info("tuned for %d steps; next: maskclippp evaluate --config=... --checkpoint=%s "
                 "--workdir=...", steps, workdir)
