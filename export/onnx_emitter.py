"""Writes a graph as ONNX: float32, or int8 with QuantizeLinear and DequantizeLinear (QDQ).

The int8 file's inputs, outputs and activations are int8; every arithmetic node stands between
DequantizeLinear and QuantizeLinear, which onnxruntime fuses into its integer kernels. Weights,
biases and scales are initialisers named after the graph's tensors and hold the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_imputer.errors import ExportError

from .graph import Array, Graph, Op
from .op_params import bias_scales, quant_of

OPSET = 17  # QuantizeLinear and DequantizeLinear an axis (13); read by onnxruntime >= 1.12
IR_VERSION = 8
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
}


def write_onnx(graph: Graph, path: str | Path) -> None:
    """Write a graph as an ONNX file, checked by `onnx.checker`.

    Raises
    ------
    ExportError
        If the graph holds an unknown operation, or the result is not valid ONNX.
    """
    Path(path).write_bytes(onnx_model(graph).SerializeToString(deterministic=True))


def onnx_model(graph: Graph) -> onnx.ModelProto:
    """The ONNX model of a graph, see `write_onnx`."""
    writer = _QdqWriter(graph) if graph.quantised else _Writer(graph)
    model = writer.model()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{graph.name}: the ONNX checker refused the model: {error}") from error
    return model


class _Writer:
    """Appends ONNX nodes and initialisers; the float form of every operation."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        for op in graph.ops:
            if op.kind not in _EMIT:
                raise ExportError(f"expected an operation among {sorted(_EMIT)}, got {op.kind!r}")
            _EMIT[op.kind](self, op)

    def model(self) -> onnx.ModelProto:
        """The whole model, with the graph's inputs and outputs."""
        graph = helper.make_graph(
            self.nodes,
            self.graph.name,
            [self._value_info(name) for name in self.graph.inputs],
            [self._value_info(name) for name in self.graph.outputs],
            list(self.initializers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edge-imputer",
        )

    def _value_info(self, name: str) -> onnx.ValueInfoProto:
        tensor = self.graph.tensors[name]
        return helper.make_tensor_value_info(name, ELEMENT_TYPES[tensor.dtype], tensor.shape)

    def node(self, op_type: str, inputs: list[str], output: str, **attrs: Any) -> str:
        """Append a node; its name is that of its output."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attrs))
        return output

    def initializer(self, name: str, data: Array) -> str:
        """A constant; one that is there already is taken again."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(data, order="C"), name)
        return name

    def ints(self, name: str, values: Any) -> str:
        """An int64 constant such as a shape."""
        return self.initializer(name, np.array(values, np.int64))

    def read(self, name: str, user: Op, stored: str | None = None) -> str:
        """Real values of an activation, or of its copy `stored` in another layout."""
        return stored or name

    def write(self, real: str, op: Op, stored: str | None = None) -> None:
        """Store the last node's values as the output of `op`, or as `stored`."""
        self.nodes[-1].output[0] = self.nodes[-1].name = stored or op.output

    def weight(self, op: Op, perm: tuple[int, ...] | None = None) -> list[str]:
        """Real values of weight and bias, the weight's axes permuted where asked."""
        weight, bias = op.inputs[1:]
        for name in (weight, bias):
            self.initializer(name, _data(self.graph, name))
        return [self.permute(weight, perm), bias]

    def permute(self, name: str, perm: tuple[int, ...] | None) -> str:
        """Permute axes of a constant: a node that runtimes fold when they load the file."""
        shape = self.graph.tensors[name].shape
        if perm is None:
            return name
        if _same_order(shape, perm):
            new_shape = [shape[k] for k in perm]
            shape_name = self.ints(f"{name}/onnx_shape", new_shape)
            return self.node("Reshape", [name, shape_name], f"{name}/onnx")
        return self.node("Transpose", [name], f"{name}/onnx", perm=perm)

    def zero(self, op: Op) -> str:
        """The value that pads."""
        return self.initializer("zero", np.zeros((), np.float32))


class _QdqWriter(_Writer):
    """The int8 form: the same nodes between DequantizeLinear and QuantizeLinear."""

    def read(self, name: str, user: Op, stored: str | None = None) -> str:
        """Dequantise; anew for every user, as the fusion patterns of runtimes want it."""
        real = f"{user.output}/{name}/real"
        if any(node.name == real for node in self.nodes):  # both inputs of one operation
            return real
        return self.node("DequantizeLinear", [stored or name, *self._params(name)], real)

    def write(self, real: str, op: Op, stored: str | None = None) -> None:
        """Quantise."""
        self.node("QuantizeLinear", [real, *self._params(op.output)], stored or op.output)

    def weight(self, op: Op, perm: tuple[int, ...] | None = None) -> list[str]:
        """Dequantised weight and bias; the int8 and int32 arrays are those of the graph."""
        weight, bias = op.inputs[1:]
        scales = self.graph.tensors[weight].weight_scales
        if scales is None:
            raise ExportError(f"{self.graph.name}: expected {weight} to have scales, got none")
        reals = []
        for name, scale in ((weight, scales), (bias, bias_scales(self.graph, op))):
            self.initializer(name, _data(self.graph, name))
            inputs = [name, self.initializer(f"{name}/scale", scale)]
            if name == weight:
                inputs[0] = self.permute(name, perm)
                zeros = np.zeros(len(scale), np.int8)
                inputs.append(self.initializer(f"{name}/zero_point", zeros))
            reals.append(self.node("DequantizeLinear", inputs, f"{name}/real", axis=0))
        return reals

    def zero(self, op: Op) -> str:
        value = quant_of(self.graph, op.output).zero_point
        return self.initializer(f"zero/{value}", np.array(value, np.int8))

    def _params(self, name: str) -> list[str]:
        quant = quant_of(self.graph, name)
        return [
            self.initializer(f"{name}/scale", np.array(quant.scale, np.float32)),
            self.initializer(f"{name}/zero_point", np.array(quant.zero_point, np.int8)),
        ]


def _data(graph: Graph, name: str) -> Array:
    data = graph.tensors[name].data
    if data is None:
        raise ExportError(f"{graph.name}: expected {name} to be a constant")
    return data


def _same_order(shape: tuple[int, ...], perm: tuple[int, ...]) -> bool:
    """Whether a permutation moves only axes of length 1, so that no byte moves."""
    kept = [axis for axis in perm if shape[axis] > 1]
    return kept == sorted(kept)


def _conv2d(w: _Writer, op: Op) -> None:
    """Layouts are changed outside of the QDQ pair, on bytes, so that the pattern stays whole."""
    x, out = op.inputs[0], w.graph.tensors[op.output].shape
    nchw, y_nchw = f"{op.output}/x_nchw", f"{op.output}/nchw"
    _transpose(w, x, w.graph.tensors[x].shape, TO_NCHW, nchw)
    inputs = [w.read(x, op, stored=nchw), *w.weight(op, perm=TO_NCHW)]
    kernel = w.graph.tensors[op.inputs[1]].shape[1:3]
    strides = op.attrs["stride"]
    y = w.node("Conv", inputs, f"{op.output}/conv", strides=strides, kernel_shape=kernel)
    w.write(_relu_of(w, op, y), op, stored=y_nchw)
    _transpose(w, y_nchw, tuple(out[k] for k in TO_NCHW), TO_NHWC, op.output)


def _transpose(w: _Writer, x: str, shape: tuple[int, ...], perm: tuple[int, ...], y: str) -> None:
    """Change the layout; where no byte moves, by a Reshape, which costs nothing."""
    if _same_order(shape, perm):
        w.node("Reshape", [x, w.ints(f"{y}/shape", [shape[k] for k in perm])], y)
    else:
        w.node("Transpose", [x], y, perm=perm)


def _relu_of(w: _Writer, op: Op, y: str) -> str:
    return w.node("Relu", [y], f"{op.output}/relu") if op.attrs.get("relu") else y


def _fully_connected(w: _Writer, op: Op) -> None:
    inputs = [w.read(op.inputs[0], op), *w.weight(op)]
    w.write(_relu_of(w, op, w.node("Gemm", inputs, f"{op.output}/gemm", transB=1)), op)


def _elementwise(op_type: str) -> Callable[[_Writer, Op], None]:
    def emit(w: _Writer, op: Op) -> None:
        inputs = [w.read(name, op) for name in op.inputs]
        w.write(w.node(op_type, inputs, f"{op.output}/real"), op)

    return emit


# Operations that move elements work on int8 as on float32.


def _embedding(w: _Writer, op: Op) -> None:
    ids, table = op.inputs
    w.initializer(table, _data(w.graph, table))
    w.node("Gather", [table, ids], op.output, axis=0)


def _concat(w: _Writer, op: Op) -> None:
    w.node("Concat", list(op.inputs), op.output, axis=op.attrs["axis"])


def _slice(w: _Writer, op: Op) -> None:
    begin, size = np.array(op.attrs["begin"]), np.array(op.attrs["size"])
    cut = np.flatnonzero(size != w.graph.tensors[op.inputs[0]].shape)
    cut = cut if cut.size else np.array([0])
    bounds = [
        w.ints(f"{op.output}/starts", begin[cut]),
        w.ints(f"{op.output}/ends", (begin + size)[cut]),
        w.ints(f"{op.output}/axes", cut),
    ]
    w.node("Slice", [op.inputs[0], *bounds], op.output)


def _pad(w: _Writer, op: Op) -> None:
    pads = np.array(op.attrs["paddings"]).T.ravel()  # all the befores, then all the afters
    w.node("Pad", [op.inputs[0], w.ints(f"{op.output}/pads", pads), w.zero(op)], op.output)


def _reshape(w: _Writer, op: Op) -> None:
    w.node("Reshape", [op.inputs[0], w.ints(f"{op.output}/shape", op.attrs["shape"])], op.output)


_EMIT: dict[str, Callable[[_Writer, Op], None]] = {
    "conv2d": _conv2d,
    "fully_connected": _fully_connected,
    "add": _elementwise("Add"),
    "sub": _elementwise("Sub"),
    "mul": _elementwise("Mul"),
    "sigmoid": _elementwise("Sigmoid"),
    "tanh": _elementwise("Tanh"),
    "relu": _elementwise("Relu"),
    "embedding": _embedding,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
}
