"""What a start keeps on the disk for the next one, in the user's cache: never used once damaged."""

import contextlib
import hashlib
import os
import pathlib
import stat

from absl import logging

_CHECKSUM = 32  # bytes


class Folder:
    """Bytes by their names; JAX may have it as its cache of compiled programs.

    An entry is what was given and, behind it, a checksum, which JAX reads over. One that differs
    from what was written is removed, to be made anew. It comes whole or not at all, and those that
    were not used for longest go when there are too many bytes.
    """

    def __init__(self, path: str | os.PathLike, size: int):
        """Args: path: made once it is needed. size: bytes of all entries."""
        self._path, self._size, self._warned = pathlib.Path(path), size, False

    def get(self, key: str) -> bytes | None:
        """The bytes that were kept, or None."""
        file = self._file(key)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        value, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
        if _checksum(key, value) != checksum:
            logging.warning("what is kept in %s is damaged; making it anew", file)
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # its last use
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keeps bytes; a folder that is full keeps them not, and a line says so."""
        file = self._file(key)
        part = file.with_name(f".{file.name[:99]}.{os.getpid()}")
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            part.write_bytes(value + _checksum(key, value))
            part.replace(file)
            self._make_room()
        except OSError as error:
            self._warn(error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _make_room(self) -> None:
        found = []
        for file in self._path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                status = file.stat()
                if stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime, status.st_size, file))
        used = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if used <= self._size:
                break
            file.unlink(missing_ok=True)
            used -= size

    def _file(self, key: str) -> pathlib.Path:
        return self._path / f"{key}-cache"

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            warn_of(self._path, error)
        self._warned = True


def warn_of(path: pathlib.Path, error: OSError) -> None:
    """Says that nothing can be kept."""
    logging.warning("compiled programs are not kept in %s (%s); --programs, or "
                    "JAX_COMPILATION_CACHE_DIR in the environment, names another folder",
                    path, error.strerror)


def _checksum(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + value).digest()
