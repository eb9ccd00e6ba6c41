"""Convolutions that see the past only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.specs import ConvSpec

from .norm import MaskedBatchNorm1d


class CausalConv2d(nn.Module):
    """2-D convolution over (time, frequency) and ReLU; in time it sees the past only.

    Output frame u reads input frames up to ``stride * (u + 1) - 1``. The streaming state is the
    last ``kernel_time - stride_time`` input frames, zeros at the start. Padding has no part in the
    statistics of its batch norm.
    """

    def __init__(self, in_channels: int, spec: ConvSpec) -> None:
        super().__init__()
        self.left = spec.kernel_time - spec.stride_time
        self.freq_pad = spec.kernel_freq // 2
        self.stride = (spec.stride_time, spec.stride_freq)
        self.conv = nn.Conv2d(
            in_channels, spec.channels, (spec.kernel_time, spec.kernel_freq), self.stride
        )
        self.norm = MaskedBatchNorm1d(spec.channels)  # folded into the convolution on export

    def initial_state(self, batch: int, n_freq: int) -> Tensor:
        """Zeros, (batch, in_channels, left, n_freq)."""
        return self.conv.weight.new_zeros(batch, self.conv.in_channels, self.left, n_freq)

    def step(self, chunk: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T, F), T a multiple of the stride -> (B, C', T / stride, F'), next state."""
        x = torch.cat([state, chunk], dim=2)
        return self._convolve(x, None), x[:, :, x.shape[2] - self.left :]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T, F) -> (B, C', T // stride, F'); `lengths` (B,) counts output frames."""
        x = torch.cat([self.initial_state(x.shape[0], x.shape[3]), x], dim=2)
        return self._convolve(x, lengths)

    def _convolve(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, left + T, F) -> (B, C', T // stride, F')."""
        x = self.conv(F.pad(x, (self.freq_pad, self.freq_pad)))
        out: Tensor = self.norm(x.movedim(1, -1), lengths).movedim(-1, 1)
        return F.relu(out)
