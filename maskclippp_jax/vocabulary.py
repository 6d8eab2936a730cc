"""Class names: synonyms, prompts, and which classes are seen.

A names file holds one class a line, its synonyms separated by commas. Two optional columns follow
after tabs: `thing` or `stuff`, and the data set's own id. Lines that start with "# " are comments.
Published names are kept to the letter, misspellings and blanks included: they are part of the
prompts that published numbers rest on.
"""

import dataclasses
import importlib.resources
import pathlib
import typing

import numpy as np

TEMPLATES_1 = ("a photo of a {}.",)
# The 14 of ViLD as MaskCLIP++ uses them; the second to fifth have no full stop there either.
TEMPLATES_14 = (
    "a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene",
    "There is the {} in the scene", "a photo of a {} in the scene", "a photo of a small {}.",
    "a photo of a medium {}.", "a photo of a large {}.", "This is a photo of a small {}.",
    "This is a photo of a medium {}.", "This is a photo of a large {}.",
    "There is a small {} in the scene.", "There is a medium {} in the scene.",
    "There is a large {} in the scene.")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    name: str
    classes: tuple[tuple[str, ...], ...]  # names of each class, the first one is shown to people
    is_thing: tuple[bool, ...]
    dataset_ids: tuple[int, ...]

    @classmethod
    def from_text(cls, text: str, name: str) -> "Vocabulary":
        """Reads the content of a names file.

        Raises:
          ValueError: no class, or a line with other columns.
        """
        classes, is_thing, ids = [], [], []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith("# "):
                continue
            names, *columns = line.split("\t")
            kind, dataset_id = [*columns, *["thing", str(len(classes))][len(columns):]][:2]
            if len(columns) > 2 or kind not in ("thing", "stuff") or not dataset_id.isdigit():
                raise ValueError(f"{name}, line {number}: got {line!r}, wanted names separated by "
                                 "commas, then optionally a tab, thing or stuff, a tab, and a "
                                 "number")
            classes.append(split_names(names))
            is_thing.append(kind == "thing")
            ids.append(int(dataset_id))
        if not classes:
            raise ValueError(f"{name} holds no class; write one a line, synonyms separated by "
                             "commas")
        return cls(name, tuple(classes), tuple(is_thing), tuple(ids))

    @classmethod
    def from_file(cls, path: str) -> "Vocabulary":
        """Reads a user's names file."""
        file = pathlib.Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no names file {path}; write one class a line, synonyms "
                                    "separated by commas")
        return cls.from_text(file.read_text("utf-8"), file.name)

    @classmethod
    def shipped(cls, name: str) -> "Vocabulary":
        """The vocabulary of a published benchmark, e.g. "ade20k_150"."""
        folder = importlib.resources.files("maskclippp_jax.data") / "names"
        file = folder / f"{name}.txt"
        if not file.is_file():
            known = sorted(f.name[:-4] for f in folder.iterdir() if f.name.endswith(".txt"))
            raise ValueError(f"no vocabulary {name!r}; there are {', '.join(known)}")
        return cls.from_text(file.read_text("utf-8"), name)

    @classmethod
    def from_string(cls, text: str) -> "Vocabulary":
        """Reads a command line's list, classes separated by semicolons: "cat;dog,puppy".

        Raises:
          ValueError: an empty list, an empty name, or a name that is given twice.
        """
        classes = [tuple(n.strip() for n in c.split(",")) for c in text.split(";") if c.strip()]
        if not classes:
            raise ValueError("the class list is empty; write e.g. --classes=\"cat;dog,puppy\"")
        names = [n for c in classes for n in c]
        if "" in names:
            raise ValueError(f"the class list {text!r} has an empty name; remove the extra comma")
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"the class list names {', '.join(map(repr, twice))} more than once; "
                             "keep one of each")
        return cls("command line", tuple(classes), (True,) * len(classes),
                   tuple(range(len(classes))))

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

    def to_text(self) -> str:
        """The content of a names file; `from_text` reads it back."""
        rows = (f"{','.join(names)}\t{'thing' if thing else 'stuff'}\t{i}\n"
                for names, thing, i in zip(self.classes, self.is_thing, self.dataset_ids))
        return f"# {self.name}\n{''.join(rows)}"


def split_names(names: str) -> tuple[str, ...]:
    """Splits a published string of synonyms: ", " counts as ","; nothing else is stripped."""
    return tuple(names.replace(", ", ",").split(","))


def draw_synonyms(vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
    """[C] int32: for each class the row of one of its names, uniformly."""
    counts = np.array([len(c) for c in vocabulary.classes])
    first = np.cumsum(counts) - counts
    return (first + rng.integers(counts)).astype(np.int32)
