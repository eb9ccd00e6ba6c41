"""Kernels of operations that move elements and compute nothing, the same for every dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError

from .graph import Array, Op

Kernel = Callable[..., Array]


def windows(
    x: Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Array:
    """Windows of (1, T, F, C): (T', F', KT, KF, C)."""
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    taps = np.lib.stride_tricks.sliding_window_view(x[0], span, axis=(0, 1))
    taps = taps[:: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    moved: Array = taps.transpose(0, 1, 3, 4, 2)
    return moved


def patches(x: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """Windows of (1, T, F, C) as rows: (T', F', KT * KF * C), in the order of the weights."""
    taps = windows(x, kernel, stride)
    rows: Array = taps.reshape(*taps.shape[:2], -1)
    return rows


def _take(ids: npt.NDArray[np.int32], table: Array) -> Array:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
        raise ExportError(f"expected token ids in [0, {len(table)}), got {ids.tolist()}")
    rows: Array = table[ids]
    return rows


def mover(op: Op, pad_value: int = 0) -> Kernel | None:
    """Kernel of an operation that moves elements; None of one that does not."""
    attrs = op.attrs
    if op.kind == "concat":
        return lambda *xs: np.concatenate(xs, axis=attrs["axis"])
    if op.kind == "slice":
        cut = tuple(slice(b, b + n) for b, n in zip(attrs["begin"], attrs["size"], strict=True))
        return lambda x: x[cut]
    if op.kind == "reshape":
        return lambda x: x.reshape(attrs["shape"])
    if op.kind == "pad":
        return lambda x: np.pad(x, attrs["paddings"], constant_values=pad_value)
    if op.kind == "embedding":
        return _take
    if op.kind == "transpose":
        return lambda x: np.ascontiguousarray(x.transpose(attrs["perm"]))
    if op.kind == "minimum":
        return np.minimum
    if op.kind == "max_pool":
        return lambda x: windows(x, attrs["size"], attrs["stride"]).max((2, 3))[np.newaxis]
    return None
