"""Streaming encoder of temporal convolutions alone, for devices that run nothing else.

After MDTC (Hou et al. 2021, arXiv:2102.13552), whose blocks and sum over stacks it takes; the
first layer is a full convolution that subsamples, where MDTC has one more block. Every operation is
a convolution, a depthwise convolution, an addition, or a ReLU right after a convolution or an
addition, whose fused activation it becomes. ESPHome's micro_wake_word allows them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from edge_imputer.specs import FrameSpec, TcnSpec

from ..layers.base import State
from ..layers.depthwise import CausalDepthwiseConv1d, Pointwise
from .base import Encoder


class Stem(nn.Module):
    """Strided convolution over time and all bands, batch norm, ReLU; it sees the past only.

    Output frame u reads feature frames up to ``stride * (u + 1) - 1``. The streaming state is the
    last ``kernel - stride`` feature frames, zeros at the start.
    """

    def __init__(self, n_mels: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.n_mels, self.kernel, self.stride = n_mels, kernel, stride
        self.conv = Pointwise(kernel * n_mels, channels, relu=True)

    def initial_state(self, batch: int = 1) -> State:
        """Zeros, (batch, kernel - stride, n_mels)."""
        weight = self.conv.linear.weight
        return (weight.new_zeros(batch, self.kernel - self.stride, self.n_mels),)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, t, n_mels), t a multiple of the stride -> (B, t / stride, C), next state."""
        x = torch.cat([state[0], chunk], 1)
        return self.conv(self._windows(x)), (x[:, x.shape[1] - state[0].shape[1] :],)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, n_mels) -> (B, T // stride, C); `lengths` (B,) counts output frames."""
        x = torch.cat([*self.initial_state(x.shape[0]), x], 1)
        out: Tensor = self.conv(self._windows(x), lengths)
        return out

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight (C, n_mels, kernel) and bias (C,) of the `torch.nn.Conv1d` before the ReLU."""
        weight, bias = self.conv.fused()
        return weight.view(len(weight), self.n_mels, self.kernel), bias

    def _windows(self, x: Tensor) -> Tensor:
        """(B, kernel - stride + T, n_mels) -> (B, T // stride, n_mels * kernel)."""
        return x.unfold(1, self.kernel, self.stride).flatten(2)


class TcnBlock(nn.Module):
    """Residual block: depthwise convolution over time, pointwise, ReLU, pointwise; then ReLU.

    Batch norm follows every convolution. Streaming state and partitions are those of the depthwise
    convolution.
    """

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.depthwise = CausalDepthwiseConv1d(channels, kernel, dilation)
        self.pointwise = Pointwise(channels, channels, relu=True)
        self.project = Pointwise(channels, channels)

    @torch.no_grad()
    def scale_residual(self, n_blocks: int) -> None:
        """Scale the branch so that the sum of `n_blocks` keeps its size, however many they are."""
        self.project.norm.weight.fill_(n_blocks**-0.5)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by frames (B, t, C): as many frames, and the next state."""
        out, state = self.depthwise.step(chunk, state)
        return torch.relu(chunk + self.project(self.pointwise(out))), state

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C); `lengths` (B,) keep padding out of batch statistics."""
        out = self.pointwise(self.depthwise(x, lengths), lengths)
        return torch.relu(x + self.project(out, lengths))


class TcnEncoder(Encoder):
    """Log-mel frames -> encoder frames, by convolutions over time.

    A `Stem`, then blocks in stacks; the output is the sum of all stacks' outputs, or the last
    one's. Every layer looks at the past only, so frames past an utterance's end cannot reach the
    ones before it; in training they have no part in the batch statistics either.

    `step` allows steps of whole encoder frames. The streaming state is one tensor of constant size
    for each layer that sees earlier frames, stem first.
    """

    def __init__(self, spec: TcnSpec, features: FrameSpec) -> None:
        super().__init__()
        spec.check()
        self.spec = spec
        self.n_mels = features.n_mels
        self.d_model = spec.d_model
        self.subsampling = spec.subsampling
        self.receptive_field = spec.receptive_field
        self.stem = Stem(features.n_mels, spec.channels, spec.stem_kernel, spec.subsampling)
        self.stacks = nn.ModuleList(
            nn.ModuleList(TcnBlock(spec.channels, spec.kernel, dilation) for dilation in stack)
            for stack in spec.stacks
        )
        for stack in self._stacks:
            for block in stack:
                block.scale_residual(len(spec.dilations))

    @property
    def _stacks(self) -> Iterable[Iterable[TcnBlock]]:
        return cast(Iterable[Iterable[TcnBlock]], self.stacks)

    def initial_state(self, batch: int = 1) -> State:
        """Zeros: the stem's last feature frames, then each block's last frames."""
        layers: list[Stem | CausalDepthwiseConv1d] = [self.stem]
        layers += [block.depthwise for stack in self._stacks for block in stack]
        return tuple(kept for layer in layers for kept in layer.initial_state(batch))

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by whole encoder frames.

        Parameters
        ----------
        chunk : (B, T, n_mels), T a multiple of ``spec.subsampling``
        state : from `initial_state` or the previous call

        Returns
        -------
        encoder_out : (B, T / subsampling, channels)
        state : tuple of tensors
        """
        self._check_features(chunk, multiple_of=self.subsampling)
        if not chunk.shape[1]:
            return chunk.new_zeros(len(chunk), 0, self.d_model), state
        kept = iter(state)
        out, states = self.stem.step(chunk, (next(kept),))
        scales = []
        for stack in self._stacks:
            for block in stack:
                out, last = block.step(out, (next(kept),))
                states += last
            scales.append(out)
        return self._join(scales), states

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole utterances.

        Parameters
        ----------
        x : (B, T, n_mels)
            T a multiple of ``spec.subsampling``.
        lengths : (B,)
            Valid feature frames, multiples of ``spec.subsampling``.

        Returns
        -------
        encoder_out : (B, T / subsampling, channels)
        encoder_out_lens : (B,)
        """
        self._check_features(x, multiple_of=self.subsampling)
        lengths = lengths // self.spec.subsampling
        out = self.stem(x, lengths)
        scales = []
        for stack in self._stacks:
            for block in stack:
                out = block(out, lengths)
            scales.append(out)
        return self._join(scales), lengths

    def _join(self, scales: list[Tensor]) -> Tensor:
        """One output of the stacks' outputs."""
        return sum(scales[:-1], start=scales[-1]) if self.spec.sum_stacks else scales[-1]
