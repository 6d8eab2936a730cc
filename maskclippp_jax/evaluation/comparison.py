"""Models compared under one protocol; `evaluate` on the command line, which tells what there is."""

import functools
import time
import typing

import jax
import ml_collections
from absl import logging
from etils import epath

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.evaluation import (
    augmented,
    joining,
    passes,
    predictions,
    protocol as protocols,
    tables,
)
from maskclippp_jax.evaluation.counts import Evaluation, Extremes, Progress, picture_score
from maskclippp_jax.evaluation.truth import Truth, open_truth
from maskclippp_jax.naming import generated, inference, loading
from maskclippp_jax.naming.generated import AnyBundle
from maskclippp_jax.runs import checkpoint
from maskclippp_jax.runtime import hosts, progress as bars, sharding
from maskclippp_jax.vocabulary import Vocabulary

_PERFECT = "perfect classes"  # what stands for a model with the oracle of classes


class Options(typing.NamedTuple):
    """What an evaluation does besides measuring."""

    oracle: str | None = None            # "masks" or "classes": these are perfect
    allow_missing: bool = False          # whether a bundle may lack pictures
    save_predictions: str | None = None  # folder for them
    samples: int = 0                     # of the bootstrap over pictures; 0: no ranges
    seed: int = 0                        # of the bootstrap
    interpolate: typing.Sequence[float] = ()  # shares of the tuned weights; (): the tuned ones
    names_file: str | None = None        # other names for the classes of the data sets
    pictures: int = 0                    # so many are drawn, and of the best and the worst
    generator: str | None = None         # makes the masks, in place of a bundle


def compare(config: ml_collections.ConfigDict, names: typing.Sequence[str],
            bundle_folder: str | None, workdir: epath.Path, options: Options) -> list[dict]:
    """Evaluates models, writes and prints the results.

    Args:
      config: the experiment.
      names: of models, as `loading.load_checkpoint` takes them; of the oracle of classes there is
        none.
      bundle_folder: of the masks; None: those of `options.generator`, or else of the ground truth.
      workdir: for the results.
      options: what else is wanted.

    Returns:
      The results of each model, see `report.print_results`.

    Raises:
      FileNotFoundError, ValueError: a model, the masks or the data do not fit.
    """
    config = configuration.check(config, workdir=str(workdir))
    has_masks = bool(bundle_folder or options.generator)
    if bundle_folder and options.generator:
        raise ValueError("got --bundle and --generator, which are two sources of masks; give one")
    if options.generator and options.allow_missing:
        raise ValueError("--allow_missing is for a --bundle; a --generator makes masks of every "
                         "picture")
    if options.oracle == "classes":
        if names or not has_masks:
            raise ValueError("--oracle=classes asks no model: give --bundle or --generator, and no "
                             "--checkpoint")
        names = [_PERFECT]
    elif not names:
        raise ValueError("got no --checkpoint; give a run's folder, a checkpoint file, or "
                         "'untuned'")
    if options.oracle == "masks" and has_masks:
        raise ValueError("--oracle=masks takes the masks of the ground truth: give no --bundle and "
                         "no --generator")
    shares = options.interpolate
    versions = augmented.versions_of(config.eval)
    if options.oracle == "classes" and versions != augmented.PLAIN:
        raise ValueError("--oracle=classes asks no model, so there are no scores to average; give "
                         "no eval.short_sides and eval.flip")
    bundles = augmented.open_bundles(bundle_folder, versions) if bundle_folder else []
    together = open_truth(config.data_dir, config.eval.dataset, config.eval.split,
                          options.names_file)
    augmented.check_truth(together, versions)
    joining.check(together, allow_missing=options.allow_missing)
    if options.generator:
        bundles = generated.open_generator(options.generator, together.records, versions,
                                           config.eval)
    truths, missing = [together], []
    if bundles:
        for bundle in bundles:
            missing += bundle.check_pictures(together.sizes(), together.what,
                                             allow_missing=options.allow_missing)
        missing = sorted(set(missing))
        if config.eval.ensemble and bundles[0].kind == "none" and not options.oracle:
            raise ValueError(f"the masks of {bundles[0].folder} have no classes, so there is no "
                             "ensemble; add --config.eval.ensemble=False")
    else:  # each data set has masks of its own
        truths = [Truth({name: source}, config.eval.split)
                  for name, source in together.sources.items()]
    for name in names:  # before the first one is evaluated
        if name != _PERFECT:
            loading.check_there(name)
    protocol = protocols.describe(config, together, bundles, missing=missing, oracle=options.oracle)
    behind = protocols.behind(config, together)

    models, shown, finish = [], [], []
    for title, what, facts, model in models_of(config, together.vocabulary, names, shares):
        logging.info("evaluating %s", what)
        results, pictures, left = evaluate(
            config, model, truths, bundles, missing, dict(protocol, checkpoint=what),
            behind | facts, workdir / "progress" / f"{len(models)}", options,
            several=len(names) > 1 or len(shares) > 1)
        if any(m["name"] == title for m in models):  # runs/a/x and runs/b/x
            title = f"{title} ({len(models) + 1})"
        models.append(dict(name=title, checkpoint=what, **facts, **results))
        shown.append(pictures)
        finish += left
    if jax.process_index() == 0:
        tables.write(workdir, models, protocol, together, shown,
                     inference.seen_classes(config, together.vocabulary))
        for step in finish:
            step()
        (workdir / "progress").rmtree()
    return models


def models_of(config, vocabulary: Vocabulary, names: typing.Sequence[str],
              shares: typing.Sequence[float]):
    """Every model to be evaluated in the words of a vocabulary, one in memory at a time.

    Yields:
      Its title, what it is, facts for the results, and the model; None for perfect classes.
    """
    for name in names:
        if name == _PERFECT:
            yield name, name, {}, None
            continue
        model_config, params, what = loading.load_checkpoint(name, config)
        loading.warn_of_unknown_words(model_config, vocabulary)
        for share, facts, weights in on_the_way(name, config, model_config, params, shares):
            part = "" if share is None else f" x {share:g}"
            folder, step = checkpoint.place_of(epath.Path(name))
            title = folder.name + ("" if step is None else f" step {step}")
            yield (title + part, what + part, facts | dict(weights=parameters.digest(weights)),
                   passes.Model(model_config, weights))


def on_the_way(name: str, config, model_config, params,
               shares: typing.Sequence[float]):
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


def evaluate(config, model: passes.Model | None, truths: list[Truth],
             bundles: list[AnyBundle],
             missing: list[str], protocol: dict, behind: dict, folder: epath.Path,
             options: Options, *, several: bool
             ) -> tuple[dict, tables.Shown, list[typing.Callable[[], None]]]:
    """Runs one model, or the oracle of classes, over the ground truth.

    Args:
      config: the experiment.
      model: None: the masks of the bundle get perfect classes.
      truths: each is evaluated on masks of its own, or the only one on those of the bundle.
      bundles: the masks of each version of the pictures; []: those of the ground truth.
      missing: pictures that a bundle lacks.
      protocol: how all is measured.
      behind: what else may not change before an evaluation goes on.
      folder: for what was counted, in case of a stop.
      options: see `compare`.
      several: whether other models are evaluated as well.

    Returns:
      Results by metric and images_per_second, pictures to be shown, and what is left to do to
      finish saved predictions.
    """
    results, shown, finish = {}, tables.Shown([], [], bool(bundles)), []
    done, seconds, host = 0, 0.0, jax.process_index()
    versions = augmented.versions_of(config.eval)
    for number, truth in enumerate(truths):
        parts = [p for p in truth.parts if p not in results]
        if not bundles and versions == augmented.PLAIN and "mask_accuracy" not in results:
            parts.append("mask_accuracy")
        if model is None:
            parts.append("mask_recall")
        writer = None
        if options.save_predictions:
            path = [options.save_predictions, *[folder.name] * several,
                    *[next(iter(truth.sources))] * (len(truths) > 1)]
            writer = predictions.Writer("/".join(path), truth.vocabulary)
        evaluation = Evaluation(truth, inference.seen_classes(config, truth.vocabulary), parts,
                                writer=writer)
        progress = Progress(folder / f"{number}", evaluation, protocol | behind)
        extremes = Extremes(folder / f"{number}-extremes", options.pictures if host == 0 else 0)
        chosen = [i for i, name in enumerate(truth.ids)
                  if name not in progress.done and name not in missing]
        mesh = sharding.make_mesh(1)
        if model is None:
            pictures = passes.classify_perfectly(truth, parts, chosen, *bundles)
        elif versions != augmented.PLAIN:
            pictures = passes.name_versions(config, model, truth, mesh, chosen, versions, bundles)
        elif bundles:
            pictures = passes.name_bundle(config, model, truth, parts, mesh, chosen, *bundles)
        elif truth.parts == ["semantic"]:
            pictures = passes.name_segments(config, model, truth, mesh, chosen)
        else:
            pictures = passes.name_true_masks(config, model, truth, parts, mesh, chosen)
        start = time.monotonic()
        with jax.set_mesh(mesh):
            pictures = bars.track(pictures, "evaluating", total=len(chosen),
                                  step=jax.process_count(), shown=host == 0)
            for image_id, parts_of, labels in joining.whole_pictures(pictures, truth):
                for picture in parts_of:
                    evaluation.add(picture.image_id, picture.found, picture.labels,
                                   picture.overlaps)
                    if len(shown.views) < options.pictures:
                        if picture.view:
                            shown.views.append(tables.view_of(picture, truth.vocabulary))
                        elif bundles and picture.found.panoptic:
                            shown.views.append(tables.view_of_segments(picture, truth))
                if truth.tiles:
                    evaluation.add_labels(image_id, labels)
                progress.add(*(picture.image_id for picture in parts_of))
                if extremes.count and "semantic" in parts:
                    score = picture_score(labels, truth.semantic(image_id))
                    if score is not None:
                        extremes.add(image_id, score, labels)
                done += len(parts_of)
        seconds += time.monotonic() - start
        progress.save()
        shown.extremes.extend(extremes.ranked())
        if host == 0:
            for name in missing:
                evaluation.add_missing(name)
        evaluation.sum_over_hosts()
        results |= evaluation.results(options.samples, options.seed)
        if writer:
            finish.append(functools.partial(
                writer.finish, [i for i in truth.ids if i not in missing], protocol))
    results["images_per_second"] = round(hosts.sum_of(done) / max(seconds, 1e-9), 2)
    return results, shown, finish
