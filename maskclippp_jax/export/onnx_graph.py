"""Programs in JAX as ONNX graphs.

A traced function is a list of some fifty kinds of operation; each becomes one or a few of ONNX's.
Dimensions may stay open. Why not jax2onnx, which does the same for more operations: up to 0.13 it
fails with JAX 0.10 (`jax.interpreters.batching` has no `not_mapped`), and all later versions (up to
0.17.1) want an orbax-checkpoint below 0.11.37, where checkpoints that are whole or absent need one
from 0.12.8 on; no environment has both.

The operators are those of github.com/onnx/onnx/blob/main/docs/Operators.md, the operations JAX's
`jax.lax`.
"""

import math
import typing

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper

OPSET = 18      # of 2022: runtimes read it since onnxruntime 1.14
IR_VERSION = 8  # that of its time
_FOLDED = 2**18  # elements; constant results up to this size are computed here ...
_REPEATED = 2**12  # ... and up to this one, if they only repeat another


class Stored(typing.NamedTuple):
    """Where the bytes of a parameter lie: a file beside the graph, and what part of it."""

    file: str
    offset: int
    length: int


class Known(typing.NamedTuple):
    """A value of the graph."""

    name: str | None            # None: a constant that no operation has asked for yet
    shape: tuple                # as JAX has it
    actual: tuple               # as the graph has it: 1 where it is repeated
    dtype: np.dtype
    constant: np.ndarray | None = None


def convert(function: typing.Callable, inputs: dict[str, jax.ShapeDtypeStruct],
            parameters: dict[str, jax.ShapeDtypeStruct], stored: dict[str, Stored],
            outputs: typing.Sequence[str], title: str) -> onnx.ModelProto:
    """A function of parameters and inputs as a graph.

    Args:
      function: `(parameters, *inputs) -> arrays`, a flat tuple.
      inputs: shapes by name, in order; they may have open dimensions (`jax.export.symbolic_shape`).
      parameters: shapes by name.
      stored: where the parameters lie, of each. Those of files are no inputs of the graph.
      outputs: names of what the function returns.
      title: says what it is.

    Raises:
      ValueError: an operation that is not known here; the message names it.
    """
    closed = jax.jit(function).trace(parameters, *inputs.values()).jaxpr
    graph = _Graph(inputs)
    names = sorted(parameters)  # the order in which JAX takes the leaves of a dict
    values = [graph.parameter(name, parameters[name], stored[name]) for name in names]
    values += [graph.input(name, shape) for name, shape in inputs.items()]
    results = graph.run(closed.jaxpr, [np.asarray(c) for c in closed.consts], values)
    for name, value in zip(outputs, results, strict=True):
        graph.output(name, value)
    return graph.model(title)


class _Graph:
    """Operations in their order, constants, inputs and outputs."""

    def __init__(self, inputs: dict[str, jax.ShapeDtypeStruct]):
        self.nodes, self.initializers, self.inputs, self.outputs = [], {}, [], []
        self._count = 0
        self._constants: dict[tuple, str] = {}
        self._sides: dict[str, Known] = {}
        # Where an open dimension can be read.
        self._open = {str(side): (name, axis) for name, spec in reversed(inputs.items())
                      for axis, side in enumerate(spec.shape) if not isinstance(side, int)
                      and str(side).isidentifier()}

    # What goes in and out.

    def parameter(self, name: str, spec: jax.ShapeDtypeStruct, stored: Stored) -> Known:
        tensor = TensorProto(name=name, dims=spec.shape, data_type=_type(spec.dtype),
                             data_location=TensorProto.EXTERNAL)
        for key, value in (("location", stored.file), ("offset", stored.offset),
                           ("length", stored.length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers[name] = tensor
        return Known(name, spec.shape, spec.shape, np.dtype(spec.dtype))

    def input(self, name: str, spec: jax.ShapeDtypeStruct) -> Known:
        self.inputs.append(_info(name, spec))
        return Known(name, spec.shape, spec.shape, np.dtype(spec.dtype))

    def output(self, name: str, value: Known) -> None:
        value = self.full(value)
        self.nodes.append(helper.make_node("Identity", [self.name(value)], [name]))
        self.outputs.append(_info(name, value))

    def model(self, title: str) -> onnx.ModelProto:
        nodes = _needed(self.nodes, {o.name for o in self.outputs})
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes, title, self.inputs, self.outputs,
            [tensor for name, tensor in self.initializers.items() if name in used])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                                 producer_name="maskclippp_jax", ir_version=IR_VERSION)

    # Making operations.

    def op(self, kind: str, inputs: typing.Sequence, shape: tuple, dtype, actual=None, **attributes
           ) -> Known:
        """Adds an operation of one result; inputs that are None are left out."""
        self._count += 1
        name = f"{kind}_{self._count}"
        self.nodes.append(helper.make_node(
            kind, ["" if x is None else self.name(x) for x in inputs], [name], **attributes))
        return Known(name, tuple(shape), tuple(shape if actual is None else actual),
                     np.dtype(dtype))

    def constant(self, array) -> Known:
        array = np.asarray(array)
        return Known(None, array.shape, array.shape, array.dtype, array)

    def name(self, value: Known) -> str:
        if value.name is not None:
            return value.name
        array = np.ascontiguousarray(value.constant).reshape(value.constant.shape)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self.initializers[name] = onnx.numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def integers(self, numbers: typing.Iterable[int]) -> Known:
        return self.constant(np.array(list(numbers), np.int64))

    def full(self, value: Known) -> Known:
        """The value with nothing left to be repeated."""
        if value.actual == value.shape:
            return value
        # Expand leaves a side as it is where 1 is asked for.
        wanted = [1 if _same(a, s) else s for a, s in zip(value.actual, value.shape)]
        return self.op("Expand", [value, self.sides(wanted)], value.shape, value.dtype)

    def sides(self, shape: typing.Sequence) -> Known:
        """A shape as int64 [rank]; open sides are computed when the graph runs."""
        if all(isinstance(s, int) for s in shape):
            return self.integers(shape)
        return self.op("Concat", [self._side(s) for s in shape], (len(shape),), np.int64, axis=0)

    def _side(self, side) -> Known:
        """A side as int64 [1]."""
        if isinstance(side, int):
            return self.integers([side])
        if str(side) not in self._sides:
            known = {n: _Side(self, self._read(*place)) for n, place in self._open.items()}
            functions = dict(floordiv=lambda a, b: a // b, mod=lambda a, b: a % b,
                             max=lambda a, b: _Side.of(self, a).larger(b),
                             min=lambda a, b: _Side.of(self, a).smaller(b))
            # JAX writes such expressions like "2*B + floordiv(N, 3)".
            found = eval(str(side).replace("^", "**"), {"__builtins__": {}}, functions | known)
            self._sides[str(side)] = _Side.of(self, found).value
        return self._sides[str(side)]

    def _read(self, name: str, axis: int) -> Known:
        key = f"{name} {axis}"
        if key not in self._sides:
            # Through `op`, so that it is made where it is first asked for.
            place = Known(name, (), (), np.int64)
            self._sides[key] = self.op("Shape", [place], (1,), np.int64, start=axis, end=axis + 1)
        return self._sides[key]

    def reshape(self, x: Known, shape: tuple) -> Known:
        x = self.full(x)
        if x.shape == tuple(shape):
            return x
        if x.constant is not None and all(isinstance(s, int) for s in shape):
            return self.constant(x.constant.reshape(shape))
        open_sides = [i for i, s in enumerate(shape) if not isinstance(s, int)]
        wanted = self.sides(shape)
        if len(open_sides) == 1 and 0 not in shape:
            wanted = self.integers(-1 if i in open_sides else s for i, s in enumerate(shape))
        return self.op("Reshape", [x, wanted], shape, x.dtype)

    def transpose(self, x: Known, order: typing.Sequence[int]) -> Known:
        if tuple(order) == tuple(range(len(order))):
            return x
        return self.op("Transpose", [x], [x.shape[i] for i in order], x.dtype,
                       [x.actual[i] for i in order], perm=list(order))

    def cast(self, x: Known, dtype) -> Known:
        dtype = np.dtype(dtype)
        if x.dtype == dtype:
            return x
        if x.constant is not None:
            return self.constant(x.constant.astype(dtype))
        return self.op("Cast", [x], x.shape, dtype, x.actual, to=_type(dtype))

    def pointwise(self, kind: str, inputs: typing.Sequence[Known], shape=None, dtype=None,
                  **attributes) -> Known:
        """An operation on every element; ONNX repeats what has a side of 1."""
        shape = max((x.shape for x in inputs), key=len) if shape is None else shape
        sides = [[x.actual[i] for x in inputs if x.actual] for i in range(len(shape))]
        actual = [next((s for s in side if not _same(s, 1)), 1) for side in sides]
        return self.op(kind, inputs, shape, dtype or inputs[-1].dtype, actual, **attributes)

    # Running a traced function.

    def run(self, jaxpr, constants, arguments) -> list[Known]:
        values = dict(zip(jaxpr.constvars, (
            c if isinstance(c, Known) else self.constant(c) for c in constants)))
        values.update(zip(jaxpr.invars, arguments, strict=True))
        read = lambda x: (self.constant(np.asarray(x.val, x.aval.dtype))
                          if isinstance(x, core.Literal) else values[x])
        for equation in jaxpr.eqns:
            inputs = [read(x) for x in equation.invars]
            results = self.equation(equation, inputs)
            values.update(zip(equation.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, equation, inputs: list[Known]) -> list[Known]:
        kind, settings = equation.primitive.name, equation.params
        inner = next((settings[k] for k in ("call_jaxpr", "jaxpr", "fun_jaxpr") if k in settings),
                     None)
        if inner is not None:  # a function within: its operations, one by one
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        outs = [v.aval for v in equation.outvars]
        most = _REPEATED if kind == "broadcast_in_dim" else _FOLDED
        if kind != "dim_as_value" and all(x.constant is not None for x in inputs) and all(
                isinstance(s, int) for o in outs for s in o.shape) and all(
                math.prod(o.shape) <= most for o in outs):
            return self._folded(equation, inputs)
        if kind not in _RULES:
            raise ValueError(f"the operation {kind} of JAX has no rule in export/onnx_graph.py; "
                             "take --format=stablehlo, or write one")
        results = _RULES[kind](self, outs[0], *inputs, **settings)
        return results if isinstance(results, list) else [results]

    def _folded(self, equation, inputs) -> list[Known]:
        with jax.ensure_compile_time_eval():
            found = equation.primitive.bind(*(x.constant for x in inputs), **equation.params)
        return [self.constant(np.asarray(x)) for x in (
            found if equation.primitive.multiple_results else [found])]


class _Side:
    """A side of an array while its size is computed; int64 [1]."""

    def __init__(self, graph: _Graph, value: Known):
        self.graph, self.value = graph, value

    @classmethod
    def of(cls, graph: _Graph, value) -> "_Side":
        return value if isinstance(value, cls) else cls(graph, graph.integers([value]))

    def _with(self, kind, other, *, swap=False, **attributes):
        both = [self.value, _Side.of(self.graph, other).value][::-1 if swap else 1]
        return _Side(self.graph, self.graph.op(kind, both, (1,), np.int64, **attributes))

    __add__ = __radd__ = lambda self, other: self._with("Add", other)
    __mul__ = __rmul__ = lambda self, other: self._with("Mul", other)
    __sub__ = lambda self, other: self._with("Sub", other)
    __rsub__ = lambda self, other: self._with("Sub", other, swap=True)
    __neg__ = lambda self: self * -1
    __floordiv__ = lambda self, other: self._with("Div", other)  # sides are not negative
    __mod__ = lambda self, other: self._with("Mod", other)
    larger = lambda self, other: self._with("Max", other)
    smaller = lambda self, other: self._with("Min", other)

    def __pow__(self, power: int):
        return math.prod([self] * power)


def _same(a, b) -> bool:
    """Whether two sides are known to be one; an open one is compared by how it is written."""
    return str(a) == str(b)


def _type(dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _info(name: str, spec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, _type(spec.dtype), [s if isinstance(s, int) else str(s) for s in spec.shape])


def _needed(nodes: list, wanted: set[str]) -> list:
    """The operations that something wanted rests on, in their order."""
    kept, wanted = [], set(wanted)
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


# ---- One rule for each kind of operation: (graph, result, *inputs, **settings) -> value -----------

_RULES: dict[str, typing.Callable] = {}


def _rule(*kinds: str):
    def add(function):
        _RULES.update(dict.fromkeys(kinds, function))
        return function
    return add


def _simple(kind: str):
    return lambda g, out, *inputs, **_: g.pointwise(kind, inputs, out.shape, out.dtype)


_RULES.update({name: _simple(kind) for name, kind in dict(
    add="Add", add_any="Add", sub="Sub", mul="Mul", div="Div", max="Max", min="Min", pow="Pow",
    eq="Equal", lt="Less", le="LessOrEqual", gt="Greater", ge="GreaterOrEqual", neg="Neg",
    exp="Exp", log="Log", sqrt="Sqrt", tanh="Tanh", logistic="Sigmoid", sin="Sin", cos="Cos",
    abs="Abs", sign="Sign", floor="Floor", ceil="Ceil", erf="Erf").items()})
_RULES["and"], _RULES["or"], _RULES["not"] = (
    _simple(kind) for kind in ("And", "Or", "Not"))  # of bool


@_rule("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision")
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


@_rule("reshape", "squeeze", "expand_dims")
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
    axes = [i for i, (a, b) in enumerate(zip(x.shape, out.shape)) if not _same(a, b)]
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
        raise ValueError(f"padding by {padding_config} has no rule in export/onnx_graph.py")
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


@_rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
def _reduce(g, out, x, *, axes, kind="", **_):
    return g.op(kind, [g.full(x), g.integers(axes)], out.shape, out.dtype, keepdims=0)


for _name, _kind in dict(reduce_sum="ReduceSum", reduce_max="ReduceMax", reduce_min="ReduceMin",
                         reduce_prod="ReduceProd").items():
    _RULES[_name] = (lambda kind: lambda *args, **kw: _reduce(*args, **kw, kind=kind))(_kind)
for _name, _kind in dict(reduce_or="ReduceMax", reduce_and="ReduceMin").items():
    _RULES[_name] = (lambda kind: lambda g, out, x, **kw: g.cast(g.op(
        kind, [g.full(g.cast(x, np.int32)), g.integers(kw["axes"])], out.shape, np.int32,
        keepdims=0), bool))(_kind)


@_rule("argmax")
def _argmax(g, out, x, *, axes, index_dtype):
    found = g.op("ArgMax", [g.full(x)], out.shape, np.int64, axis=axes[0], keepdims=0)
    return g.cast(found, index_dtype)


@_rule("dot_general")
def _dot_general(g, out, a, b, *, dimension_numbers, preferred_element_type, **_):
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    a, b = g.full(a), g.full(b)
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
        raise ValueError("a transposed convolution has no rule in export/onnx_graph.py")
    of_x, of_kernel, of_out = dimension_numbers
    x, kernel = g.transpose(g.full(x), of_x), g.transpose(g.full(kernel), of_kernel)
    result = g.op("Conv", [x, kernel], [out.shape[i] for i in of_out], x.dtype,
                  strides=list(window_strides), dilations=list(rhs_dilation),
                  pads=[p[0] for p in padding] + [p[1] for p in padding],
                  group=feature_group_count)
    return g.cast(g.transpose(result, np.argsort(of_out).tolist()), out.dtype)


@_rule("gather")
def _gather(g, out, x, places, *, dimension_numbers, slice_sizes, **_):
    """One slice, or rows of one axis: what indexing and `jnp.take` become."""
    d, rank = dimension_numbers, len(places.shape) - 1
    axes = d.start_index_map
    if not rank and not d.operand_batching_dims:
        start, sizes = g.cast(places, np.int64), g.sides([slice_sizes[a] for a in axes])
        end = (g.constant(start.constant + sizes.constant)
               if start.constant is not None is not sizes.constant
               else g.op("Add", [start, sizes], (len(axes),), np.int64))
        found = g.op("Slice", [g.full(x), start, end, g.integers(axes)], slice_sizes, x.dtype)
        return g.reshape(found, out.shape)
    axis = axes[0]
    whole = all(_same(n, s) for i, (n, s) in enumerate(zip(slice_sizes, x.shape)) if i != axis)
    if len(axes) != 1 or d.collapsed_slice_dims != axes or d.operand_batching_dims or not whole:
        raise ValueError(f"the gather of {slice_sizes} out of {x.shape}, {d}, has no rule in "
                         "export/onnx_graph.py")
    places = g.reshape(places, places.shape[:-1])
    shape = (*x.shape[:axis], *places.shape, *x.shape[axis + 1:])
    found = g.op("Gather", [g.full(x), places], shape, x.dtype, axis=axis)
    # JAX says where the axes of the slices go; the others are those of the places.
    slices = iter([i for i in range(len(shape)) if not axis <= i < axis + rank])
    of_places = iter(range(axis, axis + rank))
    return g.transpose(found, [next(slices) if i in d.offset_dims else next(of_places)
                               for i in range(len(shape))])
