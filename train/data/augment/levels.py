"""How loud speech is, where it is, and mixing at a signal-to-noise ratio."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..records import Waveform

Float32 = npt.NDArray[np.float32]

ACTIVE_DB = 25.0  # frames this far below the loudest still count as speech
_FRAME_S = 0.02


def frame_power(waveform: Waveform, frame_length: int) -> Float32:
    """Mean power of whole frames, (n,); one frame if the waveform is shorter than that."""
    n = max(1, len(waveform) // frame_length)
    whole = waveform[: n * frame_length]
    if len(whole) < frame_length:
        return np.array([np.vdot(whole, whole) / max(1, len(whole))], np.float32)
    frames = whole.reshape(n, frame_length)
    power: Float32 = np.einsum("ij,ij->i", frames, frames) / np.float32(frame_length)
    return power


def active_level(waveform: Waveform, *, sample_rate: int) -> float:
    """Speech-active level: mean power of the 20 ms frames that hold speech.

    A frame holds speech if its power is at most `ACTIVE_DB` below the loudest frame's. So pauses
    and the silence around a clip do not count, as in ITU-T P.56, whose envelope detector this
    is simpler than.

    Returns
    -------
    level : mean square; 0 of digital silence
    """
    power = frame_power(waveform, round(_FRAME_S * sample_rate))
    active = power >= power.max() * np.float32(10 ** (-ACTIVE_DB / 10))
    return float(power[active].mean())


def speech_span(
    waveform: Waveform, *, sample_rate: int, below_peak_db: float = 30.0
) -> tuple[float, float]:
    """Start and end, in seconds, of the 10 ms frames within `below_peak_db` of the loudest."""
    power = frame_power(waveform, sample_rate // 100)
    loud = np.flatnonzero(power >= power.max() * np.float32(10 ** (-below_peak_db / 10)))
    return float(loud[0]) / 100, float(loud[-1] + 1) / 100


def scale_to_snr(noise: Waveform, level: float, snr_db: float) -> Waveform:
    """Noise at a signal-to-noise ratio: `level` over the mean power of all of the noise.

    Parameters
    ----------
    noise : (n,)
    level : mean square of the speech, see `active_level`
    snr_db : decibels

    Returns
    -------
    noise : (n,), a new array; silent noise stays as it is
    """
    power = float(np.vdot(noise, noise)) / max(1, len(noise))
    if power <= 0:
        return noise
    scaled: Float32 = noise * np.float32(np.sqrt(level / power) * 10 ** (-snr_db / 20))
    return scaled
