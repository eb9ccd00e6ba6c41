"""Writes a graph as a .tflite file, float32 or quantised, with flatbuffers alone.

No converter is involved, so the file carries exactly the numbers of the graph, and its bytes depend
on the graph only. Files of small networks would be half bookkeeping, so whatever is equal stands
in them once: shapes, scales, zero points, options, constants (see `flatbuffer`). Inputs, outputs
and weights have names; an activation has the number of the operator that computes it instead,
which is also its line in `dump`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from edge_imputer.errors import ExportError

from .flatbuffer import TfliteBuilder
from .graph import WEIGHT_AXIS, Array, Graph, Op, Tensor
from .op_params import bias_scales


class Builtin(NamedTuple):
    """A builtin operator of TFLite, and for every type of its output its version and who reads
    that first."""

    name: str
    int8: tuple[int, str]
    float32: tuple[int, str] | None
    int16: tuple[int, str] | None = None


# Versions are those the TFLite converter writes, but for FULLY_CONNECTED in int8: it would write 4,
# which runtimes up to 2.9 accept too, though they read only the first weight scale, and compute
# nonsense. Version 10 keeps them out: 2.13 is the first that has it.
OPERATORS = {
    "conv2d": Builtin("CONV_2D", (3, "1.14.0"), (1, "1.5.0")),
    "depthwise_conv2d": Builtin("DEPTHWISE_CONV_2D", (3, "1.14.0"), (2, "1.12.0")),
    "fully_connected": Builtin("FULLY_CONNECTED", (10, "2.13.0"), (1, "1.5.0")),
    "batch_matmul": Builtin("BATCH_MATMUL", (2, "2.3.0"), (1, "2.3.0")),
    "add": Builtin("ADD", (2, "1.14.0"), (1, "1.5.0"), (3, "2.4.0")),
    "sub": Builtin("SUB", (2, "1.14.0"), (1, "1.6.0"), (5, "2.4.0")),
    "mul": Builtin("MUL", (2, "1.14.0"), (1, "1.5.0")),
    "minimum": Builtin("MINIMUM", (2, "1.14.0"), (1, "1.14.0")),
    "sigmoid": Builtin("LOGISTIC", (2, "1.14.0"), (1, "1.14.0")),
    "tanh": Builtin("TANH", (2, "1.14.0"), (1, "1.14.0")),
    "relu": Builtin("RELU", (2, "2.1.0"), (1, "1.5.0")),
    "softmax": Builtin("SOFTMAX", (2, "1.14.0"), (1, "1.5.0")),
    "l2_norm": Builtin("L2_NORMALIZATION", (2, "1.14.0"), (1, "1.5.0")),
    "mean": Builtin("MEAN", (2, "1.14.0"), (1, "1.6.0")),
    "max_pool": Builtin("MAX_POOL_2D", (2, "1.14.0"), (1, "1.5.0")),
    "embedding": Builtin("GATHER", (2, "1.14.0"), (1, "1.6.0")),
    "concat": Builtin("CONCATENATION", (2, "1.14.0"), (1, "1.5.0")),
    "slice": Builtin("SLICE", (2, "1.14.0"), (1, "1.14.0")),
    "pad": Builtin("PAD", (2, "1.14.0"), (1, "1.5.0")),
    "reshape": Builtin("RESHAPE", (1, "1.5.0"), (1, "1.5.0")),
    "transpose": Builtin("TRANSPOSE", (2, "1.14.0"), (1, "1.6.0")),
    "requantise": Builtin("QUANTIZE", (2, "1.15.0"), None, (2, "1.15.0")),
}
SCHEMA_VERSION = 3
RUNTIME_KEY = "min_runtime_version"  # metadata that TFLite's own tools read


def write_tflite(graph: Graph, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a graph as a .tflite file, float32 or int8 as the graph is.

    Inputs and outputs keep their names and order; a signature ``serving_default`` names them too.

    Parameters
    ----------
    graph : Graph
    path : path
    metadata : mapping from key to text, optional
        Kept in the file under these keys, in UTF-8.

    Raises
    ------
    ExportError
        If the graph holds an unknown operation, or the metadata the key ``min_runtime_version``,
        which is the file's own.
    MissingExtraError
        If flatbuffers or ai-edge-litert is not installed.
    """
    Path(path).write_bytes(tflite_bytes(graph, metadata))


def tflite_bytes(graph: Graph, metadata: Mapping[str, str] | None = None) -> bytes:
    """The .tflite file of a graph, see `write_tflite`."""
    return _Writer(graph).finish(metadata or {})


def minimum_runtime(graph: Graph) -> str:
    """The oldest TFLite runtime that has every operator version of the graph."""
    versions = [_version(graph, op)[1] for op in graph.ops]
    return max(versions, key=lambda text: tuple(int(part) for part in text.split(".")))


def _version(graph: Graph, op: Op) -> tuple[int, str]:
    if op.kind not in OPERATORS:
        raise ExportError(f"expected an operation among {sorted(OPERATORS)}, got {op.kind!r}")
    dtype = graph.tensors[op.output].dtype
    version: tuple[int, str] | None = getattr(
        OPERATORS[op.kind], dtype if dtype == "int16" else "int8" if graph.quantised else "float32"
    )
    if version is None:
        raise ExportError(f"{graph.name}: {op.output}: TFLite has no {op.kind} in {dtype}")
    return version


class _Writer:
    """Numbers tensors, operator codes and buffers while it writes them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.file = TfliteBuilder()
        self.schema = self.file.schema
        self.buffers = [self.file.table("Buffer")]  # number 0 is "no data"
        self.tensors: list[int] = []
        self.numbers: dict[str, int] = {}  # of tensors, by name
        self.constants: dict[tuple[object, ...], int] = {}
        self.codes: dict[tuple[str, int], int] = {}  # by kind and version
        linear = [op for op in graph.ops if op.kind in WEIGHT_AXIS]
        self.axes = {op.inputs[1]: WEIGHT_AXIS[op.kind] for op in linear}
        self.bias_scales = {
            op.inputs[2]: bias_scales(graph, op) for op in linear if graph.quantised
        }
        named = {*graph.inputs, *graph.outputs}
        for name in dict.fromkeys([*(op.output for op in graph.ops), *graph.inputs]):
            self._activation(graph.tensors[name], name if name in named else "")
        self.operators = [self._operator(op) for op in graph.ops]

    def finish(self, metadata: Mapping[str, str]) -> bytes:
        """Put the model together and serialise it."""
        graph, file = self.graph, self.file
        if RUNTIME_KEY in metadata:
            raise ExportError(f"{graph.name}: the key {RUNTIME_KEY} of the metadata is taken")
        kept = {RUNTIME_KEY: minimum_runtime(graph).encode().ljust(16, b"\0")}
        kept |= {key: text.encode() for key, text in metadata.items()}
        subgraph = file.table(
            "SubGraph",
            tensors=file.tables(self.tensors),
            inputs=file.numbers([self.numbers[name] for name in graph.inputs]),
            outputs=file.numbers([self.numbers[name] for name in graph.outputs]),
            operators=file.tables(self.operators),
            name=file.text(graph.name),
        )
        model = file.table(
            "Model",
            version=SCHEMA_VERSION,
            operatorCodes=file.tables([self._operator_code(*code) for code in self.codes]),
            subgraphs=file.tables([subgraph]),
            description=file.text(f"Edge Imputer: {graph.name}"),
            metadata=file.tables([self._metadata(*item) for item in sorted(kept.items())]),
            buffers=file.tables(self.buffers),  # after whatever adds one
            signatureDefs=file.tables([self._signature()]),
        )
        return file.finish(model)

    def _activation(self, tensor: Tensor, name: str) -> None:
        self.numbers[tensor.name] = len(self.tensors)
        self.tensors.append(self._tensor(tensor, name, 0))

    def _constant(self, tensor: Tensor) -> int:
        """Number of a constant; one that is there already, under whatever name, is taken again."""
        assert tensor.data is not None
        quantization = self._quantization(tensor)
        key = (tensor.shape, tensor.dtype, tensor.data.tobytes(), quantization)
        if key not in self.constants:
            self.constants[key] = len(self.tensors)
            self.tensors.append(self._tensor(tensor, tensor.name, self._buffer(tensor.data)))
        return self.constants[key]

    def _tensor(self, tensor: Tensor, name: str, buffer: int) -> int:
        types = self.schema.TensorType
        return self.file.table(
            "Tensor",
            shape=self.file.numbers(tensor.shape),
            type=getattr(types, tensor.dtype.upper()),
            buffer=buffer,
            name=self.file.text(name) if name else None,
            quantization=self._quantization(tensor),
        )

    def _quantization(self, tensor: Tensor) -> int | None:
        scales, zero_point = self.bias_scales.get(tensor.name, tensor.weight_scales), 0
        if tensor.quant is not None:
            scales, zero_point = np.array([tensor.quant.scale]), tensor.quant.zero_point
        if scales is None:
            return None
        return self.file.table(
            "QuantizationParameters",
            scale=self.file.numbers(scales, "float32"),
            zeroPoint=self.file.numbers([zero_point] * len(scales), "int64"),
            quantizedDimension=self.axes.get(tensor.name, 0),
        )

    def _buffer(self, data: Array | bytes) -> int:
        buffer = self.file.table("Buffer", data=self.file.content(data))
        if buffer not in self.buffers:
            self.buffers.append(buffer)
        return self.buffers.index(buffer)

    def _operator(self, op: Op) -> int:
        version, _ = _version(self.graph, op)  # refuses what is unknown
        call = _CALLS[op.kind](self, op)
        inputs = [self._operand(name) for name in op.inputs]
        if op.kind == "embedding":
            inputs.reverse()  # TFLite takes the table first
        for values in call.constants:  # such as a shape
            data = np.array(values, np.int32)
            inputs.append(self._constant(Tensor("", data.shape, "int32", data=data)))
        options: dict[str, int] = {}
        if call.table:
            options["builtinOptionsType"] = getattr(self.schema.BuiltinOptions, call.table)
            options["builtinOptions"] = self.file.table(call.table, **call.fields)
        return self.file.table(
            "Operator",
            opcodeIndex=self.codes.setdefault((op.kind, version), len(self.codes)),
            inputs=self.file.numbers(inputs),
            outputs=self.file.numbers([self.numbers[op.output]]),
            **options,
        )

    def _operand(self, name: str) -> int:
        tensor = self.graph.tensors[name]
        return self.numbers[name] if tensor.data is None else self._constant(tensor)

    def _operator_code(self, kind: str, version: int) -> int:
        code = getattr(self.schema.BuiltinOperator, OPERATORS[kind].name)
        return self.file.table(
            "OperatorCode",
            deprecatedBuiltinCode=code,  # the same number below 127
            builtinCode=code,
            version=version,
        )

    def _signature(self) -> int:
        inputs, outputs = (
            self.file.tables([self._tensor_map(name) for name in names])
            for names in (self.graph.inputs, self.graph.outputs)
        )
        key = self.file.text("serving_default")
        return self.file.table("SignatureDef", inputs=inputs, outputs=outputs, signatureKey=key)

    def _tensor_map(self, name: str) -> int:
        number = self.numbers[name]
        return self.file.table("TensorMap", name=self.file.text(name), tensorIndex=number)

    def _metadata(self, key: str, content: bytes) -> int:
        name, buffer = self.file.text(key), self._buffer(content)
        return self.file.table("Metadata", name=name, buffer=buffer)


class _Call(NamedTuple):
    """What an operator is given besides its tensors: its table of options, and integers."""

    table: str
    fields: Mapping[str, Any] = MappingProxyType({})
    constants: tuple[Iterable[Any], ...] = ()


def _activation(w: _Writer, op: Op) -> int:
    kinds = w.schema.ActivationFunctionType
    return int(kinds.RELU if op.attrs.get("relu") else kinds.NONE)


def _window(w: _Writer, op: Op) -> dict[str, int]:
    """How a window moves; it never reaches over the edge."""
    stride_h, stride_w = op.attrs["stride"]
    return {"padding": w.schema.Padding.VALID, "strideH": stride_h, "strideW": stride_w}


def _conv2d(w: _Writer, op: Op) -> _Call:
    fields = {**_window(w, op), "fusedActivationFunction": _activation(w, op)}
    return _Call("Conv2DOptions", fields)


def _depthwise_conv2d(w: _Writer, op: Op) -> _Call:
    dilation_h, dilation_w = op.attrs["dilation"]
    fields = {
        **_window(w, op),
        "depthMultiplier": 1,
        "fusedActivationFunction": _activation(w, op),
        "dilationHFactor": dilation_h,
        "dilationWFactor": dilation_w,
    }
    return _Call("DepthwiseConv2DOptions", fields)


def _max_pool(w: _Writer, op: Op) -> _Call:
    height, width = op.attrs["size"]
    return _Call("Pool2DOptions", {**_window(w, op), "filterHeight": height, "filterWidth": width})


def _mean(w: _Writer, op: Op) -> _Call:
    last = len(w.graph.tensors[op.inputs[0]].shape) - 1
    return _Call("ReducerOptions", {"keepDims": True}, ([last],))


def _any_scale(w: _Writer, op: Op) -> dict[str, bool]:
    """Of int16: by default, scales that are powers of two would take an older way."""
    wide = w.graph.tensors[op.output].dtype == "int16"
    return {"potScaleInt16": False} if wide else {}


def _plain(table: str) -> Callable[[_Writer, Op], _Call]:
    """Options that stay at their defaults."""
    return lambda w, op: _Call(table)


_CALLS: dict[str, Callable[[_Writer, Op], _Call]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "fully_connected": lambda w, op: _Call(
        "FullyConnectedOptions", {"fusedActivationFunction": _activation(w, op)}
    ),
    "batch_matmul": lambda w, op: _Call("BatchMatMulOptions", {"adjY": op.attrs["transposed"]}),
    "add": lambda w, op: _Call("AddOptions", _any_scale(w, op)),
    "sub": lambda w, op: _Call("SubOptions", _any_scale(w, op)),
    "mul": _plain("MulOptions"),
    "minimum": _plain("MaximumMinimumOptions"),
    "sigmoid": _plain(""),
    "tanh": _plain(""),
    "relu": _plain(""),
    "softmax": lambda w, op: _Call("SoftmaxOptions", {"beta": 1.0}),
    "l2_norm": _plain("L2NormOptions"),
    "mean": _mean,
    "max_pool": _max_pool,
    "embedding": lambda w, op: _Call("GatherOptions", {"axis": 0}),
    "concat": lambda w, op: _Call("ConcatenationOptions", {"axis": op.attrs["axis"]}),
    "slice": lambda w, op: _Call("SliceOptions", {}, (op.attrs["begin"], op.attrs["size"])),
    "pad": lambda w, op: _Call("PadOptions", {}, (op.attrs["paddings"],)),
    "reshape": lambda w, op: _Call(
        "ReshapeOptions", {"newShape": w.file.numbers(op.attrs["shape"])}, (op.attrs["shape"],)
    ),
    "transpose": lambda w, op: _Call("TransposeOptions", {}, (op.attrs["perm"],)),
    "requantise": _plain("QuantizeOptions"),
}
