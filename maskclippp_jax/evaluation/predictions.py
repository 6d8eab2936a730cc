"""Predictions as files that other tools read, so that anyone can check our numbers.

    <folder>/semantic/<picture>.png   label map of class numbers
    <folder>/panoptic/<picture>.png   ids as colours, with panoptic.json beside the folder (COCO)
    <folder>/instances.json           masks as run lengths with scores (COCO results)
    <folder>/predictions.json         vocabulary, pictures, and how they were made; written last

Every picture's results are written when they are there; a run that was stopped goes on where it
was. `maskclippp score` reads them.
"""

import collections
import json
import typing

import numpy as np
from etils import epath

from maskclippp_jax.data import coco_files
from maskclippp_jax.drawing import report
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.vocabulary import Vocabulary

_PARTS, _MANIFEST = ".parts", "predictions.json"


class Writer:
    """Writes predictions of one model on one data set."""

    def __init__(self, folder: str, vocabulary: Vocabulary,
                 coco_ids: typing.Mapping[str, int | str] | None = None):
        """Starts, or goes on with, a folder.

        Args:
          folder: made if it is not there.
          vocabulary: the classes; files of COCO's form hold its `dataset_ids`.
          coco_ids: of each picture the id in files of COCO's form, see `coco_ids`; None: ours.

        Raises:
          FileExistsError: the folder holds finished predictions.
        """
        self.folder, self.vocabulary, self.coco_ids = storage.path(folder), vocabulary, coco_ids
        if (self.folder / _MANIFEST).exists():
            raise FileExistsError(f"{folder} holds finished predictions; choose another folder, or "
                                  "remove it")
        (self.folder / _PARTS).mkdir(parents=True, exist_ok=True)

    def semantic(self, image_id: str, labels: np.ndarray) -> None:
        """Writes a label map [H, W] of classes."""
        dtype = np.uint8 if self.vocabulary.num_classes <= 256 else np.uint16
        coco_files.write_png(self._file("semantic", image_id), labels.astype(dtype))

    def panoptic(self, image_id: str, ids: np.ndarray, segments: typing.Sequence[dict]) -> None:
        """Writes segments as `postprocess.panoptic_segments` gives them."""
        file = self._file("panoptic", image_id)
        coco_files.write_ids(file, ids)
        areas = np.bincount(ids.ravel())
        self._part("panoptic", image_id, dict(
            image_id=self._coco_id(image_id), file_name=file.name,
            segments_info=[dict(s, category_id=self.vocabulary.dataset_ids[s["category_id"]],
                                area=int(areas[s["id"]])) for s in segments]))

    def instances(self, image_id: str, scores: np.ndarray, classes: np.ndarray,
                  masks: np.ndarray) -> None:
        """Writes instances: scores [n], classes [n], masks [n, H, W] bool."""
        self._part("instances", image_id, [
            dict(image_id=self._coco_id(image_id), score=float(score),
                 category_id=self.vocabulary.dataset_ids[number],
                 segmentation=run_lengths.encode(mask))
            for score, number, mask in zip(scores, classes, masks)])

    def finish(self, pictures: typing.Sequence[str], protocol: typing.Mapping) -> None:
        """Puts the parts together, once all of them are there.

        Args:
          pictures: ids of all pictures, in the order that files of COCO's form get.
          protocol: how the predictions were made; kept with them.
        """
        categories = [dict(id=i, name=names[0], isthing=int(thing)) for i, names, thing in zip(
            self.vocabulary.dataset_ids, self.vocabulary.classes, self.vocabulary.is_thing)]
        if (self.folder / "panoptic").is_dir():
            annotations = [self._read_part("panoptic", p) for p in pictures]
            report.write_json(self.folder / "panoptic.json", dict(
                images=[dict(id=self._coco_id(p), file_name=coco_files.file_of(p, ".jpg"))
                        for p in pictures],
                annotations=annotations, categories=categories))
        if any((self.folder / _PARTS).glob("*.instances.json")):
            rows = [row for p in pictures for row in self._read_part("instances", p)]
            report.write_json(self.folder / "instances.json", rows)
        report.write_json(self.folder / _MANIFEST, dict(
            vocabulary=self.vocabulary.name, classes=[list(c) for c in self.vocabulary.classes],
            pictures={p: self._coco_id(p) for p in pictures}, protocol=dict(protocol)))
        (self.folder / _PARTS).rmtree(missing_ok=True)  # a bucket keeps no empty folder

    def _file(self, kind: str, image_id: str) -> epath.Path:
        folder = self.folder / kind
        folder.mkdir(exist_ok=True)
        return folder / coco_files.file_of(image_id, ".png")

    def _part(self, kind: str, image_id: str, content) -> None:
        report.write_json(self._part_file(kind, image_id), content)

    def _read_part(self, kind: str, image_id: str):
        file = self._part_file(kind, image_id)
        if not file.is_file():
            raise FileNotFoundError(f"{self.folder} lacks the {kind} results of {image_id}; write "
                                    "them before finishing")
        return json.loads(file.read_text())

    def _part_file(self, kind: str, image_id: str) -> epath.Path:
        return self.folder / _PARTS / coco_files.file_of(image_id, f".{kind}.json")

    def _coco_id(self, image_id: str) -> int | str:
        return image_id if self.coco_ids is None else self.coco_ids[image_id]


def coco_ids(names: typing.Collection[str]) -> dict[str, int | str]:
    """Of each picture of a data set the id in files of COCO's form: 139 of "000139", as long as no
    other name is the same number, or else the name."""
    numbers = {n: int(n) for n in names if n.isascii() and n.isdigit() and len(n) < 19}
    count = collections.Counter(numbers.values())
    return {n: numbers[n] if n in numbers and count[numbers[n]] == 1 else n for n in names}


class Manifest(typing.TypedDict):
    """predictions.json."""

    vocabulary: str
    classes: list[list[str]]
    pictures: dict[str, int | str]
    protocol: typing.NotRequired[dict[str, typing.Any]]


def read_manifest(folder: str) -> Manifest | None:
    """The content of predictions.json; None for a folder that another tool wrote.

    Raises:
      FileNotFoundError: no such folder, or our predictions are not finished.
    """
    path = storage.path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if (path / _MANIFEST).is_file():
        return typed.read(path / _MANIFEST, Manifest)
    if (path / _PARTS).is_dir():
        raise FileNotFoundError(f"the predictions in {folder} are not finished; start the command "
                                "that writes them again")
    return None


def semantic_files(folder: str) -> dict[str, epath.Path]:
    """The label maps in a folder by their picture's id."""
    return {coco_files.picture_name(f.name): f
            for f in sorted((storage.path(folder) / "semantic").glob("*.png"))}


def panoptic_pictures(folder: str) -> dict[str, coco_files.PanopticPicture]:
    """The panoptic segments in a folder by their picture's id."""
    path = storage.path(folder)
    _, pictures = coco_files.read_panoptic(str(path / "panoptic.json"), str(path / "panoptic"))
    return {p.name: p for p in pictures}

