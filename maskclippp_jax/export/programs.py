"""What is taken away: an image encoder with masks, a classifier, a mask generator, as functions.

They are those of `naming`, in the form that a caller without this package can feed: pictures and
masks of any size, without padding, whose sizes are those of the arrays. The canvas of the image
tower alone is fixed; a picture lies in its top left corner, and gives the same numbers on any.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from maskclippp_jax import params as parameters
from maskclippp_jax.data import mask_chain
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.models import maskclippp, similarity
from maskclippp_jax.naming import ensembles, generator as generators, inference

PLATFORMS = ("cpu", "cuda", "tpu")  # of an artefact of `jax.export`


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of parameters and arrays.

    Attributes:
      name: of its file, without ending.
      weights: of the file of its parameters, without ending; encoders of several sizes share one.
      function: `(parameters, *inputs) -> arrays`; parameters is a dict of arrays by path.
      parameters: those arrays, on the host.
      inputs: shapes by name; strings are open dimensions.
      outputs: names of what it returns.
    """

    name: str
    weights: str
    function: typing.Callable
    parameters: dict[str, np.ndarray]
    inputs: dict[str, tuple[tuple, np.dtype]]
    outputs: tuple[str, ...]

    def specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The inputs for a trace, with open dimensions of JAX."""
        scope = jax_export.SymbolicScope()
        result = {}
        for name, (shape, dtype) in self.inputs.items():
            text = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
            result[name] = jax.ShapeDtypeStruct(
                jax_export.symbolic_shape(text, scope=scope), dtype)
        return result


def encoder(model: maskclippp.MaskCLIPppConfig, params: parameters.Tree, canvas: tuple[int, int],
            short_side: int, *, num_masks: int | str = "masks", batch: int | str = "batch",
            dtype=jnp.float32, heads: str = "together") -> Program:
    """Pictures and masks to embeddings of masks.

    Its inputs: image uint8 [B, H, W, 3], pictures as they were loaded; masks float32 [B, N, h, w]
    in 0 ... 1; mask_sizes int32 [2, 2], `enlarged` and `kept` of `mask_chain.MaskSizes`. It returns
    unit vectors [B, N, E] float32, and where the head looks at patches, these [B, L, E] and which
    of them are the picture's, [B, L] bool.

    Args:
      model: sizes.
      params: all parameters, on the host.
      canvas: (height, width) in pixels of what the image tower sees, multiples of its cells.
      short_side: pixels of the shorter side that pictures are brought to, less where they would
        not fit the canvas.
      num_masks: N; a name leaves it open.
      batch: B, likewise.
      dtype: of the arithmetic of the tower, and of its matrices in the file.
      heads: see `layers.attend`.
    """
    build, _ = parameters.abstract(lambda: model.image.make(
        dtype=dtype, heads=heads, rngs=parameters.Keys(0)))
    patch, dense = model.image.patch_size, _needs_patches(model)

    def encode(leaves, image, masks, mask_sizes):
        tower, count = build(parameters.unflatten(leaves)), image.shape[0]
        loaded = _size_of(image.shape[1:3])
        network = network_size(loaded, short_side, canvas)
        sizes = MaskSizes(_size_of(masks.shape[2:]), mask_sizes[0], mask_sizes[1])
        on_canvas = jax.vmap(
            lambda image: inference.to_network_size(image, loaded, network, canvas))(image)
        grid_masks = jax.vmap(
            lambda masks: mask_chain.to_grid(masks, sizes, network, patch, canvas))(masks)
        sizes = jnp.broadcast_to(network[None], (count, 2))
        features = tower(on_canvas, sizes, grid_masks, dense=dense)
        found = similarity.unit(features.mask_embeddings),
        if dense:
            found += features.patch_embeddings.astype(jnp.float32), features.patch_valid
        return found

    return Program(
        f"encoder_{canvas[1]}x{canvas[0]}", "encoder", encode, _leaves(params["image"], dtype),
        dict(image=((batch, "picture_height", "picture_width", 3), np.dtype("uint8")),
             masks=((batch, num_masks, "mask_height", "mask_width"), np.dtype("float32")),
             mask_sizes=((2, 2), np.dtype("int32"))),
        ("embeddings", "patches", "patch_valid")[:3 if dense else 1])


def network_size(loaded: jax.Array, short_side: int, canvas: tuple[int, int]) -> jax.Array:
    """The size at which the image tower sees a picture: [2] int32 to [2] int32.

    Its shorter side becomes `short_side`, or as much less as makes the longer one fit the canvas.
    """
    shorter, side = loaded.min(), jnp.int32(short_side)
    for i in range(2):
        side = jnp.minimum(side, canvas[i] * shorter // loaded[i])
    return jnp.maximum(loaded * side // shorter, 1)


def classifier(model: maskclippp.MaskCLIPppConfig, params: parameters.Tree, names: inference.Names,
               synonyms: np.ndarray, *, ensemble: "Ensemble | None" = None,
               num_masks: int | str = "masks", batch: int | str = "batch",
               tokens: typing.Sequence[int] = ()) -> Program:
    """Embeddings of masks to scores of classes.

    Its inputs: `embeddings` of the encoder, `patches` and `patch_valid` too where it has them;
    names float32 [S, T, E] (templates folded to one row where the head allows), and synonyms int32
    [C, K], the rows of `names` that are each class' names, the first one again where there are
    fewer. It returns scores [B, N, C] float32.

    Args:
      model: sizes.
      params: all parameters, on the host.
      names: those of a vocabulary, folded.
      synonyms: see above.
      ensemble: with a generator's opinion there is one input more, generator_classes [B, N, J + 1]
        float32, logits with void last; one result more, void [B, N]; and `lookup` [J, C] and
        `weights` [C] among the parameters.
      num_masks: N; a name leaves it open.
      batch: B, likewise.
      tokens: L, the cells of each encoder, if patches are asked for; several leave it open.
    """
    rows = (np.asarray(names.synonym_class) < len(names.synonym_class)).sum()
    is_folded = isinstance(names.embeddings, similarity.Folded)
    embeddings = (names.embeddings.classifiers[:, None] if is_folded else names.embeddings)[:rows]
    leaves, dense = dict(names=np.asarray(embeddings), synonyms=synonyms), _needs_patches(model)
    scale, inputs, width = logit_scale(model, params), {}, embeddings.shape[-1]
    inputs["embeddings"] = (batch, num_masks, width), np.dtype("float32")
    if dense:
        length = tokens[0] if len(set(tokens)) == 1 else "tokens"
        inputs["patches"] = (batch, length, width), np.dtype("float32")
        inputs["patch_valid"] = (batch, length), np.dtype("bool")
        leaves |= _leaves(params["similarity"], jnp.float32, "similarity/")
    if ensemble:
        leaves |= dict(lookup=ensemble.lookup, weights=ensemble.weights)
        inputs["generator_classes"] = (
            (batch, num_masks, len(ensemble.lookup) + 1), np.dtype("float32"))
    head = similarity.mean_similarity
    if dense:
        build, _ = parameters.abstract(lambda: model.similarity.make(rngs=parameters.Keys(0)))

    def classify(leaves, embeddings, *others):
        condition, apply = None, head
        if dense:
            condition, others = similarity.Condition(*others[:2]), others[2:]
            of_head = {k.removeprefix("similarity/"): v for k, v in leaves.items()
                       if k.startswith("similarity/")}
            apply = build(parameters.unflatten(of_head))
        names = similarity.Folded(leaves["names"][:, 0]) if is_folded else leaves["names"]
        by_name = apply(embeddings, names, jnp.float32(scale), condition)  # [B, N, S]
        logits = jnp.take(by_name, leaves["synonyms"], axis=-1, mode="clip").max(-1)  # [B, N, C]
        if ensemble is None:
            return jax.nn.softmax(logits),
        own = ensembles.GeneratorLogits(others[0][..., :-1], others[0][..., -1])
        given_back = ensembles.void_given_back(logits, jnp.float32(ensemble.objectness))
        if ensemble.counts:
            lookup = leaves["lookup"]
            theirs = jnp.where((lookup > 0).any(0)[None, None], own.classes @ lookup, -jnp.inf)
            logits = ensembles.ensemble(logits, theirs, leaves["weights"])
        valid = jnp.ones(logits.shape[:-1], bool)
        return tuple(ensembles.scores(logits, own, valid, given_back))

    kind = "classifier_of_generated" if ensemble else "classifier"
    return Program(kind, kind, classify, leaves, inputs,
                   ("scores", "void") if ensemble else ("scores",))


class Ensemble(typing.NamedTuple):
    """How a closed generator's opinion of its masks counts."""

    lookup: np.ndarray   # [J, C] float32: the mean over its classes that belong to each of ours
    weights: np.ndarray  # [C] float32, our share
    counts: bool         # whether its opinion of the class counts, not only that of void
    objectness: float    # see `ensembles.void_given_back`

    @classmethod
    def of(cls, lookup: np.ndarray, weights: np.ndarray, counts: bool, objectness: float
           ) -> "Ensemble":
        """From the test class of each training class [J], or one that does not exist."""
        table = (lookup[:, None] == np.arange(len(weights))).astype(np.float32)
        return cls(table / np.maximum(table.sum(0), 1), weights, counts, objectness)


def generator(config: EoMTConfig, params: parameters.Tree, *, batch: int | str = "batch",
              dtype=jnp.float32, heads: str = "together") -> Program:
    """Pictures to masks: image uint8 [B, H, W, 3] of the one size, black where it is padded.

    It returns masks [B, Q, h, w] float32 in 0 ... 1, of the whole input, and generator_classes
    [B, Q, J + 1] float32, logits with void last.
    """
    build, _ = generators.abstract(config, dtype=dtype, heads=heads)

    def propose(leaves, image):
        found = build(parameters.unflatten(leaves))(image)
        return mask_chain.probabilities(found.mask_logits), found.class_logits

    return Program("generator", "generator", propose, _leaves(params, dtype),
                   dict(image=((batch, *config.image_size, 3), np.dtype("uint8"))),
                   ("masks", "generator_classes"))


def logit_scale(model: maskclippp.MaskCLIPppConfig, params: parameters.Tree) -> float:
    """The factor of similarities, as `MaskCLIPpp.classify` has it."""
    if not model.use_logit_scale:
        return 1.0
    scale = float(np.exp(np.float32(params["logit_scale"])))
    return scale if model.max_logit_scale is None else min(scale, model.max_logit_scale)


def _needs_patches(model: maskclippp.MaskCLIPppConfig) -> bool:
    return model.similarity is not None and model.similarity.needs_patches


def _size_of(shape) -> jax.Array:
    """Two sides, which may be open, as [2] int32."""
    return jnp.stack([jnp.asarray(side, jnp.int32) for side in shape])


def _leaves(tree: parameters.Tree, dtype, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays by path; kernels in the dtype of the arithmetic, all else (norms, tables) float32."""
    return {prefix + path: np.asarray(x, dtype if path.endswith("kernel") else np.float32)
            for path, x in parameters.flatten(jax.device_get(tree)).items()}
