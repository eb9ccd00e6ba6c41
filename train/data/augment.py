"""Augmentation, in numpy: speed, joining, noise, rooms, gain; bands and masks on the log-mel.

What is costly is done once (a clip is resampled the first time it is drawn at a speed); a training
example is then mostly concatenation and one pass of noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import soxr

from edge_imputer.errors import SpecError

from .records import Clip, Waveform
from .sequences import join_clips

Float32 = npt.NDArray[np.float32]


KEPT_S = 7200.0  # resampled audio kept in memory, 0.5 GB


@dataclass(frozen=True)
class Variant:
    """A clip played at another speed."""

    clip: Clip
    speech: tuple[float, float]  # start and end of the speech in it, seconds
    duration_s: float

    @classmethod
    def of(cls, clip: Clip, speed: float, sample_rate: int) -> Variant:
        """Tempo and pitch together, as a tape played faster: resampling to another length."""
        if speed != 1.0:
            resampled = soxr.resample(clip.waveform, sample_rate * speed, sample_rate, quality="HQ")
            clip = Clip(clip.record, resampled)
        span = speech_span(clip.waveform, sample_rate=sample_rate)
        return cls(clip, span, len(clip.waveform) / sample_rate)


@dataclass(frozen=True)
class Utterance:
    """A training utterance, and where each of its clips speaks."""

    waveform: Waveform
    text: str
    spans: tuple[tuple[str, float, float], ...]  # (text, start, end) of each clip, seconds


class AugmentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much to vary the training audio. Ranges are uniform."""

    speeds: tuple[float, ...] = (0.78, 0.87, 0.95, 1.05, 1.15, 1.28)
    clips_joined: tuple[int, int] = (2, 4)
    longest_s: float = 8.0  # joining stops before the speech gets longer than this
    isolated: float = 0.4  # share of batches with one clip an utterance
    same_speaker: float = 0.6  # share of sequences in one voice
    gap_s: tuple[float, float] = (0.02, 0.35)
    edge_s: tuple[float, float] = (0.0, 0.45)  # silence before and after
    gain_db: tuple[float, float] = (-15.0, 6.0)
    snr_db: tuple[float, float] = (5.0, 45.0)
    quiet: float = 0.1  # share of examples without added noise
    noise_colour: tuple[float, float] = (0.0, 2.0)  # exponent: 0 white, 1 pink, 2 brown
    room: float = 0.3  # share of examples with a synthetic room response
    mel_warp: float = 0.15  # largest relative shift of the mel axis (vocal tract length)
    tilt: float = 0.7  # standard deviation, in nats, of a smooth filter over the mel bands
    low_pass: float = 0.15  # share of examples cut at a random band in the upper half
    ramp: float = 0.3  # share of the updates over which room, warp, filters and masks grow
    masks: int = 2  # SpecAugment masks in time and in frequency, each
    mask_time: int = 12  # longest time mask, feature frames
    mask_mel: int = 6  # widest frequency mask, bands

    def check(self) -> None:
        """Raise `SpecError` on values that nothing can be drawn from."""
        if not self.speeds or min(self.speeds) <= 0:
            raise SpecError(f"expected speeds above 0, at least one, got {self.speeds}")
        low, high = self.clips_joined
        if not 1 <= low <= high:
            raise SpecError(f"expected 1 <= fewest <= most clips_joined, got {self.clips_joined}")


class Augmenter:
    """Draws varied utterances from a list of clips.

    Parameters
    ----------
    clips : training clips at `sample_rate`
    spec : AugmentSpec
    sample_rate : Hz
    """

    def __init__(self, clips: list[Clip], spec: AugmentSpec, *, sample_rate: int) -> None:
        self.spec = spec
        self.sample_rate = sample_rate
        self.clips = clips
        self._variants: dict[tuple[int, int], Variant] = {}
        self._kept_s = 0.0
        speakers: dict[str, list[int]] = {}
        for index, clip in enumerate(clips):
            speakers.setdefault(clip.speaker, []).append(index)
        self.same_speaker = [np.array(speakers[clip.speaker]) for clip in clips]

    def n_clips(self, rng: np.random.Generator) -> int:
        """How many clips to join; drawn once a batch, so that its utterances are as long."""
        low, high = self.spec.clips_joined
        return 1 if rng.random() < self.spec.isolated else int(rng.integers(low, high + 1))

    def utterance(self, n_clips: int, rng: np.random.Generator, strength: float = 1.0) -> Utterance:
        """A new utterance of `n_clips` clips: joined, in a room, with noise, at some gain.

        `strength`, 0 to 1, scales what is ramped up in training.
        """
        spec = self.spec
        variants, gaps = self._choose(n_clips, rng)
        clips = [variant.clip for variant in variants]
        waveform, text = join_clips(clips, gaps, sample_rate=self.sample_rate)
        spans, at = [], 0.0
        for variant, gap in zip(variants, gaps, strict=False):
            start, end = variant.speech
            spans.append((variant.clip.text, at + gap + start, at + gap + end))
            at += gap + variant.duration_s
        if rng.random() < strength * spec.room:
            waveform = _in_room(waveform, rng, self.sample_rate)
        if rng.random() >= spec.quiet:
            level = float(np.sqrt(np.mean(waveform**2))) + 1e-6
            noise = coloured_noise(len(waveform), rng.uniform(*spec.noise_colour), rng)
            gain = level * 10 ** (-rng.uniform(*spec.snr_db) / 20)
            waveform = waveform + noise * np.float32(gain)
        waveform = waveform * np.float32(10 ** (rng.uniform(*spec.gain_db) / 20))
        return Utterance(np.clip(waveform, -1.0, 1.0), text, tuple(spans))

    def _choose(
        self, n: int, rng: np.random.Generator
    ) -> tuple[list[Variant], npt.NDArray[np.float64]]:
        """At most n clips at some speed, and the gaps in seconds around them."""
        spec = self.spec
        first = int(rng.integers(len(self.clips)))
        pool = self.same_speaker[first] if rng.random() < spec.same_speaker else None
        rest = rng.integers(len(self.clips) if pool is None else len(pool), size=n - 1)
        indices = [first, *(rest if pool is None else pool[rest]).tolist()]
        speeds = rng.integers(len(spec.speeds), size=n).tolist()
        gaps = rng.uniform(*spec.gap_s, size=n + 1)
        gaps[[0, -1]] = rng.uniform(*spec.edge_s, size=2)
        variants = [self._variant(i, s) for i, s in zip(indices, speeds, strict=True)]
        ends = np.cumsum([variant.duration_s for variant in variants])
        n = max(1, int(np.sum(ends <= spec.longest_s)))
        return variants[:n], np.append(gaps[:n], gaps[-1])

    def _variant(self, index: int, speed: int) -> Variant:
        """A clip at one of the speeds; resampled once, as far as memory is given."""
        key = index, speed
        if key not in self._variants:
            variant = Variant.of(self.clips[index], self.spec.speeds[speed], self.sample_rate)
            if self._kept_s + variant.duration_s > KEPT_S:
                return variant
            self._variants[key] = variant
            self._kept_s += variant.duration_s
        return self._variants[key]

    def features(
        self, log_mel: Float32, rng: np.random.Generator, strength: float = 1.0
    ) -> Float32:
        """Vary a log-mel, (T, n_mels): vocal tract, channel, masks. Values in nats."""
        spec = self.spec
        x = _warp_mels(log_mel, strength * rng.uniform(-spec.mel_warp, spec.mel_warp))
        n_frames, n_mels = x.shape
        knots = strength * rng.normal(0.0, spec.tilt, 5)
        x = x + np.interp(np.linspace(0, 4, n_mels), np.arange(5), knots).astype(np.float32)
        fill = x.min()
        if rng.random() < strength * spec.low_pass:
            x[:, rng.integers(n_mels // 2, n_mels) :] = fill
        for _ in range(spec.masks):
            width = int(strength * rng.integers(spec.mask_mel + 1))
            start = rng.integers(n_mels - width + 1)
            x[:, start : start + width] = fill
            length = min(int(strength * rng.integers(spec.mask_time + 1)), n_frames)
            first = rng.integers(n_frames - length + 1)
            x[first : first + length] = fill
        return x


def coloured_noise(n: int, exponent: float, rng: np.random.Generator) -> Float32:
    """Noise of unit power whose spectrum falls as ``1 / f ** exponent``, (n,)."""
    n_fft = 1 << max(4, (n - 1).bit_length())
    bins = n_fft // 2 + 1
    shape = np.arange(1, bins + 1, dtype=np.float32) ** np.float32(-exponent / 2)
    spectrum = rng.standard_normal((2, bins), np.float32) * shape
    noise: Float32 = np.fft.irfft(spectrum[0] + 1j * spectrum[1], n_fft)[:n].astype(np.float32)
    noise /= np.sqrt(np.mean(noise**2)) + np.float32(1e-12)
    return noise


def speech_span(
    waveform: Waveform, *, sample_rate: int, below_peak_db: float = 30.0
) -> tuple[float, float]:
    """Start and end, in seconds, of the 10 ms frames within `below_peak_db` of the loudest."""
    hop = sample_rate // 100
    n = max(1, len(waveform) // hop)
    frames = np.resize(waveform, n * hop).reshape(n, hop)
    energy = np.mean(frames**2, axis=1)
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (-below_peak_db / 10))
    return float(loud[0]) / 100, float(loud[-1] + 1) / 100


def _in_room(waveform: Waveform, rng: np.random.Generator, sample_rate: int) -> Waveform:
    """Convolve with decaying noise: a direct path and a tail of 0.05 to 0.35 s."""
    n = int(rng.uniform(0.05, 0.35) * sample_rate)
    decay = np.exp(-6.9 * np.arange(n, dtype=np.float32) / n)  # 60 dB over n samples
    response = rng.standard_normal(n, np.float32) * decay
    response *= np.float32(rng.uniform(0.1, 0.8)) / (np.sqrt(np.sum(response**2)) + 1e-6)
    response[0] = 1.0
    n_fft = 1 << (len(waveform) + n - 1).bit_length()
    product = np.fft.rfft(waveform, n_fft) * np.fft.rfft(response, n_fft)
    return np.fft.irfft(product, n_fft)[: len(waveform)].astype(np.float32)


def _warp_mels(x: Float32, warp: float) -> Float32:
    """Stretch the mel axis by ``1 + warp``, by linear interpolation between bands."""
    n_mels = x.shape[1]
    position = np.clip(np.arange(n_mels, dtype=np.float32) * np.float32(1 + warp), 0, n_mels - 1)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, n_mels - 1)
    weight = position - low.astype(np.float32)
    warped: Float32 = x[:, low] * (1 - weight) + x[:, high] * weight
    return warped
