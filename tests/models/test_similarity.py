"""The similarity heads beside the published arrays: starts, padding, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskclippp_jax.models import layers, similarity

pytestmark = pytest.mark.usefixtures("explicit_ranks")

PSEUDO = similarity.PseudoTextSimilarityConfig(
    num_templates=3, embed_dim=16, num_heads=2, attention_dropout=0.5, hidden_dropout=0.5)


def drawn(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("num_templates", [1, 14])
def test_a_linear_head_may_start_as_the_mean_over_templates(rng, num_templates):
    config = similarity.LinearSimilarityConfig(num_templates, start="mean")
    head = config.make(rngs=nnx.Rngs(5))
    masks, names = drawn(rng, 1, 4, 8), similarity.unit(drawn(rng, 6, num_templates, 8))
    got = np.asarray(head(masks, names, 100.0))
    want = np.asarray(similarity.mean_similarity(masks, names, 100.0))
    shift = (got - want).mean()  # the biases move all classes alike
    np.testing.assert_allclose(got - shift, want, atol=2e-4)


@pytest.mark.parametrize("config", [
    None, similarity.LinearSimilarityConfig(3), PSEUDO,
    dataclasses.replace(PSEUDO, residual_width=8, own_scale=True)])
def test_names_may_be_folded_once(rng, config):
    head = config and config.make(rngs=nnx.Rngs(3))
    fold = similarity.fold_mean if head is None else head.fold
    masks, names = drawn(rng, 2, 4, 16), similarity.unit(drawn(rng, 5, 3, 16))
    run = jax.jit(lambda names: (head or similarity.mean_similarity)(
        masks, names, 100.0, similarity.Condition(drawn(np.random.default_rng(1), 2, 6, 16), None)))
    got, want = run(fold(names)), run(names)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    both = config is not None and getattr(config, "residual_width", None) is not None
    assert isinstance(fold(names), similarity.Folded) != both


def test_another_start_is_refused():
    with pytest.raises(ValueError, match="start is 'zero'"):
        similarity.LinearSimilarityConfig(1, start="zero").make(rngs=nnx.Rngs(0))


def test_published_starts_have_a_random_sign():
    signs = []
    for seed in range(40):
        head = similarity.LinearSimilarityConfig(1).make(rngs=nnx.Rngs(seed))
        signs.append(float(head.corr_in.kernel[0] @ head.corr_out.kernel[..., 0]) > 0)
    assert 8 < sum(signs) < 32


def test_patches_outside_an_image_change_nothing_in_the_pseudo_text_head(rng):
    head = PSEUDO.make(rngs=nnx.Rngs(1))
    masks, names = drawn(rng, 2, 4, 16), similarity.unit(drawn(rng, 5, 3, 16))
    patches = drawn(rng, 2, 6, 16)
    padded = jnp.concatenate([patches, 50 * drawn(rng, 2, 3, 16)], 1)
    valid = jnp.broadcast_to(jnp.arange(9)[None] < 6, (2, 9))
    want = head(masks, names, 1.0, similarity.Condition(patches, None))
    got = head(masks, names, 1.0, similarity.Condition(padded, valid))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_dropout_acts_in_training_only_and_follows_its_key(rng):
    head = PSEUDO.make(rngs=nnx.Rngs(1))
    masks, names = drawn(rng, 1, 4, 16), similarity.unit(drawn(rng, 5, 3, 16))
    run = lambda key: np.asarray(
        head(masks, names, 1.0, similarity.Condition(drawn(np.random.default_rng(0), 1, 6, 16),
                                                     None, key)))
    first, second = (run(jax.random.key(k)) for k in (1, 2))
    np.testing.assert_array_equal(first, run(jax.random.key(1)))
    assert np.abs(first - second).max() > 1e-3 and np.abs(first - run(None)).max() > 1e-3


def test_dropped_attention_weights_keep_their_mean(rng):
    q, k, v = (drawn(rng, 1, 5, 2, 4) for _ in range(3))
    plain = layers.attend(q, k, v, heads="together")
    run = jax.jit(jax.vmap(lambda key: layers.attend(
        q, k, v, dropout=0.3, dropout_key=key, heads="apart")))
    mean = run(jax.random.split(jax.random.key(0), 4000)).mean(0)
    np.testing.assert_allclose(mean, plain, atol=0.06)
    one = layers.attend(q, k, v, dropout=0.3, dropout_key=jax.random.key(0), heads="together")
    np.testing.assert_allclose(run(jax.random.key(0)[None])[0], one, atol=1e-5)
