"""Strict rule tables between other people's checkpoints and our parameters, read both ways.

A rule names a tensor there, a path here, and the change of layout between them; `{i}` and `{j}`
stand for numbers. One tensor there may be several here (cut along its first axis), or the other way
round. Loading insists that every tensor of the source matches one rule, every parameter is filled
once, and all shapes agree; it lists all problems together.
"""

import collections
import math
import re
import typing

import cv2
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.runtime import progress
from maskclippp_jax.runtime.background import Background

_ALIGNMENT = 64  # bytes, of XLA's buffers
_WAITING = 4  # tensors that were read and are not in order yet
# What OpenCV turns blindly, by the bytes of a number.
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.int32, 8: np.float64}


class Change(typing.NamedTuple):
    """A change of layout and its inverse; both get the array and our shape."""

    load: typing.Callable[[np.ndarray, tuple], np.ndarray]
    export: typing.Callable[[np.ndarray, tuple], np.ndarray]


keep = Change(lambda x, shape: x, lambda x, shape: x)
linear = Change(lambda x, shape: x.T, lambda x, shape: x.T)  # (out, in) -> (in, out)
conv = Change(lambda x, shape: x.transpose(2, 3, 1, 0),      # OIHW -> HWIO
              lambda x, shape: x.transpose(3, 2, 0, 1))


def leading_ones(count: int) -> Change:
    """The source has `count` axes of length one in front."""

    def load(x, shape):
        return x.reshape(x.shape[count:]) if x.shape[:count] == (1,) * count else x

    return Change(load, lambda x, shape: x.reshape((1,) * count + x.shape))


# A number that some files hold as a list of one.
scalar = Change(lambda x, shape: x.reshape(()) if x.shape == (1,) else x, lambda x, shape: x)


class Rule(typing.NamedTuple):
    # Name there, `{i}` for a number; several names are parts of one parameter. A regular expression
    # if `path` is None.
    source: str | tuple[str, ...]
    # Path here; several paths are parts of one tensor, a None among them a part that is not read,
    # and written as zeros. None: left out.
    path: str | tuple[str | None, ...] | None
    change: Change = keep
    why: str = ""  # why it is left out

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def paths(self) -> tuple[str | None, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path or ()


def linear_rules(source: str, path: str) -> tuple[Rule, Rule]:
    """A linear layer with bias."""
    return (Rule(f"{source}.weight", f"{path}/kernel", linear),
            Rule(f"{source}.bias", f"{path}/bias"))


HEADS = ("query", "key", "value")  # what attention projects to


def joined_rules(source: str, path: str, parts: typing.Sequence[str] = HEADS
                 ) -> tuple[Rule, Rule]:
    """Several linear layers `path/part` that are the rows of one there, below each other.

    `source` lacks the last word of its names only: "weight" and "bias".
    """
    return (Rule(f"{source}weight", tuple(f"{path}/{x}/kernel" for x in parts), linear),
            Rule(f"{source}bias", tuple(f"{path}/{x}/bias" for x in parts)))


def conv_rules(source: str, path: str) -> tuple[Rule, Rule]:
    """A convolution with bias."""
    return Rule(f"{source}.weight", f"{path}/kernel", conv), Rule(f"{source}.bias", f"{path}/bias")


def norm_rules(source: str, path: str) -> tuple[Rule, Rule]:
    """The scale and bias of a norm."""
    return Rule(f"{source}.weight", f"{path}/scale"), Rule(f"{source}.bias", f"{path}/bias")


class Misfit(ValueError):
    """A source that does not fit the model; the text lists every problem."""

    def __init__(self, name: str, problems: list[str]):
        super().__init__(f"{name} does not fit the model ({len(problems)} problems): "
                         + "; ".join(problems))
        self.problems = problems


def load(source: typing.Mapping[str, np.ndarray], rules: typing.Sequence[Rule],
         shapes: parameters.Tree, *, absent: typing.Sequence[str] = (),
         name: str = "the checkpoint") -> tuple[parameters.Tree, set[str]]:
    """Fills our parameters from a source.

    Args:
      source: arrays by name; each is read once, so the whole source is never in memory.
      rules: the table.
      shapes: nested dict with `.shape` and `.dtype` of every parameter.
      absent: beginnings of paths that this kind of source may lack.
      name: what to call the source in messages.

    Returns:
      Nested dict of numpy arrays (in the dtypes of `shapes`), and the paths left unfilled, all of
      which are allowed by `absent`.

    Raises:
      Misfit: lists every tensor nobody knows, every parameter nobody filled, every wrong shape,
        and whole numbers (quantised weights).
    """
    wanted = parameters.flatten(shapes)
    groups, problems = _group(source, rules, by_source=True)
    filled: dict[str, np.ndarray] = {}
    found = set()

    def fill(path: str, piece: np.ndarray) -> None:
        filled[path] = _in_order(piece, wanted[path].dtype)

    with Background(_WAITING, threads=None) as background:  # while the next one is read
        for (rule, numbers), names in progress.track(groups.items(), "reading weights",
                                                     unit="tensors"):
            shown = ", ".join(names.values())
            paths = [path and _insert(path, numbers) for path in rule.paths]
            unknown = [path for path in paths if path and path not in wanted]
            twice = [path for path in paths if path in found]
            if unknown:
                problems.append(f"{shown}: the model has no {unknown[0]}")
            elif twice:
                problems.append(f"{shown}: {twice[0]} is filled already")
            elif len(names) < len(rule.sources):
                problems.append(f"{shown}: {len(names)} of {len(rule.sources)} parts of {paths[0]}")
            else:
                parts = [np.asarray(source[names[k]]) for k in range(len(names))]
                array = parts[0] if len(parts) == 1 else np.concatenate(parts)
                pieces = [array] if len(paths) == 1 else np.array_split(array, len(paths))
                for path, piece in zip(paths, pieces):
                    if path is None:
                        continue
                    shape = tuple(wanted[path].shape)
                    piece = _changed(rule, piece, shape)
                    if piece.dtype.kind in "biu":
                        problems.append(f"{shown}: {piece.dtype} for {path}, wanted floats")
                    elif piece.shape != shape:
                        problems.append(f"{shown}: shape {piece.shape} for {path}, wanted {shape}")
                    found.add(path)
                    background.do(fill, path, piece)
    missing = set(wanted) - found
    problems += [f"{path}: not in the file" for path in wanted
                 if path in missing and not path.startswith(tuple(absent))]
    if problems:
        raise Misfit(name, problems)
    return parameters.unflatten(filled), missing


def export(params: parameters.Tree, rules: typing.Sequence[Rule]) -> dict[str, np.ndarray]:
    """Our parameters under the names and in the layouts of a source; exactly undoes `load`.

    Raises:
      ValueError: lists the parameters that the table has no name for.
    """
    leaves = parameters.flatten(params)
    groups, problems = _group(leaves, rules, by_source=False)
    result = {}
    for (rule, numbers), paths in progress.track(groups.items(), "converting", unit="tensors"):
        if len(paths) < sum(path is not None for path in rule.paths):
            problems.append(f"{', '.join(paths.values())} without the other parts")
            continue
        arrays = [np.asarray(leaves[paths[k]]) if k in paths else None
                  for k in range(len(rule.paths))]
        arrays = [np.zeros_like(leaves[next(iter(paths.values()))]) if x is None else x
                  for x in arrays]
        arrays = [rule.change.export(x, x.shape) for x in arrays]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        names = [_insert(name, numbers) for name in rule.sources]
        pieces = [array] if len(names) == 1 else np.split(array, len(names))
        for name, piece in zip(names, pieces):
            result[name] = _in_order(piece)
    if problems:
        raise ValueError("this layout has no place for "
                         + ", ".join(p.removesuffix(": unknown here") for p in problems))
    return result


def paths_for(name: str, rules: typing.Sequence[Rule]) -> tuple[str, ...]:
    """Our paths of a source's tensor; none if the table leaves it out or does not know it."""
    groups, _ = _group([name], rules, by_source=True)
    return tuple(_insert(path, numbers) for rule, numbers in groups for path in rule.paths if path)


def unknown_names(names: typing.Iterable[str], rules: typing.Sequence[Rule]) -> list[str]:
    """A line for every name that does not fall under one rule."""
    return _group(names, rules, by_source=True)[1]


def names_of(source: typing.Iterable[str], rules: typing.Sequence[Rule], beginning: str
             ) -> list[str]:
    """The names of a source whose parameters' paths begin so."""
    groups, _ = _group(source, rules, by_source=True)
    return [name for (rule, _), names in groups.items()
            if rule.paths[0].startswith(beginning) for name in names.values()]


def names_for(paths: typing.Iterable[str], rules: typing.Sequence[Rule]) -> dict[str, str]:
    """A source's name of each of our paths (the first, if it has several parts there)."""
    groups, _ = _group(paths, rules, by_source=False)
    return {path: _insert(rule.sources[0], numbers)
            for (rule, numbers), found in groups.items() for path in found.values()}


def shapes_for(shapes: typing.Mapping[str, tuple], rules: typing.Sequence[Rule]
               ) -> dict[str, tuple]:
    """Shapes of our parameters, by path, that a source's tensors of these shapes would fill.

    What the rules do not know, or what is not whole, is left out.
    """
    groups, _ = _group(shapes, rules, by_source=True)
    found = {}
    for (rule, numbers), names in groups.items():
        # Zeros of any shape in no memory; joined parts add up along the first axis.
        given = [shapes[name] for name in names.values()]
        whole = given[0] if len(given) == 1 else (sum(s[0] for s in given), *given[0][1:])
        pieces = np.array_split(np.broadcast_to(np.float32(0), whole), len(rule.paths)) if (
            len(rule.paths) > 1) else [np.broadcast_to(np.float32(0), whole)]
        for path, piece in zip(rule.paths, pieces):
            if path:
                found[_insert(path, numbers)] = _changed(rule, piece, piece.shape).shape
    return found


def _in_order(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """A copy that lies in memory as its axes say, where a CPU takes it as it lies.

    A matrix that was turned is written block by block: numpy goes along old rows or new ones, and
    is up to ten times slower where these are long.
    """
    result = _aligned(array.shape, np.dtype(dtype or array.dtype))
    word = _WORDS.get(array.dtype.itemsize)
    turned = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
    if turned and word and array.dtype.isnative:
        whole = result if result.dtype == array.dtype else np.empty(array.shape, array.dtype)
        cv2.transpose(array.T.view(word), dst=whole.view(word))
        array = whole
    if array is not result:
        result[...] = array
    return result


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array whose memory JAX shares on a CPU: others are copied there."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start:start + size].view(dtype).reshape(shape)


def _changed(rule: Rule, array: np.ndarray, shape: tuple) -> np.ndarray:
    try:
        return rule.change.load(array, shape)
    except ValueError:
        return array  # too few axes: reported as a wrong shape


def _group(names: typing.Iterable[str], rules: typing.Sequence[Rule], *, by_source: bool):
    """Which rule each name falls under.

    Args:
      names: names of a source, or our paths.
      rules: the table.
      by_source: whether `names` are a source's.

    Returns:
      {(rule, numbers): {part of the rule: name}}, and a line for every name without one rule; what
      the rules leave out is in neither.
    """
    patterns = [(re.compile(template) if rule.path is None else _pattern(template), rule, part)
                for rule in rules if by_source or rule.path is not None
                for part, template in enumerate(rule.sources if by_source else rule.paths)
                if template is not None]
    groups, problems = collections.defaultdict(dict), []
    for name in names:
        found = [(match, rule, part) for pattern, rule, part in patterns
                 if (match := pattern.fullmatch(name))]
        if len(found) != 1:
            what = "several rules match" if found else "unknown here"
            problems.append(f"{name}: {what}")
        elif found[0][1].path is not None:
            match, rule, part = found[0]
            groups[rule, tuple(match.groupdict().items())][part] = name
    return dict(groups), problems


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\\{([ij])\\\}", r"(?P<\1>\\d+)", re.escape(template)))


def _insert(template: str, numbers: tuple[tuple[str, str], ...]) -> str:
    for letter, number in numbers:
        template = template.replace(f"{{{letter}}}", number)
    return template
