"""What every reader of checkpoint files gives: arrays by name, each read when it is asked for."""

import collections.abc
import typing

import numpy as np


class Source(collections.abc.Mapping):
    """A mapping from names to arrays that knows all shapes without reading anything."""

    shapes: typing.Mapping[str, tuple[int, ...]]

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)

    def __contains__(self, name):
        return name in self.shapes


class Renamed(Source):
    """A part of a source under new names.

    Args:
      source: the whole.
      names: new name by old name; what is not in it is left out.
    """

    def __init__(self, source: Source, names: typing.Mapping[str, str]):
        self._source = source
        self._old = {new: old for old, new in names.items()}
        self.shapes = {new: source.shapes[old] for old, new in names.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source[self._old[name]]


class ShapesOnly(Source):
    """The names and shapes of a file that is not there."""

    def __init__(self, shapes: typing.Mapping[str, typing.Sequence[int]]):
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        raise LookupError(f"only the shape of {name} is known")
