"""The microfrontend: the integer features of micro_wake_word, waveform -> (T, 40), with its bits.

ESPHome's micro_wake_word computes features by the microfrontend of TensorFlow Lite Micro
(``tensorflow/lite/experimental/microfrontend/lib``); this is an implementation of its own, in exact
integers over many frames at once, equal bit for bit to the package ``pymicro-features``. The steps,
each named after the file of that library which has it:

1. *window*: 30 ms of int16 samples times a Hann window in Q12.
2. *fft*: each frame is shifted left until its peak has 15 bits, zero-padded to 512 samples, and
   transformed in 16-bit fixed point (`fixed_fft`).
3. *filterbank*: energies of the bins, through triangles of 12-bit weights between 42 points equally
   spaced in mel; square root; the shift is taken back.
4. *noise_reduction*: of each channel, a running mean is subtracted, but a twentieth of the signal
   always stays. Even channels forget with 0.025 a frame, odd ones with 0.06.
5. *pcan_gain_control* (per-channel amplitude normalisation): times a gain of about
   (mean + 80)^-0.95, by a table of parabolas; squared where it is small.
6. *log_scale*: 64 times the natural logarithm, by a table of segments.

The float features are these values over 25.6, on which micro_wake_word models are trained, about 0
to 26; `quantized` is the int8 that ESPHome makes of them. Running means begin at 0, so what is
steady is loud at first, and fades within a second or two.

The library computes its tables in float32 when it starts, so they are only as exact as the C
library and the compiler: here they are those of an x86-64 build with glibc 2.36. Elsewhere, on
devices too, single filter weights may differ by one in 4096.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from .fixed_fft import Int16, real_fft
from .frontend import Float32, StreamingFrames, frame_blocks, stack
from .specs import MicroSpec

Int8 = npt.NDArray[np.int8]
UInt16 = npt.NDArray[np.uint16]
Int64 = npt.NDArray[np.int64]

BLOCK = 64  # frames computed at once: with 32 each takes half as long again

N_FFT = 512
F_MIN_HZ, F_MAX_HZ = 125.0, 7_500.0

WINDOW_BITS = 12
WEIGHT_BITS = 12  # of filters

MEAN_BITS = 10  # fraction of the running mean
SHARE_BITS = 14  # of the shares that follow
SHARES = 0.025, 0.06  # of the newest frame in the running mean, in even and odd channels
REMAINING = 0.05  # least part of the signal that stays

GAIN_BITS = 21
GAIN_EXPONENT, GAIN_OFFSET = 0.95, 80.0
DOWN_BITS = 3  # the filters give amplitudes over 2^3: log2(N_FFT) less, WEIGHT_BITS / 2 more
SNR_BITS = 12  # fraction of signal times gain
PCAN_BITS = 6  # fraction of what gain control gives

LOG_BITS = 16
LOG_SEGMENTS_BITS = 7
LN_2 = 45_426  # in 16 bits
LOG_SCALE_BITS = 6

# Bins whose weights hang on the last bit of log1pf: rounding them up is what follows from glibc
# 2.36, where it may be wrong; what rounds it correctly, as some C libraries do, rounds them down.
ROUNDED_UP = 149, 221

UNIT = np.float32(10 / 256)  # of a value in a float feature: 1 / 25.6


class Channels:
    """What each frame alone decides: window, FFT, filters, square root."""

    def __init__(self) -> None:
        self._window = hann_window_q12()[:, None]
        self._bins, weights = filterbank()
        self._weights = weights.astype(np.float64)

    def __call__(self, frames: Int16) -> Int64:
        """Amplitudes of the channels, over 8: int16 (t, 480) -> (t, 40)."""
        samples, shift = self._windowed(frames)
        spectrum = real_fft(samples)[:, self._bins].astype(np.int32)
        spectrum *= spectrum
        # In float64, where products and sums of these are exact: below 2^53.
        energy = self._weights @ (spectrum[0] + spectrum[1]).astype(np.float64)  # (40, t)
        signal: Int64 = (rounded_root(energy) >> shift).T
        return signal

    def _windowed(self, frames: Int16) -> tuple[Int16, UInt16]:
        """Frames scaled up and padded, (512, t), and by how many bits, (t,)."""
        n = frames.shape[1]
        samples = np.zeros((N_FFT, len(frames)), np.int16)
        product = frames.T * self._window
        product >>= WINDOW_BITS
        samples[:n] = product
        # In int16 the absolute value of -32768 is itself: no peak, so that it is shifted out.
        peak = np.abs(samples).max(axis=0)
        shift = (15 - _bit_length(peak)).astype(np.uint16)
        bits = samples.view(np.uint16)
        bits <<= shift
        return samples, shift


class GainControl:
    """What follows in time: noise reduction, gain control and logarithm of a stream's channels.

    Amplitudes are below 2^20 (Parseval; what wraps around in the FFT gets smaller), so nothing here
    reaches the 32 bits at which C would cut it off.
    """

    def __init__(self, n_channels: int) -> None:
        even, odd = (int(np.float32(share) * (1 << SHARE_BITS)) for share in SHARES)
        self._share = np.where(np.arange(n_channels) % 2, odd, even).astype(np.int64)
        self._kept = (1 << SHARE_BITS) - self._share
        self._remaining = int(np.float32(REMAINING) * (1 << SHARE_BITS))
        self._mean = np.zeros(n_channels, np.int64)  # in MEAN_BITS

    def __call__(self, signal: Int64) -> UInt16:
        """Values of the next frames, from their amplitudes over 8: (t, 40) -> (t, 40)."""
        scaled = signal << MEAN_BITS
        mean = self._running_mean(scaled)
        floor = (signal * self._remaining) >> SHARE_BITS
        reduced = np.maximum((scaled - np.minimum(mean, scaled)) >> MEAN_BITS, floor)
        ratio = (reduced * gain(mean)) >> (GAIN_BITS - DOWN_BITS - SNR_BITS)
        return log_scaled(shrunk(ratio) << DOWN_BITS)

    def _running_mean(self, scaled: Int64) -> Int64:
        """The mean after every frame, (t, 40); a new array."""
        means = scaled * self._share
        last = self._mean
        old = np.empty_like(last)
        for row in means:
            row += np.multiply(last, self._kept, out=old)
            row >>= SHARE_BITS
            last = row
        self._mean = last.copy()
        return means


class Microfrontend:
    """Features of a whole waveform."""

    def __init__(self, spec: MicroSpec) -> None:
        spec.check()
        self.spec = spec
        self._channels = Channels()

    def __call__(self, waveform: Float32) -> Float32:
        """Compute the features.

        Parameters
        ----------
        waveform : float32, (n,), in -1..1
            Is rounded to 16 bits, see `int16_samples`.

        Returns
        -------
        features : float32, (spec.n_frames(n), 40)
        """
        control = GainControl(self.spec.n_mels)
        blocks = frame_blocks(waveform, self.spec, BLOCK)
        return stack((self.rows(frames, control) for frames in blocks), self.spec)

    def rows(self, frames: Float32, control: GainControl) -> Float32:
        """Features of a stream's next frames, already cut: (t, 480) -> (t, 40)."""
        features: Float32 = control(self._channels(int16_samples(frames))) * UNIT
        return features


class StreamingMicrofrontend:
    """Features of a stream, equal bit for bit to `Microfrontend` of the whole."""

    def __init__(self, spec: MicroSpec) -> None:
        self.spec = spec
        self._whole = Microfrontend(spec)
        self._frames = StreamingFrames(spec)
        self._control = GainControl(spec.n_mels)

    def reset(self) -> None:
        """Forget the samples kept and the running means; the next push starts a new stream."""
        self._frames.reset()
        self._control = GainControl(self.spec.n_mels)

    def push(self, pcm: Float32) -> Float32:
        """Take the next samples, any number of them.

        Parameters
        ----------
        pcm : float32, (n,), in -1..1

        Returns
        -------
        features : float32, (t, 40)
            The frames whose last sample has arrived; t may be 0.
        """
        blocks = self._frames.push(pcm)
        return stack((self._whole.rows(frames, self._control) for frames in blocks), self.spec)


def int16_samples(waveform: Float32) -> Int16:
    """Samples in -1..1 as int16: times 2^15, ties to even, cut off at what int16 holds.

    What `edge_imputer.audio.check_pcm` made of int16 becomes the same int16 again.
    """
    scaled = np.rint(waveform * np.float32(1 << 15))
    samples: Int16 = scaled.clip(-(1 << 15), (1 << 15) - 1, out=scaled).astype(np.int16)
    return samples


def quantized(features: Float32) -> Int8:
    """What ESPHome's micro_wake_word gives a model: float features -> int8, of the same shape.

    A value v, that is 25.6 times a feature, becomes ``v * 256 / 666 - 128``, rounded half up, at
    most 127: about ``feature * 256 / 26 - 128``. In this integer rule the 666 stands for 25.6 * 26,
    and 256 for the 255 of a model's declared scale 26 / 255: an int8 read by that scale is 0.3 %
    above the feature that training saw.
    """
    value = np.rint(features / UNIT).astype(np.int32)
    steps: Int8 = np.minimum((value * 256 + 333) // 666 - 128, 127).astype(np.int8)
    return steps


# ------------------------------------------------------------------------------ functions


def rounded_root(x: npt.NDArray[np.float64]) -> Int64:
    """Square roots of integers below 2^48, rounded; a 32-bit number's has 16 bits at most."""
    root: Int64 = np.rint(np.sqrt(x)).astype(np.int64)
    root[(root == 1 << 16) & (x < 1 << 32)] -= 1
    return root


def gain(mean: Int64) -> Int64:
    """Gain in `GAIN_BITS` for running means in `MEAN_BITS`: a parabola between powers of two."""
    table = gain_parabolas()
    octave = _bit_length(mean)
    # Position within the octave: the 10 bits after the leading one.
    part = ((mean << 10) >> np.maximum(octave - 1, 0)) & 0x3FF
    constant, slope, bend = table[:, octave]
    rise = (((bend * part) >> 5) + (slope << 5)) * part
    found: Int64 = constant + ((rise + (1 << 14)) >> 15)
    return found


def shrunk(ratio: Int64) -> Int64:
    """Ratios (in `SNR_BITS`) less one, below 2 a quarter of their square: in `PCAN_BITS`."""
    small = np.minimum(ratio, 2 << SNR_BITS)
    square = (small * small) >> (2 + 2 * SNR_BITS - PCAN_BITS)
    line = (ratio >> (SNR_BITS - PCAN_BITS)) - (1 << PCAN_BITS)
    return np.where(ratio < 2 << SNR_BITS, square, line)


def log_scaled(value: Int64) -> UInt16:
    """The natural logarithm of uint32 numbers, 64 to the unit; 0 of 0 and of 1."""
    value = np.maximum(value, 1)
    octave = _bit_length(value) - 1
    part = ((value << LOG_BITS) >> octave) - (1 << LOG_BITS)
    table = log_segments()
    segment = part >> (LOG_BITS - LOG_SEGMENTS_BITS)
    start, end = table[segment], table[segment + 1]
    offset = part - (segment << (LOG_BITS - LOG_SEGMENTS_BITS))
    # Over 2^16 and not over a segment's 2^9: the library hardly interpolates, and so must this.
    log_2 = (octave << LOG_BITS) + part + start + (((end - start) * offset) >> LOG_BITS)
    half = 1 << (LOG_BITS - 1)
    natural = (LN_2 * log_2 + half) >> LOG_BITS
    scaled: UInt16 = (((natural << LOG_SCALE_BITS) + half) >> LOG_BITS).astype(np.uint16)
    return scaled


def _bit_length(x: npt.NDArray[np.int16] | Int64) -> npt.NDArray[np.int32]:
    """Bits of numbers from 0 to 2^53."""
    return np.asarray(np.frexp(x.astype(np.float64))[1], np.int32)


# ------------------------------------------------------------------------------ tables


@cache
def hann_window_q12() -> npt.NDArray[np.int32]:
    """The window, symmetric about its middle, (480,)."""
    one, half = np.float32(1 << WINDOW_BITS), np.float32(0.5)
    step = np.float32(np.pi) * np.float32(2) / np.float32(MicroSpec.frame_length)
    phase = step * (np.arange(MicroSpec.frame_length, dtype=np.float32) + half)
    window = half - half * np.cos(phase.astype(np.float64)).astype(np.float32)
    rounded: npt.NDArray[np.int32] = np.floor(window * one + half).astype(np.int32)
    return rounded


@cache
def filterbank() -> tuple[slice, npt.NDArray[np.int32]]:
    """The bins that the filters use, and their weights, (40, bins).

    A bin between two of the 42 points falls in the triangle around the lower one and in that around
    the upper one, with weights that are rounded each on its own.
    """
    n = MicroSpec.n_mels
    hz_per_bin = MicroSpec.sample_rate / N_FFT
    first, last = int(1.5 + F_MIN_HZ / hz_per_bin), int(F_MAX_HZ / hz_per_bin)
    mel = _mel(np.arange(first, last + 1) * hz_per_bin)
    low, high = _mel(np.array([F_MIN_HZ, F_MAX_HZ]))
    points = low + (high - low) / np.float32(n + 1) * np.arange(n + 2, dtype=np.float32)
    above = np.searchsorted(points[1:], mel).clip(max=n) + 1  # index of the point above a bin
    falling = (points[above] - mel) / (points[above] - points[above - 1])
    one, half = np.float32(1 << WEIGHT_BITS), np.float32(0.5)
    weights = np.zeros((n + 2, mel.size), np.int32)
    bins = np.arange(mel.size)
    weights[above - 1, bins] = np.floor(falling * one + half)
    weights[above, bins] = np.floor((1 - falling) * one + half)
    for bin_ in np.array(ROUNDED_UP) - first:
        weights[above[bin_] - 1, bin_] += 1
        weights[above[bin_], bin_] -= 1
    return slice(first, last + 1), weights[1:-1]


def _mel(hz: npt.NDArray[np.floating]) -> Float32:
    """The mel scale in float32: ``1127 log(1 + hz / 700)``."""
    ratio = hz.astype(np.float32) / np.float32(700)
    mel: Float32 = np.float32(1127) * np.log1p(ratio.astype(np.float64)).astype(np.float32)
    return mel


@cache
def gain_parabolas() -> Int64:
    """Constant, slope and bend of the gain by the bits of a running mean, (3, 33)."""
    low = np.exp2(np.arange(1, 32))  # where an octave begins
    end = np.minimum(2 * low, 2.0**32 - 1)
    constant, middle, last = (_gain_at(x) for x in (low, 1.5 * low, end))
    slope = 4 * (middle - constant) - (last - constant)
    bend = last - constant - slope
    first = np.array([_gain_at(np.arange(2.0)), [0, 0], [0, 0]], np.int64)  # of 0 and of 1
    return np.concatenate([first, [constant, slope, bend]], axis=1)


def _gain_at(mean: npt.NDArray[np.float64]) -> Int64:
    level = mean / (1 << (MEAN_BITS - DOWN_BITS)) + GAIN_OFFSET
    return np.floor((1 << GAIN_BITS) * level**-GAIN_EXPONENT + 0.5).astype(np.int64)


@cache
def log_segments() -> Int64:
    """How far log2(1 + x) is above x, x = k / 128, in `LOG_BITS`, (129,)."""
    n = 1 << LOG_SEGMENTS_BITS
    x = np.arange(n + 1) / n
    return np.floor((np.log2(1 + x) - x) * (1 << LOG_BITS) + 0.5).astype(np.int64)
