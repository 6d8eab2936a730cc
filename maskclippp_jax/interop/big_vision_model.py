"""A model module of big_vision: `Model(**config.model)` with init and apply, and `load`.

It is called as big_vision's models of two towers are, so that its trainers and evaluators for
images and text work as they are. Beside a picture it takes masks, and gives their embeddings.
"""

import types
import typing

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.interop import big_vision_load
from maskclippp_jax.models import maskclippp, similarity
from maskclippp_jax.weights import published

Variant = str | maskclippp.MaskCLIPppConfig | typing.Mapping

# What jax, and so big_vision's `remat_policy`, calls what is ours.
_REMAT = {"nothing_saveable": "full", "everything_saveable": "none",
          "dots_with_no_batch_dims_saveable": "dots", "checkpoint_dots_with_no_batch_dims": "dots"}


def sizes(config: maskclippp.MaskCLIPppConfig) -> dict:
    """Sizes of a model as plain values, which big_vision can write with its configuration."""
    return configuration.to_json(config)


def config_of(variant: Variant) -> maskclippp.MaskCLIPppConfig:
    """Sizes of a model: its published name, of which the untuned one is meant, or themselves, as
    `sizes` has them too.

    Raises:
      ValueError: no such name, or no such sizes.
    """
    if isinstance(variant, maskclippp.MaskCLIPppConfig):
        return variant
    if isinstance(variant, ml_collections.ConfigDict):
        variant = variant.to_dict()
    if isinstance(variant, typing.Mapping):
        if "type" not in variant:
            raise ValueError(f"variant is a mapping of {', '.join(variant) or 'nothing'}; make one "
                             "by big_vision.sizes(config), or give a published name")
        return configuration.sizes_from_json(dict(variant))
    for entry in published.MODELS:
        if entry.name == variant:
            return entry.model
    raise ValueError(f"no published model {variant!r} is known here; see `convert --list`")


class Model:
    """What big_vision asks of a Linen module.

    Args:
      num_classes: of no use; big_vision gives it to every model.
      variant: see `config_of`.
      dtype_mm: arithmetic of the towers, "float32" or "bfloat16".
      remat: what the backward pass recomputes, see `layers.rematerialize`; or big_vision's name of
        it ("nothing_saveable", "dots_with_no_batch_dims_saveable").

    Raises:
      ValueError: no such `variant`, or no such `remat`.
    """

    def __init__(self, num_classes: int | None = None, *, variant: Variant,
                 dtype_mm: str = "float32", remat: str = "none"):
        del num_classes
        self.config, remat = config_of(variant), _REMAT.get(remat, remat)
        if remat not in configuration.REMAT:
            raise ValueError(f"remat is {remat!r}; it can be "
                             f"{', '.join((*configuration.REMAT, *_REMAT))}")
        # big_vision splits arrays over devices without a mesh that a kernel could ask for.
        heads = "apart" if configuration.heads_on() == "apart" else "together"
        self._make = lambda rngs: maskclippp.MaskCLIPpp(
            self.config, dtype=jnp.dtype(dtype_mm), remat=remat, rngs=rngs,
            heads=heads)
        self._build, self.shapes = parameters.abstract(lambda: self._make(parameters.Keys(0)))

    def init(self, rng: jax.Array | dict, *unused_inputs, **unused_settings) -> dict:
        """Random parameters, {"params": nested dict of names}."""
        if isinstance(rng, dict):
            rng = rng["params"]
        return {"params": named(parameters.initialize(lambda: self._make(nnx.Rngs(params=rng))))}

    def apply(self, variables: dict, image=None, text=None, *, train: bool = False,
              rngs: dict | None = None, **unused_settings) -> tuple:
        """Embeds pictures, masks and texts.

        Args:
          variables: {"params": ...}, see `init`.
          image: [B, H, W, 3] float in [-1, 1]; or a dictionary with it as `image`, and optionally
            `image_size` [B, 2] (true height and width, the rest is padding) and `masks` [B, N, L]
            on the token grid; or None.
          text: token ids [n, X]; or, to classify masks, unit embeddings of names [S, T, E]; or
            None.
          train: whether dropout acts.
          rngs: its randomness, under "dropout".

        Returns:
          (unit embeddings of pictures [B, E], of texts [n, E], dictionary). What was not asked for
          is None. In the dictionary: `t` and `b`, the factor and the constant of logits (0 for
          models that have none); `img/normalized` [B, E], `img/norm` [B, 1], and, unless `train`,
          `img/pre_logits` [B, D], what the last linear map of the tower gets (`img/logits` [B, E]
          is its result; without such a map both are the same); `txt/...` likewise; with masks
          `masks/normalized` [B, N, E], and with embeddings of names `masks/logits` [B, N, S].
        """
        build = lambda: self._build(numbered(variables["params"]))
        model = build()
        scale = jnp.exp(model.logit_scale[...])
        out = {"t": scale[None], "t/parameter": model.logit_scale[...][None], "b": jnp.zeros(1)}
        if self.config.has_logit_bias:
            out["b"] = model.logit_bias[...][None]
        image_embeddings = text_embeddings = None
        names = None
        if text is not None and jnp.issubdtype(text.dtype, jnp.integer):
            logits = model.encode_text(text)
            text_embeddings = similarity.unit(logits)
            out |= _outputs("txt", logits)
            if not train:
                out["txt/pre_logits"] = _without_head(build().text)(text)
        elif text is not None:
            names = text
        if image is not None:
            given = image if isinstance(image, dict) else {"image": image}
            pixels = (given["image"] + 1) * 127.5
            sizes = given.get("image_size")
            if sizes is None:
                sizes = jnp.broadcast_to(jnp.array(pixels.shape[1:3]), (len(pixels), 2))
            key = rngs["dropout"] if train and rngs else None
            features = model.encode_image(pixels, sizes, given.get("masks"), key=key)
            image_embeddings = similarity.unit(features.image_embedding)
            out |= _outputs("img", features.image_embedding)
            if not train:
                out["img/pre_logits"] = _without_head(build().image)(pixels, sizes).image_embedding
            if features.mask_embeddings is not None:
                out["masks/normalized"] = similarity.unit(features.mask_embeddings)
                if names is not None:
                    out["masks/logits"] = model.classify(features, names, key=key)
        return image_embeddings, text_embeddings, out


class _Same(nnx.Module):
    """Takes the place of a linear map."""

    def __call__(self, x):
        return x


def _without_head(tower: nnx.Module) -> nnx.Module:
    """A tower that gives what its last linear map would get, if it has one.

    Compiled, it costs nothing: the blocks that both have are one program's, and what nobody asks
    for is not computed.
    """
    if isinstance(getattr(tower, "head", None), nnx.Linear):
        tower.head = _Same()
    elif isinstance(getattr(tower, "projection", None), nnx.Param):
        tower.projection = nnx.Param(jnp.eye(tower.projection.shape[0]))
    return tower


def _outputs(tower: str, logits: jax.Array) -> dict[str, jax.Array]:
    """Entries of the dictionary of `Model.apply`, as big_vision's two towers call them."""
    norm = jnp.linalg.norm(logits.astype(jnp.float32), axis=-1, keepdims=True)
    return {f"{tower}/logits": logits, f"{tower}/norm": norm,
            f"{tower}/normalized": similarity.unit(logits)}


def load(init_params: dict | None, init_file: str | typing.Mapping[str, str],
         model_cfg: typing.Mapping, dont_load: str | typing.Sequence[str] = (), *,
         img_load_kw: typing.Mapping = types.MappingProxyType({}),
         txt_load_kw: typing.Mapping = types.MappingProxyType({})) -> dict:
    """Parameters from a checkpoint: big_vision's, the hub's, or any other that is read here.

    Args:
      init_params: random ones, which fill what the files cannot hold; None: none are needed.
      init_file: a file, a part of one, or a file for each part; see `big_vision_load.read_files`.
      model_cfg: `config.model`.
      dont_load: patterns of whole names that keep their random values.
      img_load_kw, txt_load_kw: `dict(dont_load=patterns)` of names below one tower, ours or those
        of big_vision ("MAPHead_0/.*").

    Raises:
      ValueError: a file does not fit, or something stays empty.
    """
    model = Model(**model_cfg)
    loaded, missing = big_vision_load.read_files(init_file, model.config, model.shapes)
    missing |= big_vision_load.kept(loaded, model.config, dont_load, img_load_kw, txt_load_kw)
    if missing and init_params is None:
        shown = sorted(missing)
        raise ValueError(f"{init_file} does not hold {', '.join(shown[:3])}"
                         f"{f' and {len(shown) - 3} more' if len(shown) > 3 else ''}; give random "
                         "parameters to fill them")
    leaves = {p: x for p, x in loaded.items() if p not in missing}
    first = parameters.flatten(init_params) if missing else {}
    return named(parameters.unflatten(leaves | {p: first[p] for p in missing}))


def named(tree: parameters.Tree) -> dict:
    """Positions in lists become strings: big_vision joins names of parameters by "/"."""
    return {str(k): named(x) if isinstance(x, dict) else x for k, x in tree.items()}


def numbered(tree: dict) -> parameters.Tree:
    """The inverse of `named`."""
    return {int(k) if k.isdigit() else k: numbered(x) if isinstance(x, typing.Mapping) else x
            for k, x in tree.items()}
