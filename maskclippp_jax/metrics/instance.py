"""Average precision of instance masks, by COCO's own scorer (pycocotools)."""

import contextlib
import io
import json
import typing

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskclippp_jax import metrics

_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class InstanceSegmentation:
    """Keeps masks as run lengths, and scores them at the end.

    A picture's place is given by its id: neither the order of pictures nor the host that saw them
    matters.
    """

    def __init__(self, categories: typing.Iterable[int]):
        """Args: categories: the ids of all categories."""
        self.categories = sorted(categories)
        self.reset()

    def reset(self) -> None:
        self._pictures: dict[str, dict] = {}

    def process(self, image_id: str, predicted: typing.Sequence[dict],
                true: typing.Sequence[dict]) -> None:
        """Adds a picture.

        Of one category the 100 predictions with the highest scores count, the earlier ones on ties.

        Args:
          image_id: of this picture, different from all others.
          predicted: dict(category_id, score, segmentation) of each, run lengths as `encode` makes
            them.
          true: dict(category_id, segmentation, iscrowd, area) of each; the area as recorded decides
            whether a mask is small (< 32²), medium, or large (> 96²).

        Raises:
          ValueError: a picture that was here before, an unknown category, masks of different sizes,
            or a score that is no number; nothing is added then.
        """
        if image_id in self._pictures:
            raise ValueError(f"the picture {image_id} was given before; every picture counts once")
        unknown = sorted({x["category_id"] for x in (*predicted, *true)} - set(self.categories))
        if unknown:
            raise ValueError(f"picture {image_id} has masks of the unknown categories "
                             f"{unknown[:3]}; there are {self.categories[0]} ... "
                             f"{self.categories[-1]}")
        sizes = {tuple(x["segmentation"]["size"]) for x in (*predicted, *true)}
        if len(sizes) > 1:
            raise ValueError(f"picture {image_id} has masks of the sizes {sorted(sizes)[:3]}; "
                             "bring predictions to the stored size of the picture")
        scores = [float(x["score"]) for x in predicted]
        if not np.isfinite(scores).all():
            raise ValueError(f"picture {image_id} has a score that is not finite")
        self._pictures[image_id] = dict(
            size=[int(n) for n in min(sizes, default=(0, 0))],
            predicted=[dict(category_id=int(x["category_id"]), score=score,
                            segmentation=_plain(x["segmentation"]))
                       for x, score in zip(predicted, scores)],
            true=[dict(category_id=int(x["category_id"]), iscrowd=int(x["iscrowd"]),
                       area=float(x["area"]), segmentation=_plain(x["segmentation"]))
                  for x in true])

    def evaluate(self) -> dict:
        """Percentages; None where nothing is to be averaged.

        `AP` (mean over IoU 0.50, 0.55 ... 0.95), `AP50`, `AP75`, and `APs`, `APm`, `APl` by size:
        means over categories with ground truth. `per_category`: AP of each id.
        """
        precision = self.precision()[0]
        defined = lambda x: metrics.mean(100 * x[x > -1].astype(np.float64))
        parts = (precision[..., 0], precision[0, ..., 0], precision[5, ..., 0],
                 *(precision[..., area] for area in (1, 2, 3)))
        return dict(zip(_NUMBERS, map(defined, parts)), pictures=len(self._pictures),
                    per_category={category: defined(precision[:, :, k, 0])
                                  for k, category in enumerate(self.categories)})

    def precision(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision [10 IoU, 101 recalls, K, 4 areas] and recall [10 IoU, K, 4 areas], -1 where a
        category has no ground truth; areas are all, small, medium, large."""
        images, truth, found = [], [], []
        for number, name in enumerate(sorted(self._pictures), start=1):
            picture = self._pictures[name]
            images.append(dict(id=number, height=picture["size"][0], width=picture["size"][1]))
            # Ids count from 1: the scorer takes a match with id 0 for none.
            truth += [dict(x, id=len(truth) + k, image_id=number)
                      for k, x in enumerate(picture["true"], start=1)]
            found += [dict(x, id=len(found) + k, image_id=number, iscrowd=0,
                           area=float(rle.area(x["segmentation"])))
                      for k, x in enumerate(picture["predicted"], start=1)]
        if not images:
            shape = 10, 101, len(self.categories), 4
            return np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            scorer = COCOeval(*(self._as_coco(images, x) for x in (truth, found)), "segm")
            scorer.evaluate()
            scorer.accumulate()
        return scorer.eval["precision"][..., -1], scorer.eval["recall"][..., -1]

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

    def _as_coco(self, images: list[dict], annotations: list[dict]) -> COCO:
        coco = COCO()
        coco.dataset = dict(images=images, annotations=annotations,
                            categories=[dict(id=i) for i in self.categories])
        coco.createIndex()
        return coco


def encode(mask: np.ndarray) -> dict:
    """A mask [H, W] of 0 and 1 as COCO's run lengths, fit for JSON: dict(size, counts)."""
    return _plain(rle.encode(np.asfortranarray(mask, np.uint8)))


def decode(segmentation: typing.Mapping) -> np.ndarray:
    """Run lengths as a mask [H, W] bool."""
    return rle.decode(dict(segmentation)).astype(bool)


def _plain(segmentation: typing.Mapping) -> dict:
    counts = segmentation["counts"]
    return dict(size=[int(x) for x in segmentation["size"]],
                counts=counts.decode("ascii") if isinstance(counts, bytes) else counts)
