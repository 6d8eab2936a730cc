"""Joining class scores with a generator's, against the formulas in float64."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from maskclippp_jax.naming import ensembles
from maskclippp_jax.naming.ensembles import GeneratorLogits
from maskclippp_jax.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("explicit_ranks")

mix = jax.jit(ensembles.ensemble)
score = jax.jit(ensembles.scores)


@pytest.fixture
def logits(rng):
    return rng.normal(0, 4, (5, 7)).astype(np.float32), rng.normal(0, 4, (5, 7)).astype(np.float32)


def test_a_geometric_mean_of_both_distributions(logits):
    ours, theirs = logits
    seen = np.array([1, 0, 0, 1, 1, 0, 1], bool)
    weights = ensembles.weights_of(seen, 0.4, 0.8, 7)
    assert weights.tolist() == [np.float32(0.4 if s else 0.8) for s in seen]
    w = weights.astype(np.float64)
    want = softmax(theirs.astype(float), -1) ** (1 - w) * softmax(ours.astype(float), -1) ** w
    np.testing.assert_allclose(mix(ours, theirs, weights), np.log(want + 1e-8), atol=2e-5)


@pytest.mark.parametrize("weight, which", [(1.0, 0), (0.0, 1)])
def test_at_the_ends_only_one_model_speaks(logits, weight, which):
    got = mix(*logits, np.full(7, weight, np.float32))
    np.testing.assert_allclose(
        got, np.log(softmax(logits[which].astype(float), -1) + 1e-8), atol=2e-5)


def test_where_the_models_disagree_completely_the_floor_makes_it_uniform():
    ours, theirs = np.float32([[300, 0, 0]]), np.float32([[0, 300, 0]])
    got = np.asarray(mix(ours, theirs, np.full(3, 0.5, np.float32)))
    np.testing.assert_allclose(got, np.log(1e-8), rtol=1e-6)


def test_classes_the_generator_does_not_know_keep_our_probability(logits):
    ours, theirs = logits
    known = np.array([1, 1, 0, 1, 0, 1, 1], bool)
    weights = np.full(7, 0.3, np.float32)
    got = np.asarray(mix(ours, np.where(known, theirs, -np.inf), weights), np.float64)
    got = np.exp(got) - 1e-8
    p = softmax(ours.astype(float), -1)
    np.testing.assert_allclose(got[:, ~known], p[:, ~known], atol=2e-6)
    # The others: a mean of two ways to divide what we give to them together.
    share = p[:, known].sum(-1, keepdims=True)
    among = share * softmax(theirs[:, known].astype(float), -1)
    np.testing.assert_allclose(got[:, known], among ** 0.7 * p[:, known] ** 0.3, atol=2e-6)


def test_a_generator_that_knows_no_class_changes_nothing(logits):
    got = mix(logits[0], np.full((5, 7), -np.inf, np.float32), np.zeros(7, np.float32))
    want = np.log(np.exp(log_softmax(logits[0].astype(float), -1)) + 1e-8)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_the_rule_of_the_reference_is_a_logit_of_0_and_shifts_known_classes():
    """Defect (a): with -10 for everything it knows, the generator prefers what it does not know."""
    ours, theirs = np.zeros((1, 3), np.float32), np.float32([[-10, -11, -np.inf]])
    weights = np.full(3, 0.5, np.float32)
    right = mix(ours, theirs, weights)[0]
    defective = mix(ours, np.where(np.isneginf(theirs), 0, theirs).astype(np.float32), weights)[0]
    assert right[0] > right[2] and defective[0] < defective[2]


def test_padded_columns_change_nothing(logits, rng):
    ours, theirs = logits
    generator = ensembles.split_void(np.concatenate([theirs, np.ones((5, 1), np.float32)], -1), 10)
    assert generator.classes.shape == (5, 10) and generator.void.tolist() == [1] * 5
    padded = np.pad(ours, [(0, 0), (0, 3)], constant_values=-np.inf)
    weights = ensembles.weights_of(np.arange(7) < 4, 0.6, 0.9, 10)
    wide = mix(padded, generator.classes, weights)
    assert np.isneginf(np.asarray(wide)[:, 7:]).all()
    narrow = mix(ours, theirs, weights[:7])
    np.testing.assert_allclose(np.asarray(wide)[:, :7], narrow, rtol=1e-6)
    valid = np.ones(5, bool)
    wide = score(wide, generator, valid)
    narrow = score(narrow, GeneratorLogits(theirs, generator.void), valid)
    np.testing.assert_allclose(wide.classes[:, :7], narrow.classes, rtol=1e-6)
    np.testing.assert_allclose(wide.void, narrow.void, rtol=1e-6)
    assert not np.asarray(wide.classes)[:, 7:].any()


def test_void_keeps_its_digits_where_it_is_nearly_certain():
    """1 - void has two digits left in float32; the classes must still be right to six."""
    logits = np.float32([[0.0, 1.0]])
    generator = GeneratorLogits(np.float32([[0.0, -1.0]]), np.float32([14.0]))
    got = score(logits, generator, np.ones(1, bool))
    everything = softmax(np.array([0.0, -1.0, 14.0]))
    classes = softmax(logits[0].astype(float)) * everything[:2].sum() + 1e-8
    want = np.array([*classes, everything[2] + 1e-8])
    want /= want.sum()
    np.testing.assert_allclose(got.classes[0], want[:2], rtol=2e-6)
    np.testing.assert_allclose(got.void[0], want[2], rtol=1e-6)
    assert float(got.classes.sum() + got.void.sum()) == pytest.approx(1, abs=1e-6)


def test_empty_slots_are_void_and_masks_from_files_never_are():
    valid = np.array([True, False])
    got = score(np.zeros((2, 3), np.float32), None, valid)
    np.testing.assert_allclose(got.classes, [[1 / 3] * 3, [0] * 3], rtol=1e-6)
    assert got.void.tolist() == [0, 1]


def test_a_closed_generator_speaks_through_the_mean_of_its_logits():
    training = Vocabulary.from_text("cat\ndog,puppy\nwall-brick,wall\nwall-wood,wall\nsky\n", "t")
    test = Vocabulary.from_text("wall\npuppy\ngrass\ndog\nhouse,wall\n", "u")
    lookup = test.lookup_from(training)
    assert lookup.tolist() == [5, 1, 0, 0, 5, 5]  # to the first of two; void to none
    generator = GeneratorLogits(np.float32([[1, 2, 3, 5, 7]]), np.float32([0]))
    got = ensembles.logits_of_test_classes(generator, lookup[:-1], 5)
    assert np.asarray(got)[0].tolist() == [4, 2, -np.inf, -np.inf, -np.inf]


def test_another_size_of_vocabulary_within_the_columns_compiles_nothing(rng):
    joined = jax.jit(lambda logits, generator, weights, valid: ensembles.scores(
        ensembles.ensemble(logits, generator.classes, weights), generator, valid))
    for classes in (5, 7):
        pad = [(0, 0), (0, 8 - classes)]
        logits = np.pad(rng.normal(size=(3, classes)), pad, constant_values=-np.inf)
        generator = ensembles.split_void(rng.normal(size=(3, classes + 1)).astype(np.float32), 8)
        weights = ensembles.weights_of(np.ones(classes, bool), 0.5, 1, 8)
        got = joined(logits.astype(np.float32), generator, weights, np.ones(3, bool))
        assert np.asarray(got.classes[:, :classes]).all()
    assert joined._cache_size() == 1


@pytest.mark.parametrize("share, joined", [(0.5, False), (0.5, True), (1.0, True)])
def test_what_we_are_sure_of_takes_a_share_of_void_back(logits, share, joined):
    """In float64: void times 1 - share * our largest probability, classes times the rest."""
    ours, theirs = logits
    void = np.float32([-3, 0, 4, 9, 40])
    generator = GeneratorLogits(theirs, void)
    given_back = jax.jit(ensembles.void_given_back)(ours, np.float32(share))
    final = mix(ours, theirs, np.full(7, 0.4, np.float32)) if joined else ours
    got = score(final, generator, np.ones(5, bool), given_back)
    own = softmax(np.c_[theirs, void].astype(float), -1)[:, -1]
    sure = softmax(ours.astype(float), -1).max(-1)  # of ours alone, whatever is joined to it
    want_void = own * (1 - share * sure)
    classes = softmax(np.asarray(final, float), -1) * (1 - want_void)[:, None]
    want = np.c_[classes, want_void] + 1e-8
    want /= want.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.c_[got.classes, got.void], want, rtol=2e-5, atol=1e-9)
    before = score(final, generator, np.ones(5, bool))
    assert (np.asarray(got.void) < np.asarray(before.void)).all()
    best = [np.argmax(x.classes[:4], -1) for x in (got, before)]  # the last one had nothing left
    np.testing.assert_array_equal(*best)


def test_no_share_of_void_is_the_published_rule_to_the_bit(logits):
    ours, theirs = logits
    generator = GeneratorLogits(theirs, np.float32([-3, 0, 4, 9, 40]))
    nothing = jax.jit(ensembles.void_given_back)(ours, np.float32(0))
    for got, want in zip(score(ours, generator, np.ones(5, bool), nothing),
                         score(ours, generator, np.ones(5, bool))):
        np.testing.assert_array_equal(got, want)
