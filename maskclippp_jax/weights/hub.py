"""Published files: on the Hugging Face hub by name, or downloaded by hand into a folder.

`hf://owner/name/file`, or `hf://owner/name`: `huggingface_hub` keeps what it fetched in its cache
(HF_HOME) and looks only there when HF_HUB_OFFLINE is set. A copy in the folder `weights`, at
weights/name/file, comes first. What an address names (https://...), often behind pages that a
browser must show, is never fetched here: `weights` is looked at, and else a sentence says what to
download, and where to put it.
"""

import logging
import os
import pathlib

from maskclippp_jax.runtime import storage

# What a repository calls its CLIP, the one to take first: OpenCLIP's names, then transformers'.
# An index stands for a checkpoint that was cut into several files.
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
          "model.safetensors", "model.safetensors.index.json", "open_clip_pytorch_model.bin",
          "pytorch_model.bin", "pytorch_model.bin.index.json")
SCHEME = "hf://"
_RETRIES = "huggingface_hub.utils._http"  # where it tells that it tries again
# Where downloads are looked for: where the command is started, then beside our other caches.
FOLDERS = (pathlib.Path("weights"), storage.CACHE / "weights")


class NoSuchFile(FileNotFoundError):
    """The repository is there, but has no such file."""


def is_on_hub(path: str) -> bool:
    return path.startswith(SCHEME)


def is_address(path: str) -> bool:
    """Whether a path is an address of the web."""
    return path.startswith(("https://", "http://"))


def downloaded(*names: str) -> str | None:
    """The path of a file or folder in one of `FOLDERS` that has one of these names, if any."""
    places = (folder / name for folder in FOLDERS for name in names if name)
    return next((os.fspath(place) for place in places if place.exists()), None)


def fetch_download(address: str, *names: str, what: str = "it") -> str:
    """The path of what was downloaded from an address.

    Args:
      address: of the web.
      names: what the file may be called, the best one first; none: as in the address.
      what: is wanted, for the message.

    Raises:
      FileNotFoundError: it is not here; says where it comes from and goes to.
    """
    names = [n for n in (*names, address.rpartition("/")[2]) if "." in n]
    found = downloaded(*names)
    if found is None:
        raise FileNotFoundError(
            f"{what} is not here: there is no {FOLDERS[0] / names[0]} (nor in {FOLDERS[1]}); "
            f"download {address} and put it there under this name")
    return found


def here(path: str) -> str | None:
    """The local path of a file on the hub, or of a web address, if it needs no fetching."""
    if not is_on_hub(path):
        return downloaded(path.rpartition("/")[2]) if is_address(path) else None
    owner, name, file = _parts(path)
    copy = downloaded(name)
    if copy is not None:
        return copy if not file else _existing(pathlib.Path(copy) / file)
    import huggingface_hub

    tried = (huggingface_hub.try_to_load_from_cache(f"{owner}/{name}", candidate)
             for candidate in ((file,) if file else FILES))
    return next((place for place in tried if isinstance(place, str)), None)


def beside(path: str, file: str) -> str:
    """The path of another file in the same folder, or in the same repository of the hub."""
    if not is_on_hub(path):
        place = storage.path(fetch(path) if is_address(path) else path)
        return os.fspath(place / file if place.is_dir() else place.with_name(file))
    owner, name = path.removeprefix(SCHEME).split("/")[:2]
    return f"{SCHEME}{owner}/{name}/{file}"


def fetch(path: str) -> str:
    """The local path of a file on the hub, fetched if the cache lacks it; other paths stay.

    Args:
      path: "hf://owner/name/file", or "hf://owner/name" for the repository's CLIP (the first of
        `FILES` that it has); a folder that holds a copy of such a repository; a web address, whose
        file must have been downloaded, or the name of such a file.

    Raises:
      ValueError: not such a path.
      FileNotFoundError: no such repository or file, or no network and not in the cache.
    """
    if is_address(path):
        return fetch_download(path, what=path.rpartition("/")[2])
    if not is_on_hub(path):
        is_name = pathlib.PurePath(path).name == path and not pathlib.Path(path).exists()
        return is_name and downloaded(path) or _in_folder(path)
    owner, name, file = _parts(path)
    copy = downloaded(name)
    if copy is not None and (not file or (pathlib.Path(copy) / file).is_file()):
        return os.fspath(pathlib.Path(copy) / file) if file else _in_folder(copy)
    logger, first = logging.getLogger(_RETRIES), _FirstRetry(path)
    logger.addFilter(first)
    try:
        return _fetch(path, owner, name, file)
    finally:
        logger.removeFilter(first)


class _FirstRetry(logging.Filter):
    """Of all tries again one line is enough."""

    def __init__(self, path: str):
        super().__init__()
        self._path, self._said = path, False

    def filter(self, record: logging.LogRecord) -> bool:
        said, self._said = self._said, True
        if not said:
            record.msg, record.args = (
                f"{self._path} cannot be reached yet ({_reason(record.getMessage())}); trying "
                "again for half a minute"), ()
        return not said


def _reason(message: str) -> str:
    """"'[Errno -2] Name or service not known' thrown while requesting ..." -> what is quoted."""
    return message.split("' thrown")[0].strip("'") if "' thrown" in message else message[:200]


def _fetch(path: str, owner: str, name: str, file: str) -> str:
    """`fetch` of what is on the hub."""
    import huggingface_hub  # only these paths need it
    from huggingface_hub import errors

    offline = None
    for candidate in (file,) if file else FILES:
        try:
            # Once the network failed, only the cache is asked: each try takes half a minute.
            return huggingface_hub.hf_hub_download(
                f"{owner}/{name}", candidate, local_files_only=offline is not None)
        except errors.LocalEntryNotFoundError as error:  # of EntryNotFoundError's family
            offline = error
        except errors.EntryNotFoundError:
            continue
        except errors.GatedRepoError:
            raise FileNotFoundError(
                f"{path} is there only for those who accepted its terms; accept them on "
                "huggingface.co, log in with `hf auth login`, and try again") from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise FileNotFoundError(
                f"the hub has no public repository {owner}/{name}; is {path} spelt right? A "
                "private one wants `hf auth login`") from None
        except errors.HfHubHTTPError as error:
            offline = error
            break
    if _is_refusal(offline):
        raise FileNotFoundError(f"the hub refuses {path} to you; log in with `hf auth login`, by a "
                                "token that is still good and may read it, and try again")
    if offline is not None:
        raise FileNotFoundError(
            f"{path} is not in the cache of huggingface_hub and cannot be fetched (no network, or "
            "HF_HUB_OFFLINE is set); fetch it on a machine with network and give the file's path")
    raise NoSuchFile(f"the repository {owner}/{name} has no file {file or ' or '.join(FILES)}; "
                     "give hf://owner/name/file")


def _is_refusal(error: Exception | None) -> bool:
    """Whether an answer of the hub, or what kept us from it, is that we may not."""
    answers = (getattr(e, "response", None) for e in (error, getattr(error, "__cause__", None)))
    return any(getattr(answer, "status_code", None) in (401, 403) for answer in answers)


def _parts(path: str) -> tuple[str, str, str]:
    owner, name, file = (*path.removeprefix(SCHEME).split("/", 2), "", "")[:3]
    if not owner or not name:
        raise ValueError(f"got {path}, wanted hf://owner/name or hf://owner/name/file")
    return owner, name, file


def _existing(place: pathlib.Path) -> str | None:
    return os.fspath(place) if place.exists() else None


def _in_folder(path: str) -> str:
    """The file to take of a folder; anything else stays."""
    folder = storage.path(path)
    if not folder.is_dir():
        return path
    return next((os.fspath(folder / file) for file in FILES if (folder / file).is_file()), path)
