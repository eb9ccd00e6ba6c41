"""Proof that ONNX and TFLite files hold the arrays of a graph, byte for byte.

Files share what is equal and do not name everything, so arrays are found through the operations:
the operands of every operation are followed to where the file stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edge_imputer.errors import ExportError, require

from .graph import MOVES, WEIGHT_AXIS, Array, Graph, Op
from .onnx_emitter import clips_below_zero
from .onnx_functions import inlined
from .onnx_names import value_names
from .op_params import bias_scales
from .parts import in_parts
from .tflite_emitter import BIAS_SCALES_KEY, REVERSED, builtin_name, kind_of

Arrays = dict[str, Array]


def same_arrays(graph: Graph, onnx_path: str | Path, tflite_path: str | Path) -> None:
    """Read all numbers and scales back from both files and compare them with the graph's.

    Weights, biases, tables, their scales, and the scale and zero point of every activation in
    the .tflite file and of every activation that the ONNX file quantises or dequantises, byte
    for byte; and that every operation reads and writes the tensors it should.

    Raises
    ------
    ExportError
        Naming the file and the first array that differs or is missing.
    """
    expected = expected_arrays(graph)
    computed = {  # what the ONNX file has a scale for; it moves the others as bytes
        name
        for op in graph.ops
        if op.kind not in MOVES and not (op.kind == "relu" and clips_below_zero(graph, op))
        for name in (*op.inputs, op.output)
    }
    in_onnx = {
        key: array
        for key, array in expected.items()
        if "/" not in key or key.rpartition("/")[0] in computed
    }
    _compare_arrays(onnx_path, in_onnx, onnx_arrays(onnx_path, graph))
    _compare_arrays(tflite_path, expected, tflite_arrays(tflite_path, graph))


def _compare_arrays(
    path: str | Path, wanted: Mapping[str, Array], found: Mapping[str, Array]
) -> None:
    for key, array in wanted.items():
        got = found.get(key)
        if got is None:
            raise ExportError(f"{path}: expected the array {key}, found none")
        if "/" not in key and got.shape != array.shape:
            raise ExportError(f"{path}: expected {key} to be {array.shape}, got {got.shape}")
        if got.dtype != array.dtype or got.tobytes() != array.tobytes():
            raise ExportError(f"{path}: {key} differs from the graph; export it again")


def expected_arrays(graph: Graph) -> Arrays:
    """The arrays every file of a graph carries.

    Constants by their tensor's name; of a quantised graph also ``NAME/scale`` (float32) of
    activations, tables, weights and biases, ``NAME/zero_point`` (of the tensor's type) of all but
    biases.
    """
    arrays: Arrays = {}
    for name, tensor in graph.tensors.items():
        if tensor.data is not None:
            arrays[name] = tensor.data
        if tensor.quant is not None:
            arrays[f"{name}/scale"] = np.array(tensor.quant.scale, np.float32)
            arrays[f"{name}/zero_point"] = np.array(tensor.quant.zero_point, tensor.dtype)
        if tensor.weight_scales is not None:
            arrays[f"{name}/scale"] = tensor.weight_scales
            arrays[f"{name}/zero_point"] = np.zeros(len(tensor.weight_scales), np.int8)
    for op in graph.ops:
        if op.kind in WEIGHT_AXIS and graph.is_integer(op):
            arrays[f"{op.inputs[2]}/scale"] = bias_scales(graph, op)
    return arrays


def onnx_arrays(path: str | Path, graph: Graph | None = None) -> Arrays:
    """Constants, scales and zero points of an ONNX file.

    Parameters
    ----------
    path : path
    graph : Graph, optional
        What the file was written from: arrays are found through its operations, and named as in
        `expected_arrays`. Without it, all initialisers by the names that the file has for them.

    Raises
    ------
    ExportError
        If an operation of the graph is not in the file, or reads something else there.
    """
    model = inlined(onnx.load(str(path)))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if graph is None:
        return stored
    ends = [[value.name for value in values] for values in (model.graph.input, model.graph.output)]
    if ends != [graph.inputs, graph.outputs]:
        raise ExportError(f"{path}: expected the inputs and outputs of {graph.name}, got {ends}")
    return _collect(path, graph, _OnnxFile(model, stored, graph).operation)


def tflite_arrays(path: str | Path, graph: Graph | None = None) -> Arrays:
    """Constants, scales and zero points of a .tflite file, as `onnx_arrays` has them.

    Without a graph, those of the tensors that have a name.
    """
    file = _TfliteFile(Path(path).read_bytes())
    if graph is None:
        return dict(file.named())
    groups = in_parts(graph)
    expected, found = [
        (len(ops), len(inputs), len(outputs))
        for ops, inputs, outputs in (
            (groups, graph.inputs, graph.outputs),
            (file.subgraph.operators, file.subgraph.inputs, file.subgraph.outputs),
        )
    ]
    if expected != found:
        raise ExportError(
            f"{path}: expected {expected} operators, inputs and outputs, as {graph.name} has, "
            f"got {found}"
        )
    file.bind(graph, groups)
    return _collect(path, graph, file.operation)


Found = Iterator[tuple[str, Array]]


def _collect(path: str | Path, graph: Graph, operation: Callable[[int, Op], Found]) -> Arrays:
    """What the file has for all operations; for one tensor the same wherever it is read."""
    arrays: Arrays = {}
    for k, op in enumerate(graph.ops):
        try:
            for key, array in operation(k, op):
                if arrays.setdefault(key, array).tobytes() != array.tobytes():
                    raise ValueError(f"{key} is not what an operation before reads")
        except (KeyError, IndexError, ValueError) as error:
            raise ExportError(f"{path}: operation {k}, {op.output}: {error}") from error
    return arrays


class _OnnxFile:
    """Follows values back through changes of layout and type to where they are stored."""

    LAYOUT = ("Reshape", "Transpose")

    def __init__(self, model: onnx.ModelProto, stored: Arrays, graph: Graph) -> None:
        self.tensors, self.stored = graph.tensors, stored
        self.names = value_names(graph)
        self.maker = {name: node for node in model.graph.node for name in node.output}
        activations = {name for name, t in graph.tensors.items() if t.data is None}
        self.whole = {self.names[n] for n in activations & self.names.keys()} | stored.keys()

    def operation(self, k: int, op: Op) -> Found:
        """Arrays of the operands of one operation, and scale and zero point of its output."""
        node, params = self._node(op)
        yield from self._params(op.output, params)
        values = node.input[::-1] if op.kind == "embedding" else node.input
        for name, value in zip(op.inputs, values, strict=False):  # more are shapes and the like
            source, params = self._source(value)
            if self.tensors[name].data is not None:
                yield name, self.stored[source]
            elif source != self.names[name]:
                raise ValueError(f"reads {source}, not {self.names[name]}, for {name}")
            yield from self._params(name, params)

    def _node(self, op: Op) -> tuple[onnx.NodeProto, list[str]]:
        """The node that computes an operation, and scale and zero point of what it gives."""
        after = ("QuantizeLinear", "Cast", *self.LAYOUT, *(() if op.kind == "relu" else ("Relu",)))
        node = self.maker[self.names[op.output]]
        params: list[str] = []
        while node.op_type in after:
            if node.op_type == "QuantizeLinear":
                params = list(node.input[1:])
            if node.input[0] in self.whole:
                break
            node = self.maker[node.input[0]]
        return node, params

    def _source(self, value: str) -> tuple[str, list[str]]:
        """Where a node's input is stored, and with which scale and zero point it is read."""
        params: list[str] = []
        while value not in self.whole:
            node = self.maker[value]
            if node.op_type == "DequantizeLinear":
                params = list(node.input[1:])
            elif node.op_type not in self.LAYOUT:
                raise ValueError(f"reads {value} from the middle of another operation")
            value = node.input[0]
        return value, params

    def _params(self, name: str, params: list[str]) -> Found:
        for part, value in zip(("scale", "zero_point"), params, strict=False):
            yield f"{name}/{part}", self._constant(value)

    def _constant(self, value: str) -> Array:
        """What is stored, or the product of what is: a bias's scale is its layer's two."""
        if value in self.stored or self.maker[value].op_type != "Mul":
            return self.stored[value]
        x, y = (self.stored[name] for name in self.maker[value].input)
        product: Array = x * y
        return product


class _TfliteFile:
    """Tensors by their numbers, which a graph's operations tell the names of."""

    def __init__(self, content: bytes) -> None:
        self.schema = require("ai_edge_litert.schema_py_generated", extra="export")
        types, names = self.schema.TensorType, ("int8", "int16", "int32", "float32")
        self.dtypes = {getattr(types, name.upper()): np.dtype(name) for name in names}
        self.model = self.schema.ModelT.InitFromPackedBuf(content, 0)
        self.subgraph = self.model.subgraphs[0]
        keys = [entry.name.decode() for entry in self.model.metadata or ()]
        self.bare = BIAS_SCALES_KEY in keys
        self.operators: list[tuple[Any, str, int]] = []  # of every operation, and which output
        self.constants: set[str] = set()
        self.numbers: dict[str, int] = {}  # of activations

    def bind(self, graph: Graph, groups: list[tuple[Op, ...]]) -> None:
        """Say what the file should hold; its inputs and outputs are in the graph's order."""
        self.operators = [
            (operator, kind_of(ops), output)
            for operator, ops in zip(self.subgraph.operators, groups, strict=True)
            for output in range(len(ops))
        ]
        self.constants = {name for name, t in graph.tensors.items() if t.data is not None}
        self.numbers = dict(zip(graph.inputs, self.subgraph.inputs, strict=True))
        self.numbers |= dict(zip(graph.outputs, self.subgraph.outputs, strict=True))

    def operation(self, k: int, op: Op) -> Found:
        """Arrays of the operands and of the output of one operation."""
        operator, kind, output = self.operators[k]
        code = self.model.operatorCodes[operator.opcodeIndex].builtinCode
        if code != getattr(self.schema.BuiltinOperator, builtin_name(kind)):
            raise ValueError(f"expected {builtin_name(kind)}, got operator {code}")
        inputs = operator.inputs[::-1] if kind in REVERSED else operator.inputs
        operands = zip(op.inputs, inputs, strict=False)  # more are shapes and the like
        for name, number in (*operands, (op.output, operator.outputs[output])):
            if name not in self.constants and self.numbers.setdefault(name, number) != number:
                raise ValueError(f"tensor {number} is not {name}")
            arrays = dict(self._arrays(name, self.subgraph.tensors[number]))
            if self.bare and kind in WEIGHT_AXIS and name == op.inputs[2]:
                (of_input,) = self.subgraph.tensors[inputs[0]].quantization.scale
                if len(shared := arrays[f"{name}/scale"]) > 1:  # a single one is the bias's own
                    arrays[f"{name}/scale"] = of_input * shared
            yield from arrays.items()

    def named(self) -> Found:
        """Arrays of every tensor with a name."""
        for tensor in self.subgraph.tensors:
            if tensor.name:
                yield from self._arrays(tensor.name.decode(), tensor)

    def _arrays(self, name: str, tensor: Any) -> Found:
        data, quant = self.model.buffers[tensor.buffer].data, tensor.quantization
        if data is not None:
            yield name, np.asarray(data).view(self.dtypes[tensor.type]).reshape(tensor.shape)
        if quant is not None and quant.scale is not None:
            yield f"{name}/scale", np.asarray(quant.scale, np.float32)
            wide = tensor.type == self.schema.TensorType.INT16
            yield f"{name}/zero_point", np.asarray(quant.zeroPoint).astype(f"int{8 << wide}")
