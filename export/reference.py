"""Executes a graph in numpy: in float, or exactly in the integers every device computes.

`run_int` has the semantics of TFLite's int8 operators, but rounds the accumulators of
convolutions, fully connected layers and products once (see `fixed_point`). The C kernels give its
bytes. onnxruntime and XNNPACK, which requantise in float32, and TFLite's own reference kernels
and TFLite Micro, which round twice, come within one step a layer (see `parity`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_imputer.errors import ExportError

from .fixed_point import Int64, multiply_by_quantized_multiplier, requantize
from .fused.operations import FUSED
from .graph import WEIGHT_AXIS, Array, Graph, Op
from .movers import Kernel, mover, patches, windows
from .op_params import (
    NORM_BITS,
    AccumulatorParams,
    MatmulParams,
    MeanParams,
    MulParams,
    NormParams,
    PadParams,
    ReluParams,
    RequantiseParams,
    SoftmaxParams,
    SumParams,
    TableParams,
    constant_of,
    op_params,
)


class Interpreter:
    """Runs one graph many times; kernels and their integers are prepared once.

    Float graphs run in float32, quantised graphs in exact integers.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._steps = [_step(graph, op) for op in graph.ops]
        self._constants = {
            name: tensor.data for name, tensor in graph.tensors.items() if tensor.data is not None
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every tensor of the graph.

        Parameters
        ----------
        feeds : mapping from input name to array
            One array an input, of the input's shape and dtype.

        Returns
        -------
        dict from tensor name to array: inputs, constants, activations and outputs

        Raises
        ------
        ExportError
            On a missing, unknown or misshapen input.
        """
        _check_feeds(self.graph, feeds)
        values: dict[str, Array] = {**self._constants, **feeds}
        for kernel, inputs, output in self._steps:
            values[output] = kernel(*[values[name] for name in inputs])
        return values


def run_float(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Execute a float graph once; every tensor by name."""
    if graph.quantised:
        raise ExportError(f"expected a float graph, got {graph.name}, which is quantised")
    return Interpreter(graph).run(feeds)


def run_int(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Execute a quantised graph once, exactly; every tensor by name."""
    if not graph.quantised:
        raise ExportError(f"expected a quantised graph, got {graph.name}, which is float")
    return Interpreter(graph).run(feeds)


def _check_feeds(graph: Graph, feeds: Mapping[str, Array]) -> None:
    if set(feeds) != set(graph.inputs):
        raise ExportError(f"{graph.name}: expected the inputs {graph.inputs}, got {sorted(feeds)}")
    for name, array in feeds.items():
        tensor = graph.tensors[name]
        if array.shape != tensor.shape or array.dtype != tensor.dtype:
            raise ExportError(
                f"{graph.name}: expected {name} to be {tensor.dtype} of shape {tensor.shape}, "
                f"got {array.dtype} of shape {array.shape}"
            )


def _step(graph: Graph, op: Op) -> tuple[Kernel, tuple[str, ...], str]:
    """Kernel of an operation, the inputs it is called with, its output; weights are bound here."""
    if op.kind in FUSED:
        return FUSED[op.kind].kernel(graph, op), op.inputs, op.output
    prepare = _prepare_int if graph.is_integer(op) else _prepare_float
    inputs = op.inputs[:1] if op.kind in WEIGHT_AXIS else op.inputs
    return prepare(graph, op), inputs, op.output


# Float kernels


def _prepare_float(graph: Graph, op: Op) -> Kernel:
    move = mover(op)
    if move is not None:
        return move
    if op.kind in WEIGHT_AXIS:
        weight, bias = (constant_of(graph, name, "float32") for name in op.inputs[1:])
        prepare = _depthwise_float if op.kind == "depthwise_conv2d" else _linear_float
        return prepare(op, weight, bias)
    if op.kind == "batch_matmul":
        return _matmul_float(op)
    if op.kind not in _FLOAT:
        raise ExportError(f"{graph.name}: expected a known operation, got {op.kind!r}")
    return _FLOAT[op.kind]


def _linear_float(op: Op, weight: Array, bias: Array) -> Kernel:
    matrix = np.ascontiguousarray(weight.reshape(len(weight), -1).T)
    relu = bool(op.attrs.get("relu"))

    def kernel(x: Array) -> Array:
        if op.kind == "conv2d":
            x = patches(x, weight.shape[1:3], op.attrs["stride"])
        y: Array = x @ matrix + bias
        y = np.maximum(y, np.float32(0)) if relu else y
        return y[np.newaxis] if op.kind == "conv2d" else y

    return kernel


def _depthwise_float(op: Op, weight: Array, bias: Array) -> Kernel:
    relu = bool(op.attrs.get("relu"))

    def kernel(x: Array) -> Array:
        taps = windows(x, weight.shape[1:3], op.attrs["stride"], op.attrs["dilation"])
        y: Array = np.einsum("tfklc,klc->tfc", taps, weight[0]) + bias
        return (np.maximum(y, np.float32(0)) if relu else y)[np.newaxis]

    return kernel


def _matmul_float(op: Op) -> Kernel:
    if op.attrs["transposed"]:
        return lambda x, y: x @ y.swapaxes(1, 2)
    return np.matmul


def _softmax_float(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    y: Array = e / e.sum(-1, keepdims=True)
    return y


def _norm_float(x: Array) -> Array:
    length = np.sqrt(np.square(x).sum(-1, keepdims=True))
    y: Array = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    return y


def _sigmoid(x: Array) -> Array:
    y: Array = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))
    return y


_FLOAT: dict[str, Kernel] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "softmax": _softmax_float,
    "l2_norm": _norm_float,
    "mean": lambda x: x.mean(-1, keepdims=True),
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "requantise": lambda x: x,
}


# Integer kernels


def _prepare_int(graph: Graph, op: Op) -> Kernel:
    params = op_params(graph, op)
    if isinstance(params, AccumulatorParams):
        weight = constant_of(graph, op.inputs[1], "int8")
        bias = constant_of(graph, op.inputs[2], "int32")
        prepare = _depthwise_int if op.kind == "depthwise_conv2d" else _linear_int
        return prepare(op, params, weight, bias)
    if isinstance(params, SumParams):
        return _sum_int(params, -1 if op.kind == "sub" else 1)
    if isinstance(params, RequantiseParams):
        return _requantise_int(params)
    if isinstance(params, MulParams):
        return _mul_int(params)
    if isinstance(params, MatmulParams):
        return _matmul_int(op, params)
    if isinstance(params, MeanParams):
        return _mean_int(params)
    if isinstance(params, SoftmaxParams):
        return _softmax_int(params)
    if isinstance(params, NormParams):
        return _norm_int(params)
    if isinstance(params, TableParams):
        table = params.table
        return lambda x: table[x.astype(np.int64) + 128]
    if isinstance(params, ReluParams):
        floor = np.int8(params.zero_point)
        return lambda x: np.maximum(x, floor)
    move = mover(op, params.value if isinstance(params, PadParams) else 0)
    if move is None:
        raise ExportError(f"{graph.name}: {op.kind!r} has no integer kernel")
    return move


def _saturated(y: Int64, clamp: tuple[int, int]) -> Array:
    """The integers cut to `clamp`; int16 where that is wider than an int8."""
    return np.clip(y, *clamp).astype(np.int8 if clamp[1] <= 127 else np.int16)


def _linear_int(op: Op, params: AccumulatorParams, weight: Array, bias: Array) -> Kernel:
    # Products and sums stay far below 2**53, so a float64 matrix product is exact, and fast.
    matrix = np.ascontiguousarray(weight.reshape(len(weight), -1).T, np.float64)
    offset = bias.astype(np.int64) - params.input_zero_point * matrix.sum(0).astype(np.int64)

    def kernel(x: Array) -> Array:
        if op.kind == "conv2d":
            x = patches(x, weight.shape[1:3], op.attrs["stride"])
        accumulator = (x.astype(np.float64) @ matrix).astype(np.int64) + offset
        y = requantize(accumulator, params.multipliers, params.shifts)
        out = _saturated(y + params.output_zero_point, params.clamp)
        return out[np.newaxis] if op.kind == "conv2d" else out

    return kernel


def _depthwise_int(op: Op, params: AccumulatorParams, weight: Array, bias: Array) -> Kernel:
    wide = weight[0].astype(np.int64)

    def kernel(x: Array) -> Array:
        centred = x.astype(np.int64) - params.input_zero_point
        taps = windows(centred, weight.shape[1:3], op.attrs["stride"], op.attrs["dilation"])
        accumulator = np.einsum("tfklc,klc->tfc", taps, wide) + bias
        y = requantize(accumulator, params.multipliers, params.shifts)
        return _saturated(y + params.output_zero_point, params.clamp)[np.newaxis]

    return kernel


def _matmul_int(op: Op, params: MatmulParams) -> Kernel:
    zero_x, zero_y, zero_out = params.zero_points

    def kernel(x: Array, y: Array) -> Array:
        right = y.swapaxes(1, 2) if op.attrs["transposed"] else y
        # Sums stay far below 2**53, so a float64 matrix product is exact, and fast.
        accumulator = (x.astype(np.float64) - zero_x) @ (right.astype(np.float64) - zero_y)
        out = requantize(accumulator.astype(np.int64), params.multiplier, params.shift)
        return _saturated(out + zero_out, (-128, 127))

    return kernel


def _mean_int(params: MeanParams) -> Kernel:
    zero_x, zero_out = params.zero_points

    def kernel(x: Array) -> Array:
        total = (x.astype(np.int64) - zero_x).sum(-1, keepdims=True)
        out = requantize(total, params.multiplier, params.shift)
        return _saturated(out + zero_out, (-128, 127))

    return kernel


def _softmax_int(params: SoftmaxParams) -> Kernel:
    table = params.table.astype(np.int64)

    def kernel(x: Array) -> Array:
        wide = x.astype(np.int64)
        e = table[wide.max(-1, keepdims=True) - wide]
        total = e.sum(-1, keepdims=True)
        return _saturated((512 * e + total) // (2 * total) - 128, (-128, 127))

    return kernel


def _norm_int(params: NormParams) -> Kernel:
    def kernel(x: Array) -> Array:
        centred = x.astype(np.int64) - params.zero_point
        squares = np.square(centred).sum(-1, keepdims=True) << (2 * NORM_BITS)
        root = np.maximum(1, integer_root(squares))
        size = (np.abs(centred) * (2 * 128 << NORM_BITS) + root) // (2 * root)
        return _saturated(np.sign(centred) * size, (-128, 127))

    return kernel


def integer_root(x: Int64) -> Int64:
    """The largest integer whose square is at most x, 0 <= x < 2**52."""
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x
    result: Int64 = root + ((root + 1) * (root + 1) <= x)
    return result


def scaled_for_sum(params: SumParams, steps: Int64, k: int) -> Int64:
    """What input k of an add or sub, in steps from its zero point, contributes to the sum."""
    fine = steps << params.left_shift
    return multiply_by_quantized_multiplier(fine, params.multipliers[k], params.shifts[k])


def _sum_int(params: SumParams, sign: int) -> Kernel:
    def scaled(x: Array, k: int) -> Int64:
        return scaled_for_sum(params, x.astype(np.int64) - params.zero_points[k], k)

    def kernel(x: Array, y: Array) -> Array:
        total = scaled(x, 0) + sign * scaled(y, 1)
        out = multiply_by_quantized_multiplier(total, params.multipliers[2], params.shifts[2])
        return _saturated(out + params.zero_points[2], params.clamp)

    return kernel


def _requantise_int(params: RequantiseParams) -> Kernel:
    zero_x, zero_out = params.zero_points

    def kernel(x: Array) -> Array:
        y = requantize(x.astype(np.int64) - zero_x, params.multiplier, params.shift)
        return _saturated(y + zero_out, params.clamp)

    return kernel


def _mul_int(params: MulParams) -> Kernel:
    zero_x, zero_y, zero_out = params.zero_points

    def kernel(x: Array, y: Array) -> Array:
        product = (x.astype(np.int64) - zero_x) * (y.astype(np.int64) - zero_y)
        out = requantize(product, params.multiplier, params.shift)
        return _saturated(out + zero_out, params.clamp)

    return kernel


def zero_feeds(graph: Graph) -> dict[str, Array]:
    """Real zeros for every input: int8 zero points, float32 zeros, int32 blanks."""
    feeds: dict[str, Any] = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        value = tensor.quant.zero_point if tensor.quant is not None else 0
        feeds[name] = np.full(tensor.shape, value, tensor.dtype)
    return feeds
