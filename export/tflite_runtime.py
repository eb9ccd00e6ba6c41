"""tflite-runtime 2.14, the last of its name, in the environment of its own that it needs.

`make tflite-runtime` makes the environment. What runs in it is `tflite_runtime_server`, one process
for all models, to which arrays go as plain bytes.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edge_imputer.errors import BackendError

from .graph import Array

PYTHON_VARIABLE = "EDGE_IMPUTER_TFLITE_PYTHON"
ENVIRONMENT = ".venv-tflite"
SERVER = Path(__file__).with_name("tflite_runtime_server.py")
REMEDY = f"make one with: make tflite-runtime; or name its python in the variable {PYTHON_VARIABLE}"


def find_python() -> Path:
    """The Python that has tflite-runtime: ``$EDGE_IMPUTER_TFLITE_PYTHON``, or the one in
    ``.venv-tflite`` beside the environment that this code runs in.

    Raises
    ------
    BackendError
        There is none.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise BackendError(f"expected a python at {PYTHON_VARIABLE}={named}, found no file")
        return Path(named)
    python = Path(sys.prefix).parent / ENVIRONMENT / "bin" / "python"  # its wheels are for Linux
    if not python.is_file():
        raise BackendError(f"found no environment with tflite-runtime at {python}; {REMEDY}")
    return python


class TfliteRuntimeModel:
    """One .tflite file in tflite-runtime, called with arrays in the order of its inputs.

    Parameters
    ----------
    path : Path

    Raises
    ------
    BackendError
        Without the environment, or if the runtime cannot load the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = _server(find_python())
        try:
            found, _ = self._server.ask({"open": str(path.resolve())})
        except _RefusedError as error:
            raise BackendError(f"tflite-runtime could not load {path}: {error}") from None
        self._number: int = found["model"]
        self._inputs = [(tuple(shape), np.dtype(dtype)) for shape, dtype in found["inputs"]]
        self._outputs = [(tuple(shape), np.dtype(dtype)) for shape, dtype in found["outputs"]]
        # Told to the process with the next request: a finaliser may run in the middle of one.
        weakref.finalize(self, self._server.closed.append, self._number)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the model; fresh arrays, the inputs are not modified.

        Raises
        ------
        BackendError
            On a wrong number, shape or dtype of inputs, or if the runtime fails.
        """
        given = [(array.shape, array.dtype) for array in inputs]
        if given != self._inputs:
            raise BackendError(f"{self.path}: expected inputs {self._inputs}, got {given}")
        content = b"".join(array.tobytes() for array in inputs)
        try:
            _, result = self._server.ask({"run": self._number}, content)
        except _RefusedError as error:
            raise BackendError(f"tflite-runtime could not run {self.path}: {error}") from None
        arrays, at = [], 0
        for shape, dtype in self._outputs:
            arrays.append(np.frombuffer(result, dtype, prod(shape), at).reshape(shape).copy())
            at += arrays[-1].nbytes
        return arrays


class _RefusedError(Exception):
    """What the runtime said."""


class _Server:
    """The process, and one question at a time."""

    def __init__(self, python: Path) -> None:
        self.closed: list[int] = []
        self._python, self._lock = python, threading.Lock()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [python, "-I", SERVER],  # without the folder of the script on its path
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        atexit.register(self.close)

    def ask(self, request: dict[str, Any], content: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Its answer; `_RefusedError` where it is an error."""
        with self._lock:
            closed = [self.closed.pop() for _ in range(len(self.closed))]
            line = json.dumps({**request, "bytes": len(content), "close": closed}).encode()
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            try:
                stdin.write(line + b"\n" + content)
                stdin.flush()
            except OSError:
                raise self._died() from None
            answer = stdout.readline()
            if not answer:
                raise self._died()
            found: dict[str, Any] = json.loads(answer)
            result = stdout.read(found["bytes"])
        if "error" in found:
            raise _RefusedError(found["error"])
        return found, result

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._stderr.close()

    def _died(self) -> BackendError:
        status = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        said = [line for line in lines if line.strip() and not line.startswith("INFO:")]
        last = said[-1] if said else "it said nothing"
        remedy = f"; {REMEDY}" if "No module named" in last else ""
        if _server(self._python) is self:
            _server.cache_clear()  # the next model gets a new one
        return BackendError(
            f"{self._python}: tflite-runtime ended with status {status}: {last}{remedy}"
        )


@cache
def _server(python: Path) -> _Server:
    return _Server(python)
