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


def free_bytes(device: jax.Device) -> int | None:
    """The memory of a device that is free now, of the machine if it is a CPU; None where nothing
    tells."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    lines = _words_of("/proc/meminfo")
    if "MemAvailable:" not in lines:
        return None
    free = int(lines[lines.index("MemAvailable:") + 1]) * 1024
    # A container may have less than the machine (control groups, version 2).
    most, used = (_words_of(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if most and used and most[0].isdigit():
        free = min(free, int(most[0]) - int(used[0]))
    return free


def _words_of(file: str) -> list[str]:
    try:
        with open(file) as content:
            return content.read().split()
    except OSError:  # another system
        return []
