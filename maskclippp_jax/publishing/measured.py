"""Results of `evaluate` that belong to a checkpoint."""

import os
import re
import typing

from etils import epath

from maskclippp_jax.evaluation import tables
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.weights import hub, released

FILE = "results.json"
_AFTER = re.compile(r"(.*) after step (\d+)")  # as `loading.load_checkpoint` says what it loaded
# A name of a file in words: two parts or more that are not both sizes ("None/2048").
_PATH = re.compile(r"(?<!\S)(?!(?:None|\d+)/(?:None|\d+)(?!\S))[^\s,]*[/\\][^\s,]*")


class Measured(typing.NamedTuple):
    """What is known of one checkpoint from one evaluation."""

    folder: epath.Path
    protocol: dict[str, typing.Any]
    model: dict[str, typing.Any]           # its results, as `report.result_rows` takes them
    untuned: dict[str, typing.Any] | None  # those of what it was tuned from, measured alike

    @property
    def models(self) -> list[dict]:
        """For a table: what it was tuned from first, if that was measured."""
        rows = [dict(self.untuned, name="untuned")] if self.untuned else []
        return [*rows, dict(self.model, name="this model")]


class Checkpoint(typing.NamedTuple):
    """Whose results are looked for."""

    run: epath.Path  # the folder of its run
    step: int
    weights: str     # what it was tuned from, as its configuration says
    digest: str      # of its parameters, see `params.digest`


def find(checkpoint: Checkpoint, named: typing.Sequence[str]) -> list[Measured]:
    """The results of a checkpoint.

    Args:
      checkpoint: `results.json` in the folder of its run and in the folders there is looked at.
      named: more files or folders with results, all of which must have some of this checkpoint.

    Raises:
      FileNotFoundError, ValueError: a named one has none; says what it has.
    """
    run = checkpoint.run
    files = sorted({*run.glob(FILE), *run.glob(f"*/{FILE}")})
    found = [m for file in files if (m := _read(file, checkpoint))]
    for name in named:
        file = storage.path(name)
        file = file / FILE if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"--results is {name}, which has no {FILE}; give a folder that "
                                    "`evaluate` wrote to (its --workdir)")
        measured = _read(file, checkpoint)
        if measured is None:
            if _read(file, checkpoint._replace(digest="")):
                raise ValueError(f"{file} has results of {run.name} after step {checkpoint.step}, "
                                 "but with other weights: it was tuned anew; evaluate it again")
            has = [m.get("checkpoint", "?") for m in typed.read(file, tables.Results)["models"]]
            raise ValueError(f"{file} has no results of {run.name} after step {checkpoint.step}, "
                             f"but of {'; '.join(map(str, has)) or 'nothing'}; evaluate that "
                             "checkpoint")
        if measured.folder not in (m.folder for m in found):
            found.append(measured)
    return found


def _read(file: epath.Path, checkpoint: Checkpoint) -> Measured | None:
    results = typed.read(file, tables.Results)
    base = f"untuned {released.last_part(checkpoint.weights)}"
    ours = next((m for m in results["models"] if _is_of(m, checkpoint)), None)
    untuned = next((m for m in results["models"]
                    if without_folders(str(m.get("checkpoint", ""))) == base), None)
    return ours and Measured(file.parent, _protocol(results.get("protocol", {})), ours, untuned)


def _is_of(model: dict, checkpoint: Checkpoint) -> bool:
    said, run = _AFTER.match(str(model.get("checkpoint", ""))), checkpoint.run
    if said is None or int(said[2]) != checkpoint.step or model.get("interpolation", 1) != 1:
        return False
    if checkpoint.digest not in ("", model.get("weights", checkpoint.digest)):
        return False  # the run was made anew under its name
    folder = re.sub(r"/checkpoints/\d+/?$", "", said[1])
    place = storage.path(folder)
    if not storage.on_bucket(place) and place.exists() and not storage.on_bucket(run):
        return os.path.samefile(place, run)
    return place.name == run.name  # it was evaluated from elsewhere


def _protocol(protocol: dict) -> dict:
    """Without folders of the machine it was measured on."""
    return {key: without_folders(value) if isinstance(value, str) else value
            for key, value in protocol.items()}


def without_folders(words: str) -> str:
    """Words in which names of files have lost their folders."""
    made = re.fullmatch(r"of (.+), made for each picture", words)  # as protocols say of generators
    if made:
        return f"of {released.last_part(made[1])}, made for each picture"
    if words.startswith(("/", "~")):  # one name, with blanks perhaps
        return released.last_part(words)
    return _PATH.sub(lambda found: found[0] if hub.is_on_hub(found[0])
                     else released.last_part(found[0]), words)
