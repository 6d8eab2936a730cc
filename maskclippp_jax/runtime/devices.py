"""What one device can do at best: the measure of `plan`, and of the running step (MFU).

A device is what JAX counts as one; of a TPU v4 that is one of a chip's two cores.
"""

import os
import typing

import jax


class Kind(typing.NamedTuple):
    flops: float       # bfloat16 FLOP/s with float32 sums, dense
    memory_gib: float
    memory_bytes: float  # bytes/s of that memory
    link_bytes: float  # bytes/s over all its links to other devices, one way


# From Google's public documentation of Cloud TPU, and NVIDIA's data sheets (SXM boards).
KINDS = {
    "TPU v4": Kind(275e12 / 2, 16, 1228e9 / 2, 300e9 / 2),
    "TPU v5 lite": Kind(197e12, 16, 819e9, 200e9),
    "TPU v5": Kind(459e12, 95, 2765e9, 600e9),
    "TPU v6 lite": Kind(918e12, 32, 1640e9, 448e9),
    "A100-SXM4-40GB": Kind(312e12, 40, 1555e9, 300e9),
    "A100-SXM4-80GB": Kind(312e12, 80, 2039e9, 300e9),
    "H100 80GB HBM3": Kind(989e12, 80, 3350e9, 450e9),
    "H200": Kind(989e12, 141, 4800e9, 450e9),
}


def describe(device: jax.Device) -> Kind | None:
    """What the device can do; None if we do not know its kind (a CPU, say)."""
    if device.platform == "tpu":
        return KINDS.get(device.device_kind)
    return next((kind for name, kind in KINDS.items()
                 if device.platform == "gpu" and name in device.device_kind), None)


def memory_gib(device: jax.Device) -> float | None:
    """The memory that programs may take of a device at hand, or of the machine if it is a CPU."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] / 2**30 if "bytes_limit" in stats else None
