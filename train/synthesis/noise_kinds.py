"""Kinds of noise, each a function of a number of samples and a generator of random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .engines.base import Waveform
from .shaping import SAMPLE_RATE
from .sounds import (
    Rng,
    band,
    coloured,
    harmonics,
    moments,
    place,
    ring,
    seconds,
    swell,
    thud,
    unit,
    wander,
)

Kind = Callable[[int, Rng], Waveform]

SCALE = np.array([0, 2, 4, 5, 7, 9, 11])  # semitones of the major scale


def hum(n: int, rng: Rng) -> Waveform:
    """Mains: harmonics of 50 or 60 Hz, those of the doubled frequency the strongest."""
    mains_hz = float(rng.choice([50.0, 60.0])) + rng.uniform(-0.1, 0.1)
    k = np.arange(1, 25)
    levels = rng.uniform(0.2, 1.0, len(k)) * k ** -rng.uniform(0.6, 1.4)
    levels[k % 2 == 1] *= rng.uniform(0.1, 0.6)
    tone = harmonics(n, mains_hz, levels, rng) * (1 + 0.1 * wander(n, 2.0, rng))
    return np.asarray(tone + 0.01 * coloured(n, 1.0, rng), np.float32)


def steady(n: int, rng: Rng) -> Waveform:
    """White to brown noise."""
    return coloured(n, rng.uniform(0.0, 2.0), rng)


def fan(n: int, rng: Rng) -> Waveform:
    """Air: pink-like noise that swells with the blades, and the tone of the blades."""
    turns_hz, blades = rng.uniform(8.0, 30.0), int(rng.integers(3, 8))
    speed = turns_hz * blades * (1 + 0.01 * wander(n, 3.0, rng))
    phase = 2 * np.pi * np.cumsum(speed) / SAMPLE_RATE
    air = coloured(n, rng.uniform(0.7, 1.6), rng) * (1 + 0.2 * np.sin(phase)).astype(np.float32)
    tone = harmonics(n, speed, np.array([1.0, 0.5, 0.25, 0.12]), rng)
    return np.asarray(air + rng.uniform(0.1, 0.5) * tone, np.float32)


def wind(n: int, rng: Rng) -> Waveform:
    """Gusts: low noise whose level and upper edge wander."""
    gusts = np.exp(1.5 * wander(n, rng.uniform(0.8, 2.5), rng))
    low = coloured(n, 2.0, rng) * gusts
    high = band(n, 300, rng.uniform(800, 1500), rng) * gusts**2
    return np.asarray(low + 0.15 * high, np.float32)


def clicks(n: int, rng: Rng) -> Waveform:
    """Keys and switches: dry clicks at random times."""
    out = np.zeros(n, np.float32)
    for at in moments(n, rng.uniform(1.5, 7.0), rng):
        partials = rng.uniform(900, 6_000, 5)
        place(out, ring(partials, rng.uniform(0.004, 0.03, 5), rng), at, rng.uniform(0.3, 1.0))
    return out


def ticking(n: int, rng: Rng) -> Waveform:
    """A clock: two clicks in turn, evenly spaced."""
    out = np.zeros(n, np.float32)
    pair = [ring(rng.uniform(1_500, 5_000, 4), rng.uniform(0.01, 0.04, 4), rng) for _ in "ab"]
    step = int(SAMPLE_RATE * rng.choice([0.25, 0.5, 1.0]))
    for i, at in enumerate(range(int(rng.integers(step)), n, step)):
        place(out, pair[i % 2], at)
    return out


def door(n: int, rng: Rng) -> Waveform:
    """Doors and steps: low thumps, a rattle after some of them."""
    out = np.zeros(n, np.float32)
    for at in moments(n, rng.uniform(0.3, 1.0), rng):
        decay_s = rng.uniform(0.1, 0.4)
        length = int(1.2 * decay_s * SAMPLE_RATE)
        place(out, thud(length, 40, rng.uniform(120, 400), decay_s, rng), at)
        if rng.random() < 0.4:
            late = at + int(rng.uniform(0.03, 0.15) * SAMPLE_RATE)
            place(out, thud(length // 2, 500, 3_000, decay_s / 3, rng), late, 0.4)
    return out


def dishes(n: int, rng: Rng) -> Waveform:
    """Plates and cutlery: bright inharmonic strokes, in clusters."""
    out = np.zeros(n, np.float32)
    for at in moments(n, rng.uniform(0.4, 1.2), rng):
        for _ in range(int(rng.integers(1, 5))):
            partials = rng.uniform(1_400, 2_600) * np.array([1.0, 1.61, 2.27, 2.9])
            stroke = ring(partials, rng.uniform(0.08, 0.5, 4), rng)
            place(out, stroke, at + int(rng.uniform(0, 0.3) * SAMPLE_RATE), rng.uniform(0.2, 1.0))
    return out


def rain(n: int, rng: Rng) -> Waveform:
    """Drops: hundreds of faint ticks a second over a hiss, some drops nearer."""
    out = 0.05 * band(n, 1_500, 7_000, rng)
    drops = np.zeros(n, np.float32)
    at = moments(n, rng.uniform(200, 600), rng)
    drops[at] += rng.exponential(1.0, len(at)).astype(np.float32)
    tick = thud(int(0.004 * SAMPLE_RATE), 1_500, 7_500, 0.003, rng)
    out += np.convolve(drops, tick)[:n].astype(np.float32)
    for near in moments(n, rng.uniform(1.0, 6.0), rng):
        place(out, ring(rng.uniform(700, 3_000, 2), rng.uniform(0.02, 0.06, 2), rng), near, 0.5)
    return out


def beeps(n: int, rng: Rng) -> Waveform:
    """Appliances: a row of equal tones, a pause, again."""
    out = np.zeros(n, np.float32)
    hz, n_beeps = rng.uniform(700, 3_800), int(rng.integers(1, 6))
    on_s, off_s, pause_s = rng.uniform(0.08, 0.4), rng.uniform(0.08, 0.3), rng.uniform(0.5, 2.0)
    square = rng.uniform(0.0, 0.4) / np.arange(1, 6) * (np.arange(1, 6) % 2)
    levels = np.concatenate([[1.0], square[1:]])
    length = int(on_s * SAMPLE_RATE)
    beep = harmonics(length, hz, levels, rng) * swell(length, 0.005, 0.005)
    at = int(rng.uniform(0, 1.0) * SAMPLE_RATE)
    while at < n:
        for _ in range(n_beeps):
            place(out, beep, at)
            at += int((on_s + off_s) * SAMPLE_RATE)
        at += int(pause_s * SAMPLE_RATE)
    return out


def chords(n: int, rng: Rng) -> Waveform:
    """Held triads, as of an organ or strings, one after the other."""
    out = np.zeros(n, np.float32)
    root_hz, at = rng.uniform(110, 260), 0
    timbre = np.arange(1, 9.0) ** -rng.uniform(1.0, 2.2)
    while at < n:
        length = int(rng.uniform(0.6, 2.0) * SAMPLE_RATE)
        degree = int(rng.integers(7))
        for step in (0, 2, 4):
            octave, note = divmod(degree + step, 7)
            hz = root_hz * 2 ** (octave + SCALE[note] / 12)
            vibrato = hz * (1 + 0.003 * np.sin(2 * np.pi * 5.5 * seconds(length)))
            tone = harmonics(length, vibrato.astype(np.float32), timbre, rng)
            place(out, tone * swell(length, 0.08, 0.2), at, 0.3)
        at += int(0.9 * length)
    return out


def melody(n: int, rng: Rng) -> Waveform:
    """Plucked notes up and down a scale, some with their fifth."""
    out = np.zeros(n, np.float32)
    root_hz, step_s = rng.uniform(160, 400), rng.uniform(0.12, 0.4)
    degree, k = 0, np.arange(1, 11)
    for i in range(int(n / SAMPLE_RATE / step_s) + 1):
        degree = int(np.clip(degree + rng.integers(-3, 4), 0, 13))
        hz = root_hz * 2 ** (degree // 7 + SCALE[degree % 7] / 12)
        at = int(i * step_s * SAMPLE_RATE)
        place(out, ring(hz * k, rng.uniform(0.6, 1.2) / np.sqrt(k), rng), at, rng.uniform(0.4, 1))
        if rng.random() < 0.3:
            place(out, ring(1.5 * hz * k, 0.8 / np.sqrt(k), rng), at, 0.4)
    return out


def percussion(n: int, rng: Rng) -> Waveform:
    """A drum pattern: bass drum, snare, hi-hat on a grid."""
    out = np.zeros(n, np.float32)
    step = int(SAMPLE_RATE * 60 / rng.uniform(80, 150) / 4)
    t = seconds(int(0.25 * SAMPLE_RATE))
    fall_hz = 50 + rng.uniform(60, 120) * np.exp(-30 * t)
    bass = np.sin(2 * np.pi * np.cumsum(fall_hz) / SAMPLE_RATE) * np.exp(-14 * t)
    snare = thud(int(0.2 * SAMPLE_RATE), 180, 6_000, rng.uniform(0.1, 0.25), rng)
    hat = thud(int(0.08 * SAMPLE_RATE), 5_000, 7_800, rng.uniform(0.03, 0.08), rng)
    pattern = rng.random((16, 3)) < np.array([0.25, 0.15, 0.6])
    pattern[[0, 8], 0] = pattern[[4, 12], 1] = True
    for i, at in enumerate(range(0, n, step)):
        for sound, hit in zip((bass.astype(np.float32), snare, hat), pattern[i % 16], strict=True):
            if hit:
                place(out, sound, at, rng.uniform(0.6, 1.0))
    return out


def babble(talkers: list[Waveform], n: int, rng: Rng) -> Waveform:
    """Several people at once: clips of speech in as many endless rows, each at its own level.

    Parameters
    ----------
    talkers : speech of each talker, (m,) at SAMPLE_RATE, m >= 1
    """
    out = np.zeros(n, np.float32)
    for speech in talkers:
        start = int(rng.integers(len(speech)))
        row = np.take(speech, np.arange(start, start + n), mode="wrap")
        out += unit(row.astype(np.float64)) * np.float32(10 ** (rng.uniform(-6, 0) / 20))
    return out


KINDS: dict[str, Kind] = {
    "steady": steady,
    "hum": hum,
    "fan": fan,
    "wind": wind,
    "clicks": clicks,
    "ticking": ticking,
    "door": door,
    "dishes": dishes,
    "rain": rain,
    "beeps": beeps,
    "chords": chords,
    "melody": melody,
    "percussion": percussion,
}
BABBLE = "babble"
