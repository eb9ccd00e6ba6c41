"""Log-mel front end: waveform -> (T, n_mels), whole or as it arrives, with the same bits.

Frame k covers samples ``[k * hop, k * hop + frame_length)``, is weighted by a periodic Hann
window and zero-padded on the right to `n_fft`; its power spectrum goes through HTK mel filters;
the output is ``(log(max(energy, log_floor)) - mean) / std``. float32 throughout (with numpy 1,
whose FFT knows only float64, the spectrum is computed in that).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from .errors import AudioFormatError, SpecError
from .specs import FeatureSpec, FrameSpec, MelSpec

Float32 = npt.NDArray[np.float32]

# Frames computed at once. Their spectrum just fits below the size from which malloc maps fresh
# pages for every call, which made the FFT four times slower.
BLOCK = 32


def hz_to_mel(hz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The HTK mel scale: ``2595 log10(1 + hz / 700)``."""
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hz, np.float64) / 700.0))


def mel_to_hz(mel: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Inverse of `hz_to_mel`."""
    return np.asarray(700.0 * (10.0 ** (np.asarray(mel, np.float64) / 2595.0) - 1.0))


def mel_filterbank(spec: MelSpec) -> Float32:
    """Triangular filters of height 1 between points equally spaced in mel.

    The triangles are evaluated at the FFT's bin frequencies; no area normalisation.

    Returns
    -------
    filters : float32, (n_fft // 2 + 1, n_mels)
        ``mel_energy = power_spectrum @ filters``.

    Raises
    ------
    SpecError
        A filter lies between two bins and would always be empty.
    """
    spec.check()
    points = mel_to_hz(
        np.linspace(hz_to_mel(spec.f_min_hz), hz_to_mel(spec.f_max_hz), spec.n_mels + 2)
    )
    low, centre, high = points[:-2], points[1:-1], points[2:]
    bins = np.arange(spec.n_fft // 2 + 1)[:, None] * (spec.sample_rate / spec.n_fft)
    filters = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    filters = np.maximum(filters, 0.0).astype(np.float32)
    empty = np.flatnonzero(filters.max(axis=0) <= 0)
    if empty.size:
        raise SpecError(
            f"mel band {empty[0]} ({low[empty[0]]:.0f} to {high[empty[0]]:.0f} Hz) holds none of "
            f"the {spec.n_fft // 2 + 1} FFT bins; use fewer n_mels than {spec.n_mels} or a larger "
            f"n_fft than {spec.n_fft}"
        )
    return filters


def hann_window(length: int) -> Float32:
    """Periodic Hann window, float32 (length,)."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


class MelEnergy:
    """Energies of the mel bands of frames already cut."""

    def __init__(self, spec: MelSpec) -> None:
        self.spec = spec
        self._filters = mel_filterbank(spec)  # (n_fft // 2 + 1, n_mels)
        self._window = hann_window(spec.frame_length)

    def __call__(self, frames: Float32) -> Float32:
        """(t, frame_length) -> (t, n_mels), a new array.

        Every row's bits depend on that row alone: the mel product is a stack of vector-matrix
        products, because a plain matrix product rounds differently for different t.
        """
        padded = np.zeros((len(frames), self.spec.n_fft), np.float32)
        np.multiply(frames, self._window, out=padded[:, : self.spec.frame_length])
        spectrum = np.fft.rfft(padded)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
        return (power[:, None, :] @ self._filters)[:, 0]


class LogMel:
    """Log-mel features of a whole waveform."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._energy = MelEnergy(spec)
        self._floor = np.float32(spec.log_floor)
        self._mean, self._std = np.float32(spec.mean), np.float32(spec.std)

    def __call__(self, waveform: Float32) -> Float32:
        """Compute the features.

        Parameters
        ----------
        waveform : float32, (n,)

        Returns
        -------
        log_mel : float32, (spec.n_frames(n), n_mels)
        """
        return stack((self.rows(frames) for frames in frame_blocks(waveform, self.spec)), self.spec)

    def rows(self, frames: Float32) -> Float32:
        """Features of frames already cut: (t, frame_length) -> (t, n_mels), row by row."""
        energy = self._energy(frames)
        np.log(np.maximum(energy, self._floor, out=energy), out=energy)
        energy -= self._mean
        energy /= self._std
        return energy


class StreamingLogMel:
    """Log-mel features of a stream, equal bit for bit to `LogMel` of the whole."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._log_mel = LogMel(spec)
        self._frames = StreamingFrames(spec)

    def reset(self) -> None:
        """Forget the samples kept; the next push starts a new stream."""
        self._frames.reset()

    def push(self, pcm: Float32) -> Float32:
        """Take the next samples, any number of them.

        Parameters
        ----------
        pcm : float32, (n,)

        Returns
        -------
        log_mel : float32, (t, n_mels)
            The frames whose last sample has arrived; t may be 0.
        """
        blocks = self._frames.push(pcm)
        return stack((self._log_mel.rows(frames) for frames in blocks), self.spec)


class StreamingFrames:
    """Cuts a stream into frames.

    Keeps at most `BLOCK` frames of samples, in one array that is never reallocated.
    """

    def __init__(self, spec: FrameSpec) -> None:
        self.spec = spec
        length = spec.frame_length + (BLOCK - 1) * spec.hop_length
        self._buffer = np.zeros(length, np.float32)
        self._frames = _frames(self._buffer, spec)  # (BLOCK, frame_length), a view
        self.reset()

    def reset(self) -> None:
        """Forget the samples kept; the next push starts a new stream."""
        self._filled = self.spec.padding[0]
        self._buffer[: self._filled] = 0

    def push(self, pcm: Float32) -> Iterator[Float32]:
        """Take the next samples, (n,): the frames that are whole now, block by block.

        Yields
        ------
        frames : float32, (t, frame_length), 0 < t <= BLOCK
            A view, valid until the next one is asked for. All must be asked for.
        """
        _check_waveform(pcm)
        return self._push(pcm)

    def _push(self, pcm: Float32) -> Iterator[Float32]:
        while pcm.size:
            n_new = min(self._buffer.size - self._filled, pcm.size)
            self._buffer[self._filled : self._filled + n_new] = pcm[:n_new]
            self._filled += n_new
            pcm = pcm[n_new:]
            ready = self.spec.whole_frames(self._filled)
            if ready:
                yield self._frames[:ready]
                self._keep_from(ready * self.spec.hop_length)

    def _keep_from(self, start: int) -> None:
        rest = self._filled - start
        self._buffer[:rest] = self._buffer[start : self._filled]
        self._filled = rest


def frame_blocks(waveform: Float32, spec: FrameSpec, block: int = BLOCK) -> Iterator[Float32]:
    """The frames of a whole waveform (n,), at most `block` at once: read-only views."""
    _check_waveform(waveform)
    if any(spec.padding):
        waveform = np.pad(waveform, spec.padding)
    if not spec.whole_frames(waveform.size):
        return iter(())
    frames = _frames(waveform, spec)
    return (frames[start : start + block] for start in range(0, len(frames), block))


def stack(rows: Iterable[Float32], spec: FrameSpec) -> Float32:
    """Blocks of features (t, n_mels), or none, as one array (T, n_mels)."""
    blocks = list(rows)
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate([np.empty((0, spec.n_mels), np.float32), *blocks])


def _frames(waveform: Float32, spec: FrameSpec) -> Float32:
    """The frames of a waveform as a read-only view, (n_frames, frame_length)."""
    windows = np.lib.stride_tricks.sliding_window_view(waveform, spec.frame_length)
    return windows[:: spec.hop_length]


def _check_waveform(waveform: Float32) -> None:
    if waveform.dtype != np.float32 or waveform.ndim != 1:
        raise AudioFormatError(
            f"expected a float32 waveform of shape (n,), got {waveform.dtype} {waveform.shape}; "
            "use edge_imputer.audio.check_pcm first"
        )
