"""What a training run measures on the way: mask accuracy of seen and unseen classes, and how far
the weights have moved. Tuned CLIPs gain on classes they saw and may lose on others."""

import typing

import jax
import ml_collections
import numpy as np

from maskclippp_jax import metrics, params as parameters
from maskclippp_jax.data import pipeline, records
from maskclippp_jax.drawing.visualize import View
from maskclippp_jax.evaluation import tables
from maskclippp_jax.evaluation.passes import Picture
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy
from maskclippp_jax.naming import batch_memory, inference, loading
from maskclippp_jax.naming.segmenter import Found
from maskclippp_jax.runtime import hosts, sharding
from maskclippp_jax.vocabulary import Vocabulary


def open_source(config: ml_collections.ConfigDict) -> tuple[records.Source, np.ndarray]:
    """The data set of `config.eval`, and which of its classes are seen: [C] bool.

    Raises:
      FileNotFoundError, ValueError: it is not there, or has too many classes.
    """
    settings = config.eval
    source = records.open_source(config.data_dir, settings.dataset, settings.split)
    metrics.check_count(source.vocabulary.num_classes, settings.dataset)
    return source, source.vocabulary.seen_in(Vocabulary.load(settings.seen_vocabulary))


def make_validator(config: ml_collections.ConfigDict, source: records.Source, seen: np.ndarray,
                   original: parameters.Tree, mesh
                   ) -> typing.Callable[[dict], tuple[dict[str, float], list]]:
    """A function from the state of a run to numbers and pictures for its log.

    They are those of the moving average where there is one: `eval/mask_accuracy`, `eval/seen`,
    `eval/unseen` in percent, means over classes, on ground-truth masks; `distance/<part>`, see
    `params.distances`. The pictures are the first `config.eval_pictures` of this process, the same
    every time, drawn with `visualize.draw_views`.

    Args:
      config: the experiment.
      source, seen: of `open_source`.
      original: what is tuned, before tuning, on the host.
      mesh: the devices of the run; to be active when the function is called.
    """
    name_masks = inference.make_namer(config.model, semantic=False)
    fold = inference.make_folder(config.model)
    distances = jax.jit(parameters.distances)
    whole = sharding.replicated(mesh)
    gather = jax.jit(lambda x: x, out_shardings=whole)

    def embed(text_params):
        names = inference.embed_vocabulary(
            config, config.model, dict(text=jax.device_get(gather(text_params))),
            source.vocabulary, folder=loading.text_folder(config))
        return sharding.put(names, whole)

    kept: list = []  # names of a frozen text tower

    @jax.transfer_guard("allow")
    def validate(state: dict) -> tuple[dict[str, float], list]:
        tuned = state.get("ema", state["trainable"])
        params = parameters.combine(tuned, state["frozen"])
        if config.tune.text != "none" or not kept:
            kept[:] = [embed(params["text"])]
        accuracy = MaskAccuracy(source.vocabulary.num_classes, seen)
        views: list = []
        names = fold(params, kept[0])
        for batch, classes in _name_all(config, source, mesh, name_masks, params, names):
            used = (batch["labels"] >= 0) & batch["valid"][:, None]
            for found, labels, mask in zip(classes, batch["labels"], used):
                accuracy.process(found[mask], labels[mask])
            for b in np.flatnonzero(batch["valid"])[:config.eval_pictures - len(views)]:
                views.append(_view_of(batch, b, classes[b], source.vocabulary))
        if jax.process_count() > 1:
            hosts.sum_metric(accuracy)
        results = accuracy.evaluate()
        named = dict(mask_accuracy=results["mMaskAcc"], seen=results["seen"],
                     unseen=results["unseen"])
        before = sharding.put(original, jax.tree.map(lambda x: x.sharding, tuned))
        moved = jax.device_get(distances(before, tuned))
        numbers = {f"eval/{k}": v for k, v in named.items() if v is not None}
        return numbers | {f"distance/{k}": float(v) for k, v in moved.items()}, views

    return validate


def _view_of(batch: dict, row: int, classes: np.ndarray, vocabulary: Vocabulary) -> View:
    height, width = batch["image_size"][row]
    rows, columns = batch["segments_size"][row]
    return tables.view_of(
        Picture(batch["image_id"][row], Found(classes, None, None, None), batch["labels"][row],
                (batch["image"][row, :height, :width], batch["segments"][row, :rows, :columns])),
        vocabulary)


def _name_all(config, source, mesh, name_masks, params, names
              ) -> typing.Iterator[tuple[dict, np.ndarray]]:
    """This host's batches of a data set, each with the classes [B, N] of its masks."""
    settings = config.eval
    batch_size = batch_memory.fitting(settings, config.model, mesh)
    to_device = lambda arrays: pipeline.to_device(arrays, sharding.batch_sharding(mesh))
    for batch in pipeline.eval_batches(
            source.records, batch_size=batch_size, loader_min=settings.loader_min,
            loader_max=settings.loader_max, host=jax.process_index(), hosts=jax.process_count()):
        sizes = inference.sizes_of(
            batch, settings.short_side, settings.mask_short_side,
            max_tokens=settings.max_tokens, patch=config.model.image.patch_size)
        canvas = inference.canvas_for(batch, settings.short_side, settings.max_tokens,
                                      config.model.image.patch_size)
        result = name_masks(
            params, to_device({k: batch[k] for k in ("image", "segments", "labels")}),
            inference.Sizes(**to_device(sizes._asdict())), names, canvas)
        yield batch, sharding.local_rows(result.classes)
