"""A model module of big_vision: `Model(**config.model)` with init and apply, and `load`.

It is called as big_vision's models of two towers are, so that its trainers and evaluators for
images and text work as they are. Beside a picture it takes masks, and gives their embeddings.
"""

import re
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from maskclippp_jax import config as configuration, params as parameters, weights
from maskclippp_jax.models import maskclippp, similarity
from maskclippp_jax.weights import published


def config_of(variant: str | maskclippp.MaskCLIPppConfig) -> maskclippp.MaskCLIPppConfig:
    """Sizes of a model: its published name, of which the untuned one is meant, or themselves.

    Raises:
      ValueError: no such name.
    """
    if isinstance(variant, maskclippp.MaskCLIPppConfig):
        return variant
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
      remat: what the backward pass recomputes, see `layers.rematerialize`.
    """

    def __init__(self, num_classes: int | None = None, *,
                 variant: str | maskclippp.MaskCLIPppConfig, dtype_mm: str = "float32",
                 remat: str = "none"):
        del num_classes
        self.config = config_of(variant)
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
          is None. In the dictionary: `t` and `b`, the factor and the constant of logits; with masks
          `masks/normalized` [B, N, E], and with embeddings of names `masks/logits` [B, N, S].
        """
        model = self._build(numbered(variables["params"]))
        scale = jnp.exp(model.logit_scale[...])
        out = {"t": scale[None], "t/parameter": model.logit_scale[...][None]}
        if self.config.has_logit_bias:
            out["b"] = model.logit_bias[...][None]
        image_embeddings = text_embeddings = None
        names = None
        if text is not None and jnp.issubdtype(text.dtype, jnp.integer):
            text_embeddings = similarity.unit(model.encode_text(text))
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
            if features.mask_embeddings is not None:
                out["masks/normalized"] = similarity.unit(features.mask_embeddings)
                if names is not None:
                    out["masks/logits"] = model.classify(features, names, key=key)
        return image_embeddings, text_embeddings, out


def load(init_params: dict | None, init_file: str, model_cfg: typing.Mapping,
         dont_load: typing.Sequence[str] = ()) -> dict:
    """Parameters from a checkpoint: big_vision's, the hub's, or any other that is read here.

    Args:
      init_params: random ones, which fill what the file cannot hold; None: none are needed.
      init_file: see `weights.load_weights`.
      model_cfg: `config.model`.
      dont_load: patterns of whole names that keep their random values.

    Raises:
      ValueError: the file does not fit, or something stays empty.
    """
    model = Model(**model_cfg)
    loaded, missing = weights.load_weights(init_file, model.config, model.shapes)
    kept = re.compile("|".join(f"(?:{p})" for p in dont_load)) if dont_load else None
    missing |= {p for p in parameters.flatten(loaded) if kept and kept.fullmatch(p)}
    if missing and init_params is None:
        raise ValueError(f"{init_file} does not hold {', '.join(sorted(missing))}; give random "
                         "parameters to fill them")
    leaves = {p: x for p, x in parameters.flatten(loaded).items() if p not in missing}
    first = parameters.flatten(init_params) if missing else {}
    return named(parameters.unflatten(leaves | {p: first[p] for p in missing}))


def named(tree: parameters.Tree) -> dict:
    """Positions in lists become strings: big_vision joins names of parameters by "/"."""
    return {str(k): named(x) if isinstance(x, dict) else x for k, x in tree.items()}


def numbered(tree: dict) -> parameters.Tree:
    """The inverse of `named`."""
    return {int(k) if k.isdigit() else k: numbered(x) if isinstance(x, typing.Mapping) else x
            for k, x in tree.items()}
