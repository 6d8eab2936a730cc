"""Which file is meant by a path that was written on another machine."""

import collections
import typing
import unicodedata
import urllib.parse

from maskclippp_jax.runtime.console import counted

T = typing.TypeVar("T")


class Paths(typing.Generic[T]):
    """Files by whatever another machine calls them.

    A name stands for the file with just this path, else for the one whose path ends like it, with
    as many folders as possible; if there is none, a file with another ending will do. Folders of
    the name that are not those of the file are kept for `said`.
    """

    def __init__(self, files: dict[str, T], folder: str = ""):
        """`files` by their paths in a folder of this name, which may be a part of names."""
        self._files = files
        self._whole = {normal(path): path for path in files}
        self._tails: dict[str, list[str]] = {}
        for path in files:
            place = normal(f"{folder}/{path}" if folder else path)
            for name in {place, place.rsplit(".", 1)[0]}:
                for tail in _tails(name):
                    self._tails.setdefault(tail, []).append(path)
        stems = collections.Counter(stem_of(path) for path in files)
        self._unique = max(stems.values(), default=1) == 1
        self._elsewhere: dict[str, str] = {}  # names, and what lies in other folders than they say

    def find(self, name: str) -> tuple[str, T] | None:
        """The id and the file; the id is the file's name if no two have the same, else its path.

        Raises:
          ValueError: several files fit.
        """
        for way in (name, urllib.parse.unquote(name)):
            whole = normal(way)
            if whole in self._whole:
                return self._found(self._whole[whole])
            for tail in (*_tails(whole), *_tails(whole.rsplit(".", 1)[0])):
                found = self._tails.get(tail, ())
                if len(found) > 1:
                    raise ValueError(f"{name!r} could be {found[0]} or {found[1]}; name its folder "
                                     "as well")
                if found:
                    # One more folder of each, not counting the one that all files lie in.
                    before = whole.split("/")[:-1 - tail.count("/")][-1:]
                    if found[0].count("/") > tail.count("/") and before not in ([], [""], ["."]):
                        self._elsewhere[name] = found[0]
                    return self._found(found[0])
        return None

    def said(self, what: str) -> list[str]:
        """A sentence about names of files in other folders, if there are any; `what` they are of.
        """
        if not self._elsewhere:
            return []
        (name, path), *_ = self._elsewhere.items()
        count = len(self._elsewhere)
        return [f"{counted(count, what)} name{'s' * (count == 1)} other folders, such as {name} "
                f"for {path}"]

    def _found(self, path: str) -> tuple[str, T]:
        return (stem_of(path) if self._unique else path.rsplit(".", 1)[0]), self._files[path]


def normal(path: str) -> str:
    """As Linux and macOS write it: folders apart by /, letters composed."""
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def _tails(path: str) -> list[str]:
    """"a/b/c" -> "a/b/c", "b/c", "c"."""
    parts = path.split("/")
    return ["/".join(parts[n:]) for n in range(len(parts))]


def stem_of(path: str) -> str:
    """The name of a file without folders and ending."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
