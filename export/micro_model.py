"""TensorFlow Lite Micro's interpreter on this machine, from the wheel tflite-micro."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from edge_imputer.errors import BackendError, require

from .graph import Array

ARENA_BYTES = 16 * 2**20  # more than any preset needs; a device says how much it has


def micro_module() -> ModuleType:
    """The interpreter's module; `MissingExtraError` where it is not installed."""
    return require("tflite_micro.python.tflite_micro.runtime", extra="dev")


class MicroModel:
    """One .tflite file, called with arrays in the order of its inputs.

    Parameters
    ----------
    path : Path

    Raises
    ------
    MissingExtraError
        Without the wheel, which there is for Linux on x86-64 only.
    BackendError
        If the interpreter cannot load the file.
    """

    def __init__(self, path: Path) -> None:
        runtime = micro_module()
        self.path = path
        try:
            self._interpreter = runtime.Interpreter.from_file(str(path), arena_size=ARENA_BYTES)
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"TFLite Micro could not load {path}: {error}") from error
        schema = require("ai_edge_litert.schema_py_generated", extra="export")
        subgraph = schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
        self._n_inputs: int = subgraph.InputsLength()
        self._n_outputs: int = subgraph.OutputsLength()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the model; fresh arrays, the inputs are not modified.

        Every input is set every time: their memory is used for other tensors in a call.

        Raises
        ------
        BackendError
            On a wrong number, shape or type of inputs, or if the interpreter fails.
        """
        if len(inputs) != self._n_inputs:
            raise BackendError(
                f"TFLite Micro could not run {self.path}: expected {self._n_inputs} inputs, got "
                f"{len(inputs)}"
            )
        try:
            for index, array in enumerate(inputs):
                self._interpreter.set_input(array, index)
            self._interpreter.invoke()
            return [self._interpreter.get_output(k).copy() for k in range(self._n_outputs)]
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"TFLite Micro could not run {self.path}: {error}") from error
