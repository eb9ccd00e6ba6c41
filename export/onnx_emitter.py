"""Writes a graph as ONNX: float32, or int8 with QuantizeLinear and DequantizeLinear (QDQ).

The int8 file's inputs, outputs and activations are int8; every arithmetic node stands between
DequantizeLinear and QuantizeLinear, which onnxruntime fuses into its integer kernels. Weights and
biases are initialisers named after the graph's tensors and hold the same bytes; see `onnx_names`
for what other values are called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_imputer.errors import ExportError

from .fused.operations import FUSED
from .graph import Array, Graph, Op
from .onnx_functions import DOMAIN, folded, shared
from .onnx_movers import MOVERS, permuted, split
from .onnx_names import prefix_of, value_names
from .op_params import quant_of
from .parts import in_parts

OPSET, IR_VERSION = 17, 8  # QuantizeLinear by axis (13), ...; read by onnxruntime >= 1.12
WIDE_OPSET, WIDE_IR_VERSION = 21, 10  # QuantizeLinear to int16; read by onnxruntime >= 1.18
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
}


def write_onnx(graph: Graph, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a graph as an ONNX file, checked by `onnx.checker`.

    Parameters
    ----------
    graph : Graph
    path : path
    metadata : mapping from key to text, optional
        Kept in the file as its ``metadata_props``.

    Raises
    ------
    ExportError
        If the graph holds an unknown operation, or the result is not valid ONNX.
    """
    Path(path).write_bytes(onnx_model(graph, metadata).SerializeToString(deterministic=True))


def onnx_model(graph: Graph, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The ONNX model of a graph, see `write_onnx`."""
    quantised = any(graph.is_integer(op) for op in graph.ops)
    model = (QdqWriter(graph) if quantised else Writer(graph)).model()
    if metadata:
        helper.set_model_props(model, dict(sorted(metadata.items())))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{graph.name}: the ONNX checker refused the model: {error}") from error
    return model


class Writer:
    """Appends ONNX nodes and initialisers; the float form of every operation."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = value_names(graph)
        self.prefix = prefix_of(graph)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.same: dict[tuple[object, ...], str] = {}  # by shape, type and bytes
        self.made: dict[tuple[object, ...], str] = {}
        self.n_scales = 0
        self.wide = any(t.quant and t.dtype == "int16" for t in graph.tensors.values())
        for ops in in_parts(graph):
            self._emit(ops)

    def model(self) -> onnx.ModelProto:
        """The whole model, with the graph's inputs and outputs."""
        nodes, functions = self.folded()
        graph = helper.make_graph(
            nodes,
            self.graph.name,
            [self._value_info(name) for name in self.graph.inputs],
            [self._value_info(name) for name in self.graph.outputs],
            list(self.initializers.values()),
        )
        domains = [helper.make_opsetid("", self.opset)]
        if functions:
            domains.append(helper.make_opsetid(DOMAIN, 1))
        return helper.make_model(
            graph,
            functions=functions,
            opset_imports=domains,
            ir_version=WIDE_IR_VERSION if self.wide else IR_VERSION,
            producer_name="edge-imputer",
        )

    @property
    def opset(self) -> int:
        """Version of the operators."""
        return WIDE_OPSET if self.wide else OPSET

    def folded(self) -> tuple[list[onnx.NodeProto], list[onnx.FunctionProto]]:
        """Nodes and functions; float operations are hardly more than a node each."""
        return self.nodes, []

    def _emit(self, ops: tuple[Op, ...]) -> None:
        op = ops[0]
        if op.kind not in _EMIT:
            raise ExportError(f"expected an operation among {sorted(_EMIT)}, got {op.kind!r}")
        if len(ops) > 1:
            split(self, ops)
        else:
            _EMIT[op.kind](self, op)

    def _value_info(self, name: str) -> onnx.ValueInfoProto:
        tensor = self.graph.tensors[name]
        return helper.make_tensor_value_info(name, ELEMENT_TYPES[tensor.dtype], tensor.shape)

    def node(self, op_type: str, inputs: list[str], output: str, **attrs: Any) -> str:
        """Append a node."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attrs))
        return output

    def initializer(self, name: str, data: Array) -> str:
        """A constant; one with the same elements is taken again, whatever its name."""
        array = np.asarray(data, order="C")
        key = (array.shape, array.dtype, array.tobytes())
        if key not in self.same:
            self.same[key] = name
            self.initializers[name] = numpy_helper.from_array(array, name)
        return self.same[key]

    def ints(self, values: Any) -> str:
        """An int64 constant such as a shape."""
        data = np.array(values, np.int64)
        return self.initializer(f"{self.prefix}i" + "x".join(map(str, data)), data)

    def output(self, op: Op) -> str:
        """What the output of `op` is called."""
        return self.names[op.output]

    def part(self, of: Op | str, letter: str) -> str:
        """What a value is called on the way to an operation's output, or from a stored tensor."""
        whole = self.output(of) if isinstance(of, Op) else of
        short = re.match(f"{self.prefix}t[0-9]", whole)
        return whole + letter if short else f"{whole}/{letter}"

    def read(self, name: str, stored: str = "") -> str:
        """Real values of a tensor, or of its copy `stored` in another layout."""
        return stored or self.operand(name)

    def operand(self, name: str) -> str:
        """A tensor as it is stored; a constant becomes an initialiser."""
        data = self.graph.tensors[name].data
        return self.names[name] if data is None else self.initializer(name, data)

    def write(self, real: str, op: Op, stored: str = "") -> None:
        """Store the last node's values as the output of `op`, or as `stored`."""
        self.nodes[-1].output[0] = stored or self.output(op)

    def weight(self, op: Op, perm: tuple[int, ...] | None = None) -> list[str]:
        """Real values of weight and bias, the weight's axes permuted where asked."""
        return [self._stored_weight(op, perm), self.operand(op.inputs[2])]

    def _stored_weight(self, op: Op, perm: tuple[int, ...] | None) -> str:
        """The weight, its axes permuted by a node that runtimes fold when they load the file."""
        weight, shape = self.operand(op.inputs[1]), self.graph.tensors[op.inputs[1]].shape
        if perm is None:
            return weight
        stored = self.part(op, "w")
        return self.once((weight, *perm), lambda: permuted(self, weight, shape, perm, stored))

    def once(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """What several nodes read: made for the first of them."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def clips(self, op: Op) -> bool:
        """Whether what stores the output of `op` cuts off what is below zero."""
        return False

    def zero(self, op: Op) -> str:
        """The value that pads."""
        return self.initializer(f"{self.prefix}z0", np.zeros((), np.float32))


class QdqWriter(Writer):
    """The int8 form: the same nodes between DequantizeLinear and QuantizeLinear.

    What a fused graph has in float32 is written as it is.
    An operation's nodes are a group that makes all it reads itself (see `onnx_functions`).
    """

    def __init__(self, graph: Graph) -> None:
        self.groups: list[list[onnx.NodeProto]] = []
        super().__init__(graph)

    def folded(self) -> tuple[list[onnx.NodeProto], list[onnx.FunctionProto]]:
        """Nodes and functions."""
        return folded(shared(self.groups), self.opset)

    def _emit(self, ops: tuple[Op, ...]) -> None:
        self.made.clear()
        self.here = self.output(ops[0])
        begin = len(self.nodes)
        super()._emit(ops)
        self.groups.append(self.nodes[begin:])

    def read(self, name: str, stored: str = "") -> str:
        """Dequantise."""
        if self.graph.tensors[name].quant is None:
            return super().read(name, stored)
        return self._real(stored or self.operand(name), self._params(name), "f")

    def write(self, real: str, op: Op, stored: str = "") -> None:
        """Quantise."""
        if self.graph.is_integer(op):
            self.node("QuantizeLinear", [real, *self._params(op.output)], stored or self.output(op))
        else:
            super().write(real, op, stored)

    def weight(self, op: Op, perm: tuple[int, ...] | None = None) -> list[str]:
        """Dequantised weight and bias; the int8 and int32 arrays are those of the graph."""
        if not self.graph.is_integer(op):
            return super().weight(op, perm)
        scales = self.graph.tensors[op.inputs[1]].weight_scales
        if scales is None:
            raise ExportError(
                f"{self.graph.name}: expected {op.inputs[1]} to have scales, got none"
            )
        weight, bias = super().weight(op, perm)
        n = len(scales)
        zeros = self.initializer(f"{self.prefix}z0x{n}", np.zeros(n, np.int8))
        weight_scales = self.initializer(self.part(op, "ws"), scales)
        factors = [self._params(op.inputs[0])[0], weight_scales]
        bias_scales = self.node("Mul", factors, self.part(op, "bs"))  # exact, as `bias_scales`
        return [
            self._real(weight, [weight_scales, zeros], "wf", axis=0),
            self._real(bias, [bias_scales], "bf", axis=0),
        ]

    def clips(self, op: Op) -> bool:
        """Where the lowest int8 stands for zero, quantising is ReLU."""
        return clips_below_zero(self.graph, op)

    def zero(self, op: Op) -> str:
        """The value that pads."""
        return self._zero_point(op.output)

    def _real(self, stored: str, params: list[str], letters: str, **attrs: int) -> str:
        def dequantise() -> str:
            name = self.part(self.here, f"{letters}{len(self.made) or ''}")
            return self.node("DequantizeLinear", [stored, *params], name, **attrs)

        return self.once((stored, *params), dequantise)

    def _params(self, name: str) -> list[str]:
        quant = quant_of(self.graph, name)
        number = f"{self.prefix}s{self.n_scales}"
        scale = self.initializer(number, np.array(quant.scale, np.float32))
        self.n_scales += scale == number
        return [scale, self._zero_point(name)]

    def _zero_point(self, name: str) -> str:
        value, dtype = quant_of(self.graph, name).zero_point, self.graph.tensors[name].dtype
        wide = "w" if dtype == "int16" else ""
        return self.initializer(f"{self.prefix}z{value}{wide}", np.array(value, dtype))


def clips_below_zero(graph: Graph, op: Op) -> bool:
    """Whether quantising cuts off what is below zero, so that a ReLU has nothing left to do."""
    return graph.is_integer(op) and quant_of(graph, op.output).zero_point == -128


def _conv2d(w: Writer, op: Op) -> None:
    _convolution(w, op, TO_NCHW)


def _depthwise_conv2d(w: Writer, op: Op) -> None:
    attrs = {"group": w.graph.tensors[op.inputs[0]].shape[3]}
    if op.attrs["dilation"] != (1, 1):
        attrs["dilations"] = op.attrs["dilation"]
    _convolution(w, op, (3, 0, 1, 2), **attrs)


def _convolution(w: Writer, op: Op, perm: tuple[int, ...], **attrs: Any) -> None:
    """Layouts are changed outside of the QDQ pair, on bytes, so that the pattern stays whole."""
    inputs = [_to_nchw(w, op), *w.weight(op, perm=perm)]
    if op.attrs["stride"] != (1, 1):
        attrs["strides"] = op.attrs["stride"]
    _from_nchw(w, op, _relu_of(w, op, w.node("Conv", inputs, w.part(op, "y"), **attrs)))


def _max_pool(w: Writer, op: Op) -> None:
    attrs = {"strides": op.attrs["stride"], "kernel_shape": op.attrs["size"]}
    _from_nchw(w, op, w.node("MaxPool", [_to_nchw(w, op)], w.part(op, "y"), **attrs))


def _to_nchw(w: Writer, op: Op) -> str:
    """Real values of the first input, channels first."""
    x = op.inputs[0]
    stored = w.part(op, "x")
    permuted(w, w.operand(x), w.graph.tensors[x].shape, TO_NCHW, stored)
    return w.read(x, stored)


def _from_nchw(w: Writer, op: Op, y: str) -> None:
    stored, shape = w.part(op, "n"), w.graph.tensors[op.output].shape
    w.write(y, op, stored)
    permuted(w, stored, tuple(shape[k] for k in TO_NCHW), TO_NHWC, w.output(op))


def _relu_of(w: Writer, op: Op, y: str) -> str:
    fused = op.attrs.get("relu") and not w.clips(op)
    return w.node("Relu", [y], w.part(op, "r")) if fused else y


def _relu(w: Writer, op: Op) -> None:
    if w.clips(op):
        w.node("Identity", [w.operand(op.inputs[0])], w.output(op))
    else:
        _elementwise("Relu")(w, op)


def _fully_connected(w: Writer, op: Op) -> None:
    inputs = [w.read(op.inputs[0]), *w.weight(op)]
    w.write(_relu_of(w, op, w.node("Gemm", inputs, w.part(op, "y"), transB=1)), op)


def _batch_matmul(w: Writer, op: Op) -> None:
    x, y = op.inputs
    stored = ""
    if op.attrs["transposed"]:
        stored = w.node("Transpose", [w.operand(y)], w.part(op, "x"), perm=(0, 2, 1))
    inputs = [w.read(x), w.read(y, stored)]
    w.write(w.node("MatMul", inputs, w.part(op, "y")), op)


def _elementwise(op_type: str, **attrs: Any) -> Callable[[Writer, Op], None]:
    def emit(w: Writer, op: Op) -> None:
        inputs = [w.read(name) for name in op.inputs]
        w.write(w.node(op_type, inputs, w.part(op, "y"), **attrs), op)

    return emit


def _mean(w: Writer, op: Op) -> None:
    """The axis is an attribute before opset 18, an input from there on."""
    attrs: dict[str, Any] = {} if w.wide else {"axes": (-1,)}
    axes = [w.ints([-1])] if w.wide else []
    w.write(w.node("ReduceMean", [w.read(op.inputs[0]), *axes], w.part(op, "y"), **attrs), op)


_EMIT: dict[str, Callable[[Writer, Op], None]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "batch_matmul": _batch_matmul,
    "max_pool": _max_pool,
    "minimum": _elementwise("Min"),
    "softmax": _elementwise("Softmax"),  # over the last axis
    "l2_norm": _elementwise("LpNormalization"),
    "mean": _mean,
    "filter_bank": _depthwise_conv2d,
    **MOVERS,
    "fully_connected": _fully_connected,
    "add": _elementwise("Add"),
    "sub": _elementwise("Sub"),
    "mul": _elementwise("Mul"),
    "sigmoid": _elementwise("Sigmoid"),
    "tanh": _elementwise("Tanh"),
    "relu": _relu,
    "requantise": _elementwise("Identity"),
    **{kind: op.emit for kind, op in FUSED.items() if op.emit is not None},
}
