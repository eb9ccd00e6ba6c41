"""Every runtime that a graph's files run in, behind one call: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from edge_imputer.backends.litert import LiteRtModel
from edge_imputer.backends.onnx import OnnxModel
from edge_imputer.backends.stepper import Model
from edge_imputer.errors import BackendError, ExportError, MissingExtraError, require

from .graph import Graph
from .micro_model import MicroModel, micro_module
from .onnx_emitter import write_onnx
from .tflite_emitter import write_tflite
from .tflite_runtime import ENVIRONMENT, TfliteRuntimeModel


@dataclass(frozen=True)
class Runtime:
    """One way to run a file.

    Attributes
    ----------
    name : str
    suffix : str
        Of the files it takes: ``onnx`` or ``tflite``.
    open : callable
        A file's path -> the loaded model; `BackendError` where the runtime refuses it.
    absence : callable
        Why it is not to be had here, in a line; None where it is.
    """

    name: str
    suffix: str
    open: Callable[[Path], Model]
    absence: Callable[[], str | None]


def _absence(find: Callable[[], object]) -> Callable[[], str | None]:
    """What `find` says where it finds nothing."""

    def absence() -> str | None:
        try:
            find()
        except (MissingExtraError, BackendError) as error:
            return str(error)
        return None

    return absence


def _litert_module() -> ModuleType:
    return require("ai_edge_litert.interpreter", extra="litert")


_NO_LITERT = _absence(_litert_module)
ALL_RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnxruntime", "onnx", OnnxModel, lambda: None),
        Runtime(
            "onnxruntime-integer",
            "onnx",
            lambda path: OnnxModel(path, integer_kernels=True),
            lambda: None,
        ),
        Runtime("litert", "tflite", LiteRtModel, _NO_LITERT),
        Runtime(
            "litert-reference",
            "tflite",
            lambda path: LiteRtModel(path, reference_kernels=True),
            _NO_LITERT,
        ),
        Runtime("tflite-micro", "tflite", MicroModel, _absence(micro_module)),
        Runtime("tflite-runtime", "tflite", TfliteRuntimeModel, ENVIRONMENT.absence),
    )
}
"""By name: onnxruntime as the backend runs it, and with its integer kernels; LiteRT with XNNPACK,
and with TFLite's reference kernels; TFLite Micro's interpreter; tflite-runtime 2.14."""
RUNTIMES = ("onnxruntime", "onnxruntime-integer", "litert", "litert-reference")
"""Those that the extra ``export`` brings."""


def load_runtime(graph: Graph, runtime: str, folder: Path) -> Model:
    """Write a graph into a folder and load it.

    Parameters
    ----------
    graph : Graph
        Quantised or float.
    runtime : str
        One of `ALL_RUNTIMES`.
    folder : Path

    Raises
    ------
    ExportError
        No such runtime, or the graph cannot be written.
    BackendError, MissingExtraError
        The runtime is not installed, or refuses the file.
    """
    if runtime not in ALL_RUNTIMES:
        names = ", ".join(ALL_RUNTIMES)
        raise ExportError(f"expected a runtime among {names}, got {runtime!r}")
    chosen = ALL_RUNTIMES[runtime]
    path = folder / f"{graph.name}.{chosen.suffix}"
    (write_onnx if chosen.suffix == "onnx" else write_tflite)(graph, path)
    return chosen.open(path)
