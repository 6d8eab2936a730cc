"""Cases of FC-CLIP, MAFT+ and Mask2Former: trunks, heads, from a photograph to masks, files."""

import dataclasses
import functools
import json
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.data import mask_chain
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.generators.fcclip import FCCLIP, FCCLIPConfig
from maskclippp_jax.generators.mask2former import PIXEL_MEAN, PIXEL_STD, Mask2FormerConfig
from maskclippp_jax.generators.swin import Swin, SwinConfig
from maskclippp_jax.models import layers, resample
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.maskclippp import MaskCLIPpp, MaskCLIPppConfig
from maskclippp_jax.naming import inference
from maskclippp_jax.parity.case import Absent, Case, Check, channels_last, cosine, equal
from maskclippp_jax.parity.mask_decoders import best_names, compare, load_part_of, maps_of
from maskclippp_jax.weights import fcclip, files, mask2former, mask_decoders, open_clip, rules

# Least cosine of the maps of a trunk in bfloat16 with those of the reference, a row a cell.
_COSINE = 0.99


class _Family(typing.NamedTuple):
    """What the generators differ in."""

    files: types.ModuleType
    endings: tuple[str, ...]  # of files with the same weights
    maps: tuple[str, ...]     # how cases call the trunk's maps, finest first
    mean: tuple
    std: tuple


_FCCLIP = _Family(fcclip, (".safetensors", ".pth"),
                  ("stage1_f", "stage2_f", "stage3_f", "stage4_f"),
                  layers.PIXEL_MEAN, layers.PIXEL_STD)
_MASK2FORMER = _Family(mask2former, (".safetensors", ".pkl"),
                       ("res2_f", "res3_f", "res4_f", "res5_f"), PIXEL_MEAN, PIXEL_STD)


def _family(case: Case) -> _Family:
    return _MASK2FORMER if any(name.startswith("res2_f") for name in case.arrays) else _FCCLIP


def head(case: Case) -> list[Check]:
    """From a trunk's maps to masks and classes, from every file with the same weights."""
    sizes, family = case.spec["config"], _family(case)
    maps = maps_of(case, sizes["pixel_decoder"]["in_features"])
    weights = case.file.with_name(case.spec["weights"])
    paths = [weights.with_suffix(ending) for ending in family.endings]
    config, checks = _config(case, family, str(paths[0])), []
    build, shapes = family.files.abstract(config)
    run = jax.jit(lambda p: build(p).predict(maps))
    for path in (p for p in paths if p.is_file()):
        checks.append(equal(f"{path.name}: sizes", _config(case, family, str(path)) == config,
                            True))
        params = mask_decoders.load_head(files.read(str(path)), family.files.HEAD_RULES, shapes,
                                         str(path))
        params["image"] = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes["image"])
        found = run(params)
        masks = jax.nn.sigmoid(found.mask_logits)
        some = [compare(case, "pred_masks", masks),
                compare(case, "pred_logits", _class_logits(case, build(params), found))]
        for i, (size, final) in enumerate(zip(sizes["image_sizes"], sizes["final_sizes"])):
            some += _enlarged(case, i, masks[i], sizes["padded_size"], size, final)
        checks += [dataclasses.replace(c, name=f"{path.name}: {c.name}") for c in some]
    return checks


def whole(case: Case) -> list[Check]:
    """From a photograph to masks at its size; in float32 also two photographs on one canvas.

    In reduced precision only the trunk's maps are compared: masks near 0 tip over.
    """
    encoder, path = case.spec["config"]["encoder"], str(case.file.with_name(case.spec["weights"]))
    family = _family(case)
    config = dataclasses.replace(_config(case, family, path), short_side=encoder.get("short_side"))
    multiple, checks = encoder["size_divisibility"], [
        equal("pixel_mean", family.mean, encoder["pixel_mean"]),
        equal("pixel_std", family.std, encoder["pixel_std"]),
        equal("size_divisibility", config.patch_size, encoder["size_divisibility"]),
        *_trunk_sizes(config.image, encoder)]
    for i, step in enumerate(case.spec["config"].get("short_side_sizes", ())):
        resized = _resized(step["image"], FCCLIPConfig.short_side)
        checks += [equal(f"resized {i}", resized, step["resized"]),
                   equal(f"padded {i}", -(-resized // multiple) * multiple, step["padded"])]
    build, _ = family.files.abstract(config, dtype=case.dtype)
    params = family.files.load(files.read(path), config, path)
    inputs, sizes = [], []
    for i, final in enumerate(case.spec["config"]["final_sizes"]):
        image = np.moveaxis(case.arrays[f"image_{i}"], 0, -1)
        resized = _resized(image.shape[:2], config.short_side)
        padded = -(-resized // multiple) * multiple
        pixels = inference.to_network_size(jnp.asarray(image), np.array(image.shape[:2]), resized,
                                           tuple(padded.tolist()))
        maps, found = _run(build, params, pixels[None], resized[None])
        checks += [compare(case, f"input_{i}", _normalized(family, pixels[None], resized[None])),
                   *(_compare_map(case, f"{name}_{i}", got)
                     for name, got in zip(family.maps, maps, strict=True))]
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
    return [*checks, compare(case, "batch_input", _normalized(family, batch, np.stack(sizes))),
            compare(case, "batch_mask_probs", jax.nn.sigmoid(found.mask_logits)),
            compare(case, "batch_logits", _class_logits(case, build(params), found))]


def swin(case: Case) -> list[Check]:
    """The maps of a Swin, of pixels of any size."""
    sizes, path = case.spec["config"], str(case.file.with_name(case.spec["weights"]))
    source, prefix = files.read(path), sizes["prefix"]
    table = mask2former.swin_rules(prefix)
    config = mask2former.swin_of(source.shapes, path, table)
    mask2former.check_distances(source, config.window, path)
    build, shapes = parameters.abstract(lambda: Swin(config, dtype=case.dtype,
                                                     rngs=parameters.Keys(0)))
    params = load_part_of(source, table, shapes, "image")
    checks, run = _trunk_sizes(config, sizes), jax.jit(lambda p, x: build(p)(x))
    for name in (k for k in case.arrays if k.startswith("x_")):
        for n, got in enumerate(run(params, channels_last(case.arrays[name])), start=2):
            checks.append(_compare_map(case, f"res{n}_{name[2:]}", got))
    return checks


def _trunk_sizes(config: ConvNeXtConfig | SwinConfig, stated: dict) -> list[Check]:
    if isinstance(config, ConvNeXtConfig):
        got = dict(dims=config.widths, depths=config.depths, layer_norm_eps=config.norm_epsilon)
    else:
        got = dict(embed_dim=config.width, depths=config.depths, num_heads=config.num_heads,
                   window_size=config.window)
    return [equal(name, value, stated[name]) for name, value in got.items()]


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

_PUBLISHED_MASK2FORMER = {
    "maskformer2_swin_tiny_bs16_50ep_final_9fd0ae": Mask2FormerConfig.coco_panoptic_tiny,
    "maskformer2_swin_large_IN21k_384_bs16_100ep_final_f07440":
        Mask2FormerConfig.coco_panoptic_large,
}


def published_keys(case: Case) -> list[Check | Absent]:
    """Names, shapes and numbers of parameters of the published files."""
    checks = []
    for name in case.spec["models"]:
        file = case.file.with_name(case.spec["folder"]) / f"{name}.json"
        if name not in _PUBLISHED and name not in _PUBLISHED_MASK2FORMER:
            checks.append(Absent(name))
            continue
        facts = json.loads(file.read_text())
        theirs = {k: tuple(shape) for k, shape in facts["used_by_reference"].items()}
        found = _published(theirs, facts["counts"], *_PUBLISHED[name]) if name in _PUBLISHED else (
            _published_mask2former(theirs, facts, _PUBLISHED_MASK2FORMER[name]()))
        checks += [dataclasses.replace(c, name=f"{name}: {c.name}") for c in found]
    return checks


def _published_mask2former(theirs: dict[str, tuple], facts: dict, config: Mask2FormerConfig
                           ) -> list[Check]:
    _, shapes = mask2former.abstract(config)
    parts = {part: parameters.count(tree) for part, tree in shapes.items()}
    got = dict(swin=parts["image"], pixel_decoder=parts["pixel_decoder"],
               predictor=parts["decoder"] + parts["class_head"])
    table = (*mask2former.HEAD_RULES, *mask2former.swin_rules())
    rest = [k for k in theirs if not rules.paths_for(k, table)]
    found = dataclasses.replace(mask2former.config_of(theirs, "the file"),
                                short_side=config.short_side)  # which no file tells
    return [
        equal("numbers of parameters", [got[part] for part in facts["counts"]],
              list(facts["counts"].values())),
        equal("sizes", found == config, True), *_trunk_sizes(config.image, facts["swin"]),
        equal("shapes", rules.shapes_for(theirs, table) == _shapes(shapes), True),
        equal("names left out", [k for k in rest if "relative_position_index" not in k], [])]


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


def _normalized(family: _Family, pixels, sizes):
    return jnp.moveaxis(layers.normalize(pixels, jnp.asarray(sizes), family.mean, family.std), -1,
                        1)


def _run(build, params, pixels, sizes):
    """The trunk's maps and the predictions."""

    @jax.jit
    def run(params):
        model = build(params)
        maps = model.maps(pixels, jnp.asarray(sizes))
        return maps, model.predict(maps)

    return run(params)


def _compare_map(case: Case, name: str, got) -> Check:
    """A map [B, h, w, D] with a stored one."""
    if case.dtype == jnp.float32:
        return compare(case, name, jnp.moveaxis(got, -1, 1))
    return cosine(name, np.asarray(got, np.float32), np.asarray(channels_last(case.arrays[name])),
                  _COSINE)


def _class_logits(case: Case, model, found) -> np.ndarray:
    """[B, Q, C + 1]."""
    if not isinstance(model, FCCLIP):
        return found.class_logits
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


def _config(case: Case, family: _Family, path: str):
    """The sizes that the file tells, with the heads that the case states."""
    sizes, shapes = case.spec["config"], dict(files.read(path).shapes)
    if "head" in sizes:
        return family.files.config_of(shapes, path, num_heads=sizes["head"]["nheads"])
    # Heads without a trunk: make one of single blocks up.
    channels = sizes["pixel_decoder"]["channels"]
    for i, n in enumerate(channels):
        shapes |= {f"{fcclip.CLIP}visual.trunk.stages.{i}.blocks.0.gamma": (n,),
                   f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table": (9, 1)}
    shapes["backbone.patch_embed.proj.weight"] = (channels[0], 3, 4, 4)
    config = family.files.config_of(shapes, path, num_heads=sizes["pixel_decoder"]["nheads"])
    return dataclasses.replace(config, decoder=dataclasses.replace(
        config.decoder, num_heads=sizes["transformer_decoder"]["nheads"]))
