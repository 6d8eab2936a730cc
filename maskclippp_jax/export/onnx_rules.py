"""What becomes of each operation of JAX in an ONNX graph.

A rule is a function `(graph, result, *inputs, **settings) -> value`, or a list of values: `result`
has the shape and dtype that JAX gives it, inputs and values are `onnx_graph.Known`, settings are
the operation's own. Operations that work on every element leave to ONNX what is to be repeated; the
others ask for the whole array, `graph.full`.
"""

import math
import typing

import numpy as np

RULES: dict[str, typing.Callable] = {}


def same(a, b) -> bool:
    """Whether two sides are known to be one; an open one is compared by how it is written."""
    return str(a) == str(b)


def _rule(*kinds: str):
    """Makes a function the rule of operations by their names in JAX."""
    def add(function):
        RULES.update(dict.fromkeys(kinds, function))
        return function
    return add


def _simple(kind: str):
    return lambda g, out, *inputs, **_: g.pointwise(kind, inputs, out.shape, out.dtype)


RULES.update({name: _simple(kind) for name, kind in dict(
    add="Add", sub="Sub", mul="Mul", div="Div", max="Max", min="Min", pow="Pow",
    eq="Equal", lt="Less", le="LessOrEqual", gt="Greater", ge="GreaterOrEqual", neg="Neg",
    exp="Exp", log="Log", sqrt="Sqrt", tanh="Tanh", logistic="Sigmoid", sin="Sin", cos="Cos",
    abs="Abs", sign="Sign", erf="Erf").items()})
RULES["and"], RULES["or"], RULES["not"] = (
    _simple(kind) for kind in ("And", "Or", "Not"))  # of bool


@_rule("stop_gradient", "copy")
def _as_it_is(g, out, x, **_):
    return x


@_rule("ne")
def _ne(g, out, x, y, **_):
    return g.pointwise("Not", [g.pointwise("Equal", [x, y], out.shape, bool)])


@_rule("rem")
def _rem(g, out, x, y, **_):  # the sign of the dividend, as in C
    return g.pointwise("Mod", [x, y], out.shape, out.dtype, fmod=1)


@_rule("square")
def _square(g, out, x, **_):
    return g.pointwise("Mul", [x, x])


@_rule("integer_pow")
def _integer_pow(g, out, x, *, y):
    if y == 2:
        return _square(g, out, x)
    return g.pointwise("Pow", [x, g.constant(np.array(y, x.dtype))], out.shape, out.dtype)


@_rule("rsqrt")
def _rsqrt(g, out, x, **_):
    return g.pointwise("Reciprocal", [g.pointwise("Sqrt", [x])])


@_rule("erfc")
def _erfc(g, out, x, **_):
    return g.pointwise("Sub", [g.constant(np.array(1, x.dtype)), g.pointwise("Erf", [x])],
                       out.shape, out.dtype)


@_rule("log1p")
def _log1p(g, out, x, **_):
    return g.pointwise("Log", [g.pointwise("Add", [g.constant(np.array(1, x.dtype)), x],
                                           out.shape, out.dtype)])


@_rule("clamp")
def _clamp(g, out, low, x, high):
    return g.pointwise("Min", [g.pointwise("Max", [low, x], out.shape, out.dtype), high],
                       out.shape, out.dtype)


@_rule("convert_element_type")
def _convert(g, out, x, **_):
    return g.cast(x, out.dtype)


@_rule("select_n")
def _select(g, out, which, *cases):
    no, yes = cases
    return g.pointwise("Where", [which, yes, no], out.shape, out.dtype)


@_rule("is_finite")
def _is_finite(g, out, x):
    return g.pointwise("Less", [g.pointwise("Abs", [x]), g.constant(np.array(np.inf, x.dtype))],
                       out.shape, bool)


# Shapes.


@_rule("reshape", "squeeze")
def _reshape(g, out, x, *sides, **_):
    return g.reshape(x, out.shape)


@_rule("transpose")
def _transpose(g, out, x, *, permutation):
    return g.transpose(x, permutation)


@_rule("broadcast_in_dim")
def _broadcast(g, out, x, *sides, broadcast_dimensions, **_):
    place = dict(zip(broadcast_dimensions, range(len(x.shape))))
    new = [i for i in range(len(out.shape)) if i not in place]
    actual = [1 if i in new else x.actual[place[i]] for i in range(len(out.shape))]
    # A constant like any other: a scalar or a row stays what it is.
    if not new:
        return x._replace(shape=tuple(out.shape), actual=tuple(actual), constant=None,
                          name=g.name(x))
    return g.op("Unsqueeze", [x, g.integers(new)], out.shape, x.dtype, actual)


@_rule("slice")
def _slice(g, out, x, *, start_indices, limit_indices, strides):
    x = g.full(x)
    axes = [i for i, (a, b) in enumerate(zip(x.shape, out.shape)) if not same(a, b)]
    if not axes:
        return x
    pick = lambda values: g.sides([values[i] for i in axes])
    return g.op("Slice", [x, pick(start_indices), pick(limit_indices), g.integers(axes),
                          pick(strides or [1] * len(x.shape))], out.shape, x.dtype)


@_rule("split")
def _split(g, out, x, *, sizes, axis):
    ends = np.cumsum([0, *sizes])
    shape = lambda n: tuple(n if i == axis else s for i, s in enumerate(x.shape))
    return [g.op("Slice", [g.full(x), g.integers([a]), g.integers([b]), g.integers([axis])],
                 shape(int(b - a)), x.dtype) for a, b in zip(ends, ends[1:])]


@_rule("pad")
def _pad(g, out, x, value, *, padding_config):
    if any(within or low < 0 or high < 0 for low, high, within in padding_config):
        raise ValueError(f"padding by {padding_config} has no rule in export/onnx_rules.py")
    x = g.full(x)
    if x.dtype == bool:  # ONNX pads numbers
        padded = _pad(g, out, g.cast(x, np.int32), g.cast(value, np.int32),
                      padding_config=padding_config)
        return g.cast(padded, bool)
    widths = [p[0] for p in padding_config] + [p[1] for p in padding_config]
    return g.op("Pad", [x, g.sides(widths), value], out.shape, x.dtype)


@_rule("concatenate")
def _concatenate(g, out, *inputs, dimension):
    return g.op("Concat", [g.full(x) for x in inputs], out.shape, out.dtype, axis=dimension)


@_rule("stack")
def _stack(g, out, *inputs, axis):
    parts = [g.op("Unsqueeze", [g.full(x), g.integers([axis])],
                  (*x.shape[:axis], 1, *x.shape[axis:]), x.dtype) for x in inputs]
    return g.op("Concat", parts, out.shape, out.dtype, axis=axis)


@_rule("iota")
def _iota(g, out, *sides, dtype, shape, dimension, **_):
    scalar = lambda x: g.reshape(x, ())
    numbers = g.op("Range", [scalar(g.integers([0])), scalar(g.sides([shape[dimension]])),
                             scalar(g.integers([1]))], (shape[dimension],), np.int64)
    row = g.cast(g.reshape(numbers, [s if i == dimension else 1 for i, s in enumerate(shape)]),
                 dtype)
    return row._replace(shape=tuple(shape))


@_rule("dim_as_value")
def _side_as_value(g, out, *sides, dim):
    return g.cast(g.reshape(g.sides([dim]), ()), out.dtype)


# Sums, and products of matrices.


def _reduction(kind: str, through=None):
    """The rule of a reduction; of bool through another dtype that ONNX reduces."""
    def rule(g, out, x, *, axes, **_):
        x = g.full(x if through is None else g.cast(x, through))
        return g.cast(g.op(kind, [x, g.integers(axes)], out.shape, x.dtype, keepdims=0), out.dtype)
    return rule


RULES.update(
    reduce_sum=_reduction("ReduceSum"), reduce_max=_reduction("ReduceMax"),
    reduce_min=_reduction("ReduceMin"), reduce_prod=_reduction("ReduceProd"),
    reduce_or=_reduction("ReduceMax", np.int32), reduce_and=_reduction("ReduceMin", np.int32))


@_rule("dot_general")
def _dot_general(g, out, a, b, *, dimension_numbers, preferred_element_type, **_):
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    kind = np.result_type(a.dtype, b.dtype)  # ONNX multiplies numbers of one kind
    a, b = (g.cast(g.full(x), kind) for x in (a, b))
    free_a = [i for i in range(len(a.shape)) if i not in (*sum_a, *batch_a)]
    free_b = [i for i in range(len(b.shape)) if i not in (*sum_b, *batch_b)]
    a, b = (g.transpose(a, [*batch_a, *free_a, *sum_a]),
            g.transpose(b, [*batch_b, *sum_b, *free_b]))
    batch = len(batch_a)
    one = lambda sides: math.prod(sides[1:], start=sides[0]) if sides else 1
    common = one(a.shape[batch + len(free_a):])
    rows, columns = a.shape[batch:batch + len(free_a)], b.shape[batch + len(sum_b):]
    # A matrix product takes more than one axis of rows only against a single matrix.
    if batch or len(rows) == 0:
        a = g.reshape(a, (*a.shape[:batch], one(rows), common))
    else:
        a = g.reshape(a, (*rows, common))
    b = g.reshape(b, (*b.shape[:batch], common, one(columns)))
    result = g.op("MatMul", [a, b], (*a.shape[:-1], b.shape[-1]), a.dtype)
    return g.cast(g.reshape(result, out.shape), out.dtype)


@_rule("conv_general_dilated")
def _convolution(g, out, x, kernel, *, window_strides, padding, lhs_dilation, rhs_dilation,
                 dimension_numbers, feature_group_count, batch_group_count, **_):
    if batch_group_count != 1 or set(lhs_dilation) != {1}:
        raise ValueError("a transposed convolution has no rule in export/onnx_rules.py")
    of_x, of_kernel, of_out = dimension_numbers
    x, kernel = g.transpose(g.full(x), of_x), g.transpose(g.full(kernel), of_kernel)
    result = g.op("Conv", [x, kernel], [out.shape[i] for i in of_out], x.dtype,
                  strides=list(window_strides), dilations=list(rhs_dilation),
                  pads=[p[0] for p in padding] + [p[1] for p in padding],
                  group=feature_group_count)
    return g.cast(g.transpose(result, np.argsort(of_out).tolist()), out.dtype)


@_rule("gather")
def _gather(g, out, x, places, *, dimension_numbers, slice_sizes, **_):
    """One slice, or elements at many places: what indexing and `jnp.take` become."""
    d, rank = dimension_numbers, len(places.shape) - 1
    axes = d.start_index_map
    if not rank and not d.operand_batching_dims:
        start, sizes = g.cast(places, np.int64), g.sides([slice_sizes[a] for a in axes])
        end = (g.constant(start.constant + sizes.constant)
               if start.constant is not None is not sizes.constant
               else g.op("Add", [start, sizes], (len(axes),), np.int64))
        found = g.op("Slice", [g.full(x), start, end, g.integers(axes)], slice_sizes, x.dtype)
        return g.reshape(found, out.shape)
    rest = [i for i in range(len(x.shape)) if i not in axes]
    batched = d.operand_batching_dims
    whole = all(same(slice_sizes[i], x.shape[i]) for i in rest if i not in batched)
    # Of each picture at places of its own, as `vmap` makes it.
    if (batched == d.start_indices_batching_dims == (0,) and whole
            and d.collapsed_slice_dims == tuple(axes) == (1,)
            and d.offset_dims == tuple(range(rank, len(out.shape)))):
        return g.op("GatherND", [g.full(x), g.cast(g.full(places), np.int64)], out.shape, x.dtype,
                    batch_dims=1)
    if d.collapsed_slice_dims != tuple(sorted(axes)) or batched or not whole:
        raise ValueError(f"the gather of {slice_sizes} out of {x.shape}, {d}, has no rule in "
                         "export/onnx_rules.py")
    x = g.transpose(g.full(x), [*axes, *rest])
    shape = (*places.shape[:-1], *x.shape[len(axes):])
    if len(axes) == 1:
        found = g.op("Gather", [x, g.reshape(places, places.shape[:-1])], shape, x.dtype, axis=0)
    else:
        found = g.op("GatherND", [x, g.cast(places, np.int64)], shape, x.dtype)
    # Places come first; JAX says where the axes of the slices go.
    slices, of_places = iter(range(rank, len(shape))), iter(range(rank))
    return g.transpose(found, [next(slices) if i in d.offset_dims else next(of_places)
                               for i in range(len(shape))])
