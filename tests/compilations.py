"""Which programs are compiled while something is done."""

import contextlib
import logging
import re
import typing

import jax


@contextlib.contextmanager
def compilations() -> typing.Iterator[list[str]]:
    """Names of the jitted programs that are compiled (or fetched from a cache) inside."""
    names: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record):
            if found := re.match(r"Finished XLA compilation of jit\((.+?)\)", record.getMessage()):
                names.append(found[1])

    handler, log = Handler(), logging.getLogger("jax")
    log.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        log.removeHandler(handler)
