"""Embedding the prompts of a vocabulary, by length and all of one: python benchmarks/text.py

Random weights of real size; both ways by turns in one process, and what they give is compared. The
time is that of all cores of a CPU together, which other programs on the machine disturb little.
"""

import json
import time

import jax
import numpy as np
from absl import app, flags

from maskclippp_jax import params as parameters
from maskclippp_jax.naming import loading
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary
from maskclippp_jax.weights import published

MODEL = flags.DEFINE_string("model", "EVA02-CLIP-B-16", "name as in `maskclippp convert --list`")
VOCABULARY = flags.DEFINE_string("vocabulary", "ade20k_847", "as in `maskclippp names`")
NAMES = flags.DEFINE_integer("names", 150, "of them, at equal distances; 0: all")
REPEATS = flags.DEFINE_integer("repeats", 3, "the best of these counts", lower_bound=1)


def main(argv):
    del argv
    model = published.find_by_name(MODEL.value).model
    _, shapes = parameters.abstract(lambda: model.text.make(rngs=parameters.Keys(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(rng.standard_normal(x.shape, np.float32) / 50), shapes)
    ids = loading.tokenize(model, Vocabulary.shipped(VOCABULARY.value), TEMPLATES_14)
    ids = ids[::max(1, len(ids) // NAMES.value) if NAMES.value else 1][:NAMES.value or None]
    few, of_any_length = loading._FEW, 10**9  # chunks up to which all prompts get one length
    seconds, found = {few: [], of_any_length: []}, {}
    for _ in range(1 + REPEATS.value):  # the first one compiles
        for loading._FEW in seconds:
            start = time.process_time()
            found[loading._FEW] = loading.embed_names(model, params, ids)
            seconds[loading._FEW].append(time.process_time() - start)
    count = ids.shape[0] * ids.shape[1]
    by_length, of_one = (1e3 * min(seconds[way][1:]) / count for way in seconds)
    print(json.dumps(dict(
        model=MODEL.value, prompts=count, longest=ids.shape[-1],
        mean_tokens=round(float((ids.argmax(-1) + 1).mean()), 1),
        by_length_ms=round(by_length, 2), one_length_ms=round(of_one, 2),
        largest_difference=float(abs(found[few] - found[of_any_length]).max()))))


if __name__ == "__main__":
    app.run(main)
