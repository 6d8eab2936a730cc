"""How far a number might lie from itself on other pictures: the bootstrap over pictures.

Metrics are functions of sums over pictures. Keeping every picture's part of these sums lets us draw
pictures with replacement and see how the number spreads.
"""

import typing

import numpy as np


class PerPicture:
    """Every picture's part of sums over classes; sparse, for a picture holds few classes."""

    def __init__(self, num_classes: int, num_values: int):
        """Args: num_classes: K. num_values: V, sums kept for each class."""
        self.num_classes, self.num_values = num_classes, num_values
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self._pictures, self._classes, self._values = [], [], []

    def add(self, sums: np.ndarray) -> None:
        """Adds a picture: [K, V] numbers, most of them 0."""
        classes = np.flatnonzero(sums.any(1))
        self._pictures.append(np.full(len(classes), self.count))
        self._classes.append(classes)
        self._values.append(sums[classes].astype(np.float64))
        self.count += 1

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `add_state` takes."""
        joined = lambda parts, *shape: np.concatenate([np.zeros((0, *shape)), *parts])
        return dict(count=np.array(self.count), pictures=joined(self._pictures).astype(np.int64),
                    classes=joined(self._classes).astype(np.int64),
                    values=joined(self._values, self.num_values))

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        """Adds the pictures of another one."""
        self._pictures.append(state["pictures"] + self.count)
        self._classes.append(state["classes"])
        self._values.append(state["values"])
        self.count += int(state["count"])

    def _in_order(self) -> dict[str, np.ndarray]:
        """The state with pictures in an order that does not depend on who counted which."""
        state = self.state()
        ends = np.searchsorted(state["pictures"], np.arange(self.count + 1))
        content = [(state["classes"][a:b].tobytes(), state["values"][a:b].tobytes())
                   for a, b in zip(ends, ends[1:])]
        place = np.empty(self.count, np.int64)
        place[sorted(range(self.count), key=content.__getitem__)] = np.arange(self.count)
        pictures = place[state["pictures"]]
        rows = np.argsort(pictures, kind="stable")
        return dict(pictures=pictures[rows], classes=state["classes"][rows],
                    values=state["values"][rows])

    def intervals(self, evaluate: typing.Callable[[np.ndarray], dict], *, samples: int = 1000,
                  seed: int = 0, percent: float = 95.0) -> dict[str, tuple[float, float] | None]:
        """The range in which a share of the samples lies.

        Args:
          evaluate: sums [K, V] -> numbers by name, None where undefined.
          samples: how often pictures are drawn.
          seed: of the draw; the same seed gives the same ranges.
          percent: share of the samples within the range, cut alike at both ends.

        Returns:
          (low, high) for each name; None where a number is undefined in every sample.
        """
        rng, state = np.random.default_rng(seed), self._in_order()
        found: dict[str, list[float]] = {}
        for _ in range(samples if self.count else 0):
            times = np.bincount(rng.integers(0, self.count, self.count), minlength=self.count)
            times = times[state["pictures"]]
            sums = np.stack([np.bincount(state["classes"], times * column, self.num_classes)
                             for column in state["values"].T], -1)
            for name, value in evaluate(sums).items():
                found.setdefault(name, [])
                if value is not None:
                    found[name].append(value)
        cut = (100 - percent) / 2
        return {name: tuple(np.percentile(values, [cut, 100 - cut]).tolist()) if values else None
                for name, values in found.items()}
