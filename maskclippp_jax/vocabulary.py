"""Class names: synonyms, prompts, and which classes are seen.

A names file holds one class a line, its synonyms separated by commas. Optional columns follow after
tabs: `thing` or `stuff`, the data set's own id, and the colour it is officially drawn in
(`#rrggbb`). Lines that start with "# " are comments. Published names are kept to the letter,
misspellings and blanks included: they are part of the prompts that published numbers rest on.
"""

import collections
import dataclasses
import importlib.resources
import itertools
import os
import re
import typing
import unicodedata

import numpy as np

from maskclippp_jax.runtime import storage

TEMPLATES_1 = ("a photo of a {}.",)
# The 14 of ViLD as MaskCLIP++ uses them; the second to fifth have no full stop there either.
TEMPLATES_14 = (
    "a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene",
    "There is the {} in the scene", "a photo of a {} in the scene", "a photo of a small {}.",
    "a photo of a medium {}.", "a photo of a large {}.", "This is a photo of a small {}.",
    "This is a photo of a medium {}.", "This is a photo of a large {}.",
    "There is a small {} in the scene.", "There is a medium {} in the scene.",
    "There is a large {} in the scene.")


# The 80 templates published with CLIP for ImageNet, in the order of OpenCLIP.
TEMPLATES_80 = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.",
    "a photo of the hard to see {}.", "a low resolution photo of the {}.", "a rendering of a {}.",
    "graffiti of a {}.", "a bad photo of the {}.", "a cropped photo of the {}.",
    "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.",
    "a dark photo of the {}.", "a drawing of a {}.", "a photo of my {}.", "the plastic {}.",
    "a photo of the cool {}.", "a close-up photo of a {}.", "a black and white photo of the {}.",
    "a painting of the {}.", "a painting of a {}.", "a pixelated photo of the {}.",
    "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.",
    "a rendering of the {}.", "a {} in a video game.", "a photo of one {}.", "a doodle of a {}.",
    "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.", "the {} in a video game.",
    "a sketch of a {}.", "a doodle of the {}.", "a origami {}.", "a low resolution photo of a {}.",
    "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.", "a photo of a large {}.",
    "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.",
    "a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}.",
    "a jpeg corrupted photo of the {}.", "a good photo of a {}.", "a plushie {}.",
    "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.",
    "a photo of a small {}.", "a tattoo of the {}.")


# The 9 of the zero-shot segmentation of github.com/google-deepmind/tips.
TEMPLATES_TIPS = (
    "itap of a {}.", "a bad photo of a {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.", "a photo of many {}.",
    "a photo of {}s.")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # signs that nobody sees


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    name: str
    classes: tuple[tuple[str, ...], ...]  # names of each class, the first one is shown to people
    is_thing: tuple[bool, ...]
    dataset_ids: tuple[int, ...]
    colors: tuple[tuple[int, int, int] | None, ...] = ()  # red, green, blue; () if none is known

    @classmethod
    def from_text(cls, text: str, name: str, skip: typing.Collection[int] = ()) -> "Vocabulary":
        """Reads the content of a names file.

        Args:
          text: of the file.
          name: of the vocabulary.
          skip: numbers that no class gets because of its place; without a number of their own the
            first class has the smallest number that is left, and so on.

        Raises:
          ValueError: no class, a line with other columns, or an id that two classes have.
        """
        classes, is_thing, ids, colors = [], [], {}, []  # ids: the place of each
        free = (n for n in itertools.count() if n not in skip)
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith("# "):
                continue
            names, *columns = line.rstrip("\r").split("\t")
            defaults = ["thing", str(next(free)), ""]
            columns = [c or default for c, default in zip(columns, defaults)] + columns[3:]
            kind, dataset_id, color = [*columns, *defaults[len(columns):]][:3]
            if (len(columns) > 3 or kind not in ("thing", "stuff") or not dataset_id.isdecimal()
                    or not re.fullmatch("(#[0-9a-fA-F]{6})?", color)):
                raise ValueError(f"{name}, line {number}: got {line!r}, wanted names separated by "
                                 "commas, then optionally, after tabs, thing or stuff, a number, "
                                 "and a colour like #00ff7f")
            if ids.setdefault(int(dataset_id), len(classes)) != len(classes):
                raise ValueError(f"{name}, line {number}: the id {dataset_id} belongs to "
                                 f"{classes[ids[int(dataset_id)]][0]!r} already; give every "
                                 "class one of its own")
            classes.append(split_names(names))
            is_thing.append(kind == "thing")
            colors.append(tuple(bytes.fromhex(color[1:])) if color else None)
        if not classes:
            raise ValueError(f"{name} holds no class; write one a line, synonyms separated by "
                             "commas")
        return cls(name, tuple(classes), tuple(is_thing), tuple(ids),
                   tuple(colors) if any(colors) else ())

    @classmethod
    def from_file(cls, path: str, skip: typing.Collection[int] = ()) -> "Vocabulary":
        """Reads a user's names file, UTF-8; see `from_text`.

        A copy of a shipped one is read to the letter; of others blanks around names do not count.

        Raises:
          FileNotFoundError: no such file.
          ValueError: see `from_text`; another encoding, an empty name, one that is given twice (a
            CLIP reads capitals like small letters), or columns that are no columns.
        """
        file = storage.path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no names file {path}; write one class a line, synonyms "
                                    "separated by commas")
        text = storage.read_text(path)
        vocabulary = cls.from_text(text, file.name, skip)
        if vocabulary.is_copy():
            return vocabulary
        check_names(text, path)
        return dataclasses.replace(vocabulary, classes=tuple(
            tuple(name.strip() for name in names) for names in vocabulary.classes))

    @classmethod
    def shipped(cls, name: str) -> "Vocabulary":
        """The vocabulary of a published benchmark, e.g. "ade20k_150"."""
        folder = importlib.resources.files("maskclippp_jax.data") / "names"
        file = folder / f"{name}.txt"
        if not file.is_file():
            raise ValueError(f"no vocabulary {name!r}; there are {', '.join(shipped_names())}")
        return cls.from_text(file.read_text("utf-8"), name)

    @classmethod
    def load(cls, name: str | os.PathLike) -> "Vocabulary":
        """A shipped vocabulary by its name, or a names file by its path."""
        name = os.fspath(name)
        is_file = name.endswith(".txt") or (
            name not in shipped_names() and storage.path(name).is_file())
        return cls.from_file(name) if is_file else cls.shipped(name)

    @classmethod
    def from_string(cls, text: str) -> "Vocabulary":
        """Reads a command line's list, classes separated by semicolons: "cat;dog,puppy".

        Raises:
          ValueError: an empty list, an empty name, or a name that is given twice.
        """
        classes = [c.split(",") for c in text.split(";") if c.strip()]
        if not classes:
            raise ValueError("the class list is empty; write e.g. --classes=\"cat;dog,puppy\"")
        what = f"the class list {text!r}"
        vocabulary = cls._of_people(classes, what, "command line")
        seen: dict[str, str] = {}
        for name in (n for names in vocabulary.classes for n in names):
            first = seen.setdefault(_to_model(name), name)
            if first != name:
                raise ValueError(f"{what}: {name!r} is {first!r} to the model; keep one of them")
        return vocabulary

    @classmethod
    def from_names(cls, names: typing.Sequence[str]) -> "Vocabulary":
        """Reads a list of classes, the synonyms of each separated by commas: ["cat", "dog, puppy"].

        Raises:
          ValueError: an empty list, an empty name, or a name that is given twice.
        """
        if not isinstance(names, typing.Iterable):
            raise ValueError(f"got {names!r} for the classes, wanted a list of names such as "
                             "[\"cat\", \"dog, puppy\"]")
        names = list(names)
        wrong = [n for n in names if not isinstance(n, str)]
        if wrong:
            raise ValueError(f"the class list holds {wrong[0]!r}, wanted names such as \"cat\", "
                             "and \"dog, puppy\" for one class of two names")
        if not names:
            raise ValueError("the class list is empty; give e.g. [\"cat\", \"dog, puppy\"]")
        return cls._of_people([n.split(",") for n in names], f"the class list {names!r}", "names")

    @classmethod
    def _of_people(cls, classes: typing.Sequence[typing.Sequence[str]], what: str, name: str
                   ) -> "Vocabulary":
        classes = tuple(tuple(n.strip() for n in c) for c in classes)
        names = [n for c in classes for n in c]
        if "" in names:
            raise ValueError(f"{what} has an empty name; remove it, or the comma too many")
        if wrong := next(filter(unwritable, names), None):
            raise ValueError(f"the name {wrong!r} {unwritable(wrong)}; give each name on its own, "
                             "without that (a file with a class a line is a --names_file)")
        twice = sorted(n for n, count in collections.Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"the class list names {', '.join(map(repr, twice))} more than once; "
                             "keep one of each")
        return cls(name, classes, (True,) * len(classes), tuple(range(len(classes))))

    def is_copy(self) -> bool:
        """Whether its names are those of a shipped vocabulary, to the letter."""
        return any(self.classes == self.shipped(name).classes for name in shipped_names())

    def first(self, count: int) -> "Vocabulary":
        """Its first classes."""
        if count == self.num_classes:
            return self
        return dataclasses.replace(
            self, classes=self.classes[:count], is_thing=self.is_thing[:count],
            dataset_ids=self.dataset_ids[:count], colors=self.colors[:count])

    def followed_by(self, others: "Vocabulary") -> "Vocabulary":
        """Its classes, then others', which get the next numbers.

        Raises:
          ValueError: both have a class of one name.
        """
        known = {plain(name): name for names in self.classes for name in names}
        both = [name for names in others.classes for name in names if plain(name) in known]
        if both:
            raise ValueError(f"{', '.join(map(repr, both))} is among the classes and among the "
                             "distractors (--else); keep one of both")
        after = max(self.dataset_ids) + 1
        return dataclasses.replace(
            self, classes=self.classes + others.classes, is_thing=self.is_thing + others.is_thing,
            dataset_ids=self.dataset_ids + tuple(range(after, after + others.num_classes)),
            colors=self.colors and self.colors + (None,) * others.num_classes)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def num_synonyms(self) -> int:
        return sum(map(len, self.classes))

    @property
    def synonym_class(self) -> np.ndarray:
        """[S] int32, the class of every name."""
        return np.repeat(np.arange(self.num_classes, dtype=np.int32),
                         [len(c) for c in self.classes])

    def prompts(self, templates: typing.Sequence[str]) -> list[str]:
        """Every name in every template, [S * T]: classes outside, then names, templates inside."""
        return [t.format(name) for names in self.classes for name in names for t in templates]

    def seen_in(self, training: "Vocabulary") -> np.ndarray:
        """[C] bool: the class shares one exact name with a class of the other vocabulary."""
        known = {name for names in training.classes for name in names}
        return np.array([any(n in known for n in names) for names in self.classes])

    def lookup_from(self, training: "Vocabulary") -> np.ndarray:
        """[J + 1] int32: for each training class the first of our classes that shares a name.

        C where none does, and for the last entry, void. A training class goes to one class only,
        so some of our seen classes get none.
        """
        first = {}
        for number, names in enumerate(self.classes):
            for name in names:
                first.setdefault(name, number)
        none = self.num_classes
        return np.array([*(min(first.get(n, none) for n in names) for names in training.classes),
                         none], np.int32)

    def find(self, name: str) -> int | None:
        """The class with this name: to the letter, else however it is written (see `plain`), else
        that which has all of its names, where commas part them.

        Raises:
          ValueError: two classes have it, written otherwise.
        """
        for number, names in enumerate(self.classes):
            if name in names:
                return number
        found = [number for number, names in enumerate(self.classes)
                 if plain(name) in map(plain, names)]
        if len(found) > 1:
            raise ValueError(f"{name!r} could be {self.classes[found[0]][0]!r} or "
                             f"{self.classes[found[1]][0]!r} of {self.name}; write it as there")
        if not found and "," in name:
            found = list({self.find(part.strip()) for part in name.split(",") if part.strip()})
            found = [] if len(found) > 1 else found
        return found[0] if found else None

    def to_text(self) -> str:
        """The content of a names file; `from_text` reads it back."""
        rows = []
        for c, names in enumerate(self.classes):
            columns = [",".join(names), "thing" if self.is_thing[c] else "stuff",
                       str(self.dataset_ids[c])]
            if self.colors and self.colors[c]:
                columns.append("#" + bytes(self.colors[c]).hex())
            rows.append("\t".join(columns) + "\n")
        return f"# {self.name}\n{''.join(rows)}"


def shipped_names() -> list[str]:
    """The vocabularies that ship with the project."""
    folder = importlib.resources.files("maskclippp_jax.data") / "names"
    return sorted(f.name[:-4] for f in folder.iterdir() if f.name.endswith(".txt"))


def split_names(names: str) -> tuple[str, ...]:
    """Splits a published string of synonyms: ", " counts as ","; nothing else is stripped."""
    return tuple(names.replace(", ", ",").split(","))


def plain(name: str) -> str:
    """A name without what people write in many ways: capitals, _ or - for a blank."""
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFC", name).casefold())).strip()


def unwritable(name: str) -> str | None:
    """Why a names file cannot hold a name, to be read behind it; None if it can."""
    if _CONTROL.search(name):
        return "holds a line break or another control character"
    return 'starts with "# ", as comments of names files do' if name.startswith("# ") else None


def _to_model(name: str) -> str:
    """What a CLIP reads, to which capitals are small letters and blanks one blank."""
    return " ".join(name.lower().split())


def check_names(text: str, path: str) -> None:
    """Refuses the content of a names file that is no list of names, though it can be read as one;
    see `Vocabulary.from_file`."""
    for number, line in enumerate(re.split("\r\n?|\n", text), start=1):
        if len(line.splitlines()) > 1:  # by signs that look like none
            raise ValueError(f"{path}, line {number}: {line!r} holds a control character; remove "
                             "it")
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1)
             if line.strip() and not line.startswith("# ")]
    only = lambda pattern: all(re.match(pattern, line) for _, line in lines)
    numbers = [re.match(r"(\d+)[:.)\s]\s*\S", line) for _, line in lines]
    steps = [int(b[1]) - int(a[1]) for a, b in zip(numbers, numbers[1:]) if a and b]
    numbered = len(lines) > 1 and all(numbers) and set(steps) == {1}
    spaces = only(r"[^\t]+ (thing|stuff)( +\d+)?( +#\w+)?\s*$")
    a_table = re.search(r"^\d+\s*,|,\s*#[0-9a-fA-F]{6}\s*$", lines[-1][1])
    if numbered or spaces or a_table or only(r"\s*- "):
        raise ValueError(f"{path}, line {lines[0][0]}: got {lines[0][1]!r}, wanted the names of a "
                         "class, separated by commas; then, each after a tab, if they are needed, "
                         "thing or stuff, a number, a colour like #00ff7f")
    seen: dict[str, tuple[int, str]] = {}
    for number, line in lines:
        for name in line.split("\t")[0].split(","):
            if not name.strip():
                raise ValueError(f"{path}, line {number}: {line!r} has an empty name; remove the "
                                 "comma too many")
            if _CONTROL.search(name):
                raise ValueError(f"{path}, line {number}: {name!r} holds a control character; "
                                 "remove it")
            key = _to_model(name)
            if key in seen:
                place, before = seen[key]
                raise ValueError(f"{path}, line {number}: {name.strip()!r} is {before!r} of line "
                                 f"{place} to the model; keep one of them")
            seen[key] = number, name.strip()


def draw_synonyms(vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
    """[C] int32: for each class the row of one of its names, uniformly."""
    counts = np.array([len(c) for c in vocabulary.classes])
    first = np.cumsum(counts) - counts
    return (first + rng.integers(counts)).astype(np.int32)
