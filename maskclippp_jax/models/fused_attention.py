"""Self-attention of image tokens as one TPU kernel, which never writes the logits to memory.

A chip holds the logits of a few hundred queries and all keys of one image in the memory beside its
matrix unit, so the softmax is taken in one go and the backward pass recomputes it from queries,
keys and values alone. The kernels read and write [B, T, A * K] as the projections around them do,
and turn queries and keys by their angles themselves: outside, that would be another two passes.
The attention that JAX ships (splash attention) computes the same, but wants [B, A, T, K] padded to
128 tokens, with heads of 64 channels padded to 128 in memory: for EVA02-L at 448 pixels, copying
there and back would cost more than half of what it saves.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from maskclippp_jax.models import layers, positions

_LANES = 128    # columns of a register, and of the matrix unit
_ROWS = 16      # rows of a register of bfloat16
_LOGITS = 2**19  # numbers of one head that a kernel holds at a time: 2 MB
_MOST = 3072     # tokens whose keys and values leave room for them, backwards, in 16 MB
_MOST_TURNED = 2560  # the same with the angles that they turn by
_HIDDEN = -1e30  # added to the logits of a hidden key


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array,
           turn: positions.Rotation | None = None, allowed: jax.Array | None = None, *,
           interpret: bool = False) -> jax.Array:
    """Softmax attention among the tokens of each image, with its gradient.

    Args:
      queries, keys, values: [B, T, A, K] float; B a multiple of the devices of the active mesh.
      turn: what queries and keys turn by first; its angles get no gradient.
      allowed: bool, broadcastable to [B, 1, T]; False hides a key from all queries. At least one
        key of each image is left.
      interpret: run step by step, on any device (tests).

    Returns:
      [B, T, A, K] in the dtype of `queries`. Logits, softmax and sums are float32.
    """
    num_heads, width = queries.shape[2:]
    columns = _columns(num_heads, width)
    pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, columns - width)])
    flat = (pad(x).reshape(*x.shape[:2], -1) for x in (queries, keys, values))
    hidden = jnp.where(True if allowed is None else allowed, 0.0, _HIDDEN)
    hidden = jnp.broadcast_to(hidden, (len(queries), 1, queries.shape[1]))
    angles = ()
    if turn is not None:  # of all images, or one table for each
        angles = tuple(jnp.broadcast_to(pad(x), (*queries.shape[:2], columns))
                       for x in (turn.cos, turn.sin))
    run = functools.partial(
        _attend, Sizes(num_heads, width, None if turn is None else turn.quarter, interpret))
    mixed = layers.on_own_rows(run)(*flat, hidden, angles)
    return mixed.reshape(*queries.shape[:3], -1)[..., :width]


def fits(queries: jax.Array, keys: jax.Array, turn: positions.Rotation | None,
         allowed: jax.Array | None) -> bool:
    """Whether `attend` can take the place of `layers.attend`, and pays."""
    return (layers.kernels_take(queries, keys, allowed)
            and _LANES <= queries.shape[1] <= (_MOST if turn is None else _MOST_TURNED))


class Sizes(typing.NamedTuple):
    """What the shapes of the arrays do not tell."""

    num_heads: int
    width: int       # K before padding
    quarter: typing.Callable | None  # of `positions.Rotation`; None: nothing turns
    interpret: bool


def _columns(num_heads: int, width: int) -> int:
    """What the channels of a head are padded to, so that a few heads fill whole registers."""
    if _LANES % width == 0 and num_heads % (_LANES // width) == 0:
        return width
    return -(-width // _LANES) * _LANES


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, queries, keys, values, hidden, angles):
    """[B, T, A * columns] three times, [B, 1, T], and cosines and sines [B, T, columns] or nothing
    -> [B, T, A * columns]."""
    some, whole, of_hidden, grid = _blocks(sizes, queries)
    turning, of_turning, memory = _turning(sizes, queries, angles)
    return _call(_forward, "attention", sizes, queries, 2, 4)(
        grid=grid, in_specs=[some, whole, whole, of_hidden, of_turning], out_specs=some,
        out_shape=_like(queries), scratch_shapes=memory)(queries, keys, values, hidden, turning)


def _attend_forward(sizes, *arrays):
    return _attend(sizes, *arrays), arrays


def _attend_backward(sizes, arrays, change):
    queries, keys, values, hidden, angles = arrays
    some, whole, of_hidden, grid = _blocks(sizes, queries)
    turning, of_turning, memory = _turning(sizes, queries, angles)
    sums = pltpu.VMEM(whole.block_shape[1:], jnp.float32)
    changes = _call(_backward, "attention_backward", sizes, queries, 5, 7)(
        grid=grid, in_specs=[some, whole, whole, of_hidden, of_turning, some],
        out_specs=[some, whole, whole], out_shape=[_like(x) for x in (queries, keys, values)],
        scratch_shapes=[sums, sums, *memory])(queries, keys, values, hidden, turning, change)
    return *changes, None, None


_attend.defvjp(_attend_forward, _attend_backward)


class Turning(typing.NamedTuple):
    """What a kernel turns by, as arrays or as what a call sees of them: cosines and sines
    [B, T, columns] float32, and `Rotation.matrix` [columns, columns]. Empty where nothing turns."""

    queries: tuple  # for some tokens
    keys: tuple     # for all tokens


def _turning(sizes, queries, angles):
    """A kernel's `Turning`, its blocks, and memory for the keys: they are turned once, with the
    first part of the queries."""
    if not angles:
        return Turning((), ()), Turning((), ()), []
    some, whole, *_ = _blocks(sizes, queries)
    columns = queries.shape[-1] // sizes.num_heads
    quarter = sizes.quarter(jnp.eye(sizes.width, dtype=queries.dtype))
    quarter = jnp.pad(quarter, (0, columns - sizes.width))
    of_some = pl.BlockSpec((1, some.block_shape[1], columns), lambda b, g, i: (b, i, 0))
    of_all = pl.BlockSpec((1, queries.shape[1], columns), lambda b, g, i: (b, 0, 0))
    of_quarter = pl.BlockSpec((columns, columns), lambda b, g, i: (0, 0))
    blocks = Turning((of_some, of_some, of_quarter), (of_all, of_all, of_quarter))
    return (Turning((*angles, quarter), (*angles, quarter)), blocks,
            [pltpu.VMEM(whole.block_shape[1:], queries.dtype)])


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _call(kernel, name, sizes, queries, num_products, num_arrays):
    """A kernel with its cost, which the compiler believes: FLOPs of so many matrix products of
    queries and keys, and of as many as are turned, bytes of so many arrays. Its name tells how many
    of a matrix unit's columns its heads use (`training/compiled_step.py`)."""
    batch, num_tokens, width = queries.shape
    columns = width // sizes.num_heads
    logits = batch * sizes.num_heads * num_tokens**2
    flops = 2 * num_products * logits * sizes.width
    if sizes.quarter is not None:  # queries and keys, and backwards their gradients
        flops += 2 * (2 if kernel is _forward else 4) * queries.size * sizes.width
    cost = pl.CostEstimate(
        flops=flops, transcendentals=logits,
        bytes_accessed=num_arrays * queries.size * queries.dtype.itemsize)
    return functools.partial(
        pl.pallas_call, functools.partial(kernel, columns=columns, scale=sizes.width ** -0.5),
        cost_estimate=cost,
        name=f"{name}_{sizes.width}_of_{-(-columns // _LANES) * _LANES}",
        interpret=sizes.interpret, compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")))


def _blocks(sizes, queries):
    """What one call of a kernel sees of [B, T, A * columns] (some or all tokens of a few heads)
    and of [B, 1, T], and the grid of its calls: images, groups of heads, parts of the queries."""
    batch, num_tokens, width = queries.shape
    group = max(_LANES, width // sizes.num_heads)
    parts = -(-num_tokens // max(_ROWS, _LOGITS // num_tokens))
    rows = min(num_tokens, _ROWS * -(-num_tokens // (parts * _ROWS)))
    some = pl.BlockSpec((1, rows, group), lambda b, g, i: (b, i, g))
    whole = pl.BlockSpec((1, num_tokens, group), lambda b, g, i: (b, 0, g))
    of_hidden = pl.BlockSpec((1, 1, num_tokens), lambda b, g, i: (b, 0, 0))
    return some, whole, of_hidden, (batch, width // group, -(-num_tokens // rows))


def _forward(q_ref, k_ref, v_ref, hidden_ref, turning, out_ref, *turned_keys, columns, scale):
    hidden, keys = hidden_ref[0], _keys(k_ref, turning, turned_keys, columns)
    for head in _heads(q_ref, columns):
        q, v = _turned(q_ref[0, :, head], turning.queries, scale), v_ref[0, :, head]
        weights, total = _softmax(q, keys[:, head], hidden)
        mixed = _product(weights.astype(v.dtype), v, (1, 0)) / total
        out_ref[0, :, head] = mixed.astype(out_ref.dtype)


def _backward(q_ref, k_ref, v_ref, hidden_ref, turning, change_ref, dq_ref, dk_ref, dv_ref,
              dk_sum, dv_sum, *turned_keys, columns, scale):
    part, hidden = pl.program_id(2), hidden_ref[0]
    num_rows, num_tokens = q_ref.shape[1], k_ref.shape[1]
    row = part * num_rows + jax.lax.broadcasted_iota(jnp.int32, (num_rows, 1), 0)
    # The last part may reach beyond the array, where anything may stand.
    existing = lambda x: jnp.where(row < num_tokens, x.astype(jnp.float32), 0.0).astype(x.dtype)
    keys = _keys(k_ref, turning, turned_keys, columns)

    @pl.when(part == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    for head in _heads(q_ref, columns):
        q = existing(_turned(q_ref[0, :, head], turning.queries, scale))
        k, v, change = keys[:, head], v_ref[0, :, head], existing(change_ref[0, :, head])
        weights, total = _softmax(q, k, hidden)
        weights = weights / total
        dv_sum[:, head] += _product(weights.astype(v.dtype), change, (0, 0))
        of_weights = _product(change, v, (1, 1))  # [rows, T]
        mean = (weights * of_weights).sum(-1, keepdims=True)
        of_logits = (weights * (of_weights - mean)).astype(k.dtype)
        dk_sum[:, head] += _product(of_logits, q, (0, 0))
        of_query = _product(of_logits, k, (1, 0)) * scale
        dq_ref[0, :, head] = _turned_back(of_query, turning.queries, dq_ref.dtype)

    @pl.when(part == pl.num_programs(2) - 1)
    def _():
        for head in _heads(k_ref, columns):
            dk_ref[0, :, head] = _turned_back(dk_sum[:, head], turning.keys, dk_ref.dtype)
        dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)


def _keys(k_ref, turning, memory, columns):
    """The keys [T, group] as a reference, turned where anything turns."""
    if not turning.keys:
        return k_ref.at[0]

    @pl.when(pl.program_id(2) == 0)
    def _():
        for head in _heads(k_ref, columns):
            memory[0][:, head] = _turned(k_ref[0, :, head], turning.keys)

    return memory[0]


def _turned(x, turn, scale=1.0):
    """Queries or keys [rows, columns] turned by their angles, if anything turns, times a factor."""
    result = x.astype(jnp.float32)
    if turn:
        cos, sin, quarter = turn
        result = result * cos[0] + _product(x, quarter[...], (1, 0)) * sin[0]
    return (result * scale).astype(x.dtype)


def _turned_back(change, turn, dtype):
    """Of `_turned`: the gradient of what went in, from that [rows, columns] float32 of what came
    out but for the factor."""
    if turn:
        cos, sin, quarter = turn
        of_quarter = (change * sin[0]).astype(dtype)
        change = change * cos[0] + _product(of_quarter, quarter[...], (1, 1))
    return change.astype(dtype)


def _heads(ref, columns):
    """Slices of the channels of each head that a block [1, rows, group] holds."""
    return [slice(start, start + columns) for start in range(0, ref.shape[-1], columns)]


def _softmax(q, k, hidden):
    """Weights [rows, T] before the division by their sum [rows, 1]."""
    logits = _product(q, k, (1, 1)) + hidden
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights, weights.sum(-1, keepdims=True)


def _product(a, b, axes):
    """The matrix product over an axis of each, with float32 sums."""
    # Products of bfloat16 are exact as they are, and Mosaic refuses to be asked for more.
    precision = "default" if a.dtype == jnp.bfloat16 else "highest"
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), precision=precision,
                               preferred_element_type=jnp.float32)
