"""Fixed-point requantisation in exact numpy integers.

A real multiplier is held as ``multiplier * 2**(shift - 31)`` with an int32 multiplier in
[2**30, 2**31) and a power of two (Jacob et al. 2018, arXiv:1712.05877, section 2.2).

The accumulators of convolutions, fully connected layers, products and means are rounded *once*
(`requantize`, what TFLite calls ``TFLITE_SINGLE_ROUNDING``): that is the rounding of the real
number, which LiteRT's XNNPACK kernels and onnxruntime compute in floating point, so the three
runtimes give the same integers but for ties. The older *double* rounding of gemmlowp (a rounding
high multiplication, then a rounding shift) differs from them in up to 0.4 % of the outputs of a
layer, enough to change 13 of 220 transcripts of a weak model. Sums keep it, as TFLite's add and sub
do: there a difference to the other runtimes is rarer still. Everything works on int64 arrays that
hold int32 values, and on scalars.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError

Int64 = npt.NDArray[np.int64]
INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Write a real multiplier as an int32 and a power of two.

    Parameters
    ----------
    real : float
        Non-negative and finite.

    Returns
    -------
    multiplier : int
        In [2**30, 2**31), or 0 where `real` is below 2**-32: every result would be shifted out.
    shift : int
        ``real`` is about ``multiplier * 2**(shift - 31)``; -31 or more.

    Raises
    ------
    ExportError
        If `real` is negative, not finite, or 2**31 or more.
    """
    if not math.isfinite(real) or real < 0 or real >= 2.0**31:
        raise ExportError(
            f"expected a requantisation multiplier in [0, 2**31), got {real}; "
            "a scale is zero, negative, not finite or out of proportion: calibrate again"
        )
    if real == 0:
        return 0, 0
    mantissa, shift = math.frexp(real)  # mantissa in [0.5, 1)
    multiplier = math.floor(mantissa * 2.0**31 + 0.5)  # the sum is exact in float64
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    return (multiplier, shift) if shift >= -31 else (0, 0)


def quantize_multipliers(real: npt.NDArray[np.float64]) -> tuple[Int64, Int64]:
    """`quantize_multiplier` of every element: (multipliers, shifts), both of shape (n,)."""
    pairs = [quantize_multiplier(float(value)) for value in np.ravel(real)]
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def requantize(x: Any, multiplier: Any, shift: Any) -> Int64:
    """Scale int32 values by ``multiplier * 2**(shift - 31)``, rounding once; halves go up.

    Parameters
    ----------
    x : int64 array or int
        int32 values.
    multiplier, shift : int64 arrays or ints
        As `quantize_multiplier` gives them; broadcast against `x`.
    """
    total = 31 - np.asarray(shift, np.int64)  # 1 to 62
    product = np.asarray(x, np.int64) * np.asarray(multiplier, np.int64)
    result: Int64 = (product + (np.int64(1) << (total - 1))) >> total
    return result


def saturating_rounding_doubling_high_mul(a: Any, b: Any) -> Int64:
    """High 32 bits of ``2 * a * b``, rounded to nearest; halves go up.

    The only product that does not fit, that of two INT32_MIN, saturates to INT32_MAX.
    """
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    # C divides with truncation, after a nudge that depends on the sign; the sum of the two is
    # floor((product + 2**30) / 2**31), which an arithmetic shift computes.
    high = (product + (1 << 30)) >> 31
    result: Int64 = np.minimum(high, INT32_MAX)
    return result


def rounding_divide_by_pot(x: Any, exponent: Any) -> Int64:
    """Divide by ``2**exponent``, rounding to nearest; halves go away from zero."""
    x = np.asarray(x, np.int64)
    exponent = np.asarray(exponent, np.int64)
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    result: Int64 = (x >> exponent) + ((x & mask) > threshold)
    return result


def multiply_by_quantized_multiplier(x: Any, multiplier: Any, shift: Any) -> Int64:
    """Scale int32 values by ``multiplier * 2**(shift - 31)`` with TFLite's double rounding.

    Parameters
    ----------
    x : int64 array or int
        int32 values; with a positive shift, ``x << shift`` must fit int32 as well
        (`op_params` refuses graphs where it might not).
    multiplier, shift : int64 arrays or ints
        As `quantize_multiplier` gives them; broadcast against `x`.
    """
    shift = np.asarray(shift, np.int64)
    shifted = np.asarray(x, np.int64) << np.maximum(shift, 0)
    high = saturating_rounding_doubling_high_mul(shifted, multiplier)
    return rounding_divide_by_pot(high, np.maximum(-shift, 0))
