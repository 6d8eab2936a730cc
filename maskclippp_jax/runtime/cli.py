"""What all commands share: flags, help, and a sentence with an exit code for what goes wrong.

2: the input cannot be used. 1: the work cannot go on (a full disk or memory, a loss that is no
number).

A command (maskclippp_jax/commands) is a module with flags and `main(arguments)`, which imports what
it works with only when it is called, so that `--help` is there at once.
"""

import dataclasses
import difflib
import faulthandler
import functools
import gc
import pathlib
import re
import shutil
import sys
import textwrap
import traceback
import types
import typing
import warnings

from absl import flags, logging
from ml_collections import config_flags

from maskclippp_jax import configs
from maskclippp_jax.runtime import programs

_PACKAGE = str(pathlib.Path(__file__).parents[1])
_WARNING = 30  # of the standard library's levels
_WRITTEN = ("output", "save_predictions", "workdir")  # flags that name what is made


def define_config(text: str) -> flags.FlagHolder:
    """The flag `--config`: a shipped configuration's name, or a file; `--config.key=value`."""
    return config_flags.DEFINE_config_file(
        "config", None, f"{text}: the name of a shipped configuration, or an own file, with its "
        "argument after a colon; --config.key=value changes one key of it", lock_config=True)


def config_in_python() -> str:
    """The arguments of `api.load` that are `--config` and its changed keys: "" or ", 'quickstart',
    eval__short_side=448"."""
    flag = flags.FLAGS["config"]
    if flag.value is None:
        return ""
    given = config_flags.get_config_filename(flag)
    shipped = {configs.resolve(name): name for name in configs.names()}
    file, colon, argument = given.partition(":")
    changed = config_flags.get_override_values(flag)
    return "".join([f", {shipped.get(file, file) + colon + argument!r}",
                    *(f", {key.replace('.', '__')}={value!r}" for key, value in changed.items())])


def define_nothing() -> flags.FlagHolder[list[int] | None]:
    """The flag `--nothing` of commands that read label maps; its value is a list of numbers, or
    None, see `data.label_maps`."""
    return flags.DEFINE(
        _Numbers(), "nothing", None, "numbers that mean nothing in label maps, such as 0; every "
        "other one is a class or a mask (default: 255, and 65535)", flags.FLAGS, None)


def define_max_pixels() -> flags.FlagHolder[int | None]:
    """The flag `--max_pixels` of commands that read pictures, see `data.images.limit_pixels`."""
    return flags.DEFINE_integer(
        "max_pixels", None, "refuse pictures and label maps with more pixels (default: 89478485, "
        "those of 9459x9459); a larger number lets files ask for more memory", lower_bound=1)


class _Numbers(flags.ArgumentParser):
    """A list like 0,255; an empty one is a list as well."""

    syntactic_help = "numbers separated by commas"

    def parse(self, argument):
        numbers = [n.strip() for n in argument.split(",")] if argument.strip() else []
        if not all(re.fullmatch("[0-9]{1,5}", n) and int(n) < 2**16 for n in numbers):
            raise ValueError("wanted numbers of 0 ... 65535 separated by commas, like 0,255")
        return [int(n) for n in numbers]

    def flag_type(self):
        return "numbers"


def define_distributed() -> flags.FlagHolder[str]:
    """The flag `--distributed` of commands that several processes can do together."""
    return flags.DEFINE_string(
        "distributed", "", "of several processes that work together: 'auto' on a TPU slice, under "
        "Slurm or in Kubernetes, else ADDRESS:PORT,COUNT,NUMBER; left out: this process is alone")


def run(command: types.ModuleType, arguments: typing.Sequence[str]) -> int:
    """Runs a command.

    Args:
      command: its module: `main(arguments)`, which gets those that are no flags; POSITIONAL, words
        that say what these are ("" if it takes none); BUCKETS, flags that may name a folder or a
        file in a bucket (gs://...). It may have FOLDERS, flags beside --workdir that name folders
        it writes, and MEMORY, which of its flags take less memory.
      arguments: what was typed after its name.

    Returns:
      The exit code. What `main` raises ends in `complain`.
    """
    flags.DEFINE_bool("debug", False, "show the traceback of an error in the input",
                      module_name=__name__)
    flags.DEFINE_string("programs", None, "folder in which compiled programs are kept for the next "
                        "start; empty: they are not kept (default: in ~/.cache/maskclippp_jax)",
                        module_name=__name__)
    name = command.__name__.rpartition(".")[2]
    given = list(arguments)[:arguments.index("--")] if "--" in arguments else list(arguments)
    if any(a in ("--help", "-h", "-help", "--helpshort", "--helpfull") for a in given):
        print(help_of(command, name))
        return 0
    faulthandler.enable()
    warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
    logging.use_absl_handler()
    # Libraries log through absl as well; people want to read what the command says.
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= _WARNING or _PACKAGE in record.pathname)
    rest = _parse(name, arguments)
    if logging.get_verbosity() < logging.INFO:
        logging.set_verbosity(logging.INFO)
    try:
        if rest and not command.POSITIONAL:
            raise ValueError(f"got the argument {rest[0]!r}, wanted flags only (--name=value); "
                             f"see maskclippp {name} --help")
        _check_places(command.BUCKETS, ("workdir", *getattr(command, "FOLDERS", ())))
        programs.keep(flags.FLAGS["programs"].value)
        if not gc.isenabled():
            # What was imported stays. Python need not look through it, not even at the end, where
            # that would take a quarter of a second.
            gc.freeze()
            gc.enable()
        return command.main(rest) or 0
    except (Exception, KeyboardInterrupt) as error:
        return complain(error)


def _show_warning(others, message, category, filename, *args, **kw):
    """Our own warnings are for people who do not know Python."""
    if category is UserWarning and filename.startswith(_PACKAGE):
        print(f"warning: {message}", file=sys.stderr)
    else:
        others(message, category, filename, *args, **kw)


def complain(error: BaseException) -> int:
    """Says on stderr what went wrong and returns the exit code.

    Errors in the input, of the disk, and of the numbers are the user's to mend: one sentence.
    Ctrl-C is nobody's error. Everything else is ours: a traceback.
    """
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    debug = "debug" in flags.FLAGS and flags.FLAGS["debug"].value
    if (lacking := _lack_of_memory(error)) is not None and not debug:
        advice = [m.MEMORY for name in flags.FLAGS.flags_by_module_dict()
                  if hasattr(m := sys.modules.get(name), "MEMORY")]
        print(f"error: {'; '.join([lacking, *advice])}", file=sys.stderr)
        return 1
    for kinds, code in (((ValueError, FileNotFoundError, FileExistsError), 2),
                        ((OSError, FloatingPointError), 1)):
        if isinstance(error, kinds) and not debug:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return code
    traceback.print_exception(error)
    return 1


def _lack_of_memory(error: BaseException | None) -> str | None:
    """What is said of an error that is a lack of memory, of the host or of a device; else None."""
    while error is not None:
        said = str(error).partition("\n")[0]
        # By its name: commands that do without JAX do not import it for this.
        if isinstance(error, MemoryError) or (
                type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in said):
            return f"out of memory ({said[:200] or type(error).__name__})"
        error = error.__cause__
    return None


def help_of(command: types.ModuleType, name: str) -> str:
    """What a command does, and its flags with their defaults."""
    width = min(shutil.get_terminal_size().columns, 100)
    own = flags.FLAGS.flags_by_module_dict().get(command.__name__, [])
    shared = [f for f in flags.FLAGS.flags_by_module_dict().get(__name__, [])
              if f.name in ("config", "distributed", "nothing", "max_pixels", "programs",
                            "debug")]
    known = {f.name for f in own}
    lines = [f"usage: maskclippp {name} {command.POSITIONAL} [--flag=value ...]".replace("  ", " "),
             "", command.__doc__.strip(), "", "flags:"]
    for flag in sorted(own, key=lambda f: f.name) + [f for f in shared if f.name not in known]:
        default = "" if flag.value in (None, "", [], False) else f" (default: {_shown(flag.value)})"
        lines.append(f"  --{flag.name}{'' if flag.boolean else '=...'}")
        text = " ".join(flag.help.split()) + default
        lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _shown(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_places(allowed: typing.Sequence[str], folders: typing.Sequence[str]) -> None:
    """Sees that flags name places that can be written, and buckets only where they may.

    Args:
      allowed: flags that may name a bucket.
      folders: flags that name folders.

    Raises:
      ValueError: else.
    """
    for name in flags.FLAGS:
        given = flags.FLAGS[name].value
        for value in given if isinstance(given, list) else [given]:
            # What a configuration names is looked at where it is read.
            if name.startswith("config.") or not isinstance(value, str):
                continue
            if not value and name in _WRITTEN:
                raise ValueError(f"--{name} is empty; name a place, or leave the flag out")
            if not value or "://" not in value and name not in _WRITTEN:
                continue
            from maskclippp_jax.runtime import storage  # slow to import, and rarely needed

            if name in _WRITTEN:
                storage.check_writable(value, folder=name in folders)
            if not storage.on_bucket(value):
                continue
            if name not in allowed:
                raise ValueError(f"--{name} is {value}, but this command wants it on a disk; copy "
                                 "it with `gcloud storage cp`, and name a local path")
            storage.check(value, write=name in _WRITTEN)


def _parse(name: str, arguments: typing.Sequence[str]) -> list[str]:
    """Reads the flags, wherever they stand; `--require-all` is `--require_all`.

    Returns:
      The arguments that are no flags.
    """
    arguments = [re.sub(r"^--[\w-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument)
                 for argument in arguments]
    try:
        if "config" in flags.FLAGS:
            arguments = _config_first(arguments)
        sys.argv[1:] = arguments  # where ml_collections looks for keys
        flags.FLAGS.set_gnu_getopt(True)
        return flags.FLAGS([name, *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f"did you mean --{near[0]}? See" if near else "see"
        _refuse(f"there is no flag --{error.flagname}; {hint} maskclippp {name} --help")
    except _WRONG as error:
        _refuse(_words_of(error))


def read_config(config: str, overrides: typing.Sequence[str]) -> typing.Any:
    """The experiment that `--config`, with these keys changed, stands for.

    Args:
      config: see `configs.resolve`.
      overrides: key=value.

    Raises:
      ValueError, FileNotFoundError: there is none, or it has no such key or value.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
    given = sys.argv
    try:
        words = _config_first([f"--config={config}", *(f"--config.{o}" for o in overrides)])
        sys.argv = [given[0], *words]  # where ml_collections looks for keys
        values(sys.argv)
        return values.config
    except (flags.Error, KeyError, AttributeError) as error:
        raise ValueError(_words_of(error)) from None
    finally:
        sys.argv = given


_WRONG = (KeyError, AttributeError, flags.Error, ValueError, FileNotFoundError)


def _words_of(error: Exception) -> str:
    """What is wrong with flags, for people."""
    untyped = re.match("Type <class 'NoneType'> of field (\\S+) is not supported", str(error))
    if untyped:
        return (f"{untyped[1]} is None in this configuration, which takes no value of a command "
                "line; set it there")
    if not isinstance(error, (KeyError, AttributeError)):
        return str(error)
    key = re.search(r"\w+", str(error))[0]  # of ml_collections, for unknown keys
    hint = re.search(r"Did you mean.*?\?", str(error))
    return (f"the configuration has no key {key}; "
            f"{hint[0] if hint else 'configs/common.py has all'}")


def _config_first(arguments: list[str]) -> list[str]:
    """The arguments with `--config` before its keys, and the file of a shipped one in its place."""
    found, others, config = [], [], None
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = iter(arguments[:end])
    for argument in rest:
        if argument == "--config":
            argument = f"--config={next(rest, '')}"
        if argument.startswith("--config="):
            given = argument.partition("=")[2]
            config = configs.read(given)  # says in a sentence what ml_collections does not
            found.append(f"--config={configs.resolve(given)}")
        else:
            others.append(argument)
    if config is not None:
        _check_keys(config, others)
    return found + others + arguments[end:]


def _check_keys(config, arguments: typing.Sequence[str]) -> None:
    """Sees that `--config.key` names something that can be given on a command line.

    Raises:
      ValueError: else. Of keys that are not there ml_collections knows the nearest.
    """
    for argument in arguments:
        if not argument.startswith("--config."):
            continue
        place = argument.removeprefix("--").partition("=")[0]
        node, known = config, "config"
        for key in place.split(".")[1:]:
            if not isinstance(node, type(config)) or key not in node:
                break
            node, known = node[key], f"{known}.{key}"
        if isinstance(node, type(config)) and known == place:
            raise ValueError(f"--{place} is a group of keys; give one of them: "
                             f"{', '.join(f'--{place}.{key}' for key in sorted(node))}")
        if dataclasses.is_dataclass(node):
            raise ValueError(
                f"--{place}: {known} is a {type(node).__name__}, whose parts are no keys; write a "
                "configuration of your own that imports a shipped one and changes it "
                "(docs/experiments.md shows how)")


def _refuse(sentence: str) -> typing.NoReturn:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(2)
