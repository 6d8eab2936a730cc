"""What `publish` makes of a run: the files of a repository of the hub, sent as one commit."""

import json
import os
import pathlib
import re
import tempfile
import typing

import ml_collections
from absl import logging
from etils import epath

from maskclippp_jax import config as configuration, params as parameters, weights
from maskclippp_jax.naming import loading
from maskclippp_jax.publishing import card, measured, upload
from maskclippp_jax.runs import checkpoint
from maskclippp_jax.runtime import storage
from maskclippp_jax.vocabulary import Vocabulary, shipped_names
from maskclippp_jax.weights import released

_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|(gh[pousr]|github_pat)_\w{20,}|AKIA[0-9A-Z]{16})\b")


class Options(typing.NamedTuple):
    repo: str                             # owner/name
    results: typing.Sequence[str] = ()    # files or folders of `evaluate`
    licence: str | None = None            # None: that of the weights it was tuned from
    pictures: bool = True                 # whether those of the evaluations go along
    private: bool = False                 # whether a new repository is
    dry_run: bool = False
    output: str | None = None             # folder, of a dry run


def publish(path: str, options: Options) -> None:
    """Publishes a checkpoint of a run, or shows what would be published.

    Args:
      path: the folder of a run (its newest checkpoint), or that of one of its checkpoints.
      options: what else is wanted.

    Raises:
      FileNotFoundError, ValueError: no run, no such results, no token, no network, another's
        repository; nothing was sent then.
      OSError: sending failed; the repository has what it had.
    """
    upload.check_name(options.repo)
    output = options.output and pathlib.Path(options.output)
    if output and not options.dry_run:
        raise ValueError(f"--output is {output}, which is for --dry_run")
    if output and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"--output is {output}, which is not empty; name a new folder")
    folder = storage.path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"--checkpoint is {path}, wanted the folder of a training run, or "
                                "of one checkpoint in it (runs/x/checkpoints/400)")
    config = configuration.from_json(released.complete(configuration.to_json(
        checkpoint.read_config(folder))))
    step, (run, _) = checkpoint.step_of(folder), checkpoint.place_of(folder)
    # Just that one, though the run may have saved another meanwhile.
    model, params, what = loading.load_checkpoint(str(run / "checkpoints" / str(step)), config)
    small = _small_files(
        run, measured.Checkpoint(run, step, config.weights, parameters.digest(params)), config,
        options)
    target = None if options.dry_run else upload.Target(options.repo, private=options.private)
    tensors = {released.WEIGHTS: weights.export(params, model, "ours")}
    if released.REFERENCE in small:
        tensors[released.REFERENCE] = weights.export(params, model, "maskclippp")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".maskclippp_jax_", dir=output and output.parent
                                     ) as temporary:
        place = pathlib.Path(temporary) / "all"
        for name, content in small.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                storage.write(place / name, content, durable=False)
        for name, named in tensors.items():
            weights.write(place / name, named)
        _show(place, sorted(small), what)
        if output:
            place.rename(output)
            logging.info("nothing was sent to the hub; all is in %s", output)
        elif target is None:
            logging.info("nothing was sent to the hub, nor kept: --output=FOLDER keeps it")
        else:
            address = target.commit(place, sorted(small), f"MaskCLIP++ after step {step}")
            logging.info("published: %s", address)


def _small_files(run: epath.Path, checkpoint: measured.Checkpoint,
                 config: ml_collections.ConfigDict, options: Options
                 ) -> dict[str, bytes | str | None]:
    """Content of each file but the weights, whose place is None."""
    files: dict[str, bytes | str | None] = {released.WEIGHTS: None}
    try:
        weights.rules_for("maskclippp", config.model)
        files[released.REFERENCE] = None
    except ValueError as error:
        logging.info("not under the names of the public reference as well: %s", error)
    text = storage.read_text(run / released.NAMES)
    files[released.NAMES] = text
    content = released.public(configuration.to_json(config))
    content["sentencepiece"], content["eval"]["seen_vocabulary"] = "", config.eval.seen_vocabulary
    if config.sentencepiece:
        _add(files, released.SENTENCEPIECE, storage.path(config.sentencepiece))
        if released.SENTENCEPIECE in files:
            content["sentencepiece"] = released.SENTENCEPIECE
    if config.eval.seen_vocabulary not in shipped_names():
        _add(files, released.SEEN, storage.path(config.eval.seen_vocabulary))
        files.setdefault(released.SEEN, text)  # those it was tuned on are what it has seen
        content["eval"]["seen_vocabulary"] = released.SEEN
    files[released.CONFIG] = json.dumps(content, indent=1) + "\n"
    found = measured.find(checkpoint, options.results)
    for number, one in enumerate(found if options.pictures else ()):
        drawn = one.folder / "comparison.png"
        if drawn.exists():
            files[f"{released.PICTURES}/comparison-{number}.png"] = drawn.read_bytes()
    if not found:
        logging.warning("there are no results of this checkpoint, and the card says so; "
                        "`evaluate` it and give --results=FOLDER")
    files["README.md"] = ""
    files["README.md"] = card.write(card.Facts(
        options.repo, checkpoint.step, config,
        Vocabulary.from_text(text, str(run / released.NAMES)), run, found, list(files),
        options.licence))
    _check_private(files, run, config)
    return files


def _add(files: dict, name: str, file: epath.Path) -> None:
    if file.is_file():
        files[name] = file.read_bytes()
    else:
        logging.warning("%s is not here, so it is not published", file)


def _check_private(files: typing.Mapping[str, bytes | str | None], run: epath.Path,
                   config: ml_collections.ConfigDict) -> None:
    """The last look: nothing that is read by people tells of this machine, or opens anything.

    Raises:
      ValueError: else; says what, and where.
    """
    folders = {str(run), str(pathlib.Path.home()), os.path.abspath(config.data_dir),
               os.path.abspath(os.curdir)}
    folders = {f for f in folders if len(pathlib.PurePath(f).parts) > 1}
    for name, content in files.items():
        if not isinstance(content, str):
            continue
        tokens = [found[0] for found in (_TOKEN.search(content),) if found]
        if tokens:
            raise ValueError(f"{name} would tell what looks like a token ({tokens[0][:6]}...); "
                             "take it out of the names or the configuration of the run")
        told = next((f for f in sorted(folders) if f in content), None)
        if told:
            raise ValueError(f"{name} would tell of the folder {told} of this machine; take it out "
                             "of the names or the configuration of the run")


def _show(place: pathlib.Path, files: typing.Sequence[str], what: str) -> None:
    from rich.table import Column, Table

    from maskclippp_jax.runtime import console

    table = Table("file", Column("MB", justify="right"), title=f"from {what}")
    for name in files:
        table.add_row(name, f"{(place / name).stat().st_size / 1e6:.2f}")
    console.show(table)
    console.say((place / "README.md").read_text("utf-8"))
