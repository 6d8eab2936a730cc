"""Files of official archives, read where they are: zip, tar, tar.gz, and archives inside archives.

An archive counts as a folder of its own name without the ending, so the same patterns find a file
packed or unpacked. Nothing is unpacked to the disk. Every process opens an archive once.
"""

import fnmatch
import functools
import gzip
import hashlib
import io
import os
import pathlib
import re
import tarfile
import typing
import zipfile
import zlib

from maskclippp_jax.runtime import typed

T = typing.TypeVar("T")
_ENDINGS = re.compile(r"\.(zip|tar|tar\.gz|tgz)$")
_ANY_ARCHIVE = re.compile(r"\.(zip|tar|tgz|gz|rar|7z)$")
# Compressed archives cannot be entered in the middle. Up to this size (bytes) they are held in
# memory, by every process; larger ones are read again from their start when a file lies behind.
_IN_MEMORY = 2 << 30
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError)


class File(typing.NamedTuple):
    """A file, perhaps inside an archive."""

    archives: tuple[str, ...]  # the archive on disk, then archives inside it; () for a plain file
    path: str                  # in the last archive, or on disk

    def read(self) -> bytes:
        """The content.

        Raises:
          ValueError: damaged or encrypted; says what to do.
        """
        try:
            if not self.archives:
                return pathlib.Path(self.path).read_bytes()
            return _archive(self.archives).read(self.path)
        except (*_DAMAGED, KeyError) as error:
            raise ValueError(f"{self} cannot be read ({error}); download it again") from None
        except (RuntimeError, NotImplementedError) as error:  # a password, a rare compression
            raise ValueError(f"{self} cannot be read ({error}); unpack the archive with another "
                             "program (and the password its owners publish) and give the "
                             "folder") from None

    def json(self, wanted: type[T]) -> T:
        """The content of a JSON file as a type, see `runtime.typed`."""
        return typed.decode(self.read(), wanted, self)

    def __str__(self) -> str:
        return " in ".join([self.path, *reversed(self.archives)])


class Files:
    """All files below a folder, and those of its archives.

    Args:
      raw_dir: the folder; links are followed.
      archives: names of the archives to look into, with wildcards; the same for archives in them.

    Raises:
      ValueError: no folder given, or an archive is damaged.
      FileNotFoundError: no such folder.
    """

    def __init__(self, raw_dir: str | None, archives: typing.Sequence[str] = ()):
        if not raw_dir:
            raise ValueError("got no --raw_dir; give the folder that holds the archives (--list "
                             "says which)")
        self.folder = pathlib.Path(raw_dir).absolute()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder {raw_dir}; give one that holds the archives as "
                                    "--raw_dir (--list says which)")
        self._wanted = archives
        self.archives_found: list[str] = []
        plain: dict[str, File] = {}
        packed: dict[str, File] = {}
        state = hashlib.sha1()
        for path in _walk(self.folder):
            name = path.relative_to(self.folder).as_posix()
            stat = path.stat()
            state.update(repr((name, stat.st_size, stat.st_mtime_ns)).encode())
            if _ANY_ARCHIVE.search(name):
                self.archives_found.append(name)
            if self._is_wanted(name):
                packed.update(self._enter((str(path),), name))
            else:
                plain[name] = File((), str(path))
        self.fingerprint = state.hexdigest()
        # Archives first: they are whole, a folder may have been unpacked in part.
        self._files = packed | {k: v for k, v in plain.items() if k not in packed}

    def find(self, pattern: str, below: str | None = None, leave_out: str = ""
             ) -> dict[str, File]:
        """Files whose path ends as the pattern says, by what its groups match, joined with "_".

        Args:
          pattern: regular expression of the last parts of a path.
          below: regular expression of a folder's or archive's name; if there is one, only files
            in it count.
          leave_out: regular expression of files that do not count.

        Raises:
          ValueError: two files have the same key.
        """
        ending = re.compile(f"(?:^|/)(?:{pattern})$")
        inside = re.compile(f"(?:^|/)(?:{below})/") if below else None
        other = re.compile(f"(?:^|/)(?:{leave_out})$") if leave_out else None
        if inside and not any(map(inside.search, self._files)):
            inside = None
        found: dict[str, File] = {}
        for path, file in self._files.items():
            match = ending.search(path)
            if not match or (inside and not inside.search(path)) or (other and other.search(path)):
                continue
            key = "_".join(match.groups())
            if key not in found:
                found[key] = file
            elif found[key].archives == file.archives:
                raise ValueError(f"there are two files for {key}: {found[key]} and {file}; give a "
                                 "folder that holds one of them")
        return dict(sorted(found.items()))

    def get(self, pattern: str, below: str | None = None) -> File | None:
        """The one file whose path ends so; None if there is none."""
        return self.find(f"{pattern}()", below).get("")

    def _is_wanted(self, name: str) -> bool:
        return bool(_ENDINGS.search(name)) and any(
            fnmatch.fnmatch(name.rsplit("/", 1)[-1], wanted) for wanted in self._wanted)

    def _enter(self, archives: tuple[str, ...], name: str) -> dict[str, File]:
        try:
            members = _archive(archives).names()
        except _DAMAGED as error:
            raise ValueError(f"{' in '.join(reversed(archives))} is no archive or was cut short "
                             f"({error}); download it again") from None
        files = {}
        for member in members:
            path = f"{_ENDINGS.sub('', name)}/{member.removeprefix('./')}"
            if _is_junk(path):
                continue
            if self._is_wanted(member):
                files |= self._enter((*archives, member), path)
            else:
                files[path] = File(archives, member)
        return files


def _walk(folder: pathlib.Path) -> typing.Iterator[pathlib.Path]:
    """All files below a folder, names ascending, each folder once even if links make a circle."""
    entered = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        for name in sorted(files):
            path = pathlib.Path(here, name)
            if not _is_junk(name) and path.exists():
                yield path
        folders[:] = [f for f in folders if f != "__MACOSX"]


def _is_junk(path: str) -> bool:
    """What macOS leaves in archives."""
    return path.rsplit("/", 1)[-1].startswith("._") or "__MACOSX/" in path


@functools.lru_cache(maxsize=16)
def _archive(archives: tuple[str, ...]) -> "_Zip | _Tar":
    stream = (open(archives[0], "rb") if len(archives) == 1
              else _archive(archives[:-1]).open(archives[-1]))
    if archives[-1].endswith(".zip"):
        return _Zip(stream)
    return _Tar(stream, compressed=not archives[-1].endswith(".tar"))


class _Zip:
    def __init__(self, stream: typing.BinaryIO):
        self._stream = stream
        # zipfile reads the whole directory and does not trust the 16-bit count at its end, which
        # overflows in COCO's panoptic archive.
        self._zip = zipfile.ZipFile(stream)

    def names(self) -> list[str]:
        return [info.filename for info in self._zip.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        return self._zip.read(name)

    def open(self, name: str) -> typing.BinaryIO:
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return _random_access(self._zip.open(info))
        self._stream.seek(info.header_offset + 26)  # lengths of the local header's name and extras
        lengths = self._stream.read(4)
        start = info.header_offset + 30 + sum(
            int.from_bytes(lengths[i:i + 2], "little") for i in (0, 2))
        return io.BufferedReader(_Window(self._stream, start, info.file_size))


class _Tar:
    def __init__(self, stream: typing.BinaryIO, compressed: bool):
        if compressed:
            stream = _random_access(gzip.GzipFile(fileobj=stream))
        self._tar = tarfile.open(fileobj=stream, mode="r:")
        members = self._tar.getmembers()
        # An archive ends in blocks of zeros; tarfile does not miss them.
        end = max((m.offset_data + -(-m.size // 512) * 512 for m in members), default=0)
        stream.seek(end)
        if stream.read(512) != bytes(512):
            raise tarfile.ReadError("its end is missing")
        self._members = {m.name: m for m in members if m.isfile()}

    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str) -> bytes:
        return self.open(name).read()

    def open(self, name: str) -> typing.BinaryIO:
        return self._tar.extractfile(self._members[name])


def _random_access(stream: typing.BinaryIO) -> typing.BinaryIO:
    """The decompressed stream in memory if it fits, else as it is (seeking reads it anew)."""
    data = stream.read(_IN_MEMORY + 1)
    if len(data) <= _IN_MEMORY:
        return io.BytesIO(data)
    stream.seek(0)
    return stream


class _Window(io.RawIOBase):
    """A part of a file as a file: a stored member of a zip."""

    def __init__(self, stream: typing.BinaryIO, start: int, size: int):
        self._stream, self._start, self._size, self._position = stream, start, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position,
                                   io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self):
        return self._position

    def readinto(self, buffer):
        self._stream.seek(self._start + self._position)
        data = self._stream.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[:len(data)] = data
        self._position += len(data)
        return len(data)
