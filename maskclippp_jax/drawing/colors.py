"""Colours of classes and segments that people can tell apart, also those who see fewer colours."""

import typing

import numpy as np

Color = tuple[int, int, int]

# Vivid colours, each the farthest from all before it in the vision that tells them least; the tests
# look again. 238 is the RGB 0x22, 0x33, 0x88. After 256 they repeat.
_COLORS = tuple(tuple(17 * int(digit, 16) for digit in color) for color in (
    "e72 09f fac 71f cd9 858 c03 a0a ed0 abf b67 7e6 65e 184 f4b f56 a50 3b3 f4f aeb 7b8 6ee "
    "26b eb2 d69 a36 bb6 64c f8e be5 c08 5f8 96d 74f 696 2cb b7d e98 945 562 0ac 939 f8a d33 "
    "b7b f84 a84 d35 b7f c61 fbf b3c c2b 91c 298 da7 b4a 8c5 8ec 6f3 a69 c44 992 d9d 3d1 bd7 "
    "d85 b17 82e ea5 86f f3a c76 cc4 fd8 c9f 3d9 e58 b32 3ce 485 a4d 7d8 f77 84d 90d d6c a1b "
    "673 c52 5b1 b46 88c a57 659 6df 374 f9a b5c f6a d55 e88 6dc d79 fc6 4a3 9ea 37c 57e c58 "
    "f79 9ae d77 fa9 959 f7c c0e 852 a3a 6a7 d10 ce7 76b e9b bc7 a2d eae 070 9b4 d1a d3d 7db "
    "2bd cc8 947 a7e b34 e7d e38 393 d96 b8e 7d4 c6a 99d aa3 b56 c19 be9 e17 46f cd6 8da e3e "
    "80e 4ba b20 480 d49 8a5 ce2 e68 97b d90 f9d 0c4 e7b 3eb 883 f94 3a9 d7e e9c 5bf ae4 73d "
    "fb8 a34 b4c b80 ac6 6d5 c5b e03 a46 2a5 7c9 d56 794 784 a45 99f c15 85e 7ed 88f b57 f57 "
    "b18 bb1 a1c b2b b55 8b6 f7a f0a 2e5 97d 82f 94f 87e b73 4c7 872 a1e 6e9 e6c 76d baf ca4 "
    "e4e 963 d52 7a4 c3f f8d b6a db6 dc5 bc2 ba5 a2a 5f5 a42 b53 fa7 f34 d8c ad3 d29 9a6 1de "
    "b36 b44 fad a1f b2c d63 e0b 495 ba0 bd4 a8c e83 6b9 c4e "
).split())
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
# Linear sRGB to CIE XYZ as shares of its white D65. OpenCV makes large tables for its first colour.
_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169],
                 [0.019334, 0.119193, 0.950227]]) / [[0.950456], [1.0], [1.088754]]


def class_color(index: int) -> Color:
    """A colour of a class, the same in every picture, and far from those of lower indices."""
    return _COLORS[index % len(_COLORS)]


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
    xyz = linear @ _XYZ.T
    curve = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(curve, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1).astype(np.float32)


def colors_in(label_map: np.ndarray) -> dict[int, Color]:
    """The colours of the classes of one picture, the larger class first.

    A class has its own (`class_color`), unless it touches one of a like colour: then the smaller of
    the two takes another, so that the legend of this picture counts.

    Args:
      label_map: [h, w] integers, negative where there is none.
    """
    areas = np.bincount(label_map[label_map >= 0])
    classes = np.flatnonzero(areas)
    touching, chosen = _touching(label_map), {}
    looks = seen(np.array(_COLORS))  # [4, n, 3]
    for c in classes[np.argsort(-areas[classes], kind="stable")].tolist():
        beside = [chosen[n] for n in touching.get(c, ()) if n in chosen]
        used = set(chosen.values())

        def apart(color):
            return min((np.linalg.norm(looks[:, color] - looks[:, other], axis=-1).min()
                        for other in beside), default=np.inf)

        own = c % len(_COLORS)
        others = [k for k in range(len(_COLORS)) if k not in used]
        chosen[c] = own if apart(own) >= _APART else next(
            (k for k in others if apart(k) >= _APART), own)
    return {c: _COLORS[k] for c, k in chosen.items()}


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
    pairs, count = [], int(labels.max(initial=0)) + 1
    for one, two in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = (one != two) & (one >= 0) & (two >= 0)
        pairs.append(one[differ].astype(np.int64) * count + two[differ])  # one number for both
    touching: dict[int, set[int]] = {}
    for one, two in (divmod(pair, count) for pair in np.unique(np.concatenate(pairs)).tolist()):
        touching.setdefault(one, set()).add(two)
        touching.setdefault(two, set()).add(one)
    return touching
