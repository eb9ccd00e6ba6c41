"""LiteRT: the int8 .tflite models, with XNNPACK or TFLite's reference kernels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from ..bundle import Bundle
from ..errors import BackendError, require
from .base import Array
from .stepper import Stepper


class LiteRtModel:
    """One .tflite file, called with arrays in the order of its inputs.

    An interpreter has one set of buffers, so that threads that share it take turns.

    Parameters
    ----------
    path : Path
    threads : int
        Threads of one operation. Models of this size gain nothing from more than one.
    reference_kernels : bool
        TFLite's reference kernels in place of the fast ones; slow, for comparisons.
    """

    def __init__(self, path: Path, *, threads: int = 1, reference_kernels: bool = False) -> None:
        module = require("ai_edge_litert.interpreter", extra="litert")
        resolvers = module.OpResolverType
        try:
            interpreter = module.Interpreter(
                model_path=str(path),
                num_threads=threads,
                experimental_op_resolver_type=(
                    resolvers.BUILTIN_REF if reference_kernels else resolvers.AUTO
                ),
            )
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BackendError(
                f"LiteRT could not load {path}: {error}; export the model again"
            ) from error
        self.path = path
        self._interpreter = interpreter
        self._lock = threading.Lock()
        self._inputs = [detail["index"] for detail in interpreter.get_input_details()]
        self._outputs = [detail["index"] for detail in interpreter.get_output_details()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the model; fresh arrays, the inputs are not modified.

        Raises
        ------
        BackendError
            On a wrong number, shape or dtype of inputs, or if the runtime fails.
        """
        interpreter = self._interpreter
        try:
            with self._lock:
                for index, array in zip(self._inputs, inputs, strict=True):
                    interpreter.set_tensor(index, array)
                interpreter.invoke()
                return [interpreter.get_tensor(index) for index in self._outputs]
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"LiteRT could not run {self.path}: {error}") from error


class LiteRtBackend(Stepper):
    """A bundle's .tflite models.

    Parameters
    ----------
    bundle : Bundle
    threads : int
        Threads of one operation.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        encoder, imputer = (
            LiteRtModel(bundle.file(f"tflite/{name}.tflite"), threads=threads)
            for name in ("encoder", "imputer")
        )
        records = bundle.manifest.graph("encoder"), bundle.manifest.graph("imputer")
        super().__init__("litert", bundle.spec, records, (encoder, imputer), quantised=True)
