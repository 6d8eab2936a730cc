"""Tables for people, and results as JSON."""

import json
import math
import pathlib
import typing

import numpy as np
from rich.console import Console
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
    """Metrics as rows, models as columns, and the protocol they were measured under."""
    table = Table("", *(m["name"] for m in models), title="evaluation (percent)")

    def row(title, key, metric):
        values = [m[metric].get(key) if m.get(metric) else None for m in models]
        if any(v is not None for v in values):
            table.add_row(title, *("–" if v is None else f"{v:.1f}" for v in values))

    row("mask accuracy, mean over classes", "mMaskAcc", "mask_accuracy")
    row("  seen classes", "seen", "mask_accuracy")
    row("  unseen classes", "unseen", "mask_accuracy")
    row("  share of all masks (micro)", "micro", "mask_accuracy")
    table.add_section()
    row("mIoU, classes in the ground truth", "mIoU", "semantic")
    row("  seen classes", "mIoU_seen", "semantic")
    row("  unseen classes", "mIoU_unseen", "semantic")
    row("mIoU, absent but predicted as 0", "mIoU_counting_absent_predicted", "semantic")
    row("pixel accuracy", "pACC", "semantic")
    _CONSOLE.print(table)
    first = models[0]
    if first.get("mask_accuracy"):
        m = first["mask_accuracy"]
        _CONSOLE.print(f"{m['masks']} masks of {m['classes']} classes ({m['num_classes']} in the "
                       "vocabulary)")
    if first.get("semantic"):
        _CONSOLE.print("classes in the ground truth / predicted but absent: " + ", ".join(
            f"{m['semantic']['classes_in_ground_truth']} / "
            f"{m['semantic']['classes_predicted_but_absent']} ({m['name']})" for m in models))
    _CONSOLE.print("protocol: " + ", ".join(f"{k} {v}" for k, v in protocol.items()), soft_wrap=True)


def write_json(path: pathlib.Path, content: typing.Any) -> None:
    """Writes JSON whole or not at all.

    Raises:
      ValueError: a number is not finite.
    """
    text = json.dumps(_plain(content), indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def _plain(x):
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if isinstance(x, np.ndarray):
        return _plain(x.tolist())
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, float) and not math.isfinite(x):
        raise ValueError("a result is not finite")
    return x
