"""Tables for people, and results as JSON."""

import json
import math
import pathlib
import typing

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_CONSOLE = Console()


def print_parameters(rows: typing.Sequence[tuple]) -> None:
    """The table of `optim.parameter_table`: what learns, how fast, with which decay."""
    table = Table("parameters", "trainable", "of", "learning rate", "decay", title="what is tuned")
    for group, _, trainable, total, rate, decay in rows:
        if trainable:
            table.add_row(group, f"{trainable:,}", f"{total:,}", rate, decay)
    frozen = sum(row[3] - row[2] for row in rows)
    learnt = sum(row[2] for row in rows)
    table.add_section()
    table.add_row("all", f"{learnt:,}", f"{learnt + frozen:,}", "", "")
    _CONSOLE.print(table)


def print_results(models: typing.Sequence[dict], protocol: typing.Mapping[str, typing.Any]) -> None:
    """Metrics as rows, models as columns, and the protocol they were measured under.

    Args:
      models: dicts of `name` and the results of the metrics under `mask_accuracy` and `semantic`; a
        metric that was not run may be missing.
      protocol: names and values, printed as they are.
    """
    table = Table(title="evaluation (percent)")
    table.add_column("")
    for m in models:
        table.add_column(escape(m["name"]), justify="right")

    def row(title, metric, *keys):
        """A row of the sum of these keys; "–" where it is undefined."""
        values = [[(m.get(metric) or {}).get(key) for key in keys] for m in models]
        table.add_row(title, *("–" if None in v else _number(sum(v)) for v in values))

    if any(m.get("mask_accuracy") for m in models):
        row("mask accuracy, mean over classes", "mask_accuracy", "mMaskAcc")
        row("  seen classes", "mask_accuracy", "seen")
        row("  unseen classes", "mask_accuracy", "unseen")
        row("  share of all masks (micro)", "mask_accuracy", "micro")
        row("  number of masks", "mask_accuracy", "masks")
        row("  classes that occur", "mask_accuracy", "classes")
        table.add_section()
    if any(m.get("semantic") for m in models):
        row("mIoU, classes in the ground truth", "semantic", "mIoU")
        row("  number of these classes", "semantic", "classes_in_ground_truth")
        row("mIoU, absent but predicted as 0", "semantic", "mIoU_counting_absent_predicted")
        row("  number of these classes", "semantic", "classes_in_ground_truth",
            "classes_predicted_but_absent")
        row("mIoU of seen classes", "semantic", "mIoU_seen")
        row("mIoU of unseen classes", "semantic", "mIoU_unseen")
        row("  harmonic mean of the two", "semantic", "mIoU_harmonic")
        row("mIoU weighted by frequency", "semantic", "fwIoU")
        row("pixel accuracy", "semantic", "pACC")
        row("  mean over classes", "semantic", "mACC")
    _CONSOLE.print(table)
    for key, value in protocol.items():
        _CONSOLE.print(f"  {key}: {value}", soft_wrap=True, markup=False, highlight=False)


def print_per_class(values: typing.Sequence[float | None], names: typing.Sequence[str], title: str,
                    count: int = 10) -> None:
    """The worst and the best classes side by side.

    Args:
      values: [K] percent, such as `per_class` of the mask accuracy; None where no such class is.
      names: [K].
      title: what the values are.
      count: lines of the table.

    Raises:
      ValueError: not one name for each value.
    """
    if len(values) != len(names):
        raise ValueError(f"got {len(values)} values for {len(names)} classes")
    ranked = sorted((i for i, v in enumerate(values) if v is not None), key=values.__getitem__)
    table = Table(title=f"{title} (percent), {len(ranked)} of {len(values)} classes occur")
    for column in ("worst", "best"):
        table.add_column(column)
        table.add_column("", justify="right")
    for low, high in zip(ranked[:count], ranked[::-1][:count]):
        table.add_row(escape(names[low]), _number(float(values[low])),
                      escape(names[high]), _number(float(values[high])))
    _CONSOLE.print(table)


def write_json(path: pathlib.Path, content: typing.Any) -> None:
    """Writes JSON whole or not at all; numpy's numbers and arrays become JSON's.

    Raises:
      ValueError: a number is not finite; undefined ones must be None. Nothing is written then.
    """
    text = json.dumps(_plain(content, ""), indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def _plain(x, where: str):
    """The same in Python's own types; `where` is the way to it, for the message."""
    if isinstance(x, dict):
        return {str(k): _plain(v, f"{where}/{k}") for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v, f"{where}/{i}") for i, v in enumerate(x)]
    if isinstance(x, np.ndarray):
        return _plain(x.tolist(), where)
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, float) and not math.isfinite(x):
        raise ValueError(f"{where.lstrip('/') or 'the result'} is {x}, wanted a finite number or "
                         "None")
    return x


def _number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:.1f}"
