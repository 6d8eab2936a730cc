"""Strict rule tables between other people's checkpoints and our parameters, read both ways.

A rule names a tensor there, a path here, and the change of layout between them; `{i}` stands for
the number of a block. Loading insists that every tensor of the source matches one rule, every
parameter is filled once, and all shapes agree; it lists all problems together.
"""

import re
import typing

import numpy as np

from maskclippp_jax import params as parameters


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


class Rule(typing.NamedTuple):
    source: str             # name there, `{i}` for a number; a regular expression if `path` is None
    path: str | None        # path here; None: left out
    change: Change = keep
    why: str = ""           # why it is left out


def load(source: typing.Mapping[str, np.ndarray], rules: typing.Sequence[Rule],
         shapes: parameters.Tree, *, absent: typing.Sequence[str] = (),
         name: str = "the checkpoint") -> tuple[parameters.Tree, set[str]]:
    """Fills our parameters from a source.

    Args:
      source: arrays by name; each is read once.
      rules: the table.
      shapes: nested dict with `.shape` and `.dtype` of every parameter.
      absent: beginnings of paths that this kind of source may lack.
      name: what to call the source in messages.

    Returns:
      Nested dict of numpy arrays (in the dtypes of `shapes`), and the paths left unfilled, all of
      which are allowed by `absent`.

    Raises:
      ValueError: lists every tensor nobody knows, every parameter nobody filled, every wrong shape.
    """
    wanted = parameters.flatten(shapes)
    compiled = [(_pattern(rule), rule) for rule in rules]
    problems, filled = [], {}
    for key in source:
        matches = [(m, rule) for pattern, rule in compiled if (m := pattern.fullmatch(key))]
        if len(matches) != 1:
            problems.append(f"{key}: unknown here" if not matches
                            else f"{key}: several rules match")
            continue
        match, rule = matches[0]
        if rule.path is None:
            continue
        path = rule.path.replace("{i}", match.groupdict().get("i") or "")
        if path not in wanted:
            problems.append(f"{key}: the model has no {path}")
        elif path in filled:
            problems.append(f"{key}: {path} is filled already")
        else:
            array, leaf = np.asarray(source[key]), wanted[path]
            try:
                array = rule.change.load(array, leaf.shape)
            except ValueError:
                pass  # too few axes: reported as a wrong shape
            if tuple(array.shape) != tuple(leaf.shape):
                problems.append(f"{key}: shape {tuple(array.shape)} for {path}, wanted "
                                f"{tuple(leaf.shape)}")
            filled[path] = np.ascontiguousarray(array, dtype=leaf.dtype).reshape(array.shape)
    missing = set(wanted) - set(filled)
    problems += [f"{path}: not in the file" for path in wanted
                 if path in missing and not path.startswith(tuple(absent))]
    if problems:
        raise ValueError(f"{name} does not fit the model ({len(problems)} problems): "
                         + "; ".join(problems))
    return parameters.unflatten(filled), missing


def export(params: parameters.Tree, rules: typing.Sequence[Rule]) -> dict[str, np.ndarray]:
    """Our parameters under the names and in the layouts of a source; exactly undoes `load`.

    Raises:
      ValueError: lists the parameters that the table has no name for.
    """
    compiled = [(_pattern(Rule(rule.path, "")), rule) for rule in rules if rule.path]
    result, problems = {}, []
    for path, array in parameters.flatten(params).items():
        matches = [(m, rule) for pattern, rule in compiled if (m := pattern.fullmatch(path))]
        if len(matches) != 1:
            problems.append(path)
            continue
        match, rule = matches[0]
        name = rule.source.replace("{i}", match.groupdict().get("i") or "")
        array = rule.change.export(np.asarray(array), array.shape)
        result[name] = np.ascontiguousarray(array).reshape(array.shape)  # keeps scalars scalar
    if problems:
        raise ValueError(f"this layout has no place for {', '.join(problems)}")
    return result


def path_for(name: str, rules: typing.Sequence[Rule]) -> str | None:
    """Our path of a source's tensor; None if the table leaves it out or does not know it."""
    for rule in rules:
        if rule.path is not None and (match := _pattern(rule).fullmatch(name)):
            return rule.path.replace("{i}", match.groupdict().get("i") or "")
    return None


def _pattern(rule: Rule) -> re.Pattern:
    if rule.path is None:
        return re.compile(rule.source)
    return re.compile(re.escape(rule.source).replace(r"\{i\}", r"(?P<i>\d+)"))
