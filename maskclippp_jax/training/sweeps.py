"""Variants of an experiment, trained and evaluated with several seeds; `sweep` on the command line.
"""

import concurrent.futures
import functools
import json
import os
import re
import subprocess
import sys
import typing

import numpy as np
from absl import logging
from etils import epath
from PIL import Image
from rich.table import Column, Table

from maskclippp_jax import config as configuration, configs, params as parameters
from maskclippp_jax.drawing import report, visualize
from maskclippp_jax.evaluation import tables
from maskclippp_jax.models.maskclippp import MaskCLIPpp, MaskCLIPppConfig
from maskclippp_jax.runtime import cli, console, storage, typed

# What is shown: title, and the way to it in the results of `evaluate`.
_COLUMNS = (("mask accuracy", "mask_accuracy", "mMaskAcc"), ("seen", "mask_accuracy", "seen"),
            ("unseen", "mask_accuracy", "unseen"), ("mIoU", "semantic", "mIoU"))


class _Cost(typing.TypedDict):
    memory_gib: float


class Variant(typing.NamedTuple):
    name: str       # what differs, for people
    config: str     # file and argument
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=-]+", "_", self.name)


def run(config: str, workdir: epath.Path, *, vary: typing.Sequence[str],
        overrides: typing.Sequence[str], seeds: typing.Sequence[str], jobs: int) -> list[dict]:
    """Trains and evaluates all variants that have not been, and writes and prints the table.

    Args:
      config: name or file of the experiment, with its argument if any.
      workdir: for all runs, the table and the plot.
      vary: changes, see `list_variants`.
      overrides: key=value, for all runs.
      seeds: one run of each variant for each.
      jobs: runs at the same time, each in a process of its own.

    Returns:
      The rows of the table.

    Raises:
      ValueError: see `list_variants`; a configuration that cannot be used; or as in `measure`.
    """
    variants = list_variants(config, vary)
    for variant in variants:  # what is wrong with the last one is said before the first one runs
        changed = cli.read_config(variant.config, [*overrides, *variant.overrides])
        configuration.check(changed, workdir=str(workdir))
    todo = [(variant, seed) for variant in variants for seed in seeds]

    def job(number: int) -> dict:
        variant, seed = todo[number]
        logging.info("run %d of %d: %s, seed %s", number + 1, len(todo), variant.name, seed)
        return measure(workdir / variant.folder / f"seed{seed}", variant, seed, overrides)

    rows = [dict(name="untuned", runs=[
        measure(workdir / "untuned", variants[0], None, overrides)])]
    pool = concurrent.futures.ThreadPoolExecutor(jobs)  # each waits for its own process
    try:
        runs = list(pool.map(job, range(len(todo))))
    finally:
        pool.shutdown(cancel_futures=True)
    count = len(seeds)
    rows += [dict(name=variant.name, runs=runs[i * count:(i + 1) * count])
             for i, variant in enumerate(variants)]
    report.write_json(workdir / "sweep.json", dict(
        config=config, overrides=overrides, seeds=seeds, rows=rows))
    console.show(table_of(rows))
    storage.write(workdir / "sweep.png", visualize.to_png(draw(rows)))
    logging.info("wrote %s and sweep.png", workdir / "sweep.json")
    return rows


def compare_encoders(encoders: typing.Sequence[str], workdir: epath.Path,
                     overrides: typing.Sequence[str]) -> list[dict]:
    """Evaluates the pre-trained CLIPs of several configurations, and writes and prints a table.

    Args:
      encoders: names or files of configurations, each with its argument if any.
      workdir: for all results and the table.
      overrides: key=value, for all of them.

    Returns:
      The rows of the table: values of `_COLUMNS` by title, images/s, parameters (millions), and
      memory (GiB, of the evaluating process on its machine).

    Raises:
      ValueError: one is given twice, or as in `measure`.
    """
    twice = next((e for i, e in enumerate(encoders) if e in encoders[:i]), None)
    if twice:
        raise ValueError(f"--encoders names {twice} more than once; keep one")
    models = [configs.read(encoder).model for encoder in encoders]  # all can be read
    rows = []
    for encoder, model in zip(encoders, models):
        place = workdir / Variant(encoder, encoder, ()).folder
        row = measure(place, Variant(encoder, encoder, ()), None, overrides)
        result = typed.read(place / "results" / "results.json", tables.Results)["models"][0]
        cost = typed.read(place / "cost.json", _Cost)
        rows.append(dict(encoder=encoder, **row, images_per_second=result["images_per_second"],
                         millions=millions(model), memory_gib=cost["memory_gib"]))
    report.write_json(workdir / "encoders.json", dict(overrides=overrides, rows=rows))
    table = Table(Column("encoder", overflow="fold", min_width=24), *(c[0] for c in _COLUMNS),
                  "images/s", "M", "GiB",
                  title="before any tuning: percent, images/s, millions of parameters, memory")
    shown = lambda value: "–" if value is None else f"{value:.1f}"
    for row in rows:
        name, *values = row.values()
        table.add_row(name, *map(shown, values))
    console.show(table)
    logging.info("wrote %s", workdir / "encoders.json")
    return rows


def millions(model: MaskCLIPppConfig) -> float:
    """Parameters of both towers."""
    _, shapes = parameters.abstract(functools.partial(MaskCLIPpp, model, heads="together",
                                                      rngs=parameters.Keys(0)))
    return (parameters.count(shapes["image"]) + parameters.count(shapes["text"])) / 1e6


def list_variants(config: str, vary: typing.Sequence[str]) -> list[Variant]:
    """The experiment as it is, and every change of it.

    Raises:
      ValueError: not of the form key=value|value, or something is given twice.
    """
    variants = [Variant("as configured", config, ())]
    for change in vary:
        key, equals, values = change.partition("=")
        if not equals or not key.strip(":") or not all(values.split("|")):
            raise ValueError(f"--vary is {change!r}, wanted key=value|value or "
                             ":argument=value|value")
        for value in values.split("|"):
            name = f"{key.lstrip(':')}={value}"
            if key.startswith(":"):
                joint = "," if ":" in config else ":"
                variants.append(Variant(name, f"{config}{joint}{name}", ()))
            else:
                variants.append(Variant(name, config, (name,)))
    twice = sorted({v.name for v in variants if [w.folder for w in variants].count(v.folder) > 1})
    if twice:
        raise ValueError(f"--vary gives {', '.join(twice)} more than once; keep one of each")
    return variants


def measure(place: epath.Path, variant: Variant, seed: str | None,
            overrides: typing.Sequence[str] = ()) -> dict:
    """Trains a variant and evaluates it, if that has not been done.

    Args:
      place: folder of the run and its results.
      variant: what to train.
      seed: of the run; None: nothing is trained, the pre-trained CLIP is evaluated.
      overrides: key=value, for all runs.

    Returns:
      Values of `_COLUMNS` by title.

    Raises:
      ValueError: the place holds a run of other settings; or a command failed, and what it said
        last is in the message.
    """
    settings = [f"--config={variant.config}",
                *(f"--config.{o}" for o in (*overrides, *variant.overrides))]
    if seed is not None:
        settings.append(f"--config.seed={seed}")
    made_with = dict(settings=settings, config=read_config(variant.config))
    results, stored = place / "results" / "results.json", place / "made_with.json"
    known = typed.read(stored, dict[str, typing.Any]) if stored.exists() else None
    if known != made_with and (known or results.exists()):
        raise ValueError(f"{place} was made with other settings or another configuration (see "
                         f"{stored}); take another --workdir")
    if not results.exists():
        place.mkdir(parents=True, exist_ok=True)
        report.write_json(stored, made_with)
        checkpoint = "untuned"
        if seed is not None:
            checkpoint = str(place / "run")
            _call("train", *settings, f"--workdir={checkpoint}")
        memory = _call("evaluate", *settings, f"--workdir={results.parent}",
                       f"--checkpoint={checkpoint}")
        report.write_json(place / "cost.json", _Cost(memory_gib=memory))
    found = typed.read(results, tables.Results)["models"][0]
    return {title: found[metric][key] for title, metric, key in _COLUMNS}


def read_config(config: str) -> dict:
    """What a configuration's file says, with its argument, as JSON."""
    return json.loads(json.dumps(configuration.to_json(configs.read(config))))


def _call(command: str, *arguments: str) -> float:
    """Runs a command in a process of its own; the most memory it took, GiB."""
    line = [sys.executable, "-m", "maskclippp_jax", command, *arguments]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process.stdout:
        said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = " ".join(said.strip().splitlines()[-1:])
        raise ValueError(f"maskclippp {' '.join(line[3:])} ended with code {process.returncode}: "
                         f"{end}")
    return usage.ru_maxrss / 2**20


def summary(runs: typing.Sequence[dict], title: str) -> tuple[float, float] | None:
    """Mean over the seeds, and standard deviation (of a sample; 0 of one run)."""
    values = [r[title] for r in runs]
    if None in values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def table_of(rows: typing.Sequence[dict]) -> Table:
    """Mean and standard deviation over the seeds, in percent."""
    table = Table(Column("variant", overflow="fold"), *(c[0] for c in _COLUMNS), "runs",
                  title="percent: mean and standard deviation over seeds")
    for row in rows:
        cells = []
        for title, _, _ in _COLUMNS:
            found = summary(row["runs"], title)
            cell = "–" if found is None else f"{found[0]:.1f}"
            cells.append(f"{cell} ± {found[1]:.1f}" if found and len(row["runs"]) > 1 else cell)
        table.add_row(row["name"], *cells, str(len(row["runs"])))
    return table


def draw(rows: typing.Sequence[dict]) -> Image.Image:
    """Mask accuracy of seen and unseen classes: a line a variant, a dot a run."""
    series = {title: [[r[title] for r in row["runs"] if r[title] is not None] for row in rows]
              for title in ("seen", "unseen")}
    return visualize.draw_dots([row["name"] for row in rows], series,
                               "mask accuracy (percent), a dot a run")
