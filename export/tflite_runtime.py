"""tflite-runtime 2.14, the last of its name, in the environment of its own that it needs.

`make tflite-runtime` makes the environment. What runs in it is `tflite_runtime_server`, one process
for all models, to which arrays go as plain bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from edge_imputer.errors import BackendError

from .graph import Array
from .python_process import Environment, RefusedError

PYTHON_VARIABLE = "EDGE_IMPUTER_TFLITE_PYTHON"
ENVIRONMENT = Environment(
    "tflite-runtime",
    ".venv-tflite",
    PYTHON_VARIABLE,
    "tflite-runtime",
    Path(__file__).with_name("tflite_runtime_server.py"),
)


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
        self._server = ENVIRONMENT.process()
        try:
            found, _ = self._server.ask({"open": str(path.resolve())})
        except RefusedError as error:
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
        except RefusedError as error:
            raise BackendError(f"tflite-runtime could not run {self.path}: {error}") from None
        arrays, at = [], 0
        for shape, dtype in self._outputs:
            arrays.append(np.frombuffer(result, dtype, prod(shape), at).reshape(shape).copy())
            at += arrays[-1].nbytes
        return arrays
