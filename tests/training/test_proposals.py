"""How an EoMT learns: matching, losses beside plain ones, and a few steps that lower the loss."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.generators.eomt import EoMT, EoMTConfig, Predictions
from maskclippp_jax.training import proposals
from maskclippp_jax.training.proposals import Targets
from maskclippp_jax.weights import eomt

pytestmark = pytest.mark.usefixtures("explicit_ranks")

CONFIG = EoMTConfig((32, 32), width=16, depth=2, num_heads=2, mlp_width=32, num_classes=3,
                    num_queries=5, query_blocks=1, patch_size=8, upscale_blocks=1)


def made_up(rng, batch=3, slots=4, queries=5, side=6):
    """Predictions and targets; the first slots of picture i hold slots - i masks."""
    labels = np.full((batch, slots), -1, np.int32)
    for picture in range(batch):
        labels[picture, :slots - picture] = rng.integers(0, 3, slots - picture)
    masks = rng.random((batch, slots, side, side)).astype(np.float32)
    found = Predictions(
        jnp.asarray(3 * rng.standard_normal((batch, queries, side, side)), jnp.float32),
        jnp.asarray(rng.standard_normal((batch, queries, 4)), jnp.float32))
    return found, Targets(jnp.asarray(masks), jnp.asarray(labels))


def plain_parts(logits, mask):
    """Cross-entropy of the cells and dice loss of one query and one mask, in float64."""
    p, t = 1 / (1 + np.exp(-np.float64(logits))), np.float64(mask)
    cross_entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    return cross_entropy, 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def test_costs_are_those_of_each_pair(rng):
    found, targets = made_up(rng)
    costs = np.asarray(proposals.costs(found, targets))
    probability = np.asarray(jax.nn.softmax(found.class_logits))
    for b, m, q in [(0, 0, 0), (0, 3, 4), (1, 2, 1), (2, 1, 3)]:
        cross_entropy, dice = plain_parts(found.mask_logits[b, q], targets.masks[b, m])
        wanted = 5 * cross_entropy + 5 * dice - 2 * probability[b, q, targets.labels[b, m]]
        np.testing.assert_allclose(costs[b, m, q], wanted, rtol=1e-5)


def test_no_other_matching_is_cheaper(rng):
    found, targets = made_up(rng)
    costs = np.asarray(proposals.costs(found, targets))
    valid = np.asarray(targets.labels) >= 0
    matched = np.asarray(jax.jit(proposals.match)(costs, valid))
    assert (matched[~valid] == 5).all() and (matched[valid] < 5).all()
    for cost, queries, real in zip(costs, matched, valid):
        rows = np.flatnonzero(real)
        assert len(set(queries[real])) == len(rows)
        cheapest = min(cost[rows, list(chosen)].sum()
                       for chosen in itertools.permutations(range(5), len(rows)))
        np.testing.assert_allclose(cost[rows, queries[rows]].sum(), cheapest, rtol=1e-6)


def test_losses_are_those_of_the_matched_pairs(rng):
    found, targets = made_up(rng)
    matched = np.array([[3, 0, 4, 1], [2, 1, 0, 5], [4, 2, 5, 5]], np.int32)
    losses = proposals.losses(found, targets, jnp.asarray(matched))
    pairs = [(b, m) for b, m in np.ndindex(3, 4) if targets.labels[b, m] >= 0]
    parts = np.mean([plain_parts(found.mask_logits[b, matched[b, m]], targets.masks[b, m])
                     for b, m in pairs], axis=0)
    np.testing.assert_allclose([losses.cross_entropy, losses.dice], parts, rtol=1e-5)
    wanted = np.full((3, 5), 3)
    for b, m in pairs:
        wanted[b, matched[b, m]] = targets.labels[b, m]
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(found.class_logits)),
                              wanted[..., None], 2)[..., 0]
    weight = np.where(wanted == 3, 0.1, 1.0)
    np.testing.assert_allclose(losses.classes, (weight * nll).sum() / weight.sum(), rtol=1e-5)


def test_empty_slots_change_nothing(rng):
    found, targets = made_up(rng)
    more = Targets(jnp.pad(targets.masks, ((0, 0), (0, 3), (0, 0), (0, 0)), constant_values=0.7),
                   jnp.pad(targets.labels, ((0, 0), (0, 3)), constant_values=-1))
    (total, parts), (same, _) = (proposals.loss([found], t) for t in (targets, more))
    np.testing.assert_allclose(total, same, rtol=1e-6)
    np.testing.assert_allclose(total, parts.total, rtol=1e-6)


def test_masking_fades_block_after_block():
    shares = np.array([proposals.fading(step, 600, 2) for step in (0, 100, 200, 300, 400, 499)])
    np.testing.assert_allclose(shares[:2], 1)
    np.testing.assert_allclose(shares[2], [0.5**0.9, 1], rtol=1e-6)
    np.testing.assert_allclose(shares[3], [0, 1])
    np.testing.assert_allclose(shares[4], [0, 0.5**0.9], rtol=1e-6)
    assert 0 < shares[5, 1] < 0.02 and (proposals.fading(500, 600, 2) == 0).all()


def scene(rng):
    """Two pictures, each half of one grey and half of another, with a bright square on it."""
    image = np.zeros((2, 32, 32, 3), np.uint8)
    masks = np.zeros((2, 3, 16, 16), np.float32)
    for picture, (row, column) in enumerate(rng.integers(1, 9, (2, 2))):
        image[picture, :, :16], image[picture, :, 16:] = 40, 120
        image[picture, 2 * row:2 * row + 12, 2 * column:2 * column + 12] = 240
        masks[picture, 2, row:row + 6, column:column + 6] = 1
        left = np.arange(16)[None] < 8
        masks[picture, 0] = left * (1 - masks[picture, 2])
        masks[picture, 1] = ~left * (1 - masks[picture, 2])
    return jnp.asarray(image), Targets(jnp.asarray(masks), jnp.tile(jnp.arange(3), (2, 1)))


def test_a_few_steps_lower_the_loss_masked_or_not(rng):
    build, _ = eomt.abstract(CONFIG)
    params = parameters.initialize(lambda: EoMT(CONFIG, rngs=parameters.Keys(0)))
    optimizer = optax.adam(3e-3)
    image, targets = scene(rng)

    @jax.jit
    def step(params, state, masked):
        def loss_of(params):
            found = proposals.predictions(build(params), image, masked, jax.random.key(0))
            return proposals.loss(found, targets)

        (total, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, total, parts

    for masked in (1.0, 0.0):
        now, state, totals = params, optimizer.init(params), []
        for _ in range(30):
            now, state, total, parts = step(now, state, jnp.full(1, masked))
            totals.append(float(total))
        assert totals[-1] < 0.6 * totals[0], (masked, totals[0], totals[-1])


def test_without_masking_the_last_prediction_is_the_network_s(rng):
    config = dataclasses.replace(CONFIG, query_blocks=2)
    model = EoMT(config, rngs=parameters.Keys(1))
    image, _ = scene(rng)
    open_ = proposals.predictions(model, image, jnp.zeros(2), jax.random.key(0))
    cut = proposals.predictions(model, image, jnp.ones(2), jax.random.key(0))
    assert len(open_) == len(cut) == 3
    for found, wanted in ((open_, model(image)), (cut, model(image, ("cut", "cut")))):
        np.testing.assert_allclose(found[-1].mask_logits, wanted.mask_logits, atol=1e-5)
        np.testing.assert_allclose(found[-1].class_logits, wanted.class_logits, atol=1e-5)
