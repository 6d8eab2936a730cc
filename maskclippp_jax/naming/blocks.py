"""One picture of any size, looked at in blocks of one size, on a CPU by all cores at once."""

import concurrent.futures
import functools
import itertools
import os
import typing

import jax
import numpy as np

from maskclippp_jax.data.mask_chain import MaskSizes, window_of
from maskclippp_jax.naming import postprocess

_BLOCK = {"cpu": (256, 256)}  # pixels of a program for pictures of any size, whole tiles
_LARGE_BLOCK = (1024, 1024)


def look_at(look: typing.Callable[..., typing.Any], sizes: MaskSizes,
            size: typing.Sequence[int]) -> list[list[typing.Any]]:
    """Looks at one picture of any size by a program for blocks of one size.

    So it is the sizes of the masks that ask for a program, and not each size of a picture.

    Args:
      look: called with `canvas`, `corner` and `window` as `postprocess.make_heads` wants them, for
        each block.
      sizes: of its masks, numbers.
      size: its height and width.

    Returns:
      What `look` gave of each block, rows of blocks from the top, on the host.
    """
    tile = postprocess.tile_for()
    block = _BLOCK.get(jax.default_backend(), _LARGE_BLOCK)
    window = window_of(sizes, [int(side) for side in size], tile)
    tops, lefts = (range(0, max(int(side), 1), step) for side, step in zip(size, block))
    corners = [np.array(corner, np.int32) for corner in itertools.product(tops, lefts)]
    start = functools.partial(look, canvas=block, window=window)
    found = [start(corner=corners[0])]  # what it compiles is there for the others
    if jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().empty:
        # What one thread starts, a CPU does in its order, and most of a block on one core.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found += pool.map(lambda c: jax.block_until_ready(start(corner=c)), corners[1:])
    else:
        found += [start(corner=corner) for corner in corners[1:]]
    found = jax.device_get(found)
    return [found[i:i + len(lefts)] for i in range(0, len(found), len(lefts))]


def join(blocks: list[list[np.ndarray]]) -> np.ndarray:
    """Blocks [..., T, U] of `look_at` side by side: [..., H, W], at least as large as asked."""
    return np.concatenate([np.concatenate(row, -1) for row in blocks], -2)


def join_facts(blocks: list[list[postprocess.MaskFacts]]) -> postprocess.MaskFacts:
    """Facts of a picture from those of its blocks."""
    part = lambda name: [[getattr(facts, name) for facts in row] for row in blocks]
    return postprocess.MaskFacts(join(part("winner")),
                     *(np.sum(part(name), (0, 1)) for name in ("covered", "above", "total")),
                     join(part("bits")))
