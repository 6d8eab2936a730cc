"""Work on many pictures: like ones go through the device together, and their order stays."""

import collections
import concurrent.futures
import typing

Item, Done = typing.TypeVar("Item"), typing.TypeVar("Done")


def in_groups(items: typing.Iterable[Item | Done], is_done: typing.Callable[[Item | Done], bool],
              group_of: typing.Callable[[Item], typing.Hashable],
              work: typing.Callable[[list[Item]], typing.Sequence[Done]], *, size: int,
              ahead: int) -> typing.Iterator[Done | ValueError]:
    """What becomes of items that are worked on in batches of one group, in their order.

    An item waits until a batch of its group is full, but no longer than `ahead` others for it. A
    batch that is not full is filled up with its first, so that it needs no program of its own.

    Args:
      items: which of them go together depends on them alone.
      is_done: of an item, whether there is nothing to be done with it.
      group_of: what items of a batch have in common; a ValueError takes the item's place.
      work: done with a batch.
      size: items in a batch.
      ahead: items that may wait for one.
    """
    results: dict[int, typing.Any] = {}
    waiting: dict[typing.Hashable, list[tuple[int, Item]]] = {}
    first = 0  # place of the result that is next

    def run(group):
        places, batch = zip(*waiting.pop(group))
        filled = [*batch, *[batch[0]] * (size - len(batch))]
        results.update(zip(places, work(filled)))

    for place, item in enumerate(items):
        if is_done(item):
            results[place] = item
        else:
            try:
                group = group_of(item)
            except ValueError as error:
                results[place] = error
            else:
                waiting.setdefault(group, []).append((place, item))
                if len(waiting[group]) == size:
                    run(group)
                elif place - first >= ahead:
                    run(next(g for g, members in waiting.items() if members[0][0] == first))
        while first in results:
            yield results.pop(first)
            first += 1
    for group in list(waiting):
        run(group)
    for place in sorted(results):
        yield results[place]


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
    """Work that a thread of its own does in the order in which it is given, while more is found."""

    def __init__(self, count: int):
        """Up to `count` pieces of work wait; then `do` does."""
        self._pool, self._count = concurrent.futures.ThreadPoolExecutor(1), count
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
