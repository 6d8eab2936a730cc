"""Opens checkpoint files of any kind as mappings from names to arrays, each read when asked for."""

import collections.abc
import pathlib
import typing

import numpy as np
import safetensors

from maskclippp_jax.weights import hub
from maskclippp_jax.weights.torch_file import TorchFile


class Source(collections.abc.Mapping):
    """A mapping from names to arrays that knows all shapes without reading anything."""

    shapes: typing.Mapping[str, tuple[int, ...]]

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)

    def __contains__(self, name):
        return name in self.shapes


class SafetensorsFile(Source):
    """The tensors of a .safetensors file.

    Raises (on construction):
      FileNotFoundError: no such file.
      ValueError: no safetensors file, or cut short.
    """

    def __init__(self, path: str):
        if not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"no file {path}; give the path of a checkpoint")
        try:
            self._file = safetensors.safe_open(path, framework="numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is no safetensors file, or was cut short ({error})") from None
        self.shapes = {name: tuple(self._file.get_slice(name).get_shape())
                       for name in self._file.keys()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)


class _WithoutPrefix(Source):
    """A source whose names all begin alike, without that beginning."""

    def __init__(self, source: Source, prefix: str):
        self._source, self._prefix = source, prefix
        self.shapes = {name.removeprefix(prefix): shape for name, shape in source.shapes.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source[self._prefix + name]


def read(path: str) -> Source:
    """The tensors of a checkpoint file by name, read one by one.

    Args:
      path: a .safetensors file or a file of torch (.pt, .pth, .bin), here or on the hub
        (`hf://owner/name/file`, see `hub.fetch`).

    Raises:
      FileNotFoundError, ValueError: see `hub.fetch`, `SafetensorsFile`, `torch_file.TorchFile`.
    """
    path = hub.fetch(path)
    file = SafetensorsFile(path) if pathlib.Path(path).suffix == ".safetensors" else TorchFile(path)
    if len(file) and all(name.startswith("module.") for name in file):
        return _WithoutPrefix(file, "module.")  # saved by a parallel wrapper
    return file
