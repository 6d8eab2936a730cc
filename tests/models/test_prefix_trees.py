"""Prompts in trees of prefixes give what each gives by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.models import prefix_trees, text
from tests.models.test_laws import TEXT, near, near_trees

pytestmark = pytest.mark.usefixtures("explicit_ranks")

END = TEXT.vocab_size - 1
LENGTH = TEXT.context_length
SIZE = 32  # tokens of a tree


def lay(prompts):
    ids = np.zeros((len(prompts), LENGTH), np.int32)
    for row, prompt in zip(ids, prompts):
        row[:len(prompt)] = prompt
    return ids


def draw(rng, count, words):
    """Prompts of all lengths, from so few words that they share prefixes, or that they do not."""
    lengths = rng.integers(0, LENGTH - 1, count)
    return lay([[40, *rng.choice(words, n), END] for n in lengths])


def shared(rng):
    names = [rng.integers(0, 39, n) for n in (1, 1, 2, 3, 5)]
    return lay([[40, *start, *name, 7, END] for start in ([1, 2, 3, 4], [1, 2, 5], [6])
                for name in names])


CASES = dict(
    templates=shared,
    few_words=lambda rng: draw(rng, 40, [0, 1]),  # 0, which is padding as well
    many_words=lambda rng: draw(rng, 12, np.arange(39)),
    one=lambda rng: draw(rng, 1, np.arange(39)),
    twice=lambda rng: np.repeat(draw(rng, 30, [1, 2]), 2, 0)[rng.permutation(60)],
    the_same=lambda rng: np.repeat(lay([[END]]), 50, 0),
    nothing_in_common=lambda rng: lay([[n, *rng.integers(0, 39, 3), END] for n in range(39)]),
    cut=lambda rng: np.c_[rng.integers(0, 2, (9, LENGTH - 1)), np.full(9, END)],
    one_in_another=lambda rng: lay([[1, 2, 3], [1, 2, 3, 4], [1, 2], [1, 2, 3, 4, 5]]),
    what_follows=lambda rng: np.where(
        np.arange(LENGTH) > 5, rng.integers(0, 50, (9, LENGTH)), lay([[1, 2, 3, 4, 5, END]])),
)


@functools.cache
def tower():
    make = lambda: text.TextTower(TEXT, rngs=parameters.Keys(0))
    build, _ = parameters.abstract(make)
    return parameters.initialize(make), build


@functools.cache
def encoders():
    build = tower()[1]
    return (jax.jit(lambda p, ids: build(p)(ids)),
            jax.jit(lambda p, trees: build(p).embed_trees(trees)))


@pytest.mark.parametrize("case", CASES)
def test_a_token_sees_the_tokens_before_it_in_its_prompts(case, rng):
    ids = CASES[case](rng).astype(np.int32)
    trees, prompts = prefix_trees.plant(ids, SIZE, 3)
    every = np.broadcast_to(np.arange(SIZE), trees.stops.shape)
    sees = np.asarray(prefix_trees.sees(every, trees.stops))  # [n, M, M]
    assert len(prompts) % 3 == 0
    assert sorted(prompts[prompts >= 0]) == list(range(len(ids)))
    for tree, slot in zip(*np.nonzero(prompts >= 0)):
        row = ids[prompts[tree, slot]]
        path, = np.nonzero(sees[tree, trees.ends[tree, slot]])
        np.testing.assert_array_equal(trees.token_ids[tree, path], row[:row.argmax() + 1])
        np.testing.assert_array_equal(trees.depths[tree, path], np.arange(len(path)))
        for before, token in enumerate(path):
            np.testing.assert_array_equal(np.nonzero(sees[tree, token])[0], path[:before + 1])


@pytest.mark.parametrize("case", CASES)
def test_what_prompts_begin_with_is_in_a_tree_once(case, rng):
    ids = CASES[case](rng).astype(np.int32)
    trees, _ = prefix_trees.plant(ids, ids.size)
    prefixes = {tuple(row[:n + 1]) for row in ids for n in range(row.argmax() + 1)}
    assert len(trees.stops) == 1 and (trees.stops > 0).sum() == len(prefixes)


@pytest.mark.parametrize("case", CASES)
def test_prompts_in_trees_give_what_each_gives_by_itself(case, rng):
    ids = CASES[case](rng).astype(np.int32)
    params, (each, together) = tower()[0], encoders()
    trees, prompts = prefix_trees.plant(ids, SIZE)
    found = np.full((len(ids), TEXT.embed_dim), np.nan, np.float32)
    for tree, rows in zip(zip(*trees), prompts):
        embeddings = together(params, prefix_trees.Trees(*(x[None] for x in tree)))[0]
        found[rows[rows >= 0]] = embeddings[rows >= 0]
    filled = np.resize(ids, (60, LENGTH))
    near(found, each(params, filled)[:len(ids)])


def test_the_last_block_is_asked_for_the_end_tokens_alone(rng):
    ids = jnp.asarray(shared(rng))
    params, build = tower()
    probe = jnp.asarray(rng.normal(size=(len(ids), TEXT.embed_dim)), jnp.float32)

    def in_full(tower, ids):
        tokens = tower.token_embedding[...][ids] + tower.position_table[None]
        for block in tower.blocks:
            tokens = block(tokens, jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool)))
        ends = tokens[jnp.arange(len(ids)), ids.argmax(-1)]
        return tower.norm(ends) @ tower.projection[...]

    def values_and_gradients(embed):
        def objective(params):
            embeddings = embed(build(params), ids)
            return (embeddings * probe).sum(), embeddings

        gradients, embeddings = jax.jit(jax.grad(objective, has_aux=True))(params)
        return embeddings, gradients

    (got, gradients), (want, wanted) = (
        values_and_gradients(embed) for embed in (lambda tower, ids: tower(ids), in_full))
    near(got, want)
    near_trees(gradients, wanted, 2e-5)
