"""Reads torch checkpoints without torch, and without trusting them.

A checkpoint is a zip archive with a pickle that describes tensors and one raw file per storage. The
pickle is run by `pickles`, with stand-ins for tensors: nothing of what it names is imported, and
what else lies beside the tensors is skipped, so a hostile file can do nothing. Tensors are read one
by one when they are asked for.

A TorchScript archive (OpenAI's CLIP) is the same with modules in place of dictionaries. Its classes
are named `__torch__.*` and their code lies beside the pickle; here a module is a bag of attributes
and no code is looked at.
"""

import dataclasses
import io
import math
import pathlib
import pickle
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np

from maskclippp_jax.weights import pickles
from maskclippp_jax.weights.pickles import Call
from maskclippp_jax.weights.source import Source, check_file

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LARGEST_PICKLE = 1 << 26  # bytes of the list of tensors, which has some hundred for each
_MOST = 1 << 48            # numbers of a tensor, or along one of its axes
_LOCAL_HEADER = 30         # bytes, the last of which are two lengths, of a name and of more behind
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, KeyError, EOFError, OSError,
            NotImplementedError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: which storage, from which element on, and with which steps."""

    storage: str
    dtype: np.dtype
    storage_size: int  # elements
    offset: int        # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


class TorchFile(Source):
    """The tensors of a checkpoint by name, each read from the file when it is asked for.

    `content` is the whole unpickled object, with a `TensorEntry` in place of every tensor. The
    mapping shows the dictionary of tensors: the object itself, or the one under the first of the
    given keys that exists; of a TorchScript module, the tensors of all its modules.

    Raises (on construction):
      FileNotFoundError: no such file.
      ValueError: see `check_file`; not a torch archive, damaged, or a pickle that asks for anything
        but tensors.
    """

    def __init__(self, path: str, keys: tuple[str, ...] = (
            "model", "module", "state_dict", "model_state_dict", "weights")):
        self._path = pathlib.Path(path)
        check_file(path)
        try:
            self._archive = zipfile.ZipFile(self._path)
        except _DAMAGED:
            raise ValueError(_not_an_archive(self._path)) from None
        self._bytes = np.asarray(np.memmap(self._path, np.uint8, "r"))
        lists = [n for n in self._archive.namelist() if n.split("/")[-1] == "data.pkl"]
        if len(lists) != 1:
            raise ValueError(f"{path} is a zip archive without a data.pkl, so not a torch "
                             "checkpoint (one of big_vision must end in .npz)")
        self._root = lists[0][:-len("data.pkl")]
        if f"{self._root}byteorder" in self._archive.namelist():
            if self._member("byteorder", "its byte order") != b"little":
                raise ValueError(f"{path} holds big-endian numbers; save it again on a common "
                                 "machine")
        self.content = _unpickle(self._member("data.pkl", "its list of tensors"), path)
        tensors = self.content
        if isinstance(tensors, _Module):
            tensors = tensors.tensors()
        for key in keys:
            if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
                tensors = tensors[key]
                break
        if isinstance(tensors, pickles.Skipped):
            raise ValueError(f"{path} holds a whole {tensors.stands_for}, wanted a dictionary of "
                             "tensors; save its state_dict() in its place")
        if not isinstance(tensors, dict):
            raise ValueError(f"{path} holds a {type(tensors).__name__}, wanted a dictionary of "
                             "tensors")
        self._entries = {k: v for k, v in tensors.items() if isinstance(v, TensorEntry)}
        odd = next((k for k in self._entries if not isinstance(k, str)), None)
        if odd is not None:
            raise ValueError(f"{path} calls a tensor {odd!r}, wanted names")
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        if math.prod(entry.shape) == 0:
            return np.zeros(entry.shape, entry.dtype)
        raw = self._numbers(f"data/{entry.storage}", f"the numbers of {name!r}")
        item = np.dtype(entry.dtype).itemsize
        flat = raw[:len(raw) // item * item].view(entry.dtype)
        reach = entry.offset + sum((n - 1) * s for n, s in zip(entry.shape, entry.strides)) + 1
        if entry.offset < 0 or min(entry.strides, default=0) < 0 or reach > len(flat):
            raise ValueError(f"{self._path} is damaged: {name!r} reaches beyond its storage")
        # Before anything is copied: strides of 0 could make any size of a single number.
        if math.prod(entry.shape) > len(flat):
            raise ValueError(f"{self._path} is damaged: {name!r} of the shape {entry.shape} has "
                             f"only {len(flat)} numbers in the file; save it again with "
                             "contiguous tensors")
        return np.lib.stride_tricks.as_strided(
            flat[entry.offset:], entry.shape, [s * item for s in entry.strides], writeable=False)

    def _numbers(self, name: str, what: str) -> np.ndarray:
        """A file of the archive as uint8: the bytes of the archive themselves, if torch wrote it,
        which does not compress them."""
        try:
            info = self._info(name)
            if info.compress_type != zipfile.ZIP_STORED:
                return np.frombuffer(self._archive.read(info), np.uint8)
            self._archive.open(info).close()  # looks at the header before it
            end = info.header_offset + _LOCAL_HEADER
            start = end + sum(struct.unpack("<HH", self._bytes[end - 4:end]))
            content = self._bytes[start:start + info.file_size]
            if len(content) < info.file_size:
                raise EOFError("it should have more bytes than the file")
            if zlib.crc32(content) != info.CRC:
                raise zipfile.BadZipFile("its checksum is another")
        except _DAMAGED as error:
            raise self._damaged(what, error) from None
        return content

    def _member(self, name: str, what: str) -> bytes:
        """A file of the archive."""
        try:
            return self._archive.read(self._info(name))
        except _DAMAGED as error:
            raise self._damaged(what, error) from None

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self._archive.getinfo(f"{self._root}{name}")
        # zipfile makes room for either number at once.
        if max(info.file_size, info.compress_size) > len(self._bytes):
            raise EOFError("it should have more bytes than the file")
        return info

    def _damaged(self, what: str, error: Exception) -> ValueError:
        return ValueError(f"{self._path} is damaged: {what} cannot be read ({error}); download it "
                          "again")


def _not_an_archive(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        head = file.read(1)
    if head == b"\x80":
        return (f"{path} was saved by a torch older than 1.6 or is a bare pickle; save it again "
                "with a newer torch, or as safetensors")
    return f"{path} is no torch checkpoint (no zip archive), or was cut short; download it again"


class _Storage(pickles.Named):
    """Stands for a torch storage class while unpickling."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


def _rebuild_tensor(storage, offset, shape, strides, *_unused):
    dtype, key, size = storage
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    sizes = (size, int(offset), *shape, *strides)
    if len(shape) != len(strides) or not all(0 <= n < _MOST for n in sizes):
        raise pickle.UnpicklingError(f"a tensor has the shape {shape} and the steps {strides}")
    return TensorEntry(key, dtype, size, int(offset), shape, strides)


def _rebuild_parameter(tensor, *_unused):
    return tensor


class _Module:
    """Stands for a TorchScript module while unpickling: nothing but attributes."""

    def __setstate__(self, state):
        vars(self).update(state)

    def tensors(self) -> dict[str, TensorEntry]:
        """Tensors of this module and of all below it, by dotted name; each module counts once."""
        found, entered, waiting = {}, {id(self)}, [("", self)]
        while waiting:
            prefix, module = waiting.pop()
            for name, value in vars(module).items():
                if isinstance(value, TensorEntry):
                    found[f"{prefix}{name}"] = value
                elif isinstance(value, _Module) and id(value) not in entered:
                    entered.add(id(value))
                    waiting.append((f"{prefix}{name}.", value))
        return found


def _rebuild_from_type(function, kind, arguments, state):
    """A tensor with attributes, or of a class of its own."""
    del kind, state
    if not isinstance(function, Call):
        raise pickle.UnpicklingError(f"it asks for {getattr(function, 'stands_for', function)}")
    return function(*arguments)


class _TensorUnpickler(pickles.Unpickler):
    known = {
        **{("torch", name): _Storage(dtype) for name, dtype in _STORAGES.items()},
        ("torch._utils", "_rebuild_tensor_v2"): Call(_rebuild_tensor),
        ("torch._utils", "_rebuild_parameter"): Call(_rebuild_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): Call(_rebuild_parameter),
        ("torch._tensor", "_rebuild_from_type_v2"): Call(_rebuild_from_type)}

    def find_class(self, module, name):
        return _Module if module.split(".")[0] == "__torch__" else super().find_class(module, name)

    def persistent_load(self, pid):
        kind, storage, key, _, size = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"it asks for an object of kind {kind!r}")
        return storage.dtype, str(key), int(size)


def _unpickle(data: bytes, path: str):
    try:
        if len(data) > _LARGEST_PICKLE:
            raise pickle.UnpicklingError(f"its list of tensors has {len(data)} bytes")
        pickles.check_memo(data)
        return _TensorUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a hostile or cut pickle can raise anything
        raise ValueError(f"{path} is refused: a checkpoint may hold tensors and data beside "
                         f"them, and call nothing, but {error}") from None
