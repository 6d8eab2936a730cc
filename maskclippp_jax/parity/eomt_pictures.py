"""Cases of what lies before and behind EoMT's network: pictures in, segments out.

What transformers does otherwise than the authors is written here, since nothing else uses it.
"""

import re
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax.data import generator_input
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.models import resample
from maskclippp_jax.models.resample import Stage
from maskclippp_jax.naming import closed_results
from maskclippp_jax.parity.case import Case, Check, equal
from maskclippp_jax.parity.eomt import compare, enlarge


def preprocess(case: Case) -> list[Check]:
    """Letterboxes, and the sizes of pictures in them."""
    config, side, checks = case.spec["config"], case.spec["config"]["side"], []
    for i, picture in enumerate(config["pictures"]):
        image = np.moveaxis(case.arrays[f"image_{i}"], 0, -1)
        got = generator_input.letterbox(image, side)
        checks += [_sizes(f"picture {i}", picture, side),
                   compare(case, f"letterbox_{i}", np.moveaxis(got, -1, 0))]
        theirs = None
        if f"transformers_{i}" in case.arrays:
            theirs = _resize_as_torch(image, tuple(picture["transformers_resized"]))
            theirs = np.pad(theirs, [(0, max(0, side - n)) for n in theirs.shape[:2]] + [(0, 0)])
            checks.append(compare(case, f"transformers_{i}", np.moveaxis(theirs, -1, 0)))
        for name, pixels in (("letterbox", got), ("transformers", theirs)):
            if f"{name}_{i}_normalised" in case.arrays:
                checks.append(compare(case, f"{name}_{i}_normalised", np.moveaxis(
                    (pixels / np.float32(255) - np.float32(config["mean"]))
                    / np.float32(config["std"]), -1, 0)))
    return checks + [_sizes(f"{s['image']} to {s['side']}", s, s["side"]) for s in config["sizes"]]


def _sizes(name: str, stored: dict, side: int) -> Check:
    size = stored["image"]
    got = [list(generator_input.letterbox_size(size, side)),
           list(_transformers_size(size, side, longest=side))]
    return equal(f"sizes of {name}", got, [stored["resized"], stored["transformers_resized"]])


def windows(case: Case) -> list[Check]:
    """Windows of pictures whose shorter side is the network's."""
    side, checks = case.spec["config"]["side"], []
    for i, picture in enumerate(case.spec["config"]["pictures"]):
        image = np.moveaxis(case.arrays[f"image_{i}"], 0, -1)
        got, size = generator_input.windows(image, side), picture["transformers_resized"]
        checks += [equal(f"sizes_{i}", [list(got.resized), list(_transformers_size(
                       image.shape[:2], side))], [picture["resized"], size]),
                   compare(case, f"windows_{i}", np.moveaxis(got.images, -1, 1)),
                   compare(case, f"origins_{i}", got.origins)]
        if f"transformers_{i}" in case.arrays:
            theirs = generator_input.windows(_resize_as_torch(image, tuple(size)), side)
            checks += [compare(case, f"transformers_{i}", np.moveaxis(theirs.images, -1, 1)),
                       compare(case, f"transformers_offsets_{i}", theirs.origins)]
    return checks


def postprocess(case: Case) -> list[Check]:
    """Segments and instances of letterboxed pictures, by the authors' rules and transformers'."""
    config, checks = case.spec["config"], []
    side, stuff = config["side"], config["stuff_classes"]
    is_thing = [c not in stuff for c in range(config["classes"])]
    for i, size in enumerate(config["sizes"]):
        size, padded = tuple(size), (side, side)
        logits, classes = (case.arrays[k][i] for k in ("mask_logits", "class_logits"))
        resized = generator_input.letterbox_size(size, side)
        stored = np.array(logits.shape[1:], np.int32)
        masks = closed_results.Masks(logits, classes, MaskSizes(
            stored, np.array(padded, np.int32), np.array(resized, np.int32)), size)
        name = f"enlarged_mask_logits_{i}"
        checks.append(compare(
            case, name, enlarge(logits[:len(case.arrays[name])], resized, size, padded)))

        ids, segments = closed_results.panoptic(masks, is_thing)
        table = np.array([config["classes"], *(s["category_id"] for s in segments)])
        checks.append(compare(case, f"authors_panoptic_{i}", np.stack([table[ids], ids - 1], -1)))
        found, query = closed_results.instances(masks, config["authors_top_k"])
        for key, got in (("query", query), ("labels", found.classes), ("scores", found.scores),
                         ("areas", found.masks.sum((1, 2)))):
            checks.append(compare(case, f"authors_instance_{i}_{key}", got))

        theirs = _transformers_size(size, side, longest=side)
        full = enlarge(logits, theirs, size, padded)
        for name, got in (
                (f"panoptic_{i}", _panoptic(full, classes, config, stuff)),
                (f"panoptic_unmerged_{i}", _panoptic(full, classes, config, ())),
                (f"instance_{i}", _instances(full, classes, config["instance_threshold"]))):
            checks += [compare(case, f"{name}{ending}", x)
                       for ending, x in zip(("", "_labels", "_scores"), got)]
        scores = _semantic_with_padding(logits, classes, padded, size)
        name = f"semantic_without_crop_{i}"
        checks += [compare(case, name, scores.argmax(0)),
                   compare(case, f"{name}_scores", _thin(scores, case))]
    return checks


def postprocess_windows(case: Case) -> list[Check]:
    """Label maps from windows."""
    config, origins, checks = case.spec["config"], case.arrays["origins"], []
    for i, size in enumerate(config["sizes"]):
        ours = origins[:, 0] == i
        scores = closed_results.semantic_scores(
            case.arrays["mask_logits"][ours], case.arrays["class_logits"][ours], origins[ours, 1:],
            generator_input.windows_size(size, config["side"]))
        rows, columns = (resample.bilinear_taps(n, Stage(m, n))
                         for n, m in zip(size, scores.shape[1:]))
        full = np.asarray(resample.resize_masks(jnp.asarray(scores), rows, columns))
        name = f"semantic_{i}"
        checks += [compare(case, name, closed_results.semantic(scores, tuple(size))),
                   compare(case, f"{name}_scores", _thin(full, case))]
    return checks


def _thin(x: np.ndarray, case: Case) -> np.ndarray:
    """Every so manieth pixel, as the settings say of the scores that are stored."""
    step = int(re.search(r"::(\d+)", case.spec["config"]["thinned"])[1])
    return x[:, ::step, ::step]


# ---- transformers -------------------------------------------------------------------------------


def _transformers_size(size: typing.Sequence[int], shortest: int, longest: int | None = None
                       ) -> tuple[int, int]:
    """Height and width after transformers' resize (`get_size_with_aspect_ratio`)."""
    short, long = min(size), max(size)
    raw = float(shortest)
    if longest is not None and long / short * shortest > longest:
        raw = longest * short / long
    goal = int(round(raw))
    if short == goal:
        return tuple(size)  # even where the longer side is too long
    other = int(raw * size[0] / size[1]) if size[1] < size[0] else int(raw * size[1] / size[0])
    return (other, goal) if size[1] < size[0] else (goal, other)


def _resize_as_torch(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """torch's antialiased bilinear resize of 8 bits: as Pillow's, with weights of 16 bits."""
    for axis in (1, 0):  # columns first; each ends in 8 bits
        if image.shape[axis] != size[axis]:
            rows = _shrink(np.moveaxis(image, axis, 0), size[axis])
            image = np.moveaxis(rows, 0, axis)
    return image


def _shrink(rows: np.ndarray, count: int) -> np.ndarray:
    """[n, ...] uint8 -> [count, ...] uint8."""
    step = len(rows) / count
    reach, parts = max(step, 1.0), []
    for i in range(count):
        centre = step * (i + 0.5)
        first = max(int(centre - reach + 0.5), 0)
        taps = np.arange(first, min(int(centre + reach + 0.5), len(rows)))
        weights = np.maximum(0.0, 1 - np.abs((taps - centre + 0.5) / reach))
        parts.append((taps, weights / weights.sum()))
    largest = max(weights.max() for _, weights in parts)
    # As many bits as the largest weight leaves in 16.
    bits = next(b for b in range(23) if b == 22 or int(0.5 + largest * 2**(b + 1)) >= 2**15)
    result = [np.tensordot(np.floor(weights * 2**bits + 0.5).astype(np.int64),
                           rows[taps].astype(np.int64), 1) for taps, weights in parts]
    return np.clip((np.stack(result) + 2**(bits - 1)) >> bits, 0, 255).astype(np.uint8)


def _panoptic(full: np.ndarray, class_logits: np.ndarray, config: dict,
              stuff: typing.Sequence[int]) -> tuple[np.ndarray, list[int], list[float]]:
    """Segment ids [H, W] from 0, -1 where nothing; labels and scores of the segments."""
    probabilities = np.asarray(jax.nn.softmax(class_logits))
    best, labels = probabilities.max(-1), probabilities.argmax(-1)
    kept = (labels != class_logits.shape[-1] - 1) & (best > config["threshold"])
    segments, found, joined = np.full(full.shape[1:], -1, np.int32), [], {}
    if not kept.any():
        return segments, [], []
    masks, best, labels = _sigmoid(full[kept]), best[kept], labels[kept]
    winner = (best[:, None, None] * masks).argmax(0)
    for k, (mask, score, label) in enumerate(zip(masks, best, labels)):
        new, original = winner == k, mask >= config["mask_threshold"]
        if not (new & original).any() or (
                new.sum() / original.sum() <= config["overlap_threshold"]):
            continue
        if label in joined:
            segments[new & original] = joined[label]
            continue
        segments[new & original] = len(found)
        if label in stuff:
            joined[label] = len(found)
        found.append((label, round(float(score), 6)))
    return segments, [label for label, _ in found], [score for _, score in found]


def _instances(full: np.ndarray, class_logits: np.ndarray, threshold: float
               ) -> tuple[np.ndarray, list[int], list[float]]:
    """The same for instances; later queries lie on top of earlier ones."""
    probabilities = np.asarray(jax.nn.softmax(class_logits))[:, :-1]
    segments, found = np.full(full.shape[1:], -1, np.int32), []
    for logits, classes in zip(full, probabilities):
        mask = logits > 0
        score = classes.max() * (_sigmoid(logits) * mask).sum() / (mask.sum() + 1e-6)
        if mask.any() and score >= threshold:
            segments[mask] = len(found)
            found.append((classes.argmax(), round(float(score), 6)))
    return segments, [label for label, _ in found], [score for _, score in found]


def _semantic_with_padding(mask_logits: np.ndarray, class_logits: np.ndarray,
                           padded: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Scores of classes [C, H, W] of a picture as if it had not been padded."""
    masks = _sigmoid(enlarge(mask_logits, padded, padded, padded))
    classes = np.asarray(jax.nn.softmax(class_logits))[:, :-1]
    scores = np.einsum("qc,qhw->chw", classes, masks)
    rows, columns = (resample.bilinear_taps(n, Stage(m, n)) for n, m in zip(size, padded))
    return np.asarray(resample.resize_masks(jnp.asarray(scores), rows, columns))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.sigmoid(x))
