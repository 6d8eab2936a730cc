"""A mask generator with its parameters on the device: from a photograph to masks.

To whatever names masks it is the same as a bundle of stored ones: masks before the sigmoid at a
quarter of its input, what it says of their classes, and where the picture lies in that input. A
closed one (EoMT, Mask2Former) says it as logits of its own classes; an open one (FC-CLIP, MAFT+) as
embeddings, which become logits of any names that its own text tower embeds.
"""

import functools
import hashlib
import numbers
import threading
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.data import generator_input, images
from maskclippp_jax.data.bundles import PictureMasks
from maskclippp_jax.data.generator_input import Preparation, Way
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.generators import (
    eomt as eomt_network,
    fcclip as fcclip_network,
    mask2former as mask2former_network,
)
from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.generators.fcclip import FCCLIPConfig
from maskclippp_jax.generators.mask2former import Mask2FormerConfig
from maskclippp_jax.naming import closed_results, inference
from maskclippp_jax.naming.given import Given, ImageLike, path_of, read_image
from maskclippp_jax.naming.postprocess import Instances
from maskclippp_jax.runtime import programs, texts
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary
from maskclippp_jax.weights import eomt, fcclip, mask2former

OBJECTNESS = 0.5  # the least probability of being any object that makes a query a mask

Config = EoMTConfig | FCCLIPConfig | Mask2FormerConfig
_FILES = {EoMTConfig: eomt, FCCLIPConfig: fcclip, Mask2FormerConfig: mask2former}
_PREDICTIONS = {EoMTConfig: eomt_network.Predictions, FCCLIPConfig: fcclip_network.Predictions,
                Mask2FormerConfig: mask2former_network.Predictions}
# How pictures are loaded: FC-CLIP's and MAFT+'s as MaskCLIP++ evaluates them on COCO's panoptic
# classes, Mask2Former's as its authors do. None: an EoMT's input is a square of one size.
PREPARATIONS = {EoMTConfig: None,
                FCCLIPConfig: Preparation(800, 2560, None, FCCLIPConfig.patch_size),
                Mask2FormerConfig: Preparation(800, 1333, None, Mask2FormerConfig.patch_size)}
# What `fast` pads pictures to in place of 32: of the sizes that a shorter side of 800 has, four in
# five are gone, and that side itself needs no padding.
FAST_MULTIPLE = 160
_VOCABULARIES = 8  # whose names stay embedded


class Waiting(typing.NamedTuple):
    """A picture that a generator is to find the masks of."""

    generator: "Generator"
    pixels: np.ndarray  # [H, W, 3] uint8
    canvas: np.ndarray  # the same as it passes into the network
    way: Way
    path: str | None    # of its file

    @property
    def group(self) -> tuple:
        """What pictures that go through the network together have in common."""
        return id(self.generator), self.way.padded, self.canvas.shape


class Generator:
    """Called with a picture it gives its masks, in the form that `api.Model.name` takes.

    Attributes:
      title: one line that says what was loaded.
      config: sizes of the network.
      params: its parameters, on the device.
      task: "panoptic", "instance" or "semantic", what it was trained for.
      vocabulary: the classes it was trained on; None: nobody knows those of an open one.
      folder, kind, width, classes: as of a `Bundle`: kind is "closed", with logits of these
        classes, or "embeddings".
      objectness: the least probability of being an object that makes a query a mask.
      preparation: how pictures are resized and padded; may be set, published evaluations of
        MaskCLIP++ have others. None: an EoMT's letterbox.
    """

    def __init__(self, config: Config, params: parameters.Tree, vocabulary: Vocabulary | None,
                 title: str, *, task: str = "panoptic", objectness: float = OBJECTNESS,
                 embed: typing.Callable[[Vocabulary], np.ndarray] | None = None,
                 dtype: typing.Any = jnp.float32):
        """Brings the parameters to the device; one program serves all pictures of a padded size.

        Args:
          config: sizes.
          params: parameters, on the host.
          vocabulary: the classes it was trained on; None: not known, of an open one.
          title: says what was loaded.
          task: see above.
          objectness: see above.
          embed: of an open one: the names of a vocabulary as unit vectors [S, E] of its own CLIP,
            the mean over `TEMPLATES_14`.
          dtype: of the arithmetic of the trunk.

        Raises:
          ValueError: another number of classes, a share that is none, or objects cannot be told
            because the classes are not known.
        """
        is_open = isinstance(config, FCCLIPConfig)
        if not is_open and vocabulary.num_classes != config.num_classes:
            raise ValueError(f"{title} has {config.num_classes} classes, its vocabulary "
                             f"{vocabulary.name} {vocabulary.num_classes}")
        if not isinstance(objectness, numbers.Real) or not 0 <= objectness < 1:
            raise ValueError(f"got objectness={objectness!r}, wanted a share in 0 ... 1")
        if objectness and vocabulary is None:
            raise ValueError(f"nothing says which classes {title} was trained on, and so what an "
                             "object is to it; give their names, or objectness=0 (every query is "
                             "a mask then)")
        self.config, self.vocabulary, self.title, self.task = config, vocabulary, title, task
        self.folder, self.objectness = title, objectness
        self.preparation = PREPARATIONS[type(config)]
        if is_open:
            self.kind, self.width = "embeddings", config.image.embed_dim
            self.classes = _facts_of_embeddings(params)
        else:
            self.kind, self.width = "closed", config.num_classes + 1
            self.classes = dict(kind="closed", vocabulary=[list(c) for c in vocabulary.classes])
        self._embed, self._embedded = embed, {}
        self.params = jax.device_put(in_dtype(params, config, dtype))
        self._predict = texts.Program(
            lambda: make_function(config, dtype=dtype), "generator", config,
            jnp.dtype(dtype).name, returns=[_PREDICTIONS[type(config)]], static=["canvas"],
            jit=programs.jit)
        # Pictures are read ahead by several threads.
        self._one_at_a_time, self._one_embeds = threading.Lock(), threading.Lock()

    def __reduce__(self):
        raise TypeError("a mask generator cannot be pickled or copied; load it where it is needed, "
                        f"mc.load_generator({self.title!r})")

    def __repr__(self) -> str:
        classes = "open"
        if self.kind == "closed":
            classes = f"{self.config.num_classes} classes ({self.vocabulary.name})"
        return f"<Generator {self.title}: {self.task}, {classes}>"

    def __call__(self, image: ImageLike) -> Given:
        """The masks of a picture, in the order of the queries.

        Args:
          image: see `api.Model.name`.

        Returns:
          The picture with a mask for each query that is an object with a probability above
          `objectness` and has a pixel of the picture; there may be none. With an `objectness` of 0
          every query is a mask.

        Raises:
          FileNotFoundError, ValueError: the picture cannot be used, or this is a generator for
            label maps, see `require_masks`.
        """
        return self.find([self.enter(image)])[0]

    def enter(self, image: ImageLike) -> Waiting:
        """A picture as it passes into the network; raises what a call does."""
        self.require_masks()
        pixels, path = read_image(image), path_of(image)
        images.check_whole(pixels.shape[:2], path or "the picture")
        way = self.way_of(pixels.shape[:2])
        return Waiting(self, pixels, generator_input.enter(pixels, way), way, path)

    def find(self, pictures: typing.Sequence[Waiting]) -> list[Given]:
        """What a call gives, of pictures of one group, which go through the network together."""
        found = self._run([p.canvas for p in pictures], [p.way for p in pictures])
        return [self._objects(p, PictureMasks(masks, classes, p.way.padded, p.way.resized))
                for p, masks, classes in zip(pictures, *found)]

    def _objects(self, picture: Waiting, found: PictureMasks) -> Given:
        if self.objectness:
            rows, columns = (-(-side // self.config.stride) for side in found.kept)
            kept = (found.masks[:, :rows, :columns] > 0).any((1, 2))
            kept &= self.objectness_of(found.classes) > self.objectness
            found = found._replace(masks=found.masks[kept], classes=found.classes[kept])
        return Given(picture.pixels, np.arange(1, len(found.masks) + 1), None, found, self,
                     picture.path)

    def propose(self, pixels: np.ndarray) -> PictureMasks:
        """What every query says of a picture, as a bundle holds it.

        Args:
          pixels: [H, W, 3] uint8.

        Returns:
          Masks [Q, h, w] float32 before the sigmoid, and classes [Q, X] float32, see `kind`.

        Raises:
          ValueError: a generator for label maps, or the picture is too long for its input.
        """
        self.require_masks()
        way = self.way_of(pixels.shape[:2])
        found = self._run([generator_input.enter(pixels, way)], [way])
        return PictureMasks(*(x[0] for x in found), way.padded, way.resized)

    def way_of(self, size: tuple[int, int]) -> Way:
        """The sizes at which a picture of a size (height, width) passes into the network.

        Raises:
          ValueError: it would be too large there.
        """
        return way_of(size, self.config, self.preparation, self.title)

    def objectness_of(self, classes: np.ndarray) -> np.ndarray:
        """The probability that masks are any object: that none of their void.

        Args:
          classes: [Q, X] of `propose`.

        Returns:
          [Q] float32; for an open generator among the classes it was trained on.
        """
        logits = classes
        if self.kind == "embeddings":
            names, facts = self.embed(self.vocabulary), self.classes
            of_names = classes @ names.T  # [Q, S]
            first = np.searchsorted(self.vocabulary.synonym_class,
                                    np.arange(self.vocabulary.num_classes))
            void = classes @ np.array(facts["void_embedding"], np.float32)
            logits = facts["logit_scale"] * np.concatenate(
                [np.maximum.reduceat(of_names, first, axis=1), void[:, None]], axis=1)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        return 1 - shares[:, -1] / shares.sum(-1)

    def embed(self, vocabulary: Vocabulary) -> np.ndarray:
        """The names of a vocabulary as unit vectors [S, E] float32 of an open generator's own CLIP,
        the mean over its templates; embedded once."""
        with self._one_embeds:
            if vocabulary not in self._embedded:
                self._embedded[vocabulary] = self._embed(vocabulary)
                if len(self._embedded) > _VOCABULARIES:
                    del self._embedded[next(iter(self._embedded))]
            return self._embedded[vocabulary]

    @property
    def num_queries(self) -> int:
        """Masks of every picture, those of no object as well."""
        return getattr(self.config, "decoder", self.config).num_queries

    @functools.cached_property
    def facts(self) -> dict[str, str]:
        """What a bundle says of it: its name, and SHA-256 of its parameters."""
        digest = hashlib.sha256()
        for path, leaf in parameters.flatten(self.params).items():
            digest.update(path.encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)))
        return dict(name=self.title, checkpoint=digest.hexdigest()[:16])

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

        Raises:
          ValueError: an open generator, or one for label maps.
        """
        ids, segments = closed_results.panoptic(self._own_masks(image), self.vocabulary.is_thing)
        names = self.vocabulary.classes
        return ids, [dict(s, name=names[s["category_id"]][0]) for s in segments]

    def instances(self, image: ImageLike, count: int = 100) -> Instances:
        """The likeliest instances in its own classes, by the rules of its authors, which may
        overlap; see `closed_results.instances`."""
        found, _ = closed_results.instances(self._own_masks(image), count)
        if isinstance(self.config, Mask2FormerConfig):  # it drops stuff then
            things = np.asarray(self.vocabulary.is_thing)[found.classes]
            found = Instances(*(x[things] for x in found))
        return found

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
        size = np.array(cut.images.shape[1:3], np.int32)
        way = Way(size, size, tuple(size.tolist()))
        found = [self._run([window], [way]) for window in cut.images]
        masks, classes = (np.concatenate(x) for x in zip(*found))
        scores = closed_results.semantic_scores(masks, classes, cut.origins, cut.resized)
        return closed_results.semantic(scores, pixels.shape[:2])

    def _own_masks(self, image: ImageLike) -> closed_results.Masks:
        if self.kind != "closed":
            raise ValueError(f"{self.title} has no classes of its own; let a model name its masks: "
                             "mc.load(..., generator=...).segment(image, classes)")
        pixels = read_image(image)
        found = self.propose(pixels)
        sizes = MaskSizes(*(np.array(s, np.int32) for s in (
            found.masks.shape[1:], found.enlarged, found.kept)))
        return closed_results.Masks(found.masks, found.classes, sizes, pixels.shape[:2])

    def _run(self, canvases: typing.Sequence[np.ndarray], ways: typing.Sequence[Way]
             ) -> tuple[np.ndarray, np.ndarray]:
        """Masks [B, Q, h, w] and classes [B, Q, X] of pictures that are padded to one size."""
        sizes = (np.array(x, np.int32) for x in zip(*((w.loaded, w.resized) for w in ways)))
        with self._one_at_a_time:
            return jax.device_get(self._predict(self.params, np.stack(canvases), *sizes,
                                                canvas=ways[0].padded))


def way_of(size: tuple[int, int], config: Config, preparation: Preparation | None, what: str
           ) -> Way:
    """The sizes at which a picture of a size (height, width) passes into a network.

    Raises:
      ValueError: it would be too large there.
    """
    if preparation is None:
        return generator_input.letterbox_way(size, config.image_size[0])
    return generator_input.way_of(size, preparation, what)


def abstract(config: Config, **settings) -> tuple[typing.Callable, parameters.Tree]:
    """What `params.abstract` gives of the network of a configuration."""
    return _FILES[type(config)].abstract(config, **settings)


def in_dtype(params: parameters.Tree, config: Config, dtype: typing.Any) -> parameters.Tree:
    """Parameters as they lie on the device: matrices that are rounded to the dtype of the
    arithmetic before they are used, with their biases, in that dtype; the results are the same.

    Args:
      params: float32.
      config: sizes.
      dtype: see `make_program`.
    """
    leaves, trunk = parameters.flatten(params), "" if isinstance(config, EoMTConfig) else "image/"

    def is_rounded(path: str) -> bool:
        layer = path.rpartition("/")[0]
        return path.startswith(trunk) and path in (f"{layer}/kernel", f"{layer}/bias") and (
            f"{layer}/kernel" in leaves)

    return parameters.unflatten({
        path: x.astype(dtype) if is_rounded(path) else x for path, x in leaves.items()})


def make_program(config: Config, *, dtype: typing.Any = jnp.float32, platform: str | None = None
                 ) -> typing.Callable:
    """The jitted `(params, image, loaded, resized, canvas) -> masks, classes` of a batch; see
    `make_function`."""
    return programs.jit(make_function(config, dtype=dtype, platform=platform), platform=platform,
                        static_argnames="canvas")


def make_function(config: Config, *, dtype: typing.Any = jnp.float32, platform: str | None = None
                  ) -> typing.Callable:
    """`(params, image, loaded, resized, canvas) -> masks, classes` of a batch, not jitted.

    Pictures are resized from `loaded` to `resized` ([B, 2] int32) once more, without antialiasing;
    the canvas is what the network sees.

    Args:
      config: sizes.
      dtype: of the arithmetic of the trunk; the parameters are those of `in_dtype`, or float32.
      platform: "cpu", "gpu" or "tpu", what is compiled for; None: the device at hand.
    """
    build, _ = abstract(config, dtype=dtype, heads=configuration.heads_on(platform))

    def predict(params, image, loaded, resized, canvas):
        if isinstance(config, EoMTConfig):  # its padding is black, and seen as such
            return build(params)(image)
        resize = lambda image, loaded, resized: inference.to_network_size(
            image, loaded, resized, canvas)
        return build(params)(jax.vmap(resize)(image, loaded, resized), resized)

    return predict


def _facts_of_embeddings(params: parameters.Tree) -> dict:
    """What a bundle of embeddings says of its classes."""
    void = np.asarray(params["void_embedding"], np.float32)
    scale = min(float(np.exp(params["class_head"]["logit_scale"])), 100.0)  # as in CLIP
    return dict(kind="embeddings", void_embedding=(void / np.linalg.norm(void)).tolist(),
                logit_scale=scale, templates=list(TEMPLATES_14))
