"""Models that are published in two files: TIPS (image and text) and dino.txt (backbone and rest).

A path may name both with a comma between them. Of a TIPS one is enough if the other lies beside it
under the publishers' name, with "text" for "vision".
"""

import typing

import numpy as np

from maskclippp_jax.runtime import storage
from maskclippp_jax.weights import files, hub
from maskclippp_jax.weights.source import Source


class Joined(Source):
    """The tensors of several sources together.

    Raises (on construction):
      ValueError: two of them hold a tensor of the same name.
    """

    def __init__(self, parts: typing.Mapping[str, Source]):
        self._part, self.shapes = {}, {}
        for path, part in parts.items():
            both = next((name for name in part if name in self._part), None)
            if both:
                raise ValueError(f"{path} and another of the files given with it both hold {both}; "
                                 "give files of different halves of one model")
            self._part |= dict.fromkeys(part, part)
            self.shapes |= part.shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return self._part[name][name]


class _Half(typing.NamedTuple):
    marks: tuple[str, ...]  # names, one of which only this half has
    other: tuple[str, ...]  # the same of the other half
    what: str               # is in this half
    lacks: str
    words: tuple[str, str] | None = None  # in file names: this half's, the other's


_TIPS_IMAGE = ("register_tokens", "encoder/ToTokenSequence_0/cls")
_TIPS_TEXT = ("transformer.resblocks.0.ln_1.weight", "token_emb/emb_var")
_DINO = ("storage_tokens", "embeddings.patch_embeddings.weight")
_DINO_TEXT = ("visual_model.head.ln_final.weight",)
_HALVES = (
    _Half(_TIPS_IMAGE, _TIPS_TEXT, "the image tower of a TIPS", "its text tower",
          ("vision", "text")),
    _Half(_TIPS_TEXT, _TIPS_IMAGE, "the text tower of a TIPS", "its image tower",
          ("text", "vision")),
    _Half(_DINO_TEXT, _DINO, "the head and text tower of a dino.txt", "its backbone"),
    _Half(_DINO, _DINO_TEXT, "the backbone of a dino.txt (a DINOv3)", "its head and text tower"),
)


def read(path: str) -> Source:
    """The tensors of a checkpoint file (`files.read`), with those of its other half if it is one.

    Args:
      path: of the file, or of both halves with a comma between them.

    Raises:
      FileNotFoundError: the other half is not beside it.
    """
    is_local = not hub.is_on_hub(path) and not hub.is_address(path)
    if "," in path and not (is_local and storage.path(path).exists()):
        return Joined({part: files.read(part) for part in path.split(",")})
    source = files.read(path)
    half = _half_of(source)
    if half is None:
        return source
    place = _beside(path, *half.words) if half.words else None
    if place is None:
        where = f"; put it beside it with {half.words[1]!r} for {half.words[0]!r} in its name, or" \
            if half.words else ", a file of its own;"
        raise FileNotFoundError(f"{path} holds {half.what} without {half.lacks}{where} give both "
                                "files with a comma between them")
    return Joined({path: source, place: files.read(place)})


def _half_of(source: Source) -> _Half | None:
    has = lambda names: any(name in source for name in names)
    # The text tower of many a CLIP has the names of the text tower of a TIPS; that has no table.
    if "positional_embedding" in source:
        return None
    return next((half for half in _HALVES if has(half.marks) and not has(half.other)), None)


def _beside(path: str, here: str, other: str) -> str | None:
    """The path of the other half, if its name follows from this one's and it is there."""
    start, found, end = path.rpartition(here)
    if not found or "/" in end:
        return None
    place = f"{start}{other}{end}"
    if hub.is_on_hub(path):
        return place
    if hub.is_address(place):
        return hub.here(place)
    return place if storage.path(place).exists() else None
