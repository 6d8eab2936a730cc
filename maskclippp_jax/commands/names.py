"""Shows a vocabulary: python -m maskclippp_jax.names NAME [--overlap=OTHER]

Every class with its synonyms; with `--overlap` also which classes are seen, so share an exact name
with a class of the other vocabulary. NAME and OTHER are shipped vocabularies, or names files
(*.txt). Without NAME: what is shipped.
"""

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskclippp_jax import cli, vocabulary
from maskclippp_jax.vocabulary import Vocabulary

OVERLAP = flags.DEFINE_string("overlap", None, "vocabulary that was trained on; shows what it has "
                              "seen of this one")


def main(names):
    console = Console()
    if len(names) > 1 or (OVERLAP.value and not names):
        raise ValueError(f"got {len(names)} vocabularies, wanted one; see --help")
    if not names:
        table = Table("vocabulary", "classes", "things", "names")
        for name in vocabulary.shipped_names():
            v = Vocabulary.shipped(name)
            table.add_row(name, f"{v.num_classes}", f"{sum(v.is_thing)}", f"{v.num_synonyms}")
        console.print(table)
        return
    shown = Vocabulary.load(names[0])
    training = Vocabulary.load(OVERLAP.value) if OVERLAP.value else None
    console.print(describe(shown, training))
    if training:
        seen = shown.seen_in(training)
        console.print(f"{seen.sum()} of {shown.num_classes} classes of {shown.name} are seen in "
                      f"{training.name}, {(~seen).sum()} are unseen")


def describe(shown: Vocabulary, training: Vocabulary | None = None) -> Table:
    """A table of the classes: number, id in the data set, kind, colour, names.

    Args:
      shown: the vocabulary.
      training: if given, names that it has too are marked, and classes as seen or unseen.
    """
    known = {n for names in training.classes for n in names} if training else set()
    seen = shown.seen_in(training) if training else [False] * shown.num_classes
    table = Table("class", "id", "kind", *(["colour"] if shown.colors else []),
                  *(["seen"] if training else []), "names (first: shown to people)")
    for c, names in enumerate(shown.classes):
        row = [f"{c}", f"{shown.dataset_ids[c]}", "thing" if shown.is_thing[c] else "stuff"]
        if shown.colors:
            color = "#" + bytes(shown.colors[c]).hex() if shown.colors[c] else ""
            row.append(Text("\N{FULL BLOCK}" * 2 + " " + color, style=color) if color else "")
        if training:
            row.append("seen" if seen[c] else "unseen")
        row.append(Text(", ").join(
            Text(n, style="bold green" if n in known else "") for n in names))
        table.add_row(*row)
    return table


if __name__ == "__main__":
    cli.run(main, positional=True)
