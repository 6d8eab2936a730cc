"""Trains and evaluates variants of an experiment with several seeds: one table, one plot.

    python -m maskclippp_jax.sweep --config=configs/quickstart.py --workdir=runs/sweep \
        --vary="train.masks=degraded" --vary="optimizer.image_multiplier=0.05|0.5|5" --seeds=0,1,2

Every `--vary` changes one key of the configuration, or with a colon before its name one argument of
the configuration's file, to each of its values in turn (separated by |); everything else stays.
The first row is the configuration itself. `--override=key=value` holds for all runs.

Each run is a `train` of its own in WORKDIR/<variant>/seed<k>; one that has ended is not repeated,
so the same line started again goes on, and further variants or seeds may be added to it. What was
made with another configuration is refused.
"""

import concurrent.futures
import json
import pathlib
import re
import runpy
import subprocess
import sys
import typing

import numpy as np
from absl import flags, logging
from etils import epath
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from maskclippp_jax import cli, config as configuration, report, storage, visualize

# A path, not a configuration: the runs read it.
CONFIG = flags.DEFINE_string("config", None, "file of the experiment, with its argument if any")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs, the table and the plot")
VARY = flags.DEFINE_multi_string("vary", [], "key=value|value|..., :argument=value|value|...")
OVERRIDE = flags.DEFINE_multi_string("override", [], "key=value for all runs")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "one run of each variant for each")
JOBS = flags.DEFINE_integer("jobs", 1, "runs at the same time", lower_bound=1)

# What is shown: title, and the way to it in the results of `evaluate`.
_COLUMNS = (("mask accuracy", "mask_accuracy", "mMaskAcc"), ("seen", "mask_accuracy", "seen"),
            ("unseen", "mask_accuracy", "unseen"), ("mIoU", "semantic", "mIoU"))


class Variant(typing.NamedTuple):
    name: str       # what differs, for people
    config: str     # file and argument
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=-]+", "_", self.name)


def main(argv):
    del argv
    if not CONFIG.value or not WORKDIR.value:
        raise ValueError("got no --config or no --workdir; see --help")
    if not all(seed.isdigit() for seed in SEEDS.value) or not SEEDS.value:
        raise ValueError(f"--seeds is {','.join(SEEDS.value)!r}, wanted numbers such as 0,1,2")
    variants = list_variants(CONFIG.value, VARY.value)
    workdir = storage.path(WORKDIR.value)
    jobs = [(variant, seed) for variant in variants for seed in SEEDS.value]

    def job(number: int) -> dict:
        variant, seed = jobs[number]
        logging.info("run %d of %d: %s, seed %s", number + 1, len(jobs), variant.name, seed)
        return measure(workdir / variant.folder / f"seed{seed}", variant, seed)

    rows = [dict(name="untuned", runs=[measure(workdir / "untuned", variants[0], seed=None)])]
    pool = concurrent.futures.ThreadPoolExecutor(JOBS.value)  # each waits for its own process
    try:
        runs = list(pool.map(job, range(len(jobs))))
    finally:
        pool.shutdown(cancel_futures=True)
    count = len(SEEDS.value)
    rows += [dict(name=variant.name, runs=runs[i * count:(i + 1) * count])
             for i, variant in enumerate(variants)]
    report.write_json(workdir / "sweep.json", dict(
        config=CONFIG.value, overrides=OVERRIDE.value, seeds=SEEDS.value, rows=rows))
    Console().print(table_of(rows))
    storage.write(workdir / "sweep.png", visualize.to_png(draw(rows)))
    logging.info("wrote %s and sweep.png", workdir / "sweep.json")


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


def measure(place: epath.Path, variant: Variant, seed: str | None) -> dict:
    """Trains a variant and evaluates it, if that has not been done.

    Args:
      place: folder of the run and its results.
      variant: what to train.
      seed: of the run; None: nothing is trained, the pre-trained CLIP is evaluated.

    Returns:
      Values of `_COLUMNS` by title.

    Raises:
      ValueError: the place holds a run of other settings; or a command failed, and what it said
        last is in the message.
    """
    settings = [f"--config={variant.config}",
                *(f"--config.{o}" for o in (*OVERRIDE.value, *variant.overrides))]
    if seed is not None:
        settings.append(f"--config.seed={seed}")
    made_with = dict(settings=settings, config=read_config(variant.config))
    results, stored = place / "results" / "results.json", place / "made_with.json"
    known = json.loads(stored.read_text()) if stored.exists() else None
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
        _call("evaluate", *settings, f"--workdir={results.parent}", f"--checkpoint={checkpoint}")
    found = json.loads(results.read_text())["models"][0]
    return {title: found[metric][key] for title, metric, key in _COLUMNS}


def read_config(config: str) -> dict:
    """What a configuration's file says, with its argument, as JSON."""
    file, colon, arg = config.partition(":")
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f"no file {file}; give --config=configs/x.py")
    get_config = runpy.run_path(file)["get_config"]
    return json.loads(json.dumps(configuration.to_json(get_config(arg) if colon else get_config())))


def _call(command: str, *arguments: str) -> None:
    line = [sys.executable, "-m", f"maskclippp_jax.{command}", *arguments]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        end = " ".join(done.stdout.strip().splitlines()[-1:])
        raise ValueError(f"{' '.join(line[2:])} ended with code {done.returncode}: {end}")


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


if __name__ == "__main__":
    cli.run(main, buckets=("workdir",))
