"""Whether there is anything to learn from data sets, before anything is loaded."""

import typing

import numpy as np
from absl import logging

from maskclippp_jax.data import records
from maskclippp_jax.vocabulary import Vocabulary

_LOOKED_AT = 256  # pictures of a data set of which nobody counted the masks
_BARE = 0.1       # share of pictures without a mask above which people are told


def check(sources: typing.Mapping[str, records.Source], vocabulary: Vocabulary) -> None:
    """Refuses data from which nothing can be learnt, and says what part of others teaches nothing.

    Args:
      sources: the data sets by name.
      vocabulary: of all of them.

    Raises:
      ValueError: no mask can be learnt, or there is nothing to tell apart.
    """
    if vocabulary.num_classes < 2:
        raise ValueError(f"{vocabulary.name} has one class, {vocabulary.classes[0][0]!r}: training "
                         "tells classes apart, so there is nothing to learn; add at least one "
                         "more, such as what the masks of the first are mistaken for")
    facts = {name: source.learnable or _look(source.records) for name, source in sources.items()}
    if not any(f.masks for f in facts.values()):
        raise ValueError(f"{', '.join(sources)} has no mask that can be learnt (all are crowds, "
                         "empty, or covered), so training would change nothing; prepare the data "
                         "set again and look at its warnings")
    for name, source in sources.items():
        looked_at = len(source.records) if source.learnable else min(
            len(source.records), _LOOKED_AT)
        share = facts[name].bare / max(looked_at, 1)
        if share > _BARE:
            logging.warning("%.0f %% of the pictures of %s have no mask that can be learnt",
                            100 * share, name)
    if all(source.learnable for source in sources.values()):
        absent = [names[0] for c, names in enumerate(vocabulary.classes)
                  if not any(f.masks.get(c) for f in facts.values())]
        if absent:
            logging.warning("%d of %d classes have no mask that can be learnt: %s%s", len(absent),
                            vocabulary.num_classes, ", ".join(absent[:8]),
                            ", ..." if len(absent) > 8 else "")


def _look(rows: typing.Sequence[dict]) -> records.Learnable:
    """Counts the masks of some pictures, and of all until there is one."""
    some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(int))
    order = [*some, *np.setdiff1d(np.arange(len(rows)), some)]
    masks: dict[int, int] = {}
    bare = 0
    for count, number in enumerate(order):
        if count >= len(some) and masks:
            break
        row = rows[int(number)]
        segments, table = records.decode_segments(row["segments"]), row["table"]
        ids = np.asarray(table["id"], np.int64)
        pixels = np.bincount(segments.ravel(), minlength=int(ids.max(initial=0)) + 1)
        learnable = (pixels[ids] >= records.LEARNABLE) & ~np.asarray(table["is_crowd"])
        bare += count < len(some) and not learnable.any()
        for c in np.asarray(table["class_id"])[learnable].tolist():
            masks[c] = masks.get(c, 0) + 1
    return records.Learnable(bare, masks)
