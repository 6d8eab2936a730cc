"""Charts as HTML and SVG."""

import re

import numpy as np
import pytest

from maskclippp_jax.drawing import charts
from maskclippp_jax.drawing.charts import Row, Series
from maskclippp_jax.drawing.markup import Markup, element, join


def test_words_are_escaped_and_markup_is_not():
    assert element("p", "<b>&", element("i", "x"), 3, ["<", Markup("<br>")], class_="a\"b",
                   aria_label="<", style=None) == (
        '<p class="a&quot;b" aria-label="&lt;">&lt;b&gt;&amp;<i>x</i>3&lt;<br></p>')
    assert join(["a", "<"]) == "a&lt;" and isinstance(join([]), Markup)


@pytest.mark.parametrize("low, high, inside, wanted", [
    (0, 10, False, [0, 2, 4, 6, 8, 10]), (2.1, 7.9, False, [2, 4, 6, 8]),
    (1, 60, True, [20, 40, 60]), (0, 0, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (5, 5, False, [5, 6, 7, 8, 9, 10]), (-3, 4, False, [-4, -2, 0, 2, 4]),
    (0, 2e-4, False, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]), (1, 20000, True, [5000, 10000, 15000, 20000])])
def test_ticks_are_round_numbers_around_a_range_or_in_it(low, high, inside, wanted):
    np.testing.assert_allclose(charts.nice_ticks(low, high, inside=inside), wanted, atol=1e-12)


@pytest.mark.parametrize("x, wanted", [
    (0, "0"), (0.0005, "0.0005"), (2.5e-5, "2.5e-5"), (12.345, "12.3"), (999.4, "999"),
    (20000, "20,000"), (-3.14159, "-3.14"), (0.1 + 0.2, "0.3")])
def test_numbers_have_the_digits_that_count(x, wanted):
    assert charts.number(x) == wanted


def points(path):
    return np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2)


def test_a_line_goes_through_its_values():
    drawn = charts.curves([Series("a", [10, 20, 30], [0.0, 5.0, 10.0])], "test")
    lines = re.findall(r'd="M([^"h]+)" stroke="var\(--c0\)"', drawn)
    np.testing.assert_allclose(points(lines[0]), [[0, 100], [50, 50], [100, 0]])
    assert "<title>step 20: 5</title>" in drawn and "<b>10</b>" in drawn
    assert re.search(r'class="y" style="bottom:60.00%">6<', drawn)


def test_a_long_noisy_line_is_drawn_as_its_mean_and_range():
    steps = np.arange(1, 20001)
    noise = np.random.default_rng(0).normal(0, 1, len(steps))
    drawn = charts.curves([Series("loss", steps, 5 + noise, noisy=True)], "test")
    assert len(drawn) < 20_000  # letters
    band, mean = re.findall(r'<path d="M([^"]+)"', drawn)[-2:]
    assert points(mean).shape == (240, 2) and points(band.rstrip("z")).shape == (480, 2)
    ticks = [float(t) for t in re.findall(r'class="y"[^>]*>([\d.]+)<', drawn)]
    low, high = min(ticks), max(ticks)
    values = low + (100 - points(mean)[-50:, 1]) / 100 * (high - low)
    assert abs(values - 5).max() < 0.3


def test_a_steep_beginning_does_not_flatten_the_rest():
    y = np.concatenate([[1000.0, 500.0], np.linspace(2, 1, 500)])
    drawn = charts.curves([Series("loss", np.arange(502), y)], "test")
    ticks = [float(t.replace(",", "")) for t in re.findall(r'class="y"[^>]*>([\d.,]+)<', drawn)]
    assert max(ticks) < 5 and "up to 1,000 before" in drawn and 'class="cut"' in drawn


@pytest.mark.parametrize("x, y", [([5], [2.0]), ([5, 6], [0.0, 0.0]), ([1], [-1.0])])
def test_single_and_constant_values_are_drawn(x, y):
    drawn = charts.curves([Series("a", x, y), Series("none", [], [])], "test")
    assert "nan" not in drawn and "inf" not in drawn and "none" not in drawn.split("<svg")[0]


def test_bars_are_as_long_as_their_values_and_undefined_ones_say_so():
    drawn = charts.bars([Row("<cat>", "unseen", [50.0, None], True), Row("dog", "", [0.0, 100.0])])
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", drawn)]
    assert widths == [44, 0, 88] and drawn.count("–") == 1
    assert "&lt;cat&gt;" in drawn and "<cat>" not in drawn
    assert drawn.count("bar hatched") == 2


def test_ranges_put_dots_and_strokes_where_they_belong():
    drawn = charts.ranges([("mIoU", [(25.0, (20.0, 30.0)), (None, None), (50.0, None)])], 0, 50)
    assert "left:40.00%;width:20.00%;background:var(--c0)" in drawn
    assert "left:50.00%;background:var(--c0)" in drawn
    assert "left:100.00%;background:var(--c2)" in drawn and "var(--c1)" not in drawn


def test_shares_are_told_in_words_the_largest_first():
    drawn = charts.shares(dict(a=1.0, b=998.0, c=1.0), lambda s: f"{s:g} s")
    assert drawn.index("b<") < drawn.index("a<")
    assert "100 %, 998 s" in drawn and "&lt; 1 %, 1 s" in drawn
