"""Tables for people, and results as JSON."""

import json
import math
import typing

import numpy as np
from rich.table import Table
from rich.text import Text

from maskclippp_jax import vocabulary
from maskclippp_jax.runtime import console, storage
from maskclippp_jax.vocabulary import Vocabulary


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
    console.show(table)


def print_vocabularies() -> None:
    """What is shipped."""
    table = Table("vocabulary", "classes", "things", "names")
    for name in vocabulary.shipped_names():
        v = Vocabulary.shipped(name)
        table.add_row(name, f"{v.num_classes}", f"{sum(v.is_thing)}", f"{v.num_synonyms}")
    console.show(table)


def print_vocabulary(shown: Vocabulary, training: Vocabulary | None = None) -> None:
    """The classes; if a training vocabulary is given, also which of them are seen there."""
    console.show(names_table(shown, training))
    if training:
        seen = shown.seen_in(training)
        console.say(f"{seen.sum()} of {shown.num_classes} classes of {shown.name} are seen in "
                    f"{training.name}, {(~seen).sum()} are unseen")


def print_names_check(rows: typing.Sequence[tuple[int, str, int, list[str]]],
                      refused: str | None) -> None:
    """Every name with its class, tokens, and remarks; and why commands refuse the file, if so."""
    table = Table("class", "name", "tokens", "remarks")
    for c, name, tokens, remarks in rows:
        table.add_row(f"{c}", name, f"{tokens}", "; ".join(remarks))
    console.show(table)
    marked = sum(bool(remarks) for *_, remarks in rows)
    console.say(f"{len(rows)} names, {marked} with remarks")
    if refused:
        console.say(f"commands refuse this file: {refused}")


def names_table(shown: Vocabulary, training: Vocabulary | None = None) -> Table:
    """A table of the classes: number, id in the data set, kind, colour, names.

    Args:
      shown: the vocabulary.
      training: if given, names that it has too are marked, and classes as seen or unseen.
    """
    known = {n for names in training.classes for n in names} if training else set()
    seen = shown.seen_in(training) if training else [False] * shown.num_classes
    table = Table("class", "id", "kind", *(["colour"] if shown.colors else []),
                  *(["seen"] if training else []), "names (first: shown to people)")
    for c, names in enumerate(shown.classes):
        row = [f"{c}", f"{shown.dataset_ids[c]}", "thing" if shown.is_thing[c] else "stuff"]
        if shown.colors:
            color = "#" + bytes(shown.colors[c]).hex() if shown.colors[c] else ""
            row.append(Text("\N{FULL BLOCK}" * 2 + " " + color, style=color) if color else "")
        if training:
            row.append("seen" if seen[c] else "unseen")
        row.append(Text(", ").join(
            Text(n, style="bold green" if n in known else "") for n in names))
        table.add_row(*row)
    return table


def print_results(models: typing.Sequence[dict], protocol: typing.Mapping[str, typing.Any]) -> None:
    """Metrics as rows, models as columns, and the protocol they were measured under.

    Args:
      models: see `result_rows`.
      protocol: names and values, printed as they are.
    """
    table = Table(title="evaluation (percent)")
    table.add_column("")
    for m in models:
        table.add_column(m["name"], justify="right")
    for row in result_rows(models):
        table.add_row(*row) if row else table.add_section()
    console.show(table)
    for key, value in protocol.items():
        console.say(f"  {key}: {words(value)}")


def markdown(models: typing.Sequence[dict], protocol: typing.Mapping[str, typing.Any]) -> str:
    """The same as a table in Markdown, and the protocol as a list."""
    plain = lambda x: str(x).strip().replace("|", "\\|")
    line = lambda cells: "| " + " | ".join(map(plain, cells)) + " |\n"
    text = line(["percent", *(m["name"] for m in models)]) + line(["---"] + ["---:"] * len(models))
    text += "".join(line(row) for row in result_rows(models) if row)
    return text + "\n" + "".join(f"- {key}: {words(value)}\n" for key, value in protocol.items())


def words(value: typing.Any) -> str:
    """A protocol within a protocol in one line."""
    if isinstance(value, typing.Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)


def result_rows(models: typing.Sequence[dict]) -> list[list[str] | None]:
    """Title and one cell for each model; None between groups.

    Args:
      models: dicts of `name` and the results of the metrics under `mask_accuracy`, `semantic`,
        `mask_recall`, `boundary`, `panoptic` and `instances`; a metric that was not run may be
        missing. Ranges under `intervals` of a metric are shown beside its values. "–": not defined.
    """
    rows: list[list[str] | None] = []
    models = [dict(m, panoptic=_flat(m.get("panoptic"))) for m in models]

    def row(title, metric, *keys):
        """A row of the sum of these keys; "–" where it is undefined."""
        cells = []
        for m in models:
            results = m.get(metric) or {}
            values = [results.get(key) for key in keys]
            cell = "–" if None in values else _number(sum(values))
            around = results.get("intervals", {}).get(keys[0])
            cells.append(f"{cell} ({around[0]:.1f} ... {around[1]:.1f})" if around else cell)
        rows.append([title, *cells])

    def end_group():
        if rows and rows[-1]:
            rows.append(None)

    if any(m.get("mask_accuracy") for m in models):
        row("mask accuracy, mean over classes", "mask_accuracy", "mMaskAcc")
        row("  seen classes", "mask_accuracy", "seen")
        row("  unseen classes", "mask_accuracy", "unseen")
        if any((m.get("mask_accuracy") or {}).get("things") is not None for m in models):
            row("  things", "mask_accuracy", "things")
            row("  stuff", "mask_accuracy", "stuff")
        row("  share of all masks (micro)", "mask_accuracy", "micro")
        row("  number of masks", "mask_accuracy", "masks")
        row("  classes that occur", "mask_accuracy", "classes")
        end_group()
    if any(m.get("mask_recall") for m in models):
        row("recall of true segments by masks (AR)", "mask_recall", "AR")
        row("  at an IoU of 0.5", "mask_recall", "AR50")
        row("  at an IoU of 0.75", "mask_recall", "AR75")
        for key, what in (("ARs", "small segments"), ("ARm", "medium segments"),
                          ("ARl", "large segments"), ("things", "things"), ("stuff", "stuff"),
                          ("seen", "seen classes"), ("unseen", "unseen classes")):
            row(f"  AR of {what}", "mask_recall", key)
        row("  number of segments", "mask_recall", "segments")
        row("  masks of a picture", "mask_recall", "masks_per_picture")
        end_group()
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
        end_group()
    if any(m.get("boundary") for m in models):
        row("mean boundary IoU", "boundary", "mBIoU")
        end_group()
    if any(m.get("panoptic") for m in models):
        for key in ("PQ", "SQ", "RQ"):
            row(key, "panoptic", key)
        row("  number of categories", "panoptic", "categories")
        row("PQ of things", "panoptic", "PQ_things")
        row("PQ of stuff", "panoptic", "PQ_stuff")
        if any("PQ_seen" in m["panoptic"] for m in models):
            row("PQ of seen classes", "panoptic", "PQ_seen")
            row("PQ of unseen classes", "panoptic", "PQ_unseen")
        end_group()
    if any(m.get("instances") for m in models):
        for key in ("AP", "AP50", "AP75"):
            row(key, "instances", key)
        for key, what in (("APs", "small"), ("APm", "medium"), ("APl", "large")):
            row(f"AP of {what} masks", "instances", key)
        for key, what in (("APr", "rare"), ("APc", "common"), ("APf", "frequent")):
            row(f"AP of {what} classes", "instances", key)
        if any("AP_seen" in (m.get("instances") or {}) for m in models):
            row("AP of seen classes", "instances", "AP_seen")
            row("AP of unseen classes", "instances", "AP_unseen")
    return rows


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
        table.add_row(names[low], _number(float(values[low])),
                      names[high], _number(float(values[high])))
    console.show(table)


def print_confusions(pairs: typing.Sequence[dict], names: typing.Sequence[str], title: str,
                     count: int = 10) -> None:
    """The worst confusions.

    Args:
      pairs: see `metrics.confusions`, worst first.
      names: [K].
      title: of the table.
      count: lines.
    """
    table = Table("true", "named", "share of the true class", title=title)
    for pair in pairs[:count]:
        table.add_row(names[pair["true"]], names[pair["predicted"]],
                      f"{pair['percent']:.1f} %")
    console.show(table)


def write_json(path: storage.Name, content: typing.Any, *, durable: bool = True) -> None:
    """Writes JSON whole or not at all; raises as `to_json` does, and writes nothing then."""
    storage.write(path, to_json(content), durable=durable)


def to_json(content: typing.Any) -> str:
    """The text of a JSON file; numpy's numbers and arrays become JSON's.

    Raises:
      ValueError: a number is not finite; undefined ones must be None.
    """
    return json.dumps(_plain(content, ""), indent=1, allow_nan=False) + "\n"


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


def _flat(panoptic: dict | None) -> dict:
    """Panoptic quality with its parts side by side."""
    if not panoptic:
        return {}
    parts = {f"PQ_{part}": panoptic[part]["PQ"]
             for part in ("things", "stuff", "seen", "unseen") if part in panoptic}
    return panoptic["all"] | parts | dict(intervals=panoptic.get("intervals", {}))


def _number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:.1f}"
