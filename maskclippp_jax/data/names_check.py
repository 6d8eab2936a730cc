"""What a names file does to a CLIP that reads it: a look before hours are spent on it."""

import re
import typing

from maskclippp_jax.data.tokenizer import Tokenizer, clean
from maskclippp_jax.vocabulary import Vocabulary, check_names, plain

_RARE = 4  # pieces of one word of CLIP's tokenizer; words of captions have one or two
# What names no thing that a caption would speak of.
_REST = {"other", "others", "misc", "miscellaneous", "background", "unknown", "void", "unlabeled",
         "unlabelled", "undefined", "none", "ignore", "rest", "n/a"}


class Name(typing.NamedTuple):
    """One name of a class."""

    class_id: int
    name: str
    tokens: int              # without those of the template, start and end
    remarks: list[str]       # what is wrong with it, or odd


class Check(typing.NamedTuple):
    """What a names file holds."""

    vocabulary: Vocabulary
    names: list[Name]
    refused: str | None      # why no command takes the file


def check(text: str, name: str, templates: typing.Sequence[str], *,
          other: Vocabulary | None = None, context_length: int = 77) -> Check:
    """Looks at every name.

    Args:
      text: content of the names file.
      name: of the file, for messages.
      templates: of prompts; the longest one decides what is cut.
      other: a vocabulary whose names are marked.
      context_length: tokens that a text tower reads, start and end included.

    Raises:
      ValueError: columns that cannot be read.
    """
    vocabulary, refused = Vocabulary.from_text(text, name), None
    try:
        if not vocabulary.is_copy():
            check_names(text, name)
    except ValueError as error:
        refused = str(error)
    # Long enough that nothing is cut, so that all can be counted.
    tokenizer = Tokenizer(context_length=4096)
    count = lambda text: int((tokenizer([text])[0] > 0).sum()) - 2
    room = context_length - 2 - max(count(template.format("")) for template in templates)
    seen: dict[str, tuple[int, str]] = {}
    theirs = {plain(n): n for names in other.classes for n in names} if other else {}
    rows = []
    for c, names in enumerate(vocabulary.classes):
        for given in names:
            tokens, remarks = count(given), []
            if plain(given) in seen:
                place, before = seen[plain(given)]
                remarks.append(f"twice: is {before!r} of class {place}")
            seen.setdefault(plain(given), (c, given))
            if tokens > room:
                remarks.append(f"cut: {tokens} tokens, {room} fit into the longest template")
            remarks += _odd(given, count)
            if plain(given) in theirs:
                exact = theirs[plain(given)] == given
                remarks.append(f"in {other.name}" + (
                    "" if exact else f" as {theirs[plain(given)]!r}, which is another name"))
            rows.append(Name(c, given, tokens, remarks))
    return Check(vocabulary, rows, refused)


def _odd(name: str, count: typing.Callable[[str], int]) -> list[str]:
    """In what a name is not like words of a caption."""
    found = []
    if not name.strip():
        return ["empty"]
    if "_" in name:
        found.append(f"has _; write {name.replace('_', ' ').strip()!r}")
    if re.search(r"[a-z][A-Z]", name):
        found.append("is written together; put blanks between its words")
    if re.search(r"[^\w\s'.&/-]", clean(name)):
        found.append("has signs that captions have not")
    if re.search(r"\d", name):
        found.append("has digits")
    words = re.findall(r"[^\W\d_]+", clean(name))
    short = [w for w in words if len(w) > 1 and w.isascii() and not re.search("[aeiouy]", w)]
    if short:
        found.append(f"{', '.join(map(repr, short))} is an abbreviation; write it out")
    rare = [w for w in words if w not in short and count(w) >= _RARE]
    if rare:
        found.append(f"{', '.join(map(repr, rare))} is rare in captions ({count(rare[0])} pieces); "
                     "add a common name as synonym")
    if plain(name) in _REST:
        found.append("names no thing; give it to predict as --else, or leave it out")
    return found
