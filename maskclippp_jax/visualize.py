"""Pictures for people: regions with their names."""

import colorsys
import typing

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LARGEST = 1024   # pixels; longer sides are scaled down for the picture
_ENTRIES = 40     # lines of a legend
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def class_color(index: int) -> tuple[int, int, int]:
    """A colour of a class: the same in every picture, neighbours far apart (golden angle)."""
    hue = (0.11 + index * 0.61803398875) % 1.0
    value = (0.95, 0.75, 0.6)[index // 13 % 3]
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, value))


def draw_overlay(image: np.ndarray, label_map: np.ndarray, names: typing.Sequence[str],
                 scores: typing.Mapping[int, float] | None = None) -> Image.Image:
    """A picture with coloured regions, and a legend beside it.

    Args:
      image: [H, W, 3] uint8.
      label_map: [H, W] integer class of each pixel, -1 = none.
      names: of all classes.
      scores: best score of each class that occurs, shown in the legend.

    Returns:
      The drawing; sides over 1024 pixels are scaled down.
    """
    factor = min(1.0, _LARGEST / max(image.shape[:2]))
    size = tuple(max(1, round(n * factor)) for n in image.shape[1::-1])  # width, height
    picture = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.float32)
    rows, columns = (np.arange(n) * m // n for n, m in zip(size[::-1], label_map.shape))
    labels = label_map[rows][:, columns]
    classes, areas = np.unique(label_map[label_map >= 0], return_counts=True)
    order = np.argsort(-areas, kind="stable")
    classes, areas = classes[order], areas[order]
    tinted = picture.copy()
    for c in classes:
        tinted[labels == c] = 0.5 * picture[labels == c] + 0.5 * np.array(class_color(int(c)))
    tinted[_borders(labels)] = _PAPER
    view = Image.fromarray(tinted.astype(np.uint8))

    lines = []
    for c, area in zip(classes[:_ENTRIES], areas):
        score = "" if scores is None else f"  {scores.get(int(c), 0.0):.2f}"
        lines.append((class_color(int(c)),
                      f"{_short(names[int(c)])}  {100 * area / label_map.size:.0f} %{score}"))
    if len(classes) > _ENTRIES:
        lines.append((_PAPER, f"and {len(classes) - _ENTRIES} more"))
    font = ImageFont.load_default(15)
    wide = max((font.getlength(text) for _, text in lines), default=0) + 50
    tall = 16 + 24 * len(lines)
    canvas = Image.new("RGB", (round(size[0] + wide), max(size[1], tall)), _PAPER)
    canvas.paste(view, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (color, text) in enumerate(lines):
        y = 10 + 24 * i
        draw.rectangle((size[0] + 12, y, size[0] + 28, y + 16), fill=color)
        draw.text((size[0] + 36, y), text, fill=_INK, font=font)
    return canvas


class Panel(typing.NamedTuple):
    """One picture of a comparison."""

    image: np.ndarray     # [H, W, 3] uint8
    segments: np.ndarray  # [H, W], 0 = none
    names: list[tuple[str, bool | None]]  # of segments 1, 2, ...: text, and whether it is right


def draw_comparison(rows: typing.Sequence[typing.Sequence[Panel]], titles: typing.Sequence[str],
                    side: int = 256) -> Image.Image:
    """A grid of panels; every region carries its name, wrong ones in red.

    Args:
      rows: panels of each row; as many as there are titles.
      titles: of the columns.
      side: of a panel, pixels.
    """
    margin, head = 8, 30
    width = margin + len(titles) * (side + margin)
    canvas = Image.new("RGB", (width, head + len(rows) * (side + margin)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for k, title in enumerate(titles):
        draw.text((margin + k * (side + margin) + side / 2, head / 2), title, fill=_INK,
                  font=ImageFont.load_default(16), anchor="mm")
    for r, row in enumerate(rows):
        for k, panel in enumerate(row):
            canvas.paste(_draw_panel(Panel(*panel), side),
                         (margin + k * (side + margin), head + r * (side + margin)))
    return canvas


def _draw_panel(panel: Panel, side: int) -> Image.Image:
    view = Image.fromarray(panel.image).resize((side, side), Image.Resampling.NEAREST)
    index = [np.arange(side) * n // side for n in panel.segments.shape]
    segments = panel.segments[index[0]][:, index[1]]
    pixels = np.asarray(view).copy()
    pixels[_borders(segments)] = _PAPER
    view = Image.fromarray(pixels)
    draw = ImageDraw.Draw(view)
    font = ImageFont.load_default(14)
    places: list[tuple[float, float]] = []
    for n, (name, right) in enumerate(panel.names, start=1):
        if not (segments == n).any():
            continue
        x, y = _middle(segments == n)
        half = font.getlength(name) / 2 + 2
        x = min(max(x, half), side - half)
        while any(abs(y - q) < 16 and abs(x - p) < 90 for p, q in places) and y < side - 20:
            y += 8
        places.append((x, y))
        fill = (255, 90, 80) if right is False else _PAPER
        text = f"{name} ×" if right is False else name
        draw.text((x, y), text, fill=fill, font=font, anchor="mm", stroke_width=2,
                  stroke_fill=(0, 0, 0))
    return view


def _middle(mask: np.ndarray) -> tuple[float, float]:
    """The pixel of a region that is farthest from its border: (x, y)."""
    import cv2
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x), float(y)


def _borders(labels: np.ndarray) -> np.ndarray:
    """[H, W] bool: the pixel differs from its right or lower neighbour."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def _short(name: str, longest: int = 32) -> str:
    return name if len(name) <= longest else name[:longest - 1] + "…"
