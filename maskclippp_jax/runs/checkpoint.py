"""The folder of a run: who owns it, and its checkpoints (Orbax); `saving.py` is the loop's side.

A run's folder holds `config.json`, `vocabulary.txt` (the names it was tuned on), `data.json`
(fingerprints of its data sets, and whether they changed on the way), `parameters.json` (what
learns, how fast, with which decay), `owner.txt` (which start of it writes), `metrics.jsonl`,
TensorBoard events, and `checkpoints/<step>/`. A checkpoint is whole or absent: it is written to a
temporary folder and renamed; in a bucket a file `commit_success.txt` is written last. With it go
checksums of all arrays, as the file format does not notice every byte that a disk changes. The
position in the data needs no file of its own: it follows from the seed and the step.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import secrets
import typing
import uuid

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from etils import epath, epy

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.models import maskclippp
from maskclippp_jax.runtime import hosts, storage, typed

with epy.lazy_imports():  # slow to import, and nothing to files of weights
    import orbax.checkpoint as ocp

# What may differ between two starts of the same run: where data lie, what is kept, shown and put up
# with, what training does not use, and what only the hardware asks for, which changes the numbers
# by their rounding at most.
_FREE_KEYS = ("data_dir", "log_every", "eval_every", "eval_pictures", "checkpoint_every", "keep",
              "keep_best", "train/workers", "train/accumulate", "train/skip_broken", "mesh/fsdp",
              "remat", "dtype", "eval/batch_size", "eval/objectness")

# Seconds a save may take. Orbax reads them off the clock on the wall, which may be put right by a
# day while it saves.
_PATIENCE = 2 * 24 * 3600

_PART = 2**16  # numbers whose checksum is formed at once: they stay in the processor's cache
_WEIGHTS = 2 * np.arange(_PART, dtype=np.uint32) + 1

_STEPS = "train/steps"
_NAMES, _DATA = "vocabulary.txt", "data.json"  # of a run's folder


class Owner:
    """Makes sure that of two starts in one folder only the younger one writes.

    A scheduler may start a run again while its old processes only hang, and these may wake up.
    """

    def __init__(self, workdir: epath.Path):
        self._workdir, self._file = workdir, workdir / "owner.txt"
        self._mine = str(hosts.first_says(secrets.randbits(31)))
        if jax.process_index() == 0:
            storage.write(self._file, self._mine)

    def check(self, *, everywhere: bool = False) -> None:
        """To be called before anything of the run is written.

        Args:
          everywhere: whether all processes look, not only the one that writes.

        Raises:
          OSError: there was another start.
        """
        looks = everywhere or jax.process_index() == 0
        if looks and self._file.read_text() != self._mine:
            raise OSError(f"{self._workdir} was taken over by a later start, so this one ends and "
                          "writes nothing more; let only one run at a time")


def open_run(workdir: epath.Path, config: ml_collections.ConfigDict, vocabulary_text: str,
             data: typing.Mapping[str, str], *, allow_other_data: bool = False) -> Owner:
    """Makes the folder of a run, or checks that it belongs to the same configuration and data.

    Args:
      workdir: the folder.
      config: the experiment.
      vocabulary_text: the names it is tuned on, as `Vocabulary.to_text` gives them.
      data: fingerprint of each data set by its name (`data.records.fingerprint`).
      allow_other_data: whether a run may go on with other data; that is kept in `data.json`.

    A run that has done all its steps may go on to more of them; its `config.json` changes then.

    Returns:
      What tells whether the run still is this process' own.

    Raises:
      ValueError: the folder holds a run of another configuration or of other data, or something
        else.
    """
    wanted = configuration.to_json(config)
    file = workdir / "config.json"
    if hosts.agree(str(file), file.exists()):
        found, now = _flat(typed.read(file, dict[str, typing.Any])), _flat(wanted)
        differing = {k: f"{k.replace('/', '.')} was {found.get(k)!r}, is now {now.get(k)!r}"
                     for k in sorted(set(found) | set(now)) if found.get(k) != now.get(k)}
        goes_on = _STEPS in differing and _may_go_on(workdir, found.get(_STEPS), now[_STEPS])
        free = (*_FREE_KEYS, *[_STEPS] * goes_on)
        refused = [words for k, words in differing.items() if k not in free]
        if refused:
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            later = "; it may go on to more steps when it has done all" * (
                list(differing) == [_STEPS])
            raise ValueError(f"{workdir} holds a run of another configuration "
                             f"({'; '.join(refused[:5])}{more}); take another --workdir, or start "
                             f"with the configuration it has{later}")
        if differing:
            logging.info("the run was first started otherwise: %s", "; ".join(differing.values()))
        _check_data(workdir, vocabulary_text, data, allow_other_data)
        if goes_on and jax.process_index() == 0:  # all have looked, see `_check_data`
            content = json.loads(file.read_text())
            content["train"]["steps"] = now[_STEPS]
            storage.write(file, json.dumps(content, indent=2))
        return Owner(workdir)
    names = workdir / _NAMES
    there = {p.name for p in workdir.iterdir()} if workdir.exists() else set()
    there = {name for name in there if not re.fullmatch(r"\..*\.tmp", name)}
    # With these files alone, a start was killed before it wrote the last one.
    if there - {_NAMES, _DATA} or (_NAMES in there and names.read_text() != vocabulary_text):
        raise ValueError(f"{workdir} is not empty and holds no run (no config.json); take an empty "
                         "or a new --workdir")
    hosts.wait_for_all("open_run")  # all have looked before the first one writes
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        storage.write(names, vocabulary_text)
        storage.write(workdir / _DATA, _data_text(data))
        storage.write(file, json.dumps(wanted, indent=2))
    return Owner(workdir)


def steps_of(workdir: epath.Path) -> int | None:
    """How many steps the run in a folder is to do, if there is one."""
    file = workdir / "config.json"
    if not file.exists():
        return None
    return _flat(typed.read(file, dict[str, typing.Any])).get(_STEPS)


def _may_go_on(workdir: epath.Path, before: int | None, now: int | None) -> bool:
    """Whether a run has done all its steps, and is to do more."""
    folder = workdir / "checkpoints"
    if not (isinstance(before, int) and isinstance(now, int) and now > before and folder.exists()):
        return False
    return any(is_whole(path) and int(path.name) >= before for path in folder.iterdir())


class _Data(typing.TypedDict):
    """What a run learnt from: fingerprints by data set, and what took their place on the way."""

    sets: dict[str, str]
    changes: list[str]


def _data_text(data: typing.Mapping[str, str], changes: typing.Sequence[str] = ()) -> str:
    return json.dumps(dict(sets=dict(data), changes=list(changes)), indent=2)


def data_changes(workdir: epath.Path) -> list[str]:
    """What changed in the data of a run on the way, in words."""
    file = workdir / _DATA
    return typed.read(file, _Data)["changes"] if file.exists() else []


def _check_data(workdir: epath.Path, vocabulary_text: str, data: typing.Mapping[str, str],
                allow_other_data: bool) -> None:
    """Compares the data of a start with those of the run's first one."""
    file, names = workdir / _DATA, workdir / _NAMES
    before = typed.read(file, _Data) if file.exists() else dict(sets=dict(data), changes=[])
    changes = [f"the records of {name}" for name, hashed in data.items()
               if before["sets"].get(name, hashed) != hashed]
    old, new = names.read_text().splitlines(), vocabulary_text.splitlines()
    differing = [(a, b) for a, b in itertools.zip_longest(old[1:], new[1:], fillvalue="nothing")
                 if a != b]
    if differing:
        a, b = (line.replace("\t", " ") for line in differing[0])
        changes.append(f"{len(differing)} class names (such as {b!r}, which was {a!r})")
    if changes and not allow_other_data:
        raise ValueError(f"{workdir} was tuned on other data: {' and '.join(changes)} differ; take "
                         "another --workdir, bring the data back, or go on with other data with "
                         "--allow_other_data")
    if changes:
        logging.warning("going on with other data: %s differ from those before",
                        " and ".join(changes))
    hosts.wait_for_all("data")  # all have looked before the first one writes
    if jax.process_index() == 0 and (changes or not file.exists()):
        storage.write(names, vocabulary_text)
        storage.write(file, _data_text(before["sets"] | dict(data), [*before["changes"], *changes]))


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name, child in tree.items()
            for k, v in _flat(child, f"{prefix}{name}/").items()}


def open_checkpoints(
        workdir: epath.Path, keep: int = 2,
        best: ocp.v1.training.preservation_policies.PreservationPolicy | None = None, *,
        write: bool = True, newest: int | None = None) -> ocp.v1.training.Checkpointer:
    """The checkpoints of a run; use as a context manager, or close it.

    Args:
      workdir: the run's folder.
      keep: how many of the newest are kept.
      best: which others are.
      write: whether the run itself asks, which first removes what is only half saved.
      newest: the step it resumes after; what is newer is removed as well.
    """
    if write:
        _remove_half_saved(workdir / "checkpoints", newest)
    policies, context = ocp.v1.training.preservation_policies, ocp.v1.Context()
    context.asynchronous.timeout_secs = _PATIENCE
    if not storage.on_bucket(workdir) and jax.process_index() == 0:
        # Orbax calls it when all is written, before the folder gets its name. It waits for arrays
        # itself, but not for the small files that describe them.
        context.asynchronous.post_finalization_callback = lambda: storage.sync_all(
            workdir / "checkpoints")
    kept = [policies.LatestN(keep), *([best] if best else [])]
    return ocp.v1.training.Checkpointer(
        workdir / "checkpoints", cleanup_tmp_directories=False, context=context,
        preservation_policy=policies.AnyPreservationPolicy(kept),
        save_decision_policy=ocp.v1.training.save_decision_policies.FixedIntervalPolicy(1))


def _remove_half_saved(folder: epath.Path, newest: int | None = None) -> None:
    """What a killed run left, or an older start is saving just now, which must not turn up later.

    Orbax would do it in the background, while it looks for the whole ones in the same folder. Whole
    ones after the step `newest` are of an older start too, which saved them after the look.
    """
    if jax.process_index() == 0 and folder.exists():
        for path in folder.iterdir():
            name = re.fullmatch(r"(\d+)(\.orbax-checkpoint-tmp.*)?", path.name)
            if name and (not is_whole(path) or newest is not None and int(name[1]) > newest):
                remove(path)
    hosts.wait_for_all("remove_half_saved")


def remove(checkpoint: epath.Path) -> None:
    """Removes a checkpoint, whole or not, that an older start may still be writing."""
    # Under another name first, so that an older start cannot add to it meanwhile. (A bucket knows
    # no other names; what is added there lacks what was removed.)
    with contextlib.suppress(FileNotFoundError):  # it has just been given its final name
        if not storage.on_bucket(checkpoint):
            aside = f"{checkpoint.name.split('.')[0]}.orbax-checkpoint-tmp-{uuid.uuid4().hex}"
            checkpoint = checkpoint.rename(checkpoint.with_name(aside))
        checkpoint.rmtree()


def is_whole(checkpoint: epath.Path) -> bool:
    """Whether all of a checkpoint has been written; `checkpoint` is its folder, which exists."""
    in_bucket = storage.on_bucket(checkpoint)  # where nothing can be renamed
    return checkpoint.name.isdigit() and (
        not in_bucket or (checkpoint / "commit_success.txt").exists())


def save(checkpoints: ocp.v1.training.Checkpointer, state: dict, step: int) -> None:
    """Saves in the background; the state may be donated at once."""
    checkpoints.save_checkpointables_async(step, dict(state=state), force=True,
                                           custom_metadata=dict(checksums=_checksums(state)))


def restore(workdir: epath.Path, state: dict) -> dict | None:
    """Newest saved state that is sound, laid out like `state`; None if nothing was saved.

    Damaged checkpoints are put aside, into the folder `damaged`, with a warning each.

    Args:
      workdir: the run's folder.
      state: arrays, or shapes with shardings.

    Raises:
      ValueError: there are checkpoints, but none can be used.
    """
    if not hosts.agree(str(workdir / "checkpoints"), (workdir / "checkpoints").exists()):
        return None
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    found, problems = None, {}
    with open_checkpoints(workdir) as checkpoints:
        steps = sorted((c.step for c in checkpoints.checkpoints), reverse=True)
        while found is None and (step := hosts.first_says(steps[0] if steps else -1)) >= 0:
            steps = [s for s in steps if s < step]
            try:
                found = _load(checkpoints, step, like)
            except ValueError as error:
                problems[step] = str(error)
    if problems and found is None:
        raise ValueError(f"no checkpoint in {workdir / 'checkpoints'} can be read ("
                         + "; ".join(f"step {s}: {p}" for s, p in problems.items())
                         + "); take a copy of it, or another --workdir to start anew")
    for step, problem in problems.items():
        logging.warning("the checkpoint of step %d is damaged (%s); it is now in %s, and the run "
                        "falls back to the one before", step, problem, workdir / "damaged")
        if jax.process_index() == 0:
            storage.move(workdir / "checkpoints" / str(step), workdir / "damaged" / str(step))
    hosts.wait_for_all("restore")
    return found


def _load(checkpoints: ocp.v1.training.Checkpointer, step: int, like: dict) -> dict:
    """One checkpoint, compared with the checksums that were saved with it.

    Each process reads another part of it. After everything that may fail on one alone, all of them
    agree, so that none goes on into work that waits for another.

    Raises:
      ValueError: it cannot be read, or an array has changed; on every process.
    """
    stored = _together(lambda: _stored_sums(checkpoints, step))
    found = _together(lambda: checkpoints.load_checkpointables(step, dict(state=like))["state"])
    _together(lambda: _verify(found, stored))
    return found


def _together(part: typing.Callable[[], typing.Any]) -> typing.Any:
    """What `part` returns, if all goes well on every process.

    Raises:
      ValueError: else; says why.
    """
    result, problem = None, ""
    try:
        result = part()
    except Exception as error:  # a broken file may raise anything in Orbax
        problem = " ".join(str(error).split())[:300] or type(error).__name__
    if not hosts.all_agree(not problem):
        raise ValueError(problem or "another process cannot read it")
    return result


def _stored_sums(checkpoints: ocp.v1.training.Checkpointer, step: int) -> dict[str, int]:
    sums = (checkpoints.metadata(step).custom_metadata or {}).get("checksums")
    if not sums:
        raise ValueError("it holds no checksums, so an older version wrote it")
    return sums


def _verify(loaded: dict, stored: dict[str, int]) -> None:
    """Compares loaded parts of a checkpoint with what was saved.

    Raises:
      ValueError: an array has changed.
    """
    for path, found in _checksums(loaded).items():
        if stored.get(path) != found:
            raise ValueError(f"the array {path} is not what was saved")


def _checksums(tree: parameters.Tree) -> dict[str, int]:
    """A checksum of each array, which any change of one number changes; the same on every mesh."""
    arrays = parameters.flatten(tree)
    if jax.process_count() == 1 and jax.default_backend() == "cpu":
        # Programs would take seconds to compile; this takes 0.2 s for 1e9 bytes.
        return {path: _checksum_here(jax.device_get(x)) for path, x in arrays.items()}
    sums = jax.device_get({path: _checksum(x) for path, x in arrays.items()})
    return {path: int(x) for path, x in sums.items()}


@jax.jit  # of one array: there are few shapes, and a program of all arrays takes long to compile
def _checksum(x: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    # Odd weights, other ones at every place; no flattening, which would move sharded arrays.
    place = sum((jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
                 * jnp.uint32(math.prod(x.shape[axis + 1:])) for axis in range(x.ndim)),
                start=jnp.uint32(0))
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


def _checksum_here(x: np.ndarray) -> int:
    """The same by numpy."""
    bits = np.ravel(x).view(f"uint{8 * x.dtype.itemsize}")
    total = 0
    for first in range(0, bits.size, _PART):
        part = bits[first:first + _PART].astype(np.uint32, copy=False)
        weighted = (part * _WEIGHTS[:part.size]).sum(dtype=np.uint32)
        total += int(weighted) + 2 * first * int(part.sum(dtype=np.uint32))
    return total % 2**32


def place_of(folder: epath.Path) -> tuple[epath.Path, int | None]:
    """The run's folder, and the step, of one of its checkpoints; a run's own stands for itself."""
    is_run = (folder / "config.json").exists()  # whose name may be such a one
    if folder.name.isdigit() and folder.parent.name == "checkpoints" and not is_run:
        return folder.parent.parent, int(folder.name)
    return folder, None


def read_config(folder: epath.Path) -> ml_collections.ConfigDict:
    """The configuration a run was started with.

    Args:
      folder: the run's, or that of one of its checkpoints.

    Raises:
      FileNotFoundError: no run there.
    """
    workdir, _ = place_of(folder)
    file = workdir / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"no run in {workdir} (no config.json there); give the --workdir "
                                "of a training run or a checkpoint file")
    config = configuration.from_json(typed.read(file, dict[str, typing.Any]))
    lacking = [key for key in ("model", "weights", "templates", "seed") if key not in config]
    if lacking or not isinstance(config.model, maskclippp.MaskCLIPppConfig):
        raise ValueError(f"{file} is no configuration of a run (it lacks "
                         f"{', '.join(lacking) or 'the sizes of the model'}); is it damaged?")
    return config


@contextlib.contextmanager
def _saved(folder: epath.Path) -> typing.Iterator[tuple[ocp.v1.training.Checkpointer, int]]:
    """The checkpoints of a run, and the step of the one that a folder names, see `load_run`."""
    workdir, step = place_of(folder)
    if not (workdir / "checkpoints").exists():
        raise FileNotFoundError(f"the run in {workdir} has no checkpoint yet; start `train` again")
    with open_checkpoints(workdir, write=False) as checkpoints:
        steps = [c.step for c in checkpoints.checkpoints]
        if not steps:
            raise FileNotFoundError(f"the run in {workdir} has no complete checkpoint; start "
                                    "`train` again with the same --config and --workdir")
        step = max(steps) if step is None else step
        if step not in steps:
            raise FileNotFoundError(f"the run in {workdir} has no complete checkpoint of step "
                                    f"{step}; it has those of {', '.join(map(str, sorted(steps)))}")
        yield checkpoints, step


def step_of(folder: epath.Path) -> int:
    """After which step the checkpoint was saved that a folder names: a run's newest, or itself.

    Raises:
      FileNotFoundError: there is none.
    """
    with _saved(folder) as (_, step):
        return step


def load_run(folder: epath.Path, shapes: parameters.Tree) -> tuple[parameters.Tree, str]:
    """The parameters in a checkpoint of a run, as numpy arrays on the host.

    Of a run that keeps a moving average of what it tunes (`ema_decay`) it is the average.

    Args:
      folder: that of the run, for its newest checkpoint, or that of a checkpoint.
      shapes: nested dict of all parameters (`params.abstract`).

    Returns:
      Nested dict of arrays, and words that say after which step.

    Raises:
      FileNotFoundError: no checkpoint in it yet.
      ValueError: the checkpoint has other parameters (all differences are listed), or is damaged.
    """
    workdir, _ = place_of(folder)
    with _saved(folder) as (checkpoints, step):
        folder = workdir / "checkpoints" / str(step)
        with _saying_if_damaged(folder):
            metadata = ocp.v1.checkpointables_metadata(folder).metadata["state"]
            if metadata is None:  # which Orbax logs, and goes on
                raise ValueError("the list of its arrays cannot be read")
        tuned = "ema" if "ema" in metadata else "trainable"
        found = {k: parameters.flatten(metadata[k]) for k in (tuned, "frozen")}
        wanted = parameters.flatten(shapes)
        stored = found[tuned] | found["frozen"]
        problems = [f"{p}: not in the checkpoint" for p in wanted if p not in stored]
        problems += [f"{p}: not in the model" for p in stored if p not in wanted]
        problems += [
            f"{p}: {tuple(stored[p].shape)} in the checkpoint, {wanted[p].shape} in the model"
            for p in wanted if p in stored and tuple(stored[p].shape) != wanted[p].shape]
        if problems:
            raise ValueError(f"{workdir} does not fit the model: " + "; ".join(problems))
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = {part: parameters.unflatten({
            p: jax.ShapeDtypeStruct(wanted[p].shape, wanted[p].dtype, sharding=device)
            for p in leaves}) for part, leaves in found.items()}
        skip = {k: jax.tree.map(lambda _: ocp.v1.PLACEHOLDER, v) for k, v in metadata.items()
                if k not in like}
        with _saying_if_damaged(folder):
            state = checkpoints.load_checkpointables(step, dict(state=like | skip))["state"]
            state = {part: state[part] for part in like}
            _verify(state, _stored_sums(checkpoints, step))
    when = f"after step {step}" + (", moving average" if tuned == "ema" else "")
    if changes := data_changes(workdir):
        when += f" (its data changed on the way: {', '.join(changes)})"
    return jax.device_get(parameters.combine(state[tuned], state["frozen"])), when


@contextlib.contextmanager
def _saying_if_damaged(folder: epath.Path) -> typing.Iterator[None]:
    """Raises ValueError in place of what a broken file of a checkpoint makes Orbax raise."""
    try:
        yield
    except (ValueError, KeyError) as error:  # of TensorStore; of Orbax, which found no reader
        problem = " ".join(str(error).split())[:300]
        what = "is damaged, or cannot be reached" if storage.on_bucket(folder) else "is damaged"
        raise ValueError(f"{folder} {what}: {problem}; if it is damaged, remove that folder to use "
                         "the checkpoint before it") from None
