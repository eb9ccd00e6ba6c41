"""The integers an operation needs at run time, derived from the quantised graph in one place.

`run_int` and the C emitter both read them here, so that a multiplier or a clamp exists once.
Multipliers, clamps and tables are those of TFLite's reference kernels, down to where they round to
float32; how an accumulator is rounded is not (see `fixed_point`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from .fixed_point import INT32_MAX, quantize_multiplier, quantize_multipliers
from .graph import WEIGHT_AXIS, WIDE_KINDS, Graph, Op, Tensor
from .param_types import (
    AccumulatorParams,
    MatmulParams,
    MeanParams,
    MoveParams,
    MulParams,
    NormParams,
    OpParams,
    PadParams,
    ReluParams,
    RequantiseParams,
    SoftmaxParams,
    SumParams,
    TableParams,
)

__all__ = [
    "EXP_BITS",
    "LIMITS",
    "LONGEST_ROW",
    "LONGEST_SOFTMAX",
    "NORM_BITS",
    "SUM_LEFT_SHIFT",
    "AccumulatorParams",
    "MatmulParams",
    "MeanParams",
    "MoveParams",
    "MulParams",
    "NormParams",
    "OpParams",
    "PadParams",
    "ReluParams",
    "RequantiseParams",
    "SoftmaxParams",
    "SumParams",
    "TableParams",
    "activation_clamp",
    "bias_scales",
    "constant_of",
    "op_params",
    "quant_of",
]
SUM_LEFT_SHIFT = {"int8": 20, "int16": 15}  # of add and sub: bits of fraction beside the input's
LIMITS = {"int8": (-128, 127), "int16": (-32768, 32767)}
EXP_BITS = 22  # fraction of a softmax's exponentials
LONGEST_SOFTMAX = 511  # their sum fits an int32; TFLite's reference kernel aborts from 512 on
LONGEST_ROW = 1024  # of an l2_norm or a mean
NORM_BITS = 10  # fraction of the square root


def op_params(graph: Graph, op: Op) -> OpParams:
    """Derive the run-time integers of one operation of a quantised graph.

    Raises
    ------
    ExportError
        If the graph is not quantised, scales that must agree differ, a constant is missing or
        of another dtype, or an int32 accumulator could overflow.
    """
    if op.kind not in _DERIVE:
        raise ExportError(f"expected an operation among {sorted(_DERIVE)}, got {op.kind!r}")
    _check_precision(graph, op)
    return _DERIVE[op.kind](graph, op)


def _check_precision(graph: Graph, op: Op) -> None:
    """Refuse int16 where runtimes do not have it, and operands of two precisions."""
    tensors = [graph.tensors[name] for name in (*op.inputs, op.output)]
    dtypes = {tensor.dtype for tensor in tensors}
    if op.kind == "requantise":
        sound = dtypes == {"int8", "int16"}
    else:
        one_shape = len({tensor.shape for tensor in tensors}) == 1
        sound = "int16" not in dtypes or (
            op.kind in WIDE_KINDS and one_shape and dtypes == {"int16"}
        )
    if not sound:
        raise ExportError(
            f"{graph.name}: {op.output}: expected {op.kind} of int8 (add and sub of one shape: or "
            f"all of int16; requantise: from one to the other), got {sorted(dtypes)}; requantise "
            "before it"
        )
    for tensor in tensors:
        if tensor.dtype == "int16" and quant_of(graph, tensor.name).zero_point:
            raise ExportError(
                f"{graph.name}: expected a zero point of 0 of {tensor.name}, which is int16, got "
                f"{tensor.quant}"
            )


def quant_of(graph: Graph, name: str) -> QuantParams:
    """Scale and zero point of a tensor of a quantised graph."""
    quant = graph.tensors[name].quant
    if quant is None:
        raise ExportError(
            f"{graph.name}: expected {name} to have a scale and a zero point; "
            "quantise the graph first"
        )
    return quant


def constant_of(graph: Graph, name: str, dtype: str) -> npt.NDArray[Any]:
    """Data of a constant tensor, which must have that dtype."""
    data = graph.tensors[name].data
    if data is None or data.dtype != dtype:
        found = "no data" if data is None else str(data.dtype)
        raise ExportError(f"{graph.name}: expected {name} to hold {dtype} data, got {found}")
    return data


def bias_scales(graph: Graph, op: Op) -> npt.NDArray[np.float32]:
    """Scale of every bias of an operation of `WEIGHT_AXIS`, (Cout,), in float32."""
    scales = graph.tensors[op.inputs[1]].weight_scales
    if scales is None:
        raise ExportError(f"{graph.name}: expected {op.inputs[1]} to have scales, got none")
    product: npt.NDArray[np.float32] = np.float32(quant_of(graph, op.inputs[0]).scale) * scales
    return product


def activation_clamp(op: Op, zero_point: int) -> tuple[int, int]:
    """Range of int8 outputs: all of it, or from the zero point where a ReLU is fused."""
    return (max(-128, zero_point) if op.attrs.get("relu") else -128), 127


def _accumulator(graph: Graph, op: Op) -> AccumulatorParams:
    x, weight, bias = op.inputs
    quant_in, quant_out = quant_of(graph, x), quant_of(graph, op.output)
    scales = graph.tensors[weight].weight_scales
    if scales is None:
        raise ExportError(f"{graph.name}: expected {weight} to have one scale an output channel")
    real = float(quant_in.scale) * scales.astype(np.float64) / float(quant_out.scale)
    multipliers, shifts = quantize_multipliers(real)
    axis = WEIGHT_AXIS[op.kind]
    _check_accumulator(
        graph.tensors[weight], graph.tensors[bias], axis, quant_in.zero_point, shifts
    )
    return AccumulatorParams(
        input_zero_point=quant_in.zero_point,
        output_zero_point=quant_out.zero_point,
        multipliers=multipliers,
        shifts=shifts,
        clamp=activation_clamp(op, quant_out.zero_point),
    )


def _check_accumulator(
    weight: Tensor, bias: Tensor, axis: int, zero_point: int, shifts: npt.NDArray[np.int64]
) -> None:
    """Refuse a layer whose int32 accumulator could overflow, before or after a left shift."""
    if weight.data is None or weight.data.dtype != np.int8 or bias.data is None:
        raise ExportError(f"expected int8 data in {weight.name} and int32 data in {bias.name}")
    largest_input = max(127 - zero_point, zero_point + 128)
    rows = np.moveaxis(weight.data.astype(np.int64), axis, 0)
    weights = np.abs(rows).reshape(len(rows), -1)
    bound = weights.sum(axis=1) * largest_input + np.abs(bias.data.astype(np.int64))
    worst = int((bound << np.maximum(shifts, 0)).max())
    if worst > INT32_MAX:
        raise ExportError(
            f"{weight.name}: the accumulator could reach {worst}, past int32 ({INT32_MAX}); "
            "the layer's output range is far smaller than its weights allow: calibrate on more data"
        )


def _sum(graph: Graph, op: Op) -> SumParams:
    dtype = graph.tensors[op.output].dtype
    left_shift = SUM_LEFT_SHIFT[dtype]
    quants = [quant_of(graph, name) for name in (*op.inputs, op.output)]
    scales = [float(quant.scale) for quant in quants]
    twice_max = 2 * max(scales[0], scales[1])
    reals = [scales[0] / twice_max, scales[1] / twice_max]
    reals.append(twice_max / ((1 << left_shift) * scales[2]))
    if reals[2] >= 1:
        raise ExportError(
            f"{graph.name}: {op.output} has a scale of {scales[2]}, too fine beside its inputs' "
            f"{scales[0]} and {scales[1]}; calibrate on more data"
        )
    pairs = [quantize_multiplier(real) for real in reals]
    return SumParams(
        zero_points=_three(quant.zero_point for quant in quants),
        multipliers=_three(multiplier for multiplier, _ in pairs),
        shifts=_three(shift for _, shift in pairs),
        left_shift=left_shift,
        clamp=LIMITS[dtype],
    )


def _requantise(graph: Graph, op: Op) -> RequantiseParams:
    x, y = quant_of(graph, op.inputs[0]), quant_of(graph, op.output)
    multiplier, shift = quantize_multiplier(float(x.scale) / float(y.scale))
    bits = 8 if graph.tensors[op.inputs[0]].dtype == "int8" else 16  # |x - zero point| < 2**bits
    if bits + shift > 30:
        raise ExportError(
            f"{graph.name}: {op.output} has a scale of {y.scale}, too fine beside its input's "
            f"{x.scale}; calibrate on more data"
        )
    clamp = LIMITS[graph.tensors[op.output].dtype]
    return RequantiseParams((x.zero_point, y.zero_point), multiplier, shift, clamp)


def _mul(graph: Graph, op: Op) -> MulParams:
    quants = [quant_of(graph, name) for name in (*op.inputs, op.output)]
    x, y, out = (np.float32(quant.scale) for quant in quants)
    multiplier, shift = quantize_multiplier(float(x * y / out))  # float32, as in TFLite's mul.cc
    if shift > 15:  # |product| < 2**16
        raise ExportError(
            f"{graph.name}: {op.output} has a scale of {out}, too fine beside its inputs' "
            f"{x} and {y}; calibrate on more data"
        )
    return MulParams(
        zero_points=_three(quant.zero_point for quant in quants),
        multiplier=multiplier,
        shift=shift,
        clamp=(-128, 127),
    )


def _matmul(graph: Graph, op: Op) -> MatmulParams:
    product = _mul(graph, op)
    depth = graph.tensors[op.inputs[0]].shape[-1]
    if depth << (16 + max(product.shift, 0)) > INT32_MAX:
        raise ExportError(
            f"{graph.name}: {op.output}: the accumulator of {depth} products could pass int32; "
            "its output range is far smaller than its inputs allow: calibrate on more data"
        )
    return MatmulParams(product.zero_points, product.multiplier, product.shift)


def _mean(graph: Graph, op: Op) -> MeanParams:
    x, y = quant_of(graph, op.inputs[0]), quant_of(graph, op.output)
    n = _row_length(graph, op)
    multiplier, shift = quantize_multiplier(float(x.scale) / (n * float(y.scale)))
    if n << (8 + max(shift, 0)) > INT32_MAX:
        raise ExportError(
            f"{graph.name}: {op.output} has a scale of {y.scale}, too fine beside its input's "
            f"{x.scale}; calibrate on more data"
        )
    return MeanParams((x.zero_point, y.zero_point), multiplier, shift)


def _softmax(graph: Graph, op: Op) -> SoftmaxParams:
    _row_length(graph, op, LONGEST_SOFTMAX)
    _require_output(graph, op, QuantParams(scale=1 / 256, zero_point=-128))
    steps = np.arange(256, dtype=np.float64) * float(quant_of(graph, op.inputs[0]).scale)
    return SoftmaxParams(np.rint(np.exp(-steps) * 2.0**EXP_BITS).astype(np.int32))


def _norm(graph: Graph, op: Op) -> NormParams:
    _row_length(graph, op)
    _require_output(graph, op, QuantParams(scale=1 / 128, zero_point=0))
    return NormParams(quant_of(graph, op.inputs[0]).zero_point)


def _row_length(graph: Graph, op: Op, longest: int = LONGEST_ROW) -> int:
    """Length of the last axis, over which sums must fit an int32."""
    n = graph.tensors[op.inputs[0]].shape[-1]
    if n > longest:
        raise ExportError(
            f"{graph.name}: {op.output}: expected at most {longest} elements over the last "
            f"axis, got {n}"
        )
    return n


def _require_output(graph: Graph, op: Op, quant: QuantParams) -> None:
    if quant_of(graph, op.output) != quant:
        raise ExportError(
            f"{graph.name}: expected the output of {op.kind} {op.output} to have {quant}, got "
            f"{quant_of(graph, op.output)}"
        )


def _three(values: Any) -> tuple[int, int, int]:
    a, b, c = values
    return a, b, c


def _table(function: Callable[[Any], Any]) -> Callable[[Graph, Op], TableParams]:
    def derive(graph: Graph, op: Op) -> TableParams:
        quant_in, quant_out = quant_of(graph, op.inputs[0]), quant_of(graph, op.output)
        q = np.arange(-128, 128, dtype=np.float64)
        y = function((q - quant_in.zero_point) * float(quant_in.scale))
        rounded = np.rint(y / float(quant_out.scale)) + quant_out.zero_point
        return TableParams(np.clip(rounded, -128, 127).astype(np.int8))

    return derive


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    y: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * x))  # never overflows
    return y


def _require_one_scale(graph: Graph, op: Op) -> QuantParams:
    """The quantisation shared by all activations of an operation that does not requantise."""
    out = quant_of(graph, op.output)
    for name in op.inputs:
        tensor = graph.tensors[name]
        if tensor.dtype != "int32" and tensor.quant != out:
            raise ExportError(
                f"{graph.name}: {op.kind} does not requantise, so {name} and {op.output} must "
                f"share one scale and zero point, got {tensor.quant} and {out}"
            )
    return out


def _move(graph: Graph, op: Op) -> MoveParams:
    _require_one_scale(graph, op)
    return MoveParams()


def _relu(graph: Graph, op: Op) -> ReluParams:
    return ReluParams(_require_one_scale(graph, op).zero_point)


def _pad(graph: Graph, op: Op) -> PadParams:
    return PadParams(_require_one_scale(graph, op).zero_point)


_DERIVE: dict[str, Callable[[Graph, Op], OpParams]] = {
    "conv2d": _accumulator,
    "depthwise_conv2d": _accumulator,
    "fully_connected": _accumulator,
    "batch_matmul": _matmul,
    "softmax": _softmax,
    "l2_norm": _norm,
    "mean": _mean,
    "minimum": _move,
    "max_pool": _move,
    "transpose": _move,
    "add": _sum,
    "sub": _sum,
    "requantise": _requantise,
    "mul": _mul,
    "sigmoid": _table(_sigmoid),
    "tanh": _table(np.tanh),
    "relu": _relu,
    "embedding": _move,
    "concat": _move,
    "slice": _move,
    "pad": _pad,
    "reshape": _move,
}
