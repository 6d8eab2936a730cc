"""Tables and lines for people, on standard output, with nothing lost.

rich, which draws them, shortens words that a narrow screen has no room for, and takes what stands
in brackets for marks of its own; names and paths of people have brackets.
"""

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_ANY = 10**4  # columns of a screen, more than any cell needs


def show(table: Table) -> None:
    """Prints a table, which is wider than the screen where whole words need that.

    Cells wrap between words only, those of a column with `no_wrap` not at all, and those of one
    with `overflow="fold"` anywhere. Strings are shown as they are; colours are for `Text`.
    """
    console = _console()
    options = console.options.update(max_width=_ANY)
    for column in table.columns:
        if column.overflow != "fold":
            cells = [Measurement.get(console, options, x) for x in (column.header, *column.cells)]
            column.min_width = max(x.maximum if column.no_wrap else x.minimum for x in cells)
    if sum(3 + (column.min_width or 1) for column in table.columns) + 1 > console.width:
        if table.box:  # without lines between columns it may fit
            table.box, table.show_edge, table.padding = box.SIMPLE, False, (0, 1, 0, 0)
        for column in table.columns:
            column.width = column.min_width
        console.width = _ANY
    console.print(table, crop=False)


def say(*parts: str | tuple[str, str]) -> None:
    """Prints a line, which the screen may break.

    Args:
      parts: of it; a pair is a text and its style, such as "yellow".
    """
    _console().print(Text.assemble(*parts), soft_wrap=True)


def counted(number: int, noun: str) -> str:
    """"1 mask", "2 masks"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _console() -> Console:
    return Console(markup=False, highlight=False)
