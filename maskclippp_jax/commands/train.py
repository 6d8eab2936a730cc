"""Tunes a CLIP on masks: python -m maskclippp_jax.train --config=configs/x.py --workdir=D

Started again with the same line it goes on from the last checkpoint, with the data where it was,
and gives the numbers an unbroken run gives. SIGTERM makes it save and end. On several hosts each
one is started with `--distributed` (see `hosts.py`).
"""

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from maskclippp_jax import (
    checkpoint, cli, config as configuration, hosts, loading, optim, report, run_log, saving,
    sharding, storage, train_step, validation)
from maskclippp_jax import params as parameters
from maskclippp_jax.data import pipeline, records
from maskclippp_jax.vocabulary import draw_synonyms

CONFIG = config_flags.DEFINE_config_file("config", None, "file of the experiment", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; made, or resumed")
PROFILE = flags.DEFINE_string("profile", "", "steps to record in WORKDIR/profile, such as 20-25; "
                              "xprof and TensorBoard show them")
WANDB = flags.DEFINE_string("wandb", "", "project of Weights & Biases to log to as well")


def main(argv):
    del argv
    preemption, profile = hosts.Preemption(), run_log.Profile(PROFILE.value)
    wandb = run_log.import_wandb(WANDB.value)
    config = configuration.check(CONFIG.value, workdir=WORKDIR.value)
    workdir = storage.path(WORKDIR.value)

    # Data, and the names it speaks of.
    sources = [records.open_source(config.data_dir, name, config.train.split)
               for name in config.train.dataset.split(",")]
    vocabulary = sources[0].vocabulary
    for name, source in zip(config.train.dataset.split(","), sources):
        if source.vocabulary.classes != vocabulary.classes:
            raise ValueError(f"the data set {name} has other classes ({source.vocabulary.name}) "
                             f"than the first one ({vocabulary.name}); mix data sets of the same")
    looked_at = validation.open_source(config) if config.eval_every else None
    prompts = loading.tokenize(
        config.model, vocabulary, config.templates, config.sentencepiece)  # [S, T, X]

    # Model, and the part of it that learns.
    mesh = sharding.make_mesh(config.mesh.fsdp)
    hosts.connect(mesh)
    if config.train.batch_size % mesh.size:
        raise ValueError(f"train.batch_size is {config.train.batch_size}, but there are "
                         f"{mesh.size} devices; choose a multiple")
    make_model = loading.model_maker(config, layout=sharding.LAYOUT)
    build, shapes = parameters.abstract(make_model)
    is_trainable = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable_shapes, _ = parameters.partition(shapes, is_trainable)
    optimizer = optim.make_optimizer(
        config.optimizer, config.train.steps, trainable_shapes, config.model)
    params = loading.load_params(config.weights, config.model, make_model, shapes)
    owner = checkpoint.open_run(workdir, config, vocabulary.to_text())
    table = optim.parameter_table(shapes, is_trainable, config.optimizer, config.model)
    if jax.process_index() == 0:
        report.print_parameters(table)
        report.write_json(workdir / "parameters.json",
                          [dict(zip(optim.TABLE_COLUMNS, row)) for row in table])

    with jax.set_mesh(mesh):
        trainable, frozen = parameters.partition(params, is_trainable)
        shardings = sharding.state_shardings(
            train_step.abstract_state(config, trainable, frozen, optimizer), mesh)
        state = dict(step=np.zeros((), np.int32), trainable=trainable, frozen=frozen)
        state = sharding.put(state, {k: shardings[k] for k in state})
        state["opt"] = jax.jit(optimizer.init, out_shardings=shardings["opt"])(state["trainable"])
        if config.ema_decay:
            state["ema"] = jax.tree.map(jax.numpy.copy, state["trainable"])

        # A frozen text tower embeds all names once; a tuned one the chosen ones in every step.
        whole = sharding.replicated(mesh)
        text = prompts
        if config.tune.text == "none":
            text = loading.embed_names(
                config.model, frozen["text"], prompts, folder=loading.text_folder(config))
        text = sharding.put(text, whole)
        if config.eval_every:
            validate = validation.make_validator(
                config, *looked_at, jax.device_get(trainable), mesh)
        del params, trainable, frozen

        restored = checkpoint.restore(workdir, state)
        state = state if restored is None else restored
        first_step = int(state["step"])
        if restored is not None:
            logging.info("resuming after step %d", first_step)

        step_function = train_step.make_step(config, build, optimizer, shardings, mesh)
        batches = pipeline.train_batches(
            [s.records for s in sources], weights=config.train.dataset_weights,
            family=pipeline.family_of(config.train), num_masks=config.train.num_masks,
            batch_size=config.train.batch_size, seed=config.seed, start_step=first_step,
            host=jax.process_index(), hosts=jax.process_count(), masks=config.train.masks,
            drop_smallest=config.train.drop_smallest, skip_broken=config.train.skip_broken > 0,
            workers=config.train.workers)
        broken = 0  # records of this host that could not be decoded

        log = run_log.RunLog(
            workdir, first_step, config.train.steps, config.train.batch_size,
            array_names=train_step.names_of_arrays(trainable_shapes),
            wandb=wandb and run_log.open_wandb(
                wandb, WANDB.value, workdir, configuration.to_json(config)))
        done = saved = first_step
        compiled, best = None, saving.Best(workdir, config.keep_best)
        with (saving.open_saver(workdir, owner, config.keep, best, first_step) as saver,
              jax.transfer_guard("disallow")):
            while done < config.train.steps and not preemption.reached(done):
                with log.waiting():
                    batch = next(batches)
                broken += int(batch.pop("broken").sum())
                if broken > config.train.skip_broken:
                    raise ValueError(f"{broken} records could not be decoded (named above), "
                                     f"train.skip_broken allows {config.train.skip_broken}; "
                                     "prepare the data set again")
                batch = pipeline.to_device(batch, sharding.batch_sharding(mesh))
                rows = sharding.put(draw_synonyms(
                    vocabulary, np.random.default_rng((config.seed, done))), whole)
                if compiled is None:
                    compiled = step_function.lower(state, batch, rows, text).compile()
                    # The body of the loop over parts is counted once. Not every device tells.
                    flops = (compiled.cost_analysis() or {}).get("flops")
                    log.flops = flops and flops * config.train.accumulate
                profile.before(done + 1, log.folder)
                state, metrics = compiled(state, batch, rows, text)
                done += 1
                if config.eval_every and (done % config.eval_every == 0
                                          or done == config.train.steps):
                    numbers, views = validate(state)
                    metrics |= numbers
                    log.add_pictures(done, views)
                log.add(done, metrics)
                profile.after(done, metrics)
                if done % config.log_every == 0:
                    saver.check()
                    log.flush()  # also stops on a loss that is not finite, before it is saved
                if best.add(done, metrics) or done % config.checkpoint_every == 0:
                    saver.check()
                    log.send()  # the record is never behind the checkpoint
                    saver.save(state, done)
                    saved = done
            saver.check()
            log.send()
            if done > saved:
                saver.save(state, done)
        log.close()
    if done < config.train.steps:
        logging.info("asked to end (SIGTERM): saved after step %d of %d; the same line goes on "
                     "from there", done, config.train.steps)
        return
    if words := best.sentence(workdir):
        logging.info(words)
    logging.info("tuned for %d steps; next: python -m maskclippp_jax.evaluate --config=... "
                 "--checkpoint=%s --workdir=...", config.train.steps, workdir)


if __name__ == "__main__":
    cli.run(hosts.together(main), buckets=("workdir",))
