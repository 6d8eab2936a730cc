"""HTML from Python: words are escaped unless they are markup already."""

import html
import typing


class Markup(str):
    """Text that is HTML."""


def element(name: str, *children: "str | float | typing.Iterable", **attributes) -> Markup:
    """`<name attributes>children</name>`.

    Args:
      name: of the element.
      children: words and numbers, which are escaped; markup, which stays; or lists of them.
      attributes: `class_` is `class`, `aria_label` `aria-label`; those that are None go.
    """
    words = "".join(f' {key.strip("_").replace("_", "-")}="{html.escape(str(value))}"'
                    for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{words}>{join(children)}</{name}>")


def join(children: typing.Iterable) -> Markup:
    """Children side by side, see `element`."""
    return Markup("".join(_escaped(child) for child in children))


def _escaped(child) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return html.escape(str(child))
    return join(child)
