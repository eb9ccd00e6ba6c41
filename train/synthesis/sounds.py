"""Building blocks of the generated noises: shaped noise, tones, strokes, envelopes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .engines.base import Waveform
from .shaping import SAMPLE_RATE

Rng = np.random.Generator


def seconds(n: int) -> npt.NDArray[np.float64]:
    """Time of each of n samples, (n,)."""
    return np.arange(n) / SAMPLE_RATE


def coloured(n: int, exponent: float, rng: Rng, lowest_hz: float = 20.0) -> Waveform:
    """Noise of unit power whose power falls as ``1 / f ** exponent`` above `lowest_hz`, (n,)."""
    n_fft = 1 << max(8, (n - 1).bit_length())
    hz = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)
    shape = np.maximum(hz, lowest_hz) ** (-exponent / 2) * (hz >= lowest_hz)
    spectrum = (rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz))) * shape
    return unit(np.fft.irfft(spectrum, n_fft)[:n])


def band(n: int, low_hz: float, high_hz: float, rng: Rng) -> Waveform:
    """Noise of unit power between two frequencies, with soft edges, (n,)."""
    n_fft = 1 << max(8, (n - 1).bit_length())
    hz = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)
    shape = 1 / (1 + (low_hz / np.maximum(hz, 1.0)) ** 6) / (1 + (hz / high_hz) ** 6)
    spectrum = (rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz))) * shape
    return unit(np.fft.irfft(spectrum, n_fft)[:n])


def unit(x: npt.NDArray[np.float64]) -> Waveform:
    """`x` at a power of 1."""
    return np.asarray(x / (np.sqrt(np.mean(x**2)) + 1e-12), np.float32)


def wander(n: int, period_s: float, rng: Rng) -> Waveform:
    """A smooth random curve within [-1, 1] with a turn about every `period_s`, (n,)."""
    knots = rng.uniform(-1, 1, max(2, int(n / SAMPLE_RATE / period_s) + 2))
    place = np.linspace(0, len(knots) - 1.001, n)
    left = place.astype(int)
    weight = (1 - np.cos(np.pi * (place - left))) / 2
    return np.asarray(knots[left] * (1 - weight) + knots[left + 1] * weight, np.float32)


def harmonics(n: int, hz: float | Waveform, levels: npt.NDArray[np.float64], rng: Rng) -> Waveform:
    """A tone of `hz`, fixed or one a sample, with the amplitude of each harmonic, (n,)."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(np.asarray(hz, np.float64), n)) / SAMPLE_RATE
    highest = float(np.max(hz))
    out = np.zeros(n)
    for k, level in enumerate(levels, start=1):
        if k * highest < SAMPLE_RATE / 2:  # the others would alias
            out += level * np.sin(k * phase + rng.uniform(0, 2 * np.pi))
    return out.astype(np.float32)


def ring(
    partials_hz: npt.NDArray[np.float64], decay_s: npt.NDArray[np.float64], rng: Rng
) -> Waveform:
    """A struck object: partials that die away, each 60 dB within its `decay_s`, peak near 1."""
    n = int(float(decay_s.max()) * SAMPLE_RATE)
    t = seconds(n)[:, None]
    levels = rng.uniform(0.3, 1.0, len(partials_hz)) * (partials_hz < SAMPLE_RATE / 2)
    waves = np.sin(2 * np.pi * partials_hz * t + rng.uniform(0, 2 * np.pi, len(partials_hz)))
    out = (levels * waves * np.exp(-6.9 * t / decay_s)).sum(axis=1)
    return np.asarray(out / max(1e-9, levels.sum()), np.float32)


def thud(n: int, low_hz: float, high_hz: float, decay_s: float, rng: Rng) -> Waveform:
    """A burst of band noise that dies away, 60 dB within `decay_s`, (n,)."""
    fall = np.exp(-6.9 * seconds(n) / decay_s)
    return np.asarray(0.3 * band(n, low_hz, high_hz, rng) * fall, np.float32)


def place(into: Waveform, sound: Waveform, at: int, gain: float = 1.0) -> None:
    """Add a sound at a sample; what reaches past the end is cut."""
    end = min(len(into), at + len(sound))
    if at < end:
        into[at:end] += np.float32(gain) * sound[: end - at]


def moments(n: int, per_second: float, rng: Rng) -> npt.NDArray[np.intp]:
    """Samples at which events of a Poisson process fall; at least one."""
    count = max(1, int(rng.poisson(per_second * n / SAMPLE_RATE)))
    return np.sort(rng.integers(0, n, size=count))


def swell(n: int, attack_s: float, release_s: float) -> Waveform:
    """A note's envelope: rises, holds, falls to nothing, (n,)."""
    t = seconds(n)
    rise = np.clip(t / attack_s, 0, 1)
    fall = np.clip((n / SAMPLE_RATE - t) / release_s, 0, 1)
    return np.asarray(np.minimum(rise, fall), np.float32)
