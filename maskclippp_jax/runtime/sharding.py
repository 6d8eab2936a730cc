"""How arrays lie on the chips. The only file that knows the names of the mesh axes.

The mesh has two axes: the batch is split over both, large parameters over `fsdp`. One device is the
1x1 mesh; there is no second code path.
"""

import typing

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from maskclippp_jax import params as parameters
from maskclippp_jax.models import layers

_BATCH = ("data", "fsdp")
# Smaller parameters are kept whole on every chip: gathering them costs more than they weigh.
_SHARD_FROM = 2**16  # numbers


def make_mesh(fsdp: int = 1, topology: str | None = None) -> Mesh:
    """A mesh over all devices, `fsdp` of which share one copy of the parameters.

    Args:
      fsdp: divides the number of devices.
      topology: name of a TPU slice nobody needs to hold, such as "v5e:4x4": its devices can be
        compiled for (`plan`). None: the devices at hand.

    Raises:
      ValueError: not a divisor, or no such topology.
    """
    if topology is None:
        devices = jax.devices()
    else:
        try:
            devices = topologies.get_topology_desc(topology, "tpu").devices
        except Exception as error:  # libtpu raises what it likes
            raise ValueError(f"no TPU topology {topology!r} ({error}); try v5e:4x4, v6e:4x4, "
                             "v5p:2x2x1 or v4:2x2x1, with jax[tpu] installed") from None
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh.fsdp is {fsdp}, but there are {len(devices)} devices; choose a "
                         "divisor")
    # An axis of 16 fits on a slice of 8x8 too.
    laid = mesh_utils.create_device_mesh((len(devices) // fsdp, fsdp), devices,
                                         allow_split_physical_axes=True)
    return Mesh(laid, _BATCH, axis_types=(AxisType.Auto,) * 2)


def state_shardings(tree: parameters.Tree, mesh: Mesh) -> parameters.Tree:
    """Shardings of parameters, or of an optimiser state over them.

    The longest axis that `fsdp` divides is split; small arrays are replicated.
    """
    fsdp = mesh.shape["fsdp"]

    def spec(x):
        if fsdp > 1 and x.size >= _SHARD_FROM:
            for axis in sorted(range(x.ndim), key=lambda i: -x.shape[i]):
                if x.shape[axis] % fsdp == 0:
                    return P(*["fsdp" if i == axis else None for i in range(x.ndim)])
        return P()

    return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, P(_BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def put(tree: typing.Any, shardings: typing.Any) -> typing.Any:
    """Arrays that every host has alike as global arrays; no host asks another.

    Args:
      tree: of numpy arrays, or of arrays on one device.
      shardings: the same tree of shardings, or one for all.
    """
    def one(x, sharding):
        x = np.asarray(x)
        with jax.transfer_guard_host_to_device("allow"):  # this is meant
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda x: one(x, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def local_rows(x: jax.Array) -> np.ndarray:
    """The rows of a batch [B, ...] that belong to this host, in order."""
    if jax.process_count() == 1:
        return jax.device_get(x)
    rows = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps the first axis split over all devices; the identity without an active mesh.

    Without it the compiler spreads the sharding of the position table into the tokens, at the price
    of hundreds of all-to-alls a step.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(_BATCH, *[None] * (x.ndim - 1)))


def _gather(x: jax.Array) -> jax.Array:
    """All of a parameter on every device; the identity without an active mesh.

    Left to itself the compiler may move activations to the parameters instead, and on a mesh of two
    axes move them several times.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P())


LAYOUT = layers.Layout(rows=constrain_batch, whole=_gather)


def split_batch(batch: dict, parts: int) -> dict:
    """A batch [B, ...] as `parts` smaller ones [parts, B / parts, ...], without moving rows.

    Every device cuts its own rows into parts; which images meet in a part does not matter.

    Raises:
      ValueError: the rows of a device cannot be shared out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size

    def split(x):
        if len(x) % (devices * parts):
            raise ValueError(f"train.batch_size is {len(x)}, which {devices} devices cannot take "
                             f"in {parts} parts (train.accumulate); choose a multiple of "
                             f"{devices * parts}")
        x = x.reshape(devices, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(parts, -1, *x.shape[3:])
        if mesh.empty:
            return x
        return jax.lax.with_sharding_constraint(x, P(None, _BATCH, *[None] * (x.ndim - 2)))

    return jax.tree.map(split, batch)


def spread(function, x: jax.Array) -> jax.Array:
    """`function(x)` with the rows of x spread over all devices and the result gathered on each.

    For the sentences of a tuned text tower: every device encodes its share instead of all of them.
    Rows are padded (with copies of the first) to a multiple of the devices.

    Args:
      function: maps [n, ...] to [n, ...] row by row.
      x: [n, ...].

    Returns:
      What `function(x)` gives, on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(x)
    padding = -len(x) % mesh.size
    padded = jax.numpy.concatenate([x, jax.numpy.repeat(x[:1], padding, axis=0)])
    result = function(constrain_batch(padded))
    result = jax.lax.with_sharding_constraint(result, P(*[None] * result.ndim))
    return result[:len(x)]


def each_picture(function, batch: typing.Any, shared: typing.Any = ()) -> typing.Any:
    """`function(picture, shared)` for every picture, on the device that holds it, one at a time.

    Args:
      function: maps pytrees of arrays to a pytree of arrays.
      batch: pytree of arrays [B, ...]; B a multiple of the devices of the active mesh.
      shared: pytree of arrays that all pictures need.

    Returns:
      The results, stacked: [B, ...].
    """
    run = lambda batch, shared: jax.lax.map(lambda picture: function(picture, shared), batch)
    if jax.sharding.get_abstract_mesh().empty:
        return run(batch, shared)
    return jax.shard_map(run, in_specs=(P(_BATCH), P()), out_specs=P(_BATCH),
                         check_vma=False)(batch, shared)
