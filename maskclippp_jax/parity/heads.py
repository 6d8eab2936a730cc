"""Cases of results: the test resize, label maps, panoptic segments, instances, the whole chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax.data import mask_chain, transforms
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.models import layers, resample
from maskclippp_jax.naming import inference, postprocess
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.postprocess import Heads, Proposals
from maskclippp_jax.parity import class_scores
from maskclippp_jax.parity.case import Case, Check, close, equal

_CANVAS = 8  # results are made on a canvas of multiples of it, and cut


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


def semantic(case: Case) -> list[Check]:
    """Label maps of masks that have the size of the picture already."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        masks, logits = (case.arrays[f"in/{name}/{k}"] for k in ("masks", "logits"))
        picture = Picture(masks, _unresized(masks), masks.shape[1:],
                          _softmax(logits, step["num_classes"]))
        checks += _compare_semantic(case, name, picture, step["num_classes"], scores="scores")
    return checks


def masks_to_output(case: Case) -> list[Check]:
    """Small masks at the sizes they pass, and label maps of them, enlarged before or after."""
    checks = []
    for step in case.spec["steps"]:
        name, num_classes = step["name"], step["num_classes"]
        masks, logits = (case.arrays[f"in/{name}/{k}"] for k in ("stride4_masks", "logits"))
        true = np.array(step["true_size"], np.int32)
        sizes = MaskSizes(np.array(masks.shape[1:], np.int32),
                          np.array(step["padded_size"], np.int32), true)
        for key, size in (("unpadded_masks", true), ("output_masks", step["output_size"])):
            checks.append(close(f"{name}/{key}", _resized(masks, sizes, size),
                                case.arrays[f"out/{name}/{key}"], atol=3e-5))
        picture = Picture(masks, sizes, step["output_size"], _softmax(logits, num_classes))
        for key in ("scores_upsample_first", "scores_upsample_last"):
            checks += _compare_semantic(case, name, picture, num_classes, scores=key)
    return checks


def panoptic(case: Case) -> list[Check]:
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        masks, logits = (case.arrays[f"in/{name}/{k}"] for k in ("masks", "logits"))
        picture = Picture(masks, _unresized(masks), masks.shape[1:],
                          _softmax(logits, step["num_classes"]))
        checks += _compare_panoptic(case, step, picture, sure="sure")
    return checks


def instance(case: Case) -> list[Check]:
    """Where the reference raises (panoptic results off, some classes stuff) there must be some."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        masks, logits = (case.arrays[f"in/{name}/{k}"] for k in ("masks", "logits"))
        picture = Picture(masks, _unresized(masks), masks.shape[1:],
                          _softmax(logits, step["num_classes"]))
        checks += _compare_instances(case, step, picture)
    return checks


def augmentation(case: Case) -> list[Check]:
    """Versions of a picture, and the label map of the mean of their scores."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        image, weights, bias = (case.arrays[f"in/{name}/{k}"] for k in ("image", "weights", "bias"))
        versions = transforms.versions_of(step["min_sizes"], flip=step["flip"])
        pictures = [transforms.make_version(image, v, step["max_size"]) for v in versions]
        expected = case.spec["expected"][name]
        checks.append(equal(f"{name}/sizes", [x.shape[:2] for x in pictures],
                            expected["augmented_sizes"]))
        canvas = tuple(np.max([x.shape[:2] for x in pictures], 0))
        maps, sizes = [], []
        for i, picture in enumerate(pictures):
            want = case.arrays[f"out/{name}/augmented{i}"]
            checks.append(close(f"{name}/augmented{i}", picture, want, atol=1))
            scores = jax.nn.softmax(want / np.float32(255) @ weights.T + bias)
            maps.append(transforms.pad_to_canvas(np.asarray(scores), canvas).transpose(2, 0, 1))
            sizes.append(want.shape[:2])
        sizes = np.array(sizes, np.int32)
        size = np.array([step["height"], step["width"]], np.int32)
        flips = np.array([v.flipped for v in versions])
        num_classes = len(bias)
        identity = np.broadcast_to(np.eye(num_classes, dtype=np.float32),
                                   (len(maps), num_classes, num_classes))
        run = lambda scores: [np.asarray(x)[:size[0], :size[1]] for x in _augmented(
            np.stack(maps), MaskSizes(sizes, sizes, sizes), flips, scores, scores.shape[-1], size,
            canvas=_canvas(size))]
        got = np.stack([run(identity[:, :, k:k + 1])[1] for k in range(num_classes)])
        checks += [close(f"{name}/scores", got, case.arrays[f"out/{name}/scores"], atol=3e-5),
                   _labels(case, name, run(identity)[0], "labels", "sure")]
    return checks


def pipeline(case: Case) -> list[Check]:
    """From names and masks to all results, at every size on the way."""
    checks = []
    for step in case.spec["steps"]:
        name, num_classes = step["name"], step["num_classes"]
        sizes = case.spec["expected"][name]
        generator = inference.shorter_side_to(np.array(step["mapper_size"], np.int32)[None],
                                              step["generator_short_side"])[0]
        clip = inference.shorter_side_to(np.array(step["mapper_size"], np.int32)[None],
                                         step["clip_short_side"])[0]
        checks += [equal(f"{name}/generator_size", generator, sizes["generator_size"]),
                   equal(f"{name}/clip_size", clip, sizes["clip_size"])]
        masks, mask_sizes = _masks_of(case, step, generator)
        checks += [equal(f"{name}/generator_padded", mask_sizes.enlarged, sizes["generator_padded"])
                   ] if f"in/{name}/stride4_masks" in case.arrays else []
        canvas = tuple(sizes["clip_padded"])
        checks.append(close(f"{name}/masks_seen_by_clip", _resized(masks, mask_sizes, clip, canvas),
                            case.arrays[f"out/{name}/masks_seen_by_clip"], atol=3e-5))

        given = {k: case.arrays.get(f"in/{name}/{k}") for k in (
            "name_logits", "names_per_class", "generator_logits", "seen", "lut")}
        logits = class_scores.best_names(given["name_logits"],
                                         given["names_per_class"])[:, :num_classes]
        if given["generator_logits"] is None:
            checks.append(close(f"{name}/class_logits", logits,
                                case.arrays[f"out/{name}/class_logits"], atol=3e-5))
            scores = _softmax(logits, num_classes)
        else:
            final = class_scores.pad_columns(logits)
            if step["ensemble_on"]:
                final, _ = class_scores.mix(logits, given["generator_logits"], given["seen"],
                                            step["alpha"], step["beta"], given["lut"])
            scores = class_scores.join(final, given["generator_logits"])
            checks += class_scores.compare_scores(
                name, scores, num_classes,
                lambda _: case.arrays[f"out/{name}/class_logits_with_void"], ["with_void"])
        picture = Picture(masks, mask_sizes, step["original_size"], scores)
        checks += _compare_semantic(case, name, picture, num_classes, scores="semantic_scores")
        if step["mask_accuracy_on"]:
            checks.append(equal(f"{name}/mask_classes", scores.classes.argmax(-1),
                                case.arrays[f"out/{name}/mask_classes"]))
        if step["panoptic_on"]:
            checks += _compare_panoptic(case, step, picture, sure="panoptic_sure")
        if step["instance_on"]:
            checks += _compare_instances(case, step, picture)
    return checks


def _masks_of(case: Case, step: dict, generator: np.ndarray) -> tuple[np.ndarray, MaskSizes]:
    """The masks of a pipeline case and the sizes they go through."""
    name = step["name"]
    if f"in/{name}/stride4_masks" in case.arrays:
        masks = case.arrays[f"in/{name}/stride4_masks"]
        return masks, mask_chain.generated_mask_sizes(generator, step["generator_divisibility"])
    if "classes_of_masks" in step:
        label_map = case.arrays[f"in/{name}/label_map"]
        masks = label_map[None] == np.array(step["classes_of_masks"])[:, None, None]
    else:
        masks = case.arrays[f"in/{name}/file_masks"] > 0
    return masks, mask_chain.given_mask_sizes(np.array(masks.shape[1:]), generator)


class Picture:
    """One picture for the heads, on a canvas, with an empty slot after its masks."""

    def __init__(self, masks: np.ndarray, sizes: MaskSizes, output_size, scores: MaskScores):
        self.size = np.array(output_size, np.int32)
        slots = [(0, 1)]
        self.batch = jax.tree.map(lambda x: np.asarray(x)[None], Proposals(
            np.pad(masks, slots + [(0, 0)] * 2), np.pad(np.ones(len(masks), bool), slots), sizes,
            self.size, MaskScores(np.pad(scores.classes, slots + [(0, 0)]),
                                  np.pad(scores.void, slots, constant_values=1.0))))

    def run(self, wanted: Heads, num_classes: int, things=(), object_threshold: float = 0.0
            ) -> postprocess.Results:
        """The results of this picture, cut to its size."""
        classes = postprocess.Classes.of(np.isin(np.arange(num_classes), things),
                                         self.batch.scores.classes.shape[-1], object_threshold)
        results = _heads(wanted)(self.batch, classes, _canvas(self.size))
        results = jax.tree.map(lambda x: np.asarray(x)[0], results)
        height, width = self.size
        return results._replace(
            labels=results.labels[:height, :width],
            facts=results.facts._replace(winner=results.facts.winner[:height, :width]))

    def class_scores(self, num_classes: int) -> np.ndarray:
        """[K, H, W] scores of every class, through the label maps of one class after the other."""
        maps = []
        for k in range(num_classes):
            _, best = _augmented(self.batch.masks, self.batch.mask_sizes, np.zeros(1, bool),
                                 self.batch.scores.classes[..., k:k + 1], 1, self.size,
                                 canvas=_canvas(self.size))
            maps.append(np.asarray(best)[:self.size[0], :self.size[1]])
        return np.stack(maps)


_heads = functools.cache(postprocess.make_heads)
_augmented = functools.partial(jax.jit, static_argnames="canvas")(postprocess.augmented_labels)


def _canvas(size) -> tuple[int, int]:
    return tuple(int(-(-side // _CANVAS) * _CANVAS) for side in size)


def _unresized(masks: np.ndarray) -> MaskSizes:
    size = np.array(masks.shape[1:], np.int32)
    return MaskSizes(size, size, size)


def _resized(masks, sizes: MaskSizes, target, canvas=None) -> np.ndarray:
    """[N, H, W] masks at another size, on a canvas of this size unless one is given."""
    canvas = canvas or tuple(int(side) for side in target)

    @jax.jit
    def run(masks, sizes, target):
        return resample.resize_masks(resample.soft(masks),
                                     *mask_chain.mask_taps(sizes, target, canvas))

    return np.asarray(run(masks, sizes, np.array(target, np.int32)))


def _softmax(logits: np.ndarray, num_classes: int) -> MaskScores:
    """Scores of final logits of K or K+1 columns (void last)."""
    scores = np.asarray(jax.nn.softmax(logits))
    void = scores[:, num_classes] if scores.shape[1] > num_classes else np.zeros(len(scores))
    return MaskScores(np.pad(scores[:, :num_classes], [(0, 0), (0, 3)]), void.astype(np.float32))


def _labels(case: Case, name: str, got: np.ndarray, key: str, sure: str) -> Check:
    """Compares a map where the reference's does not hang on rounding."""
    want = case.arrays[f"out/{name}/{key}"]
    if got.shape == want.shape and "only_where" in case.spec["arrays"][f"out/{name}/{key}"]:
        where = case.arrays[f"out/{name}/{sure}"].astype(bool)
        got, want = got[where], want[where]
    return equal(f"{name}/{key}", got, want)


def _compare_semantic(case: Case, name: str, picture: Picture, num_classes: int, *,
                      scores: str) -> list[Check]:
    labels = picture.run(Heads(), num_classes).labels
    return [_labels(case, name, labels, "labels", "sure"),
            close(f"{name}/{scores}", picture.class_scores(num_classes),
                  case.arrays[f"out/{name}/{scores}"], atol=3e-5)]


def _compare_panoptic(case: Case, step: dict, picture: Picture, *, sure: str) -> list[Check]:
    name, expected = step["name"], case.spec["expected"][step["name"]]
    results = picture.run(Heads(False, True), step["num_classes"], step["things"],
                          step["object_threshold"])
    is_thing = np.isin(np.arange(step["num_classes"]), step["things"])
    facts = results.facts
    ids, segments = postprocess.panoptic_segments(
        facts.winner, facts.covered, results.categories, is_thing, step["overlap_threshold"])
    won = np.bincount(np.abs(facts.winner).ravel(), minlength=len(facts.covered) + 1)
    areas = [[q, won[q + 1], facts.covered[q]]
             for q, _, _ in expected.get("kept_query_argmaxarea_maskarea", [])]
    rows = lambda segments: [[s["id"], s["isthing"], s["category_id"]] for s in segments]
    return [_labels(case, name, ids, "panoptic", sure),
            equal(f"{name}/segments", rows(segments), rows(expected["segments"])),
            equal(f"{name}/areas", areas, expected.get("kept_query_argmaxarea_maskarea", []))]


def _compare_instances(case: Case, step: dict, picture: Picture) -> list[Check]:
    """Instances sorted by score, class and mask; boxes of zeros unless asked for."""
    name = step["name"]
    results = picture.run(Heads(False, num_instances=step["topk"]), step["num_classes"],
                          step["things"])
    found = postprocess.instances(results.instance_scores, results.instance_classes,
                                  results.instance_masks, results.facts.bits, picture.size)
    if f"out/{name}/instance_scores" not in case.arrays:
        return [equal(f"{name}/things only", np.isin(found.classes, step["things"]).all()
                      and len(found.classes) > 0, True)]
    order = sorted(range(len(found.scores)), key=lambda i: (
        -found.scores[i], found.classes[i], found.masks[i].tobytes()))
    boxes = postprocess.boxes(found.masks) * step.get("boxes", False)
    want = lambda key: case.arrays[f"out/{name}/instance_{key}"]
    return [close(f"{name}/instance_scores", found.scores[order], want("scores"), atol=1e-5),
            *(equal(f"{name}/instance_{key}", got[order], want(key)) for key, got in (
                ("classes", found.classes), ("masks", found.masks), ("boxes", boxes)))]
