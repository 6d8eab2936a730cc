"""What all commands share: a sentence and an exit code for what goes wrong.

2: the input cannot be used. 1: the work cannot go on (a full disk, a loss that is no number).
"""

import pathlib
import re
import sys
import traceback
import typing

from absl import app, flags, logging

from maskclippp_jax import storage

_PACKAGE = str(pathlib.Path(__file__).parent)
_WARNING = 30  # of the standard library's levels
_WRITTEN = ("output", "save_predictions", "workdir")  # flags that name what is made


def run(main: typing.Callable[[list[str]], int | None], *, positional: bool = False,
        buckets: typing.Sequence[str] = ()) -> None:
    """Runs a command's `main(argv)` under absl.

    What it raises ends in `complain`.

    Args:
      main: gets the arguments that are no flags, without the program's name.
      positional: whether the command takes such arguments.
      buckets: flags that may name a folder or file in a bucket (gs://...).
    """

    def guarded(argv):
        logging.use_absl_handler()
        # Libraries log through absl as well; people want to read what the command says.
        logging.get_absl_handler().addFilter(
            lambda record: record.levelno >= _WARNING
            or _PACKAGE in record.pathname)
        if logging.get_verbosity() < logging.INFO:
            logging.set_verbosity(logging.INFO)
        try:
            if argv[1:] and not positional:
                raise ValueError(f"got the argument {argv[1]!r}, wanted flags only (--name=value); "
                                 "see --help")
            _check_buckets(buckets)
            return main(argv[1:])
        except Exception as error:
            return complain(error)

    try:
        app.run(guarded, flags_parser=_parse)
    except flags.Error as error:  # pragma: no cover - absl exits by itself
        raise SystemExit(f"error: {error}")


def complain(error: BaseException) -> int:
    """Says on stderr what went wrong and returns the exit code.

    Errors in the input, of the disk, and of the numbers are the user's to mend: one sentence.
    Everything else is ours: a traceback.
    """
    for kinds, code in (((ValueError, FileNotFoundError, FileExistsError), 2),
                        ((OSError, FloatingPointError), 1)):
        if isinstance(error, kinds) and not flags.FLAGS.debug:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return code
    traceback.print_exception(error)
    return 1


flags.DEFINE_bool("debug", False, "show the traceback of an error in the input")


def _check_buckets(allowed: typing.Sequence[str]) -> None:
    """Sees that flags name buckets only where they may, and such as can be used.

    Raises:
      ValueError: else.
    """
    for name in flags.FLAGS:
        given = flags.FLAGS[name].value
        for value in given if isinstance(given, list) else [given]:
            # What a configuration names is looked at where it is read.
            if name.startswith("config.") or not isinstance(value, str) or not (
                    storage.on_bucket(value)):
                continue
            if name not in allowed:
                raise ValueError(f"--{name} is {value}, but this command wants it on a disk; copy "
                                 "it with `gcloud storage cp`, and name a local path")
            storage.check(value, write=name in _WRITTEN)


def _parse(argv):
    """Reads the flags; `--require-all` is `--require_all`."""
    argv = [re.sub(r"^--[\w-]+", lambda name: "--" + name[0][2:].replace("-", "_"), argument)
            for argument in argv]
    try:
        return flags.FLAGS(argv)
    except (KeyError, AttributeError) as error:  # of ml_collections, for unknown keys
        key = re.search(r"\w+", str(error))[0]
        hint = re.search(r"Did you mean.*?\?", str(error))
        print(f"error: the configuration has no key {key}; "
              f"{hint[0] if hint else 'configs/common.py has all'}", file=sys.stderr)
        raise SystemExit(2)
    except (flags.Error, ValueError, FileNotFoundError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2)
