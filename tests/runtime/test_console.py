"""Tables and lines for people lose nothing: no digits, no brackets."""

import pytest
from rich.table import Column, Table
from rich.text import Text

from maskclippp_jax.runtime import console

NAMES = "[red]fox", "[/] of [/b]", "IMG [copy].jpg"  # rich would hide some, and fail on others


def numbers_table():
    table = Table(*(Column(f"number {i}", justify="right") for i in range(12)), title="a [b] c")
    table.add_row(*(f"{1000.25 + i}" for i in range(12)))
    return table


@pytest.mark.parametrize("columns", [30, 80, 300])
def test_no_number_is_cut_on_any_screen(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    console.show(numbers_table())
    said = capsys.readouterr().out
    assert all(f"{1000.25 + i}" in said for i in range(12)) and "…" not in said
    assert "a [b] c" in said


def test_a_table_that_fits_without_lines_goes_without(capsys, monkeypatch):
    table = Table(*(Column(f"n{i}") for i in range(12)))
    table.add_row(*"abcdefghijkl")
    monkeypatch.setenv("COLUMNS", "50")
    console.show(table)
    said = capsys.readouterr().out
    assert "│" not in said and max(map(len, said.splitlines())) <= 50


def test_words_wrap_and_addresses_do_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    table = Table("words", Column("address", no_wrap=True), Column("path", overflow="fold"))
    table.add_row("some words " * 9, "one two three", "x" * 50)
    console.show(table)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 60 and "one two three" in said
    assert said.count("some") == 9 and said.count("x") == 50


def test_a_table_of_columns_that_never_wrap_is_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table = Table(box=None, pad_edge=False)
    for column in ("name", "address"):
        table.add_column(column, no_wrap=True)
    table.add_row("one two three", "https://example.org/" + "x" * 50)
    console.show(table)
    assert "one two three  https://example.org/" + "x" * 50 in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_brackets_of_people_stay(name, capsys):
    table = Table(name, title=name)
    table.add_row(Text(name, "red"))
    table.add_row(name)
    console.show(table)
    console.say(("warning:", "yellow"), f" {name}")
    said = capsys.readouterr().out
    assert said.count(name) == 5 and f"warning: {name}\n" in said


def test_a_line_is_not_broken(capsys):
    console.say("a " * 200)
    assert capsys.readouterr().out == "a " * 200 + "\n"
