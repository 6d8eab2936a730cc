"""Pictures for people: regions with their names."""

import functools
import io
import typing

import cv2
import numpy as np
from PIL import Image, ImageDraw

from maskclippp_jax.drawing.fonts import fit, font_for

_LARGEST, _SMALLEST = 1024, 384  # pixels of the longer side; others are scaled for the drawing
_ENTRIES = 40                    # of a legend
_LINE = 24                       # pixels a line of it is high
_COLORS = 256                    # distinct ones; then they repeat
_NAMED = 20                      # masks of a picture that get a name on them
_WORTH_A_NAME = 0.004            # share of a picture from which on a region gets one
_INK, _FAINT, _PAPER, _WRONG = (30, 30, 30), (130, 130, 130), (255, 255, 255), (255, 95, 85)


def class_color(index: int) -> tuple[int, int, int]:
    """A colour of a class: the same in every picture, and far from those of lower indices."""
    return _colors()[index % _COLORS]


@functools.cache
def _colors() -> tuple[tuple[int, int, int], ...]:
    """Vivid colours, each the farthest (CIE Lab) from all before it."""
    steps = np.linspace(0, 1, 13, dtype=np.float32)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = cv2.cvtColor(rgb[None], cv2.COLOR_RGB2LAB)[0]
    vivid = (lab[:, 0] > 35) & (lab[:, 0] < 88) & (np.hypot(lab[:, 1], lab[:, 2]) > 35)
    rgb, lab = rgb[vivid], lab[vivid]
    chosen = [int(np.linalg.norm(lab - [65, 40, 60], axis=-1).argmin())]  # begin with an orange
    nearest = np.full(len(lab), np.inf)
    while len(chosen) < _COLORS:
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=-1))
        chosen.append(int(nearest.argmax()))
    return tuple(tuple(round(255 * float(c)) for c in rgb[i]) for i in chosen)


def draw_overlay(image: np.ndarray, label_map: np.ndarray, names: typing.Sequence[str],
                 scores: typing.Mapping[int, float] | None = None,
                 segments: np.ndarray | None = None) -> Image.Image:
    """A picture with coloured and named regions, and a legend beside it, the largest class first:
    its share of the pixels and its score.

    Args:
      image: [H, W, 3] uint8.
      label_map: [H, W] integer class of each pixel, -1 = none.
      names: of all classes.
      scores: best score of each class that occurs, shown in the legend.
      segments: [H, W] integers that tell apart what is of one class, 0 = nothing: each has an
        outline and, unless it is small, its name on it. None: each class has.

    Returns:
      The drawing. Pictures over 1024 pixels are scaled down, small ones enlarged by a whole number.

    Raises:
      ValueError: picture and label map differ in size, or a class has no name.
    """
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"the picture is {image.shape[:2]}, the label map {label_map.shape}; "
                         "give one of the same size")
    if label_map.max(initial=-1) >= len(names):
        raise ValueError(f"the label map holds class {label_map.max()}, but there are {len(names)} "
                         "names")
    # Row by row, as a copy of a large map takes gigabytes.
    counts = sum((np.bincount(row[row >= 0], minlength=len(names)) for row in label_map),
                 start=np.zeros(len(names), np.int64))
    classes = np.flatnonzero(counts)
    areas = counts[classes]
    order = np.argsort(-areas, kind="stable")
    classes, areas = classes[order], areas[order]

    longest = max(image.shape[:2])
    factor = _LARGEST / longest if longest > _LARGEST else max(1, _SMALLEST // longest)
    height, width = (max(1, round(n * factor)) for n in image.shape[:2])
    labels = _enlarge(label_map, height, width)
    picture = np.asarray(_resize(image, height, width), np.float32)
    table = np.array([class_color(int(c)) for c in classes] or [_PAPER], np.float32)
    position = np.zeros(len(names) + 1, int)
    position[classes] = np.arange(len(classes))
    # Mostly the picture's brightness shows through, so that regions look like their legend.
    grey = 0.3 * picture + 0.7 * picture.mean(-1, keepdims=True)
    tinted = np.where((labels >= 0)[..., None], 0.5 * grey + 0.5 * table[position[labels]], picture)
    parts = labels + 1 if segments is None else _enlarge(segments, height, width)
    line = max(1, round(max(height, width) / 500))
    tinted[_borders(labels, line) | (_borders(parts, line) & (labels >= 0))] = _PAPER
    view = Image.fromarray(tinted.astype(np.uint8))
    _write_names(view, labels, parts, names)

    font = font_for(15, (names[int(c)] for c in classes[:_ENTRIES]))
    entries = [(class_color(int(c)), fit(names[int(c)], font, 230),
                _percent(area / label_map.size),
                "" if scores is None else f"{scores.get(int(c), 0.0):.2f}")
               for c, area in zip(classes[:_ENTRIES], areas)]
    legend = _draw_legend(entries, len(classes) - len(entries), height, scores is not None, font)
    canvas = Image.new("RGB", (width + legend.width, max(height, legend.height)), _PAPER)
    canvas.paste(view, (0, 0))
    canvas.paste(legend, (width, 0))
    return canvas


def _write_names(view: Image.Image, labels: np.ndarray, parts: np.ndarray,
                 names: typing.Sequence[str]) -> None:
    """Writes the names of the largest parts of a drawing on them, none on another.

    Args:
      view: is drawn on.
      labels: [h, w] classes, -1 = none.
      parts: [h, w] integers, 0 = nothing.
      names: of the classes.
    """
    sizes = np.bincount(np.where(labels >= 0, parts, 0).ravel())
    largest = np.argsort(-sizes[1:], kind="stable")[:_NAMED] + 1
    taken: list[tuple[float, float, float, float]] = []
    draw = ImageDraw.Draw(view)
    for part in largest:
        if sizes[part] < _WORTH_A_NAME * labels.size:
            return
        inside = (parts == part) & (labels >= 0)
        name = names[np.bincount(labels[inside]).argmax()]
        font = font_for(14, [name])
        text = fit(name, font, view.width - 6)
        half = font.getlength(text) / 2 + 2
        x, y = _free_place(*_middle(inside), half, 9, view.width, view.height, taken)
        if not inside[min(int(y), view.height - 1), min(int(x), view.width - 1)]:
            continue  # its place is covered by others; the legend has it
        taken.append((x - half, y - 9, x + half, y + 9))
        draw.text((x - half + 2, y), text, fill=_PAPER, font=font, anchor="lm", stroke_width=2,
                  stroke_fill=(0, 0, 0))


def _draw_legend(entries: list[tuple], more: int, height: int, scored: bool, font) -> Image.Image:
    """Entries (colour, name, share, score) in as many columns as the picture's height asks for."""
    small = font_for(12)
    lines = max(12, (height - 30 - _LINE * (more > 0)) // _LINE)
    if entries:
        lines = -(-len(entries) // -(-len(entries) // lines))  # the same in every column
    columns = [entries[i:i + lines] for i in range(0, len(entries), lines)]
    names = [max(small.getlength("and 999 more"), *(font.getlength(e[1]) for e in column))
             for column in columns]
    numbers = 52 + 46 * scored  # pixels of the right-aligned shares and scores
    widths = [round(38 + name + 10 + numbers) for name in names]
    tall = 30 + _LINE * max((len(column) for column in columns), default=0) + _LINE * (more > 0)
    legend = Image.new("RGB", (sum(widths) + 14 if columns else 14, tall), _PAPER)
    draw = ImageDraw.Draw(legend)
    x = 0
    for column, width in zip(columns, widths):
        ends = (x + width - 46 * scored, x + width)  # where shares and scores end
        for title, end in zip(("share", "score")[:1 + scored], ends):
            draw.text((end, 20), title, fill=_FAINT, font=small, anchor="rs")
        for i, (color, name, share, score) in enumerate(column):
            y = 28 + _LINE * i
            draw.rounded_rectangle((x + 14, y, x + 30, y + 16), 3, fill=color)
            draw.text((x + 38, y + 14), name, fill=_INK, font=font, anchor="ls")
            for text, end in zip((share, score), ends):
                draw.text((end, y + 14), text, fill=_INK, font=font, anchor="rs")
        x += width
    if more > 0:
        draw.text((14, tall - 8), f"and {more} more", fill=_FAINT, font=small, anchor="ls")
    return legend


def to_png(picture: Image.Image, **options) -> bytes:
    """A picture as the content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "PNG", **options)
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
        return to_png(Image.fromarray(label_map.astype(np.uint16)))
    picture = Image.fromarray(label_map.astype(np.uint8)).convert("L")
    picture.putpalette([c for i in range(255) for c in class_color(i)] + [0, 0, 0])  # now mode "P"
    return to_png(picture, bits=8)


class Panel(typing.NamedTuple):
    """One picture of a comparison."""

    image: np.ndarray     # [H, W, 3] uint8
    segments: np.ndarray  # of any size with the same sides' ratio, 0 = none
    # Of segments 1, 2, ...: text (None: not written), and whether it is right.
    names: list[tuple[str | None, bool | None]]


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
    margin, head = 8, 32
    drawn = []
    for row in rows:
        if len(row) != len(titles):
            raise ValueError(f"a row has {len(row)} panels, wanted {len(titles)}, one a title")
        drawn.append([_draw_panel(Panel(*panel), side) for panel in row])
    tops = [head]
    for views in drawn:
        tops.append(tops[-1] + max(v.height for v in views) + margin)
    canvas = Image.new("RGB", (margin + len(titles) * (side + margin), tops[-1]), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for k, title in enumerate(titles):
        left = margin + k * (side + margin)
        draw.text((left + side / 2, head / 2), fit(title, font_for(16, [title]), side),
                  fill=_INK, font=font_for(16, [title]), anchor="mm")
        for views, top in zip(drawn, tops):
            canvas.paste(views[k], (left + (side - views[k].width) // 2, top))
    return canvas


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
        row = [Panel(image, np.zeros_like(segments), []) if generated else
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
    colors: list[tuple[int, int, int]]
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
        most = sorted(range(len(example.names)), reverse=True,
                      key=lambda n: (example.segments == n + 1).sum())[:_NAMED]
        names = [(name if n in most else None, None) for n, name in enumerate(example.names)]
        plain = _draw_panel(Panel(example.image, np.zeros_like(example.segments), []), side)
        masked = _draw_panel(Panel(example.image, example.segments, names), side, example.colors)
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


def _draw_panel(panel: Panel, side: int,
                colors: typing.Sequence[tuple[int, int, int]] = ()) -> Image.Image:
    """The picture with borders and names of its segments, tinted if they have colours."""
    factor = side / max(panel.image.shape[:2])
    height, width = (max(1, round(n * factor)) for n in panel.image.shape[:2])
    segments = _enlarge(panel.segments, height, width)
    pixels = np.array(_resize(panel.image, height, width))
    if len(colors):
        grey = 0.4 * pixels + 0.6 * pixels.mean(-1, keepdims=True)
        tints = np.array([(0, 0, 0), *colors], np.float32)[segments]
        pixels = np.where((segments > 0)[..., None], 0.5 * grey + 0.5 * tints, pixels)
        pixels = pixels.astype(np.uint8)
    pixels[_borders(segments, 1)] = _PAPER
    view = Image.fromarray(pixels)
    draw = ImageDraw.Draw(view)
    cross = 13  # it is drawn: the built-in font has no such letter
    font = font_for(14, (name for name, _ in panel.names if name))
    taken: list[tuple[float, float, float, float]] = []
    for n, (name, right) in enumerate(panel.names, start=1):
        mask = segments == n
        if name is None or not mask.any():
            continue
        extra = cross if right is False else 0
        text = fit(name, font, width - extra - 6)
        half = (font.getlength(text) + extra) / 2 + 2
        x, y = _free_place(*_middle(mask), half, 9, width, height, taken)
        taken.append((x - half, y - 9, x + half, y + 9))
        draw.text((x - half + 2, y), text, fill=_WRONG if right is False else _PAPER, font=font,
                  anchor="lm", stroke_width=2, stroke_fill=(0, 0, 0))
        if right is False:
            _draw_cross(draw, x + half - 6, y)
    return view


def _draw_cross(draw: ImageDraw.ImageDraw, x: float, y: float, reach: int = 4) -> None:
    for fill, wide in (((0, 0, 0), 6), (_WRONG, 2)):
        grow = 1 if wide > 2 else 0
        for slope in (-1, 1):
            draw.line((x - reach - grow, y - slope * (reach + grow),
                       x + reach + grow, y + slope * (reach + grow)), fill=fill, width=wide)


def _free_place(x: float, y: float, half: float, rise: float, width: int, height: int,
                taken: list[tuple[float, float, float, float]]) -> tuple[float, float]:
    """The place nearest to (x, y) where a text inside the picture covers no other, if any."""
    x = min(max(x, half), max(width - half, half))
    for step in range(0, height, 3):
        for moved in (y + step, y - step):
            place = min(max(moved, rise), max(height - rise, rise))
            if not any(x - half < right and x + half > left and place - rise < bottom
                       and place + rise > top for left, top, right, bottom in taken):
                return x, place
    return x, y


def _middle(mask: np.ndarray) -> tuple[float, float]:
    """The pixel of a region that is farthest from its border: (x, y)."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x), float(y)


def _borders(labels: np.ndarray, thickness: int) -> np.ndarray:
    """[H, W] bool: the pixel differs from its right or lower neighbour (or is near to one)."""
    edge = np.zeros(labels.shape, np.uint8)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return cv2.dilate(edge, np.ones((thickness, thickness), np.uint8)).astype(bool)


def _resize(image: np.ndarray, height: int, width: int) -> Image.Image:
    """Enlarged pixels stay squares: one sees what the model saw."""
    method = Image.Resampling.NEAREST if height >= image.shape[0] else Image.Resampling.BOX
    return Image.fromarray(image).resize((width, height), method)


def _enlarge(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Labels at another size, each pixel the one that lies under its corner."""
    rows = np.arange(height) * labels.shape[0] // height
    columns = np.arange(width) * labels.shape[1] // width
    return labels[rows][:, columns]


def _percent(share: float) -> str:
    return "< 1 %" if share < 0.005 else f"{100 * share:.0f} %"
