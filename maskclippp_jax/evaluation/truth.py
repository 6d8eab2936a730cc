"""The ground truth of an evaluation: one prepared data set, or several of the same pictures.

The kind of a data set decides what it is the truth of. ADE20K, for example, has label maps,
panoptic segments and instances in three data sets; a table of all results needs all three.
"""

import dataclasses
import functools
import importlib.resources
import typing

import numpy as np

from maskclippp_jax import metrics
from maskclippp_jax.data import bundles, pipeline, records, tiling
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.vocabulary import Vocabulary

NAMED_BY = "in the names of"  # in a vocabulary's name: what follows is a file
IGNORE = 65535  # pixels without a class
KINDS = {"semantic": "semantic", "panoptic": "panoptic", "instance": "instances"}


class Segments(typing.NamedTuple):
    """The true segments of a picture, crowds left out."""

    masks: np.ndarray    # [m, H, W] bool, none of them empty; of instances they may overlap
    classes: np.ndarray  # [m] ints
    counted: np.ndarray  # [H, W] bool: where there is truth


class Truth:
    """Random access to the truth of pictures.

    Attributes:
      what: the data sets and their split, for messages.
      sources: as given.
      records, vocabulary: of the first data set, whose pictures are evaluated; predictions are its
        classes.
      ids: of its pictures, in order.
      parts: what there is truth of, some of "semantic", "panoptic" and "instances".
      tiles: where pictures are tiles of larger ones, the ids of each of those with their tiles;
        `semantic` and `image` know these ids as well. Else empty.
    """

    def __init__(self, sources: typing.Mapping[str, records.Source], split: str):
        """Puts data sets together.

        Args:
          sources: by their names; one of each kind at most.
          split: of all.

        Raises:
          ValueError: two data sets of one kind, other classes, too many, or pictures that one of
            them lacks.
        """
        self.what, self.sources = f"{', '.join(sources)} {split}", dict(sources)
        first, *others = sources.values()
        self.records, self.vocabulary = first.records, first.vocabulary
        metrics.check_count(self.vocabulary.num_classes, self.what)
        self.ids = [records.id_of(first.records[i]) for i in range(len(first.records))]
        self._of: dict[str, tuple[records.Source, dict[str, int]]] = {}
        for name, source in sources.items():
            part = KINDS[source.kind]
            if part in self._of:
                raise ValueError(f"{self.what} has two data sets of the kind {source.kind}; give "
                                 "one of each kind at most")
            rows = {records.id_of(source.records[i]): i for i in range(len(source.records))}
            missing = [i for i in self.ids if i not in rows]
            if missing:
                raise ValueError(f"{name} lacks {bundles.some(missing)} of the {len(self.ids)} of "
                                 f"{next(iter(sources))}; give data sets of the same pictures")
            ids = self.vocabulary.dataset_ids
            fits = (set(source.vocabulary.dataset_ids) <= set(ids) if part == "instances"
                    else source.vocabulary.dataset_ids == ids)
            if not fits:
                raise ValueError(f"{name} has the classes of {source.vocabulary.name}, "
                                 f"{next(iter(sources))} those of {self.vocabulary.name}; give "
                                 "data sets of the same classes")
            self._of[part] = source, rows
        self.parts = [part for part in KINDS.values() if part in self._of]
        if "panoptic" in self._of and "semantic" not in self._of:
            self.parts.insert(0, "semantic")
        self.tiles: dict[str, list[str]] = {}
        for name in self.ids if first.is_tiled else ():
            place = tiling.place_of(name)
            self.tiles.setdefault(place[0] if place else name, []).append(name)

    @property
    def pictures(self) -> list[str]:
        """Ids of the pictures whose label maps are counted: whole ones."""
        return list(self.tiles) or self.ids

    def whole_of(self, image_id: str) -> str:
        """The id of the picture that a tile is of; without tiles the picture's own."""
        place = tiling.place_of(image_id) if self.tiles else None
        return place[0] if place else image_id

    def join(self, image_id: str, read: typing.Callable[[str], np.ndarray], nothing: int
             ) -> np.ndarray:
        """An array of a whole picture, of those of its tiles.

        Where tiles overlap the one counts in which a pixel lies farthest from the edge.

        Args:
          image_id: of the whole.
          read: gives the array [h, w, ...] of a tile.
          nothing: stands where no tile is.
        """
        first = tiling.place_of(self.tiles[image_id][0])
        if first is None:
            return read(image_id)
        _, _, size = first
        joined, deepest = None, np.zeros(size, np.float32)
        for name in self.tiles[image_id]:
            array, (_, (top, left), _) = read(name), tiling.place_of(name)
            if joined is None:
                joined = np.full((*size, *array.shape[2:]), nothing, array.dtype)
            window = tiling.Window(top, left, top + array.shape[0], left + array.shape[1])
            depth = tiling.depth(window, size)
            better = depth > deepest[window.slices]
            joined[window.slices][better] = array[better]
            deepest[window.slices][better] = depth[better]
        return joined

    def image(self, image_id: str) -> np.ndarray:
        """[H, W, 3] uint8, the picture."""
        if image_id in self.tiles and self.tiles[image_id] != [image_id]:
            return self.join(image_id, self.image, 0)
        return pipeline.decode(self.records[self._place[image_id]])[0]

    def masks_in(self, image_id: str) -> list[tuple[int, float]]:
        """The id and the area of each mask of a picture; tiles of one have the same ids."""
        table = self.records[self._place[image_id]]["table"]
        return list(zip(table["id"].tolist(), table["area"].tolist()))

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    @property
    def categories(self) -> dict[int, bool]:
        """For each id that the panoptic data set gives to a category whether it is a thing."""
        return dict(zip(self.vocabulary.dataset_ids, self.vocabulary.is_thing))

    def ids_of(self, flags: np.ndarray | None) -> list[int] | None:
        """The ids of the categories that have a flag, such as `seen` [C] bool; None of None."""
        if flags is None:
            return None
        return [i for i, flag in zip(self.vocabulary.dataset_ids, flags) if flag]

    @property
    def instance_categories(self) -> list[int]:
        """The ids that the data set of instances gives to its things."""
        vocabulary = self._of["instances"][0].vocabulary
        return [i for i, thing in zip(vocabulary.dataset_ids, vocabulary.is_thing) if thing]

    @property
    def instance_frequency(self) -> dict[int, str] | None:
        """For each category of LVIS how many pictures for training have it: "r" (10 at most), "c"
        (100 at most) or "f"; None for other data sets."""
        vocabulary = self._of["instances"][0].vocabulary
        if vocabulary.name.partition(f" {NAMED_BY} ")[0] != "lvis_1203":
            return None
        file = importlib.resources.files("maskclippp_jax.data") / "lvis_frequency.txt"
        return dict(zip(vocabulary.dataset_ids, file.read_text().split()[-1], strict=True))

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of each picture."""
        return records.sizes_of(self.records)

    def semantic(self, image_id: str) -> np.ndarray:
        """[H, W] int32 classes, `IGNORE` where there is none; of panoptic truth if need be."""
        if self.tiles.get(image_id, [image_id]) != [image_id]:
            return self.join(image_id, self.semantic, IGNORE)
        part = "semantic" if "semantic" in self._of else "panoptic"
        return records.decode_classes(self.record(image_id, part), IGNORE)

    def panoptic(self, image_id: str) -> tuple[np.ndarray, list[dict]]:
        """[H, W] ids of segments (0 = nothing), and what `PanopticQuality` wants of each."""
        record = self.record(image_id, "panoptic")
        table, ids = record["table"], self.vocabulary.dataset_ids
        segments = [
            dict(id=int(i), category_id=ids[c], iscrowd=int(crowd), area=float(area))
            for i, c, crowd, area in zip(*(table[k] for k in ("id", "class_id", "is_crowd",
                                                              "area")))]
        return records.decode_segments(record["segments"]).astype(np.int64), segments

    def instances(self, image_id: str) -> dict[str, list]:
        """What `InstanceSegmentation.process` wants to know: true, negative, not_exhaustive."""
        record = self.record(image_id, "instances")
        table, ids = record["table"], self._of["instances"][0].vocabulary.dataset_ids
        rows = zip(records.decode_masks(record), *(table[k] for k in (
            "class_id", "is_thing", "is_crowd", "area")))
        return dict(
            true=[dict(category_id=ids[c], segmentation=run_lengths.encode(mask),
                       iscrowd=int(crowd), area=float(area))
                  for mask, c, thing, crowd, area in rows if thing],
            negative=[ids[c] for c in record["negative_classes"]],
            not_exhaustive=[ids[c] for c in record["not_exhaustive_classes"]])

    @property
    def segments_of(self) -> str:
        """Which part `segments` are of: the one that tells most of them apart."""
        return next(p for p in ("panoptic", "instances", "semantic") if p in self._of)

    def segments(self, image_id: str) -> Segments:
        """Single segments: panoptic ones, else instances, else the region of each class."""
        part = self.segments_of
        record, vocabulary = self.record(image_id, part), self._of[part][0].vocabulary
        table, masks = record["table"], records.decode_masks(record)
        kept = masks.any((1, 2)) & ~np.array(table["is_crowd"], bool)
        counted = records.decode_segments(record["segments"]) > 0
        if part == "instances":  # what else is in the picture nobody said
            kept &= np.array(table["is_thing"], bool)
            counted = np.ones_like(counted)
        place = {i: n for n, i in enumerate(self.vocabulary.dataset_ids)}
        classes = [place[vocabulary.dataset_ids[c]] for c in np.array(table["class_id"])[kept]]
        return Segments(masks[kept], np.array(classes, np.int64), counted)

    def record(self, image_id: str, part: str) -> dict:
        """A picture's record in the data set that is the truth of a part."""
        source, rows = self._of[part]
        return source.records[rows[image_id]]


def open_truth(data_dir: str, names: str, split: str, names_file: str | None = None) -> Truth:
    """Opens prepared data sets.

    Args:
      data_dir: folder of all.
      names: of the data sets, separated by commas.
      split: of all.
      names_file: other names for the classes of the first one, see `renamed`.
    """
    sources = {name: records.open_source(data_dir, name, split) for name in names.split(",")}
    return Truth(renamed(sources, names_file) if names_file else sources, split)


def renamed(sources: typing.Mapping[str, records.Source], names_file: str
            ) -> dict[str, records.Source]:
    """Data sets whose classes have other names; labels stay as they are.

    Args:
      sources: by their names.
      names_file: a class a line. Lines belong to classes by the numbers in the third column if
        these are the classes' own, else by their order.

    Raises:
      ValueError: another number of classes.
    """
    given, old = Vocabulary.from_file(names_file), next(iter(sources.values())).vocabulary
    if given.num_classes != old.num_classes:
        raise ValueError(f"--names_file={names_file} has {given.num_classes} classes, "
                         f"{next(iter(sources))} {old.num_classes}; give a line for each")
    of_lines = (given.dataset_ids if set(given.dataset_ids) == set(old.dataset_ids)
                else old.dataset_ids)
    by_id = dict(zip(of_lines, given.classes))

    def rename(source: records.Source) -> records.Source:
        vocabulary = source.vocabulary
        if not set(vocabulary.dataset_ids) <= set(by_id):
            return source  # which `Truth` refuses
        return source._replace(vocabulary=dataclasses.replace(
            vocabulary, classes=tuple(by_id[i] for i in vocabulary.dataset_ids),
            name=f"{vocabulary.name} {NAMED_BY} {given.name}"))

    return {name: rename(source) for name, source in sources.items()}
