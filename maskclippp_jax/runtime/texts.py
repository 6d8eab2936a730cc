"""Texts of programs, kept on the disk: a second start traces no model.

JAX finds a kept program by its text, so the model is built and traced first: of all that a second
start of a small one takes, a quarter. Here the text is found by what it follows from: the code of
this package, versions, settings, the device, and the shapes of what it is given. Nothing stale is
used; a text that is damaged or cannot be written costs the time to trace. Small values that follow
from the same, such as shapes and a few random numbers, are kept with them.
"""

import functools
import hashlib
import json
import os
import pathlib
import sys
import typing

from absl import logging

from maskclippp_jax.runtime import kept

_SIZE = 2**28  # bytes of all texts; what was not used for longest is removed first
_PACKAGE = pathlib.Path(__file__).parents[1]
_LIBRARIES = ("jax", "jaxlib", "flax", "numpy")  # whose versions a text depends on
# Settings of JAX that no program depends on: what is logged, where programs are kept, and which
# arrays may be brought to a device.
_OTHER_SETTINGS = ("jax_log", "jax_explain", "jax_compilation_cache", "jax_persistent_cache",
                   "jax_enable_compilation_cache", "jax_raise_persistent_cache",
                   "jax_transfer_guard")
_OWN = "MASKCLIPPP_"  # how variables of the environment begin that programs depend on
_folder: kept.Folder | None = None


def keep(folder: pathlib.Path | None) -> None:
    """Says where texts are kept; None: nowhere."""
    global _folder
    _folder = None if folder is None else kept.Folder(folder, _SIZE)


class Program:
    """A jitted function of arrays, which is made and traced only if no text of it is kept."""

    def __init__(self, make: typing.Callable[[], typing.Callable], name: str, *about: typing.Any,
                 returns: typing.Sequence[type] = (), static: typing.Sequence[str] = (),
                 jit: typing.Callable | None = None):
        """Makes nothing yet.

        Args:
          make: gives the function. It has no effects, and what it is given lies on one device.
          name: of the function, among those of this package.
          *about: what the function depends on beside this package's code, as its `repr` tells.
          returns: the NamedTuples in what it returns; else there are Python's own containers.
          static: names of its arguments that are no arrays, which are given by name.
          jit: how it is jitted; None: by `jax.jit`.
        """
        self._function, self._about, self._returns = functools.cache(make), (name, *about), returns
        self._static, self._jit = static, jit
        self._found: dict[tuple, typing.Callable] = {}

    def __call__(self, *arguments, **static):
        import jax

        if _folder is None or not jax.sharding.get_abstract_mesh().empty:
            return self.jitted(*arguments, **static)
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple(map(jax.typeof, leaves)), repr(static), _settings()
        if key not in self._found:
            self._found[key] = self._find(structure, leaves, static, key)
        return self._found[key](*leaves)

    @functools.cached_property
    def jitted(self) -> typing.Callable:
        """The function itself, jitted."""
        import jax

        return (self._jit or jax.jit)(self._function(), static_argnames=self._static)

    def _find(self, structure, leaves, static, key) -> typing.Callable:
        import jax
        from jax import export

        for returned in self._returns:
            _know(returned)

        def flat(*leaves):
            return self._function()(*jax.tree.unflatten(structure, leaves), **static)

        jit = self._jit or jax.jit

        try:
            text = load_or_make((*self._about, *map(str, key[:-1])), lambda: bytes(
                export.export(jax.jit(flat))(*leaves).serialize()))
        except (ValueError, NotImplementedError) as error:
            if "unregistered type" in str(error):  # `returns` lacks one
                raise
            # It calls what no text may call.
            logging.debug("%s is traced at every start (%s)", self._about[0], error)
            return jit(flat)
        call = export.deserialize(bytearray(text)).call

        def program(*leaves):
            return call(*leaves)

        program.__name__ = self._about[0]  # which JAX's log and its cache show
        return jit(program)


def load_or_make(about: tuple, make: typing.Callable[[], bytes]) -> bytes:
    """What follows from the code of this package, settings and `about`, as its `repr` tells: read,
    or made and kept."""
    if _folder is None:
        return make()
    key = hashlib.sha256(repr((about, _settings(), *_world())).encode()).hexdigest()[:32]
    text = _folder.get(key)
    if text is None:
        text = make()
        _folder.put(key, text)
    return text


def load_or_make_value(about: tuple, make: typing.Callable[[], typing.Any]) -> typing.Any:
    """The same of what JSON can hold."""
    return json.loads(load_or_make(about, lambda: json.dumps(make()).encode()))


@functools.cache
def _world() -> tuple:
    """What all texts depend on."""
    from importlib import metadata

    import jax

    device, code = jax.devices()[0], hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        code.update(f"{file.relative_to(_PACKAGE)}\0".encode() + file.read_bytes() + b"\0")
    return (code.hexdigest(), sys.version, [metadata.version(name) for name in _LIBRARIES],
            device.platform, device.device_kind, device.client.platform_version,
            os.environ.get("XLA_FLAGS"), os.environ.get("LIBTPU_INIT_ARGS"))


def _settings() -> str:
    """JAX's, which a `with` may change for a while, and ours."""
    import jax

    own = [item for item in sorted(os.environ.items()) if item[0].startswith(_OWN)]
    return repr(own + [(name, getattr(jax.config, name, value))
                       for name, value in sorted(jax.config.values.items())
                       if not name.startswith(_OTHER_SETTINGS)])


@functools.cache
def _know(returned: type) -> None:
    """Tells JAX under which name a text knows a NamedTuple."""
    from jax import export

    export.register_namedtuple_serialization(
        returned, serialized_name=f"{returned.__module__}.{returned.__qualname__}")
