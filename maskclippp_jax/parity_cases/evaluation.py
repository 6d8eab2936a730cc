"""Cases of evaluation: names to classes, seen classes, the test resize, metrics."""

import jax.numpy as jnp
import numpy as np

from maskclippp_jax import inference, postprocess
from maskclippp_jax.data import transforms
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy, classes_present
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.models import layers, maskclippp
from maskclippp_jax.parity_cases.case import Absent, Case, Check, close, equal
from maskclippp_jax.vocabulary import Vocabulary, split_names


def synonym_max(case: Case) -> list[Check]:
    """The best name of every class; a void column passes through as a class of its own."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        given = {k: case.arrays[f"in/{name}/{k}"]
                 for k in ("name_logits", "image_of_mask", "names_per_class")}
        counts = [*given["names_per_class"], *[1] * step["void_column"]]
        classes = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        logits = np.asarray(maskclippp.class_logits(
            jnp.asarray(given["name_logits"])[None], jnp.asarray(classes)))[0, :, :len(counts)]
        for b, masks in enumerate(step["masks_per_image"]):
            if not masks:  # the reference loses the void column of an image without masks
                continue
            checks.append(close(f"{name}/logits{b}", logits[given["image_of_mask"] == b],
                                case.arrays[f"out/{name}/logits{b}"], atol=3e-5))
    return checks


def category_overlap(case: Case) -> list[Check]:
    """Which classes are seen."""
    checks = [Absent("look-up tables of closed generators")]
    for step in case.spec["steps"]:
        if "train_classes" in step:
            training, test = (Vocabulary("", tuple(map(split_names, step[k])), (), ())
                              for k in ("train_classes", "test_classes"))
        else:
            try:
                training, test = (Vocabulary.shipped(step[k])
                                  for k in ("train_vocabulary", "test_vocabulary"))
            except ValueError:  # a vocabulary that is not shipped
                checks.append(Absent(f"{step['train_vocabulary']} and {step['test_vocabulary']}"))
                continue
        name = step["name"]
        checks += [
            equal(f"{name}/seen", test.seen_in(training), case.arrays[f"out/{name}/seen"]),
            equal(f"{name}/names_per_class", [len(c) for c in test.classes],
                  case.arrays[f"out/{name}/names_per_class"])]
    return checks


def test_resize(case: Case) -> list[Check]:
    """The loader's resize of pictures (one level of 255 is allowed), and the encoder's after it."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        image = case.arrays[f"in/{name}/image"]
        want = case.arrays[f"out/{name}/image"]
        size = transforms.shortest_edge(*image.shape[:2], step["min_size"], step["max_size"])
        checks += [equal(f"{name}/size", size, want.shape[:2]),
                   close(f"{name}/image", transforms.resize_image(image, size), want, atol=1)]
        network = inference.shorter_side_to(np.array([size], np.int32), step["encoder_short_side"])
        canvas = case.arrays[f"out/{name}/encoder_input"].shape[1:]
        got = inference.to_network_size(jnp.asarray(want), np.array(size), network[0], canvas)
        got = layers.normalize(got[None], jnp.asarray(network))
        multiple = step["size_divisibility"]
        checks += [
            equal(f"{name}/encoder_size", network[0], case.spec["expected"][name]["encoder_size"]),
            equal(f"{name}/padded_size", -(-network[0] // multiple) * multiple, canvas),
            close(f"{name}/encoder_input", got[0],
                  np.moveaxis(case.arrays[f"out/{name}/encoder_input"], 0, -1), atol=2e-5)]
    return checks


def mask_accuracy_head(case: Case) -> list[Check]:
    """The class of a mask: the best of K, a void column ignored."""
    checks = []
    for step in case.spec["steps"]:
        name, key = step["name"], f"out/{step['name']}/classes"
        if key in case.arrays:  # the reference has no answer to another width
            logits = case.arrays[f"in/{name}/logits"][:, :step["num_classes"]]
            checks.append(equal(name, postprocess.mask_classes(jnp.asarray(logits)),
                                case.arrays[key]))
    return checks


def metric_mask_accuracy(case: Case) -> list[Check]:
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        metric = MaskAccuracy(step["num_classes"], case.arrays[f"in/{name}/seen"])
        for i, predicted in enumerate(step["predicted_classes"]):
            labels = ([s["category_id"] for s in step["segments"][i]] if "segments" in step
                      else classes_present(case.arrays[f"in/{name}/ground_truth"][i],
                                           step["ignore_label"]))
            metric.process(predicted, labels)
        checks.append(equal(f"{name}/counts", metric.counts,
                            case.arrays[f"out/{name}/counts"][:-1, :-1]))
        checks += _values(name, metric.evaluate(), case.spec["expected"][name])
    return checks


def metric_semantic(case: Case) -> list[Check]:
    """All but detectron2's boundary score, which subtracts class numbers and means nothing."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        key = f"in/{name}/seen"
        metric = SemanticSegmentation(step["num_classes"], step["ignore_label"],
                                      case.arrays[key] if key in case.arrays else None)
        for prediction, truth in zip(case.arrays[f"in/{name}/prediction"],
                                     case.arrays[f"in/{name}/ground_truth"]):
            metric.process(prediction, truth)
        checks.append(equal(f"{name}/counts", metric.counts, case.arrays[f"out/{name}/counts"]))
        checks += _values(name, metric.evaluate(), {
            k: v for k, v in case.spec["expected"][name].items() if "boundary" not in k})
    return checks


def _values(name: str, got: dict, want: dict) -> list[Check]:
    """Percentages, None where undefined."""
    checks = []
    for key, value in want.items():
        mine = got[key]
        both = [(a, b) for a, b in zip(mine, value)] if isinstance(value, list) else [(mine, value)]
        checks.append(equal(f"{name}/{key} defined", [a is None for a, _ in both],
                            [b is None for _, b in both]))
        defined = [(a, b) for a, b in both if a is not None and b is not None]
        if defined:
            checks.append(close(f"{name}/{key}", *zip(*defined), atol=1e-6))
    return checks
