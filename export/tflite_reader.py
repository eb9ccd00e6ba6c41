"""Reads a .tflite file of ours back into the quantised graph that it was written from.

So whoever has the file has the exact integers: `run_int` of what is read here is what every other
runtime is held to, without the checkpoint or anything else of the training.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_imputer.errors import ExportError, require
from edge_imputer.quantization import QuantParams

from .graph import WEIGHT_AXIS, Array, Graph, Op, Tensor
from .op_params import op_params
from .tflite_calls import SPLIT
from .tflite_emitter import OPERATORS

Attributes = dict[str, Any]


def read_tflite(path: str | Path, *, name: str = "", n_states: int = 0) -> Graph:
    """The quantised graph in a file that `write_tflite` made.

    Parameters
    ----------
    path : .tflite file, int8
    name : of the graph; the file's own if empty
    n_states : of its last inputs and outputs; the manifest's ``n_states``

    Raises
    ------
    ExportError
        No .tflite file, an operator or a type that ours do not have, or integers that are no
        quantised graph's.
    """
    data = Path(path).read_bytes()
    schema = require("ai_edge_litert.schema_py_generated", extra="export")
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise ExportError(f"{path}: expected a .tflite file, got something else")
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    if len(model.subgraphs) != 1:
        raise ExportError(f"{path}: expected one subgraph, got {len(model.subgraphs)}")
    graph = _Reader(schema, model, str(path)).graph(n_states)
    graph.name = name or graph.name
    for op in graph.ops:  # every run-time integer must exist and fit
        op_params(graph, op)
    return graph


class _Reader:
    """Tensors by their number, then operators in order; a bare file has no options of some."""

    def __init__(self, schema: Any, model: Any, source: str) -> None:
        self.model, self.subgraph, self.source = model, model.subgraphs[0], source
        codes = {getattr(schema.BuiltinOperator, o[0]): kind for kind, o in OPERATORS.items()}
        self.kinds = [codes.get(code.builtinCode, "") for code in model.operatorCodes]
        self.dtypes = {
            schema.TensorType.INT8: "int8",
            schema.TensorType.INT16: "int16",
            schema.TensorType.INT32: "int32",
        }
        self.relu = schema.ActivationFunctionType.RELU
        self.names: list[str] = []
        self.tensors = [self._tensor(index, t) for index, t in enumerate(self.subgraph.tensors)]

    def graph(self, n_states: int) -> Graph:
        """The whole graph."""
        ops = [op for operator in self.subgraph.operators for op in self._ops(operator)]
        used = {name for op in ops for name in (*op.inputs, op.output)}
        inputs, outputs = (
            [self.names[k] for k in numbers]
            for numbers in (self.subgraph.inputs, self.subgraph.outputs)
        )
        tensors = {t.name: t for t in self.tensors if t.name in used or t.name in inputs}
        scales = self._scales()
        for op in ops:
            if op.kind in WEIGHT_AXIS:
                weight, bias = (tensors[name] for name in op.inputs[1:])
                weight.weight_scales, weight.quant = scales[weight.name], None
                bias.quant = None
        title = (self.subgraph.name or b"graph").decode()
        return Graph(title, tensors, ops, inputs, outputs, n_states)

    def _scales(self) -> dict[str, Array]:
        """Scales of every tensor that has any, by name."""
        return {
            name: np.asarray(t.quantization.scale, np.float32)
            for name, t in zip(self.names, self.subgraph.tensors, strict=True)
            if t.quantization is not None and t.quantization.scale is not None
        }

    def _tensor(self, index: int, t: Any) -> Tensor:
        name = (t.name or b"").decode() or f"t{index}"
        if name in self.names:
            name = f"{name}/{index}"
        self.names.append(name)
        if t.type not in self.dtypes:
            raise ExportError(f"{self.source}: {name} is none of int8, int16 and int32")
        shape = tuple(int(n) for n in (t.shape if t.shape is not None else ()))
        dtype = self.dtypes[t.type]
        content = self.model.buffers[t.buffer].data if t.buffer else None
        data = None
        if content is not None and len(content):
            data = np.asarray(content, np.uint8).view(dtype).reshape(shape)
        quant, q = None, t.quantization
        if dtype != "int32" and q is not None and q.scale is not None and len(q.scale) == 1:
            quant = QuantParams(scale=float(np.float32(q.scale[0])), zero_point=int(q.zeroPoint[0]))
        return Tensor(name, shape, dtype, data=data, quant=quant)

    def _ops(self, operator: Any) -> list[Op]:
        """An operator's operation, or the slices that a SPLIT is."""
        kind = self.kinds[operator.opcodeIndex]
        if not kind:
            code = self.model.operatorCodes[operator.opcodeIndex].builtinCode
            raise ExportError(f"{self.source}: operator {code} is none that we write")
        inputs, outputs = ([int(k) for k in ks] for ks in (operator.inputs, operator.outputs))
        if kind == SPLIT:
            return self._slices(inputs, [self.tensors[k] for k in outputs])
        attrs = _ATTRIBUTES.get(kind, _none)(self, operator.builtinOptions, inputs)
        (output,) = outputs
        return [Op(kind, tuple(self.names[k] for k in inputs), self.names[output], attrs)]

    def _slices(self, inputs: list[int], parts: list[Tensor]) -> list[Op]:
        inputs.reverse()  # TFLite takes the axis first
        (axis,) = self.constant(inputs)
        ops, begin = [], 0
        for part in parts:
            begins = tuple(begin if a == axis else 0 for a in range(len(part.shape)))
            attrs = {"begin": begins, "size": part.shape}
            ops.append(Op("slice", (self.names[inputs[0]],), part.name, attrs))
            begin += part.shape[axis]
        return ops

    def constant(self, inputs: list[int]) -> list[int]:
        """Take the last input off, which is a constant of integers."""
        data = self.tensors[inputs.pop()].data
        if data is None:
            raise ExportError(f"{self.source}: expected a constant, got an activation")
        return [int(n) for n in data.ravel()]


Read = Callable[["_Reader", Any, list[int]], Attributes]


def _none(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    return {}


def _convolution(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    return {
        "stride": (options.strideH, options.strideW),
        "relu": options.fusedActivationFunction == reader.relu,
    }


def _depthwise(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    dilation = options.dilationHFactor, options.dilationWFactor
    return {**_convolution(reader, options, inputs), "dilation": dilation}


def _fully_connected(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    return {"relu": getattr(options, "fusedActivationFunction", 0) == reader.relu}


def _matmul(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    return {"transposed": bool(getattr(options, "adjY", False))}


def _pool(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    return {
        "size": (options.filterHeight, options.filterWidth),
        "stride": (options.strideH, options.strideW),
    }


def _embedding(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    inputs.reverse()  # TFLite takes the table first
    return {}


def _concat(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    return {"axis": int(options.axis)}


def _slice(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    size, begin = reader.constant(inputs), reader.constant(inputs)
    return {"begin": tuple(begin), "size": tuple(size)}


def _pad(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    flat = reader.constant(inputs)
    return {"paddings": tuple(zip(flat[::2], flat[1::2], strict=True))}


def _reshape(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    return {"shape": tuple(reader.constant(inputs))}


def _transpose(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    return {"perm": tuple(reader.constant(inputs))}


def _mean(reader: _Reader, options: Any, inputs: list[int]) -> Attributes:
    reader.constant(inputs)  # the last axis
    return {}


_ATTRIBUTES: dict[str, Read] = {
    "conv2d": _convolution,
    "depthwise_conv2d": _depthwise,
    "fully_connected": _fully_connected,
    "batch_matmul": _matmul,
    "max_pool": _pool,
    "embedding": _embedding,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "mean": _mean,
}
