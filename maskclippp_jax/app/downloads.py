"""What a visitor may keep of an answer: files, at the size of the picture as it came."""

import json

import numpy as np

from maskclippp_jax.app.session import Session
from maskclippp_jax.data import annotation_files, label_maps
from maskclippp_jax.drawing import visualize


def content_of(kind: str, visit: Session) -> tuple[str, bytes]:
    """The ending and the content of a file: "overlay", "labels", "coco" or "code".

    The overlay is as large as it is shown.
    """
    result = visit.result
    if kind == "overlay":
        return "overlay.png", visualize.to_png(result.draw())
    if kind == "labels":
        labels = _at_size(label_maps.stored(result.labels), visit.size)
        return "labels.png", visualize.label_map_png(labels)
    if kind == "coco":
        annotated = result.annotated(visit.stem)
        annotated = annotated._replace(file=visit.picture,
                                       masks=_Masks(annotated.masks, visit.size))
        return "coco.json", json.dumps(annotation_files.coco([annotated])).encode()
    return "py", visit.code.encode()


class _Masks:
    """Masks [n, h, w] at another size, as [n, H, W] bool of which one at a time exists."""

    def __init__(self, masks: np.ndarray, size: tuple[int, int]):
        self._masks, self._size = masks, size
        self.shape = (len(masks), *size)

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, place: int) -> np.ndarray:
        return _at_size(self._masks[place], self._size)


def _at_size(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An array [h, w] of any kind as [H, W]: each pixel is the one at its center's place."""
    rows, columns = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(size, array.shape))
    return array[rows[:, None], columns]
