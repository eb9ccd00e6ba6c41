"""How near every runtime comes to the exact integers.

Each layer is run alone, on what the reference computed before it, so that the steps a runtime is
off do not add up and every layer can be blamed for its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_imputer.backends.litert import LiteRtModel
from edge_imputer.backends.onnx import OnnxModel
from edge_imputer.backends.stepper import Model
from edge_imputer.errors import ExportError
from edge_imputer.specs import ModelSpec

from .file_arrays import expected_arrays, onnx_arrays, same_arrays, tflite_arrays
from .graph import Array, Graph, Op
from .onnx_emitter import write_onnx
from .reference import Interpreter
from .simulate import Run, decode_watched
from .tflite_emitter import write_tflite

__all__ = [
    "RUNTIMES",
    "LayerParity",
    "decoded_feeds",
    "expected_arrays",
    "layer_parity",
    "load_runtime",
    "onnx_arrays",
    "same_arrays",
    "tflite_arrays",
]
RUNTIMES = ("onnxruntime", "onnxruntime-integer", "litert", "litert-reference")


@dataclass(frozen=True)
class LayerParity:
    """One layer in one runtime, against the exact integers.

    Attributes
    ----------
    op, kind : str
        Name of the layer's output, and its operation.
    runtime : str
        One of `RUNTIMES`.
    max_lsb : int
        Largest difference, in steps of the int8 output.
    share : float
        Proportion of elements that differ.
    n : int
        Elements compared.
    """

    op: str
    kind: str
    runtime: str
    max_lsb: int
    share: float
    n: int


def load_runtime(graph: Graph, runtime: str, folder: Path) -> Model:
    """Write a graph into a folder and load it.

    Parameters
    ----------
    graph : Graph
        Quantised or float.
    runtime : str
        ``onnxruntime`` as the backend runs it, ``onnxruntime-integer`` with its integer kernels,
        ``litert`` with XNNPACK, ``litert-reference`` with TFLite's reference kernels.
    folder : Path
    """
    if runtime not in RUNTIMES:
        raise ExportError(f"expected a runtime among {', '.join(RUNTIMES)}, got {runtime!r}")
    if runtime.startswith("onnxruntime"):
        path = folder / f"{graph.name}.onnx"
        write_onnx(graph, path)
        return OnnxModel(path, integer_kernels=runtime == "onnxruntime-integer" or None)
    path = folder / f"{graph.name}.tflite"
    write_tflite(graph, path)
    return LiteRtModel(path, reference_kernels=runtime == "litert-reference")


def decoded_feeds(
    encoder: Graph, imputer: Graph, spec: ModelSpec, waveforms: Iterable[npt.NDArray[np.float32]]
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Inputs of every call of both graphs while the exact integers decode real audio.

    Parameters
    ----------
    encoder, imputer : Graph
        Quantised.
    spec : ModelSpec
    waveforms : iterable of float32 arrays, (n,)
        At the model's sample rate.
    """
    recorded: tuple[list[dict[str, Array]], list[dict[str, Array]]] = ([], [])

    def recorder(graph: Graph, into: list[dict[str, Array]]) -> Run:
        interpreter = Interpreter(graph)

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            into.append({name: value.copy() for name, value in feeds.items()})
            return interpreter.run(feeds)

        return run

    runs = recorder(encoder, recorded[0]), recorder(imputer, recorded[1])
    decode_watched(encoder, imputer, spec, runs, waveforms)
    return recorded


def layer_parity(
    graph: Graph,
    feeds: Iterable[Mapping[str, Array]],
    runtimes: Iterable[str] = RUNTIMES,
) -> list[LayerParity]:
    """Compare every layer of a quantised graph in every runtime with the exact integers.

    Parameters
    ----------
    graph : Graph
    feeds : iterable of inputs by name
        Calls to compare on; each is run through the whole reference once.
    runtimes : iterable of str

    Returns
    -------
    list of LayerParity, layer by layer, one row a runtime
    """
    interpreter = Interpreter(graph)
    calls = [interpreter.run(feed) for feed in feeds]
    if not calls:
        raise ExportError(f"{graph.name}: expected at least one call to compare on, got none")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for index, op in enumerate(graph.ops):
            layer = graph.single_op(index)
            for runtime in runtimes:
                model = load_runtime(layer, runtime, Path(scratch))
                rows.append(_compare(layer, op, runtime, model, calls))
    return rows


def _compare(
    layer: Graph, op: Op, runtime: str, model: Model, calls: list[dict[str, Array]]
) -> LayerParity:
    steps = [
        np.abs(
            model.run([values[name] for name in layer.inputs])[0].astype(np.int64)
            - values[op.output]
        )
        for values in calls
    ]
    differences = np.concatenate([step.ravel() for step in steps])
    return LayerParity(
        op=op.output,
        kind=op.kind,
        runtime=runtime,
        max_lsb=int(differences.max()),
        share=float((differences > 0).mean()),
        n=differences.size,
    )
