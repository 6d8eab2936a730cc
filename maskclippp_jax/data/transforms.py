"""The augmentations of MaskCLIP++ and the resize of the test loader, as operations on arrays.

There are two published families: the semantic one (COCO-Stuff: shortest edge, crop, colour, flip)
and the panoptic one (COCO panoptic: flip, large-scale jitter). Drawing random parameters and
applying them are apart, so that the second can be compared with the published operations bit by bit
(detectron2's resizes, crops, SSD colour jitter and flip).
"""

import dataclasses
import typing

import cv2
import numpy as np
from PIL import Image

MAX_SIDE = 4096  # longer sides are scaled down to it in training
LONGEST = 4000   # and to this in versions of a picture, detectron2's default
LONGER = 50      # times the shorter side of a picture that an image tower looks at
_HUES = 180      # of OpenCV's 8-bit HSV


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Parameters of one colour jitter; None leaves a step out."""

    brightness: float | None = None  # added, -32 .. 32
    contrast: float | None = None    # factor, 0.5 .. 1.5
    saturation: float | None = None  # factor, 0.5 .. 1.5
    hue: int | None = None           # added, -18 .. 18 of 180
    contrast_first: bool = True      # contrast before saturation and hue, or after them


def shortest_edge(height: int, width: int, short: int, longest: int | None) -> tuple[int, int]:
    """Size (height, width) with the shorter side `short`, unless the longer one passed `longest`.

    None: it may be as long as it is. Rounded as detectron2's ResizeShortestEdge does, half up.
    """
    scale = short / min(height, width)
    sides = (short, scale * width) if height < width else (scale * height, short)
    if longest is not None and max(sides) > longest:
        sides = tuple(side * (longest / max(sides)) for side in sides)
    # The public code gives an extreme picture no pixel.
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def check_ratio(size: typing.Sequence[int], name: str) -> None:
    """Sees that a picture can have its shorter side brought to that of a network.

    Args:
      size: height and width.
      name: of the picture, for messages.

    Raises:
      ValueError: the longer side, which grows with it, would ask for more than the memory.
    """
    if max(size) > LONGER * min(size):
        raise ValueError(f"{name} has {size[1]}x{size[0]} pixels, wanted a longer side of at most "
                         f"{LONGER} times the shorter one; cut it")


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's bilinear resize, antialiased when it shrinks: [H, W, 3] uint8 -> [h, w, 3] uint8."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


class Version(typing.NamedTuple):
    """What test-time augmentation makes of a loaded picture, as detectron2 does."""

    short_side: int | None = None  # pixels, its shorter side; None: as it was loaded
    flipped: bool = False          # mirrored left to right

    def __str__(self) -> str:
        size = "as loaded" if self.short_side is None else f"short side {self.short_side}"
        return size + " mirrored" * self.flipped


def versions_of(short_sides: typing.Sequence[int], *, flip: bool) -> list[Version]:
    """A version for every size, () being the size as loaded; each also mirrored if `flip`."""
    return [Version(short, flipped) for short in short_sides or (None,)
            for flipped in (False, True)[:1 + flip]]


def version_size(size: tuple[int, int], version: Version, longest: int = LONGEST
                 ) -> tuple[int, int]:
    """The size (height, width) of a version of a loaded picture."""
    if version.short_side is None:
        return size
    return shortest_edge(*size, version.short_side, longest)


def make_version(image: np.ndarray, version: Version, longest: int = LONGEST) -> np.ndarray:
    """A version of a loaded picture: [H, W, 3] uint8 -> [h, w, 3] uint8."""
    resized = resize_image(image, version_size(image.shape[:2], version, longest))
    return resized[:, ::-1] if version.flipped else resized


def resize_segments(segments: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour with source index floor(i * n / n'), as torch has it.

    Half a pixel off the picture: the published recipe is, because label maps go through torch
    there.
    """
    rows, columns = (np.floor(np.arange(m, dtype=np.float32) * (np.float32(n) / np.float32(m)))
                     .astype(int) for n, m in zip(segments.shape, size))
    return segments[np.minimum(rows, segments.shape[0] - 1)][
        :, np.minimum(columns, segments.shape[1] - 1)]


def fitting_size(height: int, width: int, scale: float,
                 canvas: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) that keeps the shape and just fits a canvas of `scale` times its sides.

    Rounded half to even, as detectron2's ResizeScale does.
    """
    factor = min(scale * canvas[0] / height, scale * canvas[1] / width)
    return max(1, int(np.round(height * factor))), max(1, int(np.round(width * factor)))


def resize_panoptic(segments: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's nearest neighbour, from floor((i + 0.5) * n / n'): [H, W] uint16 -> [h, w]."""
    picture = Image.fromarray(segments.astype(np.int32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.NEAREST)).astype(np.uint16)


def large_scale_crop(image: np.ndarray, segments: np.ndarray, share: float,
                     canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A window of at most the canvas, padded to it: grey 128 in the picture, 0 in the segments.

    Args:
      image: [H, W, 3] uint8.
      segments: [H, W] uint16.
      share: in 0 ... 1; where the window lies, the same number for both axes (published so).
      canvas: height, width in pixels.
    """
    offset = [int(np.round(max(n - c, 0) * share)) for n, c in zip(segments.shape, canvas)]
    window = tuple(slice(o, o + c) for o, c in zip(offset, canvas))
    image, segments = image[window], segments[window]
    missing = [(0, c - n) for n, c in zip(segments.shape, canvas)]
    return (np.pad(image, [*missing, (0, 0)], constant_values=128), np.pad(segments, missing))


def draw_color_jitter(rng: np.random.Generator) -> ColorJitter:
    """Every step on a coin of its own."""
    coin = lambda: rng.random() < 0.5
    return ColorJitter(
        brightness=rng.uniform(-32, 32) if coin() else None, contrast_first=coin(),
        contrast=rng.uniform(0.5, 1.5) if coin() else None,
        saturation=rng.uniform(0.5, 1.5) if coin() else None,
        hue=int(rng.integers(-18, 19)) if coin() else None)


def apply_color_jitter(image: np.ndarray, jitter: ColorJitter) -> np.ndarray:
    """[H, W, 3] uint8 RGB -> the same. Every step ends in 8 bits, truncated."""
    if jitter.brightness is not None:
        image = _linear(image, 1, jitter.brightness)
    if jitter.contrast is not None and jitter.contrast_first:
        image = _linear(image, jitter.contrast, 0)
    if jitter.saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _linear(hsv[..., 1], jitter.saturation, 0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if jitter.hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + jitter.hue) % _HUES
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if jitter.contrast is not None and not jitter.contrast_first:
        image = _linear(image, jitter.contrast, 0)
    return image


def _linear(x, factor, offset):
    scaled = x.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def random_crop(rng: np.random.Generator, image: np.ndarray, segments: np.ndarray,
                size: int) -> tuple[np.ndarray, np.ndarray]:
    """A window of `size` x `size` at a uniform offset; a shorter side stays whole."""
    height, width = segments.shape
    top = int(rng.integers(0, max(height - size, 0) + 1))
    left = int(rng.integers(0, max(width - size, 0) + 1))
    window = (slice(top, top + size), slice(left, left + size))
    return image[window], segments[window]


def pad_to_canvas(array: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Adds zeros at the bottom and right: [h, w, ...] -> [H, W, ...]."""
    missing = [(0, c - n) for c, n in zip(canvas, array.shape)]
    return np.pad(array, missing + [(0, 0)] * (array.ndim - 2))


def to_slots(segments: np.ndarray, table: typing.Mapping[str, np.ndarray], num_masks: int,
             image_id: str, *, keep_vanished: bool = False,
             drop_smallest: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the segments of a picture 1 ... n, in the order of the table.

    Args:
      segments: [H, W] uint16 segment ids, 0 = nothing.
      table: `id`, `class_id`, `is_crowd` of each segment.
      num_masks: N, slots.
      image_id: for the message.
      keep_vanished: whether segments without a pixel get a slot (an empty mask with its label).
      drop_smallest: of more segments than slots, leave out those with the fewest pixels (of equal
        ones the later); False refuses such a picture.

    Returns:
      [H, W] uint16 with slot + 1, and labels [N] int32, -1 for empty slots. Crowds get no slot.

    Raises:
      ValueError: more segments than slots.
    """
    most = int(max(segments.max(initial=0), *table["id"], 0))
    pixels = np.bincount(segments.ravel(), minlength=most + 1)
    kept = [k for k, (i, crowd) in enumerate(zip(table["id"], table["is_crowd"]))
            if not crowd and (keep_vanished or pixels[i])]
    if len(kept) > num_masks:
        if not drop_smallest:
            raise ValueError(f"image {image_id} has {len(kept)} masks, but num_masks is "
                             f"{num_masks}; raise train.num_masks, or set train.drop_smallest=True")
        largest = sorted(kept, key=lambda k: -int(pixels[table["id"][k]]))  # stable
        kept = sorted(largest[:num_masks])
    slot_of = np.zeros(most + 1, np.uint16)
    labels = np.full(num_masks, -1, np.int32)
    for slot, k in enumerate(kept):
        slot_of[table["id"][k]] = slot + 1
        labels[slot] = table["class_id"][k]
    return slot_of[segments], labels


def degrade_segments(rng: np.random.Generator, segments: np.ndarray) -> np.ndarray:
    """Ground truth as a poor mask generator would give it: displaced, and coarse at the borders.

    Each segment moves by up to 40 % of its own height and width, and is pasted as blocks of 1/16 of
    the picture; where segments meet, one drawn at random lies on top, and pixels nobody covers
    become nothing. What a mask covers thus only partly belongs to its class.

    Args:
      rng: source of randomness.
      segments: [H, W] uint16, 0 = nothing.

    Returns:
      [H, W] uint16.
    """
    height, width = segments.shape
    block = max(1, min(height, width) // 16)
    coarse = segments[block // 2::block, block // 2::block]
    coarse = np.repeat(np.repeat(coarse, block, 0), block, 1)[:height, :width]
    coarse = np.pad(coarse, [(0, height - coarse.shape[0]), (0, width - coarse.shape[1])], "edge")
    result = np.zeros_like(segments)
    ids = np.unique(segments[segments > 0])
    rng.shuffle(ids)
    for i in ids:
        mask = coarse == i
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        reach = np.array([rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1]) * 0.4
        down, right = np.round(rng.uniform(-reach, reach)).astype(int)
        y, x = np.nonzero(mask)
        y, x = y + down, x + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        result[y[inside], x[inside]] = i
    return result
