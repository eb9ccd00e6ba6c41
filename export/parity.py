"""How near every runtime comes to the exact integers, and proof that files hold the same arrays.

Each layer is run alone, on what the reference computed before it, so that the steps a runtime is
off do not add up and every layer can be blamed for its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edge_imputer.backends.litert import LiteRtModel
from edge_imputer.backends.onnx import OnnxModel
from edge_imputer.backends.stepper import Model
from edge_imputer.errors import ExportError, require
from edge_imputer.specs import ModelSpec

from .graph import Array, Graph, Op
from .onnx_emitter import write_onnx
from .op_params import bias_scales
from .reference import Interpreter
from .simulate import Run, decode_watched
from .tflite_emitter import write_tflite

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
    """Write a quantised graph into a folder and load it.

    Parameters
    ----------
    graph : Graph
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


def same_arrays(graph: Graph, onnx_path: str | Path, tflite_path: str | Path) -> None:
    """Read all integers and scales back from both files and compare them with the graph's.

    Weights, biases, tables, their scales, and the scale and zero point of every activation in
    the .tflite file and of every activation that the ONNX file quantises or dequantises, byte
    for byte.

    Raises
    ------
    ExportError
        Naming the file and the first array that differs or is missing.
    """
    expected = expected_arrays(graph)
    computed = {
        f"{name}/{part}"
        for op in graph.ops
        if op.kind not in ("concat", "slice", "pad", "reshape", "embedding")
        for name in (*op.inputs, op.output)
        for part in ("scale", "zero_point")
        if graph.tensors[name].quant is not None
    }
    in_onnx = {
        key: array
        for key, array in expected.items()
        if key in computed or graph.tensors[key.split("/")[0]].data is not None
    }
    tables = {op.inputs[1] for op in graph.ops if op.kind == "embedding"}
    for table in tables:  # gathered as bytes: the ONNX file needs no scale for them
        for part in ("scale", "zero_point"):
            in_onnx.pop(f"{table}/{part}", None)
    for path, wanted, read in (
        (onnx_path, in_onnx, onnx_arrays),
        (tflite_path, expected, tflite_arrays),
    ):
        _compare_arrays(path, wanted, read)


def _compare_arrays(
    path: str | Path,
    wanted: Mapping[str, Array],
    read: Callable[[str | Path], Mapping[str, Array]],
) -> None:
    found = read(path)
    for key, array in wanted.items():
        got = found.get(key)
        if got is None:
            raise ExportError(f"{path}: expected the array {key}, found none")
        if got.dtype != array.dtype or got.tobytes() != array.tobytes():
            raise ExportError(f"{path}: {key} differs from the quantised graph; export it again")


def expected_arrays(graph: Graph) -> dict[str, Array]:
    """The arrays every file of a quantised graph carries.

    Constants by their tensor's name; ``NAME/scale`` (float32) and ``NAME/zero_point`` (int8) of
    activations and tables, ``NAME/scale`` of weights and biases.
    """
    arrays: dict[str, Array] = {}
    for name, tensor in graph.tensors.items():
        if tensor.data is not None:
            arrays[name] = tensor.data
        if tensor.quant is not None:
            arrays[f"{name}/scale"] = np.array(tensor.quant.scale, np.float32)
            arrays[f"{name}/zero_point"] = np.array(tensor.quant.zero_point, np.int8)
        if tensor.weight_scales is not None:
            arrays[f"{name}/scale"] = tensor.weight_scales
    for op in graph.ops:
        if op.kind in ("conv2d", "fully_connected"):
            arrays[f"{op.inputs[2]}/scale"] = bias_scales(graph, op)
    return arrays


def onnx_arrays(path: str | Path) -> dict[str, Array]:
    """Initialisers of an ONNX file by name."""
    model = onnx.load(str(path))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def tflite_arrays(path: str | Path) -> dict[str, Array]:
    """Constants, scales and zero points of a .tflite file, named as in `expected_arrays`."""
    schema = require("ai_edge_litert.schema_py_generated", extra="export")
    model = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes(), 0)
    dtypes = {schema.TensorType.INT8: np.int8, schema.TensorType.INT32: np.int32}
    arrays: dict[str, Array] = {}
    for tensor in model.subgraphs[0].tensors:
        name, quant = tensor.name.decode(), tensor.quantization
        data = model.buffers[tensor.buffer].data
        if data is not None:
            arrays[name] = np.asarray(data).view(dtypes[tensor.type])
        if quant is not None and quant.scale is not None:
            arrays[f"{name}/scale"] = np.asarray(quant.scale, np.float32)
            arrays[f"{name}/zero_point"] = np.asarray(quant.zeroPoint).astype(np.int8)
    return arrays
