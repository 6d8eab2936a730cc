"""Texts of programs of one start serve the next, which traces nothing."""

import collections
import logging
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax.runtime import texts


class Pair(typing.NamedTuple):
    first: jax.Array
    second: jax.Array | None


@pytest.fixture
def folder(tmp_path):
    texts.keep(tmp_path / "texts")
    yield tmp_path / "texts"
    texts.keep(None)


def start(traced, *about):
    """A program as a new start makes it; counts what it traces."""
    def make():
        def function(x, weights, *, times=1):
            traced[times] += 1
            return Pair(times * x @ weights[0]["kernel"], None)

        return function

    return texts.Program(make, "test", *about, returns=[Pair], static=["times"])


def arguments(rows=2):
    return np.arange(3.0 * rows, dtype=np.float32).reshape(rows, 3), {0: {"kernel": jnp.eye(3)}}


def test_a_second_start_traces_nothing_and_gives_the_same(folder):
    traced = collections.Counter()
    first = start(traced)(*arguments())
    assert traced == {1: 1} and isinstance(first, Pair) and first.second is None
    np.testing.assert_array_equal(first.first, arguments()[0])
    again = start(traced)
    np.testing.assert_array_equal(again(*arguments()).first, first.first)
    np.testing.assert_array_equal(again(*arguments()).first, first.first)
    assert traced == {1: 1}


def test_what_a_program_depends_on_asks_for_another_text(folder):
    traced = collections.Counter()
    start(traced)(*arguments())
    for run in (lambda: start(traced)(*arguments(3)), lambda: start(traced, "more")(*arguments()),
                lambda: start(traced)(arguments()[0].astype(np.float16), arguments()[1])):
        before = traced[1]
        run()
        assert traced[1] == before + 1
    start(traced)(*arguments(), times=3)
    assert traced[3] == 1
    with jax.default_matmul_precision("bfloat16"):
        start(traced)(*arguments())
    assert traced[1] == 5
    with jax.log_compiles():  # no program depends on it
        start(traced)(*arguments())
    assert traced[1] == 5


def test_another_code_of_this_package_asks_for_another_text(folder, monkeypatch, tmp_path):
    traced = collections.Counter()
    start(traced)(*arguments())
    (tmp_path / "changed.py").write_text("")
    monkeypatch.setattr(texts, "_PACKAGE", tmp_path)
    texts._world.cache_clear()
    try:
        start(traced)(*arguments())
    finally:
        texts._world.cache_clear()
    assert traced == {1: 2}


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:100],
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_text_is_made_anew(folder, damage, caplog):
    traced = collections.Counter()
    start(traced)(*arguments())
    file, = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(start(traced)(*arguments()).first, arguments()[0])
    assert traced == {1: 2} and "is damaged" in caplog.text
    start(traced)(*arguments())
    assert traced == {1: 2}


def test_without_a_folder_or_where_none_can_be_written_all_works(tmp_path, caplog):
    traced = collections.Counter()
    start(traced)(*arguments())
    (tmp_path / "file").write_text("")
    texts.keep(tmp_path / "file/texts")
    try:
        with caplog.at_level(logging.WARNING):
            start(traced)(*arguments())
    finally:
        texts.keep(None)
    assert traced == {1: 2} and "are not kept" in caplog.text


def test_what_no_text_may_call_is_traced_at_every_start(folder):
    def make():
        return lambda x: jax.pure_callback(lambda x: np.asarray(x) + 1, x, x)

    for _ in range(2):
        np.testing.assert_array_equal(texts.Program(make, "calls")(np.float32(2)), 3)
    assert not folder.exists()
