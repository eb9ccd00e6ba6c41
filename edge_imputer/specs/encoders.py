"""Encoders: feature frames in, encoder frames out."""

from __future__ import annotations

from math import prod

from ..errors import SpecError
from .base import Spec


class ConvSpec(Spec, frozen=True, kw_only=True):
    """One causal 2-D convolution over (time, frequency), followed by ReLU.

    In time the left context is the last ``kernel_time - stride_time`` frames (the streaming
    state); in frequency the input is zero-padded by ``kernel_freq // 2`` on both sides.
    """

    channels: int
    kernel_time: int = 3
    kernel_freq: int = 3
    stride_time: int = 2
    stride_freq: int = 2

    def out_freq(self, n_freq: int) -> int:
        """Frequency bins after this layer."""
        return (n_freq + 2 * (self.kernel_freq // 2) - self.kernel_freq) // self.stride_freq + 1

    def check(self) -> None:
        """Raise `SpecError` on a convolution that cannot be, or would skip frames."""
        if self.channels < 1:
            raise SpecError(f"expected channels >= 1 in every convolution, got {self.channels}")
        if not self.kernel_time >= self.stride_time >= 1:
            raise SpecError(
                "expected kernel_time >= stride_time >= 1 in every convolution, got "
                f"{self.kernel_time} and {self.stride_time}"
            )
        if min(self.kernel_freq, self.stride_freq) < 1:
            raise SpecError(
                "expected kernel_freq and stride_freq >= 1 in every convolution, got "
                f"{self.kernel_freq} and {self.stride_freq}"
            )


class CrnnSpec(Spec, frozen=True, kw_only=True, tag="crnn", tag_field="kind"):
    """Streaming CRNN: causal convolutions, then unidirectional GRU layers with explicit state."""

    conv: tuple[ConvSpec, ...] = (ConvSpec(channels=8), ConvSpec(channels=24))
    gru_layers: int = 1
    hidden: int = 128

    @property
    def subsampling(self) -> int:
        """Feature frames per encoder frame."""
        return prod(layer.stride_time for layer in self.conv)

    @property
    def step_features(self) -> int:
        """Feature frames of the shortest step of a stream; longer ones are multiples of it."""
        return self.subsampling

    @property
    def d_model(self) -> int:
        """Width of an encoder frame."""
        return self.hidden

    def conv_freq(self, n_mels: int) -> tuple[int, ...]:
        """Frequency bins before the first convolution and after each one."""
        bins = [n_mels]
        for layer in self.conv:
            bins.append(layer.out_freq(bins[-1]))
        return tuple(bins)

    def check(self) -> None:
        """Raise `SpecError` on a network that cannot be built."""
        if not self.conv or self.gru_layers < 1 or self.hidden < 1:
            raise SpecError("expected at least one convolution, one GRU layer and hidden >= 1")
        for layer in self.conv:
            layer.check()
