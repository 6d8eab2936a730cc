"""Threads: what is read before it is asked for, and what is done while more is found."""

import collections
import concurrent.futures
import os
import typing

Item, Done = typing.TypeVar("Item"), typing.TypeVar("Done")


def read_ahead(read: typing.Callable[[Item], Done], items: typing.Iterable[Item], count: int
               ) -> typing.Iterator[Done]:
    """`read` of each item, in their order; two threads are up to `count` ahead."""
    queue: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        try:
            for item in items:
                queue.append(pool.submit(read, item))
                if len(queue) > count:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def ahead(items: typing.Iterator[Item], count: int) -> typing.Iterator[Item]:
    """The same items, of which a thread of its own asks for up to `count` early."""
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pull = lambda: pool.submit(next, items, end)
        queue = collections.deque(pull() for _ in range(count))
        try:
            while (item := queue.popleft().result()) is not end:
                queue.append(pull())
                yield item
        finally:
            for future in queue:
                future.cancel()


class Background:
    """Work that threads of their own do while more is found; one, in the order in which it is
    given."""

    def __init__(self, count: int, threads: int | None = 1):
        """Up to `count` pieces of work wait, then `do` does; None: as many threads as cores."""
        self._pool = concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count())
        self._count = count
        self._left: collections.deque[concurrent.futures.Future] = collections.deque()

    def do(self, work: typing.Callable, *arguments: typing.Any) -> None:
        """Gives one piece; raises what an earlier one raised."""
        self._left.append(self._pool.submit(work, *arguments))
        while len(self._left) > self._count or self._left and self._left[0].done():
            self._left.popleft().result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            while error is None and self._left:
                self._left.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)  # what was begun is finished
