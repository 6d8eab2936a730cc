"""Evaluates models: on ground-truth masks, or on the masks of a generator.

    python -m maskclippp_jax.evaluate --config=configs/x.py --checkpoint=P --workdir=D
    python -m maskclippp_jax.evaluate --config=... --checkpoint=P --workdir=D --bundle=B \
        --config.eval.dataset=ade20k_150,ade20k_150_panoptic,ade20k_150_instance
    python -m maskclippp_jax.evaluate --suite=published --bundles=DIR --checkpoints=DIR --workdir=D

Without `--bundle` every ground-truth mask is given to the model, which names it: mask accuracy, and
what follows from masks named so. With it the masks are those of a bundle (`maskclippp_jax.masks`,
launch/export). What is measured depends on the data sets (see evaluation/truth.py): mIoU, panoptic
quality, average precision. `--checkpoint` is the folder of a training run (its newest checkpoint)
or of one checkpoint in it (D/checkpoints/400), a checkpoint file, or "untuned" (the pre-trained
CLIP, mean over templates); given several times, all are compared. An evaluation that was stopped
goes on when the same command is given again.

`--config.eval.short_sides=400,500 --config.eval.flip=True` averages the scores of label maps over
versions of every picture (evaluation/augmented.py), of semantic data sets. `--bundle` is a folder
with a bundle for each version then, as launch/export writes them with --short_sides and --flip.

`--interpolate=0,0.5,1` evaluates weights on the line from the pre-trained ones (0) to the tuned
ones (1), with the tuned similarity head.

`--oracle=masks` is the first form, perfect masks, with all results the data sets allow, each on
masks of its own kind; `--oracle=classes` gives the masks of the bundle perfect classes, without a
model: what the generator alone allows.

`--suite=published` runs every published row (configs/eval) that has data, and prints our numbers
beside the published ones; `evaluation/suite.py` says what it looks for.
"""

import functools
import time
import typing

import jax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags
from rich.progress import Progress as Bar

from maskclippp_jax import (
    checkpoint, cli, config as configuration, hosts, loading, predictions, sharding, storage)
from maskclippp_jax import params as parameters
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.evaluation import protocol as protocols
from maskclippp_jax.evaluation import augmented, runs, suite, tables
from maskclippp_jax.evaluation.counts import Evaluation, Extremes, Progress, picture_score
from maskclippp_jax.evaluation.truth import Truth, open_truth

CONFIG = config_flags.DEFINE_config_file("config", None, "file of the experiment", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results")
CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", [], "run folder, checkpoint file, or 'untuned'")
BUNDLE = flags.DEFINE_string("bundle", None, "folder of a generator's masks, or of such folders "
                             "for versions of the pictures")
ALLOW_MISSING = flags.DEFINE_bool("allow_missing", False, "pictures that the bundle lacks count as "
                                  "missed")
ORACLE = flags.DEFINE_enum("oracle", None, ["masks", "classes"], "perfect masks named by the "
                           "model, or masks of the bundle named perfectly")
SAVE_PREDICTIONS = flags.DEFINE_string("save_predictions", None, "folder for the predictions, "
                                       "which maskclippp_jax.score scores; with several models "
                                       "one below it for each, 0, 1, ...")
SAMPLES = flags.DEFINE_integer("samples", 1000, "of the bootstrap over pictures; 0: no ranges")
SEED = flags.DEFINE_integer("seed", 0, "of the bootstrap")
INTERPOLATE = flags.DEFINE_list(
    "interpolate", [], "shares of the tuned weights, such as 0,0.5,1; the rest is pre-trained")
PICTURES = flags.DEFINE_integer("pictures", 0, "show this many pictures with their named masks, "
                                "and as many of the best and of the worst", lower_bound=0)
SUITE = flags.DEFINE_enum("suite", None, ["published"], "run all rows of a table")
BUNDLES = flags.DEFINE_string("bundles", "bundles", "of a suite: folder of all bundles")
CHECKPOINTS = flags.DEFINE_string("checkpoints", "checkpoints", "of a suite: folder of all models")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "of a suite: folder of the prepared data sets")
ROWS = flags.DEFINE_list("rows", [], "of a suite: these rows only")

_SUITE = ("bundles", "checkpoints", "data_dir", "rows")
_NO_SUITE = ("config", "checkpoint", "bundle", "oracle", "interpolate", "save_predictions")
_PERFECT = "perfect classes"  # what stands for a model with --oracle=classes


def main(argv):
    del argv
    for flag in _NO_SUITE if SUITE.value else _SUITE:
        if flags.FLAGS[flag].present:
            raise ValueError(f"--{flag} is not for a suite, whose rows decide that" if SUITE.value
                             else f"--{flag} is for --suite; an experiment takes --checkpoint, "
                             "--bundle and --config.data_dir")
    if SUITE.value:
        if not WORKDIR.value:
            raise ValueError("got no --workdir; give the folder for the results")
        suite.run(
            storage.path(WORKDIR.value), bundles=BUNDLES.value,
            checkpoints=CHECKPOINTS.value, data_dir=DATA_DIR.value, rows=ROWS.value,
            evaluate=lambda config, name, bundle, workdir: run(config, [name], bundle, workdir)[0])
        return
    config = configuration.check(CONFIG.value, workdir=WORKDIR.value)
    names = CHECKPOINT.value
    if ORACLE.value == "classes":
        if names or not BUNDLE.value:
            raise ValueError("--oracle=classes asks no model: give --bundle and no --checkpoint")
        names = [_PERFECT]
    elif not names:
        raise ValueError("got no --checkpoint; give a run's folder, a checkpoint file, or "
                         "'untuned'")
    if ORACLE.value == "masks" and BUNDLE.value:
        raise ValueError("--oracle=masks takes the masks of the ground truth: give no --bundle")
    run(config, names, BUNDLE.value, storage.path(WORKDIR.value))


def run(config, names: list[str], bundle_folder: str | None, workdir: epath.Path) -> list[dict]:
    """Evaluates models, writes and prints the results.

    Args:
      config: the experiment.
      names: see --checkpoint.
      bundle_folder: of the masks; None: those of the ground truth.
      workdir: for the results.

    Returns:
      The results of each model, see `report.print_results`.
    """
    shares = read_shares(INTERPOLATE.value)
    versions = augmented.versions_of(config.eval)
    if ORACLE.value == "classes" and versions != augmented.PLAIN:
        raise ValueError("--oracle=classes asks no model, so there are no scores to average; give "
                         "no eval.short_sides and eval.flip")
    bundles = augmented.open_bundles(bundle_folder, versions) if bundle_folder else []
    together = open_truth(config.data_dir, config.eval.dataset, config.eval.split)
    augmented.check_truth(together, versions)
    truths, missing = [together], []
    if bundles:
        for bundle in bundles:
            missing += bundle.check_pictures(together.sizes(), together.what,
                                             allow_missing=ALLOW_MISSING.value)
        missing = sorted(set(missing))
        if config.eval.ensemble and bundles[0].kind == "none" and not ORACLE.value:
            raise ValueError(f"the masks of {bundles[0].folder} have no classes, so there is no "
                             "ensemble; add --config.eval.ensemble=False")
    else:  # each data set has masks of its own
        truths = [Truth({name: source}, config.eval.split)
                  for name, source in together.sources.items()]
    protocol = protocols.describe(config, together, bundles, missing=missing, oracle=ORACLE.value)

    models, shown, finish = [], [], []
    for title, what, facts, model in models_of(config, names, shares):
        logging.info("evaluating %s", what)
        results, pictures, left = evaluate(
            config, model, truths, bundles, missing, dict(protocol, checkpoint=what),
            workdir / "progress" / f"{len(models)}", several=len(names) > 1 or len(shares) > 1)
        if any(m["name"] == title for m in models):  # runs/a/x and runs/b/x
            title = f"{title} ({len(models) + 1})"
        models.append(dict(name=title, checkpoint=what, **facts, **results))
        shown.append(pictures)
        finish += left
    if jax.process_index() == 0:
        tables.write(workdir, models, protocol, together, shown)
        for step in finish:
            step()
        (workdir / "progress").rmtree()
    return models


def models_of(config, names: list[str], shares: list[float]):
    """Every model to be evaluated, one in memory at a time.

    Yields:
      Its title, what it is, facts for the results, and the model; None for perfect classes.
    """
    for name in names:
        if name == _PERFECT:
            yield name, name, {}, None
            continue
        model_config, params, what = loading.load_checkpoint(name, config)
        for share, facts, weights in on_the_way(name, config, model_config, params, shares):
            part = "" if share is None else f" x {share:g}"
            folder, step = checkpoint.place_of(epath.Path(name))
            title = folder.name + ("" if step is None else f" step {step}")
            yield (title + part, what + part, facts,
                   runs.Model(model_config, weights))


def read_shares(given: list[str]) -> list[float]:
    """The numbers of --interpolate."""
    try:
        return [float(share) for share in given]
    except ValueError:
        raise ValueError(f"--interpolate is {','.join(given)!r}, wanted numbers such as 0,0.5,1"
                         ) from None


def on_the_way(name: str, config, model_config, params, shares: list[float]):
    """The weights to evaluate: a checkpoint's own, or those between it and what it was tuned from.

    Yields:
      The share of the tuned weights (None: nothing is interpolated), facts for the results, and the
      parameters.
    """
    if name == "untuned" or not shares:
        yield None, {}, params
        return
    original = jax.device_get(loading.load_original(name, config, model_config))
    found = jax.jit(parameters.distances)(original, params)
    moved = {part: float(found[part]) for part in ("image", "text")}
    for share in shares:
        facts = dict(interpolation=share, distance_from_original=moved)
        yield share, facts, parameters.interpolate(original, params, share)


def evaluate(config, model: runs.Model | None, truths: list[Truth], bundles: list[Bundle],
             missing: list[str], protocol: dict, folder: epath.Path, *, several: bool
             ) -> tuple[dict, tables.Shown, list[typing.Callable[[], None]]]:
    """Runs one model, or the oracle of classes, over the ground truth.

    Args:
      config: the experiment.
      model: None: the masks of the bundle get perfect classes.
      truths: each is evaluated on masks of its own, or the only one on those of the bundle.
      bundles: the masks of each version of the pictures; []: those of the ground truth.
      missing: pictures that a bundle lacks.
      protocol: how all is measured.
      folder: for what was counted, in case of a stop.
      several: whether other models are evaluated as well.

    Returns:
      Results by metric and images_per_second, pictures to be shown, and what is left to do to
      finish saved predictions.
    """
    results, shown, finish = {}, tables.Shown([], []), []
    done, seconds, host = 0, 0.0, jax.process_index()
    versions = augmented.versions_of(config.eval)
    for number, truth in enumerate(truths):
        parts = [p for p in truth.parts if p not in results]
        if not bundles and versions == augmented.PLAIN and "mask_accuracy" not in results:
            parts.append("mask_accuracy")
        writer = None
        if SAVE_PREDICTIONS.value:
            path = [SAVE_PREDICTIONS.value, *[folder.name] * several,
                    *[next(iter(truth.sources))] * (len(truths) > 1)]
            writer = predictions.Writer("/".join(path), truth.vocabulary)
        evaluation = Evaluation(truth, runs.seen_classes(config, truth.vocabulary), parts,
                                writer=writer)
        progress = Progress(folder / f"{number}", evaluation, protocol)
        extremes = Extremes(folder / f"{number}-extremes", PICTURES.value if host == 0 else 0)
        chosen = [i for i, name in enumerate(truth.ids)
                  if name not in progress.done and name not in missing]
        mesh = sharding.make_mesh(1)
        if model is None:
            pictures = runs.classify_perfectly(truth, parts, chosen, *bundles)
        elif versions != augmented.PLAIN:
            pictures = runs.name_versions(config, model, truth, mesh, chosen, versions, bundles)
        elif bundles:
            pictures = runs.name_bundle(config, model, truth, parts, mesh, chosen, *bundles)
        elif truth.parts == ["semantic"]:
            pictures = runs.name_segments(config, model, truth, mesh, chosen)
        else:
            pictures = runs.name_true_masks(config, model, truth, parts, mesh, chosen)
        start = time.monotonic()
        with jax.set_mesh(mesh), Bar(transient=True, disable=host > 0) as bar:
            task = bar.add_task("evaluating", total=len(chosen))
            for picture in pictures:
                evaluation.add(picture.image_id, picture.found, picture.labels)
                progress.add(picture.image_id)
                bar.advance(task, jax.process_count())
                if picture.view and len(shown.views) < PICTURES.value:
                    shown.views.append(tables.view_of(picture, truth.vocabulary))
                if extremes.count and "semantic" in parts:
                    labels, image_id = picture.found.labels, picture.image_id
                    score = picture_score(labels, truth.semantic(image_id))
                    if score is not None:
                        extremes.add(image_id, score, labels)
                done += 1
        seconds += time.monotonic() - start
        progress.save()
        shown.extremes.extend(extremes.ranked())
        if host == 0:
            for name in missing:
                evaluation.add_missing(name)
        evaluation.sum_over_hosts()
        results |= evaluation.results(SAMPLES.value, SEED.value)
        if writer:
            finish.append(functools.partial(
                writer.finish, [i for i in truth.ids if i not in missing], protocol))
    results["images_per_second"] = round(hosts.sum_of(done) / max(seconds, 1e-9), 2)
    return results, shown, finish


if __name__ == "__main__":
    cli.run(hosts.together(main), buckets=(
        "workdir", "checkpoint", "bundle", "save_predictions", "bundles", "checkpoints",
        "data_dir"))
