"""Files on the Hugging Face hub by name: `hf://owner/name/file`, or `hf://owner/name`.

`huggingface_hub` keeps what it fetched in its cache (HF_HOME) and looks only there when
HF_HUB_OFFLINE is set.
"""

import os

from maskclippp_jax.runtime import storage

# What a repository calls its CLIP, the one to take first: OpenCLIP's names, then transformers'.
# An index stands for a checkpoint that was cut into several files.
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
          "model.safetensors", "model.safetensors.index.json", "open_clip_pytorch_model.bin",
          "pytorch_model.bin")
_SCHEME = "hf://"


def is_on_hub(path: str) -> bool:
    return path.startswith(_SCHEME)


def beside(path: str, file: str) -> str:
    """The path of another file in the same folder, or in the same repository of the hub."""
    if not is_on_hub(path):
        place = storage.path(path)
        return os.fspath(place / file if place.is_dir() else place.with_name(file))
    owner, name = path.removeprefix(_SCHEME).split("/")[:2]
    return f"{_SCHEME}{owner}/{name}/{file}"


def fetch(path: str) -> str:
    """The local path of a file on the hub, fetched if the cache lacks it; other paths stay.

    Args:
      path: "hf://owner/name/file", or "hf://owner/name" for the repository's CLIP (the first of
        `FILES` that it has); a folder that holds a copy of such a repository.

    Raises:
      ValueError: not such a path.
      FileNotFoundError: no such repository or file, or no network and not in the cache.
    """
    if not is_on_hub(path):
        return _in_folder(path)
    owner, name, file = (*path.removeprefix(_SCHEME).split("/", 2), "", "")[:3]
    if not owner or not name:
        raise ValueError(f"got {path}, wanted hf://owner/name or hf://owner/name/file")
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
                f"the hub has no public repository {owner}/{name}; is {path} spelt right?"
            ) from None
    if offline is not None:
        raise FileNotFoundError(
            f"{path} is not in the cache of huggingface_hub and cannot be fetched (no network, or "
            "HF_HUB_OFFLINE is set); fetch it on a machine with network and give the file's path")
    raise FileNotFoundError(f"the repository {owner}/{name} has no file "
                            f"{file or ' or '.join(FILES)}; give hf://owner/name/file")


def _in_folder(path: str) -> str:
    """The file to take of a folder; anything else stays."""
    folder = storage.path(path)
    if not folder.is_dir():
        return path
    return next((os.fspath(folder / file) for file in FILES if (folder / file).is_file()), path)
