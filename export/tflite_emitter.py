"""Writes a quantised graph as an int8 .tflite file, with flatbuffers alone.

No converter is involved, so the file carries exactly the integers of the graph. Constants are
aligned to 16 bytes, as runtimes that map the file need, and the bytes depend on the graph only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edge_imputer.errors import ExportError, require

from .graph import Array, Graph, Op, Tensor
from .op_params import bias_scales

# Builtin operator, its version, the TFLite runtime that brought that version. Versions are those
# the TFLite converter writes for int8, but for FULLY_CONNECTED: it would write 4, which runtimes
# that read only the first weight scale accept too, and compute nonsense. Version 11 keeps them
# out; per-channel weights are known to work from 2.14.
OPERATORS: dict[str, tuple[str, int, str]] = {
    "conv2d": ("CONV_2D", 3, "1.14.0"),
    "fully_connected": ("FULLY_CONNECTED", 11, "2.15.0"),
    "add": ("ADD", 2, "1.14.0"),
    "sub": ("SUB", 2, "1.14.0"),
    "mul": ("MUL", 2, "1.14.0"),
    "sigmoid": ("LOGISTIC", 2, "1.14.0"),
    "tanh": ("TANH", 2, "1.14.0"),
    "relu": ("RELU", 2, "2.1.0"),
    "embedding": ("GATHER", 2, "1.14.0"),
    "concat": ("CONCATENATION", 2, "1.14.0"),
    "slice": ("SLICE", 2, "1.14.0"),
    "pad": ("PAD", 2, "1.14.0"),
    "reshape": ("RESHAPE", 1, "1.5.0"),
}
FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
ALIGNMENT = 16


def write_tflite(graph: Graph, path: str | Path) -> None:
    """Write a quantised graph as an int8 .tflite file.

    Tensors keep their names and order of inputs and outputs; a signature ``serving_default``
    names them too.

    Raises
    ------
    ExportError
        If the graph is float, or holds an operation that TFLite has no int8 kernel for.
    MissingExtraError
        If flatbuffers or ai-edge-litert is not installed.
    """
    Path(path).write_bytes(tflite_bytes(graph))


def tflite_bytes(graph: Graph) -> bytes:
    """The .tflite file of a quantised graph, see `write_tflite`."""
    if not graph.quantised:
        raise ExportError(f"expected a quantised graph for .tflite, got {graph.name}, float")
    return _Writer(graph).finish()


def minimum_runtime(graph: Graph) -> str:
    """The oldest TFLite runtime that has every operator version of the graph."""
    versions = [OPERATORS[op.kind][2] for op in graph.ops]
    return max(versions, key=lambda text: tuple(int(part) for part in text.split(".")))


class _Writer:
    """Fills the schema's objects: buffers, tensors, operators, metadata."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.schema: ModuleType = require("ai_edge_litert.schema_py_generated", extra="export")
        self.model = self.schema.ModelT()
        self.subgraph = self.schema.SubGraphT()
        self.buffers: list[Any] = [_aligned_buffer(self.schema, None)]  # number 0 is "no data"
        self.tensors: list[Any] = []
        self.index: dict[str, int] = {}
        self.codes: dict[str, int] = {}
        for tensor in graph.tensors.values():
            self._add_tensor(tensor, _bias_scales(graph, tensor.name))
        self.subgraph.operators = [self._operator(op) for op in graph.ops]

    def finish(self) -> bytes:
        """Assemble the model and serialise it."""
        graph, schema = self.graph, self.schema
        self.subgraph.name = graph.name.encode()
        self.subgraph.tensors = self.tensors
        self.subgraph.inputs = _int32([self.index[name] for name in graph.inputs])
        self.subgraph.outputs = _int32([self.index[name] for name in graph.outputs])
        model = self.model
        model.version = SCHEMA_VERSION
        model.description = f"Edge Imputer: {graph.name}".encode()
        model.subgraphs = [self.subgraph]
        model.operatorCodes = [self._operator_code(kind) for kind in self.codes]
        model.signatureDefs = [self._signature()]
        runtime = minimum_runtime(graph).encode().ljust(16, b"\0")
        model.metadata = [self._metadata(b"min_runtime_version", runtime)]
        model.buffers = self.buffers
        flatbuffers = require("flatbuffers", extra="export")
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
        assert schema.Model.ModelBufferHasIdentifier(builder.Output(), 0)
        return bytes(builder.Output())

    def _add_tensor(self, tensor: Tensor, scales: Array | None = None) -> int:
        schema = self.schema
        t = schema.TensorT()
        t.name = tensor.name.encode()
        t.shape = _int32(tensor.shape)
        t.type = {"int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32}[tensor.dtype]
        t.buffer = 0 if tensor.data is None else self._buffer(tensor.data)
        if tensor.quant is not None:
            t.quantization = self._quantization(
                np.array([tensor.quant.scale], np.float32), tensor.quant.zero_point
            )
        elif tensor.weight_scales is not None or scales is not None:
            t.quantization = self._quantization(
                tensor.weight_scales if scales is None else scales, 0
            )
        self.tensors.append(t)
        self.index[tensor.name] = len(self.tensors) - 1
        return self.index[tensor.name]

    def _quantization(self, scales: Array | None, zero_point: int) -> Any:
        q = self.schema.QuantizationParametersT()
        q.scale = np.asarray(scales, np.float32)
        q.zeroPoint = np.full(q.scale.shape, zero_point, np.int64)
        q.quantizedDimension = 0
        return q

    def _buffer(self, data: Array) -> int:
        self.buffers.append(_aligned_buffer(self.schema, data))
        return len(self.buffers) - 1

    def _constant(self, name: str, values: Any) -> int:
        """An int32 constant that an operator takes as an input, such as a shape."""
        data = _int32(values)
        return self._add_tensor(Tensor(name, data.shape, "int32", data=data))

    def _operator(self, op: Op) -> Any:
        if op.kind not in OPERATORS:
            raise ExportError(f"expected an operation among {sorted(OPERATORS)}, got {op.kind!r}")
        o = self.schema.OperatorT()
        o.opcodeIndex = self.codes.setdefault(op.kind, len(self.codes))
        inputs = [self.index[name] for name in op.inputs]
        options = _OPTIONS[op.kind](self, op, inputs)
        o.inputs, o.outputs = _int32(inputs), _int32([self.index[op.output]])
        if options is not None:
            table = type(options).__name__.removesuffix("T")
            o.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            o.builtinOptions = options
        return o

    def _operator_code(self, kind: str) -> Any:
        name, version, _ = OPERATORS[kind]
        code = self.schema.OperatorCodeT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = code.builtinCode  # the same number below 127
        code.version = version
        return code

    def _signature(self) -> Any:
        signature = self.schema.SignatureDefT()
        signature.signatureKey = b"serving_default"
        signature.subgraphIndex = 0
        signature.inputs = [self._tensor_map(name) for name in self.graph.inputs]
        signature.outputs = [self._tensor_map(name) for name in self.graph.outputs]
        return signature

    def _tensor_map(self, name: str) -> Any:
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), self.index[name]
        return entry

    def _metadata(self, name: bytes, data: bytes) -> Any:
        entry = self.schema.MetadataT()
        entry.name = name
        entry.buffer = self._buffer(np.frombuffer(data, np.uint8))
        return entry


def _bias_scales(graph: Graph, name: str) -> Array | None:
    """Scales of a bias: input scale times weight scales, in float32; None for other tensors."""
    for op in graph.ops:
        if op.kind in ("conv2d", "fully_connected") and op.inputs[2] == name:
            return bias_scales(graph, op)
    return None


def _int32(values: Any) -> Array:
    return np.array(values, np.int32)


def _aligned_buffer(schema: ModuleType, data: Array | None) -> Any:
    """A schema buffer whose bytes begin at a multiple of 16.

    The schema asks for that alignment, but the generated Python code does not give it.
    """

    class AlignedBuffer(schema.BufferT):  # type: ignore[name-defined, misc]
        def Pack(self, builder: Any) -> Any:
            content = None if data is None else np.ascontiguousarray(data).tobytes()
            if content is not None:
                builder.StartVector(1, len(content), ALIGNMENT)
                builder.head -= len(content)
                builder.Bytes[builder.head : builder.head + len(content)] = content
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if content is not None:
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return AlignedBuffer()


# Options of every operator; those that take constants append them to `inputs`.


def _activation(writer: _Writer, op: Op) -> int:
    kinds = writer.schema.ActivationFunctionType
    return int(kinds.RELU if op.attrs.get("relu") else kinds.NONE)


def _conv2d(writer: _Writer, op: Op, inputs: list[int]) -> Any:
    options = writer.schema.Conv2DOptionsT()
    options.padding = writer.schema.Padding.VALID
    options.strideH, options.strideW = op.attrs["stride"]
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = _activation(writer, op)
    return options


def _fully_connected(writer: _Writer, op: Op, inputs: list[int]) -> Any:
    options = writer.schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = _activation(writer, op)
    return options


def _plain(table: str | None) -> Callable[[_Writer, Op, list[int]], Any]:
    """Options that stay at their defaults."""
    return lambda writer, op, inputs: table and getattr(writer.schema, f"{table}T")()


def _gather(writer: _Writer, op: Op, inputs: list[int]) -> Any:
    inputs.reverse()  # TFLite takes the table first
    options = writer.schema.GatherOptionsT()
    options.axis = 0
    return options


def _concat(writer: _Writer, op: Op, inputs: list[int]) -> Any:
    options = writer.schema.ConcatenationOptionsT()
    options.axis = op.attrs["axis"]
    return options


def _slice(writer: _Writer, op: Op, inputs: list[int]) -> Any:
    for key in ("begin", "size"):
        inputs.append(writer._constant(f"{op.output}/{key}", op.attrs[key]))
    return writer.schema.SliceOptionsT()


def _pad(writer: _Writer, op: Op, inputs: list[int]) -> Any:
    inputs.append(writer._constant(f"{op.output}/paddings", op.attrs["paddings"]))
    return writer.schema.PadOptionsT()


def _reshape(writer: _Writer, op: Op, inputs: list[int]) -> Any:
    inputs.append(writer._constant(f"{op.output}/shape", op.attrs["shape"]))
    options = writer.schema.ReshapeOptionsT()
    options.newShape = _int32(op.attrs["shape"])
    return options


_OPTIONS: dict[str, Callable[[_Writer, Op, list[int]], Any]] = {
    "conv2d": _conv2d,
    "fully_connected": _fully_connected,
    "add": _plain("AddOptions"),
    "sub": _plain("SubOptions"),
    "mul": _plain("MulOptions"),
    "sigmoid": _plain(None),
    "tanh": _plain(None),
    "relu": _plain(None),
    "embedding": _gather,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
}
