"""Tiles of large pictures put together again before they are counted."""

import typing

import jax
import numpy as np

from maskclippp_jax.evaluation.passes import Picture
from maskclippp_jax.evaluation.truth import Truth


def check(truth: Truth, *, allow_missing: bool) -> None:
    """Refuses what tiles cannot be joined with.

    Raises:
      ValueError: several processes, which would share the tiles of a picture, or missing tiles.
    """
    if not truth.tiles:
        return
    if jax.process_count() > 1:
        raise ValueError(f"{truth.what} consists of tiles of larger pictures, which one process "
                         f"has to join, and there are {jax.process_count()}; evaluate it on one "
                         "host")
    if allow_missing:
        raise ValueError(f"{truth.what} consists of tiles of larger pictures, none of which may be "
                         "missing; leave --allow_missing out")


def whole_pictures(pictures: typing.Iterable[Picture], truth: Truth
                   ) -> typing.Iterator[tuple[str, list[Picture], np.ndarray | None]]:
    """Each picture with the results of its tiles, once all of them are there.

    Yields:
      The id, the results (one, if the picture is no tile; of a mask that several tiles show only
      the one that shows most of it keeps its true class), and the label map [H, W] if there is one.
    """
    waiting: dict[str, list[Picture]] = {}
    for picture in pictures:
        name = truth.whole_of(picture.image_id)
        tiles = waiting.setdefault(name, [])
        tiles.append(picture)
        if len(tiles) < len(truth.tiles.get(name, [name])):
            continue
        del waiting[name]
        if not truth.tiles:
            yield name, tiles, picture.found.labels
            continue
        found = {tile.image_id: tile.found.labels for tile in tiles}
        labels = None if picture.found.labels is None else truth.join(
            name, found.__getitem__, 0)  # where no tile is there is no truth
        yield name, _each_mask_once(tiles, truth), labels


def _each_mask_once(tiles: list[Picture], truth: Truth) -> list[Picture]:
    if len(tiles) == 1 or tiles[0].labels is None:
        return tiles
    best: dict[int, tuple[float, int, int]] = {}  # of a mask's id: its area, tile and slot
    for number, tile in enumerate(tiles):
        for slot, (i, area) in enumerate(truth.masks_in(tile.image_id)):
            if area > best.get(i, (0, 0, 0))[0]:
                best[i] = area, number, slot
    kept = [np.full_like(tile.labels, -1) for tile in tiles]
    for _, number, slot in best.values():
        kept[number][slot] = tiles[number].labels[slot]
    return [tile._replace(labels=labels) for tile, labels in zip(tiles, kept)]
