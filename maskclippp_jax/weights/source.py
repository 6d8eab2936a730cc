"""What every reader of checkpoint files gives: arrays by name, each read when it is asked for."""

import collections.abc
import pathlib
import typing

import numpy as np


def check_file(path: str | pathlib.Path) -> None:
    """Sees that a checkpoint file is there, and not what often lies in its place.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a folder, nothing, a web page, or a note of Git LFS that stands for the file.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, wanted a checkpoint; give a file of it")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give the path of a checkpoint")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty; download it again")
    if head.lstrip()[:1] == b"<" and b"\0" not in head:
        raise ValueError(f"{path} is a web page, not a checkpoint; download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a note of Git LFS in place of the checkpoint; fetch that with "
                         "`git lfs pull`, or download the file itself")


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
