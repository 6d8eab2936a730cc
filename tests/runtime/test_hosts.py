"""Counts of several hosts, in two real processes; what is said of one that is missing."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
from absl import flags

from maskclippp_jax.runtime import hosts as module

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import sys, jax
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))
from maskclippp_jax.runtime import hosts
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy
metric = MaskAccuracy(3)
for masks in [([0, 1], [0, 0]), ([1], [1]), ([2], [0])][int(sys.argv[1])::2]:
    metric.process(*masks)
hosts.sum_metric(metric)
print(metric.counts.tolist(), metric.pictures.count, metric.evaluate()["micro"])
"""


def test_every_host_gets_the_sum_of_all():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="", PYTHONPATH=str(ROOT))
    hosts = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(i), address], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
             for i in range(2)]
    said = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    for out, _ in said:
        assert out.splitlines()[-1] == "[[1, 0, 0], [1, 1, 0], [1, 0, 0]] 3 50.0"


@pytest.mark.parametrize("cause, lost", [
    ("UNAVAILABLE: Task 1 heartbeat timeout. [tensorflow.CoordinationServiceError='']", True),
    ("a slow disk", False)])
def test_a_missing_process_is_found_in_the_cause_of_an_error(capsys, cause, lost):
    flags.FLAGS.mark_as_parsed()
    try:
        try:
            raise TimeoutError(cause)
        except TimeoutError as inner:
            raise TimeoutError("ChainedFuture completed 2/3 futures") from inner
    except TimeoutError as error:
        assert module._complain(error) == 1
    said = capsys.readouterr().err
    assert ("another process of this run ended" in said) == lost, said
    assert ("ChainedFuture" in said) != lost
