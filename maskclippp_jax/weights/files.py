"""Opens checkpoint files of any kind as mappings from names to arrays, each read when asked for."""

import json
import os
import pathlib
import re
import struct
import typing

import ml_dtypes
import numpy as np
import safetensors

from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.weights import big_vision_file, hub
from maskclippp_jax.weights.numpy_pickle import NumpyPickle
from maskclippp_jax.weights.source import Renamed, Source, check_file
from maskclippp_jax.weights.torch_file import TorchFile

# What wrappers for training put before all names (torch.compile, Lightning, parallel ones).
_PREFIXES = ("_orig_mod.", "model.", "module.")
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "I64": "<i8",
           "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2",
           "U8": "<u1", "BOOL": "?"}


class Place(typing.NamedTuple):
    """Where a tensor lies in a .safetensors file."""

    dtype: str  # as the format calls it
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    size: int   # bytes


def places(path: str | os.PathLike) -> dict[str, Place]:
    """Where the tensors of a whole .safetensors file lie, by name.

    Raises:
      ValueError: no safetensors file, or cut short.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):  # looks at all of the header
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or was cut short ({error})") from None
    with open(path, "rb") as file:
        length, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: Place(entry["dtype"], tuple(entry["shape"]), 8 + length + start, end - start)
            for name, entry in header.items() if name != "__metadata__"
            for start, end in [entry["data_offsets"]]}


class SafetensorsFile(Source):
    """The tensors of a .safetensors file: its bytes themselves, so that nothing is copied.

    Raises (on construction):
      FileNotFoundError: no such file.
      ValueError: see `check_file`; no safetensors file, or cut short.
    """

    def __init__(self, path: str):
        check_file(path)
        self._places = places(path)
        for name, place in self._places.items():
            if place.dtype not in _DTYPES:
                raise ValueError(f"{path} stores {name} as {place.dtype}; read here are "
                                 f"{', '.join(_DTYPES)}, so save it as one of these")
        self.shapes = {name: place.shape for name, place in self._places.items()}
        self._bytes = np.asarray(np.memmap(path, np.uint8, "r"))

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, start, size = self._places[name]
        return self._bytes[start:start + size].view(_DTYPES[dtype]).reshape(shape)


T = typing.TypeVar("T")


class _Index(typing.TypedDict):
    weight_map: dict[str, str]


class Parts(Source):
    """A checkpoint that was cut into several files, as an index says.

    Args:
      index: path of the index, `x.safetensors.index.json`.
      open_part: opens a file that it names.

    Raises (on construction):
      FileNotFoundError: no such file, or a part is absent.
      ValueError: no index, or a part lacks what it should hold.
    """

    def __init__(self, index: str, open_part: typing.Callable[[str], Source]):
        if not pathlib.Path(index).is_file():
            raise FileNotFoundError(f"no file {index}; give the path of a checkpoint")
        try:
            file_of = typed.read(index, _Index)["weight_map"]
        except ValueError as error:
            raise ValueError(f"{error}; an index of a checkpoint has a weight_map: download it "
                             "again") from None
        odd = [name for name in file_of.values()
               if name.endswith(".index.json") or pathlib.PurePath(name).name != name]
        if odd or not file_of:
            raise ValueError(f"{index} names {odd[0] if odd else 'no tensor'}, wanted files of "
                             "tensors beside it; download it again")
        files, parts = sorted(set(file_of.values())), {}
        for file in files:
            try:
                parts[file] = open_part(file)
            except FileNotFoundError:
                raise FileNotFoundError(f"{index} is the list of {len(files)} files, of which "
                                        f"{file} is not here; download all of them") from None
        self._part = {name: parts[file] for name, file in file_of.items()}
        lost = [name for name, part in self._part.items() if name not in part]
        if lost:
            raise ValueError(f"{file_of[lost[0]]} does not hold {', '.join(lost)}, which {index} "
                             "says; download both again")
        self.shapes = {name: part.shapes[name] for name, part in self._part.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._part[name][name]


def beside(path: str, file: str, wanted: type[T]) -> T | None:
    """The JSON of a file beside a checkpoint as a type, see `runtime.typed`; None if there is none.
    """
    try:
        place = hub.fetch(hub.beside(path, file))
    except FileNotFoundError:
        return None
    return typed.read(place, wanted) if storage.path(place).is_file() else None


def read(path: str) -> Source:
    """The tensors of a checkpoint file by name, read one by one.

    Args:
      path: a .safetensors file, a file of torch (.pt, .pth, .bin), or a pickle of arrays of
        detectron2's model zoo (.pkl), also without such an ending, here, in a bucket
        (`gs://...`), or on the hub (`hf://owner/name/file`, see `hub.fetch`); the index of several
        such files (.index.json); or a checkpoint of big_vision (.npz, or a folder, see
        `big_vision_file.read`). Prefixes of wrappers (`module.`, ...) that all names have are cut.

    Raises:
      FileNotFoundError, ValueError: see `hub.fetch`, `SafetensorsFile`, `torch_file.TorchFile`,
        `NumpyPickle`, `Parts`, `big_vision_file.read`.
    """
    local = hub.fetch(path)
    if big_vision_file.matches(local):
        return big_vision_file.read(local)
    local = storage.local_copy(local)
    if local.endswith(".index.json"):
        return _without_prefix(Parts(local, lambda file: _read_file(
            storage.local_copy(hub.fetch(hub.beside(path, file))))))
    part = _PART.fullmatch(pathlib.Path(local).name)
    if part and int(part[2]) > 1:
        raise ValueError(f"{path} is one of the {int(part[2])} files of a checkpoint; give their "
                         f"index, {part[1]}{part[3]}.index.json, and keep all of them beside it")
    return _without_prefix(_read_file(local))


def _read_file(path: str) -> Source:
    """A single file here, of the kind that it begins as, or else that its name ends in."""
    readers = {".safetensors": SafetensorsFile, ".pkl": NumpyPickle}
    if pathlib.Path(path).is_file():
        with open(path, "rb") as file:
            # The length of a header in JSON, as no other kind of file begins.
            if file.read(9)[4:] == b"\0\0\0\0{":
                return SafetensorsFile(path)
    return readers.get(pathlib.Path(path).suffix, TorchFile)(path)


def _without_prefix(file: Source) -> Source:
    """A source without the prefixes that all of its names have in common."""
    cut = ""
    while prefix := next((p for p in _PREFIXES if len(file) and all(
            name.startswith(cut + p) for name in file)), None):
        cut += prefix
    return Renamed(file, {name: name.removeprefix(cut) for name in file}) if cut else file
