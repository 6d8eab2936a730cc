"""The memory that programs of a CPU work in, where glibc manages it.

XLA asks the C library for it at each call of a program, and frees it at its end. glibc takes pieces
that large from the system and returns them, and the system clears every page of what it lends:
up to a quarter of a training step's time (docs/performance.md). Other C libraries and systems do as
they like.
"""

import ctypes
import typing

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # parameters of `mallopt`, see malloc.h
# What holds without us: at most so many pieces come straight from the system, and at the heap's end
# as much stays as glibc's own rule comes to once pieces were large.
_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 * 2**20}
_ROOM = 256 * 2**20  # bytes; pages that nobody writes to take no memory

_keeping = False  # of this process


def use_first_thread() -> None:
    """Has programs of a CPU run in the thread that calls them, which waits for them; and lets no
    other thread use the first one's heap, as glibc does where there are many. To be called before
    JAX looks for devices; other devices, and several of a CPU, stay as they are."""
    import jax  # commands that only show their help do without

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if set_to := _of_glibc("mallopt"):
        set_to(_ARENA_MAX, 2**16)


def keep() -> None:
    """From now on keeps what the first thread frees for what it asks for next, so that a program
    that it calls again works in the same memory (after `use_first_thread`), until `give_back`.

    A program's first call belongs before: it may leave something behind its memory. So does work of
    another kind between calls.
    """
    global _keeping
    set_to = None if _keeping else _of_glibc("mallopt")
    if set_to is not None:
        _keeping = True
        set_to(_MMAP_MAX, 0)
        set_to(_TRIM_THRESHOLD, -1)  # never
        _make_room()


def give_back() -> None:
    """Returns to the system what is free, and keeps no more. Compilations end with it as well, see
    `programs.jit`."""
    global _keeping
    if _keeping:
        for parameter, value in _USUAL.items():
            _of_glibc("mallopt")(parameter, value)
        _keeping = False
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _make_room() -> None:
    """Lets the heap have free memory for what is asked for between programs. glibc takes the
    smallest piece that is large enough, and so leaves a program's whole, which would not do for the
    next call otherwise."""
    malloc, free = _of_glibc("malloc"), _of_glibc("free")
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    room = malloc(_ROOM)
    malloc(1)  # keeps the room apart from what follows; never freed
    free(room)


def _of_glibc(name: str) -> typing.Callable | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library, or system
        return None
