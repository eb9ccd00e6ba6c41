"""Strided convolutions that turn feature frames into fewer, wider frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.specs import ConvSpec

from .base import State, StreamingLayer
from .norm import MaskedBatchNorm1d, fold_norm


class SubsamplingConv2d(nn.Module):
    """`CausalConv2d` with a batch norm that padding has no part in: convolution, norm, ReLU.

    Output frame u reads input frames up to ``stride * (u + 1) - 1``. The streaming state is the
    last ``kernel_time - stride_time`` input frames, zeros at the start.
    """

    def __init__(self, in_channels: int, spec: ConvSpec) -> None:
        super().__init__()
        self.left = spec.kernel_time - spec.stride_time
        self.freq_pad = spec.kernel_freq // 2
        kernel, stride = (spec.kernel_time, spec.kernel_freq), (spec.stride_time, spec.stride_freq)
        self.conv = nn.Conv2d(in_channels, spec.channels, kernel, stride, bias=False)
        self.norm = MaskedBatchNorm1d(spec.channels)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def initial_state(self, batch: int, n_freq: int) -> State:
        """Zeros, (batch, in_channels, left, n_freq)."""
        zeros = self.conv.weight.new_zeros(batch, self.conv.in_channels, self.left, n_freq)
        return (zeros,)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, C, t, F), t a multiple of the stride -> (B, C', t / stride, F'), next state."""
        x = torch.cat([state[0], chunk], 2)
        return self._convolve(x, None), (x[:, :, x.shape[2] - self.left :],)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, C', T // stride, F'); `lengths` (B,) counts output frames."""
        x = torch.cat([*self.initial_state(len(x), x.shape[3]), x], 2)
        return self._convolve(x, lengths)

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight and bias (C',) of the `torch.nn.Conv2d` before the ReLU, in evaluation mode."""
        return fold_norm(self.conv.weight, None, self.norm)

    def _convolve(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, left + T, F) -> (B, C', T // stride, F')."""
        x = self.conv(F.pad(x, (self.freq_pad, self.freq_pad)))
        out: Tensor = self.norm(x.movedim(1, -1), lengths).movedim(-1, 1)
        return F.relu(out)


class Subsampling(StreamingLayer):
    """Feature frames (B, T, n_mels) -> frames (B, T // subsampling, d_model).

    Convolutions over time and frequency, then one linear layer over bands and channels. It sees
    the past only. `step` allows steps of whole output frames.

    Parameters
    ----------
    n_mels : int
    convs : tuple of ConvSpec
    d_model : int
    """

    def __init__(self, n_mels: int, convs: tuple[ConvSpec, ...], d_model: int) -> None:
        super().__init__()
        self.strides = [spec.stride_time for spec in convs]
        self.freq = [n_mels]  # bands before each convolution, and after all
        for spec in convs:
            self.freq.append(spec.out_freq(self.freq[-1]))
        channels = [1, *(spec.channels for spec in convs)]
        self.conv = nn.ModuleList(
            SubsamplingConv2d(c, spec) for c, spec in zip(channels, convs, strict=False)
        )
        self.linear = nn.Linear(self.freq[-1] * channels[-1], d_model)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def _convs(self) -> Iterable[SubsamplingConv2d]:
        return cast(Iterable[SubsamplingConv2d], self.conv)

    def initial_state(self, batch: int = 1) -> State:
        """One tensor a convolution, (batch, channels, left, bands)."""
        layers = zip(self._convs, self.freq, strict=False)
        return tuple(kept for conv, n in layers for kept in conv.initial_state(batch, n))

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by frames (B, t, n_mels), t a multiple of the subsampling."""
        x = chunk.unsqueeze(1)  # (B, 1, t, n_mels)
        states: State = ()
        for conv, kept in zip(self._convs, state, strict=True):
            x, last = conv.step(x, (kept,))
            states += last
        return self._join(x), states

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances of `lengths` (B,) feature frames; what is left of a frame is dropped."""
        x = x.unsqueeze(1)
        for conv, stride in zip(self._convs, self.strides, strict=True):
            lengths = lengths // stride
            x = conv(x, lengths)
        return self._join(x), lengths

    def _join(self, x: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, T, d_model)."""
        out: Tensor = self.linear(x.permute(0, 2, 3, 1).flatten(2))  # frequency-major, as NHWC
        return out
