"""Compares this machine's results with stored ones of the public reference.

    maskclippp parity PATH...

Below each path every `<case>.json` is run on the default device, with the highest precision of
matrix products, and compared with the arrays beside it, which the PyTorch reference computed.
Exit code 1 on a miss. A check of a new accelerator as much as a test.
"""

from absl import flags

POSITIONAL, BUCKETS = "PATH...", ()

REQUIRE_ALL = flags.DEFINE_bool("require_all", False,
                                "cases, and parts, that are not built count as misses")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"],
                          "arithmetic of the towers; bfloat16 compares directions of embeddings")


def main(paths):
    from maskclippp_jax.parity import cases

    if not paths:
        raise ValueError("got no path; give folders or files with stored cases (<case>.json)")
    return int(not cases.compare(paths, DTYPE.value, require_all=REQUIRE_ALL.value))
