"""Running a pickle without trusting it: unpicklers that know a few names and do nothing else.

A pickle is a program that names functions and classes, and calls them. Here nothing is imported or
called. What is wanted (tensors, arrays, dictionaries) has stand-ins. Other data (settings, paths,
sets, numbers of an optimiser) are skipped: what the makers listed here make, objects of classes
that are not Python's own, and of any class that the pickle fills in without a call. Any other call
is refused, by name.
"""

import _compat_pickle  # as `pickle` itself reads old names
import collections
import pickle
import pickletools
import sys
import typing

# Data that is made by calls of harmless makers: it is skipped.
_DATA = {
    "builtins": ("bool", "bytearray", "bytes", "complex", "float", "frozenset", "int", "list",
                 "object", "range", "set", "slice", "str", "tuple"),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath",
                "PureWindowsPath"),
    "collections": ("Counter", "deque"), "argparse": ("Namespace",), "types": ("SimpleNamespace",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",), "fractions": ("Fraction",), "uuid": ("UUID",),
    "torch": ("Size", "device"), "copyreg": ("_reconstructor",),
    "numpy": ("dtype", "ndarray"), "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy.random.bit_generator": ("__pyx_unpickle_SeedSequence",),
    "numpy.random._pickle": ("__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"),
    "_codecs": ("encode",),
}
_MOST_NAMES = 1000  # unknown ones in a pickle; each takes a kilobyte


def _today(module: str, name: str) -> tuple[str, str]:
    """What Python 2, whose names old protocols keep, or another version called otherwise."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    module = _compat_pickle.IMPORT_MAPPING.get(module, module)
    return module.replace("numpy._core", "numpy.core").replace("pathlib._local", "pathlib"), name


def _is_data(module: str, name: str) -> bool:
    """Whether what a call makes is data: of the list above, or of a class of somebody's settings.

    Classes have capitals. Those of Python itself are too mighty (subprocess.Popen).
    """
    is_class = name.rpartition(".")[2][:1].isupper()
    return name in _DATA.get(module, ()) or (
        is_class and module.partition(".")[0] not in sys.stdlib_module_names)


class Named:
    """What a pickle may name but not fill in, so that no file changes how the next one is read."""

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it fills in what it named")


class Call(Named):
    """A function that a pickle may call."""

    def __init__(self, function: typing.Callable):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


class _Kind(type):
    """The kind of `Skipped` and its like: to call one is to ask for what it stands for."""

    def __call__(cls, *arguments, **keywords):
        if not cls.is_data:
            raise pickle.UnpicklingError(f"it asks for {cls.stands_for}")
        return cls.__new__(cls)


class Skipped(metaclass=_Kind):
    """Stands for an object that nobody looks at: it takes everything and keeps nothing."""

    stands_for, is_data = "", True  # is_data: a call makes one, and is not refused

    def __new__(cls, *arguments, **keywords):
        return object.__new__(cls)

    def _ignore(self, *arguments):
        pass

    __setstate__ = __setitem__ = add = append = extend = _ignore


def _dictionary(*arguments) -> dict:
    """A dictionary, whatever it would make of keys that it lacks."""
    return {}


class Unpickler(pickle.Unpickler):
    """Runs a pickle; a subclass says in `known` what names of modules stand for.

    Of these, functions are `Call`s, and classes have a `__setstate__` or cannot be changed.
    """

    known: typing.Mapping[tuple[str, str], typing.Any] = {}
    _common = {("collections", "OrderedDict"): collections.OrderedDict,
               ("collections", "defaultdict"): Call(_dictionary), ("builtins", "dict"): dict}

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self._unknown = {}

    def find_class(self, module, name):
        stands_for = f"{module}.{name}"
        module, name = _today(module, name)
        for table in (self.known, self._common):
            if (module, name) in table:
                return table[module, name]
        if (module, name) not in self._unknown:
            if len(self._unknown) == _MOST_NAMES:
                raise pickle.UnpicklingError(f"it names more than {_MOST_NAMES} classes")
            # Objects may be of it, filled in by the pickle, as long as it is not called.
            self._unknown[module, name] = _Kind("Skipped", (Skipped,), {
                "stands_for": stands_for, "is_data": _is_data(module, name)})
        return self._unknown[module, name]


def check_memo(content: bytes | typing.BinaryIO) -> None:
    """Refuses a pickle that would make room for more objects than it has.

    Pickle makes room for as many as the largest number it is told to remember.

    Raises:
      pickle.UnpicklingError: such a number.
      ValueError: no pickle.
    """
    for count, (code, argument, _) in enumerate(pickletools.genops(content)):
        if "PUT" in code.name and int(argument) > count:
            raise pickle.UnpicklingError(f"it numbers an object {argument} of {count}")
