"""What two or more networks share: canvases, blocks, attention with soft masks.

Everything here works on padded canvases. An image of true grid (gh, gw) lies in the top left corner
of a canvas of (h, w) cells; its tables are laid over its own grid, and cells outside it are never
seen as keys. So an image gives the same numbers alone, padded, or in any batch.

A canvas with a single row of cells is a strip: images lie on it cell behind cell, row after row of
their own grids. So one program serves all shapes of as many cells. Towers over patches take strips,
as no patch knows its neighbours until attention; convolutions do not.
"""

import dataclasses
import functools
import math
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Logit of a key that does not exist (padding). Finite, so a row without any key gives no NaN.
NO_KEY = -1e30
# Bias of a patch outside a mask. Finite on purpose: an empty mask shifts all patches alike and the
# token attends to the whole image, as in the public reference.
OUTSIDE_BIAS = -100.0
# Numbers of a part that a CPU keeps in its cache.
IN_CACHE = 2**20

# CLIP's image statistics: RGB on 0..255.
PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)
PIXEL_STD = (68.5005327, 66.6321579, 70.32316305)


# ---- Images and what towers return --------------------------------------------------------------


class ImageFeatures(typing.NamedTuple):
    """What an image tower returns; nothing is normalised."""

    mask_embeddings: jax.Array | None   # [B, N, E]
    image_embedding: jax.Array          # [B, E]
    patch_embeddings: jax.Array | None  # [B, L, E]; cells outside an image's grid mean nothing
    patch_valid: jax.Array              # [B, L] bool, the cells of each image's own grid
    # In training, of batch norms: what the batch makes of each stored statistic, by its path in the
    # tower as nested dicts; None: the tower has none, or normalised by the stored ones.
    statistics: dict | None = None


class Grid(typing.NamedTuple):
    """Where images and their masks lie on the cells of a padded canvas."""

    canvas: tuple[int, int]   # (h, w) cells of the canvas
    size: jax.Array           # [B, 2] int32, true (gh, gw) of each image
    valid: jax.Array          # [B, L] bool, the cells of each image's own grid
    masks: jax.Array | None   # [B, N, L] float32 in [0, 1], zero outside each image's own grid


def lay_grid(image: jax.Array, image_size: jax.Array, grid_masks: jax.Array | None,
             cell: int) -> Grid:
    """Checks what a tower is given, and finds the cells of every image and its masks.

    Args:
      image: [B, H, W, 3].
      image_size: [B, 2] true height and width in pixels.
      grid_masks: [B, N, L] or None.
      cell: side of a cell in pixels; an image's grid is its next multiple of it.

    Raises:
      ValueError: the canvas is no multiple of the cell, or the masks lie on another grid.
    """
    height, width = image.shape[1:3]
    if height % cell or width % cell:
        raise ValueError(f"the canvas is {height}x{width} pixels; pad it to multiples of {cell}")
    canvas = (height // cell, width // cell)
    if grid_masks is not None and grid_masks.shape[-1] != canvas[0] * canvas[1]:
        raise ValueError(f"masks lie on a grid of {grid_masks.shape[-1]} cells, tokens on "
                         f"{canvas[0] * canvas[1]}; bring the masks to the token grid first")
    size = -(-image_size // cell)
    valid = inside_cells(size, canvas)
    if grid_masks is not None:
        grid_masks = jnp.where(valid[:, None], grid_masks.astype(jnp.float32), 0.0)
    return Grid(canvas, size, valid, grid_masks)


def token_grid(tower: nnx.Module, image_size: jax.Array) -> jax.Array:
    """True token grid [B, 2] of images of true size [B, 2] pixels: next multiple of a patch.

    The method `grid` of towers over patches.
    """
    return -(-image_size // tower.config.patch_size)


def is_strip(canvas: tuple[int, int]) -> bool:
    """Whether images lie on a canvas of (h, w) cells row after row."""
    return canvas[0] == 1


def cells_of(size: jax.Array, canvas: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Row and column of every cell of a canvas in each image's own grid.

    Args:
      size: [B, 2] int32, true (gh, gw) of each image, at least 1.
      canvas: (h, w) cells.

    Returns:
      Two int32 [B, h*w], or [1, h*w] where they are those of every image.
    """
    place = np.arange(canvas[0] * canvas[1], dtype=np.int32)[None]
    columns = size[:, 1:] if is_strip(canvas) else canvas[1]
    return jnp.asarray(place // columns), jnp.asarray(place % columns)


def inside_cells(size: jax.Array, canvas: tuple[int, int]) -> jax.Array:
    """[B, 2] true grids -> [B, h*w] bool, the cells of each image's own grid."""
    if is_strip(canvas):
        return jnp.arange(canvas[1])[None] < size.prod(-1, keepdims=True)
    return inside_canvas(size, canvas).reshape(size.shape[0], -1)


def inside_pixels(image_size: jax.Array, canvas: tuple[int, int], cell: int) -> jax.Array:
    """Which pixels of a canvas belong to each image.

    Args:
      image_size: [B, 2] true height and width.
      canvas: (H, W) pixels.
      cell: side of a cell in pixels.

    Returns:
      [B, H, W] bool.
    """
    cells = canvas[0] // cell, canvas[1] // cell
    if not is_strip(cells):
        return inside_canvas(image_size, canvas)
    first = [cell * place for place in cells_of(-(-image_size // cell), cells)]  # pixel of a cell
    left = jnp.minimum(image_size[:, :, None] - jnp.stack(first, 1), cell)  # [B, 2, L]
    pixel = jnp.arange(cell)
    rows = pixel[None, :, None, None] < left[:, None, 0, :, None]  # [B, cell, L, 1]
    columns = pixel[None, None, None] < left[:, None, 1, :, None]  # [B, 1, L, cell]
    return (rows & columns).reshape(image_size.shape[0], *canvas)


def inside_canvas(size: jax.Array, canvas: tuple[int, int]) -> jax.Array:
    """[B, 2] true sizes -> [B, h, w] bool, True in the top left corner that they span."""
    rows = jnp.arange(canvas[0])[None, :, None] < size[:, 0, None, None]
    return rows & (jnp.arange(canvas[1])[None, None] < size[:, 1, None, None])


def inside_map(x: jax.Array, grid: Grid) -> jax.Array:
    """Where a map x [B, h', w', D] of the whole canvas lies on each image's own grid: [B, h', w'].

    The map may be finer than the grid.
    """
    return inside_canvas(grid.size * (x.shape[1] // grid.canvas[0]), x.shape[1:3])


def normalize(image: jax.Array, image_size: jax.Array, mean: tuple = PIXEL_MEAN,
              std: tuple = PIXEL_STD, *, cell: int = 1) -> jax.Array:
    """Subtracts the mean, divides by the deviation, and sets everything outside the image to 0.

    Args:
      image: [B, H, W, 3] RGB in 0..255.
      image_size: [B, 2] true height and width.
      mean, std: three numbers each, of RGB on 0..255.
      cell: side of a cell in pixels, for images on strips.

    Returns:
      [B, H, W, 3] float32.
    """
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (mean, std))
    scaled = (image.astype(jnp.float32) - mean) / std
    inside = inside_pixels(image_size, image.shape[1:3], cell)
    return jnp.where(inside[..., None], scaled, 0.0)


# ---- Blocks of networks -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a network's arrays lie on the devices (`sharding.LAYOUT`); left out: nobody says."""

    rows: typing.Callable = lambda x: x  # of activations [B, ...]
    whole: typing.Callable = lambda x: x  # of the parameters a block is about to use


def rematerialize(remat: str, layout: Layout = Layout(), static: tuple[int, ...] = ()
                  ) -> typing.Callable:
    """A function `run(block, *arguments)` that calls the block.

    Args:
      remat: what the backward pass recomputes, to save memory: "none", "full", or "dots" (which
        keeps the results of matrix products without batch dimensions). Parameters that were
        gathered from several devices are gathered again.
      layout: of the block's parameters.
      static: positions among the arguments of those that are no arrays.
    """
    call = lambda block, *arguments: jax.tree.map(layout.whole, block)(*arguments)
    if remat == "none":
        return call
    policy = (jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None)
    return jax.checkpoint(call, policy=policy, static_argnums=tuple(1 + i for i in static))


class LayerNorm(nnx.LayerNorm):
    """Flax's layer norm over the last axis, mean and variance in float32. For its gradient it keeps
    the tokens, which their block keeps as well, and two numbers of each; what is derived of Flax's
    keeps two arrays more of the tokens' size."""

    def __call__(self, x):
        return _normalized(*self.promote_dtype(
            (x, self.scale[...], self.bias[...]), dtype=self.dtype), self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalized(x, scale, bias, epsilon):
    """[..., D], [D], [D] -> [..., D]."""
    return _normalized_forward(x, scale, bias, epsilon)[0]


def _normalized_forward(x, scale, bias, epsilon):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.maximum(0.0, (wide * wide).mean(-1, keepdims=True) - mean * mean)
    inverse = jax.lax.rsqrt(variance + epsilon)
    scale, bias = (row.reshape((1,) * (x.ndim - 1) + (-1,)) for row in (scale, bias))
    result = (x - mean) * (inverse * scale) + bias
    return result.astype(x.dtype), (x, mean, inverse, scale)


def _normalized_backward(epsilon, kept, change):
    del epsilon
    x, mean, inverse, scale = kept
    standard, change = (x - mean) * inverse, change.astype(mean.dtype)
    scaled = change * scale
    of_x = inverse * (scaled - scaled.mean(-1, keepdims=True)
                      - standard * (scaled * standard).mean(-1, keepdims=True))
    every_token = tuple(range(x.ndim - 1))
    return (of_x.astype(x.dtype), (change * standard).sum(every_token).astype(scale.dtype),
            change.sum(every_token).astype(scale.dtype))


_normalized.defvjp(_normalized_forward, _normalized_backward)


def layer_norm(width: int, *, epsilon: float, dtype, rngs: nnx.Rngs) -> LayerNorm:
    """A layer norm over the last axis; mean and variance are taken in float32."""
    return LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


exact_gelu = functools.partial(jax.nn.gelu, approximate=False)


def gelu(exact: bool) -> typing.Callable:
    """GELU by the error function, or its tanh form."""
    return exact_gelu if exact else jax.nn.gelu


def quick_gelu(x: jax.Array) -> jax.Array:
    """The approximation that OpenAI's CLIP was trained with; its weights want it."""
    return x * jax.nn.sigmoid(1.702 * x)


def in_parts(function: typing.Callable, rows: typing.Any, size: int) -> jax.Array:
    """Applies a function to parts of the rows of arrays, one part after the other.

    What the function needs between its input and its output exists for one part at a time.

    Args:
      function: takes `rows` with any number of rows, and gives an array [n, ...] whose rows do not
        depend on each other.
      rows: arrays [R, ...], or a tree of such.
      size: rows of a part, at most.
    """
    total = len(jax.tree.leaves(rows)[0])
    count = -(-total // size)
    size = -(-total // count)

    def cut(x):
        x = jnp.pad(x, ((0, count * size - total), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(count, size, *x.shape[1:])

    found = jax.lax.map(function, jax.tree.map(cut, rows))
    return found.reshape(count * size, *found.shape[2:])[:total]


def each_cell(function: typing.Callable, x: jax.Array, hidden: int, heads: str) -> jax.Array:
    """Applies a function to the cells of x [..., D], which do not depend on each other.

    Args:
      function: [..., D] -> [..., D'], any number of cells.
      x: cells.
      hidden: channels that the function has in between.
      heads: "apart", the way for a CPU: as many cells at a time as stay in its cache. Else all.
    """
    if heads != "apart":
        return function(x)
    found = in_parts(function, x.reshape(-1, x.shape[-1]), max(1, IN_CACHE // hidden))
    return found.reshape(*x.shape[:-1], -1)


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: typing.Callable, *, dtype,
                 rngs: nnx.Rngs):
        self.activation = activation
        self.fc1 = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class SwiGLU(nnx.Module):
    """w3(norm(silu(w1 x) * w2 x)); `inner_norm` is the norm's epsilon, None leaves it out."""

    def __init__(self, width: int, hidden: int, *, inner_norm: float | None = None, dtype,
                 rngs: nnx.Rngs):
        self.w1 = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.w2 = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.norm = None if inner_norm is None else layer_norm(
            hidden, epsilon=inner_norm, dtype=dtype, rngs=rngs)
        self.w3 = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = gated(self.w1(x), self.w2(x))
        return self.w3(x if self.norm is None else self.norm(x))


@jax.custom_vjp
def gated(gate, x):
    """silu(gate) * x, which keeps these two alone for its gradient."""
    return jax.nn.silu(gate) * x


def _gated_backward(kept, change):
    gate, x = kept
    share = jax.nn.sigmoid(gate)
    return change * x * share * (1 + gate * (1 - share)), change * gate * share


gated.defvjp(lambda gate, x: (gated(gate, x), (gate, x)), _gated_backward)


class PatchConv(nnx.Module):
    """A convolution whose stride is its size: one matrix product, blind to its neighbours."""

    def __init__(self, size: int, channels: int, width: int, *, use_bias: bool, dtype,
                 rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(nnx.initializers.lecun_normal(in_axis=(0, 1, 2))(
            rngs.params(), (size, size, channels, width)))  # HWIO
        self.bias = nnx.Param(jnp.zeros(width)) if use_bias else None

    def __call__(self, x):
        """[B, H, W, C] -> [B, H / size, W / size, D]."""
        p, _, channels, width = self.kernel.shape
        batch, height, columns, _ = x.shape
        patches = x.reshape(batch, height // p, p, columns // p, p, channels).swapaxes(2, 3)
        patches = patches.reshape(batch, height // p, columns // p, -1).astype(self.dtype)
        result = patches @ self.kernel[...].reshape(-1, width).astype(self.dtype)
        if self.bias is not None:
            result = result + self.bias[None, None, None].astype(self.dtype)
        return result


# ---- Attention ----------------------------------------------------------------------------------


def inside_masks(grid_masks: jax.Array, threshold: float | None) -> jax.Array:
    """Which patches lie inside each mask.

    Args:
      grid_masks: [..., L] float in [0, 1], masks on the token grid.
      threshold: a patch is inside if its value is strictly greater; None takes half of the largest
        value of that mask (all released models with mask tokens).

    Returns:
      [..., L] bool; all False for an empty mask.
    """
    limit = grid_masks.max(-1, keepdims=True) / 2 if threshold is None else threshold
    return grid_masks > limit


def attend(queries, keys, values, *, turn: typing.Callable | None = None, allowed=None, masks=None,
           inside=None, mask_scale=None, dropout: float = 0.0,
           dropout_key: jax.Array | None = None, heads: str) -> jax.Array:
    """Softmax attention, with the soft-mask bias of masked attention pooling on request.

    The bias of query n for patch l in head a is `masks[n, l] * mask_scale[a]` inside the mask and
    -100 outside. It is formed per head next to the logits and never exists for all heads at once in
    memory.

    Args:
      queries: [B, T, A, K] float.
      keys: [B, S, A, K] float.
      values: [B, S, A, K] float.
      turn: turns queries and keys first, of the same tokens (`positions.Rotation`).
      allowed: bool, broadcastable to [B, T, S]; False hides a key from a query.
      masks: [B, T, S] float32 or None, the mask of every query.
      inside: [B, T, S] bool, see `inside_masks`; given with `masks`.
      mask_scale: [A] float32, factor of the values inside; given with `masks`.
      dropout: share of the attention weights that are dropped, if a key is given.
      dropout_key: source of randomness; None: nothing is dropped.
      heads: "apart", one after the other: three times faster on a CPU, where the logits of one
        head stay in cache. "together", as the compiler batches them, and always where weights are
        dropped. "fused" and "cudnn", kernels of TPUs and of GPUs that never write logits to memory,
        where they can (bfloat16 tokens that see each other, no masks; see `fused_attention.fits`,
        `cudnn_attention.fits`), else together.

    Returns:
      [B, T, A, K] in the dtype of `queries`. Logits, bias and softmax are float32.
    """
    kernel = _kernel(heads) if masks is None and dropout_key is None else None
    if kernel is not None and kernel.fits(queries, keys, turn, allowed):
        return kernel.attend(queries, keys, values, turn, allowed)
    if turn is not None:
        queries, keys = turn(queries), turn(keys)
    queries = queries * queries.shape[-1] ** -0.5
    factor = jnp.ones(queries.shape[2], jnp.float32) if mask_scale is None else mask_scale
    each = (*(jnp.moveaxis(x, 2, 0) for x in (queries, keys, values)), factor)
    bias = masks, inside, allowed
    if dropout_key is not None and dropout:
        mixed = jax.vmap(lambda head, key: _one_head(head, bias, dropout, key)[0])(
            each, jax.random.split(dropout_key, queries.shape[2]))
    elif heads == "apart":
        mixed = _heads_apart(each, bias)
    else:
        mixed = jax.vmap(lambda head: _one_head(head, bias)[0])(each)
    return jnp.moveaxis(mixed, 0, 2).astype(queries.dtype)


def _one_head(head, bias, dropout=0.0, dropout_key=None):
    """Attention of one head [B, T, K], and its weights' peaks and sums [B, T, 1]; float32.

    `head` are scaled queries [B, T, K], keys and values [B, S, K], and the factor of masks; `bias`
    are masks, what is inside, and what is allowed, as `attend` has them.
    """
    q, k, v, factor = head
    logits = _biased(jnp.einsum("btk,bsk->bts", q, k, preferred_element_type=jnp.float32),
                     factor, bias)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    if dropout_key is not None:
        weights = drop(weights, dropout, dropout_key)
    mixed = jnp.einsum("bts,bsk->btk", weights.astype(v.dtype), v,
                       preferred_element_type=jnp.float32)
    return mixed / total, (top, total)


def _biased(logits, factor, bias):
    masks, inside, allowed = bias
    if masks is not None:
        logits = logits + jnp.where(inside, masks * factor, OUTSIDE_BIAS)
    return logits if allowed is None else jnp.where(allowed, logits, NO_KEY)


@jax.custom_vjp
def _heads_apart(each, bias):
    """One head after the other: queries, keys, values [A, B, T, K], factors [A] -> [A, B, T, K]."""
    return jax.lax.map(lambda head: _one_head(head, bias)[0], each)


def _heads_apart_forward(each, bias):
    mixed, statistics = jax.lax.map(lambda head: _one_head(head, bias), each)
    return mixed, (each, bias, mixed, statistics)


def _heads_apart_backward(kept, change):
    """Forms the logits of one head again, as those of all are large, and nothing else: what is
    derived would multiply by the values once more. Keys come first, so that one product in place of
    two contracts the first axis of its first array, which a CPU does at two thirds of the speed.
    """
    each, bias, mixed, statistics = kept
    keys_first = lambda x: jnp.swapaxes(x.reshape((1,) * (3 - x.ndim) + x.shape), 1, 2)
    turned = masks, inside, allowed = jax.tree.map(keys_first, bias)

    def one_head(arguments):
        (q, k, v, factor), top, along, change = arguments
        top, along = map(keys_first, (top, along))  # [B, 1, T]
        logits = jnp.einsum("bsk,btk->bst", k, q, preferred_element_type=jnp.float32)
        weights = jnp.exp(_biased(logits, factor, turned) - top)
        of_v = jnp.einsum("bst,btk->bsk", weights.astype(v.dtype), change)
        of_weights = jnp.einsum("bsk,btk->bst", v, change, preferred_element_type=jnp.float32)
        of_logits = weights * (of_weights - along)
        if allowed is not None:
            of_logits = jnp.where(allowed, of_logits, 0.0)
        of_masks, of_factor = None, jnp.zeros_like(factor)
        if masks is not None:
            of_bias = jnp.where(inside, of_logits, 0.0)
            of_masks, of_factor = of_bias * factor, (of_bias * masks).sum()
        of_logits = of_logits.astype(k.dtype)
        of_k = jnp.einsum("bst,btk->bsk", of_logits, q)
        of_q = jnp.einsum("bst,bsk->btk", of_logits, k)
        return (of_q, of_k, of_v, of_factor), of_masks

    top, total = statistics
    change = change / total  # so that weights need no division
    of_each, of_masks = jax.lax.map(one_head, (
        each, top, (change * mixed).sum(-1, keepdims=True), change.astype(each[2].dtype)))
    no_gradient = lambda x: None if x is None else np.zeros(x.shape, jax.dtypes.float0)
    return of_each, (None if masks is None else jnp.swapaxes(of_masks.sum(0), -1, -2),
                     *map(no_gradient, bias[1:]))


_heads_apart.defvjp(_heads_apart_forward, _heads_apart_backward)


def _kernel(heads: str) -> types.ModuleType | None:
    """Where `fits` and `attend` of a kernel are."""
    if heads == "fused":
        from maskclippp_jax.models import fused_attention  # Pallas, which other devices do without
        return fused_attention
    if heads == "cudnn":
        from maskclippp_jax.models import cudnn_attention
        return cudnn_attention
    return None


def kernels_take(queries: jax.Array, keys: jax.Array, allowed: jax.Array | None) -> bool:
    """Whether the tokens of each image attend to each other, as all kernels want it.

    Numbers of fewer bits than float32 alone: kernels multiply as the matrix unit likes best, and
    float32 is asked for to be exact.
    """
    return (queries.dtype == jnp.bfloat16 and queries.shape == keys.shape
            and (allowed is None or (allowed.ndim == 3 and allowed.shape[1] == 1))
            and len(queries) % math.prod(_free_axes().values()) == 0)


def _free_axes() -> dict[str, int]:
    """Axes of the active mesh over which the compiler still splits arrays, with their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}


def on_own_rows(run: typing.Callable) -> typing.Callable:
    """`run` of arrays [B, ...] on every device's own rows: the compiler cannot split a kernel."""
    axes = tuple(_free_axes())
    if not axes:
        return run
    rows = jax.sharding.PartitionSpec(axes)
    return jax.shard_map(run, in_specs=rows, out_specs=rows, check_vma=False)


def drop(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Sets a share of the numbers to 0 and scales the others up, so that the mean stays."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0.0)


def split_heads(tokens: jax.Array, num_heads: int) -> jax.Array:
    """[B, T, D] -> [B, T, A, K]; the channels of one head are contiguous."""
    return tokens.reshape(*tokens.shape[:-1], num_heads, -1)


def merge_heads(tokens: jax.Array) -> jax.Array:
    """[B, T, A, K] -> [B, T, D]."""
    return tokens.reshape(*tokens.shape[:-2], -1)
