"""The published mask generators that can be read here: names, sizes, classes, quality.

The numbers are the publishers' (github.com/tue-mps/eomt). Their code is under the MIT licence, and
DINOv2, on which they rest, under Apache-2.0; what holds for the weights their pages on the hub say.
"""

import difflib
import typing

from maskclippp_jax.generators.eomt import EoMTConfig


class PublishedGenerator(typing.NamedTuple):
    name: str        # the short one, for people
    repository: str  # on the hub
    task: str        # "panoptic", "instance" or "semantic": what it was trained for
    vocabulary: str  # its classes, see `Vocabulary.shipped`
    quality: str     # on the validation set of its own data, as published
    millions: float  # of parameters
    config: EoMTConfig

    @property
    def source(self) -> str:
        """A path for `hub.fetch`."""
        return f"hf://{self.repository}"


def _eomt(name: str, repository: str, vocabulary: str, quality: str, millions: float,
          config: EoMTConfig) -> PublishedGenerator:
    task = repository.split("_eomt")[0].split("_")[-1]
    return PublishedGenerator(name, f"tue-mps/{repository}", task, vocabulary, quality, millions,
                              config)


_COCO, _ADE, _C = "coco_panoptic_133", "ade20k_150", EoMTConfig

GENERATORS = (
    _eomt("eomt-s-640", "coco_panoptic_eomt_small_640_2x", _COCO, "PQ 46.7", 24.0,
          _C.coco_panoptic_small_640_2x()),
    _eomt("eomt-b-640", "coco_panoptic_eomt_base_640_2x", _COCO, "PQ 51.6", 93.7,
          _C.coco_panoptic_base_640_2x()),
    _eomt("eomt-l-640", "coco_panoptic_eomt_large_640", _COCO, "PQ 56.0", 316.7,
          _C.coco_panoptic_large_640()),
    _eomt("eomt-l-1280", "coco_panoptic_eomt_large_1280", _COCO, "PQ 58.3", 321.6,
          _C.coco_panoptic_large_1280()),
    _eomt("eomt-g-640", "coco_panoptic_eomt_giant_640", _COCO, "PQ 57.0", 1163.6,
          _C.coco_panoptic_giant_640()),
    _eomt("eomt-g-1280", "coco_panoptic_eomt_giant_1280", _COCO, "PQ 59.2", 1171.0,
          _C.coco_panoptic_giant_1280()),
    _eomt("eomt-l-640-ade20k", "ade20k_panoptic_eomt_large_640", _ADE, "PQ 50.6", 316.7,
          _C.ade20k_panoptic_large_640()),
    _eomt("eomt-l-1280-ade20k", "ade20k_panoptic_eomt_large_1280", _ADE, "PQ 51.7", 321.6,
          _C.ade20k_panoptic_large_1280()),
    _eomt("eomt-g-640-ade20k", "ade20k_panoptic_eomt_giant_640", _ADE, "PQ 51.3", 1163.6,
          _C.ade20k_panoptic_giant_640()),
    _eomt("eomt-g-1280-ade20k", "ade20k_panoptic_eomt_giant_1280", _ADE, "PQ 52.8", 1171.0,
          _C.ade20k_panoptic_giant_1280()),
    _eomt("eomt-l-512-ade20k-semantic", "ade20k_semantic_eomt_large_512", _ADE, "mIoU 58.4", 316.0,
          _C.ade20k_semantic_large_512()),
    _eomt("eomt-l-1024-cityscapes", "cityscapes_semantic_eomt_large_1024", "cityscapes_19",
          "mIoU 84.2", 319.0, _C.cityscapes_semantic_large_1024()),
    _eomt("eomt-l-640-instances", "coco_instance_eomt_large_640", "coco_instance_80",
          "AP 45.2", 316.6, _C.coco_instance_large_640()),
    _eomt("eomt-l-1280-instances", "coco_instance_eomt_large_1280", "coco_instance_80",
          "AP 48.8", 321.6, _C.coco_instance_large_1280()),
)


def find(name: str) -> PublishedGenerator | None:
    """The generator of a short name, or of a repository's name with or without its owner."""
    for entry in GENERATORS:
        if name in (entry.name, entry.repository, entry.repository.split("/")[1]):
            return entry
    return None


def of_config(config: EoMTConfig) -> PublishedGenerator | None:
    """The published generator of these sizes; no two have the same."""
    return next((entry for entry in GENERATORS if entry.config == config), None)


def nearest(name: str) -> str:
    """A hint for a name that nobody published: "; did you mean ...?", or nothing."""
    near = difflib.get_close_matches(name, [e.name for e in GENERATORS], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
