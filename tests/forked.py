"""Commands in processes of their own, forked from one that has imported what they need.

Importing is most of what a short command does. Here it is done once a session; the command is as
alone as any other process, with its own arguments, environment, folder, output and exit code.
"""

import atexit
import functools
import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
_IMPORTED = ("maskclippp_jax.api", "maskclippp_jax.training.loop",
             "maskclippp_jax.evaluation.comparison", "maskclippp_jax.data.build",
             "orbax.checkpoint", "tensorflow_datasets.core", "tensorflow_datasets.rlds")


def run(*words: str, env: dict[str, str], cwd=ROOT, timeout: float = 300
        ) -> subprocess.CompletedProcess:
    """What `subprocess.run([sys.executable, "-m", "maskclippp_jax", *words], ...)` gives, with
    captured text; a process that takes longer than `timeout` seconds is killed.

    What is read when modules are imported, JAX's variables and where our cache is, has a process to
    fork from for each set of values.
    """
    settings = {name: value for name, value in env.items() if _is_read_once(name)}
    server = _server(tuple(sorted(settings.items())))
    with tempfile.TemporaryDirectory() as folder:
        request = dict(words=words, env=env, cwd=str(cwd), folder=folder, timeout=timeout)
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, err = (pathlib.Path(folder, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(words, code, out, err)


def _is_read_once(variable: str) -> bool:
    return variable == "HOME" or variable.startswith("JAX_")


@functools.cache
def _server(settings: tuple[tuple[str, str], ...]) -> subprocess.Popen:
    others = {name: value for name, value in os.environ.items() if not _is_read_once(name)}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"], cwd=ROOT, env=others | dict(settings), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end() -> None:
        server.stdin.close()
        server.stdout.close()
        server.wait()

    atexit.register(end)
    return server


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in _IMPORTED:
        importlib.import_module(name)
    assert not sys.modules["jax._src.xla_bridge"]._backends  # whose threads would not be forked
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            return _become(request)
        print(_exit_code(child, request["timeout"]), file=replies, flush=True)


def _exit_code(child: int, timeout: float) -> int:
    end = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _become(request: dict) -> None:
    """Is the command from here on."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['folder']}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path.insert(0, request["cwd"])
    sys.argv = ["maskclippp_jax", *request["words"]]
    runpy.run_module("maskclippp_jax", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
