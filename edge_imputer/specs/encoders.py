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


class WindowedCrnnSpec(Spec, frozen=True, kw_only=True, tag="crnn-windowed", tag_field="kind"):
    """Keyword classifier over windows of 1.5 s (Arik et al. 2017, arXiv:1703.05390, section 2).

    One convolution over (time, frequency), bidirectional GRU layers, a dense layer on all their
    frames at once, a classifier. It sees a whole window in both directions, so it does not stream
    inside one: a stream is scored window by window. The defaults are the paper's 229,090
    parameters; its family is what `channels` (N_C), `gru_layers` (R), `hidden` (N_R) and `dense`
    (N_F) span.

    Attributes
    ----------
    channels, kernel_time, kernel_freq, stride_time, stride_freq : int
        The convolution, with zeros around the window as TensorFlow's SAME padding puts them.
    gru_layers, hidden : int
        GRU layers, and units a layer in each direction.
    dense : int
        Units between the GRUs and the classifier.
    n_classes : int
        The paper's two: class 1 the keyword, class 0 everything else.
    window_frames : int
        Feature frames of a window: 1.5 s of centred frames (`PcenSpec.centred`).
    hop_frames : int
        Feature frames from one window to the next: a score every 100 ms.
    """

    channels: int = 32
    kernel_time: int = 20
    kernel_freq: int = 5
    stride_time: int = 8
    stride_freq: int = 2
    gru_layers: int = 2
    hidden: int = 32
    dense: int = 64
    n_classes: int = 2
    window_frames: int = 151
    hop_frames: int = 10

    @property
    def subsampling(self) -> int:
        """Feature frames per score."""
        return self.hop_frames

    @property
    def d_model(self) -> int:
        """Width of what comes out: one window's logits."""
        return self.n_classes

    def n_windows(self, n_frames: int) -> int:
        """Windows of `n_frames` feature frames: at least one, the last one padded."""
        if n_frames < 1:
            return 0
        return 1 + max(0, -(-(n_frames - self.window_frames) // self.hop_frames))

    def conv_shape(self, n_mels: int) -> tuple[int, int, int]:
        """Frames, frequency bins and channels of a window after the convolution."""
        n_frames = -(-self.window_frames // self.stride_time)
        return n_frames, -(-n_mels // self.stride_freq), self.channels

    def gru_widths(self, n_mels: int) -> tuple[int, ...]:
        """Width of each GRU layer's input."""
        _, n_freq, channels = self.conv_shape(n_mels)
        return (n_freq * channels, *[2 * self.hidden] * (self.gru_layers - 1))

    def n_parameters(self, n_mels: int) -> int:
        """Trainable parameters, with one bias a GRU gate as in the paper.

        torch's GRU has two, which is ``6 * hidden`` more a layer: 229,474 instead of 229,090.
        """
        conv = self.channels * (self.kernel_time * self.kernel_freq + 1)
        gru = [2 * 3 * self.hidden * (width + self.hidden + 1) for width in self.gru_widths(n_mels)]
        flat = self.conv_shape(n_mels)[0] * 2 * self.hidden
        return conv + sum(gru) + self.dense * (flat + 1) + self.n_classes * (self.dense + 1)

    def n_macs(self, n_mels: int) -> int:
        """Multiply-accumulates a window, the convolution's on padding included."""
        n_frames, n_freq, channels = self.conv_shape(n_mels)
        conv = n_frames * n_freq * channels * self.kernel_time * self.kernel_freq
        gru = [2 * 3 * self.hidden * (width + self.hidden) for width in self.gru_widths(n_mels)]
        flat = n_frames * 2 * self.hidden
        return conv + n_frames * sum(gru) + self.dense * (flat + self.n_classes)

    def check(self) -> None:
        """Raise `SpecError` on a network that cannot be built."""
        if min(self.channels, self.gru_layers, self.hidden, self.dense) < 1 or self.n_classes < 2:
            raise SpecError(
                "expected channels, gru_layers, hidden and dense >= 1 and n_classes >= 2, got "
                f"{self.channels}, {self.gru_layers}, {self.hidden}, {self.dense} and "
                f"{self.n_classes}"
            )
        time, freq = (self.kernel_time, self.stride_time), (self.kernel_freq, self.stride_freq)
        for name, (kernel, stride) in {"time": time, "freq": freq}.items():
            if not 1 <= stride <= kernel:
                raise SpecError(
                    f"expected kernel_{name} >= stride_{name} >= 1, got {kernel} and {stride}; "
                    "a longer stride skips input"
                )
        if not 1 <= self.hop_frames <= self.window_frames:
            raise SpecError(
                f"expected 1 <= hop_frames <= window_frames, got {self.hop_frames} and "
                f"{self.window_frames}; a longer hop skips frames"
            )
