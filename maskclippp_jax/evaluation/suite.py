"""All published rows: those whose files are there are run, beside the published numbers.

What is looked for, <row> being a file of configs/eval:

    <data_dir>/<data set>/
        as `prepare` makes them
    <bundles>/<MASKS of the row>/<data set>/
        as `masks export` or launch/export makes them; all forms of A-150 share ade20k_150. Where
        there is none, the generator itself makes the masks, if its file is in the folder weights
    <checkpoints>/<MODEL of the row>
        a run's folder, or a file with .pth, .pt or .safetensors; else the authors' own file, if it
        is in the folder weights (`maskclippp weights` shows what is there)
    <checkpoints>/<file of the pre-trained CLIP>
        for the row of the untuned model; the others take it from there if it is there

Results of a benchmark are in <workdir>/<row>/<data set>/, the table in <workdir>/published.md and
published.json. A benchmark that has results is not run again.
"""

import importlib
import pkgutil
import types
import typing

from absl import logging
from etils import epath
from rich.table import Table

from maskclippp_jax.data import catalogue, records
from maskclippp_jax.drawing import report
from maskclippp_jax.evaluation import tables
from maskclippp_jax.runtime import console, storage, typed
from maskclippp_jax.weights import catalogue as published_files, published_tuned

_ENDINGS = ("", ".safetensors", ".pth", ".pt")
# Where a metric's value is in the results of a model.
_WHERE = dict(mIoU=("semantic",), PQ=("panoptic", "all"), SQ=("panoptic", "all"),
              RQ=("panoptic", "all"), AP=("instances",), mMaskAcc=("mask_accuracy",))


class Found(typing.NamedTuple):
    """What there is of a benchmark."""

    checkpoint: str                # "untuned", a path, or a published name
    bundle: str | None = None      # folder of the masks
    generator: str | None = None   # makes the masks, in place of a bundle


class Line(typing.NamedTuple):
    """One number of the table."""

    row: str
    benchmark: str
    metric: str
    ours: float | None
    published: float | None
    note: str = ""  # why there is no number of ours


def rows_of(chosen: typing.Sequence[str] = ()) -> dict[str, types.ModuleType]:
    """The modules of configs/eval by name.

    Raises:
      ValueError: a chosen one does not exist.
    """
    package = importlib.import_module("maskclippp_jax.configs.eval")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "common")
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        raise ValueError(f"--rows has {', '.join(unknown)}, wanted some of {', '.join(names)}")
    return {name: importlib.import_module(f"maskclippp_jax.configs.eval.{name}")
            for name in chosen or names}


def run(workdir: epath.Path, *, bundles: str, checkpoints: str, data_dir: str,
        rows: typing.Sequence[str], evaluate: typing.Callable) -> list[Line]:
    """Runs what has data; see above.

    Args:
      workdir: for the results.
      bundles, checkpoints, data_dir: folders.
      rows: names of rows; (): all.
      evaluate: `(config, what was found, workdir) -> results of each model`.

    Returns:
      The lines of the table.

    Raises:
      ValueError: nothing at all has data.
    """
    lines: list[Line] = []
    for row, module in rows_of(rows).items():
        found: dict[str, dict] = {}
        for benchmark, numbers in module.PUBLISHED.items():
            config = module.get_config(benchmark)
            with config.unlocked():
                config.data_dir = data_dir
            try:
                files = _look_for(config, module, benchmark, bundles, checkpoints)
            except FileNotFoundError as lacking:
                lines += [Line(row, benchmark, metric, None, value, f"no {lacking}")
                          for metric, value in numbers.items()]
                continue
            folder = workdir / row / benchmark
            file = folder / "results.json"
            if file.exists():
                logging.info("%s on %s: has results", row, benchmark)
                model, = typed.read(file, tables.Results)["models"]
            else:
                logging.info("%s on %s", row, benchmark)
                model, = evaluate(config, files, folder)
            found[benchmark] = model
            lines += [Line(row, benchmark, metric, _value(model, metric), value)
                      for metric, value in numbers.items()]
        lines += _domains(row, module, found)
    if all(line.ours is None for line in lines):
        raise ValueError(f"no published row has all it needs in --data_dir={data_dir}, "
                         f"--bundles={bundles} and --checkpoints={checkpoints}; the first lacks "
                         f"{lines[0].note[3:]} (see maskclippp_jax/evaluation/suite.py)")
    print_lines(lines)
    report.write_json(workdir / "published.json", [line._asdict() for line in lines])
    storage.write(workdir / "published.md", markdown(lines))
    logging.info("wrote %s", workdir / "published.md")
    return lines


def print_lines(lines: typing.Sequence[Line]) -> None:
    """Ours beside the published numbers; then what was not run, and why."""
    table = Table(title="published numbers (percent)")
    for column in ("row", "benchmark", "", "ours", "published", "difference"):
        table.add_column(column, justify="left" if column in ("row", "benchmark", "") else "right")
    for line in lines:
        if line.ours is not None:
            table.add_row(line.row, line.benchmark, line.metric, *_cells(line))
    console.show(table)
    left = [line for line in lines if line.ours is None]
    for row, benchmark, note in dict.fromkeys((x.row, x.benchmark, x.note) for x in left):
        console.say(f"not run: {row} on {benchmark}: {note}")


def markdown(lines: typing.Sequence[Line]) -> str:
    """All lines as a table in Markdown."""
    text = "| row | benchmark | metric | ours | published | difference |\n"
    text += "|---|---|---|--:|--:|--:|\n"
    for line in lines:
        cells = _cells(line) if line.ours is not None else [line.note, *_cells(line)[1:]]
        text += f"| {line.row} | {line.benchmark} | {line.metric} | {' | '.join(cells)} |\n"
    return text


def _look_for(config, module, benchmark: str, bundles: str, checkpoints: str) -> Found:
    """What a benchmark needs.

    Raises:
      FileNotFoundError: what is not there.
    """
    for name in config.eval.dataset.split(","):
        folder = storage.path(config.data_dir) / name
        if not (folder / records.VERSION / "dataset_info.json").exists():
            raise FileNotFoundError(f"data set {folder}")
    masks = {}
    if module.MASKS:
        path = storage.path(bundles) / module.MASKS / benchmark.removesuffix("_panoptic")
        name = module.MASKS.replace("_", "-")
        if path.is_dir():
            masks = dict(bundle=str(path))
        elif _published_file(name):
            masks = dict(generator=name)
        else:
            raise FileNotFoundError(f"bundle {path} and no file of {name}")
    models = storage.path(checkpoints)
    weights = models / config.weights.rpartition("/")[2]
    if weights.exists():
        with config.unlocked():
            config.weights = str(weights)
    if module.MODEL == "untuned":
        if not weights.exists():
            raise FileNotFoundError(f"file {weights}")
        return Found("untuned", **masks)
    for ending in _ENDINGS:
        path = models / f"{module.MODEL}{ending}"
        if path.exists():
            return Found(str(path), **masks)
    name = next((m.name for m in published_tuned.MODELS if m.config == module.MODEL), None)
    if name and _published_file(name):
        return Found(name, **masks)
    raise FileNotFoundError(f"checkpoint {models / module.MODEL}"
                            + (f" and no file of {name}" if name else ""))


def _published_file(name: str) -> str | None:
    """Where the file of a published name is; None: it is not here."""
    return next((row.find() for row in published_files.all_rows() if row.name == name), None)


def _domains(row: str, module, found: dict[str, dict]) -> list[Line]:
    """Means over the data sets of a domain of MESS, where all of them were run."""
    lines = []
    for domain, numbers in getattr(module, "DOMAINS", {}).items():
        names = [n for n in module.PUBLISHED
                 if n.startswith("mess_") and domain in catalogue.DATASETS[n].title]
        missing = [n for n in names if n not in found]
        for metric, published in numbers.items():
            values = [_value(found[n], metric) for n in names if n in found]
            ours = None if missing else sum(values) / len(values)
            lines.append(Line(row, f"mean of {domain} (MESS)", metric, ours, published,
                              f"no results of {', '.join(missing)}" if missing else ""))
    return lines


def _value(model: dict, metric: str) -> float | None:
    results = model
    for key in _WHERE[metric]:
        results = results.get(key) or {}
    return results.get(metric)


def _cells(line: Line) -> list[str]:
    ours, published = ("–" if x is None else f"{x:.1f}" for x in (line.ours, line.published))
    known = line.ours is not None and line.published is not None
    return [ours, published, f"{line.ours - line.published:+.1f}" if known else "–"]
