"""From what an engine said to a clip: checked, cut, levelled, padded, never digitally silent."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.audio import resample
from edge_imputer.errors import SynthesisError

from .engines import Speech
from .engines.base import Waveform

SAMPLE_RATE = 16_000
FRAME = SAMPLE_RATE // 100  # 10 ms

TRIM_DB = -42.0  # a frame is speech when it is this close to the loudest one
TRIM_KEEP_S = 0.02
FADE_S = 0.005
CEILING = 0.9  # no clip's peak is above it: a codec's overshoot then stays below 1
PEAK_LEAST = 1e-3  # an engine's output below this is silence
FLAT_TOP = 4  # samples in a row at the peak: clipped
CLICK_S = 0.03  # a sound this short ...
CLICK_GAP_S = 0.10  # ... this long after the last word is a click of the voice
GAP_S = (0.25, 0.8)  # longest silence inside one word, and inside a phrase, at a rate of 1
# Speech lasts at least the first a phone, at most the second and the third a phone; at a rate of 1.
PHONE_S = (0.03, 0.30, 0.30)


class Dress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How clips are varied besides their voices. Ranges are uniform."""

    rate: tuple[float, float] = (0.8, 1.25)  # factor on the speaking rate
    pitch: tuple[float, float] = (-2.0, 2.0)  # semitones
    peak_dbfs: tuple[float, float] = (-18.0, -1.0)
    padding_s: tuple[float, float] = (0.05, 0.25)  # before and after, each
    noise_dbfs: tuple[float, float] = (-78.0, -62.0)  # white, under the whole clip

    def check(self) -> None:
        """Raise `SynthesisError` on ranges that are none, or cannot be asked of an engine."""
        if not 0 < self.rate[0] <= self.rate[1] < math.inf:
            raise SynthesisError(f"expected two rates above 0, the lower first, got {self.rate}")
        if not -math.inf < self.pitch[0] <= self.pitch[1] < math.inf:
            raise SynthesisError(f"expected two pitches, the lower first, got {self.pitch}")


@dataclass(frozen=True)
class Cut:
    """Speech cut out of what an engine said, or why it cannot be used."""

    waveform: Waveform  # (n,) at SAMPLE_RATE
    problem: str | None = None


def speech_frames(waveform: Waveform) -> npt.NDArray[np.intp]:
    """Indices of the 10 ms frames within `TRIM_DB` of the loudest."""
    frames = waveform[: len(waveform) // FRAME * FRAME].reshape(-1, FRAME)
    level_db = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    return np.flatnonzero(level_db > level_db.max() + TRIM_DB)


def cut_speech(speech: Speech, text: str, n_phones: float, rate: float) -> Cut:
    """Resample to `SAMPLE_RATE`, cut to the speech, and judge it.

    Parameters
    ----------
    speech : Speech
        Of any rate.
    text : str
        What was said.
    n_phones : float
        How many phones that has.
    rate : float
        The speaking rate it was said at.
    """
    waveform = speech.waveform
    if not np.all(np.isfinite(waveform)):
        return Cut(waveform, "samples that are not finite")
    if len(waveform) < speech.sample_rate // 20 or np.abs(waveform).max() < PEAK_LEAST:
        return Cut(waveform, "silent")
    if longest_flat_top(waveform) >= FLAT_TOP:
        return Cut(waveform, "clipped")
    # Kokoro's floats may pass 1 unharmed; check_pcm takes up to 8.
    waveform = resample(waveform, from_rate=speech.sample_rate, to_rate=SAMPLE_RATE)
    frames = speech_frames(waveform)
    if not ends_in_stop(text):
        frames = _without_last_click(frames)
    problem = _duration_problem((frames[-1] + 1 - frames[0]) / 100, n_phones, rate)
    gap_s = float(np.diff(frames).max(initial=1)) / 100
    if problem is None and gap_s > GAP_S[" " in text] / rate:
        problem = f"a gap of {gap_s:.2f} s"
    keep = int(TRIM_KEEP_S * SAMPLE_RATE)
    first, last = frames[0] * FRAME, (frames[-1] + 1) * FRAME
    cut = waveform[max(0, first - keep) : last + keep].copy()
    n = int(FADE_S * SAMPLE_RATE)
    ramp = np.linspace(0, 1, n, dtype=np.float32)
    cut[:n] *= ramp
    cut[-n:] *= ramp[::-1]
    return Cut(cut, problem)


def longest_flat_top(waveform: Waveform) -> int:
    """The most samples in a row at the peak's level."""
    top = np.abs(waveform) >= 0.9999 * np.abs(waveform).max()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], top, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def ends_in_stop(text: str) -> bool:
    """Whether the last word ends in a stop, whose release looks like a click."""
    return re.search(r"([ptkbdg]|[ptkbdg]e|gh)s?\W*$", text.lower()) is not None


def _without_last_click(frames: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 100 * CLICK_GAP_S) + 1)
    if len(runs) > 1 and len(runs[-1]) <= 100 * CLICK_S:
        return np.concatenate(runs[:-1])
    return frames


def _duration_problem(speech_s: float, n_phones: float, rate: float) -> str | None:
    shortest, base, longest = (s / rate for s in PHONE_S)
    low, high = shortest * n_phones, base + longest * n_phones
    if low <= speech_s <= high:
        return None
    return f"{speech_s:.2f} s of speech for {n_phones:.0f} phones, expected {low:.2f} to {high:.2f}"


def dress(speech: Waveform, how: Dress, rng: np.random.Generator) -> Waveform:
    """Set a random peak level, pad both sides, lay very low white noise over all; never clips.

    Parameters
    ----------
    speech : float32, (n,)
    how : Dress
    rng : Generator

    Returns
    -------
    clip : float32, (n + padding,)
        Its peak is at most `CEILING`, and no sample run is digital silence.
    """
    peak_db, noise_db = rng.uniform(*how.peak_dbfs), rng.uniform(*how.noise_dbfs)
    lead, tail = (int(s * SAMPLE_RATE) for s in rng.uniform(*how.padding_s, size=2))
    clip = np.pad(speech * (10 ** (peak_db / 20) / np.abs(speech).max()), (lead, tail))
    clip += rng.standard_normal(len(clip)) * 10 ** (noise_db / 20)
    clip *= min(1.0, CEILING / np.abs(clip).max())
    return np.asarray(clip, np.float32)
