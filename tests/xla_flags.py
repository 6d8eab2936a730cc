"""How the tests' programs are compiled: nearly all of them run once or twice."""


def devices(number: int) -> str:
    """XLA_FLAGS for so many CPU devices and the soonest compiled programs.

    Without optimisation a program takes a quarter of the time to compile, and without XLA's fusion
    emitters a single operation two thirds of it.
    """
    return (f"--xla_force_host_platform_device_count={number} --xla_backend_optimization_level=0 "
            "--xla_cpu_use_fusion_emitters=false")
