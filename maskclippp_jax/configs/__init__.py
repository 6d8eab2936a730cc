"""The shipped configurations: `--config=NAME` finds them, own ones import them.

    from maskclippp_jax.configs import own_data

Their files are `configs/` of the project, beside this package; an installed wheel has them in this
folder.
"""

import difflib
import pathlib
import runpy
import typing

_CHECKOUT = pathlib.Path(__file__).parents[2] / "configs"
if (_CHECKOUT / "common.py").is_file():
    __path__ = [str(_CHECKOUT)]
FOLDER = pathlib.Path(__path__[0])


def names() -> list[str]:
    """Of all experiments: "quickstart", ..., "eval/coco_stuff_eva02_l14_336_maftp_l", ..."""
    files = sorted(FOLDER.glob("*.py")) + sorted(FOLDER.glob("eval/*.py"))
    return [str(f.relative_to(FOLDER).with_suffix("")) for f in files
            if f.stem not in ("__init__", "common")]


def read(given: str) -> typing.Any:
    """What the `get_config` of a configuration returns; `given` as in `resolve`.

    Raises:
      FileNotFoundError: see `resolve`.
      ValueError: it is no configuration, or refuses its argument.
    """
    import ml_collections  # not needed to know the names

    file, colon, argument = resolve(given).partition(":")
    try:
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise ValueError(f"{file} has no function get_config, wanted one that returns the "
                             "configuration")
        config = get_config(argument) if colon else get_config()
    except (ValueError, FileNotFoundError):  # in its own words
        raise
    except ModuleNotFoundError as error:
        hint = ("; import shipped configurations from maskclippp_jax.configs"
                if (error.name or "").split(".")[0] == "configs" else "")
        raise ValueError(f"the configuration cannot be read ({error}){hint}") from None
    except Exception as error:  # a configuration is a program and can raise anything
        raise ValueError(f"the configuration {given} cannot be read ({type(error).__name__}: "
                         f"{error})") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"get_config of {file} returned {type(config).__name__}, wanted a "
                         "ConfigDict of ml_collections")
    return config


def resolve(given: str) -> str:
    """The path of a configuration's file, with its argument if it has one.

    Args:
      given: the name of a shipped one, or the path of an own one (it ends in .py); both perhaps
        followed by ":" and an argument.

    Raises:
      FileNotFoundError: there is no such file, or none of this name is shipped.
    """
    name, colon, argument = given.partition(":")
    if name in names():
        return f"{FOLDER / name}.py{colon}{argument}"
    if pathlib.Path(name).is_file():
        return given
    known = name.removesuffix(".py").removeprefix("configs/")
    if known in names():
        raise FileNotFoundError(f"no file {name} here; the configuration of this name that is "
                                f"shipped is --config={known}{colon}{argument}")
    near = difflib.get_close_matches(known, names(), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}" if near else ""
    raise FileNotFoundError(
        f"no configuration {name}{hint}? Give the path of a file that ends in .py, or the name of "
        f"a shipped one: {', '.join(n for n in names() if '/' not in n)}, or a row of a published "
        "table, eval/...")
