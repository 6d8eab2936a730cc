"""One page of a run, of its training or of an evaluation: HTML in one file, that needs no network.
"""

import base64
import csv
import io
import json
import typing

from etils import epath

from maskclippp_jax.drawing import charts, report
from maskclippp_jax.drawing.charts import Row, Series
from maskclippp_jax.drawing.markup import Markup, element as e, join
from maskclippp_jax.evaluation import tables
from maskclippp_jax.publishing.measured import FILE as RESULTS
from maskclippp_jax.runs import ledger, run_log
from maskclippp_jax.runtime import storage, typed

_WIDEST = 1600  # pixels of a picture in the page
_ENDS = 12      # classes at either end of a list that is shown at once; the others unfold
_WORST = 15     # confusions that are shown at once
_STYLE = charts.STYLE + """
* { box-sizing: border-box; }
html { color-scheme: light dark; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; overflow-x: clip; }
h1 { font-size: 1.6rem; margin: .6rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.3rem 0 .2rem; overflow-wrap: anywhere; }
p, .faint { color: var(--faint); margin: .3rem 0; }
figure { margin: 0; min-width: 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .8rem 0; }
a { color: var(--c0); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.tiles div { background: var(--box); border-radius: 8px; padding: .5rem .8rem; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; }
.tiles small { color: var(--faint); display: block; line-height: 1.25; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: .4rem 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; }
td.n, th.n { text-align: right; padding: .25rem 0 .25rem .7rem;
  font-variant-numeric: tabular-nums; }
td small { color: var(--faint); display: block; white-space: nowrap; }
tr.gap td { border-bottom-color: var(--faint); }
td.in { padding-left: 1.1rem; color: var(--faint); }
dl { display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr); gap: .1rem 1rem;
  font-size: .9rem; }
dt { color: var(--faint); }
dt, dd { margin: 0; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; border-radius: 4px;
  background: #fff; }
summary { cursor: pointer; color: var(--c0); margin: .6rem 0; }
pre { overflow-x: auto; font-size: .8rem; background: var(--box); padding: .8rem;
  border-radius: 8px; }
@media (max-width: 34rem) { dl { grid-template-columns: minmax(0, 1fr); } dt { margin-top: .4rem; }
  .bars { grid-template-columns: minmax(5rem, 38%) 1fr; } }
.wide .bars { grid-template-columns: minmax(8rem, 52%) 1fr; }
"""


class Section(typing.NamedTuple):
    title: str
    content: Markup


def write(workdir: epath.Path, output: storage.Name) -> None:
    """Writes the page of a run.

    Args:
      workdir: what `train` or `evaluate` wrote to.
      output: file of HTML; its folder is made.

    Raises:
      FileNotFoundError: no run there.
      ValueError: a file of it cannot be read.
    """
    content = page(workdir)
    output.parent.mkdir(parents=True, exist_ok=True)
    storage.write(output, content)


def page(workdir: epath.Path) -> str:
    """The page's content, see `write`."""
    results = [f for f in (workdir / RESULTS, *sorted(workdir.glob(f"*/{RESULTS}"))) if f.exists()]
    is_run = (workdir / "metrics.jsonl").exists()
    if not is_run and not results:
        raise FileNotFoundError(f"{workdir} is no run: it has neither metrics.jsonl, as `train` "
                                f"writes it, nor {RESULTS}, as `evaluate` does; give their "
                                "--workdir")
    tiles, sections = [], []
    if is_run:
        tiles, sections = _training(workdir)
    for file in results:
        more, found = _evaluation(file, "" if file.parent == workdir else file.parent.name)
        tiles += more
        sections += found
    links = e("nav", [e("a", s.title, href=f"#s{i}") for i, s in enumerate(sections)])
    kind = "training run" if is_run else "evaluation"
    body = e("body", e("h1", workdir.name), e("p", f"MaskCLIP++, {kind}"), _tiles(tiles), links,
             [(e("h2", s.title, id=f"s{i}"), s.content) for i, s in enumerate(sections)])
    head = e("head", Markup('<meta charset="utf-8"><meta name="viewport" '
                            'content="width=device-width, initial-scale=1">'),
             e("title", f"{workdir.name}: {kind}"), e("style", Markup(_STYLE)))
    return f"<!doctype html>\n{e('html', head, body, lang='en')}\n"


def _tiles(tiles: list[tuple[str, str]]) -> Markup:
    return e("div", [e("div", e("b", value), e("small", what)) for what, value in tiles],
             class_="tiles")


# Of a training run.


def _training(workdir: epath.Path) -> tuple[list[tuple[str, str]], list[Section]]:
    metrics, speed = (_rows(workdir / f"{name}.jsonl") for name in ("metrics", "speed"))
    config = _config(workdir)
    lines = ledger.read(workdir / ledger.FILE)
    steps = config.get("train", {}).get("steps") if isinstance(config.get("train"), dict) else None
    last = metrics[-1]["step"] if metrics else 0
    tiles = [("steps" + (f" of {steps:,}" if steps else ""), f"{last:,}")]
    looks = [r for r in metrics if "eval/mask_accuracy" in r]
    if looks:
        best = max(looks, key=lambda r: r["eval/mask_accuracy"])
        tiles.append((f"best mask accuracy in validation, after step {best['step']:,}",
                      f"{best['eval/mask_accuracy']:.1f} %"))
    if speed:
        rates = sorted(r["images_per_second"] for r in speed)
        tiles.append(("images/s, median", charts.number(rates[len(rates) // 2])))
    if lines:
        whole = sum(ledger.summary(lines).values())
        tiles.append(("of all starts, and lost between them", ledger.duration(whole)))
    sections = [Section("Learning", _learning(metrics))] if metrics else []
    if lines or speed:
        sections.append(Section("Time and speed", _time(lines, speed)))
    drawn = sorted((workdir / "pictures").glob("*.png"), key=lambda f: int(f.stem)
                   if f.stem.isdigit() else -1) if (workdir / "pictures").exists() else []
    if drawn:
        shown = [drawn[-1], *drawn[:1]] if len(drawn) > 1 else drawn
        sections.append(Section("Looks at validation pictures", join(
            (e("h3", f"after step {f.stem}"), _image(f, f"named masks after step {f.stem}"))
            for f in shown)))
    if (workdir / "parameters.json").exists():
        sections.append(Section("What is tuned", _parameters(workdir / "parameters.json")))
    if config:
        sections.append(Section("Configuration", e("details", e("summary", "all keys"), e(
            "pre", json.dumps(config, indent=1)))))
    return tiles, sections


def _rows(file: epath.Path) -> list[dict[str, float]]:
    """The lines of a log, those cut by a kill left out, with numbers alone."""
    rows = map(run_log.row_of, file.read_bytes().splitlines() if file.exists() else ())
    return [{k: v for k, v in row.items() if isinstance(v, int | float)} for row in rows if row]


def _config(workdir: epath.Path) -> dict:
    file = workdir / "config.json"
    return typed.read(file, dict[str, typing.Any]) if file.exists() else {}


def _series(rows: list[dict], keys: typing.Mapping[str, str], *, times: float = 1.0,
            noisy: bool = False) -> list[Series]:
    """The values of keys that are there, under their names."""
    found = []
    for key, name in keys.items():
        points = [(r["step"], times * r[key]) for r in rows if key in r]
        if points:
            found.append(Series(name, *zip(*points), noisy=noisy))
    return found


def _learning(metrics: list[dict]) -> Markup:
    keys = {key for row in metrics for key in row}

    def named(start: str, whole: str = "all") -> dict[str, str]:
        return {k: k.partition("/")[2] or whole for k in sorted(keys) if k.startswith(start)}

    in_training = _series(metrics, {"mask_accuracy": "in training"}, times=100, noisy=True)
    looks = _series(metrics, {"eval/mask_accuracy": "validation", "eval/seen": "seen classes",
                              "eval/unseen": "unseen classes"})
    shown = [
        ("loss", _series(metrics, {"loss": "loss"}, noisy=True), False),
        ("mask accuracy, percent", looks + in_training, False),
        ("learning rate", _series(metrics, named("learning_rate", "base")), True),
        ("distance from the original weights, relative", _series(metrics, named("distance/")),
         True)]
    more = [("norm of gradients", _series(metrics, named("grad_norm"), noisy=True), True),
            ("norm of updates", _series(metrics, named("update_norm"), noisy=True), True)]
    note = e("p", "Strong lines of the loss and of the training accuracy are means over a "
             "thirtieth of the steps, shades the middle 80 % of neighbouring steps.")
    return join([note, _charts(shown), e("details", e("summary", "gradients and updates"),
                                         _charts(more)) if any(s for _, s, _ in more) else ""])


def _charts(shown: list[tuple[str, list[Series], bool]]) -> Markup:
    return e("div", [e("div", e("h3", title), charts.curves(series, title, from_zero=from_zero))
                     for title, series, from_zero in shown if series], class_="pair")


def _time(lines: list[ledger.Line], speed: list[dict]) -> Markup:
    content = []
    if lines:
        parts = {k: s for k, s in ledger.summary(lines).items() if s > 0}
        starts = len({line["start"] for line in lines})
        content += [e("p", f"Every second of {starts} start{'s' * (starts > 1)}, and what was lost "
                      "in between."), charts.shares(parts, ledger.duration)]
    percent = lambda key, name: _series(speed, {key: name}, times=100)
    content.append(_charts([
        ("images/s", _series(speed, {"images_per_second": "images/s"}), True),
        ("share of time, percent", percent("input_wait_share", "waiting for data")
         + percent("mfu", "of the device's peak (MFU)"), True),
        ("memory, GiB", _series(speed, {"memory_gib": "in use", "peak_memory_gib": "peak"}),
         True)]))
    return join(content)


class _Group(typing.TypedDict):
    """A line of parameters.json."""

    parameters: str
    trainable: int
    of: int
    learning_rate: str
    decay: str


def _parameters(file: epath.Path) -> Markup:
    groups = typed.read(file, list[_Group])
    learns, whole = (sum(g[key] for g in groups) for key in ("trainable", "of"))
    rows = [(g["parameters"], f"{g['trainable']:,}", f"{g['of']:,}", g["learning_rate"],
             g["decay"]) for g in groups if g["trainable"]]
    return join([
        e("p", f"{learns:,} of {whole:,} parameters learn ({100 * learns / max(whole, 1):.1f} %)."),
        e("details", e("summary", f"the {len(rows)} groups that do"), _table(
            ("parameters", "learn", "of", "learning rate", "decay"), rows))])


# Of an evaluation.


def _evaluation(file: epath.Path, folder: str) -> tuple[list[tuple[str, str]], list[Section]]:
    results = typed.read(file, tables.Results)
    models, protocol = results["models"], results.get("protocol", {})
    for m in models:
        if not isinstance(m.get("name"), str):
            raise ValueError(f"{file} has a model without a name; evaluate anew")
    names = [m["name"] for m in models]
    title = lambda what: f"{what}, {folder}" if folder else what
    tiles = [("pictures evaluated", f"{protocol['pictures']:,}")] if isinstance(
        protocol.get("pictures"), int) else []
    for what, way, key in (("mask accuracy", ("mask_accuracy",), "mMaskAcc"),
                           ("mIoU", ("semantic",), "mIoU"), ("PQ", ("panoptic", "all"), "PQ"),
                           ("AP", ("instances",), "AP")):
        found = [(v, m["name"]) for m in models if (v := _value(m, way, key)) is not None]
        if found:
            value, name = max(found)
            best = f", best of {len(found)}: {name}" if len(found) > 1 else ""
            tiles.append((f"{what}{best}", f"{value:.1f}"))
    sections = [Section(title("Results"), join([_dots(models), _results(models)]))]
    rows = _csv(file.parent / "per_class.csv")
    if rows:
        sections.append(Section(title("Classes"), _classes(rows, names)))
    pairs = _csv(file.parent / "confusions.csv")
    if pairs:
        sections.append(Section(title("Confusions"), _confusions(pairs, names)))
    drawn = [(file.parent / "comparison.png", "The first pictures")]
    drawn += [(file.parent / f"extremes-{i}.png", f"The best and the worst pictures of {name}")
              for i, name in enumerate(names)]
    drawn = [(f, what) for f, what in drawn if f.exists()]
    if drawn:
        sections.append(Section(title("Pictures"), join(
            (e("h3", what), _image(f, what)) for f, what in drawn)))
    facts = dict(protocol) | {f"model {m['name']}": m["checkpoint"] for m in models
                              if isinstance(m.get("checkpoint"), str)}
    sections.append(Section(title("Protocol"), e("dl", [
        (e("dt", key), e("dd", report.words(value))) for key, value in facts.items()])))
    return tiles, sections


_DOTS = (
    ("mask accuracy", ("mask_accuracy",), "mMaskAcc"), ("… seen", ("mask_accuracy",), "seen"),
    ("… unseen", ("mask_accuracy",), "unseen"), ("mIoU", ("semantic",), "mIoU"),
    ("… seen", ("semantic",), "mIoU_seen"), ("… unseen", ("semantic",), "mIoU_unseen"),
    ("PQ", ("panoptic", "all"), "PQ"), ("… seen", ("panoptic", "seen"), "PQ"),
    ("… unseen", ("panoptic", "unseen"), "PQ"), ("AP", ("instances",), "AP"),
    ("… seen", ("instances",), "AP_seen"), ("… unseen", ("instances",), "AP_unseen"))


def _value(model: dict, way: tuple[str, ...], key: str) -> float | None:
    part = model
    for step in (*way, key):
        part = part.get(step) if isinstance(part, dict) else None
    return part if isinstance(part, int | float) else None


def _dots(models: list[dict]) -> Markup:
    """The numbers that matter most, with their ranges."""
    rows = []
    for name, way, key in _DOTS:
        # Ranges of the parts of PQ are kept by other names, or not at all.
        around = [((m.get(way[0]) or {}).get("intervals") or {}).get(key)
                  if way[1:] in ((), ("all",)) else None for m in models]
        found = [(_value(m, way, key), a) for m, a in zip(models, around)]
        if any(value is not None for value, _ in found):
            rows.append((name, found))
    if not rows:
        return Markup()
    ends = [x for _, found in rows for value, around in found
            for x in (value, *(around or ())) if x is not None]
    ticks = charts.nice_ticks(min(ends), max(ends))
    return join([charts.legend([m["name"] for m in models]),
                 charts.ranges(rows, ticks[0], ticks[-1]),
                 e("p", "Dots are values in percent, strokes where 95 % of bootstrap samples over "
                   "pictures lie, of those that have such.")])


def _results(models: list[dict]) -> Markup:
    rows = [row for row in report.result_rows(models) if row is None or set(row[1:]) != {"–"}]
    body = [e("tr", e("td", row[0].strip(), class_="in" if row[0][0] == " " else None),
              map(_cell, row[1:]), class_="gap" if after is None else None)
            for row, after in zip(rows, [*rows[1:], None]) if row]
    head = e("tr", e("th", "percent"), [e("th", m["name"], class_="n") for m in models])
    return e("details", e("summary", "all numbers"), e("div", e("table", head, body),
                                                       class_="scroll"))


def _cell(text: str) -> Markup:
    """A value with its range below it."""
    value, _, around = text.partition(" (")
    return e("td", value, e("small", around.rstrip(")")) if around else "", class_="n")


def _csv(file: epath.Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(storage.read_text(file)))) if file.exists() else []


def _classes(rows: list[dict[str, str]], names: list[str]) -> Markup:
    """A list of bars for each metric; the classes that the last model is best at come first."""
    content = [charts.legend(names)]
    if any(r.get("seen") for r in rows):
        content.append(e("p", "Hatched: classes that were not seen in training."))
    metrics = [c.removeprefix(f"{names[-1]}: ") for c in rows[0] if c.startswith(f"{names[-1]}: ")]
    for number, metric in enumerate(metrics):
        bars = []
        for row in rows:
            values = [_float(row.get(f"{name}: {metric}")) for name in names]
            if any(v is not None for v in values):
                note = ", ".join(filter(None, (row.get("kind", ""), "unseen" if row.get(
                    "seen") == "no" else "")))
                bars.append(Row(row.get("names", "?").split(",")[0], note, values,
                                row.get("seen") == "no"))
        bars.sort(key=lambda bar: (bar.values[-1] is None, -(bar.values[-1] or 0.0)))
        high = max([v for bar in bars for v in bar.values if v is not None], default=0.0)
        content.append(e("details", e("summary", f"{metric} of {len(bars)} classes"),
                         _ends(bars, max(high, 1.0)), **{"open": ""} if not number else {}))
    return join(content)


def _ends(bars: list[Row], high: float) -> Markup:
    """The best and the worst, and the rest in between to be unfolded."""
    if len(bars) <= 2 * _ENDS + 4:
        return charts.bars(bars, high)
    first, rest, last = bars[:_ENDS], bars[_ENDS:-_ENDS], bars[-_ENDS:]
    return join([charts.bars(first, high),
                 e("details", e("summary", f"{len(rest)} more"), charts.bars(rest, high)),
                 charts.bars(last, high)])


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _confusions(pairs: list[dict[str, str]], names: list[str]) -> Markup:
    content = []
    for index, name in enumerate(names):
        own = [p for p in pairs if p.get("model") == name]
        kinds = list(dict.fromkeys(p.get("of", "") for p in own))
        for kind in kinds[:1]:  # of masks, where they were given, else of pixels
            rows = [Row(f"{p.get('true')} → {p.get('named')}", "", [_float(p.get("percent"))])
                    for p in own if p.get("of") == kind][:_WORST]
            longest = max(row.values[0] or 1.0 for row in rows)
            content.append(e("div", e("h3", name), e("p", f"true → named; percent of all {kind} of "
                                                     "the true class"),
                             charts.bars(rows, longest, first=index)))
    return e("div", content, class_="pair wide")


def _table(head: typing.Sequence[str], rows: typing.Iterable[typing.Sequence[str]]) -> Markup:
    place = lambda i: "n" if i else None
    return e("div", e("table", e("tr", [e("th", h, class_=place(i)) for i, h in enumerate(head)]),
                      [e("tr", [e("td", c, class_=place(i)) for i, c in enumerate(row)])
                       for row in rows]), class_="scroll")


def _image(file: epath.Path, what: str) -> Markup:
    """A picture inside the page."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no picture ({error}); make it anew or remove it") from None
    picture.thumbnail((_WIDEST, 1 << 16))
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=85)
    data = base64.b64encode(content.getvalue()).decode()
    return e("img", alt=what, width=picture.width, height=picture.height, loading="lazy",
             src=f"data:image/webp;base64,{data}")
