"""Depthwise-separable temporal convolution: depthwise over time, pointwise over channels.

Frames are (B, T, C), channels last: so a pointwise convolution is one matrix product, and a
depthwise one a few multiply-adds of whole rows: on one core as fast as `torch.nn.Conv1d` or up to
four times faster, in training and in a stream. Each layer's `fused` gives the weights of the
convolution that it is, batch norm folded in, for export.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import State
from .norm import MaskedBatchNorm1d, fold_norm


class CausalDepthwiseConv1d(nn.Module):
    """Depthwise convolution over time that sees the past only, and batch norm.

    Output frame t reads input frames t, t - dilation, ..., t - (kernel - 1) * dilation. The
    streaming state is the last ``(kernel - 1) * dilation`` input frames, zeros at the start.
    `step` allows every partition of the frames.

    Parameters
    ----------
    channels : int
    kernel : int
        Taps.
    dilation : int
        Frames from one tap to the next.
    """

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        self.left = (kernel - 1) * dilation
        self.weight = nn.Parameter(torch.empty(kernel, channels))  # the oldest tap first
        nn.init.normal_(self.weight, std=kernel**-0.5)  # keeps the variance
        self.norm = MaskedBatchNorm1d(channels)

    def initial_state(self, batch: int = 1) -> State:
        """Zeros, (batch, left, channels)."""
        return (self.weight.new_zeros(batch, self.left, self.weight.shape[1]),)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by frames (B, t, C): as many frames, and the next state."""
        x = torch.cat([state[0], chunk], 1)
        return self.norm(self._convolve(x)), (x[:, x.shape[1] - self.left :],)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Convolve whole utterances.

        Parameters
        ----------
        x : (B, T, C)
        lengths : (B,) or None
            Valid frames; None: all. What stands after them has no effect on what stands before.

        Returns
        -------
        (B, T, C)
        """
        x = torch.cat([*self.initial_state(x.shape[0]), x], 1)
        out: Tensor = self.norm(self._convolve(x), lengths)
        return out

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight (C, 1, kernel) and bias (C,) of the `torch.nn.Conv1d` that does the same.

        In evaluation mode; on `left` zeros and the frames, with as many groups as channels.
        """
        return fold_norm(self.weight.t().unsqueeze(1), None, self.norm)

    def extra_macs(self, out: Tensor) -> int:
        """Multiply-accumulates of a call: these are no matrix product that could be counted."""
        return out.numel() * self.weight.shape[0]

    def _convolve(self, x: Tensor) -> Tensor:
        """(B, left + T, C) -> (B, T, C)."""
        out: Tensor = _Taps.apply(x, self.weight, self.dilation)  # type: ignore[no-untyped-call]
        return out


class _Taps(torch.autograd.Function):
    """Sum over taps k of weight k times the frames that begin at ``k * dilation``.

    Autograd of the sum itself would fill a tensor of zeros with each tap's gradient and add those
    up: its backward pass takes three times as long.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        """(B, left + T, C) and (kernel, C) -> (B, T, C)."""
        n_frames = x.shape[1] - (len(weight) - 1) * dilation
        out = x[:, :n_frames] * weight[0]
        for k in range(1, len(weight)):
            at = k * dilation
            out.addcmul_(x[:, at : at + n_frames], weight[k])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        """Keep what the backward pass reads."""
        x, weight, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Of the frames the same sum with its taps turned round; of a tap its products, summed."""
        x, weight = ctx.saved_tensors
        places = [k * ctx.dilation for k in range(len(weight))]
        n_frames = gradient.shape[1]
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            left = x.shape[1] - n_frames
            padded = F.pad(gradient, (0, 0, left, left))
            of_x = padded[:, left : left + x.shape[1]] * weight[0]
            for at, tap in zip(places[1:], weight[1:], strict=True):
                of_x.addcmul_(padded[:, left - at : left - at + x.shape[1]], tap)
        if ctx.needs_input_grad[1]:
            products = [(gradient * x[:, at : at + n_frames]).sum((0, 1)) for at in places]
            of_weight = torch.stack(products)
        return of_x, of_weight, None


class Pointwise(nn.Module):
    """Pointwise convolution and batch norm: every frame by itself.

    Parameters
    ----------
    in_channels, out_channels : int
    relu : bool
        Whether ReLU follows.
    """

    def __init__(self, in_channels: int, out_channels: int, *, relu: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = MaskedBatchNorm1d(out_channels)
        self.relu = relu
        gain = 2 if relu else 1
        nn.init.normal_(self.linear.weight, std=(gain / in_channels) ** 0.5)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C'); `lengths` as in `MaskedBatchNorm1d`."""
        out: Tensor = self.norm(self.linear(x), lengths)
        return torch.relu(out) if self.relu else out

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight (C', C) and bias (C',) that do the same before the ReLU, in evaluation mode."""
        return fold_norm(self.linear.weight, None, self.norm)
