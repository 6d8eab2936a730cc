"""Cases of EoMT's network: trunk, heads, masked attention, every layout of its files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.data import generator_input, mask_chain
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.generators import eomt as network_file
from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.models import resample
from maskclippp_jax.parity.case import Case, Check, channels_last, close, cosine, equal, miss
from maskclippp_jax.weights import eomt, rules

# Least cosine of predictions in bfloat16 with those of the reference, a row for each query. Random
# networks of 24 to 40 channels lose up to 0.004 (measured).
_COSINE = 0.99


def network(case: Case) -> list[Check]:
    """The whole network with masked attention off and on, and what blocks with queries see."""
    image = _image_of(case)
    build, params = _load(case, str(case.file.with_name(case.spec["weights"])))
    first = case.spec["config"]["depth"] - case.spec["config"]["blocks_with_queries"]
    checks = []
    for name, shares in case.spec["config"]["attn_mask_probs"].items():
        attention = _attention(shares, stays=case.spec["config"]["code"] == "transformers")
        if case.dtype != jnp.float32 and "cut" in attention:
            continue  # masks near 0 tip over
        checks += _compare_predictions(
            case, f"{name}_", jax.jit(lambda p: build(p)(image, attention))(params))
        if f"{name}_block{first}_mask_logits" not in case.arrays:
            continue
        passed = jax.jit(lambda p: _block_by_block(build(p), image, attention))(params)
        for i, (predictions, allowed) in enumerate(passed, start=first):
            checks += [compare(case, f"{name}_block{i}_{what}", got) for what, got in (
                *predictions._asdict().items(), ("allowed", allowed))
                if f"{name}_block{i}_{what}" in case.arrays]
    return checks


def _attention(shares: list, *, stays: bool) -> tuple[network_file.QueryAttention, ...]:
    """What blocks do, from the share of queries that keep their mask.

    Args:
      shares: of each block with queries; a share that is neither 0 nor 1 is random there.
      stays: whether a mask stays in force in later blocks without one of their own, as in
        transformers.
    """
    if not set(shares) <= {0, 1}:
        raise ValueError(f"attn_mask_probs are {shares}; only 0 and 1 are not random")
    return tuple("cut" if share else "keep" if stays and 1 in shares[:i] else "open"
                 for i, share in enumerate(shares))


def _block_by_block(model: network_file.EoMT, image, attention):
    """The predictions before every block with queries, and what a query may see in it."""
    blocks, count = list(model.blocks), model.config.query_blocks
    tokens = model.embed(image)
    for block in blocks[:-count]:
        tokens = block(tokens)
    tokens, passed = model.with_queries(tokens), []
    for block, kind in zip(blocks[-count:], attention):
        allowed = model.allowed(tokens)
        passed.append((model.predict(tokens), allowed))
        tokens = block(tokens, allowed if kind == "cut" else None)
    return passed


def layouts(case: Case) -> list[Check]:
    """The same weights under everyone's names: read without torch, and their sizes found."""
    image, checks = _image_of(case), []
    for file in case.spec["files"]:
        path = str(case.file.with_name(file))
        found = eomt.config_of(eomt.open_file(path), path,
                               num_heads=case.spec["config"]["heads"])
        checks.append(equal(f"{file}: sizes", found == _config(case), True))
        build, params = _load(case, path)
        predictions = jax.jit(lambda p, build=build: build(p)(image))(params)
        checks += [dataclasses.replace(c, name=f"{file}: {c.name}")
                   for c in _compare_predictions(case, "", predictions)]
    return checks


def trunk(case: Case) -> list[Check]:
    """Tokens before the blocks, and after each one without queries."""
    build, params = _load(case, str(case.file.with_name(case.spec["weights"])))

    @jax.jit
    def run(params):
        model = build(params)
        tokens = [model.embed(_image_of(case))]
        for block in list(model.blocks)[:-model.config.query_blocks]:
            tokens.append(block(tokens[-1]))
        return tokens

    first, *others = run(params)
    return [compare(case, "embeddings", first),
            *(compare(case, f"tokens_after_block{i}", x) for i, x in enumerate(others))]


def heads(case: Case) -> list[Check]:
    """Upscaling of features on any grid, and predictions of tokens as they leave the last block."""
    build, params = _load(case, str(case.file.with_name(case.spec["weights"])))
    checks = []
    for name in (k for k in case.arrays if k.startswith("features_")):
        features = channels_last(case.arrays[name])
        got = jax.jit(lambda p: build(p).upscaled(features))(params)
        checks.append(compare(case, name.replace("features", "upscaled"), jnp.moveaxis(got, -1, 1)))
    for name in ("tokens", "small_tokens"):
        tokens = jnp.asarray(case.arrays[name])

        def run(p):
            model = build(p)
            queries = model.norm(tokens)[:, :model.config.num_queries]
            return model.predict(tokens), model.mask_embeddings(queries)

        predictions, embeddings = jax.jit(run)(params)
        checks += [*_compare_predictions(case, f"{name}_", predictions),
                   compare(case, f"{name}_mask_embeddings", embeddings)]
    return checks


def whole(case: Case) -> list[Check]:
    """From a photograph to masks at its size."""
    build, params = _load(case, str(case.file.with_name(case.spec["weights"])))
    run, checks = jax.jit(lambda p, image: build(p)(image)), []
    for i, picture in enumerate(case.spec["config"]["pictures"]):
        image = np.moveaxis(case.arrays[f"image_{i}"], 0, -1)
        padded = case.spec["config"]["image_size"]
        resized = generator_input.letterbox_size(image.shape[:2], padded[0])
        found = run(params, generator_input.letterbox(image, padded[0])[None])
        masks, classes = (np.asarray(x[0]) for x in found)
        checks += [equal(f"resized_{i}", list(resized), picture["resized"]),
                   compare(case, f"mask_logits_{i}", masks),
                   compare(case, f"class_logits_{i}", classes)]
        name = f"final_mask_logits_{i}"
        some = masks[:len(case.arrays[name])]
        checks.append(compare(
            case, name, enlarge(some, resized, image.shape[:2], tuple(padded))))
    return checks


def position_table(case: Case) -> list[Check]:
    """Position tables brought to another grid."""
    return [compare(case, f"resized_{i}", network_file.resize_position_table(
                case.arrays[f"table_{i}"], tuple(sizes["old"]), tuple(sizes["new"])))
            for i, sizes in enumerate(case.spec["config"]["cases"])]


def published_keys(case: Case) -> list[Check]:
    """Sizes of the published models, and the names and shapes of their files in every layout."""
    checks = []
    for name, facts in case.spec["models"].items():
        config = getattr(EoMTConfig, name.replace("_eomt_", "_"))()
        wanted = dict(
            image_size=tuple(facts["image_size"]), patch_size=facts["patch_size"],
            width=facts["width"], depth=facts["depth"], num_heads=facts["heads"],
            num_queries=facts["queries"], query_blocks=facts["blocks_with_queries"],
            num_registers=facts["register_tokens"], num_classes=facts["classes"],
            upscale_blocks=facts["upscale_blocks"], swiglu=facts["mlp"] == "swiglu",
            mlp_width=facts["mlp_hidden"], norm_epsilon=facts["layer_norm_epsilon"])
        _, shapes = eomt.abstract(config)
        ours = {path: tuple(leaf.shape) for path, leaf in parameters.flatten(shapes).items()}
        checks += [equal(f"{name}: sizes", {k: getattr(config, k) for k in wanted} == wanted, True),
                   equal(f"{name}: parameters", parameters.count(shapes), facts["parameters"])]
        file = case.file.with_name(case.spec["folder"]) / f"{name}.json"
        for layout, theirs in _layouts_of(json.loads(file.read_text())["layouts"]):
            table = eomt.rules_of(theirs, layout)
            known = {n for n in theirs if rules.paths_for(n, table)}
            found = rules.shapes_for(theirs, table)
            checks += [
                equal(f"{name}, {layout}: shapes", found == ours, True),
                equal(f"{name}, {layout}: left out",
                      sorted(set(theirs) - known - set(case.spec["ignored"])), []),
                equal(f"{name}, {layout}: found by its shapes",
                      eomt.config_of(_Shapes(theirs), layout) == config, True)]
    return checks


class _Shapes:
    """A file of which only the names and shapes are known."""

    def __init__(self, shapes):
        self.shapes = shapes


def _layouts_of(stored: dict):
    """Names and shapes of every layout; that of 2025 is stored as its difference."""
    layouts = {k: {name: tuple(shape) for name, shape in v.items()} for k, v in stored.items()}
    for name, theirs in layouts.items():
        if name.startswith("hub_2025"):
            newer = layouts["transformers_5.24"]
            theirs = {n: s for n, s in newer.items() if ".mlp." not in n} | theirs
        yield name, theirs


# ---- Shared with `eomt_pictures` ----------------------------------------------------------------


def compare(case: Case, name: str, got) -> Check:
    """Compares with a stored array, by the tolerance that is stated beside it."""
    tolerance, want = case.spec["arrays"][name]["tolerance"], case.arrays[name]
    if not isinstance(tolerance, dict):
        return equal(name, got, want)
    if case.dtype == jnp.float32:
        return close(name, got, want, **tolerance)
    if np.shape(got) != want.shape:
        return miss(f"{name} (shape {np.shape(got)}, not {want.shape})")
    rows = (int(np.prod(want.shape[:-2])), -1) if "mask_logits" in name else (-1, want.shape[-1])
    return cosine(name, np.asarray(got, np.float32).reshape(rows), want.reshape(rows), _COSINE)


def enlarge(mask_logits: np.ndarray, resized: tuple[int, int], size: tuple[int, int],
            padded: tuple[int, int], *, crop: bool = True) -> np.ndarray:
    """Logits of masks of a padded input at the size of the picture: [n, h, w] -> [n, *size].

    Args:
      mask_logits: of the padded input.
      resized: size of the picture in it.
      size: of the picture.
      padded: size of the input.
      crop: whether padding is cut off before the second resize.
    """
    kept = np.array(resized if crop else padded, np.int32)
    sizes = MaskSizes(np.array(mask_logits.shape[1:], np.int32), np.array(padded, np.int32), kept)
    rows, columns = mask_chain.mask_taps(sizes, np.array(size, np.int32), tuple(size))
    return np.asarray(resample.resize_masks(jnp.asarray(mask_logits), rows, columns))


def _compare_predictions(case: Case, prefix: str, predictions: network_file.Predictions
                         ) -> list[Check]:
    return [compare(case, f"{prefix}mask_logits", predictions.mask_logits),
            compare(case, f"{prefix}class_logits", predictions.class_logits)]


def _config(case: Case) -> EoMTConfig:
    c = case.spec["config"]
    return EoMTConfig(
        tuple(c["image_size"]), width=c["width"], depth=c["depth"], num_heads=c["heads"],
        mlp_width=c["mlp_hidden"], num_classes=c["classes"], num_queries=c["queries"],
        query_blocks=c["blocks_with_queries"], swiglu=c["mlp"] == "swiglu",
        patch_size=c["patch_size"], num_registers=c["register_tokens"],
        upscale_blocks=c["upscale_blocks"], norm_epsilon=c["layer_norm_epsilon"])


def _image_of(case: Case) -> jnp.ndarray:
    """The pictures of a case, [B, H, W, 3]."""
    return channels_last(case.arrays["pixels" if "pixels" in case.arrays else "pixel_values"])


def _load(case: Case, path: str):
    """The model of a case, by the ordinary reader: `build` and its parameters."""
    config = _config(case)
    if "pixel_values" in case.arrays:  # normalised already
        config = dataclasses.replace(config, pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
    build, shapes = eomt.abstract(config, dtype=case.dtype)
    return build, eomt.load(eomt.open_file(path), shapes, path)
