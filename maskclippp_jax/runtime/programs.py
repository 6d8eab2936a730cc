"""Programs: what they are compiled with, and the folder that keeps them for the next start.

A second start with the same model and sizes of pictures compiles none of those that are worth
keeping (`_WORTH`). JAX names a program by its text, so nothing stale is used, and asks a
`kept.Folder` for it in place of a cache of its own, which would run a program whose bytes have
changed. Programs for a CPU use all that it can do, and kinds of CPUs may share a home folder, so
each kind has a folder of its own.
"""

import functools
import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import pathlib
import platform
import sys
import tempfile
import types
import typing

from maskclippp_jax.runtime import cache, heap, kept, texts

_SIZE = 2 * 2**30  # bytes; what was not used for longest is removed first
_WORTH = 0.1       # seconds that a program takes to compile so that it is kept
_JAX_WORTH = 1.0   # the same, if nobody tells JAX
_JAX_CACHE = "jax._src.compilation_cache"
_COMPILED = "/jax/core/compile/backend_compile_duration"  # what JAX says after compiling

_told = False  # whether this process was told where programs are kept
_ours: set[str] = set()  # folders whose entries have checksums


def keep(folder: str | None) -> None:
    """Lets JAX keep its programs. To be called before one is compiled; what the environment says of
    JAX's cache (such as JAX_COMPILATION_CACHE_DIR) holds. If the user's cache cannot be written,
    none are kept, and a line says so.

    Args:
      folder: where; "": nowhere; None: in the user's cache.

    Raises:
      ValueError: a folder that was named and cannot be made or written.
    """
    global _told
    _told = True
    texts.keep(None)
    if folder == "":
        _tell_jax(enable_compilation_cache=False)
        return
    path = pathlib.Path(folder).expanduser() if folder else cache.folder() / "programs"
    path /= _processor()
    # A command that another one has started is told of the same folder by the environment.
    if folder is None and os.environ.get("JAX_COMPILATION_CACHE_DIR", str(path)) != str(path):
        return
    try:
        _make(path)
    except OSError as error:
        if folder is None:
            kept.warn_of(path, error)
            _tell_jax(enable_compilation_cache=False)
            return
        raise ValueError(f"--programs={folder} cannot be written ({error.strerror}); name another "
                         "folder, or none") from error
    texts.keep(path / "texts")
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    _tell_jax(compilation_cache_dir=str(path), persistent_cache_min_compile_time_secs=_WORTH)
    if _JAX_CACHE in sys.modules:
        _use_folders(sys.modules[_JAX_CACHE])
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())  # JAX takes long to import, and may not be needed


def keep_in_python() -> None:
    """The same where no command runs: JAX keeps the programs of this process in the user's cache,
    unless it has a cache already, or shall have none, or `keep` came first.

    The environment stays as it is, and no texts of programs are kept: they are found by the files
    of this package, and who works in Python may have put other functions in place of theirs.
    """
    global _told
    import jax

    if _told or jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    _told = True
    path = cache.folder() / "programs" / _processor()
    try:
        _make(path)
    except OSError as error:
        kept.warn_of(path, error)
        return
    _use_folders(importlib.import_module(_JAX_CACHE))
    jax.config.update("jax_compilation_cache_dir", str(path))
    name = "jax_persistent_cache_min_compile_time_secs"
    if getattr(jax.config, name) == _JAX_WORTH:
        jax.config.update(name, _WORTH)


def _make(folder: pathlib.Path) -> None:
    """Raises: OSError: it cannot be made or written."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    _ours.add(str(folder))


def _use_folders(module: types.ModuleType) -> None:
    """Has JAX's module ask a `kept.Folder` for the programs in a folder of ours."""
    others = module.get_file_cache
    module.get_file_cache = lambda path: (
        (kept.Folder(path, _SIZE), path) if path in _ours else others(path))


class _WhenImported(importlib.abc.MetaPathFinder):
    """Calls `_use_folders` as soon as JAX's module is there."""

    def find_spec(self, fullname, path, target=None):
        if fullname != _JAX_CACHE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        run = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            run(module)
            _use_folders(module)

        spec.loader.exec_module = exec_module
        return spec


def jit(function: typing.Callable, *, platform: str | None = None, **settings) -> typing.Callable:
    """`jax.jit` that spares the memory of a CPU, with the same results.

    XLA's own order of a program's operations there is for many cores: what can be done at any time
    is done first, and stays in memory until it is used.

    Args:
      function: see `jax.jit`.
      platform: "cpu", "gpu" or "tpu", what is compiled for; None: the device at hand.
      settings: see `jax.jit`.
    """
    import jax  # commands that only show their help do without

    if (platform or jax.default_backend()) != "cpu":
        return jax.jit(function, **settings)
    _give_back_after_compiling()
    return jax.jit(function, compiler_options={
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}, **settings)


@functools.cache
def _give_back_after_compiling() -> None:
    """Has what a compilation freed given back to the system, which glibc keeps in pieces."""
    import jax

    def after(event: str, duration: float, **_) -> None:
        if event == _COMPILED and duration > _WORTH:
            heap.give_back()

    jax.monitoring.register_event_duration_secs_listener(after)


def _tell_jax(**settings) -> None:
    """By the environment, which processes that are started from here have as well, and by its own
    configuration if it has read the environment already."""
    for name, value in settings.items():
        if os.environ.setdefault(f"JAX_{name.upper()}", str(value)) != str(value):
            continue
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(f"jax_{name}", value)


def _processor() -> str:
    """A name for this kind of processor, and the form of the entries."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    told = sorted({line for line in lines
                   if line.split("\t")[0].strip() in ("model name", "flags", "Features")})
    told += [platform.processor(), "sha256 behind each entry"]
    return f"{platform.machine()}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"
