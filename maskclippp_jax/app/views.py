"""What the browser gets of an answer: maps of segments, their names, colours and best scores."""

import base64
import typing

import cv2
import numpy as np

from maskclippp_jax import api
from maskclippp_jax.data import transforms
from maskclippp_jax.drawing import visualize

_LARGEST, _SMALLEST = 1024, 512  # pixels of the longer side that is shown
_TOP = 5


def view(result: api.Result, notes: typing.Sequence[str] = ()) -> dict:
    """All that `viewer.js` shows, as plain values.

    `picture` is a JPEG; each of `layers` has a `map`, a PNG of numbers (red + 256 green) in which 0
    is nothing and n the n-th of its `items`, the largest first: name, color, share of the picture,
    x and y of the point farthest from its border (0 ... 1), `top` with the best names and scores.
    `masks` are rows of the table.

    Args:
      result: the answer.
      notes: sentences about it.
    """
    picture = shown(result.image)
    size, top = picture.shape[:2], result.top(_TOP)
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return dict(picture=_url("jpeg", jpeg), width=size[1], height=size[0],
                crisp=size[0] > result.image.shape[0],
                layers=dict(segments=_segments(result, size, top), semantic=_semantic(result, size),
                            instances=_instances(result, size, top)),
                masks=_masks(result, top), notes=list(notes))


def _segments(result: api.Result, size: tuple[int, int], top: list) -> dict:
    ids, segments = result.panoptic
    return _layer(_at(ids, size), {
        s["id"]: _item(s["category_id"], s["name"], top[_mask_of(result, ids, s)])
        for s in segments})


def _semantic(result: api.Result, size: tuple[int, int]) -> dict:
    """The likeliest mask of a class speaks for it."""
    best, items = result.scores.max(-1, initial=0), {}
    for category in np.unique(result.classes[result.classes >= 0]).tolist():
        name = result.vocabulary.classes[category][0]
        score = best[result.classes == category].max()
        items[category + 1] = _item(category, name, [(name, float(score))])
    return _layer(_at(result.labels + 1, size), items)


def _instances(result: api.Result, size: tuple[int, int], top: list) -> dict:
    """Likelier ones lie above others."""
    found, ids, items = result.instances, np.zeros(size, np.int32), {}
    for n in range(len(found.scores), 0, -1):
        ids[_at(found.masks[n - 1], size)] = n
        category, score = int(found.classes[n - 1]), float(found.scores[n - 1])
        name = result.vocabulary.classes[category][0]
        items[n] = _item(category, name, [(name, score)])
    return _layer(ids, items)


def _masks(result: api.Result, top: list) -> list[dict]:
    """Of each mask, the largest first; those without a name as well."""
    total = result.image.shape[0] * result.image.shape[1]
    rows = [dict(number=int(number), name=name, color=_color(int(category)), share=int(n) / total,
                 top=_plain(best))
            for number, name, category, n, best in zip(
                result.ids, result.names, result.classes, result.pixels, top)]
    return sorted(rows, key=lambda row: -row["share"])


def _mask_of(result: api.Result, ids: np.ndarray, segment: dict) -> int:
    """The mask that speaks for a segment: the one of its class that covers most of it."""
    candidates = np.flatnonzero(result.classes == segment["category_id"])
    if len(candidates) == 1:
        return int(candidates[0])
    inside = ids == segment["id"]
    return int(candidates[np.argmax([(result.masks[n] & inside).sum() for n in candidates])])


def _item(category: int, name: str, best: list[tuple[str, float]]) -> dict:
    return dict(name=name, color=_color(category), top=_plain(best))


def _color(category: int) -> str:
    return "#888888" if category < 0 else "#" + bytes(visualize.class_color(category)).hex()


def _plain(best: list[tuple[str, float]]) -> list[list]:
    return [[name, round(score, 4)] for name, score in best]


def _layer(ids: np.ndarray, items: dict[int, dict]) -> dict:
    """Numbers anew, the largest first, without those that no pixel is of."""
    counts = np.bincount(ids.ravel(), minlength=max(items, default=0) + 1)
    order = sorted((n for n in items if counts[n]), key=lambda n: -counts[n])
    table = np.zeros(len(counts), np.uint16)
    table[order] = np.arange(1, len(order) + 1)
    ids = table[ids]
    placed = []
    for n, old in enumerate(order, start=1):
        x, y = _deepest(ids == n)
        placed.append(items[old] | dict(share=int(counts[old]) / ids.size,
                                        x=(x + 0.5) / ids.shape[1], y=(y + 0.5) / ids.shape[0]))
    rgb = np.stack([np.zeros_like(ids), ids >> 8, ids & 255], -1).astype(np.uint8)  # BGR to OpenCV
    return dict(map=_url("png", cv2.imencode(".png", rgb, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]),
                items=placed)


def _deepest(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a region that is farthest from its border."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def _at(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Numbers at another size, each pixel the one that lies under its middle."""
    rows, columns = (((2 * np.arange(new) + 1) * old) // (2 * new)
                     for new, old in zip(size, array.shape))
    return array[rows][:, columns]


def shown(image: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] uint8 at the size at which the page shows it: large ones are made
    smaller, small ones enlarged by a whole number."""
    longest = max(image.shape[:2])
    factor = _LARGEST / longest if longest > _LARGEST else max(1, _SMALLEST // longest)
    size = tuple(max(1, round(n * factor)) for n in image.shape[:2])
    # Enlarged pixels stay squares: one sees what the model saw.
    return _at(image, size) if factor >= 1 else transforms.resize_image(image, size)


def _url(kind: str, data: np.ndarray) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
