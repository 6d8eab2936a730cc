"""Cases of class scores: names to classes, seen classes, ensembles with a generator, void."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax.models import maskclippp
from maskclippp_jax.naming import ensembles, postprocess
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.parity.case import Absent, Case, Check, close, equal
from maskclippp_jax.vocabulary import Vocabulary, split_names

_PADDING = 3  # columns without a class, as a vocabulary padded to a common size has them


def synonym_max(case: Case) -> list[Check]:
    """The best name of every class; a void column passes through as a class of its own."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        given = {k: case.arrays[f"in/{name}/{k}"]
                 for k in ("name_logits", "image_of_mask", "names_per_class")}
        counts = [*given["names_per_class"], *[1] * step["void_column"]]
        logits = best_names(given["name_logits"], counts)[:, :len(counts)]
        for b, masks in enumerate(step["masks_per_image"]):
            if not masks:  # the reference loses the void column of an image without masks
                continue
            checks.append(close(f"{name}/logits{b}", logits[given["image_of_mask"] == b],
                                case.arrays[f"out/{name}/logits{b}"], atol=3e-5))
    return checks


def category_overlap(case: Case) -> list[Check]:
    """Which classes are seen, and which test class a training class stands for."""
    checks = []
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
            equal(f"{name}/{key}", got, case.arrays[f"out/{name}/{key}"]) for key, got in (
                ("seen", test.seen_in(training)), ("lut", test.lookup_from(training)),
                ("names_per_class", [len(c) for c in test.classes]))]
    return checks


def ensemble(case: Case) -> list[Check]:
    """The ensemble with an open or a closed generator, and void after it."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        given = {k: case.arrays[f"in/{name}/{k}"] for k in ("logits", "seen", "generator_logits")}
        lookup = case.arrays.get(f"in/{name}/lut")
        num_classes = given["logits"].shape[1]
        ensembled, converted = mix(given["logits"], given["generator_logits"], given["seen"],
                                   step["alpha"], step["beta"], lookup)
        want = lambda key: case.arrays[f"out/{name}/{key}"]
        checks.append(close(f"{name}/ensembled", ensembled[:, :num_classes], want("ensembled"),
                            atol=3e-5))
        checks += compare_scores(name, join(ensembled, given["generator_logits"]), num_classes,
                                 want)
        if lookup is not None:
            key = "converted_generator_logits"
            checks.append(close(f"{name}/{key}", converted[:, :num_classes], want(key)[:, :-1],
                                atol=3e-5))
    return checks


def void(case: Case) -> list[Check]:
    """The probability that a mask is no object; an image without masks gives nothing."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        logits = case.arrays[f"in/{name}/logits"]
        scores = join(pad_columns(logits), case.arrays[f"in/{name}/generator_logits"])
        compared = [k for k in ("with_void", "probabilities")
                    if case.spec["arrays"][f"out/{name}/{k}"]["role"] == "output"]
        checks += compare_scores(name, scores, logits.shape[1],
                                 lambda key: case.arrays[f"out/{name}/{key}"], compared)
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


def best_names(name_logits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[N, S] logits of names -> [N, S] of classes, -inf beyond the last; counts: names of each."""
    classes = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.asarray(_best_names(name_logits[None], classes))[0]


_best_names = jax.jit(maskclippp.class_logits)


def pad_columns(logits: np.ndarray) -> np.ndarray:
    """Adds columns without a class."""
    return np.pad(logits, [(0, 0), (0, _PADDING)], constant_values=-np.inf)


@jax.jit
def _scores(logits, generator) -> MaskScores:
    return ensembles.scores(logits, generator, jnp.ones(logits.shape[:-1], bool))


def mix(logits: np.ndarray, generator_logits: np.ndarray, seen: np.ndarray, alpha: float,
        beta: float, lookup: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The ensemble as the reference has it.

    Test classes that a closed generator does not know have the logit 0 there; ours leaves them out.

    Returns:
      Ensembled logits, and the generator's logits of the test classes, [N, K + padding] each.
    """
    padded, generator = pad_columns(logits), ensembles.split_void(generator_logits)
    weights = ensembles.weights_of(seen.astype(bool), alpha, beta, padded.shape[1])
    if lookup is None:
        converted = pad_columns(generator.classes)
    else:
        found = _convert(generator, lookup[:-1], num_columns=padded.shape[1])
        converted = np.where(np.isneginf(found), np.float32(0), found)
    return np.asarray(_ensemble(padded, converted, weights)), converted


def join(logits: np.ndarray, generator_logits: np.ndarray) -> MaskScores:
    """Scores of logits [N, K + padding], with void from the generator."""
    return jax.device_get(_scores(logits, ensembles.split_void(generator_logits)))


_ensemble = jax.jit(ensembles.ensemble)
_convert = functools.partial(jax.jit, static_argnames="num_columns")(
    ensembles.logits_of_test_classes)


def compare_scores(name: str, scores: MaskScores, num_classes: int, want,
                   compared=("with_void", "probabilities")) -> list[Check]:
    """Scores with the reference's logits (K+1 columns, not normalised) and probabilities."""
    got = np.concatenate([scores.classes[:, :num_classes], scores.void[:, None]], -1)
    checks = [equal(f"{name}/padding", scores.classes[:, num_classes:], np.zeros_like(
        scores.classes[:, num_classes:]))]
    if "with_void" in compared:
        # They differ by the logarithm of the sum, at most 1e-8 for each class.
        checks.append(close(f"{name}/with_void", np.log(got), want("with_void"), atol=3e-5))
    if "probabilities" in compared:
        checks.append(close(f"{name}/probabilities", got, want("probabilities"), atol=1e-5))
    return checks
