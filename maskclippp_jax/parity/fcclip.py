"""Cases of FC-CLIP and MAFT+: heads, the way from a photograph to masks, names in files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.data import mask_chain
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.generators.fcclip import FCCLIP, FCCLIPConfig, Predictions
from maskclippp_jax.models import layers, resample
from maskclippp_jax.models.maskclippp import MaskCLIPpp, MaskCLIPppConfig
from maskclippp_jax.naming import inference
from maskclippp_jax.parity.case import Absent, Case, Check, channels_last, cosine, equal
from maskclippp_jax.parity.eomt import compare
from maskclippp_jax.parity.mask_decoders import best_names, maps_of
from maskclippp_jax.weights import fcclip, open_clip, rules

# Least cosine of the maps of a trunk in bfloat16 with those of the reference, a row a cell.
_COSINE = 0.99


def head(case: Case) -> list[Check]:
    """From a trunk's maps to masks and classes, from every file with the same weights."""
    sizes = case.spec["config"]
    maps = maps_of(case, sizes["pixel_decoder"]["in_features"])
    files = [case.file.with_name(case.spec["weights"]), case.file.with_suffix(".pth")]
    config, checks = _config(case, str(files[0])), []
    build, shapes = fcclip.abstract(config)
    run = jax.jit(lambda p: build(p).predict(maps))
    for file in (f for f in files if f.is_file()):
        checks.append(equal(f"{file.name}: sizes", _config(case, str(file)) == config, True))
        params = fcclip.load_head(fcclip.open_file(str(file)), shapes, str(file))
        params["image"] = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes["image"])
        found = run(params)
        masks = jax.nn.sigmoid(found.mask_logits)
        some = [compare(case, "pred_masks", masks),
                compare(case, "pred_logits", _class_logits(case, build(params), found))]
        for i, (size, final) in enumerate(zip(sizes["image_sizes"], sizes["final_sizes"])):
            some += _enlarged(case, i, masks[i], sizes["padded_size"], size, final)
        checks += [dataclasses.replace(c, name=f"{file.name}: {c.name}") for c in some]
    return checks


def whole(case: Case) -> list[Check]:
    """From a photograph to masks at its size; in float32 also two photographs on one canvas.

    In reduced precision only the trunk's maps are compared: masks near 0 tip over.
    """
    encoder, path = case.spec["config"]["encoder"], str(case.file.with_name(case.spec["weights"]))
    config = dataclasses.replace(_config(case, path), short_side=encoder["short_side"])
    multiple, checks = encoder["size_divisibility"], [
        equal("pixel_mean", layers.PIXEL_MEAN, encoder["pixel_mean"]),
        equal("pixel_std", layers.PIXEL_STD, encoder["pixel_std"]),
        equal("layer_norm_eps", config.image.norm_epsilon, encoder["layer_norm_eps"]),
        equal("dims", config.image.widths, encoder["dims"]),
        equal("depths", config.image.depths, encoder["depths"])]
    for i, step in enumerate(case.spec["config"].get("short_side_sizes", ())):
        resized = _resized(step["image"], FCCLIPConfig.short_side)
        checks += [equal(f"resized {i}", resized, step["resized"]),
                   equal(f"padded {i}", -(-resized // multiple) * multiple, step["padded"])]
    build, _ = fcclip.abstract(config, dtype=case.dtype)
    params = fcclip.load(fcclip.open_file(path), config, path)
    images = [np.moveaxis(case.arrays[f"image_{i}"], 0, -1)
              for i in range(len(case.spec["config"]["final_sizes"]))]
    inputs, sizes = [], []
    for i, (image, final) in enumerate(zip(images, case.spec["config"]["final_sizes"])):
        resized = _resized(image.shape[:2], config.short_side)
        padded = -(-resized // multiple) * multiple
        pixels = inference.to_network_size(jnp.asarray(image), np.array(image.shape[:2]), resized,
                                           tuple(padded.tolist()))
        checks.append(compare(case, f"input_{i}", _normalized(pixels[None], resized[None])))
        maps, found = _run(build, params, pixels[None], resized[None])
        for stage, got in enumerate(maps, start=1):
            checks.append(_compare_map(case, f"stage{stage}_f_{i}", got))
        inputs.append(pixels)
        sizes.append(resized)
        if case.dtype == jnp.float32:
            masks = jax.nn.sigmoid(found.mask_logits)
            checks += [compare(case, f"mask_probs_{i}", masks),
                       compare(case, f"logits_{i}", _class_logits(case, build(params), found)),
                       *_enlarged(case, i, masks[0], padded, resized, final)]
    if case.dtype != jnp.float32 or "batch_input" not in case.arrays:
        return checks
    canvas = np.max([x.shape[:2] for x in inputs], 0)
    batch = jnp.stack([jnp.pad(x, [(0, canvas[0] - len(x)), (0, canvas[1] - x.shape[1]), (0, 0)])
                       for x in inputs])
    _, found = _run(build, params, batch, np.stack(sizes))
    return [*checks, compare(case, "batch_input", _normalized(batch, np.stack(sizes))),
            compare(case, "batch_mask_probs", jax.nn.sigmoid(found.mask_logits)),
            compare(case, "batch_logits", _class_logits(case, build(params), found))]


# The sizes of every published file, and the CLIP in it or beside it.
_PUBLISHED = {
    "fcclip_coco-pan_clip-convnext-base": (FCCLIPConfig.fcclip_base,
                                           MaskCLIPppConfig.convnext_base_w_320),
    "fcclip_coco-pan_clip-convnext-large": (FCCLIPConfig.fcclip_large,
                                            MaskCLIPppConfig.convnext_large_d_320),
    "maftp_b": (FCCLIPConfig.maftp_base, MaskCLIPppConfig.convnext_base_w_320),
    "maftp_l": (FCCLIPConfig.maftp_large, MaskCLIPppConfig.convnext_large_d_320),
    "maftp_l_pano": (FCCLIPConfig.maftp_large, MaskCLIPppConfig.convnext_large_d_320),
}


def published_keys(case: Case) -> list[Check | Absent]:
    """Names, shapes and numbers of parameters of the published files."""
    checks = []
    for name in case.spec["models"]:
        file = case.file.with_name(case.spec["folder"]) / f"{name}.json"
        if name not in _PUBLISHED:
            checks.append(Absent(name))
            continue
        facts = json.loads(file.read_text())
        theirs = {k: tuple(shape) for k, shape in facts["used_by_reference"].items()}
        checks += [dataclasses.replace(c, name=f"{name}: {c.name}")
                   for c in _published(theirs, facts["counts"], *_PUBLISHED[name])]
    return checks


def _published(theirs: dict[str, tuple], counts: dict[str, int], sizes, clip) -> list[Check]:
    """A file: of a generator alone (FC-CLIP) or with the CLIP it tuned (MAFT+)."""
    config = sizes()
    _, shapes = fcclip.abstract(config)
    parts = {part: parameters.count(tree) for part, tree in shapes.items()}
    got = dict(pixel_decoder=parts["pixel_decoder"], void=parts["void_embedding"],
               predictor=parts["decoder"] + parts["class_head"],
               visual_trunk_stem_stages=parts["image"])
    is_whole = any(name.startswith(fcclip.CLIP) for name in theirs)
    table = (*fcclip.HEAD_RULES, *fcclip.trunk_rules(fcclip.CLIP, config.image))
    ours = shapes if is_whole else {k: x for k, x in shapes.items() if k != "image"}
    checks = [equal("numbers of parameters", [got[part] for part in counts], list(counts.values())),
              equal("sizes", fcclip.config_of(theirs, "the file") == config, True),
              equal("shapes", rules.shapes_for(theirs, table) == _shapes(ours), True)]
    rest = {k: shape for k, shape in theirs.items() if not rules.paths_for(k, table)}
    if not is_whole:
        return [*checks, equal("names left out", sorted(rest), [])]
    whole = dataclasses.replace(clip(1), similarity=None)
    _, shapes = parameters.abstract(lambda: MaskCLIPpp(whole, rngs=parameters.Keys(0)))
    image = open_clip.convnext_rules(f"{fcclip.CLIP}visual.", whole.image)
    table = open_clip.clip_rules(image, fcclip.CLIP)
    return [*checks,
            equal("shapes of its CLIP", rules.shapes_for(theirs, table) == _shapes(shapes), True),
            equal("names left out", sorted(k for k in rest if not rules.paths_for(k, table)), [])]


def _shapes(tree) -> dict[str, tuple]:
    return {path: tuple(leaf.shape) for path, leaf in parameters.flatten(tree).items()}


def _resized(size, short_side: int) -> np.ndarray:
    return inference.shorter_side_to(np.array([size], np.int64), short_side)[0]


def _normalized(pixels, sizes):
    return jnp.moveaxis(layers.normalize(pixels, jnp.asarray(sizes)), -1, 1)


def _run(build, params, pixels, sizes) -> tuple[list[jax.Array], Predictions]:
    """The trunk's maps and the predictions."""

    @jax.jit
    def run(params):
        model: FCCLIP = build(params)
        maps = model.maps(pixels, jnp.asarray(sizes))
        return maps, model.predict(maps)

    return run(params)


def _compare_map(case: Case, name: str, got) -> Check:
    """A map [B, h, w, D] with a stored one."""
    if case.dtype == jnp.float32:
        return compare(case, name, jnp.moveaxis(got, -1, 1))
    return cosine(name, np.asarray(got, np.float32), np.asarray(channels_last(case.arrays[name])),
                  _COSINE)


def _class_logits(case: Case, model: FCCLIP, found: Predictions) -> np.ndarray:
    """[B, Q, C + 1]."""
    names = model.name_logits(found.class_embeddings, jnp.asarray(case.arrays["test_t_embs_f"]))
    return best_names(names, case.arrays["num_synonyms"])


def _enlarged(case: Case, i: int, masks, padded, size, final) -> list[Check]:
    """Masks [N, h, w] in [0, 1] at the size of the resized picture, and at that of the results."""
    sizes = MaskSizes(*(np.array(n, np.int32) for n in (masks.shape[1:], padded, size)))
    return [compare(case, f"{name}_{i}", _resize(masks, sizes, tuple(map(int, target))))
            for name, target in (("unpadded_masks", size), ("final_masks", final))]


@functools.partial(jax.jit, static_argnames="target")
def _resize(masks, sizes: MaskSizes, target: tuple[int, int]):
    return resample.resize_masks(masks, *mask_chain.mask_taps(sizes, target, target))


def _config(case: Case, path: str) -> FCCLIPConfig:
    """The sizes that the file tells, with the heads that the case states."""
    sizes = case.spec["config"]
    heads = sizes.get("head", sizes.get("pixel_decoder"))["nheads"]
    shapes = dict(fcclip.open_file(path).shapes)
    if "head" not in sizes:  # heads without a trunk: make one of single blocks up
        shapes |= {f"{fcclip.CLIP}visual.trunk.stages.{i}.blocks.0.gamma": (n,)
                   for i, n in enumerate(sizes["pixel_decoder"]["channels"])}
    return fcclip.config_of(shapes, path, num_heads=heads)
