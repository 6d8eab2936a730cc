"""Charts as HTML and inline SVG, without scripts: they need nothing but the page they stand in.

Lines are in SVG that stretches with the page, words beside it in HTML, so that they keep their size
on a phone. Colours are variables of the page's style (`STYLE`), which has them for light and dark.
"""

import math
import typing

import numpy as np

from maskclippp_jax.drawing.markup import Markup, element as e

# After Okabe and Ito (jfly.uni-koeln.de/color), so that the colour-blind tell the first ones apart,
# with enough contrast to either background; charts use them in this order.
STYLE = """
:root { --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #a8568a; --c4: #8a6d00; --c5: #5b6670;
  --c6: #7a4b2a;
  --line: #d9dde1; --faint: #5f6973; --ink: #1c2126; --paper: #fff; --box: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root {
  --c0: #6cc0f0; --c1: #ff9a4d; --c2: #3fd0a4; --c3: #e79cc8; --c4: #e8cf4a; --c5: #a4afb9;
  --c6: #c99b77;
  --line: #363d44; --faint: #9aa5b0; --ink: #e4e8ec; --paper: #14181c; --box: #1d2328; } }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; margin: .2rem 0; }
.legend span { display: flex; align-items: baseline; min-width: 0; overflow-wrap: anywhere; }
.legend i { flex: none; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .35rem;
  position: relative; top: 1px; }
.legend b { margin-left: .3rem; }
.plot { position: relative; height: 12rem; margin: .6rem .6rem 1.9rem 3.2rem; font-size: .75rem;
  color: var(--faint); }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot svg.cut { overflow: hidden; }
.plot span { position: absolute; white-space: nowrap; }
.plot .y { right: 100%; margin-right: .4rem; transform: translateY(50%); }
.plot .x { top: 100%; margin-top: .25rem; transform: translateX(-50%); }
.stack { display: flex; height: 1.5rem; border-radius: 4px; overflow: hidden; gap: 1px; }
.bars { display: grid; grid-template-columns: minmax(6rem, 34%) 1fr; gap: .45rem .7rem;
  align-items: center; font-size: .85rem; }
.bars .name { text-align: right; overflow-wrap: anywhere; line-height: 1.15; }
.bars .name small { color: var(--faint); display: block; }
.bar { position: relative; height: .85rem; display: flex; align-items: center; }
.bar b { height: 100%; border-radius: 0 2px 2px 0; min-width: 1px; }
.bar.hatched b { mask-image: repeating-linear-gradient(135deg, #000 0 4px, #0006 4px 7px); }
.bar small { margin-left: .35rem; color: var(--faint); font-size: .72rem; line-height: 1; }
.range { position: relative; height: .95rem; background:
  linear-gradient(var(--line) 0 0) center / 100% 1px no-repeat; }
.range u { position: absolute; top: 50%; height: 3px; margin-top: -1.5px; border-radius: 2px;
  opacity: .55; }
.range b { position: absolute; top: 50%; width: 9px; height: 9px; margin: -4.5px;
  border-radius: 50%; }
"""
_POINTS = 240      # of a line; more are drawn as the mean of neighbours, with a range ...
_RANGE = (10, 90)  # between these percentiles of them
_COLORS = 7


class Series(typing.NamedTuple):
    """A line of a chart."""

    name: str
    x: typing.Sequence[float]
    y: typing.Sequence[float]
    noisy: bool = False  # whether its mean over neighbours is what one wants to see


def color(index: int) -> str:
    return f"var(--c{index % _COLORS})"


def legend(names: typing.Sequence[str], values: typing.Sequence[str] | None = None) -> Markup:
    """Names with their colours, and perhaps a value each."""
    values = values or [""] * len(names)
    return e("div", [e("span", e("i", style=f"background:{color(i)}"), name,
                       e("b", value) if value else "")
                     for i, (name, value) in enumerate(zip(names, values))], class_="legend")


def curves(series: typing.Sequence[Series], what: str, *, from_zero: bool = False) -> Markup:
    """Lines over steps, with a legend that tells their last values.

    Args:
      series: at least one point in all.
      what: the values are, for those who cannot see.
      from_zero: whether the axis begins at 0.
    """
    series = [s for s in series if len(s.x)]
    shown = [(np.asarray(s.x, float), np.asarray(s.y, float)) for s in series]
    means = [_mean_of_neighbours(y) if s.noisy else y for s, (_, y) in zip(series, shown)]
    left, right = (f(x[end] for x, _ in shown) for f, end in ((min, 0), (max, -1)))
    right = max(right, left + 1)
    low = 0.0 if from_zero else min(m.min() for m in means)
    high = max(m.max() for m in means)
    usual = max(np.percentile(m, 97) for m in means)
    off = high if high - low > 3 * (usual - low) > 0 else None  # a few first steps
    ticks = nice_ticks(low, usual + 0.2 * (usual - low) if off else high)
    low, high = ticks[0], ticks[-1]
    place_x = lambda x: 100 * (np.asarray(x) - left) / (right - left)
    place_y = lambda y: 100 - 100 * (np.asarray(y) - low) / (high - low)
    lines = [e("path", d=f"M0 {y:.2f}H100", stroke="var(--line)", **_THIN)
             for y in place_y(ticks)]
    for i, (s, (x, y), mean) in enumerate(zip(series, shown, means)):
        if s.noisy:
            lines.append(_band(place_x(x), place_y(y), i))
        ends = _bins(len(x))[0]
        path = " ".join(f"{a:.2f} {b:.2f}" for a, b in zip(place_x(x[ends]), place_y(mean[ends])))
        lines.append(e("path", d=f"M{path}", stroke=color(i), **{**_THIN, "stroke_width": 2}))
        if len(x) <= 40 and not s.noisy:
            lines += [e("path", e("title", f"step {a:g}: {number(b)}"),
                        d=f"M{place_x(a):.2f} {place_y(b):.2f}h0.001", stroke=color(i),
                        stroke_linecap="round", **{**_THIN, "stroke_width": 7})
                      for a, b in zip(x, y)]
    words = [e("span", number(t), class_="y", style=f"bottom:{100 - place_y(t):.2f}%")
             for t in ticks]
    words += [e("span", number(t), class_="x", style=f"left:{place_x(t):.2f}%")
              for t in nice_ticks(left, right, inside=True)]
    if off:
        words.append(e("span", f"up to {number(off)} before", style="top:0;left:.5rem"))
    picture = e("svg", lines, viewBox="0 0 100 100", preserveAspectRatio="none", role="img",
                aria_label=what, class_="cut" if off else None)
    return e("figure", legend([s.name for s in series], [number(m[-1]) for m in means]),
             e("div", picture, words, class_="plot"))


_THIN = dict(fill="none", vector_effect="non-scaling-stroke", stroke_width=1)


def _bins(count: int) -> tuple[np.ndarray, list[slice]]:
    """The last of each group of neighbours, and the groups; at most `_POINTS` of them."""
    edges = np.unique(np.linspace(0, count, min(count, _POINTS) + 1).round().astype(int))
    return edges[1:] - 1, [slice(a, b) for a, b in zip(edges, edges[1:])]


def _band(x: np.ndarray, y: np.ndarray, index: int) -> Markup:
    """Every value, or the range of neighbours where there are too many; inside the plot."""
    ends, groups = _bins(len(x))
    y = np.clip(y, 0, 100)
    if len(groups) == len(x):
        path = " ".join(f"{a:.2f} {b:.2f}" for a, b in zip(x, y))
        return e("path", d=f"M{path}", stroke=color(index), opacity=0.35, **_THIN)
    low, high = np.transpose([np.percentile(y[g], _RANGE) for g in groups])
    sides = zip([*x[ends], *x[ends][::-1]], [*low, *high[::-1]])
    path = " ".join(f"{a:.2f} {b:.2f}" for a, b in sides)
    return e("path", d=f"M{path}z", fill=color(index), opacity=0.2)


def _mean_of_neighbours(y: np.ndarray) -> np.ndarray:
    """The mean of a thirtieth of all values up to each; fewer at the beginning."""
    window = max(1, len(y) // 30)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    starts = np.maximum(np.arange(len(y)) + 1 - window, 0)
    return (sums[1:] - sums[starts]) / (np.arange(len(y)) + 1 - starts)


def nice_ticks(low: float, high: float, *, inside: bool = False) -> np.ndarray:
    """Four to eight round numbers that enclose a range, or that lie in it."""
    high = high if high > low else low + (abs(low) or 1.0)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(s for s in (1, 2, 5, 10) if raw <= s * power)
    first, last = (math.ceil, math.floor) if inside else (math.floor, math.ceil)
    return step * np.arange(first(low / step + (-1 if inside else 1) * 1e-9),
                            last(high / step + (1 if inside else -1) * 1e-9) + 1)


def number(x: float) -> str:
    """A number for people: three digits that count."""
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.3g}" if x == 0 or abs(x) > 9e-5 else f"{x:.2g}".replace("e-0", "e-")


def shares(parts: typing.Mapping[str, float], words: typing.Callable[[float], str]) -> Markup:
    """One bar cut into parts, the largest first, and what each is in words."""
    whole = sum(parts.values()) or 1.0
    parts = dict(sorted(parts.items(), key=lambda item: -item[1]))
    bar = e("div", [e("div", title=name, style=f"flex:{part / whole:.5f};background:{color(i)}")
                    for i, (name, part) in enumerate(parts.items())], class_="stack")
    return e("figure", bar, legend(list(parts), [
        f"{_percent(p / whole)}, {words(p)}" for p in parts.values()]))


def _percent(share: float) -> str:
    return "< 1 %" if share < 0.005 else f"{100 * share:.0f} %"


class Row(typing.NamedTuple):
    """A line of `bars`."""

    name: str
    note: str
    values: typing.Sequence[float | None]  # one for each name; None: not defined
    hatched: bool = False


def bars(rows: typing.Sequence[Row], high: float = 100.0, *, first: int = 0) -> Markup:
    """Bars from 0 to at most `high`; those of a row lie below each other, in colours from `first`
    on."""
    return e("div", [
        (e("div", row.name, e("small", row.note) if row.note else "", class_="name"),
         e("div", [e("div", *_bar(value, high, i), class_="bar hatched" if row.hatched else "bar")
                   for i, value in enumerate(row.values, first)]))
        for row in rows], class_="bars")


def _bar(value: float | None, high: float, index: int) -> tuple[Markup, ...]:
    if value is None:
        return (e("small", "–"),)
    width = max(0.0, min(88 * value / high, 88))  # percent; the number needs the rest
    return (e("b", style=f"width:{width:.2f}%;background:{color(index)}"),
            e("small", f"{value:.1f}"))


def ranges(rows: typing.Sequence[tuple[str, typing.Sequence[tuple]]], low: float, high: float
           ) -> Markup:
    """Values as dots, with the range around each as a stroke.

    Args:
      rows: name, and for each model the value and its range (each may be None).
      low, high: ends of the axis.
    """
    place = lambda v: 100 * (v - low) / ((high - low) or 1)
    ticks = nice_ticks(low, high, inside=True)

    def marks(found):
        for i, (value, around) in enumerate(found):
            if around:
                a, b = map(place, around)
                yield e("u", style=f"left:{a:.2f}%;width:{b - a:.2f}%;background:{color(i)}")
        for i, (value, _) in enumerate(found):
            if value is not None:
                yield e("b", title=f"{value:.1f}",
                        style=f"left:{place(value):.2f}%;background:{color(i)}")

    axis = e("div", [e("span", number(t), class_="x", style=f"left:{place(t):.2f}%;top:0")
                     for t in ticks], class_="plot", style="height:1rem;margin:0")
    return e("div", [(e("div", name, class_="name"),
                      e("div", list(marks(found)), class_="range")) for name, found in rows],
             e("div"), axis, class_="bars")
