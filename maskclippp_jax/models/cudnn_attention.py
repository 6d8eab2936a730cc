"""Self-attention of image tokens by cuDNN on a GPU, which never writes the logits to memory.

JAX calls cuDNN's flash attention, and its gradient, for heads of 64 to 128 channels in bfloat16
(`jax.nn.dot_product_attention`). It hides keys by a length, which cells of a padded image are not,
or by a bias [T, T] of every image; JAX up to 0.10 has cuDNN sum up that bias's gradient as well.
Here hidden keys get a channel of their own instead: it holds a large negative number, and queries
hold 1 in it. So logits are what they are, or far below all others. cuDNN adds the parts of a
gradient in the order in which they come, so that two runs agree up to rounding, not bit for bit.
"""

import functools

import jax
import jax.numpy as jnp

from maskclippp_jax.models import layers, positions

_MULTIPLE = 8     # cuDNN takes heads of so many channels, or multiples of it, ...
_MOST = 128       # ... up to so many, forwards and backwards on every GPU that it knows
_LEAST = 128      # tokens for which it may pay, a guess
_HIDDEN = -2.0**20  # logit of a hidden key, times the scale: exp gives 0, and nothing overflows
_CAPABILITY = (8, 0)  # of a GPU: Ampere


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array,
           turn: positions.Rotation | None = None, allowed: jax.Array | None = None, *,
           implementation: str = "cudnn") -> jax.Array:
    """Softmax attention among the tokens of each image, with its gradient.

    Args:
      queries, keys, values: [B, T, A, K] float; B a multiple of the devices of the active mesh.
      turn: what queries and keys turn by first.
      allowed: bool, broadcastable to [B, 1, T]; False hides a key from all queries. At least one
        key of each image is left.
      implementation: "xla" computes the same on any device (tests).

    Returns:
      [B, T, A, K] in the dtype of `queries`. Logits, softmax and sums are float32.
    """
    (_, length, _, width), odd = queries.shape, queries.shape[1] % 2
    if turn is not None:
        queries, keys = turn(queries), turn(keys)
    if allowed is not None or odd:  # JAX takes an even number of tokens where there is a gradient
        seen = jnp.ones((1, length), bool) if allowed is None else allowed[:, 0]
        seen = jnp.pad(jnp.broadcast_to(seen, (len(seen), length)), ((0, 0), (0, odd)))
        hidden = jnp.where(seen, 0.0, _HIDDEN)[..., None]  # [B or 1, T, 1]
        queries, keys, values = (_widen(jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))), first)
                                 for x, first in ((queries, 1.0), (keys, hidden), (values, 0.0)))
    run = functools.partial(jax.nn.dot_product_attention, scale=width ** -0.5,
                            implementation=implementation)
    return layers.on_own_rows(run)(queries, keys, values)[:, :length, :, :width]


def fits(queries: jax.Array, keys: jax.Array, turn: positions.Rotation | None,
         allowed: jax.Array | None) -> bool:
    """Whether `attend` can take the place of `layers.attend`, and may pay."""
    del turn
    _, length, _, width = queries.shape
    return (layers.kernels_take(queries, keys, allowed) and length >= _LEAST
            and width % _MULTIPLE == 0
            and width + _MULTIPLE * (allowed is not None or length % 2) <= _MOST)


def check(device: jax.Device) -> None:
    """Says so if a GPU has no such kernel.

    Raises:
      ValueError: it is older than Ampere, or not of NVIDIA.
    """
    found = str(getattr(device, "compute_capability", None))
    if not found.replace(".", "").isdigit() or tuple(map(int, found.split("."))) < _CAPABILITY:
        raise ValueError(f"cuDNN's attention needs an NVIDIA GPU of compute capability 8.0 or more "
                         f"(A100, RTX 30), this one ({device.device_kind}) has {found}; leave "
                         "MASKCLIPPP_GPU_ATTENTION out")


def _widen(x: jax.Array, first: jax.Array | float) -> jax.Array:
    """[B, T, A, K] with eight channels more: one that holds `first`, broadcastable to [B, T, A],
    and zeros."""
    first = jnp.broadcast_to(first, x.shape[:-1]).astype(x.dtype)[..., None]
    return jnp.concatenate([x, first, jnp.zeros_like(x[..., :_MULTIPLE - 1])], -1)
