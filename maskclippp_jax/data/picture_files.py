"""Which pictures people mean by files, folders and patterns, and what their results are called."""

import glob
import os
import pathlib
import typing

from maskclippp_jax.data import images, transforms
from maskclippp_jax.runtime import progress

# Of what is in a folder, these are pictures; a file that is named itself may end as it likes.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".ppm",
           ".pgm", ".avif")


class PictureFile(typing.NamedTuple):
    path: str
    name: str          # of its results: path below the folder that holds all pictures, no ending
    masks: str | None  # path of its label map


def find(arguments: typing.Sequence[str], *, masks: str | None = None,
         leave_out: str | None = None) -> list[PictureFile]:
    """The pictures that files, folders and patterns stand for, each once.

    Args:
      arguments: as typed.
      masks: pattern of label maps, in which {stem} is a picture's name; None: there are none.
      leave_out: folder whose files are no pictures to be found (earlier results).

    Raises:
      FileNotFoundError: one of them stands for no picture.
      ValueError: no arguments, or two pictures whose results would have one name.
    """
    if not arguments:
        raise ValueError("got no picture; write: maskclippp predict photo.jpg, or a folder")
    found: dict[str, str] = {}  # as first typed, by where it really is
    roots = []
    for argument in arguments:
        files = _files_of(argument, leave_out)
        roots += [argument] if os.path.isdir(argument) else [os.path.dirname(f) for f in files]
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    root = os.path.commonpath([os.path.abspath(r or ".") for r in roots])
    if masks and "{stem}" in masks:  # they may lie in the same folder
        maps = {os.path.abspath(masks.replace("{stem}", _name_of(f, root))) for f in found}
        found = {place: file for place, file in found.items() if place not in maps}
    files, names = list(found.values()), [_name_of(place, root) for place in found]
    first: dict[str, str] = {}
    for file, name in zip(files, names):
        if name in first:
            raise ValueError(f"the results of {first[name]} and {file} would overwrite each other; "
                             "name one of them at a time")
        first[name] = file
    if masks and "{stem}" not in masks and len(found) > 1:
        raise ValueError(f"--masks={masks} is one file for {len(found)} pictures; write {{stem}} "
                         "where the picture's name stands")
    return [PictureFile(f, n, masks and masks.replace("{stem}", n)) for f, n in zip(files, names)]


def check(pictures: typing.Sequence[PictureFile], *, skip_broken: bool
          ) -> tuple[list[PictureFile], list[str]]:
    """Looks at the headers of all pictures and label maps.

    Returns:
      The pictures that may be read, and what is wrong with the others.

    Raises:
      ValueError, FileNotFoundError: one cannot be read, and it may not be skipped.
    """
    good, problems = [], []
    for picture in progress.track(pictures, "looking at headers"):
        try:
            size = images.header_size(picture.path)
            transforms.check_ratio(size, picture.path)
            if picture.masks is not None:
                images.check_label_map(picture.masks, size)
            good.append(picture)
        except (ValueError, FileNotFoundError) as error:
            if not skip_broken:
                raise
            problems.append(str(error))
    if not good:
        raise ValueError(f"none of the {len(pictures)} pictures can be used; {problems[0]}")
    return good, problems


def _files_of(argument: str, leave_out: str | None) -> list[str]:
    if os.path.isdir(argument):
        hidden = leave_out and os.path.abspath(leave_out)
        files = [str(f) for f in sorted(pathlib.Path(argument).rglob("*"))
                 if f.suffix.lower() in ENDINGS and f.is_file() and not (
                     hidden and os.path.abspath(f).startswith(hidden + os.sep))]
        if not files:
            raise FileNotFoundError(f"no picture in the folder {argument} (files that end in "
                                    f"{', '.join(ENDINGS)})")
        return files
    if os.path.exists(argument):
        return [argument]
    files = sorted(f for f in glob.glob(argument, recursive=True) if os.path.isfile(f))
    if not files:
        raise FileNotFoundError(f"no file {argument}" + (
            ", and none that fits the pattern" if glob.has_magic(argument) else ""))
    return files


def _name_of(place: str, root: str) -> str:
    return str(pathlib.Path(os.path.relpath(place, root)).with_suffix(""))
