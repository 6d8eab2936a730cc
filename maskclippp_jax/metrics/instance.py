"""Average precision of instance masks, by COCO's own scorer (pycocotools).

LVIS (Gupta et al. 2019) annotates a class in some of its pictures only: of a picture it says which
classes are certainly absent, and of which there may be more than is annotated. Its average
precision, here by the same scorer, looks at a class only in pictures where it is annotated or
absent, and predictions that match nothing do not count where there may be more.
"""

import collections
import contextlib
import io
import json
import typing

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskclippp_jax import metrics
from maskclippp_jax.metrics import run_lengths

_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_GROUPS = dict(r="APr", c="APc", f="APf")  # rare, common and frequent classes of LVIS
_LVIS_MOST = 300  # predictions of a picture


class InstanceSegmentation:
    """Keeps masks as run lengths, and scores them at the end.

    A picture's place is given by its id: neither the order of pictures nor the host that saw them
    matters.
    """

    def __init__(self, categories: typing.Iterable[int],
                 frequency: typing.Mapping[int, str] | None = None, *,
                 seen: typing.Collection[int] | None = None):
        """Starts without pictures.

        Args:
          categories: the ids of all categories.
          frequency: "r", "c" or "f" for each category of LVIS, whose rules hold then; None: every
            class is annotated in every picture, and COCO's hold.
          seen: ids of the categories known from training; None: not told apart.
        """
        self.categories, self.frequency = sorted(categories), frequency
        self.seen = None if seen is None else np.isin(self.categories, list(seen))
        self.reset()

    def reset(self) -> None:
        self._pictures: dict[int | str, dict] = {}

    def process(self, image_id: int | str, predicted: typing.Sequence[dict],
                true: typing.Sequence[dict], negative: typing.Sequence[int] = (),
                not_exhaustive: typing.Sequence[int] = ()) -> None:
        """Adds a picture.

        Of one category the 100 predictions with the highest scores count, the earlier ones on ties;
        by the rules of LVIS the 300 of the whole picture.

        Args:
          image_id: of this picture, different from all others; numbers come before names,
            and are names once a state was saved.
          predicted: dict(category_id, score, segmentation) of each, run lengths as
            `run_lengths.encode` makes them.
          true: dict(category_id, segmentation, iscrowd, area) of each; the area as recorded decides
            whether a mask is small (< 32²), medium, or large (> 96²).
          negative, not_exhaustive: categories that are certainly absent, and those of which there
            may be more than in `true`; for the rules of LVIS.

        Raises:
          ValueError: a picture that was here before, an unknown category, damaged masks or those
            of different sizes, a score that is no number, or categories where COCO's rules have no
            use for them; nothing is added then.
        """
        if self.frequency is None and (len(negative) or len(not_exhaustive)):
            raise ValueError(f"picture {image_id} says which classes are not annotated in it, as "
                             "LVIS does; give the frequency of classes, for the rules of LVIS")
        if image_id in self._pictures:
            raise ValueError(f"the picture {image_id} was given before; every picture counts once")
        named = {x["category_id"] for x in (*predicted, *true)}
        unknown = sorted({*named, *negative, *not_exhaustive} - set(self.categories))
        if unknown:
            raise ValueError(f"picture {image_id} has masks of the unknown categories "
                             f"{unknown[:3]}; there are {self.categories[0]} ... "
                             f"{self.categories[-1]}")
        codes = {what: [_checked(x["segmentation"], f"picture {image_id}: the {what} mask {n}")
                        for n, x in enumerate(masks)]
                 for what, masks in (("predicted", predicted), ("true", true))}
        sizes = {tuple(code["size"]) for rows in codes.values() for code in rows}
        if len(sizes) > 1:
            raise ValueError(f"picture {image_id} has masks of the sizes {sorted(sizes)[:3]}; "
                             "bring predictions to the stored size of the picture")
        scores = [float(x["score"]) for x in predicted]
        if not np.isfinite(scores).all():
            raise ValueError(f"picture {image_id} has a score that is not finite")
        picture = dict(
            size=[int(n) for n in min(sizes, default=(0, 0))],
            predicted=[dict(category_id=int(x["category_id"]), score=score, segmentation=code)
                       for x, score, code in zip(predicted, scores, codes["predicted"])],
            true=[dict(category_id=int(x["category_id"]), iscrowd=int(x["iscrowd"]),
                       area=float(x["area"]), segmentation=code)
                  for x, code in zip(true, codes["true"])])
        if self.frequency is not None:
            # As the package of LVIS selects annotations: those without area are as if not there,
            # predictions once the best are chosen.
            picture["true"] = [x for x in picture["true"] if x["area"] > 0]
            about = {x["category_id"] for x in picture["true"]} | {int(i) for i in negative}
            best = sorted(picture["predicted"], key=lambda x: -x["score"])[:_LVIS_MOST]
            picture |= dict(about=sorted(about), open=[int(i) for i in not_exhaustive], predicted=[
                x for x in best
                if x["category_id"] in about and run_lengths.area(x["segmentation"]) > 0])
        self._pictures[image_id] = picture

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `AP` (mean over IoU 0.50, 0.55 ... 0.95), `AP50`, `AP75`, and `APs`, `APm`, `APl` by size:
        means over categories with ground truth. `per_category`: AP of each id. By the rules of LVIS
        also `APr`, `APc`, `APf`, of rare, common and frequent classes; with `seen` also `AP_seen`
        and `AP_unseen`, where there are both.
        """
        precision = self.precision()[0]
        defined = lambda x: metrics.mean(100 * x[x > -1].astype(np.float64))
        parts = (precision[..., 0], precision[0, ..., 0], precision[5, ..., 0],
                 *(precision[..., area] for area in (1, 2, 3)))
        numbers = dict(zip(_NUMBERS, map(defined, parts)))
        for letter, name in (_GROUPS if self.frequency is not None else {}).items():
            numbers[name] = defined(precision[
                :, :, [self.frequency[i] == letter for i in self.categories], 0])
        if self.seen is not None and self.seen.any() and not self.seen.all():
            numbers |= dict(AP_seen=defined(precision[:, :, self.seen, 0]),
                            AP_unseen=defined(precision[:, :, ~self.seen, 0]))
        return dict(numbers, pictures=len(self._pictures),
                    per_category={category: defined(precision[:, :, k, 0])
                                  for k, category in enumerate(self.categories)})

    def precision(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision [10 IoU, 101 recalls, K, 4 areas] and recall [10 IoU, K, 4 areas], -1 where a
        category has no ground truth; areas are all, small, medium, large."""
        images, truth, found = [], [], []
        for number, name in enumerate(self._in_order(), start=1):
            picture = self._pictures[name]
            images.append(dict(id=number, height=picture["size"][0], width=picture["size"][1]))
            # Ids count from 1: the scorer takes a match with id 0 for none.
            truth += [dict(x, id=len(truth) + k, image_id=number)
                      for k, x in enumerate(picture["true"], start=1)]
            found += [dict(x, id=len(found) + k, image_id=number, iscrowd=0,
                           area=float(run_lengths.area(x["segmentation"])))
                      for k, x in enumerate(picture["predicted"], start=1)]
        if not images:
            shape = 10, 101, len(self.categories), 4
            return np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
        if self.frequency is not None:
            return self._precision_of_lvis(images, truth, found)
        return _score(COCOeval(_as_coco(images, self.categories, truth),
                               _as_coco(images, self.categories, found), "segm"))

    def _precision_of_lvis(self, images: list[dict], truth: list[dict], found: list[dict]
                           ) -> tuple[np.ndarray, np.ndarray]:
        # Each class apart, with the pictures that say something about it: these are few.
        about, true, predicted, open_ended = (collections.defaultdict(list) for _ in range(4))
        for image, name in zip(images, self._in_order()):
            for category in self._pictures[name]["about"]:
                about[category].append(image)
            for category in self._pictures[name]["open"]:
                open_ended[category].append(image["id"])
        for of_class, rows in ((true, truth), (predicted, found)):
            for row in rows:
                of_class[row["category_id"]].append(row)
        precision, recall = zip(*(
            _score(_Federated(*(_as_coco(about[c], [c], rows[c]) for rows in (true, predicted)),
                              set(open_ended[c])))
            for c in self.categories))
        return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)

    def _in_order(self) -> list[int | str]:
        return sorted(self._pictures, key=lambda image_id: (isinstance(image_id, str), image_id))

    def state(self) -> dict[str, np.ndarray]:
        return dict(categories=np.array(self.categories), pictures=np.frombuffer(
            json.dumps(self._pictures).encode(), np.uint8))

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        if state["categories"].tolist() != self.categories:
            raise ValueError(f"the saved masks are of {len(state['categories'])} categories, "
                             f"wanted the same {len(self.categories)}; evaluate anew")
        pictures = json.loads(state["pictures"].tobytes())
        twice = sorted(set(pictures) & set(self._pictures))
        if twice:
            raise ValueError(f"the picture {twice[0]} was given before; every picture counts once")
        self._pictures.update(pictures)


class _Federated(COCOeval):
    """Of pictures in which there may be more than is annotated, what matches nothing is ignored."""

    def __init__(self, truth: COCO, found: COCO, open_ended: set[int]):
        super().__init__(truth, found, "segm")
        self.params.maxDets, self._open_ended = [_LVIS_MOST], open_ended

    def evaluateImg(self, imgId, catId, aRng, maxDet):  # as COCOeval names them
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if result is not None and imgId in self._open_ended:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result


def _score(scorer: COCOeval) -> tuple[np.ndarray, np.ndarray]:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        scorer.evaluate()
        scorer.accumulate()
    return scorer.eval["precision"][..., -1], scorer.eval["recall"][..., -1]


def _as_coco(images: list[dict], categories: list[int], annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = dict(images=images, annotations=annotations,
                        categories=[dict(id=i) for i in categories])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _checked(segmentation: typing.Mapping, name: str) -> dict:
    try:
        return run_lengths.read(segmentation)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
