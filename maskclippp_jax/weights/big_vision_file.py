"""Checkpoints of google-research/big_vision: `.npz` files, and the folders it saves today.

An .npz holds one array a leaf, named by its path. A folder `checkpoint.bv-<step>` holds one zarr
array a leaf, with "~" for "/" in its name; a file `checkpoint.bv-LAST` beside it holds the newest
step. Both are brought to one form of names here, so that one rule table (`big_vision`) reads all.
"""

import math
import pathlib
import re
import typing
import zipfile

import ml_dtypes
import numpy as np

from maskclippp_jax.runtime import storage
from maskclippp_jax.weights.source import Renamed, Source, check_file

_SUFFIX = re.compile(r"(.*(?:\.npz|checkpoint\.bv[^/:]*))(?::([\w/]+))?")
_PREFIXES = ("params/", "opt/target/")
# Of a training state: optimiser and clock.
_LEFT_OUT = re.compile(r"(opt|chrono)/.*")
# Names of old files, and what they are called today.
_OLD_NAMES = (
    (re.compile(r"img/Transformer/(posembed_input/)?pos_embedding"), r"img/pos_embedding"),
    (re.compile(r"img/(probe|(MultiHeadDotProductAttention|MlpBlock|LayerNorm)_0/.*)"),
     r"img/MAPHead_0/\1"),
)
# Very old text towers have two tables, which were added one after the other.
_TABLE, _SECOND_TABLE = "txt/pos_embedding", "txt/Encoder_0/pos_embedding"
_STACK = re.compile(r"(.*/encoderblock)/(.*)")


def matches(path: str) -> bool:
    """Whether a path names such a checkpoint; it may end in `:img` or `:txt`, a part of it."""
    return _SUFFIX.fullmatch(path) is not None


def read(path: str) -> Source:
    """The leaves of a checkpoint under today's names without prefix, one set of names a block.

    Args:
      path: `x.npz`, a folder `.../checkpoint.bv-000001234`, or `.../checkpoint.bv` for the newest
        of them; `x.npz:img` is only what lies below `img/`, under its full names.

    Raises:
      FileNotFoundError, ValueError: none there, or damaged.
    """
    file, part = _SUFFIX.fullmatch(path).groups()
    stored = NpzFile(storage.local_copy(file)) if file.endswith(".npz") else TensorStoreFolder(file)
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in stored):
            stored = Renamed(stored, {name: name.removeprefix(prefix) for name in stored
                                       if name.startswith(prefix)})
            break
    names = {name: name for name in stored if not _LEFT_OUT.fullmatch(name)}
    for pattern, today in _OLD_NAMES:
        names = {old: pattern.sub(today, new) if pattern.fullmatch(new) else new
                 for old, new in names.items()}
    if part:
        names = {old: new for old, new in names.items() if f"{new}/".startswith(f"{part}/")}
        if not names:
            raise ValueError(f"{file} holds nothing below {part}/")
    return Unstacked(_OneTable(Renamed(stored, names)))


class NpzFile(Source):
    """The arrays of an .npz file.

    Raises (on construction):
      FileNotFoundError: no such file.
      ValueError: see `check_file`; no .npz file, cut short, or one of pickled objects.
    """

    def __init__(self, path: str):
        check_file(path)
        try:
            self._file = np.load(path, allow_pickle=False)
            self.shapes = {}
            for info in self._file.zip.infolist():
                name = info.filename.removesuffix(".npy")
                with self._file.zip.open(info) as head:
                    self.shapes[name] = _read_header(head, info.file_size)
        except Exception as error:  # numpy reads headers with Python's parser: anything may come
            raise ValueError(f"{path} is no .npz file, or was cut short ({error})") from None
        self._path = path

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            array = self._file[name]
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"{self._path} is damaged: {name} cannot be read ({error}); download "
                             "it again") from None
        # numpy has no bfloat16 and stores two bytes without a meaning.
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _read_header(head: typing.BinaryIO, size: int) -> tuple[int, ...]:
    """The shape of an array of so many bytes, with its header.

    Raises:
      ValueError: the header tells of more numbers, or fewer, than there are.
    """
    version = np.lib.format.read_magic(head)
    header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
              else np.lib.format.read_array_header_2_0)
    shape, _, dtype = header(head)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != size - head.tell():
        raise ValueError(f"an array of the shape {shape} and type {dtype} has {size} bytes")
    return shape


class TensorStoreFolder(Source):
    """The arrays of a folder that big_vision saved.

    Raises (on construction):
      FileNotFoundError: no such folder, or nothing in it.
    """

    def __init__(self, path: str):
        newest = storage.path(f"{path}-LAST")
        folder = pathlib.Path(storage.local_copy(
            f"{path}-{newest.read_text().strip()}" if newest.is_file() else path))
        leaves = sorted(x for x in folder.iterdir() if x.is_dir()) if folder.is_dir() else ()
        if not leaves:
            raise FileNotFoundError(f"no checkpoint {path}; wanted a folder with one array a leaf "
                                    "(params~img~embedding~kernel, ...), as big_vision saves it")
        self._leaves = {leaf.name.replace("~", "/"): leaf for leaf in leaves}
        self.shapes = {name: tuple(_open(leaf).shape) for name, leaf in self._leaves.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return _open(self._leaves[name]).read().result()


def _open(leaf: pathlib.Path):
    import tensorstore  # comes with orbax-checkpoint; only these folders need it

    try:
        return tensorstore.open({
            "driver": "zarr", "kvstore": {"driver": "file", "path": str(leaf)}}, read=True).result()
    except ValueError as error:
        raise ValueError(f"{leaf} is damaged ({error}); copy the checkpoint again") from None


class _OneTable(Source):
    """A source in which the second table is a part of the first."""

    def __init__(self, source: Source):
        self._source = source
        self._has_two = {_TABLE, _SECOND_TABLE} <= set(source)
        self.shapes = {name: shape for name, shape in source.shapes.items()
                       if not (self._has_two and name == _SECOND_TABLE)}

    def __getitem__(self, name: str) -> np.ndarray:
        if self._has_two and name == _TABLE:
            return self._source[_TABLE] + self._source[_SECOND_TABLE]
        return self._source[name]


class Unstacked(Source):
    """`.../encoderblock/x` with an axis of blocks in front becomes `.../encoderblock_0/x`, ..."""

    def __init__(self, source: Source):
        self._source, self._slices, self.shapes = source, {}, {}
        self._read = None, None  # the stack read last: its blocks are asked for one after another
        for name, shape in source.shapes.items():
            stack = _STACK.fullmatch(name)
            if stack is None or not shape:
                self.shapes[name] = shape
                continue
            for i in range(shape[0]):
                block = f"{stack[1]}_{i}/{stack[2]}"
                self._slices[block] = name, i
                self.shapes[block] = shape[1:]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._slices:
            return self._source[name]
        stack, i = self._slices[name]
        if self._read[0] != stack:
            self._read = stack, self._source[stack]
        return self._read[1][i]
