"""What a second start of a program finds on the disk."""

import pathlib
import typing

import numpy as np

from maskclippp_jax.runtime import texts


def check(start: typing.Callable[[], typing.Sequence[np.ndarray]], folder: pathlib.Path,
          forbid: typing.Callable[[], None]) -> None:
    """A first and a second start that keep texts give what one does that keeps none; `forbid` is
    called before the second, which must do without what it takes away."""
    plain = start()
    texts.keep(folder)
    try:
        first = start()
        forbid()
        second = start()
    finally:
        texts.keep(None)
    for wanted, *found in zip(plain, first, second):
        for x in found:
            np.testing.assert_array_equal(x, wanted)
