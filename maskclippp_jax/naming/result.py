"""What a model says of the masks of a picture: scores, maps, drawings, files."""

import functools

import numpy as np
from PIL import Image

from maskclippp_jax.data import bundle_tools, label_maps
from maskclippp_jax.drawing import report, visualize
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.given import Given
from maskclippp_jax.naming.namer import Namer
from maskclippp_jax.naming.postprocess import Instances
from maskclippp_jax.runtime import storage
from maskclippp_jax.vocabulary import Vocabulary


class Result:
    """The named masks of one picture; N masks, C classes, H x W pixels.

    What takes time (maps, masks at full size) is made when it is first asked for.

    Attributes:
      image: [H, W, 3] uint8.
      vocabulary: the classes.
      from_label_map: whether the masks were a label map.
      ids: [N] int, what the masks are called: the numbers of a label map, else 1 ... N.
      scores: [N, C] float32 in 0 ... 1. A row sums to 1, or with `void` to 1.
      nothing: numbers of its label map that meant nothing.
      void: [N] float32, that a mask is no object at all, as its generator has it; else 0.
    """

    def __init__(self, namer: Namer, given: Given, vocabulary: Vocabulary, scores: MaskScores):
        """Made by `api.Model`."""
        self._namer, self._given = namer, given
        self.image, self.ids, self.vocabulary = given.image, given.ids, vocabulary
        self.scores, self.void = scores
        self.nothing, self.from_label_map = given.nothing, given.segments is not None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        found = ", ".join(dict.fromkeys(self.names)) or "no mask"
        return f"<Result of {width}x{height} pixels, {len(self)} masks: {found}>"

    @property
    def classes(self) -> np.ndarray:
        """[N] int64, the best class of each mask, the first one on ties."""
        return self.scores.argmax(-1) if len(self) else np.zeros(0, np.int64)

    @property
    def names(self) -> list[str]:
        """Of the best class of each mask."""
        return [self.vocabulary.classes[c][0] for c in self.classes]

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """The best classes of each mask with their scores, best first."""
        order = np.argsort(-self.scores, axis=-1, kind="stable")[:, :count]
        return [[(self.vocabulary.classes[c][0], float(row[c])) for c in best]
                for row, best in zip(self.scores, order)]

    @functools.cached_property
    def soft_masks(self) -> np.ndarray:
        """[N, H, W] float32 in 0 ... 1, the masks at the picture's size."""
        if self._given.segments is not None:
            return self.masks.astype(np.float32)
        return bundle_tools.at_picture_size(self._given.masks, self.image.shape[:2])

    @functools.cached_property
    def masks(self) -> np.ndarray:
        """[N, H, W] bool, the masks at the picture's size; soft ones where they are above 0.5."""
        if self._given.segments is not None:
            return self._given.segments[None] == np.arange(1, len(self) + 1)[:, None, None]
        return self.soft_masks > 0.5

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """[N] int64, how many each mask has."""
        if self._given.segments is not None:
            return np.bincount(self._given.segments.ravel(), minlength=len(self) + 1)[1:]
        return self.masks.sum((1, 2))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[H, W] int32, the class of each pixel; -1 where no mask is.

        Where masks overlap or are soft it is the class with the largest sum of score times mask.
        """
        if self._given.segments is not None:
            return np.append(-1, self.classes)[self._given.segments].astype(np.int32)
        labels = self._found.labels.astype(np.int32)
        return np.where((self.soft_masks > 0).any(0), labels, -1)

    @functools.cached_property
    def panoptic(self) -> tuple[np.ndarray, list[dict]]:
        """[H, W] int32 segment ids, 0 = nothing; and for each segment a dict.

        It has id, category_id (number of the class), isthing and name. Masks of one class that is
        stuff join one segment. Overlapping masks compete: at each pixel the one with the largest
        score times mask wins (Mask2Former's rule).
        """
        if self._given.segments is not None:
            ids, segments = self._panoptic_of_segments()
        else:
            ids, segments = self._found.panoptic
        named = [dict(s, name=self.vocabulary.classes[s["category_id"]][0]) for s in segments]
        return ids.astype(np.int32), named

    @functools.cached_property
    def instances(self) -> Instances:
        """Masks whose best class is a thing: scores [n], classes [n], masks [n, H, W] bool.

        One for each mask with a pixel, likeliest first. The score is that of the class times the
        mean of the mask over its pixels.
        """
        mean = (self.soft_masks * self.masks).sum((1, 2)) / np.maximum(self.pixels, 1)
        best = self.scores.max(-1, initial=0) * mean
        is_thing = np.asarray(self.vocabulary.is_thing)[self.classes]
        order = np.argsort(-best, kind="stable")
        keep = order[(is_thing & (self.pixels > 0))[order]]
        return Instances(best[keep].astype(np.float32), self.classes[keep].astype(np.int32),
                         self.masks[keep])

    def draw(self) -> Image.Image:
        """The picture with its coloured and named segments."""
        names = [c[0] for c in self.vocabulary.classes]
        best = self.scores.max(-1, initial=0)
        strongest = {int(c): float(best[self.classes == c].max()) for c in np.unique(self.classes)}
        return visualize.draw_overlay(self.image, self.labels, names, strongest)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return visualize.to_png(self.draw())

    def to_coco(self, image_id: int | str = 0) -> list[dict]:
        """The masks as results of COCO: image_id, category_id, segmentation, score, a row a mask.

        A category's id is the class' own in its data set; of a list of names, its place from 0.
        """
        return [dict(image_id=image_id, category_id=self.vocabulary.dataset_ids[c],
                     segmentation=run_lengths.encode(mask), score=float(row[c]))
                for mask, row, c in zip(self.masks, self.scores, self.classes)]

    def to_json(self, *, masks_from: str = "", count: int = 5) -> dict:
        """Plain values: the picture's path, the classes, and for each mask its best names.

        Args:
          masks_from: where the masks are from, for the reader.
          count: how many of the best names.
        """
        masks = []
        for i, best, pixels in zip(self.ids, self.top(count), self.pixels):
            name, score = best[0]
            masks.append(dict(segment=int(i), name=name, score=score, pixels=int(pixels),
                              best=[dict(name=n, score=s) for n, s in best]))
        return dict(image=self._given.path, masks_from=masks_from,
                    classes=[list(c) for c in self.vocabulary.classes], masks=masks)

    def save(self, folder: storage.Name, name: str | None = None, *, masks_from: str = "") -> None:
        """Writes <name>.overlay.png, <name>.labels.png and <name>.json.

        The label map holds the number of a class, and nothing as `data.label_maps` has it.

        Args:
          folder: made if it is not there.
          name: may have folders in it; None: that of the picture's file.
          masks_from: see `to_json`.
        """
        place = storage.path(folder) / (name or self._given.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = lambda ending: place.with_name(place.name + ending)
        numbers = label_maps.stored(self.labels)
        storage.write(beside(".labels.png"), visualize.label_map_png(numbers),
                      durable=False)
        storage.write(beside(".overlay.png"), visualize.to_png(self.draw()), durable=False)
        report.write_json(beside(".json"), self.to_json(masks_from=masks_from),
                          durable=False)

    def _panoptic_of_segments(self) -> tuple[np.ndarray, list[dict]]:
        """Of a label map: each mask, or all of one stuff class, is a segment."""
        table, segments, stuff = np.zeros(len(self) + 1, np.int32), [], {}
        for n, c in enumerate(self.classes):
            if c not in stuff:
                segments.append(dict(id=len(segments) + 1, category_id=int(c),
                                     isthing=bool(self.vocabulary.is_thing[c])))
            table[n + 1] = stuff.get(c, len(segments))
            if not self.vocabulary.is_thing[c]:
                stuff.setdefault(c, len(segments))
        return table[self._given.segments], segments

    @functools.cached_property
    def _found(self):
        return self._namer.look(self._given, MaskScores(self.scores, self.void), self.vocabulary)
