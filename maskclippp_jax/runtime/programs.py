"""Keeps compiled programs between two starts, in JAX's own cache on the disk.

A second start with the same model and sizes of pictures compiles none of those that are worth
keeping (`_WORTH`). JAX names a program by its text, so nothing stale is used; an entry that is
damaged or cannot be written costs a warning and the time to compile. Programs for a CPU use all
that it can do, and kinds of CPUs may share a home folder, so each kind has a folder of its own.
"""

import hashlib
import os
import pathlib
import platform
import sys
import tempfile

from maskclippp_jax.runtime import cache

_SIZE = 2 * 2**30  # bytes; what was not used for longest is removed first
_WORTH = 0.1       # seconds that a program takes to compile so that it is kept


def keep(folder: str | None) -> None:
    """Lets JAX keep its programs. To be called before one is compiled; what the environment says of
    JAX's cache (such as JAX_COMPILATION_CACHE_DIR) holds.

    Args:
      folder: where; "": nowhere; None: in the user's cache.

    Raises:
      ValueError: a folder that was named and cannot be made or written.
    """
    if folder == "":
        _tell_jax(enable_compilation_cache=False)
        return
    if folder is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = pathlib.Path(folder).expanduser() if folder else cache.folder() / "programs"
    path /= _processor()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        if folder is None:
            return
        raise ValueError(f"--programs={folder} cannot be written ({error.strerror}); name another "
                         "folder, or none") from error
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    _tell_jax(compilation_cache_dir=str(path), compilation_cache_max_size=_SIZE,
              persistent_cache_min_compile_time_secs=_WORTH)


def _tell_jax(**settings) -> None:
    """By the environment, which processes that are started from here have as well, and by its own
    configuration if it has read the environment already."""
    for name, value in settings.items():
        if os.environ.setdefault(f"JAX_{name.upper()}", str(value)) != str(value):
            continue
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(f"jax_{name}", value)


def _processor() -> str:
    """A name for this kind of processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    told = sorted({line for line in lines
                   if line.split("\t")[0].strip() in ("model name", "flags", "Features")})
    told.append(platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"
