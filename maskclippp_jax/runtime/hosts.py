"""Several processes as one run: how they meet, when all stop, and what happens if one is missing.

On a TPU slice, under Slurm or in Kubernetes every host starts the same line with
`--distributed=auto`. By hand, each process is told where the first one listens, how many there are,
and which one it is: `--distributed=localhost:1234,2,0` and `--distributed=localhost:1234,2,1`.

If one of them ends or hangs, the others learn of it by an error of whatever they do together, or,
while they do nothing together, because JAX aborts them (SIGABRT). Both end in the same sentence.
"""

import ctypes
import io
import multiprocessing
import os
import signal
import sys
import typing

import jax
import numpy as np
from absl import logging
from etils import epy

from maskclippp_jax import metrics
from maskclippp_jax.runtime import cli

with epy.lazy_imports():  # slow to import, and nothing to a process that is alone
    import orbax.checkpoint as ocp
    from jax.experimental import multihost_utils

_SILENCE = 30  # seconds after which a process that says nothing is taken for lost
_PATIENCE = 3600  # seconds that one process may load or compile longer than another
# What JAX says when another process is gone, in the words of its different parts. The first ones
# are nobody else's words, whatever the error is.
_GONE = ("Gloo", "gloo", "coordination service", "CoordinationService")
_LOST = (*_GONE, "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection", "CANCELLED", "heartbeat")
_SENTENCE = ("error: another process of this run ended or cannot be reached, so this one ends as "
             "well; start all of them again with the same line")


def together(how: str, work: typing.Callable[[], int | None]) -> int | None:
    """Does a command's work as one of several processes, or alone.

    If it fails, the process ends at once: the others miss it after some seconds and end as well,
    where an orderly end would wait for them.

    Args:
      how: what its flag `--distributed` says; "": this process is alone.
      work: returns the exit code.
    """
    if not how:
        return work()
    _meet(how)
    multihost_utils.sync_global_devices("together")  # see `connect`
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)  # the first one speaks for all
    try:
        code = work()
    except BaseException as error:  # whatever it is, the others must not wait for this process
        code = _complain(error)
        sys.stdout.flush()
        sys.stderr.flush()
        _end(code)
    jax.distributed.shutdown()
    return code


def _end(code: int) -> None:
    """Ends at once; the processes that read data do not outlive this one."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number):
    """JAX aborts if another process is gone; why it did stands above the sentence."""
    del number
    os.write(2, f"{_SENTENCE}\n".encode())  # a lock of `sys.stderr` may be held
    _end(1)


def _meet(how: str) -> None:
    # In whichever thread JAX aborts; a handler of Python's would wait for the main one.
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    times = dict(heartbeat_timeout_seconds=_SILENCE)
    if how == "auto":
        try:
            jax.distributed.initialize(**times)
        except ValueError as error:
            raise ValueError("--distributed=auto finds no TPU slice, Slurm step or Kubernetes job "
                             f"here ({error}); give ADDRESS:PORT,COUNT,NUMBER, or leave it out"
                             ) from None
        return
    try:
        address, count, number = how.split(",")
        count, number = int(count), int(number)
    except ValueError:
        address = ""
    if ":" not in address or not 0 <= number < count:
        raise ValueError(f"--distributed is {how!r}, wanted 'auto' or ADDRESS:PORT,COUNT,NUMBER "
                         "with numbers from 0 to COUNT - 1, such as localhost:1234,2,0")
    try:
        jax.distributed.initialize(address, count, number, **times)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the {count} processes did not meet at {address} ({error}); were all of "
                         "them started?") from None


def _complain(error: BaseException) -> int:
    """Says why this process ends; the exit code."""
    cause = error
    while cause is not None:  # Orbax gives the reason in the cause of its error
        text = str(cause)
        words = _LOST if isinstance(cause, jax.errors.JaxRuntimeError) else _GONE
        if any(word in text for word in words):
            print(f"{_SENTENCE} ({text.splitlines()[0][:200]})", file=sys.stderr)
            return 1
        cause = cause.__cause__
    return cli.complain(error)


class Preemption:
    """Whether the run was asked to end (SIGTERM), with the same answer on every process."""

    def __init__(self):
        self._asked, self._next = False, 0
        if jax.process_count() == 1:  # otherwise JAX listens itself, to tell all processes
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number, frame):
        del number, frame
        self._asked = True

    def reached(self, step: int) -> bool:
        """To be asked by every process before each step."""
        # JAX answers yes at one number only, the first that no process has asked about when the
        # signal comes. While a run starts that is a small one, whatever step it resumes after.
        while jax.process_count() > 1 and not self._asked and self._next <= step:
            self._asked = multihost_utils.reached_preemption_sync_point(self._next)
            self._next += 1
        return self._asked


def agree(what: str, mine: bool) -> bool:
    """`mine`, if every process has the same.

    Raises:
      ValueError: they have not.
    """
    if jax.process_count() == 1:
        return mine
    all_of_them = multihost_utils.process_allgather(np.array(mine))
    if all_of_them.any() != all_of_them.all():
        raise ValueError(f"{what} is there for some processes and not for others; name a folder "
                         "that all hosts share")
    return mine


def wait_for_all(where: str) -> None:
    """Waits until every process has come here, however long the others take."""
    ocp.multihost.get_barrier_sync_fn()(key=where, timeout_ms=1000 * _PATIENCE)


def connect(mesh: jax.sharding.Mesh) -> None:
    """Lets every group of devices of a mesh meet, while no process has anything else to do.

    Later one process may load or compile longer than another, and Gloo was seen to give up after
    30 s of waiting for a group that had never met. All devices together have met in `together`.
    """
    if jax.process_count() == 1:
        return
    wait_for_all("connect")
    names = mesh.axis_names
    for axes in (names, *((name,) for name in names)):
        total = jax.jit(jax.shard_map(lambda axes=axes: jax.lax.psum(np.ones(()), axes),
                                      mesh=mesh, in_specs=(), out_specs=jax.P()))()
        jax.block_until_ready(total)


def all_agree(mine: bool) -> bool:
    """Whether it is so on every process."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(np.array(mine)).all())


def first_says(number: int) -> int:
    """The number that process 0 has."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def sum_of(number: float) -> float:
    """The sum of a number over all processes."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.process_allgather(np.array(number)).sum())


def sum_metric(metric: metrics.Metric) -> None:
    """Gives a metric what all processes have counted together; the same on every one."""
    data = io.BytesIO()
    np.savez(data, **metric.state())
    mine = np.frombuffer(data.getvalue(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(mine))))
    padded = np.pad(mine, (0, lengths.max() - len(mine)))
    metric.reset()
    for row, length in zip(np.asarray(multihost_utils.process_allgather(padded)), lengths):
        with np.load(io.BytesIO(row[:length].tobytes())) as state:
            metric.add_state(dict(state))
