"""One file for all pictures, as annotation tools export them: its rows and the pictures."""

import functools
import hashlib
import typing

from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import own_masks, paths
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.runtime.console import counted


class Listed(typing.NamedTuple):
    """What such a file holds."""

    title: str                # of the form
    names: list[str] | None   # of the classes; None: the file lists none
    # Of each picture the ways in which its path may be meant, the best first, and its annotations.
    rows: list[tuple[tuple[str, ...], typing.Any]]
    # (masks, (id, picture, annotations)) -> records
    make: typing.Callable[[own_masks.Masks, tuple], list[dict]]


def reading_of(listed: Listed, pictures_at: Files, pattern: str, path: str, masks: own_masks.Masks
               ) -> Reading:
    """Finds the pictures of the rows.

    Args:
      listed: the rows.
      pictures_at: where they are.
      pattern: of their names' endings.
      path: of the file.
      masks: the classes.

    Raises:
      ValueError: two rows are of one picture.
    """
    pictures = paths.Paths(pictures_at.find(f"(.+{pattern})"), pictures_at.folder.name,
                           [name for names, _ in listed.rows for name in names])
    items, lost, seen = [], [], set()
    for names, annotations in listed.rows:
        picture = next(filter(None, map(pictures.find, names)), None)
        if picture is None:
            lost.append(names[0])
            continue
        if picture[0] in seen:
            raise ValueError(f"{path} lists the picture {picture[0]} twice; keep one")
        seen.add(picture[0])
        items.append((*picture, annotations))
    be = "is" if len(lost) == 1 else "are"
    missing = [f"{counted(len(lost), 'picture')} that {path} names {be} missing, e.g. "
               f"{', '.join(sorted(lost)[:3])}"] if lost else []
    content = hashlib.sha1(File((), path).read()).hexdigest()
    fingerprint = pictures_at.fingerprint + content + repr((masks.left_out, masks.keep_crowds))
    note = f"took the labels for those of {listed.title}, {len(items)} of them have a picture"
    return Reading({"train": items}, functools.partial(listed.make, masks), missing,
                   fingerprint, notes=[note, *pictures.said("annotation")])
