"""Cases of SigLIP and SigLIP 2: results of google-research/big_vision, a folder at a time.

`manifest.json` lists small models, each a folder with checkpoints in several layouts, inputs and
every intermediate result; arrays of resampling and preprocessing lie beside it.
"""

import dataclasses
import functools
import math
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.data.tokenizer import SentencePieceTokenizer, canonicalize, lower_ascii
from maskclippp_jax.models import layers, maskclippp, positions, resample, siglip, similarity
from maskclippp_jax.models.resample import Stage
from maskclippp_jax.naming import inference
from maskclippp_jax.parity.case import Case, Check, close, cosine, equal
from maskclippp_jax.weights import big_vision, published, rules
from maskclippp_jax.weights.big_vision_file import Unstacked
from maskclippp_jax.weights.source import ShapesOnly

# Of float32, and of unit embeddings; two implementations differ by a fifth of it.
_WITHIN = dict(atol=2e-5, rtol=2e-5)
_UNIT = dict(atol=1e-5)
_ROUNDED = dict(atol=2.5e-3)  # unit embeddings of weights that were stored in bfloat16
_COSINE = 0.9995  # least of bfloat16 arithmetic; the lowest one seen is 0.99993
_PIXEL = dict(atol=1.0)  # of 255, where the reference cuts to whole numbers

_lay = jax.jit(positions.resize_table, static_argnums=(2, 3))


def models(case: Case) -> list[Check]:
    """All models of a manifest, and the arrays beside it."""
    checks = []
    for name, spec in case.spec["cases"].items():
        checks += _model(case.file.parent / name, spec, case.dtype)
    for file, run in (("posemb_resample", _resampled), ("naflex_posemb", _naflex_tables),
                      ("preprocess", _preprocessed)):
        arrays = case.file.with_name(f"{file}.npz")
        if arrays.exists() and case.dtype == jnp.float32:
            checks += run(np.load(arrays))
    return checks


@dataclasses.dataclass(frozen=True)
class _Model:
    """A model of a manifest, and its pictures on a canvas."""

    name: str
    config: maskclippp.MaskCLIPppConfig
    build: typing.Callable
    image: np.ndarray     # [B, H, W, 3]
    sizes: np.ndarray     # [B, 2] true height and width
    cells: np.ndarray     # [B, tokens] cell of the canvas that a stored token lies on
    is_patch: np.ndarray  # [B, tokens] bool, False for padding


def _model(folder: pathlib.Path, spec: dict, dtype) -> list[Check]:
    """One model: every checkpoint gives the same parameters, and those the stored results."""
    config, checks, first = _config(spec), [], None
    build, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(config, dtype=dtype, rngs=parameters.Keys(0)))
    inputs, outputs = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    model = _Model(folder.name, config, build, *_images(inputs, config.image.patch_size))
    run = jax.jit(lambda params: _image_results(build(params).image, model.image, model.sizes)
                  | _text_results(build(params), inputs["text"]))
    for file, stored in spec["checkpoints"].items():
        params, _ = weights.load_weights(str(folder / file), config, shapes)
        params["image"]["mask_logit_scale"] = np.full((1, config.image.num_heads), -5, np.float32)
        label = f"{folder.name}/{file.removesuffix('.npz')}"
        if dtype != jnp.float32:
            got = run(params)
            checks += [cosine(f"{label}/{key}", got[key], outputs[key], _COSINE)
                       for key in ("zimg", "ztxt")]
        elif stored["dtype"] == "bfloat16":
            got = run(params)
            checks += [close(f"{label}/{key}", got[key], outputs[key], **_ROUNDED)
                       for key in ("zimg", "ztxt")]
        elif first is None:
            first = params
            checks += _compare(label, model, params, run(params), outputs)
        else:
            same = [np.array_equal(x, y) for x, y in zip(
                *(jax.tree.leaves(p) for p in (params, first)), strict=True)]
            checks.append(equal(f"{label} is the first one", all(same), True))
    if dtype == jnp.float32 and (folder / "masked.npz").exists():
        checks += _masked(model, first, outputs, np.load(folder / "masked.npz"))
    for file in sorted(folder.glob("resized_*.npz")) if dtype == jnp.float32 else ():
        checks += _resized(f"{folder.name}/{file.stem}", model, first, np.load(file))
    return checks


def _compare(label: str, model: _Model, params, got: dict, outputs) -> list[Check]:
    """All results of a model whose big_vision result is stored."""
    checks = [equal(f"{label}/t", params["logit_scale"], outputs["t/parameter"][0]),
              equal(f"{label}/b", params["logit_bias"], outputs["b"][0]),
              close(f"{label}/sim/logits", _classify(
                  model.config, params, got["zimg"][None], got["ztxt"])[0],
                  outputs["sim/logits"], **_WITHIN)]
    rows = np.arange(len(model.cells))[:, None]
    for key in sorted(got.keys() & set(outputs)):
        value, want = np.asarray(got[key]), outputs[key]
        if value.ndim > 2 and key.startswith(("img/", "maphead/")) and "query" not in key:
            value = value[rows, model.cells]  # [B, tokens, ...]
            value, want = value[model.is_patch], want.reshape(value.shape)[model.is_patch]
        checks.append(close(f"{label}/{key}", value.reshape(want.shape), want,
                            **(_UNIT if key.startswith("z") else _WITHIN)))
    return checks


def _resized(label: str, model: _Model, params, arrays) -> list[Check]:
    """Pictures of another size than the table was learnt for."""
    image, patch = arrays["in/image_uint8"], model.config.image.patch_size
    sizes = np.full((len(image), 2), image.shape[1], np.int32)
    got = jax.jit(lambda p: _image_results(model.build(p).image, image, sizes))(params)
    got["pos_embedding"] = _lay(params["image"]["position_table"], sizes[:1] // patch,
                                (image.shape[1] // patch,) * 2, positions.linear_matrix)
    checks = []
    for key in ("pos_embedding", "img/stem", "img/with_posemb", "img/encoded", "img/head_input",
                "zimg"):
        want = arrays[key if key in arrays else f"out/{key}"]
        checks.append(close(f"{label}/{key}", np.reshape(got[key], want.shape), want,
                            **(_UNIT if key == "zimg" else _WITHIN)))
    return checks


def _config(spec: dict) -> maskclippp.MaskCLIPppConfig:
    """The sizes of a manifest's model."""
    image, words, (image_dim, text_dim) = (spec["model"][k] for k in ("image", "text", "out_dim"))
    is_naflex, patch = image.get("posemb") == "learn_2d", spec["patch_size"]
    side = image["nposemb"] * patch if is_naflex else spec["image_size"]
    sizes = lambda c: dict(width=c["width"], depth=c["depth"], num_heads=c["num_heads"],
                           mlp_width=c["mlp_dim"])
    return maskclippp.MaskCLIPppConfig.of_siglip(
        siglip.SigLIPConfig(
            side, patch, **sizes(image), embed_dim=image_dim or image["width"],
            has_head=image_dim is not None,
            position_resize="antialiased" if is_naflex else "linear"),
        siglip.SigLIPTextConfig(
            spec["text_len"], words["vocab_size"], **sizes(words),
            embed_dim=text_dim or words["width"], padding=1, has_head=text_dim is not None))


def _images(inputs, patch: int) -> tuple[np.ndarray, ...]:
    """Pictures on a canvas: the last four fields of `_Model`."""
    if "image_uint8" in inputs:
        image = inputs["image_uint8"]
        side = image.shape[1] // patch * patch  # the reference drops what is less than a patch
        cells = np.tile(np.arange((side // patch)**2), (len(image), 1))
        return (image[:, :side, :side], np.full((len(image), 2), side), cells,
                np.ones_like(cells, bool))
    rows, columns = inputs["grids"].max(0)
    patches = np.zeros((len(inputs["grids"]), rows, columns, patch, patch, 3), np.float32)
    is_patch = inputs["type"] == 1
    b, token = np.nonzero(is_patch)
    where = b, inputs["yidx"][b, token], inputs["xidx"][b, token]
    patches[where] = (inputs["patches"][b, token].reshape(-1, patch, patch, 3) + 1) * 127.5
    image = patches.swapaxes(2, 3).reshape(len(patches), rows * patch, columns * patch, 3)
    cells = np.where(is_patch, inputs["yidx"] * columns + inputs["xidx"], 0)
    return image, inputs["grids"] * patch, cells, is_patch


def _blocks(tower, tokens, valid, name: str) -> tuple[jax.Array, dict]:
    """The blocks of a tower, one part after the other."""
    results = {}
    for i, block in enumerate(tower.blocks):
        attended = block.attention(block.norm1(tokens), tokens.shape[1], None, valid, None, None)
        tokens = tokens + attended
        results |= {f"{name}{i:02}/sa": attended, f"{name}{i:02}/+sa": tokens}
        hidden = block.mlp(block.norm2(tokens))
        tokens = tokens + hidden
        results |= {f"{name}{i:02}/mlp": hidden, f"{name}{i:02}/+mlp": tokens}
    return tokens, results


def _image_results(tower: siglip.SigLIPImageTower, image, sizes) -> dict:
    """Every intermediate result of an image tower, and what the tower as a whole gives."""
    c = tower.config
    grid = layers.lay_grid(image, sizes, None, c.patch_size)
    stem = tower.patch_embed(layers.normalize(image, sizes, c.pixel_mean, c.pixel_std))
    stem = stem.reshape(len(image), -1, c.width)
    table = positions.resize_table(tower.position_table[...], grid.size, grid.canvas,
                                siglip.RESIZE[c.position_resize])
    tokens, results = _blocks(tower, stem + table, grid.valid, "img/encoder/block")
    encoded, pool = tower.norm(tokens), tower.pool
    heads = lambda x: layers.split_heads(x, c.num_heads)
    whole = tower(image, sizes).image_embedding
    pooled = pool(encoded, grid, jnp.zeros(c.num_heads))[:, 0]
    query = jnp.broadcast_to(heads(pool.query(pool.probe[...])),
                             (len(image), 1, c.num_heads, c.width // c.num_heads))
    results |= {
        "img/stem": stem, "img/with_posemb": stem + table, "img/encoder/pre_ln": tokens,
        "img/encoded": encoded, "img/head_input": pooled, "maphead/output": pooled,
        "maphead/MultiHeadDotProductAttention_0/query": query,
        "maphead/MultiHeadDotProductAttention_0/key": heads(pool.key(encoded)),
        "maphead/MultiHeadDotProductAttention_0/value": heads(pool.value(encoded)),
        "zimg": similarity.unit(whole)}
    return results | ({} if tower.head is None else {"img/logits": whole})


def _text_results(model: maskclippp.MaskCLIPpp, ids) -> dict:
    tower = model.text
    embedded = tower.token_embedding[...][ids]
    tokens, results = _blocks(tower, embedded + tower.position_table[None],
                              jnp.ones(ids.shape, bool), "txt/block")
    last = tower.norm(tokens)
    whole = model.encode_text(ids)
    results |= {"txt/pre_ln": tokens, "txt/transformed": last, "txt/pre_logits": last[:, -1],
                "ztxt": similarity.unit(whole)}
    return results | ({} if tower.head is None else {"txt/logits": whole})


def _classify(config, params, embeddings, texts) -> np.ndarray:
    """Logits [B, N, T] of embeddings [B, N, E] for texts [T, E]."""
    build, _ = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(config, rngs=parameters.Keys(0)))
    features = layers.ImageFeatures(jnp.asarray(embeddings), None, None, None)
    return jax.jit(lambda p, f, t: build(p).classify(f, t[:, None]))(
        params, features, jnp.asarray(texts))


def _masked(model: _Model, params, outputs, stored) -> list[Check]:
    """Masks in the pooling head, by both thresholds, and in the limit of a binary mask."""
    c, (height, width) = model.config.image, model.image.shape[1:3]

    def on_canvas(masks):  # [B, N, tokens] -> [B, N, L]
        laid = np.zeros((*masks.shape[:2], height * width // c.patch_size**2), np.float32)
        for b, (where, exists) in enumerate(zip(model.cells, model.is_patch)):
            laid[b][:, where[exists]] = masks[b][:, exists]
        return laid

    def embed(log_scale, masks, threshold):
        made = dataclasses.replace(c, mask_threshold=threshold)
        build, _ = parameters.abstract(lambda: made.make(rngs=parameters.Keys(0)))
        tower = params["image"] | {"mask_logit_scale": log_scale[None]}
        return build(tower)(model.image, model.sizes, masks).mask_embeddings

    run = jax.jit(embed, static_argnums=2)
    masks, log_scale = on_canvas(stored["masks"]), jnp.asarray(stored["s"])
    got = run(log_scale, masks, None)
    slope = jax.jit(jax.grad(lambda s: (embed(s, masks, None) * stored["cotangent"]).sum()))
    hard = run(jnp.full_like(log_scale, -30), on_canvas(stored["hard_mask"]), None)
    label = f"{model.name}/masked"
    return [
        close(f"{label}/emb", got, stored["emb"], **_WITHIN),
        close(f"{label}/emb_thresh0", run(log_scale, masks, 0.0), stored["emb_thresh0"], **_WITHIN),
        # The reference's binary mask without any patch gives a plain mean; ours the whole image.
        close(f"{label}/hard", hard[:, :-1], stored["emb_hard_big_vision"][:, :-1], **_WITHIN),
        close(f"{label}/empty", got[:, -1], outputs["img/head_input"], **_WITHIN),
        close(f"{label}/emb_normalized", similarity.unit(got), stored["emb_normalized"], **_UNIT),
        close(f"{label}/logits", _classify(model.config, params, got, outputs["ztxt"]),
              stored["logits"], **_WITHIN),
        close(f"{label}/grad_s", slope(log_scale), stored["grad_s"], **_WITHIN)]


def _resampled(arrays) -> list[Check]:
    """Tables of fixed-resolution models on other grids."""
    checks = []
    for pair in sorted({key.split("/")[0] for key in arrays}):
        side = int(pair.split("to")[1])
        # `new` of some pairs has zeros in its last row and column, by rounding.
        want = arrays[f"{pair}/clamped" if f"{pair}/clamped" in arrays else f"{pair}/new"]
        got = _lay(arrays[f"{pair}/old"][0], np.array([[side, side]]), (side, side),
                   positions.linear_matrix)
        checks.append(close(f"posemb_resample/{pair}", got, want, **_WITHIN))
    return checks


def _naflex_tables(arrays) -> list[Check]:
    checks = []
    for key in arrays:
        kind, size = key.split("/")
        if size != "table":
            grid, table = tuple(map(int, size.split("x"))), arrays[f"{kind}/table"]
            got = _lay(table.reshape(-1, table.shape[-1]), np.array([grid]), grid,
                       positions.antialiased_matrix)
            checks.append(close(f"naflex_posemb/{key}", np.reshape(got, arrays[key].shape),
                                arrays[key], **_WITHIN))
    return checks


@functools.partial(jax.jit, static_argnums=1)
def _squash(image, side: int):
    taps = [resample.bilinear_taps(side, Stage(jnp.int32(n), jnp.int32(side)))
            for n in image.shape[:2]]
    return jnp.floor(resample.resize_image(image, *taps))


@functools.partial(jax.jit, static_argnums=1)
def _shrink(image, size: tuple[int, int]):
    rows, columns = (positions.antialiased_matrix(n, jnp.int32(side), side)
                     for n, side in zip(image.shape[:2], size))
    return jnp.einsum("yh,hwc,xw->yxc", rows, image, columns, precision="highest")


def _preprocessed(arrays) -> list[Check]:
    """Squashing to a square; NaFlex's sizes, antialiased resize and patches."""
    checks = []
    for key in arrays:
        name, _, step = key.partition("/")
        if step.startswith("resize") and not step.endswith("_range"):
            image, want = arrays[name], arrays[key]
            side = want.shape[0]
            checks.append(close(f"preprocess/{key}", _squash(image, side), want, **_PIXEL))
            half = siglip.SigLIPConfig.pixel_mean
            scaled = jax.jit(layers.normalize, static_argnums=(2, 3))(
                want[None], np.array([[side, side]]), half, half)
            checks.append(close(f"preprocess/{key}_range", scaled[0], arrays[f"{key}_range"],
                                **_WITHIN))
        elif step.startswith("naflex") and step.endswith("patches"):
            image, want = arrays[name].astype(np.float32) / 127.5 - 1, arrays[key]
            patch = math.isqrt(want.shape[1] // 3)
            height, width = map(int, inference.naflex_sizes(
                np.array([image.shape[:2]]), patch, len(want))[0])
            laid = np.asarray(_shrink(image, (height, width)))
            laid = laid.reshape(height // patch, patch, width // patch, patch, 3).swapaxes(1, 2)
            laid = laid.reshape(-1, want.shape[1])
            is_patch = arrays[key.replace("patches", "type")] == 1
            checks += [close(f"preprocess/{key}", laid, want[is_patch], **_WITHIN)]
    sizes = arrays["target_sizes"]
    got = [inference.naflex_sizes(row[None, :2], *map(int, row[2:4]))[0] for row in sizes]
    return [*checks, equal("preprocess/target_sizes", got, sizes[:, 4:])]


def tokenizers(case: Case) -> list[Check]:
    """The tokenizers of SigLIP and SigLIP 2, and the two ways of writing a text."""
    spec, checks = case.spec, []
    for name, kind, padding in (("t5like", "siglip", 1), ("gemmalike", "siglip2", 0)):
        for key, want in spec.get(name, {}).items():
            if key.startswith(kind):
                tokenizer = SentencePieceTokenizer(
                    str(case.file.with_name(f"{name}.model")), len(want[0]), padding)
                checks.append(equal(f"{name}/{key}", tokenizer(spec["texts"]), want))
    return [*checks, equal("lowered", list(map(lower_ascii, spec["texts"])), spec["lowered"]),
            equal("canonicalized", list(map(canonicalize, spec["texts"])), spec["canonicalized"])]


def published_shapes(case: Case) -> list[Check]:
    """Names and shapes of the published files, which stack their blocks; counts of parameters."""
    checks, entries = [], {entry.training: entry for entry in published.MODELS}
    for file, spec in case.spec.items():
        model = entries[file.split("/")[-1]].model
        _, shapes = parameters.abstract(
            lambda: maskclippp.MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))
        wanted = {path: x.shape for path, x in parameters.flatten(shapes).items()
                  if not path.startswith(weights.ABSENT)}
        source = ShapesOnly({name.removeprefix("params/"): shape
                             for name, shape in spec["shapes"].items()})
        found = rules.shapes_for(Unstacked(source).shapes, big_vision.clip_rules(model))
        count = lambda part: sum(int(np.prod(x)) for path, x in wanted.items()
                                 if path.startswith(part))
        checks += [equal(f"{file}/params", [count("image/"), count("text/")],
                         [spec["params_image"], spec["params_text"]]),
                   equal(f"{file}/shapes", found == wanted, True)]
    return checks
