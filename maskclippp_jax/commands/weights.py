"""Shows the published files that names stand for: which are here, which are missing, where from.

    maskclippp weights [NAME...]

NAME is a MaskCLIP++ (maskclippp-l), a mask generator (fcclip-l) or a CLIP (EVA02-CLIP-L-14-336);
without any, all but the CLIPs that no shipped configuration uses. What lies on the hub is fetched
when its name is used (`predict --checkpoint=EVA02-CLIP-B-16 --generator=eomt-l-640`). The rest lies
behind pages of the web: download it, and put it into the folder `weights` (of the folder where you
start commands, or of ~/.cache/maskclippp_jax) under the name shown. Files of the hub may lie there
too: a copy of hf://owner/name as weights/name.
"""

from absl import logging

POSITIONAL, BUCKETS = "[NAME...]", ()


def main(names):
    from maskclippp_jax.weights import catalogue

    rows = catalogue.rows()
    unknown = [name for name in names if name not in {row.name for row in catalogue.all_rows()}]
    if unknown:
        raise ValueError(f"nothing published is called {unknown[0]}{catalogue.nearest(unknown[0])}"
                         "; `maskclippp weights` and `maskclippp convert --list` show the names")
    if names:
        rows = [row for row in catalogue.all_rows() if row.name in names]
    found = [(row, row.find()) for row in rows]
    print_table(found)
    missing = [row for row, place in found if place is None]
    by_hand = [row for row in missing if not row.on_hub]
    if by_hand:
        logging.info("to be downloaded into the folder weights, under the name of the table: %s",
                     " ".join(dict.fromkeys(row.name for row in by_hand)))
    logging.info("%d of %d are here", len(rows) - len(missing), len(rows))


def print_table(found) -> None:
    """One row a file."""
    from rich.table import Table

    from maskclippp_jax.runtime import console

    table = Table(box=None, pad_edge=False)
    for column in ("name", "is a", "here", "file", "from"):
        table.add_column(column, no_wrap=True)
    for row, place in found:
        file = "fetched when used" if row.on_hub else row.file
        table.add_row(row.name, row.kind, "yes" if place else "no", place or file, row.source)
    console.show(table)
