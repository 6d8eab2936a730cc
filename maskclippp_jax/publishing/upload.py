"""Sends a folder to a repository of the hub, as one commit."""

import contextlib
import pathlib
import re
import typing

from maskclippp_jax.weights import released

_MAY_GO = (released.REFERENCE, released.SEEN, released.SENTENCEPIECE)  # what not every model has
_SEND_AGAIN = ("nothing was published, unless only the answer was lost: it is one commit; start "
               "the same line again")


def check_name(repo: str) -> None:
    """A repository's name must be owner/name.

    Raises:
      ValueError: else.
    """
    part = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
    if not re.fullmatch(f"{part}/{part}", repo, re.A) or "--" in repo or ".." in repo:
        raise ValueError(f"--repo is {repo!r}, wanted owner/name as on the hub: letters, digits, "
                         "and -, _ or . between them")


class Target:
    """A repository that may be written."""

    def __init__(self, repo: str, *, private: bool):
        """Asks the hub, which changes nothing there.

        Args:
          repo: owner/name.
          private: whether only its owner shall see it.

        Raises:
          ValueError: no token, no network, a repository of something else, or a public one where a
            private one is wanted.
        """
        import huggingface_hub  # slow to import
        from huggingface_hub import errors

        self._repo, self._private, self._old = repo, private, set()
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise ValueError("the hub cannot be reached, as HF_HUB_OFFLINE is set; unset it, or "
                             "give --dry_run --output=FOLDER")
        if not huggingface_hub.get_token():
            raise ValueError("there is no token of the hub; log in with `hf auth login`, or set "
                             "HF_TOKEN, to one that may write")
        self._api = huggingface_hub.HfApi(library_name="maskclippp_jax")
        with _in_a_sentence(ValueError, repo, "nothing was sent"):
            self._api.whoami()
            try:
                there = self._api.model_info(repo)
            except errors.RepositoryNotFoundError:
                return
        files = {sibling.rfilename for sibling in there.siblings or ()}
        if files - {".gitattributes", "README.md"} and released.CONFIG not in files:
            raise ValueError(f"{repo} is on the hub and holds something else "
                             f"({', '.join(sorted(files)[:3])}); name another --repo")
        if private and not there.private:
            raise ValueError(f"{repo} is on the hub and public, but --private was given; make it "
                             "private there first, or name another --repo")
        self._old = {f for f in files if f in _MAY_GO or f.startswith(f"{released.PICTURES}/")}

    def commit(self, folder: pathlib.Path, files: typing.Sequence[str], message: str) -> str:
        """Makes the repository if there is none, and sends all files, or none; returns the address.

        Files that `publish` once put there and are none any more go with the same commit.

        Raises:
          OSError: it failed.
        """
        import huggingface_hub

        # `upload_folder` may make several commits of one folder.
        operations = [huggingface_hub.CommitOperationAdd(name, folder / name) for name in files]
        operations += [huggingface_hub.CommitOperationDelete(name)
                       for name in sorted(set(self._old) - set(files))]
        with _in_a_sentence(OSError, self._repo, _SEND_AGAIN):
            self._api.create_repo(self._repo, private=self._private or None, exist_ok=True)
            return self._api.create_commit(
                self._repo, operations, commit_message=message).commit_url


@contextlib.contextmanager
def _in_a_sentence(kind: type[Exception], repo: str, state: str) -> typing.Iterator[None]:
    """What the hub or the network says, in one sentence.

    Raises:
      `kind`: something went wrong.
    """
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:  # of its HTTP client, which differs from version to version
        if isinstance(error, kind) and not isinstance(error, errors.HfHubHTTPError):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = " ".join(str(error).split())[:200] or type(error).__name__
        what = "cannot be reached" if status is None else f"does not take {repo}"
        hint = {401: "is the token still good (`hf auth login`)? ", None: "is there a network? ",
                403: f"may the token write to {repo.split('/')[0]}? "}.get(status, "")
        raise kind(f"the hub {what} ({said}); {hint}{state}") from None
