"""What a model says of the masks of a picture: scores, maps, drawings, files."""

import functools
import pathlib
import typing

import numpy as np
from PIL import Image

from maskclippp_jax.data import annotation_files, bundle_tools, label_maps
from maskclippp_jax.data.annotation_files import Annotated
from maskclippp_jax.drawing import VIEWS, report, visualize
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.naming.ensembles import MaskScores
from maskclippp_jax.naming.given import Given, check_whole
from maskclippp_jax.naming.namer import Namer
from maskclippp_jax.naming.postprocess import Instances, boxes
from maskclippp_jax.naming.tiled import SomeMasks
from maskclippp_jax.runtime import storage
from maskclippp_jax.vocabulary import Vocabulary

_LARGEST = 2**34  # bytes of the masks of a picture at its size
_LONGEST = 2**15  # pixels of a side that is drawn
_MADE_AGAIN = ("soft_masks", "masks", "instances", "_found")  # of a copy, when they are asked for


class Unnamed(typing.NamedTuple):
    """Which masks get no name."""

    minimum_score: float = 0.0  # those whose best class scores less
    distractors: int = 0        # those whose best class is one of so many last ones


class Result:
    """The named masks of one picture; N masks, C classes, H x W pixels.

    What takes time (maps, masks at full size) is made when it is first asked for.

    A mask has no name if its best class scores too little or is a distractor (`api.Model.name`);
    such masks are in no map, drawing or file but the JSON, which says why.

    It can be pickled and copied; a copy has its maps and no model.

    Attributes:
      image: [H, W, 3] uint8.
      vocabulary: the classes, without distractors.
      from_label_map: whether the masks were a label map.
      ids: [N] int, what the masks are called: the numbers of a label map, else 1 ... N.
      scores: [N, C] float32 in 0 ... 1. A row sums to 1, or with `void` and what distractors have.
      nothing: numbers of its label map that meant nothing.
      void: [N] float32, that a mask is no object at all, as its generator has it; else 0.
    """

    def __init__(self, namer: Namer, given: Given, vocabulary: Vocabulary, scores: MaskScores,
                 unnamed: Unnamed = Unnamed()):
        """Made by `api.Model`; vocabulary and scores are with distractors."""
        self._namer, self._given = namer, given
        self._unnamed, self._all, self._scores = unnamed, vocabulary, scores
        self.image, self.ids = given.image, given.ids
        count = vocabulary.num_classes - unnamed.distractors
        self.vocabulary, self.scores = vocabulary.first(count), scores.classes[:, :count]
        self.void = scores.void
        self.nothing, self.from_label_map = given.nothing, given.segments is not None

    def __getstate__(self) -> dict:
        """What pickles and copies hold: no model, and so what only a model makes."""
        maps = {} if self.from_label_map else dict(labels=self.labels, panoptic=self.panoptic)
        kept = {name: value for name, value in vars(self).items() if name not in _MADE_AGAIN}
        return kept | maps | dict(_namer=None, _given=self._given._replace(bundle=None))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        found = ", ".join(dict.fromkeys(n or "no name" for n in self.names)) or "no mask"
        return f"<Result of {width}x{height} pixels, {len(self)} masks: {found}>"

    @property
    def classes(self) -> np.ndarray:
        """[N] int64, the best class of each mask, the first one on ties; -1: it has no name."""
        if not len(self):
            return np.zeros(0, np.int64)
        best = self._scores.classes.argmax(-1)
        return np.where(self._scores_enough & (best < self.vocabulary.num_classes), best, -1)

    @property
    def names(self) -> list[str | None]:
        """Of the best class of each mask; None: it has no name."""
        return [self.vocabulary.classes[c][0] if c >= 0 else None for c in self.classes]

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """The best classes of each mask with their scores, best first, distractors among them.

        Raises:
          ValueError: `count` is no whole number, or below 1.
        """
        check_whole("count", count, 1)
        order = np.argsort(-self._scores.classes, axis=-1, kind="stable")[:, :count]
        return [[(self._all.classes[c][0], float(row[c])) for c in best]
                for row, best in zip(self._scores.classes, order)]

    @functools.cached_property
    def soft_masks(self) -> np.ndarray:
        """[N, H, W] float32 in 0 ... 1, the masks at the picture's size."""
        if self._given.segments is not None:
            return self.masks.astype(np.float32)
        if self._given.large is not None:
            return self._given.large.soft()
        self._check_room(4)
        return bundle_tools.at_picture_size(self._given.masks, self.image.shape[:2])

    @functools.cached_property
    def masks(self) -> np.ndarray:
        """[N, H, W] bool, the masks at the picture's size; soft ones where they are above 0.5."""
        if self._given.segments is not None:
            self._check_room(1)
            return self._given.segments[None] == np.arange(1, len(self) + 1)[:, None, None]
        return self.soft_masks > 0.5

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """[N] int64, how many each mask has."""
        if self._given.segments is not None:
            return np.bincount(self._given.segments.ravel(), minlength=len(self) + 1)[1:]
        if self._given.large is not None:
            return self._given.large.pixels
        return self.masks.sum((1, 2))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[H, W] int32, the class of each pixel; -1 where no mask with a name is.

        Where masks overlap or are soft it is the class with the largest sum of score times mask.
        """
        if self._given.segments is not None:
            return np.append(-1, self.classes)[self._given.segments].astype(np.int32)
        if self._given.large is not None:
            labels = self._given.large.labels(self._competing.classes)
            return np.where(labels < self.vocabulary.num_classes, labels, -1)
        labels = self._found.labels.astype(np.int32)
        covered = (self.soft_masks[self._scores_enough] > 0).any(0)
        return np.where(covered & (labels < self.vocabulary.num_classes), labels, -1)

    @functools.cached_property
    def panoptic(self) -> tuple[np.ndarray, list[dict]]:
        """[H, W] int32 segment ids, 0 = nothing; and for each segment a dict.

        It has id, category_id (number of the class), isthing and name. Masks of one class that is
        stuff join one segment. Overlapping masks compete: at each pixel the one with the largest
        score times mask wins (Mask2Former's rule).
        """
        if self._given.segments is not None:
            ids, segments = self._panoptic_of_segments()
        elif self._given.large is not None:
            settings = self._namer.config.eval
            ids, segments = self._without_distractors(*self._given.large.panoptic(
                self._competing, self._all.is_thing, settings.object_threshold,
                settings.overlap_threshold))
        else:
            ids, segments = self._without_distractors(*self._found.panoptic)
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
        keep = order[(is_thing & (self.classes >= 0) & (self.pixels > 0))[order]]
        return Instances(best[keep].astype(np.float32), self.classes[keep].astype(np.int32),
                         self.masks[keep])

    def draw(self, *views: str, scores: bool = False, legend: bool = True,
             side: int | None = None) -> Image.Image:
        """The picture with its coloured and named segments, and a legend, largest class first.

        Args:
          *views: what stands side by side, each of "photograph"; "segments", all that is told
            apart: the masks of a label map, else the panoptic segments (of pictures looked at in
            tiles: the classes); "semantic", the classes; "instances", the things, likelier ones
            above others. None: "segments".
          scores: whether a segment's best score stands behind its name; the legend always has the
            best of each class.
          legend: whether there is one.
          side: pixels of the longer side of each picture, to which lines and letters are fitted;
            None: its own, but at most 1280 (several side by side: 800), and small pictures
            enlarged by a whole number.

        Raises:
          ValueError: there is no such view, or `side` is no whole number in 16 ... 32768.
        """
        views = views or VIEWS[1:2]
        for view in views:
            if view not in VIEWS:
                raise ValueError(f"there is no view {view!r}; choose from {', '.join(VIEWS)}")
        if side is None:
            side = visualize.side_for(self.image, len(views))
        check_whole("side", side, 16, _LONGEST)
        layers = {view: self._layer(view, side, scores) for view in views}
        return visualize.draw_layers(self.image, layers, self.labels,
                                     [c[0] for c in self.vocabulary.classes], self._strongest(),
                                     legend=legend, side=side)

    def _check_room(self, each: int) -> None:
        """Sees that there is room for the masks, `each` bytes a pixel.

        Raises:
          ValueError: there is none.
        """
        height, width = self.image.shape[:2]
        if len(self) * height * width * each > _LARGEST:
            raise ValueError(
                f"the {len(self)} masks of {self._given.path or 'a picture'} of {width}x{height} "
                f"pixels take more than {_LARGEST / 2**30:.0f} GiB; have it looked at in tiles "
                "(--tiles=1024, in Python tiles=1024), or make it smaller")

    def _strongest(self) -> dict[int, float]:
        """The best score of each class that is the best of some mask."""
        best = self.scores.max(-1, initial=0)
        return {int(c): float(best[self.classes == c].max())
                for c in np.unique(self.classes) if c >= 0}

    def _layer(self, view: str, side: int, scored: bool) -> visualize.Layer | None:
        """What a view of `draw` shows over the photograph."""
        height, width = visualize.size_at(self.image, side)
        if view == "photograph":
            return None
        if view == "instances":
            found, segments = self.instances, np.zeros((height, width), np.int32)
            for n in range(len(found.scores), 0, -1):
                segments[visualize.sampled(found.masks[n - 1], height, width)] = n
            return visualize.Layer(segments, found.classes.tolist(),
                                   found.scores.tolist() if scored else None)
        if view == "segments" and self._given.segments is not None:
            return visualize.Layer(self._given.segments, self.classes.tolist(),
                                   self.scores.max(-1, initial=0).tolist() if scored else None)
        if view == "segments" and self._given.large is None:
            ids, segments = self.panoptic
            return visualize.Layer(ids, [s["category_id"] for s in segments],
                                   [self._score_of(s) for s in segments] if scored else None)
        # Small first, as a copy of a large map takes gigabytes.
        small = visualize.sampled(self.labels, height, width)
        strongest, count = self._strongest(), self.vocabulary.num_classes
        return visualize.Layer(
            small + 1, list(range(count)),
            [strongest.get(c, 0.0) for c in range(count)] if scored else None, opacity=0.75)

    def _score_of(self, segment: dict) -> float:
        """Of a panoptic segment: the best of the mask of its class that covers most of it."""
        best, of_class = self.scores.max(-1), np.flatnonzero(
            self.classes == segment["category_id"])
        if len(of_class) > 1:  # which mask a segment is of is not kept
            shared = (self.masks[of_class] & (self.panoptic[0] == segment["id"])).sum((1, 2))
            of_class = of_class[shared == shared.max()]
        return float(best[of_class].max())

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return visualize.to_png(self.draw())

    def to_coco(self, image_id: int | str = 0) -> list[dict]:
        """The masks as results of COCO: image_id, category_id, segmentation, score, a row a mask.

        A category's id is the class' own in its data set; of a list of names, its place from 0.
        """
        return [dict(image_id=image_id, category_id=self.vocabulary.dataset_ids[c],
                     segmentation=run_lengths.encode(mask), score=float(row[c]))
                for mask, row, c in zip(self.masks, self.scores, self.classes) if c >= 0]

    def annotated(self, name: str | None = None) -> Annotated:
        """What annotation tools get of this picture: the masks that have a name and a pixel.

        Args:
          name: of its files, without ending; may have folders in it. None: of the picture's file.
        """
        kept = np.flatnonzero((self.classes >= 0) & (self.pixels > 0))
        large = self._given.large
        return Annotated(
            self._given.path or f"{self._given.name}.png", name or self._given.name,
            self.vocabulary, self.classes[kept], self.scores.max(-1, initial=0)[kept],
            self.masks[kept] if large is None else SomeMasks(large, kept))

    def to_coco_file(self) -> dict:
        """A whole file of COCO's form for this picture: images, annotations, categories."""
        return annotation_files.coco([self.annotated()])

    def to_labelme(self, image_path: str | None = None) -> dict:
        """A JSON of LabelMe; `image_path` is the picture's, as seen from where the JSON will lie
        (None: beside it)."""
        picture = self.annotated()
        return annotation_files.labelme(picture, image_path or pathlib.Path(picture.file).name)

    def to_yolo(self) -> str:
        """A text of YOLO: for each mask the place of its class from 0, and a polygon.

        YOLO has no holes and no parts: lines without width join them to one polygon.
        """
        return annotation_files.yolo(self.annotated())

    def to_voc(self) -> tuple[np.ndarray, np.ndarray]:
        """Label maps of Pascal VOC: [H, W] int32 of classes from 1, and of objects from 1."""
        return annotation_files.voc(self.annotated())

    def to_cvat(self) -> str:
        """An XML file "CVAT for images 1.1" of this picture."""
        return annotation_files.cvat([self.annotated()])

    def to_labelstudio(self) -> dict:
        """A task of Label Studio, whose predictions are the masks."""
        return annotation_files.label_studio(self.annotated())

    def to_supervision(self):
        """The masks as `supervision.Detections`: boxes, masks, scores, classes and their names.

        Raises:
          ImportError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ImportError("the package supervision is not installed; pip install supervision"
                              ) from None
        picture = self.annotated()
        masks = np.array(list(picture.masks), bool).reshape(picture.masks.shape)
        return supervision.Detections(
            xyxy=boxes(masks), mask=masks, confidence=picture.scores,
            class_id=picture.classes, data={"class_name": np.array(picture.names, str)})

    def to_json(self, *, masks_from: str = "", count: int = 5) -> dict:
        """Plain values: the picture's path, the classes, and for each mask its best names.

        The `name` of a mask may be None; `unnamed` says why.

        Args:
          masks_from: where the masks are from, for the reader.
          count: how many of the best names, at least 1.
        """
        masks = []
        for i, name, best, pixels in zip(self.ids, self.names, self.top(count), self.pixels):
            first, score = best[0]
            masks.append(dict(segment=int(i), name=name, score=score, pixels=int(pixels),
                              best=[dict(name=n, score=s) for n, s in best]))
            if name is None:
                few = score < self._unnamed.minimum_score
                masks[-1]["unnamed"] = (f"{first!r} scores less than {self._unnamed.minimum_score}"
                                        if few else f"{first!r} is a distractor")
        return dict(image=self._given.path, masks_from=masks_from,
                    classes=[list(c) for c in self.vocabulary.classes], masks=masks)

    def save(self, folder: storage.Name, name: str | None = None, *, masks_from: str = "",
             views: typing.Sequence[str] = ()) -> None:
        """Writes <name>.overlay.png, <name>.labels.png and <name>.json.

        The label map holds the number of a class, and nothing as `data.label_maps` has it.

        Args:
          folder: made if it is not there.
          name: may have folders in it; None: that of the picture's file.
          masks_from: see `to_json`.
          views: of the overlay, see `draw`.

        Raises:
          ValueError: there is no such view; nothing is written then.
        """
        if isinstance(views, str) or not isinstance(views, typing.Iterable):
            raise ValueError(f"got views={views!r}, wanted a list such as "
                             "[\"photograph\", \"segments\"]")
        place = storage.path(folder) / (name or self._given.name)
        contents = {  # all of them, before the first is written
            ".labels.png": visualize.label_map_png(label_maps.stored(self.labels)),
            ".overlay.png": visualize.to_png(self.draw(*views)),
            ".json": report.to_json(self.to_json(masks_from=masks_from))}
        place.parent.mkdir(parents=True, exist_ok=True)
        for ending, content in contents.items():
            storage.write(place.with_name(place.name + ending), content, durable=False)

    def _panoptic_of_segments(self) -> tuple[np.ndarray, list[dict]]:
        """Of a label map: each mask, or all of one stuff class, is a segment."""
        table, segments, stuff = np.zeros(len(self) + 1, np.int32), [], {}
        for n, c in enumerate(self.classes):
            if c < 0:
                continue
            if c not in stuff:
                segments.append(dict(id=len(segments) + 1, category_id=int(c),
                                     isthing=bool(self.vocabulary.is_thing[c])))
            table[n + 1] = stuff.get(c, len(segments))
            if not self.vocabulary.is_thing[c]:
                stuff.setdefault(c, len(segments))
        return table[self._given.segments], segments

    def _without_distractors(self, ids: np.ndarray, segments: list[dict]
                             ) -> tuple[np.ndarray, list[dict]]:
        kept = [s for s in segments if s["category_id"] < self.vocabulary.num_classes]
        table = np.zeros(len(segments) + 1, ids.dtype)
        table[[s["id"] for s in kept]] = np.arange(1, len(kept) + 1)
        return table[ids], [dict(s, id=n) for n, s in enumerate(kept, start=1)]

    @property
    def _scores_enough(self) -> np.ndarray:
        """[N] bool, whether the best score is no less than the least that gives a name."""
        return self._scores.classes.max(-1, initial=0) >= self._unnamed.minimum_score

    @functools.cached_property
    def _found(self):
        return self._namer.look(self._given, self._competing, self._all)

    @property
    def _competing(self) -> MaskScores:
        """Masks that score too little do not compete for pixels; those of distractors do."""
        return MaskScores(self._scores.classes * self._scores_enough[:, None], self.void)
