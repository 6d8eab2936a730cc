"""The matrix products of a function, which no implementation of it does without: its floor."""

import math
import typing

import jax


def flops(function: typing.Callable, *args) -> float:
    """FLOPs of the matrix products and convolutions that a function asks for.

    Bodies of loops count as often as they run, unlike in the compiler's own figures; those of loops
    whose end depends on numbers count once, and of branches the longest counts.

    Args:
      function: of arrays, jitted or not; it is traced, not run.
      args: what it is called with.
    """
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return _of(jitted.trace(*args).jaxpr.jaxpr)


def _of(jaxpr) -> float:
    return sum(_of_one(equation) for equation in jaxpr.eqns)


def _of_one(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in summed)
    if name == "conv_general_dilated":
        kernel, layout = equation.invars[1].aval, params["dimension_numbers"].rhs_spec
        return 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[layout[0]]
    inner = [_of(getattr(x, "jaxpr", x)) for value in params.values()
             for x in (value if isinstance(value, (tuple, list)) else [value])
             if hasattr(getattr(x, "jaxpr", x), "eqns")]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)
