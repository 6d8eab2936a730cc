"""How an EoMT learns to propose masks: what a query should say, and how far it is from that.

Every ground-truth mask is given to the query that comes nearest to it (Hungarian matching, as in
DETR); that query should have its mask and class, the others should say "no object". Losses, their
weights and the ones of the matching are Mask2Former's (Cheng et al. 2022, arXiv 2112.01527), which
EoMT keeps. Pictures are small here, so masks are compared everywhere, not at sampled points.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

from maskclippp_jax.generators.eomt import EoMT, Predictions

# Mask2Former's weights, of the costs of a match and of the losses alike.
CLASS_WEIGHT, CROSS_ENTROPY_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
NO_OBJECT_WEIGHT = 0.1  # of a query without a mask in the loss of classes: there are many of them


class Targets(typing.NamedTuple):
    """The ground truth of some pictures."""

    masks: jax.Array   # [B, M, h', w'] float32, which share of each cell is covered
    labels: jax.Array  # [B, M] int32 classes; -1 = empty slot


class Losses(typing.NamedTuple):
    """Scalars, float32, not weighted yet; means over ground-truth masks, or over queries."""

    classes: jax.Array
    cross_entropy: jax.Array  # of cells
    dice: jax.Array

    @property
    def total(self) -> jax.Array:
        return (CLASS_WEIGHT * self.classes + CROSS_ENTROPY_WEIGHT * self.cross_entropy
                + DICE_WEIGHT * self.dice)


def predictions(model: EoMT, image: jax.Array, masked: jax.Array, key: jax.Array
                ) -> list[Predictions]:
    """What the queries say before each block that has them, and behind the last one.

    Args:
      model: the network.
      image: [B, H, W, 3], see `EoMT.__call__`.
      masked: [query_blocks] float32, the share of queries that see only what their mask lies on,
        drawn anew each time. Training begins with 1 and fades it out, see `fading`.
      key: of these draws.

    Returns:
      query_blocks + 1 predictions, the last of which is that of `EoMT.__call__` if nothing is
      masked.
    """
    blocks = model.config.query_blocks
    tokens = model.embed(image)
    for block in model.blocks[:-blocks]:
        tokens = block(tokens)
    tokens, found = model.with_queries(tokens), []
    for number, block in enumerate(model.blocks[-blocks:]):
        found.append(model.predict(tokens))
        allowed = model.allowed(tokens)  # [B, Q, L]; shares the features with `predict`
        free = jax.random.uniform(jax.random.fold_in(key, number), allowed.shape[:2])
        tokens = block(tokens, allowed | (free >= masked[number])[..., None])
    return [*found, model.predict(tokens)]


def fading(step: int, steps: int, blocks: int) -> np.ndarray:
    """How much masking is left in each block with queries at a step: [blocks] float32 in 0 ... 1.

    As EoMT's configurations do it: each block in turn, first one first, falls from 1 to 0 by
    (1 - progress)^0.9. A sixth of the steps before the first block begins is fully masked, and as
    many at the end are without any masks, as the network is used.
    """
    edges = np.linspace(steps / 6, 5 * steps / 6, blocks + 1)
    progress = (step - edges[:-1]) / (edges[1:] - edges[:-1])
    return ((1 - np.clip(progress, 0, 1))**0.9).astype(np.float32)


def loss(found: typing.Sequence[Predictions], targets: Targets) -> tuple[jax.Array, Losses]:
    """The loss to minimise.

    Args:
      found: of `predictions`; each of them learns from a matching of its own.
      targets: of the same pictures. Queries' masks are brought to the size of theirs.

    Returns:
      A scalar, the sum over all predictions, and the parts of the last one's.
    """
    parts, size = len(found), targets.masks.shape[2:]
    found = [one._replace(mask_logits=jax.image.resize(
        one.mask_logits, (*one.mask_logits.shape[:2], *size), "bilinear")) for one in found]
    stacked = Predictions(*(jnp.concatenate(x) for x in zip(*found)))  # [parts B, Q, ...]
    repeated = Targets(*(jnp.concatenate([x] * parts) for x in targets))
    matched = match(*jax.lax.stop_gradient((costs(stacked, repeated), repeated.labels >= 0)))
    each = [losses(one, targets, chosen)
            for one, chosen in zip(found, jnp.split(matched, parts))]
    return sum(one.total for one in each), each[-1]


def costs(found: Predictions, targets: Targets) -> jax.Array:
    """What it would cost to give each ground-truth mask to each query: [B, M, Q] float32."""
    cells = np.prod(targets.masks.shape[2:])
    logits, masks = (x.reshape(*x.shape[:2], -1) for x in (found.mask_logits, targets.masks))
    probability = jax.nn.softmax(found.class_logits)  # [B, Q, C + 1]
    of_class = jnp.take_along_axis(probability.swapaxes(1, 2),
                                   jnp.maximum(targets.labels, 0)[..., None], 1)  # [B, M, Q]
    # -t log p - (1 - t) log(1 - p) = softplus(z) - t z, so all pairs are one product.
    shared = lambda x: jnp.einsum("bmc,bqc->bmq", masks, x)
    cross_entropy = (jax.nn.softplus(logits).sum(-1)[:, None] - shared(logits)) / cells
    inside = jax.nn.sigmoid(logits)
    dice = _dice(shared(inside), inside.sum(-1)[:, None], masks.sum(-1)[..., None])
    return (CROSS_ENTROPY_WEIGHT * cross_entropy + DICE_WEIGHT * dice - CLASS_WEIGHT * of_class)


def match(costs: jax.Array, valid: jax.Array) -> jax.Array:
    """The cheapest way to give every ground-truth mask a query of its own.

    Args:
      costs: [B, M, Q] float32.
      valid: [B, M] bool, False of empty slots; M may be larger than Q, the valid ones of a picture
        not.

    Returns:
      [B, M] int32 queries; Q of an empty slot.
    """
    return jax.pure_callback(assign, jax.ShapeDtypeStruct(valid.shape, np.int32), costs, valid)


def assign(costs: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`match`, on the host."""
    costs, valid = np.asarray(costs), np.asarray(valid)
    queries = np.full(valid.shape, costs.shape[-1], np.int32)
    for row, cost, real in zip(queries, costs, valid):
        row[real] = optimize.linear_sum_assignment(cost[real])[1]
    return queries


def losses(found: Predictions, targets: Targets, matched: jax.Array) -> Losses:
    """The losses of one prediction, given the query of each ground-truth mask [B, M] (`match`)."""
    valid = targets.labels >= 0
    num_masks = jnp.maximum(valid.sum(), 1)
    mean = lambda x: jnp.where(valid, x, 0).sum() / num_masks
    rows = jnp.minimum(matched, found.mask_logits.shape[1] - 1)[..., None, None]
    logits = jnp.take_along_axis(found.mask_logits, rows, 1)  # [B, M, h, w]
    inside, total = jax.nn.sigmoid(logits), functools.partial(jnp.sum, axis=(2, 3))
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits, targets.masks).mean((2, 3))
    dice = _dice(total(inside * targets.masks), total(inside), total(targets.masks))

    batch, queries, classes = found.class_logits.shape
    pictures = jnp.arange(batch)[:, None]
    wanted = jnp.full((batch, queries), classes - 1).at[pictures, matched].set(
        targets.labels, mode="drop")  # [B, Q]; the query Q of an empty slot does not exist
    weight = jnp.where(wanted == classes - 1, NO_OBJECT_WEIGHT, 1.0)
    of_queries = optax.softmax_cross_entropy_with_integer_labels(found.class_logits, wanted)
    return Losses((weight * of_queries).sum() / weight.sum(), mean(cross_entropy), mean(dice))


def _dice(shared, first, second):
    """1 - the share of two soft areas that they have in common; 1 is added against empty masks."""
    return 1 - (2 * shared + 1) / (first + second + 1)
