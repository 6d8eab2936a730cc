"""Colours of classes and segments that people can tell apart, also those who see fewer colours."""

import functools
import typing

import cv2
import numpy as np

Color = tuple[int, int, int]

_COLORS = 256  # distinct ones; then they repeat
_APART = 18    # CIE Lab, from which on two colours that touch are told apart at a glance
_SHADES = (0.0, 0.4, -0.35)  # of touching segments of one class: how far towards white or black

# What is seen of linear RGB without the cones for long, middle and short waves: Machado, Oliveira
# and Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# severity 1.
_VISIONS = np.array([
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
     [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
     [0.004733, 0.691367, 0.303900]]])


def class_color(index: int) -> Color:
    """A colour of a class, the same in every picture, and far from those of lower indices."""
    return _colors()[index % _COLORS]


def seen(colors: np.ndarray) -> np.ndarray:
    """How colours look to people who see all of them, no red, no green, and no blue.

    Args:
      colors: [n, 3] in 0 ... 255, sRGB.

    Returns:
      [4, n, 3] float32, CIE Lab.
    """
    rgb = np.asarray(colors, np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.einsum("vij,nj->vni", _VISIONS, linear), 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return cv2.cvtColor(rgb.astype(np.float32), cv2.COLOR_RGB2LAB)


def colors_in(label_map: np.ndarray) -> dict[int, Color]:
    """The colours of the classes of one picture, the larger class first.

    A class has its own (`class_color`), unless it touches one of a like colour: then the smaller of
    the two takes another, so that the legend of this picture counts.

    Args:
      label_map: [h, w] integers, negative where there is none.
    """
    classes, areas = np.unique(label_map[label_map >= 0], return_counts=True)
    touching, chosen = _touching(label_map), {}
    looks = seen(np.array(_colors()))  # [4, n, 3]
    for c in classes[np.argsort(-areas, kind="stable")].tolist():
        beside = [chosen[n] for n in touching.get(c, ()) if n in chosen]
        used = set(chosen.values())

        def apart(color):
            return min((np.linalg.norm(looks[:, color] - looks[:, other], axis=-1).min()
                        for other in beside), default=np.inf)

        own = c % _COLORS
        others = [k for k in range(_COLORS) if k not in used]
        chosen[c] = own if apart(own) >= _APART else next(
            (k for k in others if apart(k) >= _APART), own)
    return {c: _colors()[k] for c, k in chosen.items()}


def segment_colors(segments: np.ndarray, classes: typing.Sequence[int],
                   colors: typing.Mapping[int, Color]) -> list[Color | None]:
    """Those of segments 1, 2, ...: of their classes, in another shade where two of one touch.

    Args:
      segments: [h, w] integers, 0 = nothing.
      classes: of segments 1, 2, ...; one without a colour gives None.
      colors: of the classes.
    """
    touching, shades = _touching(segments - 1), {}
    for n, c in enumerate(classes):
        taken = [shades[k] for k in touching.get(n, ()) if k in shades and classes[k] == c]
        shades[n] = min(range(len(_SHADES)), key=lambda shade: (taken.count(shade), shade))
    return [None if c not in colors else _shade(colors[c], _SHADES[shades[n]])
            for n, c in enumerate(classes)]


def text_color(background: Color) -> Color:
    """Black or white, whichever is easier to read on a colour (WCAG 2's contrast)."""
    rgb = np.array(background) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return (0, 0, 0) if linear @ [0.2126, 0.7152, 0.0722] > 0.179 else (255, 255, 255)


def _shade(color: Color, far: float) -> Color:
    end = 255 if far > 0 else 0
    return tuple(round(v + abs(far) * (end - v)) for v in color)


def _touching(labels: np.ndarray) -> dict[int, set[int]]:
    """Which labels have pixels side by side; negative ones are none."""
    labels = labels.astype(np.int64)
    pairs = []
    for one, two in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = (one != two) & (one >= 0) & (two >= 0)
        pairs.append(np.stack([one[differ], two[differ]], 1))
    touching: dict[int, set[int]] = {}
    for one, two in np.unique(np.concatenate(pairs), axis=0).tolist():
        touching.setdefault(one, set()).add(two)
        touching.setdefault(two, set()).add(one)
    return touching


@functools.cache
def _colors() -> tuple[Color, ...]:
    """Vivid colours, each the farthest from all before it in the vision that tells them least."""
    steps = np.linspace(0, 255, 16).round()
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    looks = seen(rgb)
    light, strength = looks[0, :, 0], np.hypot(looks[0, :, 1], looks[0, :, 2])
    vivid = (light > 40) & (light < 90) & (strength > 35)
    rgb, looks = rgb[vivid], looks[:, vivid]
    # Begin with an orange; lightness counts less, as tints let the picture's own through.
    looks = looks * np.array([0.7, 1, 1], np.float32)
    chosen = [int(np.linalg.norm(looks[0] - [45, 40, 60], axis=-1).argmin())]
    nearest = np.full(len(rgb), np.inf)
    while len(chosen) < _COLORS:
        apart = np.linalg.norm(looks - looks[:, chosen[-1], None], axis=-1).min(0)
        nearest = np.minimum(nearest, apart)
        chosen.append(int(nearest.argmax()))
    return tuple(tuple(int(v) for v in rgb[i]) for i in chosen)
