"""Where things are kept that can be made or fetched again."""

import contextlib
import os
import pathlib
import tempfile


def folder() -> pathlib.Path:
    """In the home of the user or, if there is none that can be written, in the temporary folder."""
    with contextlib.suppress(RuntimeError):  # the user is unknown
        home = pathlib.Path.home()
        if home.is_dir() and os.access(existing(home / ".cache/maskclippp_jax"), os.W_OK):
            return home / ".cache/maskclippp_jax"
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # nothing can be written; who tries to keep something there says so
        return pathlib.Path(os.devnull, "maskclippp_jax")
    place = pathlib.Path(temporary, f"maskclippp_jax_{os.getuid()}")
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
    if place.is_dir() and not place.is_symlink() and place.stat().st_uid == os.getuid():
        return place
    return pathlib.Path(tempfile.mkdtemp(prefix="maskclippp_jax_"))  # its name is somebody else's


def existing(place: pathlib.Path) -> pathlib.Path:
    """A place or, if it is not there, the nearest one above it that is."""
    return next(p for p in (place, *place.parents) if p.exists())
