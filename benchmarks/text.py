"""Embedding the prompts of a vocabulary, in trees and one by one: python benchmarks/text.py

Random weights of real size; both ways by turns in one process, and what they give is compared. The
time is that of all cores of a CPU together, which other programs on the machine disturb little. A
whole vocabulary once, and not one by one: --names=0 --repeats=1 --noone_by_one
"""

import functools
import json
import time

import jax
import numpy as np
from absl import app, flags

from maskclippp_jax import params as parameters
from maskclippp_jax.models import prefix_trees, similarity
from maskclippp_jax.naming import loading
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary
from maskclippp_jax.weights import published

MODEL = flags.DEFINE_string("model", "EVA02-CLIP-B-16", "name as in `maskclippp convert --list`")
VOCABULARY = flags.DEFINE_string("vocabulary", "ade20k_847", "as in `maskclippp names`")
NAMES = flags.DEFINE_integer("names", 150, "of them, at equal distances; 0: all")
REPEATS = flags.DEFINE_integer("repeats", 3, "the best of these counts", lower_bound=1)
ONE_BY_ONE = flags.DEFINE_bool("one_by_one", True, "whether this way is measured as well")
_PROMPTS = 256  # encoded at a time, all of one length


def main(argv):
    del argv
    model = published.find_by_name(MODEL.value).model
    build, shapes = parameters.abstract(lambda: model.text.make(rngs=parameters.Keys(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(rng.standard_normal(x.shape, np.float32) / 50), shapes)
    ids = loading.tokenize(model, Vocabulary.shipped(VOCABULARY.value), TEMPLATES_14)
    ids = ids[::max(1, len(ids) // NAMES.value) if NAMES.value else 1][:NAMES.value or None]
    flat = ids.reshape(-1, ids.shape[-1])
    encode = jax.jit(lambda params, ids: similarity.unit(build(params)(ids)))
    ways = dict(trees=functools.partial(loading.embed_names, model, params))
    if ONE_BY_ONE.value:
        ways["one_by_one"] = functools.partial(one_by_one, encode, params)
    seconds, found = {way: [] for way in ways}, {}
    for embed in ways.values():
        embed(ids[:1])  # compiles
    for _ in range(REPEATS.value):
        for way, embed in ways.items():
            start = time.process_time()
            found[way] = embed(ids)
            seconds[way].append(time.process_time() - start)
    start = time.process_time()
    trees, _ = prefix_trees.plant(flat, loading._TREE)
    planting = time.process_time() - start
    of_each = {f"{way}_ms": round(1e3 * min(some) / len(flat), 2) for way, some in seconds.items()}
    difference = max(float(abs(x - found["trees"]).max()) for x in found.values())
    print(json.dumps(dict(
        model=MODEL.value, prompts=len(flat), tokens=int((flat.argmax(-1) + 1).sum()),
        longest=ids.shape[-1], tokens_in_trees=int((trees.stops > 0).sum()), **of_each,
        trees_seconds=round(min(seconds["trees"]), 1), planting_seconds=round(planting, 3),
        largest_difference=difference)))


def one_by_one(encode, params, ids):
    """Every prompt by itself, all at the length of the longest."""
    flat, found = ids.reshape(-1, ids.shape[-1]), []
    for i in range(0, len(flat), _PROMPTS):
        some = flat[i:i + _PROMPTS]
        found.append(np.asarray(encode(params, np.resize(some, (_PROMPTS, ids.shape[-1]))))
                     [:len(some)])
    return np.concatenate(found).reshape(*ids.shape[:2], -1)


if __name__ == "__main__":
    app.run(main)
