"""Evaluates models: on ground-truth masks, or on the masks of a generator.

    python -m maskclippp_jax.evaluate --config=configs/x.py --checkpoint=P --workdir=D
    python -m maskclippp_jax.evaluate --config=... --checkpoint=P --workdir=D --bundle=B \
        --config.eval.dataset=ade20k_150,ade20k_150_panoptic,ade20k_150_instance

Without `--bundle` every ground-truth mask is given to the model, which names it: mask accuracy, and
what follows from masks named so. With it the masks are those of a bundle (`maskclippp_jax.masks`,
launch/export). What is measured depends on the data sets (see `truth.py`): mIoU, panoptic quality,
average precision. `--checkpoint` is the folder of a training run, a checkpoint file, or "untuned"
(the pre-trained CLIP, mean over templates); given several times, all are compared. An evaluation
that was stopped goes on when the same command is given again.

`--interpolate=0,0.5,1` evaluates weights on the line from the pre-trained ones (0) to the tuned
ones (1), with the tuned similarity head.

`--oracle=masks` is the first form, perfect masks, with all results the data sets allow, each on
masks of its own kind; `--oracle=classes` gives the masks of the bundle perfect classes, without a
model: what the generator alone allows.
"""

import functools
import hashlib
import time
import typing

import jax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags
from rich.progress import Progress as Bar

from maskclippp_jax import (cli, config as configuration, evaluation_runs as runs, loading,
                            predictions, report, sharding)
from maskclippp_jax import params as parameters
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.evaluation import Evaluation, Progress
from maskclippp_jax.truth import Truth, open_truth
from maskclippp_jax.vocabulary import Vocabulary

CONFIG = config_flags.DEFINE_config_file("config", None, "file of the experiment", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results")
CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", [], "run folder, checkpoint file, or 'untuned'")
BUNDLE = flags.DEFINE_string("bundle", None, "folder of a generator's masks")
ALLOW_MISSING = flags.DEFINE_bool("allow_missing", False, "pictures that the bundle lacks count as "
                                  "missed")
ORACLE = flags.DEFINE_enum("oracle", None, ["masks", "classes"], "perfect masks named by the "
                           "model, or masks of the bundle named perfectly")
SAVE_PREDICTIONS = flags.DEFINE_string("save_predictions", None, "folder for the predictions, which "
                                       "maskclippp_jax.score scores; with several models one below "
                                       "it for each, 0, 1, ...")
SAMPLES = flags.DEFINE_integer("samples", 1000, "of the bootstrap over pictures; 0: no ranges")
SEED = flags.DEFINE_integer("seed", 0, "of the bootstrap")
INTERPOLATE = flags.DEFINE_list(
    "interpolate", [], "shares of the tuned weights, such as 0,0.5,1; the rest is pre-trained")
PICTURES = flags.DEFINE_integer("pictures", 0, "show this many pictures with their named masks")

PERFECT = "perfect classes"  # what stands for a model with --oracle=classes


def main(argv):
    del argv
    config = configuration.check(CONFIG.value, workdir=WORKDIR.value)
    names = CHECKPOINT.value
    if ORACLE.value == "classes":
        if names or not BUNDLE.value:
            raise ValueError("--oracle=classes asks no model: give --bundle and no --checkpoint")
        names = [PERFECT]
    elif not names:
        raise ValueError("got no --checkpoint; give a run's folder, a checkpoint file, or "
                         "'untuned'")
    if ORACLE.value == "masks" and BUNDLE.value:
        raise ValueError("--oracle=masks takes the masks of the ground truth: give no --bundle")
    shares = read_shares(INTERPOLATE.value)
    workdir, settings = epath.Path(WORKDIR.value).absolute(), config.eval
    bundle = Bundle(BUNDLE.value) if BUNDLE.value else None
    truths = truths_of(config, bundle)
    missing = []
    if bundle:
        missing = bundle.check_pictures(truths[0].sizes(), truths[0].what,
                                        allow_missing=ALLOW_MISSING.value)
        if settings.ensemble and bundle.kind == "none" and not ORACLE.value:
            raise ValueError(f"the masks of {bundle.folder} have no classes, so there is no "
                             "ensemble; add --config.eval.ensemble=False")
    protocol = protocol_of(config, truths, bundle, missing)

    models, shown, finish = [], [], []
    for title, what, facts, model in models_of(config, names, shares):
        logging.info("evaluating %s", what)
        folder = workdir / "progress" / f"{len(models)}"
        results, views, left = evaluate(config, model, truths, bundle, missing,
                                        dict(protocol, checkpoint=what), folder)
        models.append(dict(name=title, checkpoint=what, **facts, **results))
        shown.append(views)
        finish += left
    if jax.process_index() == 0:
        write(workdir, models, protocol, truths[0].vocabulary, shown)
        for step in finish:
            step()
        (workdir / "progress").rmtree()


def models_of(config, names: list[str], shares: list[float]):
    """Every model to be evaluated, one in memory at a time.

    Yields:
      Its title, what it is, facts for the results, and the model; None for perfect classes.
    """
    for name in names:
        if name == PERFECT:
            yield name, name, {}, None
            continue
        model_config, params, what = loading.load_checkpoint(name, config)
        title = epath.Path(name).name
        for share, facts, weights in on_the_way(name, config, model_config, params, shares):
            part = "" if share is None else f" x {share:g}"
            yield title + part, what + part, facts, runs.Model(model_config, weights)


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
    moved = {k: float(v) for k, v in jax.jit(parameters.distances)(original, params).items()
             if k not in ("similarity", "logit_scale")}
    for share in shares:
        facts = dict(interpolation=share, distance_from_original=moved)
        yield share, facts, parameters.interpolate(original, params, share)


def truths_of(config, bundle: Bundle | None) -> list[Truth]:
    """The ground truth, or one for each data set if its own masks are to be named."""
    settings = config.eval
    together = open_truth(config.data_dir, settings.dataset, settings.split)
    if bundle or len(together.sources) == 1:
        return [together]
    return [Truth({name: source}, settings.split) for name, source in together.sources.items()]


def evaluate(config, model: runs.Model | None, truths: list[Truth], bundle: Bundle | None,
             missing: list[str], protocol: dict, folder: epath.Path
             ) -> tuple[dict, list, list[typing.Callable[[], None]]]:
    """Runs one model, or the oracle of classes, over the ground truth.

    Args:
      config: the experiment.
      model: None: the masks of the bundle get perfect classes.
      truths: see `truths_of`.
      bundle: the masks; None: those of the ground truth.
      missing: pictures that the bundle lacks.
      protocol: how all is measured.
      folder: for what was counted, in case of a stop.

    Returns:
      Results by metric and images_per_second, the first pictures with their named masks, and what
      is left to do to finish saved predictions.
    """
    results, views, finish = {}, [], []
    done, seconds = 0, 0.0
    for number, truth in enumerate(truths):
        parts = [p for p in truth.parts if p not in results]
        if bundle is None and "mask_accuracy" not in results:
            parts.append("mask_accuracy")
        writer = None
        if SAVE_PREDICTIONS.value:
            parents = [SAVE_PREDICTIONS.value]
            parents += [folder.name] if len(CHECKPOINT.value) * max(1, len(INTERPOLATE.value)) > 1 else []
            parents += [next(iter(truth.sources))] if len(truths) > 1 else []
            writer = predictions.Writer("/".join(parents), truth.vocabulary)
        evaluation = Evaluation(truth, runs.seen_classes(config, truth.vocabulary), parts,
                                writer=writer)
        progress = Progress(folder / f"{number}", evaluation, protocol)
        chosen = [i for i, name in enumerate(truth.ids)
                  if name not in progress.done and name not in missing]
        mesh = sharding.make_mesh(1)
        if model is None:
            run = runs.classify_perfectly(truth, parts, chosen, bundle)
        elif bundle:
            run = runs.name_bundle(config, model, truth, parts, mesh, chosen, bundle)
        elif truth.parts == ["semantic"]:
            run = runs.name_segments(config, model, truth, mesh, chosen)
        else:
            run = runs.name_true_masks(config, model, truth, parts, mesh, chosen)
        start = time.monotonic()
        with jax.set_mesh(mesh), Bar(transient=True) as bar:
            task = bar.add_task("evaluating", total=len(chosen))
            for picture in run:
                evaluation.add(picture.image_id, picture.found, picture.labels)
                progress.add(picture.image_id)
                bar.advance(task, jax.process_count())
                if picture.view and len(views) < PICTURES.value:
                    views.append(view_of(picture, truth.vocabulary))
                done += 1
        seconds += time.monotonic() - start
        progress.save()
        if jax.process_index() == 0:
            for name in missing:
                evaluation.add_missing(name)
        evaluation.sum_over_hosts()
        results |= evaluation.results(SAMPLES.value, SEED.value)
        if writer:
            finish.append(functools.partial(
                writer.finish, [i for i in truth.ids if i not in missing], protocol))
    results["images_per_second"] = round(done * jax.process_count() / max(seconds, 1e-9), 2)
    return results, views, finish


def protocol_of(config, truths: list[Truth], bundle: Bundle | None, missing: list[str]) -> dict:
    """Everything that the numbers rest on, by name."""
    settings, vocabulary = config.eval, truths[0].vocabulary
    protocol = dict(
        dataset=settings.dataset, split=settings.split, pictures=len(truths[0].ids),
        masks="ground truth" if bundle is None else str(bundle.folder),
        vocabulary=f"{vocabulary.name} ({hash_of(vocabulary)})",
        seen_classes_from=f"{settings.seen_vocabulary} "
                          f"({hash_of(Vocabulary.load(settings.seen_vocabulary))})",
        templates=len(config.templates),
        loader=f"{settings.loader_min}/{settings.loader_max}", short_side=settings.short_side,
        mask_short_side=settings.mask_short_side, ensemble="off", dtype="float32")
    if ORACLE.value:
        protocol["oracle"] = ORACLE.value
    if bundle is None:
        return protocol
    if bundle.preparation:
        p = bundle.preparation
        protocol.update(mask_short_side=p.short_side, generator_loader=(
            f"{p.loader_min}/{p.loader_max}"), generator_multiple=p.multiple)
    if settings.ensemble:
        protocol["ensemble"] = f"alpha {settings.alpha}, beta {settings.beta}"
    protocol.update(
        stored_masks=bundle.masks, generator_classes=bundle.kind,
        generator=", ".join(f"{k} {v}" for k, v in bundle.generator.items()),
        void="none" if bundle.kind == "none" else "of the generator",
        missing_pictures=f"{len(missing)} count as missed" if missing else "none")
    if "panoptic" in truths[0].parts:
        protocol["thresholds"] = (f"score > {settings.object_threshold}, overlap >= "
                                  f"{settings.overlap_threshold}")
    if "instances" in truths[0].parts:
        protocol["instances"] = f"{settings.num_instances} a picture"
    return protocol


def write(workdir: epath.Path, models: list[dict], protocol: dict, vocabulary: Vocabulary,
          shown: list[list]) -> None:
    """Writes and prints the results of all models."""
    workdir.mkdir(parents=True, exist_ok=True)
    report.write_json(workdir / "results.json", dict(protocol=protocol, models=models))
    report.print_results(models, protocol)
    for m in models:
        if "mask_accuracy" in m:
            report.print_per_class(m["mask_accuracy"]["per_class"],
                                   [c[0] for c in vocabulary.classes],
                                   f"mask accuracy, {m['name']}")
    logging.info("wrote %s", workdir / "results.json")
    if any(shown):
        picture = compare(shown, [m["name"] for m in models])
        picture.save(workdir / "comparison.png")
        logging.info("wrote %s", workdir / "comparison.png")


def view_of(picture: runs.Picture, vocabulary: Vocabulary) -> tuple:
    """Image, segments, and for each segment what the model said and what is true."""
    used = picture.labels >= 0
    image, segments = picture.view
    return image, segments, [(vocabulary.classes[p][0], vocabulary.classes[t][0])
                             for p, t in zip(picture.found.mask_classes[used],
                                             picture.labels[used])]


def compare(shown: list[list], titles: list[str]):
    """A grid of pictures: the ground truth's names first, then one column for each model."""
    from maskclippp_jax import visualize  # draws with Pillow, which only this needs

    rows = []
    for views in zip(*shown):
        image, segments, pairs = views[0]
        row = [(image, segments, [(truth, None) for _, truth in pairs])]
        row += [(image, segments, [(said, said == truth) for said, truth in view[2]])
                for view in views]
        rows.append(row)
    return visualize.draw_comparison(rows, ["ground truth", *titles])


def hash_of(vocabulary: Vocabulary) -> str:
    return hashlib.sha256(repr(vocabulary.classes).encode()).hexdigest()[:8]


if __name__ == "__main__":
    cli.run(main)
