"""Evaluates models on ground-truth masks.

    python -m maskclippp_jax.evaluate --config=configs/x.py --checkpoint=P --workdir=D

Every ground-truth mask is given to the model, which names it: mask accuracy, and mIoU of the label
map that the named masks make. `--checkpoint` is the folder of a training run, a checkpoint file, or
"untuned" (the pre-trained CLIP, mean over templates); given several times, all are compared.
`--interpolate=0,0.5,1` evaluates weights on the line from the pre-trained ones (0) to the tuned
ones (1), with the tuned similarity head.
"""

import hashlib
import time

import jax
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import config_flags
from rich.progress import Progress

from maskclippp_jax import (
    cli, config as configuration, hosts, inference, loading, report, sharding)
from maskclippp_jax import params as parameters
from maskclippp_jax.data import pipeline, records
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.vocabulary import Vocabulary

CONFIG = config_flags.DEFINE_config_file("config", None, "file of the experiment", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results")
CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", [], "run folder, checkpoint file, or 'untuned'")
INTERPOLATE = flags.DEFINE_list(
    "interpolate", [], "shares of the tuned weights, such as 0,0.5,1; the rest is pre-trained")
PICTURES = flags.DEFINE_integer("pictures", 0, "show this many pictures with their named masks")

_IGNORE = 65535  # truth of pixels without a class


def main(argv):
    del argv
    config = configuration.check(CONFIG.value, workdir=WORKDIR.value)
    if not CHECKPOINT.value:
        raise ValueError("got no --checkpoint; give a run's folder, a checkpoint file, or "
                         "'untuned'")
    shares = read_shares(INTERPOLATE.value)
    workdir = epath.Path(WORKDIR.value).absolute()
    settings = config.eval
    source = records.open_source(config.data_dir, settings.dataset, settings.split)
    vocabulary = source.vocabulary
    seen = vocabulary.seen_in(Vocabulary.load(settings.seen_vocabulary))

    protocol = dict(
        dataset=settings.dataset, split=settings.split, pictures=len(source.records),
        masks="ground truth", vocabulary=f"{vocabulary.name} ({_hash(vocabulary)})",
        seen_classes_from=settings.seen_vocabulary, templates=len(config.templates),
        loader=f"{settings.loader_min}/{settings.loader_max}", short_side=settings.short_side,
        max_tokens=settings.max_tokens, mask_short_side=settings.mask_short_side, ensemble="off",
        dtype="float32")
    models, shown = [], []
    for name in CHECKPOINT.value:
        model_config, params, what = loading.load_checkpoint(name, config)
        for share, facts, weights in on_the_way(name, config, model_config, params, shares):
            logging.info("evaluating %s%s", what, "" if share is None else f", {share:g} of it")
            results, pictures = evaluate(config, model_config, weights, source, vocabulary, seen,
                                         keep_pictures=PICTURES.value)
            title = epath.Path(name).name + ("" if share is None else f" x {share:g}")
            models.append(dict(name=title, checkpoint=what, **facts, **results))
            shown.append(pictures)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        report.write_json(workdir / "results.json", dict(protocol=protocol, models=models))
        report.print_results(models, protocol)
        for m in models:
            report.print_per_class(m["mask_accuracy"]["per_class"],
                                   [c[0] for c in vocabulary.classes],
                                   f"mask accuracy, {m['name']}")
        logging.info("wrote %s", workdir / "results.json")
        if PICTURES.value:
            picture = compare(shown, [m["name"] for m in models])
            picture.save(workdir / "comparison.png")
            logging.info("wrote %s", workdir / "comparison.png")


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


def evaluate(config, model_config, params, source: records.Source, vocabulary: Vocabulary,
             seen: np.ndarray, *, keep_pictures: int = 0) -> tuple[dict, list]:
    """Runs one model over a data set.

    Args:
      config: the experiment; `config.eval` and `config.templates` are used.
      model_config: sizes of the model.
      params: its parameters.
      source: the data set.
      vocabulary: the classes of its ids.
      seen: [C] bool.
      keep_pictures: how many pictures of this host to return with their named masks.

    Returns:
      dict(mask_accuracy, semantic, images_per_second), and the pictures (see `compare`).
    """
    settings = config.eval
    mesh = sharding.make_mesh(1)
    batch_size = -(-settings.batch_size // mesh.size) * mesh.size
    accuracy = MaskAccuracy(vocabulary.num_classes, seen, vocabulary.is_thing)
    semantic = SemanticSegmentation(vocabulary.num_classes, _IGNORE, seen)
    names = inference.embed_vocabulary(config, model_config, params, vocabulary,
                                       folder=loading.text_folder(config))
    name_masks = inference.make_namer(model_config, semantic=True)
    batches = pipeline.eval_batches(
        source.records, batch_size=batch_size, loader_min=settings.loader_min,
        loader_max=settings.loader_max, host=jax.process_index(), hosts=jax.process_count())
    pictures, done = [], 0
    with jax.set_mesh(mesh), Progress(
            transient=True, disable=jax.process_index() > 0) as bar:
        params, names = sharding.put((params, names), sharding.replicated(mesh))
        task = bar.add_task("evaluating", total=len(source.records))
        start = time.monotonic()
        for batch in batches:
            sizes = inference.sizes_of(
                batch, settings.short_side, settings.mask_short_side,
                max_tokens=settings.max_tokens, patch=model_config.image.patch_size)
            canvas = inference.canvas_of(  # the same on every host
                inference.network_sizes(
                    batch["image_sizes"], settings.short_side, max_tokens=settings.max_tokens,
                    patch=model_config.image.patch_size), model_config.image.patch_size)
            arrays = {k: batch[k] for k in ("image", "segments", "labels")}
            on_device = pipeline.to_device(arrays, sharding.batch_sharding(mesh))
            sizes = inference.Sizes(**pipeline.to_device(
                sizes._asdict(), sharding.batch_sharding(mesh)))
            result = name_masks(params, on_device, sizes, names, canvas)
            classes, label_maps = (sharding.local_rows(x) for x in (result.classes, result.labels))
            for b in np.flatnonzero(batch["valid"]):
                labels, (height, width) = batch["labels"][b], batch["segments_size"][b]
                used = labels >= 0
                if not used.any():
                    continue  # a picture without any class says nothing
                accuracy.process(classes[b][used], labels[used])
                segments = batch["segments"][b, :height, :width]
                truth = np.concatenate([[_IGNORE], labels])[segments]
                semantic.process(label_maps[b, :height, :width], truth)
                if len(pictures) < keep_pictures:
                    pictures.append((batch["image"][b], batch["image_size"][b], segments,
                                     [(vocabulary.classes[p][0], vocabulary.classes[t][0])
                                      for p, t in zip(classes[b][used], labels[used])]))
            done += int(batch["valid"].sum())
            bar.update(task, completed=done)
        seconds = time.monotonic() - start
    if jax.process_count() > 1:
        for metric in (accuracy, semantic):
            hosts.sum_metric(metric)
    return dict(mask_accuracy=accuracy.evaluate(), semantic=semantic.evaluate(),
                images_per_second=round(hosts.sum_of(done) / seconds, 2)), pictures


def compare(shown: list[list], titles: list[str]):
    """A grid of pictures: the ground truth's names first, then one column for each model."""
    from maskclippp_jax import visualize  # draws with Pillow, which only this needs

    rows = []
    for views in zip(*shown):
        image, (height, width), segments, pairs = views[0]
        image = image[:height, :width]
        row = [(image, segments, [(truth, None) for _, truth in pairs])]
        row += [(image, segments, [(said, said == truth) for said, truth in view[3]])
                for view in views]
        rows.append(row)
    return visualize.draw_comparison(rows, ["ground truth", *titles])


def _hash(vocabulary: Vocabulary) -> str:
    return hashlib.sha256(repr(vocabulary.classes).encode()).hexdigest()[:8]


if __name__ == "__main__":
    cli.run(hosts.together(main))
