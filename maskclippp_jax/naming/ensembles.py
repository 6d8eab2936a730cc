"""Class scores of masks: the generator's opinion and its void class joined with ours.

Masks that a generator proposed come with class logits of its own. They join in two ways: a weighted
geometric mean with our class probabilities (as in FC-CLIP, arXiv 2308.02487), and the probability
that a mask is no object at all (void). Both are sums of logarithms here, so nothing underflows.

Columns of classes may be padded: a column without a class holds -inf in logits and 0 in scores, so
another vocabulary of similar size is no new program.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

_FLOOR = 1e-8  # of the reference; inside the ensemble it decides where the two models disagree


class GeneratorLogits(typing.NamedTuple):
    """What a generator says of its masks, void apart."""

    classes: jax.Array  # [..., N, C] float32; -inf where it has no logit for a class
    void: jax.Array     # [..., N] float32


class MaskScores(typing.NamedTuple):
    """Probabilities of masks; classes and void together sum to 1."""

    classes: jax.Array  # [..., N, C] float32; 0 in columns without a class
    void: jax.Array     # [..., N] float32; 0 without a generator, 1 for an empty slot


def split_void(logits: np.ndarray, num_columns: int | None = None) -> GeneratorLogits:
    """The usual layout, void last, as `GeneratorLogits`: [..., N, K+1], padded to C columns."""
    classes, void = logits[..., :-1], logits[..., -1]
    missing = (num_columns or classes.shape[-1]) - classes.shape[-1]
    widths = [(0, 0)] * (classes.ndim - 1) + [(0, missing)]
    return GeneratorLogits(np.pad(classes, widths, constant_values=-np.inf), void)


def logits_of_test_classes(generator: GeneratorLogits, lookup: jax.Array,
                           num_columns: int) -> jax.Array:
    """Brings a closed generator's logits from its training classes to the test classes.

    Args:
      generator: logits of J training classes.
      lookup: [J] int32, the test class of each training class (`Vocabulary.lookup_from`, without
        its last entry); `num_columns` or more: none.
      num_columns: C.

    Returns:
      [..., N, C] float32: the mean of the logits that belong to a test class; -inf where there are
      none. (The reference has 0 there, which is often the best logit of all, and shifts the
      classes that the generator does know.)
    """
    by_class = jnp.moveaxis(generator.classes, -1, 0)  # [J, ..., N]
    total = jax.ops.segment_sum(by_class, lookup, num_segments=num_columns)
    count = jax.ops.segment_sum(jnp.ones(len(lookup)), lookup, num_segments=num_columns)
    count = count.reshape(-1, *[1] * (total.ndim - 1))
    return jnp.moveaxis(jnp.where(count > 0, total / jnp.maximum(count, 1), -jnp.inf), 0, -1)


def weights_of(seen: np.ndarray, alpha: float, beta: float, num_columns: int) -> np.ndarray:
    """[C] float32, our share in the ensemble: alpha for seen classes, beta for the others."""
    weights = np.where(seen, alpha, beta).astype(np.float32)
    return np.pad(weights, (0, num_columns - len(weights)), constant_values=1.0)


def ensemble(logits: jax.Array, generator_classes: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted geometric mean of two class distributions.

    Where the generator has no logit for a class it has no say: the class keeps our probability, and
    among the classes it knows it divides the probability we give to them together.

    Args:
      logits: [..., N, C] float32, ours; -inf in columns without a class.
      generator_classes: [..., N, C] float32, the generator's without void; -inf where it has none.
      weights: [C] float32, our share (`weights_of`).

    Returns:
      [..., N, C] float32 logits `log(p_g ** (1 - w) * p ** w + 1e-8)`, not normalised; -inf in
      columns without a class.
    """
    known = (logits > -jnp.inf) & (generator_classes > -jnp.inf)
    ours = jax.nn.log_softmax(logits)
    total = lambda x: jax.nn.logsumexp(x, axis=-1, keepdims=True, where=known)
    theirs = generator_classes - total(generator_classes) + total(ours)
    weights = weights.reshape(*[1] * (logits.ndim - 1), -1)
    mixed = jnp.where(known, (1 - weights) * theirs + weights * ours, ours)
    return jnp.where(logits > -jnp.inf, jnp.log(jnp.exp(mixed) + _FLOOR), -jnp.inf)


def void_given_back(logits: jax.Array, objectness: jax.Array) -> jax.Array:
    """The share of void that classes get back, the more the surer we are of a mask's class.

    A generator calls void what it was not trained to find. OVRCOAT (arXiv 2603.21386; its public
    code, which has 0.5) takes from void this share of itself: what CLIP is sure of is an object.

    Args:
      logits: [..., N, C] float32, ours, before any ensemble; -inf in columns without a class.
      objectness: float32 scalar in 0 ... 1.

    Returns:
      [..., N] float32: `objectness` times the largest of our class probabilities.
    """
    return objectness * jax.nn.softmax(logits).max(-1)


def scores(logits: jax.Array, generator: GeneratorLogits | None, mask_valid: jax.Array,
           given_back: jax.Array | None = None) -> MaskScores:
    """Probabilities of every class and of void.

    Args:
      logits: [..., N, C] float32, ours or of `ensemble`; -inf in columns without a class.
      generator: void is taken from it, by a softmax over all *its own* classes; None: masks from
        files, there is no void.
      mask_valid: [..., N] bool; empty slots become void.
      given_back: [..., N] float32, see `void_given_back`; None: nothing.
    """
    classes = jax.nn.softmax(logits)
    void = jnp.zeros(classes.shape[:-1])
    if generator is not None:
        # 1 - void would lose all its digits where void is nearly 1.
        rest = jax.nn.logsumexp(generator.classes, axis=-1)  # [..., N]
        both = jnp.logaddexp(rest, generator.void)
        objects, void = jnp.exp(rest - both), jnp.exp(generator.void - both)
        if given_back is not None:
            objects, void = objects + void * given_back, void * (1 - given_back)
        classes = classes * objects[..., None] + _FLOOR
        classes = jnp.where(logits > -jnp.inf, classes, 0.0)
        void = void + _FLOOR
        total = classes.sum(-1) + void
        classes, void = classes / total[..., None], void / total
    return MaskScores(jnp.where(mask_valid[..., None], classes, 0.0),
                      jnp.where(mask_valid, void, 1.0))

