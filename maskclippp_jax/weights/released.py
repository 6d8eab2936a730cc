"""What `publish` puts on the hub: the files of such a repository, and its configuration.

A configuration of an experiment is a Python program, which only its author may trust. A released
one is JSON of known keys: numbers, words, sizes of models. What could name a file is cut to its
last part, when it is written and again when it is read: so it neither tells where its author's
files lie nor points at files of its reader.
"""

import functools
import os
import re
import typing

import ml_collections

from maskclippp_jax import config as configuration, configs
from maskclippp_jax.models import maskclippp
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.weights import hub

CONFIG = "maskclippp_config.json"
WEIGHTS = "model.safetensors"          # under our names
REFERENCE = "maskclippp.safetensors"   # under those of the public reference, if it has any
NAMES = "vocabulary.txt"               # that it was tuned on
SEEN = "seen_vocabulary.txt"           # names of `eval.seen_vocabulary`, if that is a file
SENTENCEPIECE = "sentencepiece.model"  # of a SigLIP or TIPS
PICTURES = "pictures"                  # the folder of drawings

_LARGEST = 2**20  # of any size of a model, twice the largest vocabulary; a damaged one asks for all


def find(path: str) -> str | None:
    """The configuration's file, if a path names what `publish` made.

    Args:
      path: `hf://owner/name`, or a file of ours in there; a folder here with a copy of it.

    Raises:
      FileNotFoundError: the repository cannot be asked, see `hub.fetch`.
    """
    if hub.is_on_hub(path):
        file = path.removeprefix(hub.SCHEME).split("/", 2)[2:]
        if file and file[0] not in (WEIGHTS, REFERENCE):
            return None
        try:
            return hub.fetch(hub.beside(path, CONFIG))
        except hub.NoSuchFile:
            return None
    file = storage.path(path) / CONFIG
    return os.fspath(file) if file.is_file() else None


def read_config(path: str) -> ml_collections.ConfigDict | None:
    """The configuration of what `publish` made, locked; None if the path names nothing of the kind.

    Files that it needs (`SEEN`, `SENTENCEPIECE`) are those beside it.

    Raises:
      FileNotFoundError: see `find`.
      ValueError: no such configuration; says why.
    """
    file = find(path)
    if file is None:
        return None
    content = public(typed.read(file, dict[str, typing.Any]))
    _check(content, _known(), file)
    content = complete(content)
    config = configuration.from_json(content)
    if not isinstance(config.model, maskclippp.MaskCLIPppConfig):
        raise ValueError(f"{file} has no sizes of a model; download it again")
    with config.unlocked():
        if config.sentencepiece == SENTENCEPIECE:
            config.sentencepiece = hub.fetch(hub.beside(path, SENTENCEPIECE))
        if config.eval.seen_vocabulary == SEEN:
            config.eval.seen_vocabulary = hub.fetch(hub.beside(path, SEEN))
    return config


def public(content: typing.Any, known: typing.Any = None) -> typing.Any:
    """A stored configuration (`config.to_json`) without what is only its author's.

    Keys that no shipped configuration has go, and so do `data_dir` and folders in front of names
    of files; only `hf://...`, templates and sizes of models stay to the letter. Doing it twice
    changes nothing.
    """
    known = _known() if known is None else known
    if isinstance(content, dict) and isinstance(known, dict) and "type" not in content:
        return {key: value if key == "templates" else public(value, known[key])
                for key, value in content.items() if key in known and key != "data_dir"}
    if isinstance(content, list):
        return [public(value, known) for value in content]
    return last_part(content) if isinstance(content, str) else content


def complete(content: dict, known: dict | None = None) -> dict:
    """A stored configuration with the keys that came after it was stored, which do nothing in the
    quick start either; without those that no shipped configuration has."""
    return {key: content.get(key, value) if not isinstance(value, dict) or "type" in value
            else complete(content.get(key, {}), value)
            for key, value in (_known() if known is None else known).items()}


def last_part(name: str) -> str:
    """A name of a file without its folder, or without what else an address tells; `hf://...` as it
    is."""
    if hub.is_on_hub(name) or not re.search(r"[/\\]", name):
        return name
    return re.split(r"[/\\]", re.split(r"[?#]", name)[0].rstrip("/\\"))[-1]


def without_folders(title: str) -> str:
    """What was loaded, in words (`api.Model.title`), without where it lies on this machine."""
    return " ".join(map(last_part, title.split()))


@functools.cache
def _known() -> dict:
    """The keys of all experiments; what differs between them is not looked at."""
    return configuration.to_json(configs.read("quickstart"))


def _check(content: dict, known: dict, file: str, where: str = "") -> None:
    """Everything is of a kind that an experiment has there.

    Raises:
      ValueError: else, or what no experiment can do without is absent.
    """
    lacking = [key for key in ("model", "templates", "weights") if not where and key not in content]
    if lacking:
        raise ValueError(f"{file} lacks {', '.join(lacking)}; download it again")
    for key, got in content.items():
        wanted, place = known[key], f"{where}{key}"
        if not isinstance(got, _kinds_like(wanted)):
            raise ValueError(f"{file}: {place} is {got!r:.60}, wanted a value like "
                             f"{wanted!r:.60}; download it again")
        if isinstance(got, dict):
            _check_sizes(got, place, file) if "type" in got else _check(
                got, wanted, file, f"{place}.")


def _kinds_like(value: typing.Any) -> tuple[type, ...]:
    """What may stand in place of a value of the quick start, where None says little."""
    if isinstance(value, dict):
        return (dict,)
    if value is None:  # sizes in pixels, or the generator's CLIP
        return (int, dict, type(None))
    return (int, float, type(None)) if isinstance(value, int | float) else (type(value),)


def _check_sizes(sizes: dict, place: str, file: str) -> None:
    for key, value in sizes.items():
        if isinstance(value, dict):
            _check_sizes(value, f"{place}.{key}", file)
        elif isinstance(value, int | float) and not abs(value) <= _LARGEST:
            raise ValueError(f"{file}: {place}.{key} is {value}, wanted at most {_LARGEST}; "
                             "download it again")
