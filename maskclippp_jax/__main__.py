"""The command line: `maskclippp COMMAND`, or `python -m maskclippp_jax COMMAND`."""

import gc
import importlib
import os
import signal
import sys

from maskclippp_jax.commands import COMMANDS

# Allocations after which Python looks for cycles of objects. Its own number, 700, has it look all
# the time while a program is traced.
_ALLOCATIONS = 50_000


def main() -> int:
    """Runs the command that was typed; the exit code."""
    gc.disable()  # what is imported stays; `cli.run` switches it on
    gc.set_threshold(_ALLOCATIONS, *gc.get_threshold()[1:])
    if hasattr(sys.stdout, "reconfigure"):  # it may lack letters of a name that is printed
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:  # while it was still importing
        print("interrupted", file=sys.stderr)
        code = 130
    if code == 130:
        # At once: libraries that were interrupted while they were imported crash at an orderly end,
        # and whatever was being written is safe.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted
    return code


def _run() -> int:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0 if sys.argv[1:] else 2
    if name == "--version":
        from importlib import metadata

        print(f"maskclippp_jax {metadata.version('maskclippp_jax')}")
        return 0
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"error: there is no command {name}; {hint}`maskclippp --help` lists all",
              file=sys.stderr)
        return 2
    from maskclippp_jax.runtime import cli

    return cli.run(importlib.import_module(f"maskclippp_jax.commands.{name}"), arguments)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: maskclippp COMMAND [ARGUMENTS] [--flag=value ...]", "",
             "Tunes a CLIP on masks, so that it names any mask with any vocabulary.", ""]
    lines += [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "maskclippp COMMAND --help tells more of one of them."])


if __name__ == "__main__":
    sys.exit(main())
