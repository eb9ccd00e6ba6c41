"""Keyword classifiers over windows of 1.5 s."""

from __future__ import annotations

from ..errors import SpecError
from .base import Spec


class WindowedSpec(Spec, frozen=True, kw_only=True):
    """What classifiers over windows have in common.

    Such a network sees a whole window at once, so it does not stream inside one: a stream is scored
    window by window.

    Attributes
    ----------
    n_classes : int
        Class 0 is everything that is no keyword.
    window_frames : int
        Feature frames of a window: 1.5 s of centred frames (`PcenSpec.centred`).
    hop_frames : int
        Feature frames from one window to the next: a score every 100 ms.
    """

    n_classes: int = 2
    window_frames: int = 151
    hop_frames: int = 10

    @property
    def subsampling(self) -> int:
        """Feature frames per score."""
        return self.hop_frames

    @property
    def step_features(self) -> int:
        """Feature frames of the shortest step of a stream; longer ones are multiples of it."""
        return 1

    @property
    def d_model(self) -> int:
        """Width of what comes out: one window's logits."""
        return self.n_classes

    def n_windows(self, n_frames: int) -> int:
        """Windows of `n_frames` feature frames: at least one, the last one padded."""
        if n_frames < 1:
            return 0
        return 1 + max(0, -(-(n_frames - self.window_frames) // self.hop_frames))

    def check(self) -> None:
        """Raise `SpecError` on windows that cannot be."""
        if self.n_classes < 2:
            raise SpecError(f"expected n_classes >= 2, got {self.n_classes}")
        if not 1 <= self.hop_frames <= self.window_frames:
            raise SpecError(
                f"expected 1 <= hop_frames <= window_frames, got {self.hop_frames} and "
                f"{self.window_frames}; a longer hop skips frames"
            )


class WindowedCrnnSpec(
    WindowedSpec, frozen=True, kw_only=True, tag="crnn-windowed", tag_field="kind"
):
    """Keyword classifier over windows of 1.5 s (Arik et al. 2017, arXiv:1703.05390, section 2).

    One convolution over (time, frequency), bidirectional GRU layers, a dense layer on all their
    frames at once, a classifier. The defaults are the paper's 229,090 parameters, with its two
    classes, keyword or not; its family is what `channels` (N_C), `gru_layers` (R), `hidden` (N_R)
    and `dense` (N_F) span.

    Attributes
    ----------
    channels, kernel_time, kernel_freq, stride_time, stride_freq : int
        The convolution, with zeros around the window as TensorFlow's SAME padding puts them.
    gru_layers, hidden : int
        GRU layers, and units a layer in each direction.
    dense : int
        Units between the GRUs and the classifier.
    """

    channels: int = 32
    kernel_time: int = 20
    kernel_freq: int = 5
    stride_time: int = 8
    stride_freq: int = 2
    gru_layers: int = 2
    hidden: int = 32
    dense: int = 64

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
        super().check()
        if min(self.channels, self.gru_layers, self.hidden, self.dense) < 1:
            raise SpecError(
                "expected channels, gru_layers, hidden and dense >= 1, got "
                f"{self.channels}, {self.gru_layers}, {self.hidden} and {self.dense}"
            )
        time, freq = (self.kernel_time, self.stride_time), (self.kernel_freq, self.stride_freq)
        for name, (kernel, stride) in {"time": time, "freq": freq}.items():
            if not 1 <= stride <= kernel:
                raise SpecError(
                    f"expected kernel_{name} >= stride_{name} >= 1, got {kernel} and {stride}; "
                    "a longer stride skips input"
                )


class WindowedCnnSpec(
    WindowedSpec, frozen=True, kw_only=True, tag="cnn-windowed", tag_field="kind"
):
    """Convolutional keyword classifier over windows, the control for `WindowedCrnnSpec`.

    After ``cnn-trad-fpool3`` of Sainath and Parada 2015 (Interspeech, "Convolutional neural
    networks for small-footprint keyword spotting"): two convolutions over (time, frequency)
    without padding, max pooling over frequency after the first, a linear layer of low rank, a
    dense one, a classifier. Theirs sees 32 frames, with 64 channels; over windows of 1.5 s the
    first convolution moves on by 8 frames, as the windowed CRNN's does, and the channels are chosen
    for its size: 229,704 parameters with two classes, 614 more than the CRNN's.

    Attributes
    ----------
    channels : (int, int)
        Of the two convolutions.
    kernel_time, kernel_freq : (int, int)
        Their kernels.
    stride_time : int
        Feature frames by which the first one moves on.
    pool_freq : int
        Bands that are pooled into one after the first.
    linear : int
        Width of the layer of low rank, which has no activation.
    dense : int
        Units between it and the classifier.
    """

    channels: tuple[int, int] = (46, 56)
    kernel_time: tuple[int, int] = (20, 10)
    kernel_freq: tuple[int, int] = (8, 4)
    stride_time: int = 8
    pool_freq: int = 3
    linear: int = 32
    dense: int = 128

    def conv_shapes(self, n_mels: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Frames and bands of a window after the first convolution, pooled, and after the second.

        Where a kernel does not fit, a number is below 1.
        """
        frames = (self.window_frames - self.kernel_time[0]) // self.stride_time + 1
        bands = (n_mels - self.kernel_freq[0] + 1) // self.pool_freq
        second = frames - self.kernel_time[1] + 1, bands - self.kernel_freq[1] + 1
        return (frames, bands), second

    def n_parameters(self, n_mels: int) -> int:
        """Trainable parameters."""
        (first, second), (_, (frames, bands)) = self.channels, self.conv_shapes(n_mels)
        conv = first * (self.kernel_time[0] * self.kernel_freq[0] + 1)
        conv += second * (first * self.kernel_time[1] * self.kernel_freq[1] + 1)
        linear = self.linear * (frames * bands * second + 1)
        return conv + linear + self.dense * (self.linear + 1) + self.n_classes * (self.dense + 1)

    def n_macs(self, n_mels: int) -> int:
        """Multiply-accumulates a window, those of bands that pooling leaves out included."""
        (first, second), (before, (frames, bands)) = self.channels, self.conv_shapes(n_mels)
        conv = before[0] * (n_mels - self.kernel_freq[0] + 1) * first
        conv *= self.kernel_time[0] * self.kernel_freq[0]
        conv += frames * bands * second * first * self.kernel_time[1] * self.kernel_freq[1]
        dense = self.dense * (self.linear + self.n_classes)
        return conv + frames * bands * second * self.linear + dense

    def check(self, n_mels: int | None = None) -> None:
        """Raise `SpecError` on a network that cannot be built.

        Parameters
        ----------
        n_mels : int or None
            Bands of a feature frame, where they are known: the kernels must fit.
        """
        super().check()
        sizes = (*self.channels, *self.kernel_time, *self.kernel_freq)
        if min(*sizes, self.stride_time, self.pool_freq, self.linear, self.dense) < 1:
            raise SpecError(f"expected channels, kernels, stride, pool and widths >= 1, got {self}")
        if self.stride_time > self.kernel_time[0]:
            raise SpecError(
                f"expected stride_time of at most the first kernel's {self.kernel_time[0]} frames, "
                f"got {self.stride_time}; a longer stride skips input"
            )
        frames, bands = self.conv_shapes(n_mels or 1)[1]
        if frames < 1 or (n_mels is not None and bands < 1):
            raise SpecError(
                f"expected kernels that fit a window of {self.window_frames} frames and "
                f"{n_mels or 'any'} bands, got {self.kernel_time} frames and {self.kernel_freq} "
                f"bands, by steps of {self.stride_time} and {self.pool_freq}"
            )
