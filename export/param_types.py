"""What each operation of a quantised graph needs at run time, by its class.

`op_params` derives them; `run_int` and the C emitter read them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class AccumulatorParams:
    """conv2d, depthwise_conv2d, fully_connected: ``acc = bias + sum((x - zero_in) * w)``.

    ``y = clamp(requantize(acc, multiplier[c], shift[c]) + zero_out)``
    """

    input_zero_point: int
    output_zero_point: int
    multipliers: npt.NDArray[np.int64]  # (Cout,), int32 values
    shifts: npt.NDArray[np.int64]  # (Cout,), positive: to the left
    clamp: tuple[int, int]  # inclusive


@dataclass(frozen=True)
class SumParams:
    """add and sub: both inputs are brought to one fine scale, summed, and requantised.

    ``s_k = multiply(( x_k - zero_k) << left_shift, multiplier_k, shift_k)``, then
    ``y = clamp(multiply(s_x ± s_y, multiplier_out, shift_out) + zero_out)``; no shift is positive.
    """

    zero_points: tuple[int, int, int]  # x, y, output
    multipliers: tuple[int, int, int]
    shifts: tuple[int, int, int]
    left_shift: int  # 20 for int8, 15 for int16
    clamp: tuple[int, int]


@dataclass(frozen=True)
class RequantiseParams:
    """requantise: ``y = clamp(requantize(x - zero_in, multiplier, shift) + zero_out)``.

    From int8 to int16 the factor is 128, so that nothing is lost and nothing rounded.
    """

    zero_points: tuple[int, int]
    multiplier: int
    shift: int
    clamp: tuple[int, int]


@dataclass(frozen=True)
class MulParams:
    """mul: ``y = clamp(requantize((x - zero_x) * (y - zero_y), multiplier, shift) + zero_out)``."""

    zero_points: tuple[int, int, int]
    multiplier: int
    shift: int
    clamp: tuple[int, int]


@dataclass(frozen=True)
class MatmulParams:
    """batch_matmul: ``acc = sum((x - zero_x) * (y - zero_y))``, requantised as by mul."""

    zero_points: tuple[int, int, int]
    multiplier: int
    shift: int


@dataclass(frozen=True)
class MeanParams:
    """mean: ``y = clamp(requantize(sum(x - zero_in), multiplier, shift) + zero_out)``."""

    zero_points: tuple[int, int]
    multiplier: int
    shift: int


@dataclass(frozen=True)
class SoftmaxParams:
    """softmax: ``e = table[max(x) - x]``, ``y = min(-128 + round(256 * e / sum(e)), 127)``.

    Halves go up. Every exponential is one entry, so an int32 sum and one division an element are
    all that it takes. The rounding of the entries moves an output by less than a fiftieth of a
    step; TFLite's reference kernel computes the exponentials in fixed point, and is within one
    step.
    """

    table: npt.NDArray[np.int32]  # (256,), exp(-step * scale) * 2**EXP_BITS


@dataclass(frozen=True)
class NormParams:
    """l2_norm: ``y = round(128 * v / root)``, ``v = x - zero``, ``root = sqrt(sum(v * v))``.

    The root is the integer part of it times ``2**NORM_BITS``, which moves an output by less than a
    tenth of a step. Halves go away from zero, and a row of zeros stays zero. TFLite multiplies by
    the inverse root, and is within one step.
    """

    zero_point: int


@dataclass(frozen=True)
class TableParams:
    """sigmoid and tanh: ``y = table[x + 128]``."""

    table: npt.NDArray[np.int8]  # (256,)


@dataclass(frozen=True)
class ReluParams:
    """relu: ``y = max(x, zero_point)``."""

    zero_point: int


@dataclass(frozen=True)
class PadParams:
    """pad: the int8 value of a real zero."""

    value: int


@dataclass(frozen=True)
class MoveParams:
    """embedding, concat, slice, reshape, transpose, minimum, max_pool: no value is computed."""


OpParams = (
    AccumulatorParams
    | SumParams
    | RequantiseParams
    | MulParams
    | MatmulParams
    | MeanParams
    | SoftmaxParams
    | NormParams
    | TableParams
    | ReluParams
    | PadParams
    | MoveParams
)
