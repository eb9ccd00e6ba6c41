"""A quantised graph's operations in torch, with exact integers: the table from kind to function.

The counterpart of the integer kernels of `edge_imputer.export.reference`, with a batch before the
graph's axes and with gradients; see `exact` for what the tensors hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from ..graph import WEIGHT_AXIS, Array, Graph, Op
from ..op_params import (
    AccumulatorParams,
    MatmulParams,
    MeanParams,
    MulParams,
    NormParams,
    SoftmaxParams,
    SumParams,
    TableParams,
    bias_scales,
    constant_of,
    op_params,
    quant_of,
)
from . import exact
from .exact import FLOAT32_EXACT, LARGEST_STEP, Requantisation, Summation

Kernel = Callable[..., Tensor]


class Constants:
    """Constants of a quantised graph as steps, differentiable where they come from weights.

    Parameters
    ----------
    graph : Graph
        Quantised.
    floats : mapping from name to float32 Tensor
        What the weights make of these constants; of the others there is no gradient.
    device : torch.device
    """

    def __init__(self, graph: Graph, floats: Mapping[str, Tensor], device: torch.device) -> None:
        self.graph, self.floats, self.device = graph, floats, device

    def activation(self, name: str) -> Tensor:
        """A constant that is computed with like an activation, (1, ...)."""
        quant = quant_of(self.graph, name)
        steps = constant_of(self.graph, name, "int8").astype(np.float32) - quant.zero_point
        real = self.floats.get(name)
        inside = None
        if real is not None:
            free = real.detach() / quant.scale + quant.zero_point
            inside = (free > -128.5) & (free < 127.5)
        return self._steps(name, steps, inside, quant.scale)[None]

    def weight(self, op: Op) -> Tensor:
        """An operation's weight, whose largest elements are 127 steps."""
        name = op.inputs[1]
        scales = self.graph.tensors[name].weight_scales
        assert scales is not None  # of a quantised graph
        data = constant_of(self.graph, name, "int8")
        shape = [-1 if axis == WEIGHT_AXIS[op.kind] else 1 for axis in range(data.ndim)]
        scale = torch.tensor(scales, device=self.device).reshape(shape)
        return self._steps(name, data.astype(np.float32), None, scale)

    def bias(self, op: Op) -> Tensor:
        """An operation's bias, (Cout,) in float64, which holds every int32."""
        scale = torch.tensor(bias_scales(self.graph, op).astype(np.float64), device=self.device)
        data = constant_of(self.graph, op.inputs[2], "int32").astype(np.float64)
        return self._steps(op.inputs[2], data, None, scale)

    def _steps(
        self, name: str, steps: Array, inside: Tensor | None, scale: Tensor | float
    ) -> Tensor:
        whole = torch.tensor(steps, device=self.device)
        real = self.floats.get(name)
        return whole if real is None else exact.rounded(real.to(whole), whole, inside, scale)


def prepare(graph: Graph, op: Op, constants: Constants) -> Kernel:
    """The kernel of one operation, as a function of its activations (N, ...)."""
    params = op_params(graph, op)
    quants = [graph.tensors[name].quant for name in (*op.inputs, op.output)]
    device = constants.device
    if isinstance(params, AccumulatorParams):
        return _linear(op, params, constants)
    if isinstance(params, SumParams):
        sign = -1 if op.kind == "sub" else 1
        factors = _scale(quants[0]) / _scale(quants[2]), _scale(quants[1]) / _scale(quants[2])
        return partial(exact.summed, how=Summation.of(params, sign, factors, device))
    if isinstance(params, (MulParams, MatmulParams)):
        clamp = params.clamp if isinstance(params, MulParams) else (-128, 127)
        zero_out = params.zero_points[2]
        how = Requantisation.of(params.multiplier, params.shift, clamp, zero_out, device)
        return _product(op, how, graph.tensors[op.inputs[0]].shape[-1])
    if isinstance(params, MeanParams):
        how = Requantisation.of(
            params.multiplier, params.shift, (-128, 127), params.zero_points[1], device
        )
        return lambda x: exact.requantised(x.sum(-1, keepdim=True), None, how)
    if isinstance(params, SoftmaxParams):
        table = exact.softmax_table(params, device)
        return partial(exact.softmax, table=table, factor=256 * _scale(quants[0]))
    if isinstance(params, NormParams):
        return exact.l2_norm
    if isinstance(params, TableParams):
        return _lookup(op.kind, params, quants[0], quants[1], device)
    if op.kind not in _MOVERS:
        raise ExportError(f"{op.kind!r} has no kernel in torch; expected one of {sorted(_MOVERS)}")
    return partial(_MOVERS[op.kind], op.attrs)


def _scale(quant: QuantParams | None) -> float:
    assert quant is not None  # of every activation of a quantised graph
    return quant.scale


def _sum_dtype(largest: float) -> torch.dtype:
    """In which sums of products are exact, whatever their order, if they stay below `largest`."""
    return torch.float32 if largest < FLOAT32_EXACT else torch.float64


def _linear(op: Op, params: AccumulatorParams, constants: Constants) -> Kernel:
    """conv2d, depthwise_conv2d and fully_connected."""
    how = Requantisation.of(
        params.multipliers,
        params.shifts,
        params.clamp,
        params.output_zero_point,
        constants.device,
    )
    weight, bias = constants.weight(op), constants.bias(op)
    others = tuple(a for a in range(weight.dim()) if a != WEIGHT_AXIS[op.kind])
    dtype = _sum_dtype(LARGEST_STEP * float(weight.detach().abs().sum(others).max()))
    accumulate: Kernel = {
        "conv2d": lambda x: exact.convolved(x[:, 0], weight, op.attrs["stride"], dtype),
        "depthwise_conv2d": lambda x: _depthwise(op, x[:, 0].to(dtype), weight[0].to(dtype)),
        "fully_connected": lambda x: F.linear(x.to(dtype), weight.to(dtype)),
    }[op.kind]

    def kernel(x: Tensor) -> Tensor:
        y = exact.requantised(accumulate(x), bias, how)
        return y if op.kind == "fully_connected" else y[:, None]

    return kernel


def _depthwise(op: Op, x: Tensor, weight: Tensor) -> Tensor:
    """Accumulators of x (N, T, F, C) and a weight (KT, KF, C): one product a tap."""
    (t_step, f_step), (t_apart, f_apart) = op.attrs["stride"], op.attrs["dilation"]
    n_time = (x.shape[1] - (weight.shape[0] - 1) * t_apart - 1) // t_step + 1
    n_freq = (x.shape[2] - (weight.shape[1] - 1) * f_apart - 1) // f_step + 1
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for k in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            rows = slice(k * t_apart, k * t_apart + (n_time - 1) * t_step + 1, t_step)
            bands = slice(j * f_apart, j * f_apart + (n_freq - 1) * f_step + 1, f_step)
            total = total + x[:, rows, bands] * weight[k, j]
    return total


def _product(op: Op, how: Requantisation, depth: int) -> Kernel:
    """mul and batch_matmul."""
    if op.kind == "mul":
        return lambda x, y: exact.requantised(x * y, None, how)
    dtype = _sum_dtype(depth * float(LARGEST_STEP) ** 2)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        right = y.transpose(-1, -2) if op.attrs["transposed"] else y
        return exact.requantised(x.to(dtype) @ right.to(dtype), None, how)

    return kernel


def _lookup(
    kind: str,
    params: TableParams,
    x: QuantParams | None,
    y: QuantParams | None,
    device: torch.device,
) -> Kernel:
    """sigmoid and tanh."""
    assert x is not None
    assert y is not None
    real = (np.arange(-128, 128, dtype=np.float64) - x.zero_point) * x.scale
    value = np.tanh(real) if kind == "tanh" else 0.5 * (1 + np.tanh(0.5 * real))
    slope = 1 - value**2 if kind == "tanh" else value * (1 - value)
    free = np.rint(value / y.scale) + y.zero_point
    slope = np.where((free >= -128) & (free <= 127), slope, 0.0) * (x.scale / y.scale)
    tables = params.table.astype(np.float32) - y.zero_point, slope.astype(np.float32)
    table, slopes = (torch.tensor(array, device=device) for array in tables)
    return partial(exact.looked_up, table=table, slopes=slopes, zero_point=x.zero_point)


def _concat(attrs: Mapping[str, Any], *xs: Tensor) -> Tensor:
    n = max(len(x) for x in xs)
    return torch.cat([x.expand(n, *x.shape[1:]) for x in xs], attrs["axis"] + 1)


def _slice(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    for axis, (begin, size) in enumerate(zip(attrs["begin"], attrs["size"], strict=True), 1):
        x = x.narrow(axis, begin, size)
    return x


def _pad(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    return F.pad(x, [n for pair in reversed(attrs["paddings"]) for n in pair])


def _max_pool(attrs: Mapping[str, Any], x: Tensor) -> Tensor:
    pooled = F.max_pool2d(x[:, 0].movedim(-1, 1), attrs["size"], attrs["stride"])
    return pooled.movedim(1, -1)[:, None]


# Operations that do not requantise: what torch does with numbers is exact.
_MOVERS: dict[str, Callable[..., Tensor]] = {
    "embedding": lambda _, ids, table: F.embedding(ids, table[0]),
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "max_pool": _max_pool,
    "reshape": lambda attrs, x: x.reshape(-1, *attrs["shape"]),
    "transpose": lambda attrs, x: x.permute(0, *(axis + 1 for axis in attrs["perm"])),
    "minimum": lambda _, x, y: torch.minimum(x, y),
    "relu": lambda _, x: torch.relu(x),
}
