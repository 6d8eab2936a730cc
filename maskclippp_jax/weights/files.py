"""Opens checkpoint files of any kind as mappings from names to arrays, each read when asked for."""

import pathlib

import numpy as np
import safetensors

from maskclippp_jax.weights import hub, big_vision_file
from maskclippp_jax.weights.source import Renamed, Source
from maskclippp_jax.weights.torch_file import TorchFile


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


def read(path: str) -> Source:
    """The tensors of a checkpoint file by name, read one by one.

    Args:
      path: a .safetensors file or a file of torch (.pt, .pth, .bin), here or on the hub
        (`hf://owner/name/file`, see `hub.fetch`); or a checkpoint of big_vision (.npz, or a folder,
        see `big_vision_file.read`).

    Raises:
      FileNotFoundError, ValueError: see `hub.fetch`, `SafetensorsFile`, `torch_file.TorchFile`,
        `big_vision_file.read`.
    """
    path = hub.fetch(path)
    if big_vision_file.matches(path):
        return big_vision_file.read(path)
    file = SafetensorsFile(path) if pathlib.Path(path).suffix == ".safetensors" else TorchFile(path)
    if len(file) and all(name.startswith("module.") for name in file):
        # Saved by a parallel wrapper.
        return Renamed(file, {name: name.removeprefix("module.") for name in file})
    return file
