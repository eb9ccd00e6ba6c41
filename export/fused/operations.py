"""Operations that only a fused graph has, besides those of `graph`.

None of them computes int8: they make float32 of samples, int8 of features, and decide which frames
a pass commits. TensorFlow Lite Micro has them all.

===========  ==============  ======================================================================
kind         inputs          attributes
===========  ==============  ======================================================================
filter_bank  x, weight,      stride, dilation (1, 1); x (1, T, 1, C), weight (1, KT, 1, C * M):
             bias            M filters of every channel, output (1, T', 1, C * M)
quantise     x               float32 to the int8 of the output: divided by the scale, rounded
cast         x               to the output's type, int16, int8 and int32 as they stand
maximum      x, y            shapes that broadcast; one may be a constant
log, exp     x               natural
sum, max     x               over the last axis, which stays with length 1
arg_max      x               over the last axis, which goes; the first of equals; int32
===========  ==============  ======================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edge_imputer.quantization import quantize

from ..graph import Array, Graph, Op

Call = tuple[str, dict[str, Any], tuple[Any, ...]]
"""What TFLite's operator is given: its table of options, their values, constants."""
ONNX_TYPES = {"float32": 1, "int32": 6}  # TensorProto.FLOAT and INT32


class FusedOp(NamedTuple):
    """How every form of a fused graph has one operation.

    Attributes
    ----------
    builtin, version : TFLite's operator, its version and the oldest runtime that reads it
    call : (writer, op) -> Call, for TFLite
    emit : (writer, op) that appends ONNX nodes; None where the emitter has it itself
    kernel : (graph, op) -> function of the input arrays, in numpy
    """

    builtin: str
    version: tuple[int, str]
    call: Callable[[Any, Op], Call]
    emit: Callable[[Any, Op], None] | None
    kernel: Callable[[Graph, Op], Callable[..., Array]]


def _options(table: str) -> Callable[[Any, Op], Call]:
    return lambda w, op: (table, {}, ())


def _reduce(w: Any, op: Op) -> Call:
    return "ReducerOptions", {"keepDims": True}, ([_last(w, op)],)


def _last(w: Any, op: Op) -> int:
    return len(w.graph.tensors[op.inputs[0]].shape) - 1


def _filter_bank(w: Any, op: Op) -> Call:
    x, weight = (w.graph.tensors[name].shape for name in op.inputs[:2])
    fields = {
        "padding": w.schema.Padding.VALID,
        "strideH": op.attrs["stride"][0],
        "strideW": op.attrs["stride"][1],
        "depthMultiplier": weight[3] // x[3],
    }
    return "DepthwiseConv2DOptions", fields, ()


def _filter_bank_kernel(graph: Graph, op: Op) -> Callable[..., Array]:
    stride = op.attrs["stride"][0]

    def kernel(x: Array, weight: Array, bias: Array) -> Array:
        length, channels = weight.shape[1], x.shape[3]
        windows = np.lib.stride_tricks.sliding_window_view(x[0, :, 0], length, axis=0)[::stride]
        rows = np.einsum("tck,kcm->tcm", windows, weight.reshape(length, channels, -1))
        y: Array = (rows.reshape(len(windows), -1) + bias)[np.newaxis, :, np.newaxis]
        return y

    return kernel


def _quantise_kernel(graph: Graph, op: Op) -> Callable[..., Array]:
    quant = graph.tensors[op.output].quant
    assert quant is not None
    return lambda x: quantize(x, quant)


def _cast_kernel(graph: Graph, op: Op) -> Callable[..., Array]:
    dtype = graph.tensors[op.output].dtype
    return lambda x: x.astype(dtype)


def _always(function: Callable[..., Array]) -> Callable[[Graph, Op], Callable[..., Array]]:
    return lambda graph, op: function


def _node(op_type: str, **attrs: Any) -> Callable[[Any, Op], None]:
    """One ONNX node on float32."""

    def emit(w: Any, op: Op) -> None:
        w.node(op_type, [w.read(name) for name in op.inputs], w.output(op), **attrs)

    return emit


def _quantise_node(w: Any, op: Op) -> None:
    w.write(w.read(op.inputs[0]), op)


def _cast_node(w: Any, op: Op) -> None:
    to = ONNX_TYPES[w.graph.tensors[op.output].dtype]
    w.node("Cast", [w.operand(op.inputs[0])], w.output(op), to=to)


def _sum_node(w: Any, op: Op) -> None:
    w.node("ReduceSum", [w.read(op.inputs[0]), w.ints([-1])], w.output(op))


def _arg_max_node(w: Any, op: Op) -> None:
    wide = w.node("ArgMax", [w.read(op.inputs[0])], w.part(op, "y"), axis=-1, keepdims=0)
    w.node("Cast", [wide], w.output(op), to=ONNX_TYPES["int32"])


# Versions are those the TFLite converter writes; a cast's is that of int8, which has the others.
FUSED = {
    "filter_bank": FusedOp(
        "DEPTHWISE_CONV_2D", (1, "1.5.0"), _filter_bank, None, _filter_bank_kernel
    ),
    "quantise": FusedOp(
        "QUANTIZE", (1, "1.14.0"), _options("QuantizeOptions"), _quantise_node, _quantise_kernel
    ),
    "cast": FusedOp("CAST", (3, "2.8.0"), _options("CastOptions"), _cast_node, _cast_kernel),
    "maximum": FusedOp(
        "MAXIMUM",
        (1, "1.14.0"),
        _options("MaximumMinimumOptions"),
        _node("Max"),
        _always(np.maximum),
    ),
    "log": FusedOp("LOG", (1, "1.14.0"), _options(""), _node("Log"), _always(np.log)),
    "exp": FusedOp("EXP", (1, "1.7.0"), _options("ExpOptions"), _node("Exp"), _always(np.exp)),
    "sum": FusedOp(
        "SUM", (1, "1.10.0"), _reduce, _sum_node, _always(lambda x: x.sum(-1, keepdims=True))
    ),
    "max": FusedOp(
        "REDUCE_MAX",
        (1, "1.11.0"),
        _reduce,
        _node("ReduceMax", axes=(-1,)),
        _always(lambda x: x.max(-1, keepdims=True)),
    ),
    "arg_max": FusedOp(
        "ARG_MAX",
        (1, "1.9.0"),
        lambda w, op: ("ArgMaxOptions", {"outputType": w.schema.TensorType.INT32}, (_last(w, op),)),
        _arg_max_node,
        _always(lambda x: x.argmax(-1).astype(np.int32)),
    ),
}
