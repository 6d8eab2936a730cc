"""Cases of what FC-CLIP and Mask2Former have in common: positions, pixel decoder, mask decoder."""

import re
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.generators import pixel_decoder as network_file
from maskclippp_jax.generators.fcclip import ClassHead
from maskclippp_jax.generators.mask_decoder import MaskDecoder, MaskDecoderConfig
from maskclippp_jax.generators.pixel_decoder import (
    DeformableAttention,
    PixelDecoder,
    PixelDecoderConfig,
    PixelFeatures,
    sample,
)
from maskclippp_jax.models import layers
from maskclippp_jax.parity.case import Case, Check, channels_last, close
from maskclippp_jax.weights import fcclip, mask_decoders, rules


def position_encoding(case: Case) -> list[Check]:
    """Encodings of maps; of cells that are only counted, and with padding, by the same sines."""
    checks = []
    for facts in case.spec["config"]["cases"]:
        shape, width = (facts["height"], facts["width"]), facts["num_pos_feats"]
        if facts["normalize"] and "mask" not in facts:
            got = network_file.position_encoding(shape, 2 * width)[None]
        else:
            there = ~case.arrays[facts["mask"]] if "mask" in facts else np.ones((1, *shape), bool)
            got = jnp.concatenate([
                network_file.sines(_angles(there, axis, facts["normalize"]), width)
                for axis in (1, 2)], -1)
        checks.append(compare(case, facts["output"], jnp.moveaxis(got, -1, 1)))
    return checks


def _angles(there: np.ndarray, axis: int, normalize: bool) -> jnp.ndarray:
    count = there.cumsum(axis, np.float32)
    if normalize:
        count = count / (np.take(count, [-1], axis) + 1e-6) * (2 * np.pi)
    return jnp.asarray(count, jnp.float32)


def deformable_attention(case: Case) -> list[Check]:
    """The sums alone, and the layer around points and, with padding, around boxes.

    Boxes and padding are of the layer's other users; what they change is done here.
    """
    checks = []
    for facts in (f for f in case.spec["config"]["cases"] if f["kind"] == "core"):
        values, shapes, locations, weights = (case.arrays[f"core{facts['index']}_{name}"] for name
                                              in ("value", "spatial_shapes", "sampling_locations",
                                                  "attention_weights"))
        shapes = tuple(map(tuple, shapes.tolist()))
        got = jax.jit(lambda *x, shapes=shapes: sample(x[0], shapes, *x[1:]))(
            values, locations, weights)
        checks.append(compare(case, f"core{facts['index']}_output", layers.merge_heads(got)))
    sizes = case.spec["config"]["module"]
    build, found = parameters.abstract(lambda: DeformableAttention(
        sizes["d_model"], sizes["n_heads"], sizes["n_levels"], sizes["n_points"],
        rngs=parameters.Keys(0)))
    prefix = "pixel_decoder/layers/0/attention/"
    table = [r._replace(source=r.source.split("self_attn.")[1],
                        path=r.path.replace("{i}", "0").removeprefix(prefix))
             for r in mask_decoders.pixel_decoder_rules() if "self_attn" in r.source]
    params, _ = rules.load(case.weights, table, found)
    points, boxes, padding = (case.arrays[f"module_{name}"] for name in (
        "reference_points", "reference_boxes", "padding_mask"))
    shapes = tuple(map(tuple, case.arrays["module_spatial_shapes"].tolist()))

    @jax.jit
    def run(params):
        model = build(params)
        offsets, weights = model.where(case.arrays["module_query"])
        values = model.values(case.arrays["module_source"])
        attend = lambda values, locations: model.out(layers.merge_heads(sample(
            layers.split_heads(values, sizes["n_heads"]), shapes, locations, weights)))
        spread = lambda x: jnp.asarray(x)[:, :, None, :, None]
        near = spread(points) + offsets / network_file.cells(shapes)
        in_boxes = spread(boxes[..., :2]) + offsets / sizes["n_points"] * spread(
            boxes[..., 2:]) * 0.5
        return dict(locations_points=near, weights_points=weights,
                    output_points=attend(values, near), output_boxes_padded=attend(
                        jnp.where(padding[..., None], 0.0, values), in_boxes))

    return checks + [compare(case, f"module_{name}", got) for name, got in run(params).items()]


def pixel_decoder(case: Case) -> list[Check]:
    """From a trunk's maps to features of pixels."""
    sizes = case.spec["config"]
    config = pixel_decoder_config(sizes)
    build, params = load_part(case, lambda: PixelDecoder(config, rngs=parameters.Keys(0)),
                              "pixel_decoder", mask_decoders.pixel_decoder_rules(sizes["prefix"]))
    maps = maps_of(case, sizes["in_features"])
    features = jax.jit(lambda p: build(p)(maps))(params)
    levels = [jnp.moveaxis(level, -1, 1) for level in features.levels]
    return [compare(case, "mask_features", jnp.moveaxis(features.mask_features, -1, 1)),
            compare(case, "encoder_out", levels[0]),
            *(compare(case, f"multi_scale_{i}", level) for i, level in enumerate(levels))]


def transformer_decoder(case: Case) -> list[Check]:
    """From features of pixels to masks and classes, by names or closed."""
    sizes = case.spec["config"]
    features = PixelFeatures(
        channels_last(case.arrays["mask_features"]),
        maps_of(case, [f"multi_scale_{i}" for i in range(sizes["num_feature_levels"])]))
    is_open = sizes["family"] == "fcclip"
    prefix = sizes["prefix"]
    table = mask_decoders.mask_decoder_rules("query_feat" if is_open else "static_query", prefix)
    build, params = load_part(case, lambda: MaskDecoder(
        mask_decoder_config(sizes, case.weights), rngs=parameters.Keys(0)), "decoder", table)
    queries, masks = jax.jit(lambda p: build(p)(features))(params)
    checks = [compare(case, "pred_masks", masks)]
    if not is_open:
        kernel, bias = (case.weights[f"{prefix}class_embed.{name}"] for name in ("weight", "bias"))
        logits = jnp.einsum("bqc,kc->bqk", queries, kernel) + bias[None, None]
        return [*checks, compare(case, "pred_logits", logits)]
    build, params = load_part(case, lambda: ClassHead(
        sizes["hidden_dim"], sizes["mask_dim"], sizes["clip_embedding_dim"],
        rngs=parameters.Keys(0)), "class_head",
        [r for r in fcclip.HEAD_RULES if r.paths and r.paths[0].startswith("class_head/")])
    embed = jax.jit(lambda p: build(p)(queries, masks, features.mask_features))
    embeddings = embed(params)
    for name, changed in (("pred_logits", params),
                          ("pred_logits_scale5", params | {"logit_scale": jnp.asarray(5.0)})):
        if name in case.arrays:
            names = build(changed).compare(embeddings, jnp.asarray(case.arrays["all_embs"]))
            checks.append(compare(case, name, best_names(names, case.arrays["num_synonyms"])))
    return checks


# ---- Shared with `mask_generators` ------------------------------------------------------------


def compare(case: Case, name: str, got) -> Check:
    """Compares with a stored array what is float32 whatever the arithmetic of the trunk."""
    return close(name, got, case.arrays[name], **case.spec["arrays"][name]["tolerance"])


def pixel_decoder_config(sizes: dict) -> PixelDecoderConfig:
    """The sizes as a case states them."""
    return PixelDecoderConfig(
        tuple(sizes["channels"]), sizes["conv_dim"], sizes["mask_dim"], sizes["nheads"],
        sizes["enc_layers"], sizes["enc_dim_feedforward"], sizes["n_points"])


def mask_decoder_config(sizes: dict, weights: typing.Iterable[str]) -> MaskDecoderConfig:
    """The sizes as a case states them, and as many layers as the names of its weights."""
    depth = len([name for name in weights if re.search(r"ffn_layers\.\d+\.norm\.weight", name)])
    return MaskDecoderConfig(
        sizes["num_queries"], sizes["hidden_dim"], sizes["mask_dim"], sizes["nheads"], depth,
        sizes["dim_feedforward"], sizes["num_feature_levels"])


def best_names(name_logits: jax.Array, num_synonyms: np.ndarray) -> np.ndarray:
    """Logits [B, Q, S + 1] of names -> [B, Q, C + 1] of classes, the last as it is."""
    starts = np.concatenate([[0], np.cumsum(num_synonyms)])
    return np.maximum.reduceat(np.asarray(name_logits), starts, -1)


def maps_of(case: Case, names) -> list[jnp.ndarray]:
    """Stored maps [B, h, w, D], in this order."""
    return [channels_last(case.arrays[name]) for name in names]


def load_part(case: Case, make, name: str, table):
    """One part of a network from a case's weights: `build` and its parameters.

    Args:
      case: it.
      make: makes the module.
      name: beginning of its paths in the rules.
      table: the rules; what they do not know is of other parts.
    """
    build, shapes = parameters.abstract(make)
    return build, load_part_of(case.weights, table, shapes, name)


def load_part_of(weights: typing.Mapping[str, np.ndarray], table, shapes, name: str):
    """The parameters of one part, see `load_part`."""
    source = {k: weights[k] for k in weights if rules.paths_for(k, table)}
    return rules.load(source, table, {name: shapes})[0][name]
