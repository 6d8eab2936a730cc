"""Metrics in numpy; they know no model. All have `reset`, `process` and `evaluate`.

What they have counted is `state()`, a dict of arrays, and `add_state()` adds what another one has
counted, on another host or before a stop. Here is what they share: checks of what they are given,
means that may be undefined (None), and files of states.
"""

import io
import json
import pathlib
import typing

import numpy as np

MOST_CLASSES = 2**14 - 1  # tables of all pairs take 2 GiB


class Metric(typing.Protocol):
    def reset(self) -> None: ...

    def state(self) -> dict[str, np.ndarray]: ...

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None: ...


def dump(metrics: typing.Mapping[str, Metric], done: typing.Sequence[str]) -> bytes:
    """What metrics have counted as the content of a file (npz, read without pickle).

    Args:
      metrics: by name.
      done: ids of the pictures they have seen.
    """
    arrays = {f"{name}/{key}": np.asarray(value) for name, metric in metrics.items()
              for key, value in metric.state().items()}
    content = io.BytesIO()
    np.savez_compressed(content, done=np.array(json.dumps(list(done))), **arrays)
    return content.getvalue()


def read(path: pathlib.Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The ids of the pictures, and the arrays, in a file of `dump`.

    Raises:
      ValueError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
        ids = json.loads(str(arrays.pop("done")))
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise ValueError("it lists no pictures")
    except Exception as error:  # numpy reads headers with Python's parser: anything may come
        raise ValueError(f"{path} is damaged ({error}); remove it, and its pictures are counted "
                         "again") from None
    return ids, arrays


def load(paths: typing.Sequence[pathlib.Path], metrics: typing.Mapping[str, Metric]) -> list[str]:
    """Adds what files of `dump` hold to metrics that were just made or reset.

    Args:
      paths: of one evaluation that was stopped, or of the hosts that shared one.
      metrics: those that were saved, by the same names.

    Returns:
      The ids of the pictures they have seen.

    Raises:
      ValueError: other metrics or classes than were saved, or a picture in two files. The metrics
        may be half filled then.
    """
    done: list[str] = []
    for path in paths:
        ids, arrays = read(path)
        names = sorted({key.split("/")[0] for key in arrays})
        if names != sorted(metrics):
            raise ValueError(f"{path} holds {', '.join(names)}, wanted "
                             f"{', '.join(sorted(metrics))}; evaluate anew")
        twice = sorted(set(done) & set(ids))
        if twice:
            raise ValueError(f"{path} holds the picture {twice[0]} ({len(twice)} in all), which "
                             "was counted already; every picture counts once")
        for name, metric in metrics.items():
            metric.add_state({key.split("/", 1)[1]: value for key, value in arrays.items()
                              if key.split("/")[0] == name})
        done += ids
    return done


def same_shape(counts: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Counts of another metric, to be added to mine.

    Raises:
      ValueError: they are of other classes.
    """
    if counts.shape != mine.shape:
        raise ValueError(f"the saved counts have the shape {counts.shape}, wanted {mine.shape}; "
                         "they are of another list of classes, evaluate anew")
    return counts


def pairs(count: int) -> np.ndarray:
    """A table of zeros for the pairs of so many classes, [count, count] int64.

    Raises:
      ValueError: it would be too large.
    """
    check_count(count - 1)
    return np.zeros((count, count), np.int64)


def check_count(num_classes: int, what: str = "the vocabulary") -> None:
    """Sees that so many classes can be measured.

    Raises:
      ValueError: they cannot.
    """
    if num_classes > MOST_CLASSES:
        raise ValueError(f"{what} has {num_classes} classes, wanted at most {MOST_CLASSES}: what "
                         "is measured counts every pair of them; leave some out")


def check_classes(values: np.ndarray, num_classes: int, what: str) -> np.ndarray:
    """Integer classes as int64.

    Args:
      values: any shape and any integer dtype.
      num_classes: K; classes lie in 0 ... K-1.
      what: "predicted" or "true", for the message.

    Raises:
      ValueError: no integers, or out of range.
    """
    values = np.asarray(values)
    if values.size and values.dtype.kind not in "iub":
        raise ValueError(f"{what} classes are {values.dtype}, wanted integers")
    if values.size and not (0 <= values.min() and values.max() < num_classes):
        raise ValueError(f"{what} classes lie in {values.min()} ... {values.max()}, wanted "
                         f"0 ... {num_classes - 1}")
    return values.astype(np.int64)


def check_flags(flags: np.ndarray | None, num_classes: int, name: str) -> np.ndarray | None:
    """A flag of each class, such as `seen`, as [K] bool.

    Raises:
      ValueError: not one for each class.
    """
    if flags is None:
        return None
    flags = np.asarray(flags, bool)
    if flags.shape != (num_classes,):
        raise ValueError(f"`{name}` has the shape {flags.shape}, wanted one bool for each of the "
                         f"{num_classes} classes")
    return flags


def confusions(counts: np.ndarray, most: int = 100) -> list[dict]:
    """The confusions that lose the largest share of a class, worst first.

    Args:
      counts: [K, K] (row = prediction, column = truth), of pixels or masks.
      most: how many at most.

    Returns:
      dict(true, predicted, count, percent) of each, percent of all of the true class.
    """
    total = counts.sum(0)
    predicted, true = np.nonzero(counts)
    wrong = predicted != true
    predicted, true = predicted[wrong], true[wrong]
    count = counts[predicted, true]
    percent = 100 * count / total[true]
    order = np.lexsort((true, predicted, -count, -percent))[:most]
    return [dict(true=int(true[i]), predicted=int(predicted[i]), count=int(count[i]),
                 percent=float(percent[i])) for i in order]


def mean(values: np.ndarray) -> float | None:
    """The mean, None of nothing."""
    return float(values.mean()) if values.size else None


def mean_of_two(values: np.ndarray, occurs: np.ndarray, flags: np.ndarray | None
                ) -> tuple[float | None, float | None]:
    """Means of [K] values over the classes that occur and have a flag (`seen`), and do not.

    Both are None where all or none of the classes have it: there is nothing to tell apart.
    """
    if flags is None or flags.all() or not flags.any():
        return None, None
    return mean(values[occurs & flags]), mean(values[occurs & ~flags])


def as_list(values: np.ndarray, defined: np.ndarray) -> list[float | None]:
    """[K] values as a list, None where they are not defined."""
    return [float(x) if ok else None for x, ok in zip(values, defined)]
