"""Work on many pictures: like ones go through the device together, and their order stays."""

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
