"""Memory of training steps on a GPU that is not here: python -m benchmarks.gpu_memory

XLA compiles for a GPU by its description alone (`pip install "jax[cuda13]"`; no driver is needed).
Attention with its logits in memory stands beside cuDNN's (`models/cudnn_attention.py`); what cuDNN
needs for itself while it runs is left out, as it tells that on a GPU alone. Products are those of
cuBLAS, since XLA's own want to be tuned on the device.
"""

import importlib
import os

import jax
import numpy as np
from absl import app, flags
from jax.experimental import topologies

from maskclippp_jax import config as configuration
from maskclippp_jax.training import compiled_step

CONFIGS = flags.DEFINE_list(
    "configs", ["coco_panoptic_eva02_b16", "coco_stuff_eva02_l14_336"], "experiments")
IMAGES = flags.DEFINE_list("images", ["4"], "images a step")

# As XLA describes an H100 SXM (xla/backends/gpu/target_config/specs in its repository).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main(argv):
    del argv
    jax.config.update("jax_platforms", "cpu")
    devices = topologies.get_topology_desc(
        topology_name="H100", platform="cuda", target_config=_H100, topology="1x1x1").devices
    mesh = jax.sharding.Mesh(np.array(devices).reshape(1, 1), ("data", "fsdp"))
    print("| configuration | images a step | attention | GiB |\n|---|--:|---|--:|")
    for name in CONFIGS.value:
        for images in map(int, IMAGES.value):
            for heads in ("together", "cudnn"):
                print(f"| {name} | {images} | {heads} | {gib(name, mesh, images, heads):.2f} |",
                      flush=True)


def gib(name: str, mesh: jax.sharding.Mesh, images: int, heads: str) -> float:
    """Of arguments, results and all in between, by the compiler."""
    os.environ[configuration.GPU_ATTENTION] = heads
    config = importlib.import_module(f"maskclippp_jax.configs.{name}").get_config()
    memory = compiled_step.lower_training(config, mesh, images).compile(
        compiler_options={"xla_gpu_enable_triton_gemm": False}).memory_analysis()
    return (memory.temp_size_in_bytes + memory.argument_size_in_bytes
            + memory.output_size_in_bytes - memory.alias_size_in_bytes) / 2**30


if __name__ == "__main__":
    app.run(main)
