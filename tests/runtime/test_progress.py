"""Progress where no terminal is: lines of a log with rate and time left."""

import pytest

from maskclippp_jax.runtime import progress


@pytest.mark.parametrize("done, total, rate, says", [
    (120, 1000, 12.0, "naming: 120 of 1000 pictures, 12.0/s, 1:13 left"),
    (5, 5, 5.0, "naming: 5 of 5 pictures, 5.0/s, 0:00 left"),
    (7, None, 3.5, "naming: 7 pictures, 3.5/s")])
def test_a_line_tells_rate_and_time_left(done, total, rate, says):
    assert progress.line("naming", done, total, "pictures", rate) == says


def test_lines_come_every_ten_seconds_and_items_as_they_are(monkeypatch):
    clock, lines = iter([60.0, 64.0, 71.0, 75.0, 82.0]), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress.logging, "info", lambda form, text: lines.append(text))
    items = progress.track("abcde", "reading", unit="letters", total=10, step=2)
    assert list(items) == list("abcde")
    assert lines == ["reading: 6 of 10 letters, 0.4/s, 0:11 left",
                     "reading: 10 of 10 letters, 0.4/s, 0:00 left"]


def test_what_is_not_shown_is_only_passed_on():
    assert list(progress.track(iter([1, 2]), "x", shown=False)) == [1, 2]


def test_in_a_terminal_a_bar_shows_how_many_and_how_fast(monkeypatch, capsys):
    monkeypatch.setattr(progress.Console, "is_terminal", True)
    assert list(progress.track("abcd", "reading", unit="letters")) == list("abcd")
    said = capsys.readouterr()
    assert "reading" in said.err and "0/4" in said.err and "letters/s" in said.err
    assert said.out == ""
