"""Cases of OpenCLIP's models whose image tower is timm's: one set of weights in several layouts."""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.generators import eomt
from maskclippp_jax.models import layers, maskclippp, positions, similarity
from maskclippp_jax.models.eva_vit import EvaViTConfig
from maskclippp_jax.models.siglip import SigLIPConfig, SigLIPTextConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.parity.case import (
    Case,
    Check,
    channels_last,
    close,
    cosine,
    equal,
    same_parameters,
)
from maskclippp_jax.weights import published
from maskclippp_jax.weights.source import ShapesOnly

_COSINE = 0.995  # least of bfloat16 arithmetic, as for EVA's other cases
_TRUNK, _WORDS = "visual.trunk.", "text."
_TANH = "gelu_tanh"


def model(case: Case) -> list[Check]:
    """Every stored layout gives the same parameters and is written again; all stored results."""
    spec, config = case.spec, config_of(case)
    build, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(config, dtype=case.dtype, rngs=parameters.Keys(0)))

    def load(file: str) -> parameters.Tree:
        params, missing = weights.load_weights(str(case.file.with_name(file)), config, shapes)
        wanted = parameters.flatten(shapes)
        return parameters.combine(params, parameters.unflatten(
            {path: np.zeros(wanted[path].shape, np.float32) for path in missing}))

    first = load(spec["weights"])
    embed = jax.jit(lambda params, image, ids: (
        build(params).encode_image(image, _sizes(image)).image_embedding,
        build(params).encode_text(ids)))
    run = functools.partial(_results, case, config, build, embed)
    wanted = {key.removeprefix("out/"): facts for key, facts in spec["arrays"].items()
              if facts["role"] == "output"}
    if case.dtype != jnp.float32:
        got = run(first)
        return [cosine(name, got[name], case.arrays[f"out/{name}"], _COSINE)
                for name in ("image_emb", "text_emb")]
    checks, got = [], run(first) | _trunk_results(case, config, build, first, wanted)
    for file in (spec["weights"], *spec["other_weights"]):
        params, is_half = load(file), ".f16." in file
        checks.append(same_parameters(
            file, params, jax.tree.map(_half, first) if is_half else first))
        checks += _written_again(str(case.file.with_name(file)), config, params)
        if is_half:
            found = run(params)
            got |= {f"{name}_f16": found[name] for name in ("image_emb", "text_emb")}
    return checks + [close(name, got[name], case.arrays[f"out/{name}"], **facts["tolerance"])
                     for name, facts in wanted.items()]


def _half(x) -> np.ndarray:
    return np.asarray(x).astype(np.float16).astype(np.float32)


def _written_again(path: str, config: maskclippp.MaskCLIPppConfig,
                   params: parameters.Tree) -> list[Check]:
    """What is written in a file's layout holds the file's tensors, and no other parameter."""
    source, label = weights.read(path), path.rpartition("/")[2]
    layout = weights.layout_of(source, path)
    named = weights.export(params, config, layout)
    same = [name for name in source if np.array_equal(np.asarray(source[name]), named.get(name))]
    more = set(named) - set(source) - set(weights.following(layout, config))
    return [equal(f"{label}: written", same, list(source)),
            equal(f"{label}: nothing else", sorted(more), [])]


def _results(case: Case, config: maskclippp.MaskCLIPppConfig, build: typing.Callable,
             embed: typing.Callable, params: parameters.Tree) -> dict:
    """What the towers as a whole give, at the size of the table and at another."""
    arrays, patch = case.arrays, config.image.patch_size
    image, texts = embed(params, _whole_patches(arrays["in/images"], patch), arrays["in/token_ids"])
    units = similarity.unit(image), similarity.unit(texts)
    features = layers.ImageFeatures(units[0][:, None], None, None, None)
    logits = jax.jit(lambda p, f, t: build(p).classify(f, t))(params, features, units[1][:, None])
    results = {"image_emb": image, "text_emb": texts, "image_emb_unit": units[0],
               "text_emb_unit": units[1], "logits": logits[:, 0]}
    if "out/image_emb_wide_corners" in arrays:
        wide = _whole_patches(arrays["in/images_wide"], patch)
        results["image_emb_wide_corners"], _ = embed(params, wide, arrays["in/token_ids"])
    return results


def _whole_patches(images: np.ndarray, patch: int) -> np.ndarray:
    """[B, 3, H, W] -> [B, h, w, 3]: timm drops what is less than a patch."""
    height, width = (n // patch * patch for n in images.shape[2:])
    return np.asarray(channels_last(images))[:, :height, :width]


def _sizes(image: jax.Array) -> jax.Array:
    """True sizes [B, 2] of pictures [B, H, W, 3] without padding."""
    return jnp.tile(jnp.array(image.shape[1:3]), (len(image), 1))


def _trunk_results(case: Case, config: maskclippp.MaskCLIPppConfig, build: typing.Callable,
                   params: parameters.Tree, wanted: typing.Collection[str]) -> dict:
    """Tokens after every block, and pictures of another size with timm's position table."""
    c, table, results = config.image, params["image"]["position_table"], {}
    side, prefix = c.image_size // c.patch_size, len(table) - (c.image_size // c.patch_size)**2
    image, wide = (_whole_patches(case.arrays[f"in/{x}"], c.patch_size)
                   for x in ("images", "images_wide"))
    trunk = jax.jit(lambda p, x, table: _trunk(build(p).image, x, table))
    if not {"tokens", "features"}.isdisjoint(wanted):
        results["tokens"], results["features"], _ = trunk(params, image, table)
    grid = tuple(n // c.patch_size for n in wide.shape[1:3])
    resized = np.concatenate([
        table[:prefix], eomt.resize_position_table(table[prefix:], (side, side), grid)])
    if "image_emb_wide" in wanted:
        results["image_emb_wide"] = trunk(params, wide, resized)[2]
    if isinstance(c, EvaViTConfig):
        corners = positions.resize_position_table(table, jnp.array([grid]), grid)
    else:
        corners = positions.resize_table(table, jnp.array([grid]), grid, positions.linear_matrix)
    return results | {"pos_embed_wide": resized, "pos_embed_wide_corners": corners[0]}


def _trunk(tower, image: jax.Array, table: jax.Array) -> tuple[jax.Array, ...]:
    """Tokens after every block [B, depth, T, D], after the norm [B, T, D], and the embedding."""
    c, size = tower.config, _sizes(image)
    grid = layers.lay_grid(image, size, None, c.patch_size)
    is_eva = isinstance(c, EvaViTConfig)
    mean, std = (layers.PIXEL_MEAN, layers.PIXEL_STD) if is_eva else (c.pixel_mean, c.pixel_std)
    tokens = tower.patch_embed(layers.normalize(image, size, mean, std))
    tokens, rotary = tokens.reshape(len(image), -1, c.width), None
    if is_eva:
        first = jnp.broadcast_to(tower.class_token[...], (len(image), 1, c.width))
        tokens = jnp.concatenate([first, tokens], 1)
        if c.rotary_grid is not None:
            rotary = positions.rotary_table(grid.size, grid.canvas, c.width // c.num_heads,
                                         c.rotary_grid)
    tokens, after = tokens + table[None], []
    for block in tower.blocks:
        tokens, _ = block(tokens, rotary, grid.valid, None, None, None)
        after.append(tokens)
    features = tower.norm(tokens)
    if is_eva:
        return jnp.stack(after, 1), features, tower.head(features[:, 0])
    pooled = tower.pool(features, grid, jnp.ones(c.num_heads))[:, 0]
    return jnp.stack(after, 1), features, pooled


def config_of(case: Case) -> maskclippp.MaskCLIPppConfig:
    """The sizes: of the settings what tensors cannot tell, all others from the tensors."""
    vision, words = (case.spec["model_cfg"][f"{x}_cfg"] for x in ("vision", "text"))
    trunk, shapes = case.spec["timm_kwargs"], {k: x.shape for k, x in case.weights.items()}
    has, of = shapes.__contains__, lambda name: shapes[f"{_TRUNK}{name}"]
    width, _, patch, _ = of("patch_embed.proj.weight")
    embed_dim, length = case.spec["model_cfg"]["embed_dim"], shapes[f"{_WORDS}positional_embedding"]
    # The table's side, not the picture's, which may be no multiple of the patch.
    is_eva = has(f"{_TRUNK}cls_token")
    side = math.isqrt(of("pos_embed")[1] - is_eva) * patch
    sizes = dict(image_size=side, patch_size=patch, width=width,
                 depth=_count(shapes, f"{_TRUNK}blocks."), num_heads=trunk["num_heads"],
                 embed_dim=embed_dim)
    text = dict(context_length=length[0], vocab_size=shapes[f"{_WORDS}token_embedding.weight"][0],
                width=length[1], depth=_count(shapes, f"{_WORDS}transformer.resblocks."),
                num_heads=words["heads"], embed_dim=embed_dim)
    if is_eva:
        split = has(f"{_TRUNK}blocks.0.attn.q_proj.weight")
        base = trunk.get("ref_feat_shape", (side // patch,))[0]
        image = EvaViTConfig(
            **sizes, mlp_width=of(f"blocks.0.mlp.{'fc1_g' if split else 'fc1'}.weight")[0],
            mask_layers=1, rotary_grid=base if trunk.get("use_rot_pos_emb") else None,
            inner_norms=split, swiglu=split, fused_qkv=not split)
        return maskclippp.MaskCLIPppConfig(image, TextConfig(**text), None, max_logit_scale=None)
    image = SigLIPConfig(**sizes, mlp_width=of("blocks.0.mlp.fc1.weight")[0],
                         exact_gelu=trunk.get("act_layer") != _TANH)
    text = SigLIPTextConfig(
        **text, mlp_width=shapes[f"{_WORDS}transformer.resblocks.0.mlp.c_fc.weight"][0],
        padding=0, has_head=has(f"{_WORDS}text_projection.weight"),
        exact_gelu=words.get("act_kwargs", {}).get("approximate") != "tanh",
        norm_epsilon=words.get("norm_kwargs", {}).get("eps", 1e-5))
    return maskclippp.MaskCLIPppConfig.of_siglip(image, text)


def _count(names: typing.Iterable[str], beginning: str) -> int:
    """How many blocks there are."""
    return 1 + max(int(name.removeprefix(beginning).split(".")[0]) for name in names
                   if name.startswith(beginning))


def published_shapes(case: Case) -> list[Check]:
    """OpenCLIP's own models are recognised by names and shapes, and have as many parameters."""
    checks = []
    for name, spec in case.spec["models"].items():
        source = ShapesOnly(spec["shapes"])
        layout = weights.layout_of(source, name)
        entry = _entry(name)
        checks.append(equal(f"{name}: looks like", entry.name in published.looks_like(
            source.shapes, lambda model: weights.rules_for(layout, model), weights.ABSENT), True))
        counts = [sum(math.prod(x.shape) for path, x in _leaves(entry.model).items()
                      if path.startswith(part)) for part in ("image/", "text/")]
        checks.append(equal(f"{name}: parameters", counts, [spec["params_image"],
                                                            spec["params_text"]]))
    return checks


def _entry(name: str) -> published.Published:
    """Our row of OpenCLIP's name."""
    for entry in published.MODELS:
        if name in (entry.name, entry.name.replace("-CLIP", "")) or (
                entry.source == f"hf://timm/{name}"):
            return entry
    raise ValueError(f"no published model is called {name} by OpenCLIP")


def _leaves(model: maskclippp.MaskCLIPppConfig) -> dict:
    _, shapes = parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        dataclasses.replace(model, similarity=None), heads="together", rngs=parameters.Keys(0)))
    return {path: x for path, x in parameters.flatten(shapes).items()
            if not path.startswith(weights.ABSENT)}
