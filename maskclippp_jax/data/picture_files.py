"""Which pictures people mean by files, folders and patterns, and what their results are called."""

import glob
import os
import pathlib
import re
import typing

from maskclippp_jax.data import bundles, images, mask_files, transforms
from maskclippp_jax.data.prepare import paths
from maskclippp_jax.runtime import progress

# Of what is in a folder, these are pictures; a file that is named itself may end as it likes.
ENDINGS = (*images.endings(), ".gif", ".jp2", ".ppm", ".pgm")


class PictureFile(typing.NamedTuple):
    path: str
    name: str          # of its results: path below the folder that holds all pictures, no ending
    # Where its masks are: a path, see `mask_files`; rows of a file of COCO; an entry of a bundle.
    masks: str | list[dict] | bundles.Entry | None


def find(arguments: typing.Sequence[str], *, masks: str | None = None,
         bundle: str | None = None, leave_out: typing.Sequence[str] = ()) -> list[PictureFile]:
    """The pictures that files, folders and patterns stand for, each once.

    Args:
      arguments: as typed; of a folder, hidden files and folders do not count.
      masks: pattern of files or folders of masks, in which {stem} is a picture's name; or a JSON of
        COCO's form for all; None: there are none.
      bundle: folder of a bundle of masks, whose ids end as the pictures' names do.
      leave_out: folders whose files are no pictures to be found (earlier results), unless they are
        asked for themselves. Of results `x.overlay.png` and `x.labels.png` beside `x.json` none
        ever is.

    Raises:
      FileNotFoundError: one of them stands for no picture, or masks are not there.
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
        found = {place: file for place, file in found.items()
                 if not {place, os.path.dirname(place)} & maps}
    files, names = list(found.values()), [_name_of(place, root) for place in found]
    first: dict[str, str] = {}
    for file, name in zip(files, names):
        if name in first:
            raise ValueError(f"the results of {first[name]} and {file} would overwrite each other; "
                             "name one of them at a time")
        first[name] = file
    if bundle:
        opened = bundles.Bundle(bundle)
        return _listed(files, names, {name: opened[name] for name in opened.pictures}, bundle)
    listed = None if not masks or "{stem}" in masks else mask_files.of_each_picture(masks)
    if listed is not None:
        return _listed(files, names, listed, masks)
    if masks and "{stem}" not in masks and len(found) > 1:
        raise ValueError(f"--masks={masks} is one file for {len(found)} pictures; write {{stem}} "
                         "where the picture's name stands")
    return [PictureFile(f, n, masks and masks.replace("{stem}", n)) for f, n in zip(files, names)]


def _listed(files: typing.Sequence[str], names: typing.Sequence[str],
            masks: typing.Mapping[str, typing.Any], source: str) -> list[PictureFile]:
    """Pictures with their masks out of one source, which may know them by other folders.

    Raises:
      FileNotFoundError: it does not know one.
      ValueError: one of its pictures could be several of these, or the reverse.
    """
    known = paths.Paths(dict(masks))
    found = [known.find(os.path.abspath(file)) for file in files]
    missing = [file for file, masks in zip(files, found) if masks is None]
    if missing:
        raise FileNotFoundError(f"{source} has no masks of {bundles.some(missing)}; it knows "
                                f"{bundles.some(sorted(masks))}")
    first: dict[int, str] = {}
    for file, (name, of_file) in zip(files, found):
        other = first.setdefault(id(of_file), file)
        if other != file:
            raise ValueError(f"{source} has masks of one picture {name}, which {other} and {file} "
                             "could both be; name one of them, or list both there")
    return [PictureFile(f, n, m[1]) for f, n, m in zip(files, names, found)]


def check(pictures: typing.Sequence[PictureFile], *, skip_broken: bool, in_tiles: bool = False
          ) -> tuple[list[PictureFile], list[str]]:
    """Looks at the headers of all pictures, which are named whole or `in_tiles`, and of masks in
    files.

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
            if not in_tiles:
                images.check_whole(size, picture.path)
            if isinstance(picture.masks, str):
                mask_files.check(picture.masks, size)
            elif isinstance(picture.masks, list):
                mask_files.check_sizes(picture.masks, size, f"the masks of {picture.path}")
            good.append(picture)
        except (ValueError, FileNotFoundError) as error:
            if not skip_broken:
                raise
            problems.append(str(error))
    if not good:
        raise ValueError(f"no picture can be used; {problems[0]}")
    return good, problems


def check_results(pictures: typing.Sequence[PictureFile], output: str,
                  endings: typing.Sequence[str], folders: typing.Sequence[str],
                  others: typing.Sequence[str]) -> None:
    """Refuses results that would take the place of what they are made from.

    Args:
      pictures: see `find`.
      output: folder of the results, on a disk.
      endings: of the results of a picture, which are called as it is.
      folders: in `output` that get further results.
      others: files that are read as well.

    Raises:
      ValueError: one of them would.
    """
    given = {os.path.abspath(f): f for f in (
        *others, *(p.masks for p in pictures if isinstance(p.masks, str)),
        *(p.path for p in pictures))}
    place = os.path.abspath(output)
    made = (os.path.join(place, p.name + ending) for p in pictures for ending in endings)
    lost = next((given[file] for file in made if file in given), None) or next(
        (file for where, file in given.items() for folder in folders
         if where.startswith(os.path.join(place, folder, ""))), None)
    if lost:
        raise ValueError(f"results in {output} would take the place of {lost}, which they are made "
                         "from; choose another --output")


def _files_of(argument: str, leave_out: typing.Sequence[str]) -> list[str]:
    if os.path.isdir(argument):
        inside = lambda file, folder: os.path.join(os.path.abspath(file), "").startswith(
            os.path.join(os.path.abspath(folder), ""))
        earlier = [f for f in leave_out if not inside(argument, f)]
        folder = pathlib.Path(argument)
        # Hidden ones are previews and what macOS lays beside files.
        is_hidden = lambda file: any(x.startswith(".") for x in file.relative_to(folder).parts)
        files = [str(f) for f in sorted(folder.rglob("*"))
                 if f.suffix.lower() in ENDINGS and f.is_file() and not is_hidden(f)
                 and not _is_result(f) and not any(inside(f, e) for e in earlier)]
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


def _is_result(file: pathlib.Path) -> bool:
    stem = re.fullmatch(r"(.+)\.(overlay|labels)\.png", file.name)
    return bool(stem) and file.with_name(f"{stem[1]}.json").is_file()



def _name_of(place: str, root: str) -> str:
    return str(pathlib.Path(os.path.relpath(place, root)).with_suffix(""))
