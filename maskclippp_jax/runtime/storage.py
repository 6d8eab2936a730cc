"""Files of runs and data sets, in a folder or in a bucket of Google Cloud Storage (gs://...).

An object of a bucket is written whole or not at all, but nothing can be added to it, and a program
cannot jump about in it as fast as in a file. So small files are written at once (`write`), logs
grow in a local folder and are sent whole (`Outbox`), and weights, vocabularies and data sets are
copied to `CACHE` before they are read (`local_copy`). Orbax reads and writes buckets by itself.

On a disk every file appears whole as well: it is written under a temporary name beside its place,
reaches the disk, and is renamed (`replacing`).
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import logging as standard_logging
import os
import pathlib
import re
import shutil
import socket
import tempfile
import time
import typing

from absl import logging
from etils import epath

from maskclippp_jax.runtime import cache

CACHE = cache.folder()  # may be removed when nothing runs
_SCHEME = "gs://"
_READ = ("storage.objects.get", "storage.objects.list")
_WRITE = ("storage.objects.create", "storage.objects.delete")  # replacing needs both

Name = str | os.PathLike


def on_bucket(name: Name) -> bool:
    return os.fspath(name).startswith(_SCHEME)


def path(name: Name) -> epath.Path:
    """A file or folder by its name, which is made absolute.

    Raises:
      ValueError: an address that is not of a bucket, a name that the tools for buckets do not take,
        or their package is missing.
    """
    if on_bucket(name):
        special = re.search(r"[*?\[\]#]", os.fspath(name))
        if special:  # gcsfs takes such names for patterns
            raise ValueError(f"{name} has a {special[0]} in its name, which the tools for buckets "
                             "do not take; choose another name")
        _file_system()
        return epath.Path(name)
    scheme = re.match(r"\w+://", os.fspath(name))
    if scheme:
        raise ValueError(f"{name} is an address, wanted a file or folder here or {_SCHEME}BUCKET/"
                         "...; download it (wget for a web page's) and give its path")
    return epath.Path(name).absolute()


@functools.cache
def check(name: Name, *, write: bool = False) -> None:
    """Makes sure that a bucket is there and may be used; asks once. Folders are not looked at.

    Args:
      name: a file or folder of the bucket.
      write: whether it will be written, not only read.

    Raises:
      ValueError: no such bucket, no right, no network, or the bucket itself where a folder in it is
        wanted.
    """
    where = path(name)
    if not on_bucket(where):
        return
    bucket, _, inner = os.fspath(where).removeprefix(_SCHEME).partition("/")
    if not bucket or (write and not inner.strip("/")):
        raise ValueError(f"got {name}, wanted a folder of a bucket: {_SCHEME}BUCKET/FOLDER")
    wanted = _READ + _WRITE * write
    try:
        answer = _file_system().call("GET", "b/{}/iam/testPermissions", bucket, json_out=True,
                                     permissions=list(wanted))
    except FileNotFoundError:
        raise ValueError(f"there is no bucket {bucket}, which {name} names; make it with `gcloud "
                         f"storage buckets create {_SCHEME}{bucket}`, or correct the name"
                         ) from None
    except Exception as error:  # of gcsfs, of its HTTP client or of the sign-in
        raise ValueError(f"the bucket of {name} cannot be asked ({_said(error)}); is there a "
                         "network, and are you signed in (`gcloud auth application-default "
                         "login`)?") from None
    lacking = [right for right in wanted if right not in answer.get("permissions", ())]
    if lacking:
        use, role = ("written", "Admin") if write else ("read", "Viewer")
        raise ValueError(f"{name} may not be {use}: the account lacks {', '.join(lacking)}; give "
                         f"it the role Storage Object {role} (roles/storage.object{role}) on the "
                         f"bucket {bucket}")


def check_writable(name: Name, *, folder: bool = False) -> None:
    """Sees, before any work, that a file, or a folder, can be written; nothing is made.

    Raises:
      ValueError: it cannot; says where it fails.
    """
    place = path(name)
    if on_bucket(place):
        return  # see `check`
    place = pathlib.Path(place)
    there = cache.existing(place)
    if (there != place or folder) and not there.is_dir():
        raise ValueError(f"{name} cannot be written: {there} is a file, wanted a folder; choose "
                         "another place")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise ValueError(f"{name} cannot be written: {there} may not be written by this user, or "
                         "its disk not at all; choose another place")


def read_text(name: Name) -> str:
    """A text file in UTF-8; a byte order mark in front does no harm.

    Raises:
      ValueError: another encoding; names the line.
    """
    data = path(name).read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{name} is in UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: {data.splitlines()[line - 1]!r} is not in UTF-8; "
                         "save the file as UTF-8") from None


def write(name: Name, content: str | bytes, *, durable: bool = True) -> None:
    """Writes a small file whole or not at all; text as UTF-8.

    Args:
      name: of the file.
      content: of it.
      durable: whether it also outlives the machine's sudden end, which takes some milliseconds;
        not worth it for one of thousands that can be made again.
    """
    file, data = path(name), content.encode() if isinstance(content, str) else content
    if on_bucket(file):
        with _sentence(file):
            file.write_bytes(data)
        return
    with replacing(file, durable=durable) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(name: Name, *, durable: bool = True) -> typing.Iterator[pathlib.Path]:
    """Gives a name beside a file of a disk; what was written there takes the file's place whole.

    If the block fails, nothing is left. Several may write one file, the last whole one stays.

    Args:
      name: of the file, whose folder exists.
      durable: see `write`.
    """
    file = pathlib.Path(path(name))
    _sweep(file.parent)
    temporary = file.with_name(f".{file.name[:150]}.{_host()}-{os.getpid()}-{next(_NUMBERS)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some libraries write files that only their owner may read
        if durable:
            sync(temporary)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(file.parent)


def sync(name: Name) -> None:
    """Waits until a file, or the names in a folder, have reached the disk."""
    number = os.open(name, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_all(folder: Name) -> None:
    """Waits until a folder, with all that is in it and below, has reached the disk.

    Others may remove files meanwhile.
    """
    for where, _, files in os.walk(folder):
        for name in (*(os.path.join(where, file) for file in files), where):
            with contextlib.suppress(FileNotFoundError):
                sync(name)


_NUMBERS = itertools.count()
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-\d+\.tmp")  # a name that `replacing` gives
_FORGOTTEN = 24 * 3600  # seconds after which a temporary file of another host has no writer


@functools.cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@functools.cache
def _sweep(folder: pathlib.Path) -> None:
    """Removes what killed writers left in a folder; once, as it may hold thousands of files."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            name = _TEMPORARY.fullmatch(entry.name)
            if name and not _is_written(entry, name[1], int(name[2])):
                os.unlink(entry.path)


def _is_written(entry: os.DirEntry, host: str, process: int) -> bool:
    if host != _host():
        return time.time() - entry.stat().st_mtime < _FORGOTTEN
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


@contextlib.contextmanager
def locked(folder: pathlib.Path, busy: str) -> typing.Iterator[None]:
    """Only one process does what is inside; the system frees the lock when it dies.

    Args:
      folder: what is written, of a disk; it is made, and holds the lock's file.
      busy: a sentence for the case that another process is at it.

    Raises:
      ValueError: another process is at it.
    """
    file_name = folder / ".lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), open(file_name, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(busy) from None
            # One that failed in between may have removed the file that was opened.
            if _is_same(file, file_name):
                yield
                return


def _is_same(file: typing.IO, name: pathlib.Path) -> bool:
    return name.exists() and os.path.samestat(os.fstat(file.fileno()), name.stat())


def move(source: Name, target: Name) -> None:
    """Moves a folder into the place of another one, which is removed; the parent is made."""
    source, target = path(source), path(target)
    if target.exists():
        target.rmtree()
    if on_bucket(source):
        files, start = _file_system(), len(os.fspath(source).removeprefix(_SCHEME))
        with _sentence(source):
            names = sorted(files.find(os.fspath(source)))
            files.copy(names, [f"{target}{name[start:]}" for name in names])
            files.rm(names)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def local_copy(name: Name) -> str:
    """The local path of a file or a folder; those of buckets are copied to `CACHE`.

    What was copied before is used again as long as the bucket holds the same. Of several processes
    one copies and the others wait for it.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: see `path`.
      OSError: the bucket cannot be reached, or the file changed while it was copied.
    """
    if not on_bucket(name):
        path(name)  # refuses other addresses
        return os.fspath(name)
    source = os.fspath(path(name)).removeprefix(_SCHEME)
    found = _listing(source)
    version = _version(found)
    folder = CACHE / "gs" / source / version
    copy = folder / pathlib.PurePosixPath(source).name
    with _one_at_a_time(folder):
        if copy.exists():
            return str(copy)
        size = sum(facts["size"] for facts in found.values())
        logging.info("copying %s (%.1f MB) to %s", name, size / 1e6, copy)
        partial = folder.with_name(f".{version}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        places = [f"{partial / copy.name}{name[len(source):]}" for name in found]
        for place in places:
            pathlib.Path(place).parent.mkdir(parents=True, exist_ok=True)
        with _sentence(_SCHEME + source):
            _file_system().get(list(found), places)
        got = [os.path.getsize(place) for place in places]
        if got != [facts["size"] for facts in found.values()] or (
                _version(_listing(source)) != version):
            raise OSError(f"{name} changed while it was copied; start the same line again")
        partial.rename(folder)
    return str(copy)


class Outbox:
    """A folder for files that grow, and for what writes files by itself.

    Attributes:
      folder: local; that of the run, or a temporary one whose files `send` brings to the bucket.
    """

    def __init__(self, target: epath.Path, taken_up: typing.Sequence[str] = ()):
        """Starts with the files of the target that will grow.

        Args:
          target: folder, here or in a bucket.
          taken_up: names of these files, as far as they are there.
        """
        self._target, self._sent = target, {}
        self.folder = target
        if on_bucket(target):
            self._temporary = tempfile.TemporaryDirectory(prefix="maskclippp_jax_")
            self.folder = epath.Path(self._temporary.name)
            for name in taken_up:
                if (target / name).exists():
                    (self.folder / name).write_bytes((target / name).read_bytes())

    def send(self) -> None:
        """Brings the files that are new or changed to the bucket, each of them whole."""
        if self.folder == self._target:
            return
        files = {f: (f.stat().st_size, f.stat().st_mtime_ns)
                 for f in sorted(pathlib.Path(self.folder).rglob("*")) if f.is_file()}
        changed = {f: state for f, state in files.items() if self._sent.get(f) != state}
        if changed:
            with _sentence(self._target):
                _file_system().put([str(f) for f in changed], [
                    f"{self._target}/{f.relative_to(self.folder)}" for f in changed])
        self._sent |= changed


@functools.cache
def _file_system():
    """The buckets, as gcsfs shows them; `epath` uses the same.

    Raises:
      ValueError: gcsfs is not installed.
    """
    # Else gcsfs asks for the kind of the bucket before every call, for which the role that objects
    # need gives no right, and warns every time.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    standard_logging.getLogger("gcsfs").setLevel("CRITICAL")  # tracebacks of what it raises as well
    try:
        import fsspec  # only buckets need it

        # Orbax writes past gcsfs, whose memory of folders would be out of date.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        return fsspec.filesystem("gcs", finalize_on_close=True)  # imports gcsfs
    except ImportError:
        raise ValueError(f"{_SCHEME} needs the package gcsfs; pip install 'etils[epath-gcs]', or "
                         "name a local folder") from None


def _listing(source: str) -> dict[str, dict]:
    """Facts of the objects at or below a path without its scheme, by theirs."""
    try:
        with _sentence(_SCHEME + source):
            found = _file_system().find(source, detail=True)
    except FileNotFoundError:
        found = {}
    found = {name: facts for name, facts in sorted(found.items())
             if not name.endswith("/")}  # which consoles make for empty folders
    if not found:
        raise FileNotFoundError(f"no file or folder {_SCHEME}{source}")
    return found


def _version(listing: dict[str, dict]) -> str:
    facts = [(name, facts["size"], facts["generation"]) for name, facts in listing.items()]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _one_at_a_time(folder: pathlib.Path):
    """Of the processes of this machine; the system frees the lock when one dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _sentence(name: Name):
    """Errors of gcsfs, its HTTP client or the sign-in become an OSError with a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise OSError(f"{name} cannot be reached in its bucket ({_said(error)}); see that it can, "
                      "and start the same line again") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
