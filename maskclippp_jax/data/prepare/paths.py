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
    as many folders as possible; if there is none, a file with another ending will do. Where the
    folder before these is another one, the name may still mean the file (see `said`), unless it is
    meant by a name that fits.
    """

    def __init__(self, files: dict[str, T], folder: str = "", names: typing.Iterable[str] = ()):
        """`files` by their paths in a folder of this name, which may be a part of names; `names`
        are all that will be looked for, if that is known."""
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
        fits = filter(lambda files: len(files) == 1, map(self._fits, names))
        self._meant = {path for (path, elsewhere), in fits if not elsewhere}

    def find(self, name: str) -> tuple[str, T] | None:
        """The id and the file; the id is the file's name if no two have the same, else its path.

        Raises:
          ValueError: several files fit.
        """
        fits = self._fits(name)
        if len(fits) > 1:
            raise ValueError(f"{name!r} could be {fits[0][0]} or {fits[1][0]}; name its folder as "
                             "well")
        if not fits or (fits[0][1] and fits[0][0] in self._meant):
            return None
        path, elsewhere = fits[0]
        if elsewhere:
            self._elsewhere[name] = path
        return (stem_of(path) if self._unique else path.rsplit(".", 1)[0]), self._files[path]

    def _fits(self, name: str) -> list[tuple[str, bool]]:
        """The files that fit best, and whether the name has another folder than each."""
        for way in (name, urllib.parse.unquote(name)):
            whole = normal(way)
            if whole in self._whole:
                return [(self._whole[whole], False)]
            for tail in (*_tails(whole), *_tails(whole.rsplit(".", 1)[0])):
                if tail in self._tails:
                    # One more folder of each, not counting the one that all files lie in.
                    before = whole.split("/")[:-1 - tail.count("/")][-1:]
                    other = before not in ([], [""], ["."])
                    return [(path, other and path.count("/") > tail.count("/"))
                            for path in self._tails[tail]]
        return []

    def said(self, what: str) -> list[str]:
        """A sentence about names of files in other folders, if there are any; `what` they are of.
        """
        if not self._elsewhere:
            return []
        (name, path), *_ = self._elsewhere.items()
        count = len(self._elsewhere)
        return [f"{counted(count, what)} name{'s' * (count == 1)} other folders, such as {name} "
                f"for {path}"]


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
