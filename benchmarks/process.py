"""The real `predict` in a process of its own, and what it took; see sizes.py and start.py."""

import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]


def predict(place: pathlib.Path, home: pathlib.Path, pictures: str, *settings: str) -> dict:
    """What `predict` in a process of its own took.

    Args:
      place: where pictures are, and results will be.
      home: folder for all that is kept between two starts.
      pictures: folder or file in `place`.
      *settings: flags; names are given.
    """
    home.mkdir(exist_ok=True)
    # An installed package has its bytecode; without this one ours is compiled at every start.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "maskclippp_jax", "predict", pictures, "--checkpoint=untuned",
             "--classes=red one;grey grass;brown brick", "--output=named",
             f"--programs={home}/programs", *settings], cwd=place, stderr=log,
            env=dict(environment, HOME=str(home), JAX_LOG_COMPILES="1", JAX_PLATFORMS="cpu",
                     PYTHONPATH=str(ROOT)))
        _, status, used = os.wait4(child.pid, 0)
        clock = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        said = log.read()
    if child.returncode:
        raise RuntimeError(said[-2000:])
    found = re.findall(r"Finished XLA compilation of jit\((\w+)\) in ([\d.]+) sec", said)
    compiled = collections.Counter(name for name, _ in found)
    return dict(cores_s=round(used.ru_utime + used.ru_stime, 1), clock_s=round(clock, 1),
                peak_mb=round(used.ru_maxrss / 1e3),
                compiling_s=round(sum(float(seconds) for _, seconds in found), 1),
                compiled={name: count for name, count in compiled.most_common() if count > 1})
