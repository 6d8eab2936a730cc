"""Where the results that an evaluation counts come from.

A run is an iterator over pictures. It keeps the device busy: while a batch is being looked at, the
next one is computed.
"""

import typing

import jax
import ml_collections
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.data import mask_batches, pipeline, records
from maskclippp_jax.data.bundle_tools import at_picture_size
from maskclippp_jax.data.bundles import PictureMasks
from maskclippp_jax.data.mask_batches import MaskSource
from maskclippp_jax.data.transforms import Version
from maskclippp_jax.evaluation.counts import overlaps_of
from maskclippp_jax.evaluation.truth import IGNORE, Truth
from maskclippp_jax.metrics import oracle
from maskclippp_jax.metrics.mask_recall import Overlaps
from maskclippp_jax.metrics.run_lengths import decode
from maskclippp_jax.models import maskclippp
from maskclippp_jax.naming import batch_memory, inference, loading, segmenter
from maskclippp_jax.naming.generated import AnyBundle
from maskclippp_jax.naming.postprocess import Classes, Heads, Instances
from maskclippp_jax.naming.segmenter import Found
from maskclippp_jax.runtime import sharding


class Model(typing.NamedTuple):
    """A model ready to be evaluated."""

    config: maskclippp.MaskCLIPppConfig
    params: parameters.Tree


class Picture(typing.NamedTuple):
    """The results of a picture."""

    image_id: str
    found: Found
    labels: np.ndarray | None = None  # [N] true classes of its masks, -1 for empty slots
    # For drawing, where masks are segments: image [H, W, 3], segments [H', W'].
    view: tuple[np.ndarray, np.ndarray] | None = None
    overlaps: Overlaps | None = None  # of its masks with the true segments, if they are perfect


def heads_of(parts: typing.Sequence[str], settings: ml_collections.ConfigDict) -> Heads:
    """Which heads the parts of an evaluation need."""
    return Heads("semantic" in parts, "panoptic" in parts,
                 settings.num_instances if "instances" in parts else 0)


def name_segments(config: ml_collections.ConfigDict, model: Model, truth: Truth,
                  mesh: jax.sharding.Mesh, chosen: typing.Sequence[int]
                  ) -> typing.Iterator[Picture]:
    """Names the masks of the label maps of a semantic data set, where no two masks overlap.

    They never exist as masks: only the pixels that matter are read.

    Args:
      config: the experiment.
      model: names the masks.
      truth: of a semantic data set.
      mesh: to run on; active while the iterator is used.
      chosen: numbers of the records wanted.
    """
    settings, image_config = config.eval, model.config.image
    names = inference.embed_vocabulary(config, model.config, model.params, truth.vocabulary,
                                       folder=loading.text_folder(config))
    params, names = sharding.put((model.params, names), sharding.replicated(mesh))
    names = inference.make_folder(model.config)(params, names)
    run = inference.make_namer(model.config, semantic=True)
    batches = pipeline.eval_batches(
        truth.records, batch_size=batch_memory.fitting(settings, model.config, mesh),
        loader_min=settings.loader_min, loader_max=settings.loader_max, chosen=chosen,
        host=jax.process_index(), hosts=jax.process_count())

    def start(batch):
        sizes = inference.sizes_of(
            batch, settings.short_side, settings.mask_short_side, max_tokens=settings.max_tokens,
            patch=image_config.patch_size)
        canvas = inference.canvas_for(batch, settings.short_side, settings.max_tokens,
                                      image_config.patch_size)
        arrays = {k: batch[k] for k in ("image", "segments", "labels")}
        arrays, sizes = (pipeline.to_device(x, sharding.batch_sharding(mesh))
                         for x in (arrays, sizes._asdict()))
        return run(params, arrays, inference.Sizes(**sizes), names, canvas)

    for batch, result in _one_ahead(batches, start):
        for b in np.flatnonzero(batch["valid"]):
            height, width = batch["segments_size"][b]
            found = Found(result.classes[b], result.labels[b, :height, :width], None, None)
            rows, columns = batch["image_size"][b]
            yield Picture(batch["image_id"][b], found, batch["labels"][b],
                          (batch["image"][b, :rows, :columns],
                           batch["segments"][b, :height, :width]))


def name_true_masks(config: ml_collections.ConfigDict, model: Model, truth: Truth,
                    parts: typing.Sequence[str], mesh: jax.sharding.Mesh,
                    chosen: typing.Sequence[int]) -> typing.Iterator[Picture]:
    """Names the masks of any data set, crowds and hidden ones included; see `name_segments`."""
    numbers = dict(zip(truth.ids, range(len(truth.ids))))
    source = _true_masks(truth, chosen, Version())
    for picture in _name_masks(config, model, truth, parts, mesh, None, source):
        labels = np.full(len(picture.found.mask_classes), -1, np.int64)
        classes = truth.records[numbers[picture.image_id]]["table"]["class_id"]
        labels[:len(classes)] = classes
        yield picture._replace(labels=labels)


def name_bundle(config: ml_collections.ConfigDict, model: Model, truth: Truth,
                parts: typing.Sequence[str], mesh: jax.sharding.Mesh,
                chosen: typing.Sequence[int], bundle: AnyBundle) -> typing.Iterator[Picture]:
    """Names the masks of a bundle, which must have all chosen pictures; see `name_segments`."""
    return _name_masks(config, model, truth, parts, mesh, bundle,
                       _masks_of(bundle, truth, chosen))


def name_versions(config: ml_collections.ConfigDict, model: Model, truth: Truth,
                  mesh: jax.sharding.Mesh, chosen: typing.Sequence[int],
                  versions: typing.Sequence[Version], bundles: typing.Sequence[AnyBundle]
                  ) -> typing.Iterator[Picture]:
    """Label maps of the mean over versions of the pictures; single masks get no classes.

    Args:
      config, model, truth, mesh, chosen: see `name_segments`.
      versions: of every picture.
      bundles: the masks of each version; none: the true ones, resized and mirrored likewise.
    """
    if bundles:
        sources = [_masks_of(bundle, truth, chosen) for bundle in bundles]
    else:
        sources = [_true_masks(truth, chosen, version) for version in versions]
    bundle = bundles[0] if bundles else None
    patch = model.config.image.patch_size
    shared = _shared(config, model, truth, mesh, bundle)
    flipped = sharding.put(np.array([s.version.flipped for s in sources]),
                           sharding.replicated(mesh))
    run = segmenter.make_averaging_segmenter(
        model.config, bundle.kind if bundle else "none",
        ensemble=config.eval.ensemble and bundle is not None)
    params, names, opinion, classes = shared

    def start(batches):
        canvases = [inference.canvas_for(b, config.eval.short_side, config.eval.max_tokens, patch)
                    for b in batches]
        arrays, networks = zip(*(_to_device(b, config.eval, patch, mesh) for b in batches))
        return run(params, arrays, networks, names, opinion, classes, flipped,
                   canvas=tuple(map(max, *canvases, (0, 0))),
                   output_canvas=batches[0]["output_canvas"])

    for batches, labels in _one_ahead(_batches(config, model, truth, sources, mesh), start):
        batch = batches[0]
        for b in np.flatnonzero(batch["valid"]):
            height, width = batch["output_size"][b]
            yield Picture(batch["image_id"][b], Found(
                np.zeros(0, np.int32), labels[b, :height, :width], None, None))


def classify_perfectly(truth: Truth, parts: typing.Sequence[str], chosen: typing.Sequence[int],
                       bundle: AnyBundle) -> typing.Iterator[Picture]:
    """Gives the masks of a bundle the best true classes they could have; no model is asked."""
    dataset_ids = truth.vocabulary.dataset_ids
    mine = list(chosen[jax.process_index()::jax.process_count()])
    read = lambda i: (i, bundle.read(truth.ids[i]))
    for i, found in pipeline.load_jobs(mine, read):
        image_id = truth.ids[i]
        masks = at_picture_size(found, pipeline.size_of(truth.records[i])) > 0.5
        labels = panoptic = instances = None
        if "semantic" in parts:
            labels = oracle.semantic(masks, truth.semantic(image_id), IGNORE)
        if "panoptic" in parts:
            ids, segments = oracle.panoptic(masks, *truth.panoptic(image_id))
            panoptic = ids, [dict(s, category_id=dataset_ids.index(s["category_id"]), isthing=bool(
                truth.categories[s["category_id"]])) for s in segments]
        if "instances" in parts:
            true = truth.instances(image_id)["true"]
            shapes = [decode(t["segmentation"]) for t in true]
            numbers, classes = oracle.instances(
                masks, np.stack(shapes) if shapes else np.zeros((0, *masks.shape[1:]), bool),
                np.array([dataset_ids.index(t["category_id"]) for t in true], np.int64))
            instances = Instances(np.ones(len(numbers), np.float32), classes, masks[numbers])
        yield Picture(image_id, Found(np.zeros(0, np.int32), labels, panoptic, instances),
                      overlaps=overlaps_of(truth, image_id, masks))


def _true_masks(truth: Truth, chosen: typing.Sequence[int], version: Version) -> MaskSource:
    def read(i):
        masks = records.decode_masks(truth.records[i])
        return PictureMasks(masks[..., ::-1] if version.flipped else masks, None, None, None)

    most = max((len(truth.records[i]["table"]["id"]) for i in chosen), default=0)
    return MaskSource(version, read, {i: pipeline.size_of(truth.records[i]) for i in chosen}, most)


def _masks_of(bundle: AnyBundle, truth: Truth, chosen: typing.Sequence[int]) -> MaskSource:
    sizes = {i: bundle.stored_size(truth.ids[i]) for i in chosen}
    return MaskSource(bundle.version, lambda i: bundle.read(truth.ids[i]), sizes,
                      bundle.most_masks)


def _name_masks(config, model, truth, parts, mesh, bundle, source):
    settings, patch = config.eval, model.config.image.patch_size
    shared = _shared(config, model, truth, mesh, bundle)
    wanted = heads_of(parts, settings)
    run = segmenter.make_segmenter(model.config, wanted, bundle.kind if bundle else "none",
                                   ensemble=settings.ensemble and bundle is not None)

    def start(versions):
        batch, = versions
        canvas = inference.canvas_for(batch, settings.short_side, settings.max_tokens, patch)
        arrays, network = _to_device(batch, settings, patch, mesh)
        params, names, opinion, classes = shared
        return run(params, arrays, network, names, opinion, classes, canvas=canvas,
                   output_canvas=batch["output_canvas"])

    for (batch,), results in _one_ahead(
            _batches(config, model, truth, [source], mesh), start):
        for b in np.flatnonzero(batch["valid"]):
            of_picture = jax.tree.map(lambda x: x[b], results)
            yield Picture(batch["image_id"][b], segmenter.found_in(
                of_picture, batch["output_size"][b], wanted, truth.vocabulary,
                settings.overlap_threshold))


def _shared(config, model, truth, mesh, bundle):
    """On all devices: parameters, names, opinion of the generator, classes."""
    settings, vocabulary = config.eval, truth.vocabulary
    names = inference.embed_vocabulary(config, model.config, model.params, vocabulary,
                                       folder=loading.text_folder(config))
    num_columns = len(names.synonym_class)
    opinion = segmenter.opinion_in(
        settings, vocabulary, inference.seen_classes(config, vocabulary), bundle, num_columns,
        must_share=settings.ensemble)
    classes = Classes.of(vocabulary.is_thing, num_columns, settings.object_threshold)
    params, names, *others = sharding.put(
        (model.params, names, opinion, classes), sharding.replicated(mesh))
    return params, inference.make_folder(model.config)(params, names), *others


def _batches(config, model, truth, sources, mesh):
    settings = config.eval
    return mask_batches.mask_batches(
        truth.records, sources, batch_size=batch_memory.fitting(settings, model.config, mesh),
        loader_min=settings.loader_min, loader_max=settings.loader_max, host=jax.process_index(),
        hosts=jax.process_count())


def _to_device(batch, settings, patch, mesh):
    """What of a batch the device needs, and the sizes at which the tower sees its pictures."""
    arrays, network = segmenter.with_sizes(batch, settings, settings.short_side, patch)
    arrays["network"] = network
    arrays = pipeline.to_device(arrays, sharding.batch_sharding(mesh))
    return arrays, arrays.pop("network")


def _one_ahead(batches: typing.Iterator, start: typing.Callable
               ) -> typing.Iterator[tuple[typing.Any, typing.Any]]:
    """Every batch with its results on this host, the next one already started."""
    waiting = None
    for batch in batches:
        started = batch, start(batch)
        if waiting:
            yield waiting[0], jax.tree.map(sharding.local_rows, waiting[1])
        waiting = started
    if waiting:
        yield waiting[0], jax.tree.map(sharding.local_rows, waiting[1])
