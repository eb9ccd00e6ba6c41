"""Exact integer arithmetic in torch, with the gradient of the real operation: straight-through.

Activations are *centred steps*: ``v = q - zero_point``, whole numbers in -255..255, float32, of
shape (N, ...) with a batch before the graph's own axes. A real zero is 0, whatever the zero point.
Every function here gives exactly the integers of `edge_imputer.export.reference`; its gradient is
that of the same operation on real numbers, zero where the output was clipped (Bengio et al. 2013,
arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..op_params import NORM_BITS, SoftmaxParams, SumParams
from ..reference import scaled_for_sum

LARGEST_STEP = 255  # of a centred activation, with either sign
FLOAT32_EXACT = 2**24  # whole numbers below it, and their sums, are exact in float32


def rounded(real: Tensor, exact: Tensor, inside: Tensor | None, scale: Tensor | float) -> Tensor:
    """Steps of real numbers: the value of `exact`, the gradient of ``real / scale``.

    Parameters
    ----------
    real : Tensor
    exact : Tensor, of its shape
        Whole numbers.
    inside : bool Tensor or None
        Where nothing was clipped; None: everywhere.
    scale : float, or Tensor that broadcasts
    """
    steps: Tensor = _Rounded.apply(real, exact, inside, scale)  # type: ignore[no-untyped-call]
    return steps


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, real: Tensor, exact: Tensor, inside: Tensor | None, scale: Tensor | float
    ) -> Tensor:
        ctx.inside, ctx.scale, ctx.dtype = inside, scale, real.dtype
        return exact

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradient / ctx.scale
        if ctx.inside is not None:
            gradient = gradient * ctx.inside
        return gradient.to(ctx.dtype), None, None, None


@dataclass(frozen=True)
class Requantisation:
    """``y = clamp(round(acc * multiplier * 2**(shift - 31)))`` in centred steps.

    Attributes
    ----------
    multiplier, half, total_shift : int64 Tensor, (Cout,) or ()
        ``total_shift`` is ``31 - shift``, 1 to 62; ``half`` is half of its power of two.
    factor : float32 Tensor, of their shape
        The real number that both stand for.
    low, high : int
        Of the output, in centred steps.
    """

    multiplier: Tensor
    half: Tensor
    total_shift: Tensor
    factor: Tensor
    low: int
    high: int

    @classmethod
    def of(
        cls,
        multiplier: Any,
        shift: Any,
        clamp: tuple[int, int],
        zero_point: int,
        device: torch.device,
    ) -> Requantisation:
        """From the integers of `op_params`; the clamp is that of the output with its zero point."""
        total = 31 - np.asarray(shift, np.int64)
        real = np.asarray(multiplier, np.float64) * 2.0 ** -total.astype(np.float64)
        return cls(
            multiplier=torch.tensor(np.asarray(multiplier, np.int64), device=device),
            half=torch.tensor(np.int64(1) << (total - 1), device=device),
            total_shift=torch.tensor(total, device=device),
            factor=torch.tensor(real.astype(np.float32), device=device),
            low=clamp[0] - zero_point,
            high=clamp[1] - zero_point,
        )


def requantised(accumulator: Tensor, bias: Tensor | None, how: Requantisation) -> Tensor:
    """Output of accumulators (..., Cout) of whole numbers, and of a bias (Cout,) in float64."""
    steps: Tensor = _Requantised.apply(accumulator, bias, how)  # type: ignore[no-untyped-call]
    return steps


class _Requantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, accumulator: Tensor, bias: Tensor | None, how: Requantisation) -> Tensor:
        y = accumulator.to(torch.int64)
        if bias is not None:
            y = y.add_(bias.to(torch.int64))
        y = y.mul_(how.multiplier).add_(how.half).bitwise_right_shift_(how.total_shift)
        out = y.clamp(how.low, how.high)
        ctx.save_for_backward(out == y, how.factor)
        ctx.dtypes = accumulator.dtype, bias is not None
        return out.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        inside, factor = ctx.saved_tensors
        dtype, biased = ctx.dtypes
        gradient = gradient * inside * factor
        of_bias = None
        if biased and ctx.needs_input_grad[1]:
            of_bias = gradient.flatten(0, -2).sum(0).double()
        return gradient.to(dtype), of_bias, None


@dataclass(frozen=True)
class Summation:
    """add and sub: the integers of `SumParams`, and the factors of the real sum in steps.

    `tables` (2, 511) are both inputs' contributions by their centred step plus 255.
    """

    tables: Tensor
    multiplier: int
    shift: int  # to the right
    factors: tuple[float, float]
    low: int
    high: int

    @classmethod
    def of(
        cls, params: SumParams, sign: int, factors: tuple[float, float], device: torch.device
    ) -> Summation:
        """`sign` is -1 for sub; `factors` are the inputs' scales over the output's."""
        steps = np.arange(-LARGEST_STEP, LARGEST_STEP + 1)
        tables = np.stack(
            [scaled_for_sum(params, steps, 0), sign * scaled_for_sum(params, steps, 1)]
        )
        return cls(
            torch.tensor(tables, device=device),
            params.multipliers[2],
            -params.shifts[2],
            (factors[0], sign * factors[1]),
            params.clamp[0] - params.zero_points[2],
            params.clamp[1] - params.zero_points[2],
        )


def summed(x: Tensor, y: Tensor, how: Summation) -> Tensor:
    """x + y, or x - y."""
    steps: Tensor = _Summed.apply(x, y, how)  # type: ignore[no-untyped-call]
    return steps


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, how: Summation) -> Tensor:
        parts = (
            table[(steps + LARGEST_STEP).to(torch.int64)]
            for table, steps in zip(how.tables, (x, y), strict=True)
        )
        total = sum(parts, start=torch.zeros((), dtype=torch.int64, device=x.device))
        high = total.mul_(how.multiplier).add_(1 << 30).bitwise_right_shift_(31)
        if how.shift:  # halves away from zero
            nudge = (high >> 63).add_(1 << (how.shift - 1))
            high = high.add_(nudge).bitwise_right_shift_(how.shift)
        out = high.clamp(how.low, how.high)
        ctx.save_for_backward(out == high)
        ctx.shapes, ctx.factors = (x.shape, y.shape), how.factors
        return out.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient = gradient * ctx.saved_tensors[0]
        of_x, of_y = (
            (gradient * factor).sum_to_size(shape)
            for factor, shape in zip(ctx.factors, ctx.shapes, strict=True)
        )
        return of_x, of_y, None


def looked_up(x: Tensor, table: Tensor, slopes: Tensor, zero_point: int) -> Tensor:
    """A function of one element: `table` and `slopes`, (256,), by its int8 plus 128."""
    steps: Tensor = _LookedUp.apply(x, table, slopes, zero_point)  # type: ignore[no-untyped-call]
    return steps


class _LookedUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, slopes: Tensor, zero_point: int) -> Tensor:
        index = (x + (zero_point + 128)).to(torch.int64)
        ctx.save_for_backward(index, slopes)
        return table[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        index, slopes = ctx.saved_tensors
        return gradient * slopes[index], None, None, None


def softmax(x: Tensor, table: Tensor, factor: float) -> Tensor:
    """Over the last axis; `table` is `SoftmaxParams.table`, int64, `factor` 256 input scales."""
    steps: Tensor = _Softmax.apply(x, table, factor)  # type: ignore[no-untyped-call]
    return steps


def softmax_table(params: SoftmaxParams, device: torch.device) -> Tensor:
    """Exponentials by the distance to the largest step, in float64, where they are exact."""
    return torch.tensor(params.table.astype(np.float64), device=device)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, factor: float) -> Tensor:
        e = table[(x.amax(-1, keepdim=True) - x).to(torch.int64)]
        total = e.sum(-1, keepdim=True)
        # Both below 2**33: a quotient of such that is no whole number rounds to none.
        steps = ((512 * e + total) / (2 * total)).floor_()
        out = steps.clamp(max=LARGEST_STEP)
        ctx.save_for_backward((e / total).float(), out == steps)
        ctx.factor = factor
        return out.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        share, inside = ctx.saved_tensors
        gradient = gradient * inside
        mean = (gradient * share).sum(-1, keepdim=True)
        return share * (gradient - mean) * ctx.factor, None, None


def l2_norm(x: Tensor) -> Tensor:
    """Rows over their length; outputs are steps of 1/128."""
    steps: Tensor = _L2Norm.apply(x)  # type: ignore[no-untyped-call]
    return steps


class _L2Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = x.to(torch.int64)
        root = _integer_root((wide * wide).sum(-1, keepdim=True) << (2 * NORM_BITS)).clamp_(min=1)
        size = (wide.abs() * (2 * 128 << NORM_BITS) + root) // (2 * root)
        steps = wide.sign() * size
        out = steps.clamp(-128, 127)
        length = x.square().sum(-1, keepdim=True).sqrt()
        ctx.save_for_backward(x, length, out == steps)
        return out.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, length, inside = ctx.saved_tensors
        alive = length > 0
        inverse = torch.where(alive, 1 / length, 0.0)
        direction = x * inverse
        gradient = gradient * inside
        along = (gradient * direction).sum(-1, keepdim=True)
        of_x: Tensor = (gradient - direction * along) * inverse * 128
        return of_x


def _integer_root(x: Tensor) -> Tensor:
    """`reference.integer_root`."""
    root = x.double().sqrt().to(torch.int64)
    root = root - (root * root > x).to(torch.int64)
    return root + ((root + 1) * (root + 1) <= x).to(torch.int64)


def convolved(x: Tensor, weight: Tensor, stride: tuple[int, int], exact: torch.dtype) -> Tensor:
    """Accumulators (N, T', F', Cout) of x (N, T, F, Cin) and a weight (Cout, KT, KF, Cin).

    By a product of patches, so that no algorithm but sums of products is chosen, in a dtype in
    which those are exact.
    """
    out: Tensor = _Convolved.apply(x, weight, stride, exact)  # type: ignore[no-untyped-call]
    return out


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], exact: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        n_out, *kernel, _ = weight.shape
        windows = x.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
        patches = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)
        return patches.to(exact) @ weight.reshape(n_out, -1).to(exact).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight = (y.movedim(-1, 1) for y in ctx.saved_tensors)
        wanted = [ctx.needs_input_grad[0], True, False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient.float().movedim(-1, 1),
            x,
            weight,
            None,
            ctx.stride,
            (0, 0),
            (1, 1),
            False,
            (0, 0),
            1,
            wanted,
        )
        return None if of_x is None else of_x.movedim(1, -1), of_weight.movedim(1, -1), None, None
