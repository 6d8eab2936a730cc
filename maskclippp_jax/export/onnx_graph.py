"""Programs in JAX as ONNX graphs.

A traced function is a list of some fifty kinds of operation; each becomes one or a few of ONNX's
(`onnx_rules`). Dimensions may stay open. jax2onnx, which does the same for more operations, has no
version for this package: 0.13 fails with JAX 0.10 (`jax.interpreters.batching` has no
`not_mapped`), 0.14 to 0.17.1 want an orbax-checkpoint below 0.11.37, and our checkpoints one from
0.12.8 on.

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

from maskclippp_jax.export.onnx_rules import RULES, same

OPSET = 18      # of 2022: runtimes read it since onnxruntime 1.14
IR_VERSION = 8  # that of its time


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
        wanted = [1 if same(a, s) else s for a, s in zip(value.actual, value.shape)]
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
        actual = [next((s for s in side if not same(s, 1)), 1) for side in sides]
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
        if kind not in RULES:
            raise ValueError(f"the operation {kind} of JAX has no rule in export/onnx_rules.py; "
                             "take --format=stablehlo, or write one")
        results = RULES[kind](self, outs[0], *inputs, **settings)
        return results if isinstance(results, list) else [results]


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
