"""Saving and restoring runs with Orbax.

A run's folder holds `config.json`, `vocabulary.txt` (the names it was tuned on), `parameters.json`
(what learns, how fast, with which decay), `metrics.jsonl`, TensorBoard events, and
`checkpoints/<step>/`. A checkpoint is whole or absent: it is written to a temporary folder and
renamed. The position in the data needs no file of its own: it follows from the seed and the step.
"""

import json

import jax
import ml_collections
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from maskclippp_jax import config as configuration
from maskclippp_jax import params as parameters

# What may differ between two starts of the same run.
_FREE_KEYS = ("data_dir", "log_every", "eval_every", "train/workers")


def open_run(workdir: epath.Path, config: ml_collections.ConfigDict, vocabulary_text: str) -> None:
    """Makes the folder of a run, or checks that it belongs to the same configuration.

    Raises:
      ValueError: the folder holds a run of another configuration, or something else.
    """
    wanted = configuration.to_json(config)
    file = workdir / "config.json"
    if file.exists():
        found = json.loads(file.read_text())
        differing = [k for k in sorted(set(_flat(found)) | set(_flat(wanted)))
                     if k not in _FREE_KEYS and _flat(found).get(k) != _flat(wanted).get(k)]
        if differing:
            shown = "; ".join(f"{k.replace('/', '.')} was {_flat(found).get(k)!r}, is now "
                              f"{_flat(wanted).get(k)!r}" for k in differing[:5])
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise ValueError(f"{workdir} holds a run of another configuration ({shown}{more}); "
                             "take another --workdir, or start with the configuration it has")
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run (no config.json); take an empty "
                         "or a new --workdir")
    if jax.process_count() > 1:  # all have looked before the first one writes
        multihost_utils.sync_global_devices("open_run")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / "vocabulary.txt", vocabulary_text)
        write_text(file, json.dumps(wanted, indent=2))


def write_text(file: epath.Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text)
    temporary.replace(file)


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name, child in tree.items()
            for k, v in _flat(child, f"{prefix}{name}/").items()}


def open_checkpoints(workdir: epath.Path, keep: int = 2) -> ocp.training.Checkpointer:
    """The checkpoints of a run, newest `keep` kept; use as a context manager, or close it."""
    policies = ocp.training.preservation_policies
    return ocp.training.Checkpointer(
        workdir / "checkpoints", cleanup_tmp_directories=True,
        preservation_policy=policies.LatestN(keep),
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1))


def save(checkpoints: ocp.training.Checkpointer, state: dict, step: int) -> None:
    """Saves in the background; the state may be donated at once."""
    checkpoints.save_checkpointables_async(step, dict(state=state), force=True)


def restore(checkpoints: ocp.training.Checkpointer, state: dict) -> dict | None:
    """Newest saved state, laid out like `state` (arrays or shapes with shardings); None if none.

    Raises:
      ValueError: the saved state has other arrays than `state`.
    """
    if checkpoints.latest is None:
        return None
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    return checkpoints.load_checkpointables(checkpoints.latest.step, dict(state=like))["state"]


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """The configuration a run was started with.

    Raises:
      FileNotFoundError: no run there.
    """
    file = workdir / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"no run in {workdir} (no config.json there); give the --workdir "
                                "of a training run or a checkpoint file")
    return configuration.from_json(json.loads(file.read_text()))


def load_run(workdir: epath.Path, shapes: parameters.Tree) -> tuple[parameters.Tree, str]:
    """The parameters of the newest checkpoint of a run, as numpy arrays on the host.

    Of a run that keeps a moving average of what it tunes (`ema_decay`) it is the average.

    Args:
      workdir: the run's folder.
      shapes: nested dict of all parameters (`params.abstract`).

    Returns:
      Nested dict of arrays, and words that say after which step.

    Raises:
      FileNotFoundError: no checkpoint in it yet.
      ValueError: the checkpoint has other parameters; all differences are listed.
    """
    if not (workdir / "checkpoints").exists():
        raise FileNotFoundError(f"the run in {workdir} has no checkpoint yet; start `train` again")
    with open_checkpoints(workdir) as checkpoints:
        if checkpoints.latest is None:
            raise FileNotFoundError(f"the run in {workdir} has no complete checkpoint; start "
                                    "`train` again with the same --config and --workdir")
        step = checkpoints.latest.step
        folder = workdir / "checkpoints" / str(step)
        metadata = ocp.checkpointables_metadata(folder).metadata["state"]
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
        skip = {k: jax.tree.map(lambda _: ocp.PLACEHOLDER, v) for k, v in metadata.items()
                if k not in like}
        state = checkpoints.load_checkpointables(step, dict(state=like | skip))["state"]
    when = f"after step {step}" + (", moving average" if tuned == "ema" else "")
    return jax.device_get(parameters.combine(state[tuned], state["frozen"])), when
