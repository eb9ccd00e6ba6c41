"""Python in processes of their own, with a limit: a test that hangs must fail instead."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 180.0


def run_python(code: str, *arguments: str) -> str:
    """Run Python code from the checkout's root and return what it printed; fail if it fails."""
    return _finish(_start(code, *arguments))


def run_ranks(n: int, module: str, function: str, *arguments: str) -> None:
    """Call ``module.function(rank, port, *arguments)`` in `n` processes at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import importlib, sys, tests.conftest\n"
        "module, function, rank, port, *rest = sys.argv[1:]\n"
        "getattr(importlib.import_module(module), function)(int(rank), int(port), *rest)\n"
    )
    processes = [
        _start(code, module, function, str(rank), str(port), *arguments) for rank in range(n)
    ]
    try:
        for process in processes:
            _finish(process)
    finally:
        for process in processes:
            process.kill()


@contextmanager
def python_group(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Python code in a process group of its own, all of which is killed in the end."""
    process = _start(code, *arguments, group=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it has ended, and all that it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _start(code: str, *arguments: str, group: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        start_new_session=group,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    try:
        out, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        raise AssertionError(f"not finished after {LIMIT_S:.0f} s\n{out}\n{errors}") from None
    assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{errors}"
    return out
