"""The affine map between real numbers and int8, the same for every backend.

``real = scale * (q - zero_point)``; scales are float32, rounding is half to even, as ONNX
QuantizeLinear does. Symmetric weights and the requantisation of accumulators are the exporter's.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt


class QuantParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Scale (a float32 value) and zero point of an int8 tensor."""

    scale: float
    zero_point: int


def quantize(real: npt.NDArray[Any], params: QuantParams) -> npt.NDArray[np.int8]:
    """Round real numbers to int8, saturating."""
    q = np.rint(real / np.float32(params.scale)) + params.zero_point
    out: npt.NDArray[np.int8] = np.clip(q, -128, 127).astype(np.int8)
    return out


def dequantize(q: npt.NDArray[np.int8], params: QuantParams) -> npt.NDArray[np.float32]:
    """Real numbers of int8 values."""
    centred = q.astype(np.float32) - np.float32(params.zero_point)
    real: npt.NDArray[np.float32] = centred * np.float32(params.scale)
    return real
