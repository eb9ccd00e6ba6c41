"""What TFLite's operators are given besides their tensors: options, and integers as constants.

Options say only what differs from their defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from .fused.operations import FUSED
from .graph import Op
from .parts import cut

if TYPE_CHECKING:
    from .tflite_emitter import TfliteWriter

SPLIT = "split"  # no operation of a graph's: slices that are all of a tensor, see `parts`


class Call(NamedTuple):
    """What an operator is given besides its tensors: its table of options, and integers."""

    table: str
    fields: Mapping[str, Any] = MappingProxyType({})
    constants: tuple[Iterable[Any] | int, ...] = ()


def _activation(w: TfliteWriter, op: Op) -> dict[str, int]:
    relu = op.attrs.get("relu")
    return {"fusedActivationFunction": w.schema.ActivationFunctionType.RELU} if relu else {}


def _window(w: TfliteWriter, op: Op) -> dict[str, int]:
    """How a window moves; it never reaches over the edge."""
    stride_h, stride_w = op.attrs["stride"]
    return {"padding": w.schema.Padding.VALID, "strideH": stride_h, "strideW": stride_w}


def _conv2d(w: TfliteWriter, op: Op) -> Call:
    return Call("Conv2DOptions", {**_window(w, op), **_activation(w, op)})


def _depthwise_conv2d(w: TfliteWriter, op: Op) -> Call:
    dilation_h, dilation_w = op.attrs["dilation"]
    fields = {
        **_window(w, op),
        "depthMultiplier": 1,
        **_activation(w, op),
        "dilationHFactor": dilation_h,
        "dilationWFactor": dilation_w,
    }
    return Call("DepthwiseConv2DOptions", fields)


def _max_pool(w: TfliteWriter, op: Op) -> Call:
    height, width = op.attrs["size"]
    return Call("Pool2DOptions", {**_window(w, op), "filterHeight": height, "filterWidth": width})


def _mean(w: TfliteWriter, op: Op) -> Call:
    last = len(w.graph.tensors[op.inputs[0]].shape) - 1
    return Call("ReducerOptions", {"keepDims": True}, ([last],))


def _any_scale(w: TfliteWriter, op: Op) -> dict[str, bool]:
    """Of int16: by default, scales that are powers of two would take an older way."""
    return {"potScaleInt16": False} if w.graph.tensors[op.output].dtype == "int16" else {}


def _split(w: TfliteWriter, first: Op) -> Call:
    axis, n_parts = cut(w.graph, first)
    return Call("SplitOptions", {"numSplits": n_parts}, (axis,))


def _plain(table: str) -> Callable[[TfliteWriter, Op], Call]:
    """Options that stay at their defaults."""
    return lambda w, op: Call(table)


def _fused(kind: str) -> Callable[[TfliteWriter, Op], Call]:
    return lambda w, op: Call(*FUSED[kind].call(w, op))


def _batch_matmul(w: TfliteWriter, op: Op) -> Call:
    return Call("BatchMatMulOptions", {"adjY": True} if op.attrs["transposed"] else {})


def _reshape(w: TfliteWriter, op: Op) -> Call:
    """The shape stands there twice in the files that converters write."""
    shape = op.attrs["shape"]
    return Call("ReshapeOptions", {} if w.bare else {"newShape": w.file.numbers(shape)}, (shape,))


CALLS: dict[str, Callable[[TfliteWriter, Op], Call]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "fully_connected": lambda w, op: Call("FullyConnectedOptions", _activation(w, op)),
    "batch_matmul": _batch_matmul,
    "add": lambda w, op: Call("AddOptions", _any_scale(w, op)),
    "sub": lambda w, op: Call("SubOptions", _any_scale(w, op)),
    "mul": _plain("MulOptions"),
    "minimum": _plain("MaximumMinimumOptions"),
    "sigmoid": _plain(""),
    "tanh": _plain(""),
    "relu": _plain(""),
    "softmax": lambda w, op: Call("SoftmaxOptions", {"beta": 1.0}),
    "l2_norm": _plain("L2NormOptions"),
    "mean": _mean,
    "max_pool": _max_pool,
    "embedding": _plain("GatherOptions"),  # along axis 0
    "concat": lambda w, op: Call("ConcatenationOptions", {"axis": op.attrs["axis"]}),
    "slice": lambda w, op: Call("SliceOptions", {}, (op.attrs["begin"], op.attrs["size"])),
    SPLIT: _split,
    "pad": lambda w, op: Call("PadOptions", {}, (op.attrs["paddings"],)),
    "reshape": _reshape,
    "transpose": lambda w, op: Call("TransposeOptions", {}, (op.attrs["perm"],)),
    "requantise": _plain("QuantizeOptions"),
    **{kind: _fused(kind) for kind in FUSED},
}
