"""A mask generator with its parameters on the device: from a photograph to masks.

To whatever names masks it is the same as a bundle of stored ones: masks before the sigmoid at a
quarter of its input, logits of its own classes, and where the picture lies in that input.
"""

import dataclasses
import os
import threading
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.data import generator_input
from maskclippp_jax.data.bundles import PictureMasks
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.generators.eomt import EoMTConfig, Predictions, resize_position_table
from maskclippp_jax.naming import eomt_results
from maskclippp_jax.naming.given import Given, ImageLike, read_image
from maskclippp_jax.naming.postprocess import Instances
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.vocabulary import Vocabulary, split_names
from maskclippp_jax.weights import eomt, files, hub, published_generators

OBJECTNESS = 0.5  # the least probability of being any object that makes a query a mask


class Generator:
    """An EoMT. Called with a picture it gives its masks, in the form that `api.Model.name` takes.

    Attributes:
      title: one line that says what was loaded.
      config: sizes of the network.
      task: "panoptic", "instance" or "semantic", what it was trained for.
      vocabulary: its own classes.
      folder, kind, width: as of a `Bundle` whose logits are of these classes.
      objectness: the least probability of being an object that makes a query a mask.
    """

    kind = "closed"

    def __init__(self, config: EoMTConfig, params: parameters.Tree, vocabulary: Vocabulary,
                 title: str, *, task: str = "panoptic", objectness: float = OBJECTNESS,
                 dtype: typing.Any = jnp.float32):
        """Brings the parameters to the device; one program serves all pictures.

        Args:
          config: sizes.
          params: parameters, on the host.
          vocabulary: of its classes.
          title: says what was loaded.
          task: see above.
          objectness: see above.
          dtype: of the arithmetic.

        Raises:
          ValueError: another number of classes, or a share that is none.
        """
        if vocabulary.num_classes != config.num_classes:
            raise ValueError(f"{title} has {config.num_classes} classes, its vocabulary "
                             f"{vocabulary.name} {vocabulary.num_classes}")
        if not 0 <= objectness < 1:
            raise ValueError(f"got objectness={objectness}, wanted a share in 0 ... 1")
        self.config, self.vocabulary, self.title, self.task = config, vocabulary, title, task
        self.folder, self.width, self.objectness = title, config.num_classes + 1, objectness
        self._params = jax.device_put(params)
        build, _ = eomt.abstract(config, dtype=dtype, by_head=configuration.heads_apart())
        self._predict = jax.jit(lambda params, image: build(params)(image))
        self._one_at_a_time = threading.Lock()  # pictures are read ahead by several threads

    def __repr__(self) -> str:
        return (f"<Generator {self.title}: {self.task}, {self.config.num_classes} classes "
                f"({self.vocabulary.name})>")

    def __call__(self, image: ImageLike) -> Given:
        """The masks of a picture, in the order of the queries.

        Args:
          image: see `api.Model.name`.

        Returns:
          The picture with a mask for each query that is an object with a probability above
          `objectness` and has a pixel of the picture; there may be none.

        Raises:
          FileNotFoundError, ValueError: the picture cannot be used, or this is a generator for
            label maps, see `require_masks`.
        """
        self.require_masks()
        pixels = read_image(image)
        found = self._letterboxed(pixels)
        objectness = 1 - np.asarray(jax.nn.softmax(found.class_logits))[:, -1]
        rows, columns = (-(-side // self.config.stride) for side in found.sizes.kept)
        has_pixels = (found.mask_logits[:, :rows, :columns] > 0).any((1, 2))
        kept = (objectness > self.objectness) & has_pixels
        masks = PictureMasks(found.mask_logits[kept], found.class_logits[kept],
                             self.config.image_size, tuple(found.sizes.kept.tolist()))
        path = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        return Given(pixels, np.arange(1, kept.sum() + 1), None, masks, self, path)

    def require_masks(self) -> None:
        """Raises ValueError if it has no masks of whole pictures."""
        if self.task == "semantic":
            raise ValueError(f"{self.title} was trained for label maps: it looks at windows of a "
                             "picture and has no masks of the whole; take a panoptic generator, "
                             "such as eomt-l-640")

    def panoptic(self, image: ImageLike) -> tuple[np.ndarray, list[dict]]:
        """Segments in its own classes, by the rules of its authors.

        Returns:
          As `Result.panoptic`: [H, W] int32 segment ids, 0 = nothing, and a dict for each segment.
        """
        self.require_masks()
        ids, segments = eomt_results.panoptic(
            self._letterboxed(read_image(image)), self.vocabulary.is_thing)
        names = self.vocabulary.classes
        return ids, [dict(s, name=names[s["category_id"]][0]) for s in segments]

    def instances(self, image: ImageLike, count: int = 100) -> Instances:
        """The likeliest instances in its own classes, by the rules of its authors, which may
        overlap; see `eomt_results.instances`."""
        self.require_masks()
        return eomt_results.instances(self._letterboxed(read_image(image)), count)[0]

    def semantic(self, image: ImageLike) -> np.ndarray:
        """The label map [H, W] int32 in its own classes, by the rules of its authors.

        Raises:
          ValueError: a generator that was not trained for it.
        """
        if self.task != "semantic":
            raise ValueError(f"{self.title} is {self.task}; label maps come from one that was "
                             "trained for them, such as eomt-l-512-ade20k-semantic")
        pixels = read_image(image)
        cut = generator_input.windows(pixels, self.config.image_size[0])
        found = [self._run(window[None]) for window in cut.images]
        masks, classes = (np.concatenate(x) for x in zip(*found))
        scores = eomt_results.semantic_scores(masks, classes, cut.origins, cut.resized)
        return eomt_results.semantic(scores, pixels.shape[:2])

    def _letterboxed(self, image: np.ndarray) -> eomt_results.Masks:
        side = self.config.image_size[0]
        masks, classes = (x[0] for x in self._run(generator_input.letterbox(image, side)[None]))
        sizes = (masks.shape[1:], self.config.image_size,
                 generator_input.letterbox_size(image.shape[:2], side))
        return eomt_results.Masks(masks, classes, MaskSizes(*(
            np.array(s, np.int32) for s in sizes)), image.shape[:2])

    def _run(self, images: np.ndarray) -> Predictions:
        with self._one_at_a_time:
            return jax.device_get(self._predict(self._params, images))


def load(source: str | os.PathLike, *, objectness: float = OBJECTNESS, side: int | None = None,
         dtype: str = "float32") -> Generator:
    """A generator from a file, a folder, or the hub; see `api.load_generator`."""
    source = os.fspath(source)
    if dtype not in configuration.DTYPES:
        raise ValueError(f"got dtype={dtype!r}, wanted {' or '.join(configuration.DTYPES)}")
    entry = None
    if not hub.is_on_hub(source) and not storage.path(source).exists():
        entry = published_generators.find(source)
        if entry is None:
            raise FileNotFoundError(
                f"no file or folder {source}, and no published generator of this name"
                f"{published_generators.nearest(source)}; `maskclippp convert --list` shows all")
    path = entry.source if entry else source
    if not hub.is_on_hub(path) and storage.path(hub.fetch(path)).is_dir():
        raise FileNotFoundError(f"the folder {path} has none of {', '.join(hub.FILES)}; give the "
                                "file of a generator, or a folder as the hub has it")
    file = eomt.open_file(path)
    facts = {} if entry else _facts_beside(path)
    config = eomt.config_of(file, path, num_heads=facts.get("num_attention_heads"),
                            query_blocks=facts.get("num_blocks"))
    found = published_generators.of_config(config)
    if entry and found != entry:
        raise ValueError(f"{path} is of {found.name if found else 'no published model'}, wanted "
                         f"{entry.name}; download it again")
    _, shapes = eomt.abstract(config)
    params = eomt.load(file, shapes, path)
    if side is not None:
        config, params = _resized(config, params, side)
    vocabulary = Vocabulary.shipped(found.vocabulary) if found else _classes_of(
        config, facts, path)
    return Generator(config, params, vocabulary, source, objectness=objectness,
                     task=found.task if found else "panoptic", dtype=jnp.dtype(dtype))


class _Facts(typing.TypedDict):
    """config.json of transformers, as far as the weights do not tell."""

    model_type: typing.NotRequired[str]
    num_attention_heads: typing.NotRequired[typed.Side]
    num_blocks: typing.NotRequired[typed.Side]
    id2label: typing.NotRequired[dict[int, str]]


def _facts_beside(path: str) -> _Facts:
    """What a config.json of transformers beside a file says; nothing where there is none."""
    facts = files.beside(path, "config.json", _Facts) or _Facts()
    if facts.get("model_type", "eomt") != "eomt":
        raise ValueError(f"the config.json beside {path} is of the kind {facts['model_type']}, "
                         "wanted eomt; that kind of generator is not read here")
    return facts


def _resized(config: EoMTConfig, params: parameters.Tree, side: int
             ) -> tuple[EoMTConfig, parameters.Tree]:
    """The same network for pictures of another size."""
    if side < config.patch_size or side % config.patch_size:
        raise ValueError(f"got side={side}, wanted a multiple of {config.patch_size} pixels")
    resized = dataclasses.replace(config, image_size=(side, side))
    table = resize_position_table(jnp.asarray(params["position_table"]), config.grid, resized.grid)
    return resized, params | dict(position_table=np.asarray(table))


def _classes_of(config: EoMTConfig, facts: _Facts, path: str) -> Vocabulary:
    """The classes of an unpublished model, all of them things.

    transformers calls those LABEL_0, LABEL_1, ... that nobody named; they become such as no word of
    another vocabulary is like.
    """
    labels = facts.get("id2label", {})
    names = [labels.get(i, f"LABEL_{i}") for i in range(config.num_classes)]
    if "LABEL_0" in names:
        names = [f"class {i} of {path}" for i in range(config.num_classes)]
    return Vocabulary(f"classes of {path}", tuple(map(split_names, names)),
                      (True,) * len(names), tuple(range(len(names))))
