"""Generated pictures for the quick start: coloured handwritten digits on tinted textures.

Every pixel pattern is real: the digits are scikit-learn's handwritten digits (UCI, Alpaydin and
Kaynak 1998), the textures are cut from photographs that scikit-image carries (brick, grass and
gravel from ambientCG, CC0; "stars" is the Hubble deep field of NASA; "coins" and "writing" are
scikit-image's `coins` and `page`). Masks are exact by construction.

Classes are compositional, "<colour> <digit>" (things) and "<tint> <texture>" (stuff). Some
combinations are *unseen*: no data set for tuning holds them, though every colour, digit, tint and
texture occurs in others. Training and test scenes use digits by different samples and different
halves of each photograph.
"""

import functools
import typing

import cv2
import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {"red": (225, 40, 40), "green": (40, 190, 60), "blue": (50, 90, 235),
           "yellow": (240, 220, 40), "purple": (165, 50, 200), "white": (245, 245, 245)}
TEXTURES = ("brick", "grass", "gravel", "stars", "coins", "writing")
TINTS = {"brown": (150, 105, 60), "grey": (125, 125, 125), "pink": (215, 135, 160)}

_THINGS = tuple(f"{colour} {digit}" for digit in DIGITS for colour in COLOURS)
_STUFF = tuple(f"{tint} {texture}" for texture in TEXTURES for tint in TINTS)
CLASSES = _THINGS + _STUFF
IS_THING = (True,) * len(_THINGS) + (False,) * len(_STUFF)
# Diagonals of both tables, so that no factor is missing among the seen ones.
UNSEEN = frozenset(
    [f"{colour} {digit}" for i, digit in enumerate(DIGITS) for j, colour in enumerate(COLOURS)
     if (i + 2 * j) % 4 == 3]
    + [f"{tint} {texture}" for i, texture in enumerate(TEXTURES) for j, tint in enumerate(TINTS)
       if (i + j) % 4 == 3])

_MIN_VISIBLE = 30  # pixels; a digit of which less is left is not drawn


class Scene(typing.NamedTuple):
    image: np.ndarray        # [size, size, 3] uint8 RGB; `detail` times larger, like all below
    label: np.ndarray        # [size, size] int16, index into CLASSES; every pixel has one
    segments: np.ndarray     # [size, size] uint8, textures and digits, each with its own number
    names: tuple[str, ...]   # classes that occur, by descending area
    caption: str


def draw_scene(rng: np.random.Generator, *, size: int = 64, num_things: tuple[int, int] = (1, 5),
               num_stuff: tuple[int, int] = (1, 2), digits: str = "train",
               classes: typing.Collection[str] = CLASSES, detail: int = 1) -> Scene:
    """Draws a scene.

    Args:
      rng: source of all randomness.
      size: side in pixels.
      num_things: fewest and most digits (a digit that finds no room is left out).
      num_stuff: fewest and most textures.
      digits: "train" or "test", which digits and photographs are used.
      classes: names that may occur.
      detail: pixels that stand for one: the scene is drawn so much larger, from the same parts of
        the photographs.

    Returns:
      The scene.
    """
    allowed = [i for i, name in enumerate(CLASSES) if name in classes]
    things = [i for i in allowed if IS_THING[i]]
    stuff = [i for i in allowed if not IS_THING[i]]
    large = size * detail
    image = np.zeros((large, large, 3), np.float32)
    label = np.full((large, large), -1, np.int16)
    segments = np.zeros((large, large), np.uint8)

    chosen = rng.choice(stuff, rng.integers(num_stuff[0], num_stuff[1] + 1), replace=False)
    for k, index in enumerate(chosen):
        region = np.ones((large, large), bool) if k == 0 else _half(rng, large)
        image[region] = _texture(rng, CLASSES[index], size, digits, detail)[region]
        label[region], segments[region] = index, k

    covered = np.zeros((large, large), bool)
    count = rng.integers(num_things[0], num_things[1] + 1)
    for number in range(count):
        index = int(rng.choice(things))
        # One digit alone is drawn larger, so that the simplest pictures show the most.
        side = int(rng.integers(20, 33) if count > 1 else rng.integers(24, min(45, size + 1)))
        mask, shade = _digit(rng, CLASSES[index].split()[1], side * detail, digits)
        y, x = (rng.integers(0, large - n + 1) for n in mask.shape)
        window = (slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]))
        if (covered[window] & mask).sum() > 0.15 * mask.sum():
            continue
        colour = np.asarray(COLOURS[CLASSES[index].split()[0]], np.float32)
        colour = colour * rng.uniform(0.85, 1.1) + rng.uniform(-12, 12, 3).astype(np.float32)
        image[window][mask] = (shade[..., None] * colour)[mask]
        label[window][mask], segments[window][mask] = index, len(chosen) + number
        covered[window] |= mask

    present, areas = np.unique(label, return_counts=True)
    for index, area in zip(present, areas):
        if area < _MIN_VISIBLE * detail ** 2:  # fill what is too small with its surroundings
            hole = label == index
            label[hole], segments[hole] = chosen[0], 0
            image[hole] = _texture(rng, CLASSES[chosen[0]], size, digits, detail)[hole]
    image = image * rng.uniform(0.85, 1.15) + rng.normal(0, 3, image.shape)
    present, areas = np.unique(label, return_counts=True)
    names = tuple(CLASSES[i] for i in present[np.argsort(-areas, kind="stable")])
    return Scene(np.clip(image, 0, 255).astype(np.uint8), label, segments, names,
                 _caption(rng, names))


def _caption(rng, names):
    things = [f"a {n}" for n in names if n in _THINGS]
    stuff = [n for n in names if n in _STUFF]
    rng.shuffle(things)
    rng.shuffle(stuff)
    join = lambda words: ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
    if not things:
        return f"a photo of {join(stuff)}."
    return f"a photo of {join(things)} on {join(stuff)}."


def _half(rng, size):
    """One side of a wavy line through the middle part of the picture."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    y, x = np.mgrid[:size, :size] / size - 0.5
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = rng.uniform(0, 0.08) * np.sin(along * rng.uniform(4, 14) + phase)
    return across + wave > rng.uniform(-0.2, 0.2)


def _texture(rng, name, size, half, detail):
    tint, texture = name.split()
    photograph = _photographs()[texture]
    middle = photograph.shape[1] // 2
    part = photograph[:, :middle] if half == "train" else photograph[:, middle:]
    side = int(min(*part.shape, size * rng.uniform(1.0, 2.5)))
    y, x = (rng.integers(0, n - side + 1) for n in part.shape)
    cut = cv2.resize(part[y:y + side, x:x + side], 2 * (size * detail,),
                     interpolation=cv2.INTER_AREA if detail == 1 else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    colour = np.asarray(TINTS[tint], np.float32) * rng.uniform(0.85, 1.15)
    return (0.35 + 1.1 * cut)[..., None] * colour


def _digit(rng, name, side, half):
    """Mask [h, w] bool and shading [h, w] float32 of a handwritten digit."""
    samples = _handwriting()[half][DIGITS.index(name)]
    stroke = samples[rng.integers(len(samples))]
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-12, 12), 1.0)
    ink = cv2.resize(stroke, (side, side), interpolation=cv2.INTER_CUBIC)
    ink = cv2.warpAffine(ink, turn, (side, side), flags=cv2.INTER_LINEAR)
    mask = ink > 0.4
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return mask[window], np.clip(0.7 + 0.35 * ink[window], 0.7, 1.1)


@functools.lru_cache
def _handwriting():
    """Strokes [n, 8, 8] float32 in 0..1 by split and digit; every fourth sample is for testing."""
    from sklearn.datasets import load_digits  # here, so that only the generator needs it
    bunch = load_digits()
    strokes = (bunch.images / 16).astype(np.float32)
    test = np.arange(len(strokes)) % 4 == 0
    return {split: [strokes[(bunch.target == d) & which] for d in range(10)]
            for split, which in (("train", ~test), ("test", test))}


@functools.lru_cache
def _photographs():
    """Grey photographs [h, w] float32, brought to the same mean and contrast."""
    from skimage import color, data  # here, so that only the generator needs it
    sources = dict(brick=data.brick, grass=data.grass, gravel=data.gravel, coins=data.coins,
                   stars=data.hubble_deep_field, writing=data.page)
    result = {}
    for name, load in sources.items():
        picture = load()
        grey = color.rgb2gray(picture) if picture.ndim == 3 else picture / 255.0
        grey = (grey - grey.mean()) / grey.std() * 0.2 + 0.5
        result[name] = np.clip(grey, 0, 1).astype(np.float32)
    return result
