"""JSON of a known shape: read whole, or one sentence about where it is another."""

import json
import re
import typing

import msgspec

from maskclippp_jax.runtime import storage

_CHECKED = 1 << 24  # bytes; in larger files keys that are given twice are not looked for

Id = typing.Annotated[int, msgspec.Meta(ge=-2**63, le=2**63 - 1)]
Count = typing.Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Side = typing.Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
# Height and width.
Size = typing.Annotated[list[Side], msgspec.Meta(min_length=2, max_length=2)]

T = typing.TypeVar("T")


def read(path: storage.Name, wanted: type[T]) -> T:
    """The content of a JSON file, see `decode`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: see `decode`.
    """
    file = storage.path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    return decode(file.read_bytes(), wanted, path)


def decode(data: bytes, wanted: type[T], name: object) -> T:
    """JSON as a type: a `msgspec.Struct`, or anything that is built of Python's types.

    Args:
      data: UTF-8, a byte order mark in front does no harm.
      wanted: the type.
      name: of the file, for messages.

    Raises:
      ValueError: no JSON (NaN and Infinity are none), of another shape, or with a key given twice;
        says where.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        content = msgspec.json.decode(data, type=wanted)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {_where(data, wanted, str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON{_why(data, str(error))}") from None
    if len(data) <= _CHECKED:
        try:
            json.loads(data, object_pairs_hook=_once)
        except _Twice as error:
            raise ValueError(f"{name} gives {error} twice in one object; keep one") from None
    return content


class _Twice(Exception):
    pass


def _once(pairs: list[tuple[str, typing.Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise _Twice(repr(next(k for k in keys if keys.count(k) > 1)))


def _why(data: bytes, error: str) -> str:
    if not data.strip():
        return " (it is empty)"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return " in UTF-8 (it is in UTF-16; save it as UTF-8)"
    if "recursion" in error:
        return " that can be read (it nests too deeply)"
    if "utf-8" in error:
        return f" in UTF-8 ({error}; save it as UTF-8)"
    place = re.search(r"\(byte (\d+)\)", error)
    if place and (found := re.match(rb"-?(NaN|Infinity)", data[int(place[1]):][:9]
                                    or b"")):
        return f" (it holds {found[0].decode()}, byte {place[1]}; wanted a number)"
    return f" ({error})"


def _where(data: bytes, wanted: type, error: str) -> str:
    """msgspec's words, and the place in full: it does not tell which item of a list it was."""
    words, _, path = error.partition(" - at `$")
    words = words.replace("`", "").replace("null", "nothing")
    words = re.sub(r"^Expected (.+?), got (.+)$", r"got \2, wanted \1", words)
    words = re.sub(r"^Object missing required field (.+)$", r"there is no \1", words)
    words = words[0].lower() + words[1:]
    try:
        content = whole = json.loads(data)
    except (ValueError, RecursionError):  # it is no JSON further on
        return words
    place = ""
    for step in re.findall(r"\[\.\.\.\]|\[\d+\]|\.[^.\[`]+", path):
        if step[0] == ".":
            content = content[step[1:]]
            place += step
            continue
        if step == "[...]":
            key, content = _first_wrong(whole, content, wanted)
        else:
            key = int(step[1:-1])
            content = content[key]
        known = content.get("id") if isinstance(content, dict) else None
        place += f"[{key!r}]" if known is None else f"[{key!r}, id {known!r}]"
    return f"at {place.removeprefix('.')}: {words}" if place else words


def _first_wrong(whole, items: list | dict, wanted: type) -> tuple:
    """The first item, with its key, because of which `whole` does not fit; the others are removed.

    Found by halving: with all items before it, `whole` fits.
    """
    every = list(items.items() if isinstance(items, dict) else enumerate(items))
    right, wrong = 0, len(every)
    while wrong - right > 1:
        middle = (right + wrong) // 2
        _fill(items, every[:middle])
        try:
            msgspec.convert(whole, wanted)
            right = middle
        except msgspec.ValidationError:
            wrong = middle
    _fill(items, every[wrong - 1:wrong])
    return every[wrong - 1]


def _fill(items: list | dict, pairs: list[tuple]) -> None:
    items.clear()
    if isinstance(items, dict):
        items.update(pairs)
    else:
        items.extend(value for _, value in pairs)
