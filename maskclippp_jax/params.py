"""Parameters as plain nested dicts: building a module from them, naming them, splitting them.

Models are defined with NNX and trained as dicts under one `jax.jit`: that is several times cheaper
per step on the host than passing modules, and a path such as `image/blocks/0/norm1/scale` is all
that weights, optimiser and sharding need to know.
"""

import concurrent.futures
import hashlib
import os
import typing

import jax
import numpy as np
from etils import epy
from flax import nnx

with epy.lazy_imports():  # slow to import, and nothing to a model that is only used
    import optax

Tree = typing.Any  # nested dict of arrays, or of anything shaped like one


def abstract(make_model: typing.Callable[[], nnx.Module]) -> tuple[typing.Callable, Tree]:
    """Splits a model from its parameters without touching memory.

    Returns:
      `build(params) -> module`, cheap, to be called inside `jit`; and the nested dict of
      `jax.ShapeDtypeStruct` that `build` expects.
    """
    graph, state = nnx.split(nnx.eval_shape(make_model), nnx.Param)
    # Without weak types, which parameters from files do not have: programs would differ.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                          nnx.to_pure_dict(state))

    def build(params: Tree) -> nnx.Module:
        filled = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled)

    return build, shapes


class Keys:
    """Keys for initialisers, one after the other: the same as those of `nnx.Rngs(seed)`.

    nnx.Rngs counts with an array, which `abstract` traces, in time quadratic in the layers (seconds
    for a large tower).
    """

    def __init__(self, seed: int):
        self._seed, self._count = seed, 0

    def params(self) -> jax.Array:
        self._count += 1
        return jax.random.fold_in(jax.random.key(self._seed), self._count - 1)


def initialize(make_model: typing.Callable[[], nnx.Module]) -> Tree:
    """Random parameters, as the model's own initialisers draw them."""
    return nnx.to_pure_dict(nnx.state(make_model(), nnx.Param))


def path_of(path) -> str:
    """A key path of `jax.tree_util` as `image/blocks/0/norm1/scale`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Tree) -> dict[str, typing.Any]:
    """Leaves by path, in a fixed order; None is no leaf."""
    return {path_of(p): x for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(leaves: typing.Mapping[str, typing.Any]) -> Tree:
    """The inverse of `flatten`; numbers in a path are list positions and become int keys."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = (int(k) if k.isdigit() else k for k in path.split("/"))
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def partition(tree: Tree, is_trainable: typing.Callable[[str], bool]) -> tuple[Tree, Tree]:
    """(trainable, frozen): two nested dicts that hold disjoint leaves of the tree."""
    leaves = flatten(tree)
    pick = lambda want: unflatten({p: x for p, x in leaves.items() if is_trainable(p) == want})
    return pick(True), pick(False)


def combine(first: Tree, second: Tree) -> Tree:
    """The inverse of `partition`."""
    return unflatten({**flatten(first), **flatten(second)})


def distances(original: Tree, tuned: Tree) -> dict[str, jax.Array]:
    """|tuned - original| / |original| of each part (`image`, `text`, ...), all its numbers as one
    vector."""
    norm = optax.tree.norm
    return {part: norm(jax.tree.map(lambda x, y: y - x, original[part], tuned[part]))
            / norm(original[part]) for part in original}


def interpolate(original: Tree, tuned: Tree, share: float) -> Tree:
    """Weights on the line from the original (share 0) to the tuned ones (share 1).

    Tuned ones often keep more of what the original knew a part of the way back (Wortsman et al.
    2022, arXiv 2109.01903). The similarity head, which a CLIP has not, stays the tuned one.
    """
    if share == 1:
        return tuned  # to the last bit, which the sum below is not
    before = flatten(original)
    return unflatten({
        path: x if path.startswith("similarity/") else before[path] + share * (x - before[path])
        for path, x in flatten(tuned).items()})


def contents(tree: Tree) -> typing.Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """Path, dtype, shape and a hash of the numbers of each leaf on the host, in order of paths."""
    arrays = dict(sorted(flatten(tree).items()))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for (path, x), content in zip(arrays.items(), pool.map(_hash, arrays.values())):
            yield path, x.dtype.str, x.shape, content


def _hash(array: np.ndarray) -> bytes:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(content, digest_size=16).digest()


def digest(tree: Tree) -> str:
    """A hash of all numbers of a tree, 16 hexadecimal digits."""
    return hashlib.blake2b(repr(list(contents(jax.device_get(tree)))).encode(),
                           digest_size=8).hexdigest()


def count(tree: Tree) -> int:
    """Numbers in all leaves together."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
