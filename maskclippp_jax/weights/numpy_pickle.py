"""Reads pickles of numpy arrays (.pkl, as detectron2's model zoo has them) without trusting them.

`pickles` runs it; arrays and their types get stand-ins, which do nothing but remember.
"""

import math
import pickle

import numpy as np

from maskclippp_jax.weights import pickles
from maskclippp_jax.weights.pickles import Call
from maskclippp_jax.weights.source import Source, check_file

_DTYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")


class _Dtype:
    """Stands for a numpy.dtype while unpickling."""

    def __init__(self, code, *_unused):
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if self.code not in _DTYPES or self.order not in "<|=":
            raise pickle.UnpicklingError(f"an array is of {self.code!r} in the order {self.order}")
        return np.dtype(self.code).newbyteorder("<")


class _Array:
    """Stands for a numpy.ndarray while unpickling."""

    def __init__(self, *_unused):
        self.shape, self.dtype, self.is_fortran, self.raw = (), None, False, b""

    def __setstate__(self, state):
        _, shape, dtype, self.is_fortran, raw = state
        self.raw = raw.encode("latin1") if isinstance(raw, str) else raw
        self.shape, self.dtype = tuple(map(int, shape)), dtype.numpy()
        if min(self.shape, default=0) < 0 or (
                math.prod(self.shape) * self.dtype.itemsize != len(self.raw)):
            raise pickle.UnpicklingError(f"an array of the shape {self.shape} has {len(self.raw)} "
                                         "bytes")


def _scalar(dtype, raw):
    array = _Array()
    array.__setstate__((1, (), dtype, False, raw))
    return array


def _encode(text, encoding):
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes as {encoding!r}")
    return text.encode("latin1")


def _no_bytes():
    return b""  # what an empty array of protocol 2 has


class _Unpickler(pickles.Unpickler):
    known = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype,
             ("numpy.core.multiarray", "_reconstruct"): _Array,
             ("numpy.core.multiarray", "scalar"): Call(_scalar),
             ("_codecs", "encode"): Call(_encode), ("builtins", "bytes"): Call(_no_bytes)}


class NumpyPickle(Source):
    """The arrays of a pickled dictionary by name, or of the one under its key `model`.

    Raises (on construction):
      FileNotFoundError: no such file.
      ValueError: see `check_file`; no pickle, damaged, or one that asks for anything but arrays.
    """

    def __init__(self, path: str):
        check_file(path)
        content = _unpickle(path)
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            content = content["model"]
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}, wanted a dictionary of "
                             "arrays")
        self._arrays = {k: x for k, x in content.items()
                        if isinstance(k, str) and isinstance(x, _Array)}
        self.shapes = {name: x.shape for name, x in self._arrays.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        return np.frombuffer(array.raw, array.dtype).reshape(
            array.shape, order="F" if array.is_fortran else "C")


def _unpickle(path: str):
    try:
        with open(path, "rb") as file:
            pickles.check_memo(file)
            file.seek(0)
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a hostile or cut pickle can raise anything
        raise ValueError(f"{path} is refused: a .pkl of weights may hold arrays, dictionaries and "
                         f"words only, but {error}") from None
