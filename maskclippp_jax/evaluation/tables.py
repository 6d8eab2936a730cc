"""What an evaluation leaves for people: tables, lists of classes and confusions, pictures."""

import contextlib
import csv
import io
import typing

import numpy as np
from absl import logging
from etils import epath

from maskclippp_jax.drawing import report, visualize
from maskclippp_jax.drawing.visualize import View
from maskclippp_jax.evaluation.truth import IGNORE, Truth
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.vocabulary import Vocabulary

_RESULTS, _COMPARISON = "results.json", "comparison.png"


class Results(typing.TypedDict):
    """results.json, as far as others read it."""

    protocol: typing.NotRequired[dict[str, typing.Any]]
    models: list[dict[str, typing.Any]]


class Shown(typing.NamedTuple):
    """Pictures of one model."""

    views: list[View]  # of the first pictures
    # Id, mean IoU and label map of the best and the worst pictures, the best first.
    extremes: list[tuple[str, float, np.ndarray]]
    generated: bool = False  # whether a generator found the masks


def write(workdir: epath.Path, models: list[dict], protocol: dict, truth: Truth,
          shown: list[Shown], seen: np.ndarray | None = None) -> None:
    """Writes and prints the results of all models; `seen` [C] tells classes known from training.

    results.json, results.md, per_class.csv, confusions.csv and, if there are pictures,
    comparison.png and extremes-<number of the model>.png.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    vocabulary = truth.vocabulary
    names = [c[0] for c in vocabulary.classes]
    _clear(workdir)
    files = {"results.md": report.markdown(models, protocol),
             "per_class.csv": per_class(models, truth, seen),
             "confusions.csv": confusions(models, vocabulary)}
    if any(s.views for s in shown):
        files[_COMPARISON] = visualize.to_png(
            visualize.draw_views([s.views for s in shown], [m["name"] for m in models],
                                 generated=shown[0].generated))
    files |= {f"extremes-{number}.png": visualize.to_png(draw_extremes(one.extremes, truth))
              for number, one in enumerate(shown) if one.extremes}
    for name, content in files.items():
        storage.write(workdir / name, content)
    report.write_json(workdir / _RESULTS, dict(protocol=protocol, models=models))
    for m in models:
        for part, value, what in (("mask_accuracy", "per_class", "mask accuracy"),
                                  ("semantic", "IoU", "IoU")):
            if part in m:
                report.print_per_class(m[part][value], names, f"{what}, {m['name']}")
                report.print_confusions(m[part]["confusions"], names,
                                        f"{what}, {m['name']}: worst confusions")
                break
    report.print_results(models, protocol)
    logging.info("wrote to %s: %s", workdir, ", ".join(sorted([*files, _RESULTS])))


def _clear(workdir: epath.Path) -> None:
    """Removes what an earlier evaluation left, whose pictures would be taken for those of this."""
    if not (file := workdir / _RESULTS).exists():
        return
    with contextlib.suppress(ValueError):  # a damaged one is replaced as well
        models = [str(m.get("name")) for m in typed.read(file, Results)["models"]]
        logging.info("the results of %s in %s are replaced", ", ".join(models), workdir)
    for stale in (file, workdir / _COMPARISON, workdir / "report.html",
                  *workdir.glob("extremes-*.png")):
        stale.unlink(missing_ok=True)


def per_class(models: list[dict], truth: Truth, seen: np.ndarray | None = None) -> str:
    """All values of single classes as CSV, one line a class; empty where undefined."""
    vocabulary = truth.vocabulary
    columns: dict[str, list] = dict(
        number=list(range(vocabulary.num_classes)), id=list(vocabulary.dataset_ids),
        kind=["thing" if t else "stuff" for t in vocabulary.is_thing],
        names=[", ".join(c) for c in vocabulary.classes])
    if seen is not None:
        columns["seen"] = ["yes" if known else "no" for known in seen]
    for m in models:
        def add(title, values):
            columns[f"{m['name']}: {title}"] = values

        if "mask_accuracy" in m:
            add("mask accuracy", m["mask_accuracy"]["per_class"])
        if "mask_recall" in m:
            add("AR of masks", m["mask_recall"]["per_class"])
        if "semantic" in m:
            add("IoU", m["semantic"]["IoU"])
            add("pixel accuracy", m["semantic"]["ACC"])
        if "boundary" in m:
            add("boundary IoU", m["boundary"]["BIoU"])
        if "panoptic" in m:
            found = m["panoptic"]["per_category"]
            add("PQ", [(found[i] or {}).get("PQ") for i in vocabulary.dataset_ids])
        if "instances" in m:
            found = m["instances"]["per_category"]
            add("AP", [found.get(i) for i in vocabulary.dataset_ids])
    return _csv(columns)


def confusions(models: list[dict], vocabulary: Vocabulary) -> str:
    """The worst confusions of all models as CSV."""
    columns: dict[str, list] = {k: [] for k in ("model", "of", "true", "named", "count", "percent")}
    for m in models:
        for part, of in (("mask_accuracy", "masks"), ("semantic", "pixels")):
            for pair in m.get(part, {}).get("confusions", ()):
                row = (m["name"], of, vocabulary.classes[pair["true"]][0],
                       vocabulary.classes[pair["predicted"]][0], pair["count"], pair["percent"])
                for column, value in zip(columns.values(), row):
                    column.append(value)
    return _csv(columns)


def view_of(picture, vocabulary: Vocabulary) -> tuple:
    """Image, segments, and for each segment what the model said and what is true.

    Args:
      picture: an `passes.Picture` with a view.
      vocabulary: of its classes.
    """
    used = picture.labels >= 0
    image, segments = picture.view
    return View(image, segments, [(vocabulary.classes[p][0], vocabulary.classes[t][0])
                                  for p, t in zip(picture.found.mask_classes[used],
                                                  picture.labels[used])])


def view_of_segments(picture, truth: Truth) -> View:
    """Image, the segments that were found in it, what the model said, and what most of each is.

    Args:
      picture: a `passes.Picture` with panoptic segments.
      truth: of it.
    """
    image = truth.image(picture.image_id)
    ids, found = picture.found.panoptic
    true, names = truth.semantic(picture.image_id), [c[0] for c in truth.vocabulary.classes]
    segments, pairs = np.zeros_like(ids), []
    for number, segment in enumerate(found, start=1):
        inside = ids == segment["id"]
        segments[inside] = number
        known = true[inside & (true != IGNORE)]
        pairs.append((names[segment["category_id"]],
                      names[np.bincount(known).argmax()] if known.size else None))
    return View(image, segments, pairs)


def draw_extremes(extremes: list[tuple[str, float, np.ndarray]], truth: Truth):
    """Ground truth and result of the best pictures and the worst ones, the best first."""
    rows = []
    for name, score, labels in extremes:
        image = truth.image(name)
        true = truth.semantic(name)
        segments, classes = _segments_of(true)
        row = [(image, segments, [(truth.vocabulary.classes[c][0], None) for c in classes])]
        segments, classes = _segments_of(labels)
        row.append((image, segments, [(truth.vocabulary.classes[c][0], _is_right(true, labels, c))
                                      for c in classes]))
        rows.append(row)
    scores = [score for _, score, _ in extremes]
    return visualize.draw_comparison(
        rows, ["ground truth", f"found: mIoU {scores[0]:.0f} ... {scores[-1]:.0f}"])


def _is_right(true: np.ndarray, labels: np.ndarray, c: int) -> bool | None:
    """Whether most of what is known of a class' region is right; None where nothing is known."""
    known = true[(labels == c) & (true != IGNORE)]
    return bool((known == c).sum() * 2 > known.size) if known.size else None


def _segments_of(labels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """A label map as segments 1, 2, ..., and their classes; 0 where there is none."""
    classes = [int(c) for c in np.unique(labels) if c != IGNORE]
    table = np.zeros(IGNORE + 1, np.int32)
    table[classes] = np.arange(1, len(classes) + 1)
    return table[labels], classes


def _csv(columns: typing.Mapping[str, list]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    for row in zip(*columns.values()):
        rows.writerow(["" if x is None else f"{x:.4f}" if isinstance(x, float) else x
                       for x in row])
    return text.getvalue()
