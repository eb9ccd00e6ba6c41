"""Rooms: responses by the image-source method, and convolution with them.

Responses are made once, in a bank, with their spectra: what is left for an utterance is two FFTs.
The direct path is sample 0 of a response with amplitude 1, so that a room neither moves speech in
time nor changes its level before the reflections.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import soxr
import torch

from edge_imputer.errors import DataError

from ..records import Waveform

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

SOUND_M_S = 343.0
LONGEST_S = 0.5  # of a response; what is later is cut off
N_FFT_RATIO = 4  # FFT size over the longest response, at least

_SIZES_M = np.array([[2.5, 9.0], [2.5, 7.0], [2.2, 3.5]])  # smallest and largest rooms
_FROM_WALL_M = 0.2
_JITTER_M = 0.05  # images are moved a little: perfect boxes ring (De Sena et al. 2015)
_OVERSAMPLING = 4  # reflections fall between samples
_HIGH_PASS_HZ = 80.0  # as in Allen and Berkley 1979: images of one sign add up at 0 Hz


@dataclass(frozen=True)
class Shoebox:
    """A box-shaped room with a speaker and a microphone in it. Lengths in metres."""

    size: Float64  # (3,)
    speaker: Float64  # (3,)
    microphone: Float64  # (3,)
    rt60_s: float  # time over which the reverberation falls by 60 dB

    @property
    def reflection(self) -> float:
        """Share of the amplitude that a wall gives back, by Eyring's formula."""
        volume = float(np.prod(self.size))
        surface = 2 * float(self.size @ np.roll(self.size, 1))
        log_energy = -0.161 * volume / (surface * self.rt60_s)
        return float(np.exp(log_energy / 2))


def random_room(
    rng: np.random.Generator, rt60_s: tuple[float, float], distance_m: tuple[float, float]
) -> Shoebox:
    """A room of random size, speaker and microphone at random places in it."""
    size = rng.uniform(_SIZES_M[:, 0], _SIZES_M[:, 1])
    rt60 = float(rng.uniform(*rt60_s))
    while True:
        microphone = rng.uniform(_FROM_WALL_M, size - _FROM_WALL_M)
        direction = rng.standard_normal(3)
        distance = min(float(rng.uniform(*distance_m)), 0.5 * float(size.min()))
        speaker = microphone + direction * (distance / np.linalg.norm(direction))
        if np.all(speaker > _FROM_WALL_M) and np.all(speaker < size - _FROM_WALL_M):
            return Shoebox(size, speaker, microphone, rt60)


def room_response(room: Shoebox, rng: np.random.Generator, *, sample_rate: int) -> Float32:
    """Impulse response by the image-source method (Allen and Berkley 1979).

    Every reflection is a mirror image of the speaker, as loud as the walls between leave it over
    its distance. The direct path is sample 0 and has amplitude 1.

    Returns
    -------
    response : (n,), n the reverberation time, `LONGEST_S` at most
    """
    n = max(2, int(min(room.rt60_s, LONGEST_S) * sample_rate))
    direct = float(np.linalg.norm(room.speaker - room.microphone))
    reach = direct + n / sample_rate * SOUND_M_S
    squared, bounces = np.zeros(1), np.zeros(1, np.int64)
    for axis in range(3):
        offsets, counts = _images(room, axis, reach)
        squared = (squared[:, None] + offsets**2).ravel()
        bounces = (bounces[:, None] + counts).ravel()
        near = squared < reach**2
        squared, bounces = squared[near], bounces[near]
    reflected = bounces > 0
    distance = np.sqrt(squared[reflected])
    distance = np.maximum(distance + rng.uniform(-_JITTER_M, _JITTER_M, len(distance)), direct)
    gain = room.reflection ** bounces[reflected] * (direct / distance)
    rate = _OVERSAMPLING * sample_rate
    place = ((distance - direct) * (rate / SOUND_M_S)).astype(np.int64)
    fine = np.bincount(place, gain, minlength=_OVERSAMPLING * n)[: _OVERSAMPLING * n]
    response = soxr.resample(fine.astype(np.float32), rate, sample_rate, quality="HQ")
    response = _high_passed(response[:n] * np.float32(_OVERSAMPLING), sample_rate)
    response = _with_decay(response, room.rt60_s, sample_rate)
    response[0] += 1.0
    return response


def reverberation_time(response: Float32, *, sample_rate: int) -> float:
    """Seconds for 60 dB: Schroeder's integral from -5 to -25 dB, times 3 (ISO 3382's T20)."""
    remaining = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]
    if not remaining[0] > 0:
        return 0.0
    below = [int(np.argmax(remaining < remaining[0] * 10 ** (-db / 10))) for db in (5, 25)]
    return 3 * (below[1] - below[0]) / sample_rate


def _with_decay(reflections: Float32, rt60_s: float, sample_rate: int) -> Float32:
    """Reflections that decay as asked for: Eyring's formula is for diffuse fields, not for boxes.

    The loss is even over time, as if all walls took as much more, or less.
    """
    measured = reverberation_time(reflections, sample_rate=sample_rate)
    if not measured > 0:
        return reflections
    rate = 3 * np.log(10) * (1 / rt60_s - 1 / measured) / sample_rate
    steeper = np.exp(-rate * np.arange(len(reflections)))
    decayed: Float32 = (reflections * steeper).astype(np.float32)
    return decayed


def _images(room: Shoebox, axis: int, reach: float) -> tuple[Float64, npt.NDArray[np.int64]]:
    """Images along one axis: where they lie from the microphone, and how often they bounced."""
    size, speaker = room.size[axis], room.speaker[axis]
    n = np.arange(-int(reach / (2 * size)) - 1, int(reach / (2 * size)) + 2)
    offsets = np.concatenate([2 * n * size + speaker, 2 * n * size - speaker])
    counts = np.concatenate([2 * np.abs(n), np.abs(n) + np.abs(n - 1)])
    return offsets - room.microphone[axis], counts


def _high_passed(response: Float32, sample_rate: int) -> Float32:
    """A causal first-order high-pass."""
    n_fft = 2 << (len(response) - 1).bit_length()
    hz = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    spectrum = np.fft.rfft(response, n_fft) * (1j * hz / (1j * hz + _HIGH_PASS_HZ))
    return np.fft.irfft(spectrum, n_fft)[: len(response)].astype(np.float32)


def recorded_response(waveform: Waveform) -> Float32:
    """A recorded response from its direct path on, which becomes 1.

    Raises
    ------
    DataError
        The recording is silent.
    """
    peak = int(np.argmax(np.abs(waveform)))
    if not waveform[peak]:
        raise DataError("expected a recorded room response, got silence")
    response: Float32 = (waveform[peak:] / waveform[peak]).astype(np.float32)
    return response


class RoomBank:
    """Responses with their spectra.

    Parameters
    ----------
    responses : each (n,), at the rate of what they are convolved with
    sample_rate : Hz
    """

    def __init__(self, responses: Iterable[Float32], *, sample_rate: int) -> None:
        cut = [r[: int(LONGEST_S * sample_rate)] for r in responses]
        if not cut:
            raise DataError("expected at least one room response, got none")
        self.lengths = np.array([len(r) for r in cut])
        longest = int(self.lengths.max())
        self.n_fft = N_FFT_RATIO << max(8, (longest - 1).bit_length())
        padded = np.zeros((len(cut), self.n_fft), np.float32)
        for row, response in zip(padded, cut, strict=True):
            row[: len(response)] = response
        # (n, n_fft // 2 + 1) complex64
        self.spectra = torch.fft.rfft(torch.from_numpy(padded)).numpy()

    def __len__(self) -> int:
        return len(self.lengths)

    def convolve(self, waveform: Waveform, room: int) -> Waveform:
        """What the microphone hears of a waveform, (n,) -> (n,): the tail past its end is cut."""
        n, n_fft = len(waveform), self.n_fft
        step = n_fft - int(self.lengths[room]) + 1
        blocks = -(-n // step)
        padded = np.zeros((blocks, n_fft), np.float32)
        for k in range(blocks):
            part = waveform[k * step : (k + 1) * step]
            padded[k, : len(part)] = part
        # torch's FFT takes a third of numpy's time.
        spectra = torch.fft.rfft(torch.from_numpy(padded))
        spectra *= torch.from_numpy(self.spectra[room])
        heard = torch.fft.irfft(spectra, n_fft).numpy()
        if blocks == 1:
            first: Waveform = heard[0, :n]
            return first
        out = np.zeros(blocks * step + n_fft, np.float32)
        for k in range(blocks):
            out[k * step : k * step + n_fft] += heard[k]
        return out[:n]


@lru_cache(maxsize=4)
def generated_rooms(
    sample_rate: int,
    n_rooms: int,
    rt60_s: tuple[float, float],
    distance_m: tuple[float, float],
    seed: int = 0,
) -> RoomBank:
    """A bank of random rooms; room k depends on the seed and k alone."""
    responses = []
    for k in range(n_rooms):
        rng = np.random.default_rng((seed, k, 0x400E))
        room = random_room(rng, rt60_s, distance_m)
        responses.append(room_response(room, rng, sample_rate=sample_rate))
    return RoomBank(responses, sample_rate=sample_rate)
