"""Pictures for people: regions with their names."""

import io
import typing

import cv2
import numpy as np
from PIL import Image, ImageDraw

from maskclippp_jax.drawing.colors import Color, class_color, colors_in, segment_colors
from maskclippp_jax.drawing.fonts import fit, font_for
from maskclippp_jax.drawing.names import Name, ordinary_side, text_size, write

# Pixels of the longer side of a drawn picture, if nobody says: one alone, one beside others, and
# small ones, which are enlarged by a whole number, so that one sees the pixels a model saw.
_LARGEST, _LARGEST_BESIDE, _SMALLEST = 1280, 800, 480
_ENTRIES = 40                    # of a legend
_PART = 2**18                    # pixels of a map that are counted at once
_NEIGHBOURS = 640                # pixels of the longer side, at which it is seen what touches
# Of a PNG: with differences to what is expected of three neighbours, runs are all that is worth
# looking for. OpenCV before 4.12 knows one way for the first, which takes longer.
_PHOTOGRAPH = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY,
               cv2.IMWRITE_PNG_STRATEGY_RLE]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    _PHOTOGRAPH += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH]
_INK, _FAINT, _PAPER = (30, 30, 30), (130, 130, 130), (255, 255, 255)


class Panel(typing.NamedTuple):
    """One picture with its segments.

    Those with a colour are tinted and rimmed with it; the outlines of all are white.
    """

    image: np.ndarray     # [H, W, 3] uint8
    segments: np.ndarray  # integers of any size with the same sides' ratio, 0 = none
    # Of segments 1, 2, ...: text (None: not written), and whether it is right.
    names: typing.Sequence[tuple[str | None, bool | None]] = ()
    colors: typing.Sequence[Color | None] = ()  # of segments 1, 2, ...; (): none has any
    opacity: float = 0.4                        # of the tint


def draw_panel(panel: Panel, side: int) -> Image.Image:
    """The picture with outlines and names of its segments; wrong names are red and have a cross.

    Lines and letters grow with the drawing, so that it looks the same at any size. Names lie in the
    picture and never on one another; what has no room has none (`names`).

    Args:
      panel: what is drawn.
      side: pixels of the longer side of the drawing.
    """
    height, width = size_at(panel.image, side)
    pixels = np.array(_resize(panel.image, height, width))
    segments = sampled(panel.segments, height, width)
    if segments.max(initial=0) < 65536:
        segments = segments.astype(np.uint16)  # four times faster below
    line = max(1, round(ordinary_side(width, height) / 640))
    if any(panel.colors):
        pixels = _tinted(pixels, segments, panel.colors, panel.opacity, 2 * line)
    border = borders(segments, line)
    # Half of the next pixel as well, so that the steps of slanting lines show less.
    near = cv2.dilate(border, np.ones((3, 3), np.uint8))
    pixels = cv2.copyTo(cv2.addWeighted(pixels, 0.5, pixels, 0, 127.5), near, pixels)
    pixels[border > 0] = _PAPER
    view = Image.fromarray(pixels)
    colors = [*panel.colors, *[None] * len(panel.names)]
    write(view, segments, {n: Name(text, right, color) for n, ((text, right), color) in enumerate(
        zip(panel.names, colors), start=1) if text is not None})
    return view


def _tinted(pixels: np.ndarray, segments: np.ndarray, colors: typing.Sequence[Color | None],
            opacity: float, rim: int) -> np.ndarray:
    """Pixels in which segments that have a colour have it, and a strip of it along the border."""
    count = int(segments.max(initial=0)) + 1
    table = np.zeros((count, 3), np.uint8)
    has_color = np.zeros(count, np.uint8)
    for n, color in enumerate(colors[:count - 1], start=1):
        if color is not None:
            table[n], has_color[n] = color, 255
    tint = np.take(table, segments, axis=0)
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # Much of the picture's brightness shows through, less of its colours.
    pale = cv2.addWeighted(pixels, 0.5, grey, 0.5, 0)
    tinted = cv2.addWeighted(pale, 1 - opacity, tint, opacity, 0)
    strip = cv2.addWeighted(pale, 0.1, tint, 0.9, 0)
    tinted = cv2.copyTo(strip, borders(segments, 1 + 2 * rim), tinted)
    return cv2.copyTo(tinted, np.take(has_color, segments), pixels)


class Layer(typing.NamedTuple):
    """What is drawn of a picture's segments."""

    segments: np.ndarray               # [h, w] integers, 0 = nothing; any size
    classes: typing.Sequence[int]      # of segments 1, 2, ...; -1: it has no name
    scores: typing.Sequence[float] | None = None  # stand behind the names
    opacity: float = 0.4               # of the tint


def draw_layers(image: np.ndarray, layers: typing.Mapping[str, Layer | None],
                label_map: np.ndarray, names: typing.Sequence[str],
                scores: typing.Mapping[int, float] | None = None, *, legend: bool = True,
                side: int | None = None) -> Image.Image:
    """A picture with coloured and named segments, or several side by side, and a legend.

    The legend has the largest class first, its share of the pixels and its score.

    Args:
      image: [H, W, 3] uint8.
      layers: by their titles, which are written above if there are several; None: the photograph.
      label_map: [H, W] integer class of each pixel, -1 = none.
      names: of all classes.
      scores: best score of each class that occurs, shown in the legend.
      legend: whether there is one.
      side: pixels of the longer side of each picture; None: `side_for`.

    Raises:
      ValueError: picture and label map differ in size, a class has no name, or `side` is too small.
    """
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"the picture is {image.shape[:2]}, the label map {label_map.shape}; "
                         "give one of the same size")
    if label_map.max(initial=-1) >= len(names):
        raise ValueError(f"the label map holds class {label_map.max()}, but there are {len(names)} "
                         "names")
    side = side_for(image, len(layers)) if side is None else side
    if side < 16:
        raise ValueError(f"got side={side}, wanted at least 16 pixels")
    small = size_at(image, min(side, _NEIGHBOURS))
    # Also of what is too small, or hidden in the label map.
    colors = {c: class_color(c) for layer in layers.values() if layer for c in layer.classes
              if c >= 0} | colors_in(sampled(label_map, *small))
    views = []
    for layer in layers.values():
        if layer is None:
            views.append(draw_panel(Panel(image, np.zeros((1, 1), int)), side))
            continue
        texts = [names[c] if c >= 0 else None for c in layer.classes]
        if layer.scores is not None:
            texts = [text and f"{text} {score:.2f}" for text, score in zip(texts, layer.scores)]
        tints = segment_colors(sampled(layer.segments, *small), layer.classes, colors)
        views.append(draw_panel(Panel(image, layer.segments, [(text, None) for text in texts],
                                      tints, layer.opacity), side))
    drawing = views[0] if len(views) == 1 else in_grid([views], list(layers))
    if not legend:
        return drawing
    # In parts, as a copy of a large map takes gigabytes.
    rows = max(1, _PART // max(1, label_map.shape[1]))
    areas = np.zeros(len(names), np.int64)
    for part in (label_map[top:top + rows] for top in range(0, len(label_map), rows)):
        areas += np.bincount(part[part >= 0], minlength=len(names))
    order = [int(c) for c in np.argsort(-areas, kind="stable") if areas[c]]
    entries = [(colors.get(c, class_color(c)), names[c], _percent(areas[c] / label_map.size),
                "" if scores is None else f"{scores.get(c, 0.0):.2f}") for c in order[:_ENTRIES]]
    beside = _draw_legend(entries, len(order) - len(entries), drawing.height, scores is not None,
                          text_size(*views[0].size))
    canvas = Image.new("RGB", (drawing.width + beside.width, max(drawing.height, beside.height)),
                       _PAPER)
    canvas.paste(drawing, (0, 0))
    canvas.paste(beside, (drawing.width, 0))
    return canvas


def side_for(image: np.ndarray, count: int = 1) -> int:
    """Pixels of the longer side that a picture is drawn with, if `count` stand side by side."""
    longest, largest = max(image.shape[:2]), _LARGEST if count == 1 else _LARGEST_BESIDE
    return largest if longest > largest else longest * max(1, _SMALLEST // longest)


def size_at(image: np.ndarray, side: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side has so many pixels."""
    factor = side / max(image.shape[:2])
    return tuple(max(1, round(n * factor)) for n in image.shape[:2])


def _draw_legend(entries: list[tuple], more: int, height: int, scored: bool, text: int
                 ) -> Image.Image:
    """Entries (colour, name, share, score) in as many columns as the picture's height asks for."""
    px = lambda value: round(value * text / 15)  # sizes below are those for letters of 15 pixels
    line, small = px(24), font_for(px(12))
    fonts = [font_for(text, [name]) for _, name, _, _ in entries]
    entries = [(color, fit(name, font, px(230)), *rest, font)
               for (color, name, *rest), font in zip(entries, fonts)]
    lines = max(12, (height - px(30) - line * (more > 0)) // line)
    if entries:
        lines = -(-len(entries) // -(-len(entries) // lines))  # the same in every column
    columns = [entries[i:i + lines] for i in range(0, len(entries), lines)]
    names = [max(small.getlength("and 999 more"), *(e[-1].getlength(e[1]) for e in column))
             for column in columns]
    numbers = px(52) + px(46) * scored  # of the right-aligned shares and scores
    widths = [round(px(38) + name + px(10) + numbers) for name in names]
    tall = px(30) + line * max((len(column) for column in columns), default=0) + line * (more > 0)
    legend = Image.new("RGB", (sum(widths) + px(14), tall), _PAPER)
    draw = ImageDraw.Draw(legend)
    x = 0
    for column, width in zip(columns, widths):
        ends = (x + width - px(46) * scored, x + width)  # where shares and scores end
        for title, end in zip(("share", "score")[:1 + scored], ends):
            draw.text((end, px(20)), title, fill=_FAINT, font=small, anchor="rs")
        for i, (color, name, share, score, font) in enumerate(column):
            y = px(28) + line * i
            draw.rounded_rectangle((x + px(14), y, x + px(30), y + px(16)), px(3), fill=color)
            draw.text((x + px(38), y + px(8)), name, fill=_INK, font=font, anchor="lm")
            for number, end in zip((share, score), ends):
                draw.text((end, y + px(8)), number, fill=_INK, font=font_for(text), anchor="rm")
        x += width
    if more > 0:
        draw.text((px(14), tall - px(8)), f"and {more} more", fill=_FAINT, font=small, anchor="ls")
    return legend


def in_grid(rows: typing.Sequence[typing.Sequence[Image.Image]], titles: typing.Sequence[str]
            ) -> Image.Image:
    """Drawings in rows, below the titles of the columns."""
    text = max(text_size(*view.size) for row in rows for view in row) + 2
    margin, head = round(text / 2), 2 * text
    widths = [max(row[k].width for row in rows) for k in range(len(titles))]
    lefts = np.cumsum([margin] + [width + margin for width in widths]).tolist()
    tops = np.cumsum([head] + [max(view.height for view in row) + margin for row in rows]).tolist()
    canvas = Image.new("RGB", (lefts[-1], tops[-1]), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for k, title in enumerate(titles):
        font = font_for(text, [title])
        draw.text((lefts[k] + widths[k] / 2, head / 2), fit(title, font, widths[k]), fill=_INK,
                  font=font, anchor="mm")
        for row, top in zip(rows, tops):
            canvas.paste(row[k], (lefts[k] + (widths[k] - row[k].width) // 2, top))
    return canvas


def to_png(picture: Image.Image, **options) -> bytes:
    """A picture as the content of a PNG file; options are Pillow's.

    Photographs are packed faster than by the usual level, and larger: they hardly shrink further.
    """
    if picture.mode == "RGB" and not options:
        pixels = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".png", pixels, _PHOTOGRAPH)[1].tobytes()
    content = io.BytesIO()
    picture.save(content, "PNG", **(dict(compress_level=2) | options))
    return content.getvalue()


def label_map_png(label_map: np.ndarray) -> bytes:
    """A label map as the content of a PNG file, that `data.images.read_label_map` reads back.

    Up to 255 it has 8 bits and a palette, so that viewers show colours (number n as class n is
    drawn elsewhere, 255, which means nothing, black); else 16 bits.

    Args:
      label_map: [H, W] integers, 0 ... 65535.

    Raises:
      ValueError: numbers out of range.
    """
    low, high = label_map.min(initial=0), label_map.max(initial=0)
    if label_map.dtype.kind not in "iub" or low < 0 or high > 65535:
        raise ValueError(f"the label map holds {label_map.dtype} in {low} ... {high}, "
                         "wanted integers in 0 ... 65535")
    if high > 255:
        return to_png(Image.fromarray(label_map.astype(np.uint16)), compress_level=6)
    picture = Image.fromarray(label_map.astype(np.uint8)).convert("L")
    picture.putpalette([c for i in range(255) for c in class_color(i)] + [0, 0, 0])  # now mode "P"
    return to_png(picture, bits=8, compress_level=6)


def draw_comparison(rows: typing.Sequence[typing.Sequence[Panel]], titles: typing.Sequence[str],
                    side: int = 256) -> Image.Image:
    """A grid of panels; every region carries its name, wrong ones in red with a cross.

    Args:
      rows: panels of each row; as many as there are titles.
      titles: of the columns.
      side: the longer side of a panel, pixels.

    Raises:
      ValueError: a row has another number of panels than there are titles.
    """
    for row in rows:
        if len(row) != len(titles):
            raise ValueError(f"a row has {len(row)} panels, wanted {len(titles)}, one a title")
    return in_grid([[draw_panel(Panel(*panel), side) for panel in row] for row in rows], titles)


class View(typing.NamedTuple):
    """A picture whose masks a model has named, and whose true names are known."""

    image: np.ndarray     # [H, W, 3] uint8
    segments: np.ndarray  # see `Panel`
    # Of segments 1, 2, ...: what the model said, and what is true (None: nothing is known there).
    names: list[tuple[str, str | None]]


def draw_views(models: typing.Sequence[typing.Sequence[View]], titles: typing.Sequence[str], *,
               generated: bool = False) -> Image.Image:
    """A grid of pictures: the ground truth's names first, then one column for each model.

    Args:
      models: what each of them said of the same pictures.
      titles: of the models.
      generated: the masks were given to nobody; in place of the ground truth stands the photograph.
    """
    rows = []
    for views in zip(*models):
        image, segments, pairs = views[0]
        row = [Panel(image, np.zeros_like(segments)) if generated else
               Panel(image, segments, [(truth, None) for _, truth in pairs])]
        row += [Panel(image, view.segments, [
            (said, None if truth is None else said == truth) for said, truth in view.names])
            for view in views]
        rows.append(row)
    return draw_comparison(rows, ["photograph" if generated else "ground truth", *titles])


class Example(typing.NamedTuple):
    """One cell of a contact sheet."""

    image: np.ndarray      # [H, W, 3] uint8
    segments: np.ndarray   # [H, W] integers, 0 = none
    names: list[str]       # of segments 1, 2, ...
    colors: list[Color | None]
    caption: str


def draw_contact_sheet(examples: typing.Sequence[Example], title: str, *, columns: int = 2,
                       side: int = 320) -> Image.Image:
    """Examples of a data set: each picture as it is, and with its coloured and named masks.

    Args:
      examples: at least one.
      title: above all.
      columns: how many examples stand side by side.
      side: the longer side of a picture, pixels.
    """
    margin, head, line = 12, 44, 22
    wide = 2 * side + 4
    cells = []
    for example in examples:
        plain = draw_panel(Panel(example.image, np.zeros_like(example.segments)), side)
        masked = draw_panel(Panel(example.image, example.segments,
                                  [(name, None) for name in example.names], example.colors), side)
        cell = Image.new("RGB", (wide, line + plain.height), _PAPER)
        cell.paste(plain, (0, line))
        cell.paste(masked, (plain.width + 4, line))
        font = font_for(13, [example.caption])
        ImageDraw.Draw(cell).text((0, line - 6), fit(example.caption, font, wide), fill=_INK,
                                  font=font, anchor="ls")
        cells.append(cell)
    rows = [cells[i:i + columns] for i in range(0, len(cells), columns)]
    columns = min(columns, len(cells))
    tops = np.cumsum([head] + [max(c.height for c in row) + margin for row in rows])
    sheet = Image.new("RGB", (margin + columns * (wide + margin), int(tops[-1])), _PAPER)
    font = font_for(18, [title])
    ImageDraw.Draw(sheet).text((margin, head / 2), fit(title, font, sheet.width - 2 * margin),
                               fill=_INK, font=font, anchor="lm")
    for row, top in zip(rows, tops):
        for k, cell in enumerate(row):
            sheet.paste(cell, (margin + k * (wide + margin), int(top)))
    return sheet


def draw_dots(names: typing.Sequence[str], series: typing.Mapping[str, list[list[float]]],
              title: str) -> Image.Image:
    """A line for each name, with a dot for each value and a stroke at their mean.

    Args:
      names: of the lines.
      series: for each title, values of every line; each has a colour of its own.
      title: what the values are; they share one axis.
    """
    font, line, left, wide, head = font_for(14, names), 30, 300, 620, 64
    values = [v for rows in series.values() for row in rows for v in row] or [0.0]
    step = next(s for s in (1, 2, 5, 10, 20, 50) if max(values) - min(values) <= 8 * s or s == 50)
    low, high = step * (min(values) // step), step * (max(values) // step + 1)
    x_of = lambda v: left + wide * (v - low) / (high - low)
    drawing = Image.new("RGB", (left + wide + 40, head + line * len(names) + 40), _PAPER)
    draw = ImageDraw.Draw(drawing)
    draw.text((16, 20), title, fill=_INK, font=font_for(16), anchor="lm")
    bottom, x = head + line * len(names), 16.0
    for k, name in enumerate(series):
        draw.ellipse((x, 40, x + 10, 50), fill=class_color(k))
        draw.text((x + 16, 45), name, fill=_INK, font=font, anchor="lm")
        x += 40 + font.getlength(name)
    for n in range(round((high - low) / step) + 1):
        tick = low + n * step
        draw.line((x_of(tick), head, x_of(tick), bottom), fill=(225, 225, 225))
        draw.text((x_of(tick), bottom + 8), f"{tick:g}", fill=_FAINT, font=font, anchor="mt")
    for row, name in enumerate(names):
        y = head + line * (row + 0.5)
        draw.text((left - 14, y), fit(name, font, left - 30), fill=_INK, font=font, anchor="rm")
        for k, rows in enumerate(series.values()):
            for value in rows[row]:
                draw.ellipse((x_of(value) - 4, y - 4, x_of(value) + 4, y + 4), fill=class_color(k))
            if rows[row]:
                mean = x_of(sum(rows[row]) / len(rows[row]))
                draw.line((mean, y - 10, mean, y + 10), fill=class_color(k), width=3)
    return drawing


def borders(labels: np.ndarray, thickness: int) -> np.ndarray:
    """[H, W] uint8: 1 where a pixel differs from its right or lower neighbour, or is near one."""
    edge = np.zeros(labels.shape, np.uint8)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    if thickness > 1:
        edge = cv2.dilate(edge, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, 2 * (thickness,)))
    return edge


def _resize(image: np.ndarray, height: int, width: int) -> Image.Image:
    """Enlarged pixels stay squares: one sees what the model saw."""
    method = Image.Resampling.NEAREST if height >= image.shape[0] else Image.Resampling.BOX
    return Image.fromarray(image).resize((width, height), method)


def sampled(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Labels at another size, each pixel the one that lies under its middle."""
    if labels.shape == (height, width):
        return labels
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    return labels[rows][:, columns]


def _percent(share: float) -> str:
    return "< 1 %" if share < 0.005 else f"{100 * share:.0f} %"
