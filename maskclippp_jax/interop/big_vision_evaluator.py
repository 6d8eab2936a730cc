"""An evaluator module of big_vision: mask accuracy on ground-truth masks during a training there.

Data, sizes and metric are those of `evaluate`; the network is whatever the trainer's `predict_fn`
runs, as long as its model takes masks as `big_vision_model.Model` does.
"""

import functools
import typing

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from maskclippp_jax import config as configuration
from maskclippp_jax.data import pipeline, records
from maskclippp_jax.interop.big_vision_model import config_of
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy
from maskclippp_jax.models import maskclippp
from maskclippp_jax.naming import inference, loading
from maskclippp_jax.vocabulary import TEMPLATES_1, Vocabulary

API = "jit"  # big_vision gives the devices, and does not replicate anything itself

_PROMPTS = 256  # encoded at a time


class Evaluator:
    """Names every ground-truth mask of a data set.

    Args:
      predict_fn: (train_state, {"image": ..., "labels": ...}) -> (_, texts, dictionary).
      devices: all devices, of all hosts.
      batch_size: pictures a step over all of them.
      variant: see `big_vision_model.config_of`.
      data_dir: where `prepare` put the data sets.
      dataset, split: which one.
      templates: prompts, each with one {} for the name.
      seen_vocabulary: the vocabulary of training, to tell seen classes apart; "": not told apart.
      sentencepiece: vocabulary file of a SigLIP's text tower.
      loader_min, loader_max, short_side, mask_short_side, max_tokens: sizes, as in `config.eval`.

    Raises:
      ValueError: a template does not take one name.
    """

    def __init__(self, predict_fn: typing.Callable, *, devices, batch_size: int, variant,
                 data_dir: str, dataset: str, split: str,
                 templates: typing.Sequence[str] = TEMPLATES_1, seen_vocabulary: str = "",
                 sentencepiece: str = "", loader_min: int | None = 512,
                 loader_max: int | None = 2048, short_side: int | None = None,
                 mask_short_side: int | None = 800, max_tokens: int = 0):
        if wrong := configuration.wrong_templates(templates):
            raise ValueError(wrong)
        self.config = config_of(variant)
        self.source = records.open_source(data_dir, dataset, split)
        self.loader = dict(loader_min=loader_min, loader_max=loader_max)
        patch = self.config.image.patch_size
        seen_at = dict(short_side=short_side or self.config.image.image_size,
                       max_tokens=max_tokens, patch=patch)
        self._sizes_of = functools.partial(
            inference.sizes_of, mask_short_side=mask_short_side, **seen_at)
        self._canvas_for = functools.partial(inference.canvas_for, **seen_at)
        vocabulary = self.vocabulary = self.source.vocabulary
        self.token_ids = loading.tokenize(self.config, vocabulary, templates, sentencepiece)
        seen = vocabulary.seen_in(Vocabulary.load(seen_vocabulary)) if seen_vocabulary else None
        self.metric = MaskAccuracy(vocabulary.num_classes, seen, vocabulary.is_thing)

        devices = np.asarray(devices).reshape(-1)
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        mesh = Mesh(devices, ("devices",))
        self._batch, self._whole = (NamedSharding(mesh, axes) for axes in (P("devices"), P()))

        @functools.partial(jax.jit, out_shardings=self._whole)
        def embed(train_state, token_ids):
            return predict_fn(train_state, {"labels": token_ids})[1]

        @functools.partial(jax.jit, out_shardings=self._whole, static_argnames="canvas")
        def name_masks(train_state, batch, sizes, names, synonym_class, canvas):
            image = jax.vmap(lambda *a: inference.to_network_size(*a, canvas))(
                batch["image"], sizes.picture, sizes.network)
            masks = jax.vmap(lambda *a: inference.segments_to_grid(
                *a, patch, canvas, batch["labels"].shape[1]))(
                    batch["segments"], sizes.segments, sizes.masks, sizes.network)
            given = {"image": image / 127.5 - 1, "image_size": sizes.network, "masks": masks}
            _, _, out = predict_fn(train_state, {"image": given, "labels": names})
            logits = maskclippp.class_logits(out["masks/logits"], synonym_class)
            # All hosts get all results, and so count the same.
            return logits.argmax(-1), batch["labels"], batch["valid"]

        self._embed, self._name_masks = embed, name_masks

    def run(self, train_state: dict) -> typing.Iterator[tuple[str, float]]:
        """Yields (name, percentage) of what `MaskAccuracy.evaluate` gives and is a number."""
        names = self._embed_names(train_state)
        synonym_class = jax.device_put(self.vocabulary.synonym_class, self._whole)
        self.metric.reset()
        for batch in pipeline.eval_batches(
                self.source.records, batch_size=self.batch_size, host=jax.process_index(),
                hosts=jax.process_count(), **self.loader):
            sizes = self._sizes_of(batch)
            canvas = self._canvas_for(batch)
            arrays = {k: np.asarray(batch[k]) for k in ("image", "segments", "labels", "valid")}
            arrays, sizes = (pipeline.to_device(x, self._batch) for x in (arrays, sizes._asdict()))
            found = self._name_masks(train_state, arrays, inference.Sizes(**sizes), names,
                                     synonym_class, canvas)
            for classes, labels, valid in zip(*jax.device_get(found)):
                used = (labels >= 0) & valid
                if used.any():
                    self.metric.process(classes[used], labels[used])
        for name, value in self.metric.evaluate().items():
            if isinstance(value, int | float):
                yield name, value

    def _embed_names(self, train_state) -> jax.Array:
        """Unit embeddings [S, T, E] of all names, on all devices."""
        flat = self.token_ids.reshape(-1, self.token_ids.shape[-1])
        padded = np.concatenate([flat, np.repeat(flat[:1], -len(flat) % _PROMPTS, axis=0)])
        parts = [jax.device_get(self._embed(
            train_state, jax.device_put(padded[i:i + _PROMPTS], self._whole)))
            for i in range(0, len(padded), _PROMPTS)]
        embeddings = np.concatenate(parts)[:len(flat)]
        return jax.device_put(embeddings.reshape(*self.token_ids.shape[:2], -1), self._whole)
