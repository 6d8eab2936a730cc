"""Work in the background."""

import threading

import pytest

from maskclippp_jax.runtime.background import Background


def test_work_in_the_background_is_done_in_order_and_all_of_it_when_the_block_ends():
    done, go = [], threading.Event()
    with Background(4) as background:
        background.do(go.wait)
        for number in range(3):
            background.do(done.append, number)
        assert done == []  # nothing was waited for
        go.set()
        for number in range(3, 50):
            background.do(done.append, number)
    assert done == list(range(50))


def test_few_pieces_of_work_wait():
    waiting, most = [0], [0]

    def work():
        waiting[0] -= 1

    with Background(2) as background:
        for _ in range(100):
            waiting[0] += 1
            background.do(work)
            most[0] = max(most[0], waiting[0])
    assert waiting == [0] and most[0] <= 3


def test_what_fails_in_the_background_is_raised_and_little_is_done_after_it():
    done = []

    def fail():
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        with Background(2) as background:
            background.do(fail)
            for number in range(100):
                background.do(done.append, number)
    assert len(done) <= 3
    with pytest.raises(OSError, match="full"):  # also of the last one
        with Background(2) as background:
            background.do(fail)
