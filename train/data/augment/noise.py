"""Noise to mix in: generated colours, recordings, babble; kept as int16, drawn in random pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError
from edge_imputer.files import replacing

from ..records import Waveform

Float32 = npt.NDArray[np.float32]
Int16 = npt.NDArray[np.int16]

NoiseKind = Literal["colour", "recorded", "babble"]

COLOUR_S = 20.0  # seconds generated of every colour
N_COLOURS = 9
LOWEST_HZ = 20.0  # below it noise has no power: no microphone carries it, and no feature sees it
BABBLE_VOICES = (3, 8)
BABBLE_S = 120.0


def coloured_noise(n: int, exponent: float, rng: np.random.Generator, lowest: int = 0) -> Float32:
    """Noise of unit power whose spectrum falls as ``1 / f ** exponent``, (n,).

    Bins of the spectrum below number `lowest` are empty; there are ``n_fft // 2 + 1``, n_fft the
    next power of two.
    """
    n_fft = 1 << max(4, (n - 1).bit_length())
    bins = n_fft // 2 + 1
    shape = np.arange(1, bins + 1, dtype=np.float32) ** np.float32(-exponent / 2)
    shape[:lowest] = 0
    spectrum = rng.standard_normal((2, bins), np.float32) * shape
    noise: Float32 = np.fft.irfft(spectrum[0] + 1j * spectrum[1], n_fft)[:n].astype(np.float32)
    noise /= np.sqrt(np.mean(noise**2)) + np.float32(1e-12)
    return noise


class NoiseBank:
    """Tracks of noise, of which random pieces are taken.

    Parameters
    ----------
    colours : generated tracks from the lowest exponent to the highest
    recorded : recordings, see `recorded_tracks`
    babble : see `babble_track`
    """

    def __init__(
        self,
        colours: Sequence[Int16],
        recorded: Tracks | Sequence[Int16] = (),
        babble: Sequence[Int16] = (),
    ) -> None:
        self._colours = colours
        self._others: dict[NoiseKind, Tracks | Sequence[Int16]] = {
            "recorded": recorded,
            "babble": babble,
        }

    def has(self, kind: NoiseKind) -> bool:
        """Whether there is such noise."""
        return kind == "colour" or len(self._others[kind]) > 0

    def piece(self, kind: NoiseKind, n: int, rng: np.random.Generator) -> Float32:
        """Noise of a kind, (n,); its level is whatever the track's is.

        Of the colours two neighbours are mixed at random weights: what lies between them has a
        slope between theirs, and the same sound never comes twice.
        """
        if kind == "colour":
            at = int(rng.integers(max(1, len(self._colours) - 1)))
            angle = rng.uniform(0, np.pi / 2)
            noise = _piece(self._colours[at], n, rng)
            noise *= np.float32(np.cos(angle))
            other = _piece(self._colours[min(at + 1, len(self._colours) - 1)], n, rng)
            other *= np.float32(np.sin(angle))
            noise += other
            return noise
        tracks = self._others[kind]
        lengths = np.array([len(tracks[i]) for i in range(len(tracks))], np.float64)
        return _piece(tracks[int(rng.choice(len(tracks), p=lengths / lengths.sum()))], n, rng)


@lru_cache(maxsize=4)
def colour_tracks(
    sample_rate: int, lowest: float, highest: float, seed: int = 0
) -> tuple[Int16, ...]:
    """Tracks of noise whose spectra fall with exponents from `lowest` to `highest`."""
    rng = np.random.default_rng((seed, 0xC0104))
    n = int(COLOUR_S * sample_rate)
    n_fft = 1 << (n - 1).bit_length()
    cut = int(LOWEST_HZ * n_fft / sample_rate)
    exponents = np.linspace(lowest, highest, N_COLOURS if highest > lowest else 1)
    return tuple(_int16(coloured_noise(n, float(e), rng, cut)) for e in exponents)


def babble_track(
    waveforms: Iterable[Waveform], rng: np.random.Generator, *, sample_rate: int
) -> Int16:
    """Several voices at once, each at its own level: clips laid end to end in as many lanes.

    Parameters
    ----------
    waveforms : clips of speech; as many are taken as `BABBLE_S` seconds need

    Raises
    ------
    DataError
        There are no clips.
    """
    n_lanes = int(rng.integers(BABBLE_VOICES[0], BABBLE_VOICES[1] + 1))
    lanes: list[list[Waveform]] = [[] for _ in range(n_lanes)]
    lengths = [0] * n_lanes
    wanted = int(BABBLE_S * sample_rate)
    for waveform in waveforms:
        lane = lengths.index(min(lengths))
        rms = float(np.sqrt(np.mean(waveform**2))) + 1e-6
        lanes[lane].append(waveform * np.float32(10 ** (rng.uniform(-6, 6) / 20) / rms))
        lengths[lane] += len(waveform)
        if min(lengths) >= wanted:
            break
    n = min(min(lengths), wanted)
    if not n:
        raise DataError(f"expected at least {n_lanes} clips of speech to make babble of")
    return _int16(np.sum([np.concatenate(lane)[:n] for lane in lanes], axis=0, dtype=np.float32))


class Tracks(Sequence[Int16]):
    """Recordings in one memory-mapped file: any number of processes share its pages."""

    def __init__(self, path: Path, ends: npt.NDArray[np.int64]) -> None:
        self.path = path
        self._ends = ends
        self._samples: Int16 | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Int16:  # type: ignore[override]
        if self._samples is None:
            self._samples = np.memmap(self.path, np.int16, "r").view(np.ndarray)
        start = self._ends[index - 1] if index else 0
        track: Int16 = self._samples[start : self._ends[index]]
        return track

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_ends": self._ends, "_samples": None}


def recorded_tracks(waveforms: Iterable[Waveform], path: Path) -> Tracks:
    """Write recordings into one file of int16 and map it; the file is replaced as a whole.

    Parameters
    ----------
    waveforms : at the rate they are used at; one at a time is in memory
    path : the file to make

    Raises
    ------
    DataError
        There are no recordings.
    """
    lengths = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as file:
        for waveform in waveforms:
            file.write(_int16(waveform).data)
            lengths.append(len(waveform))
        if not lengths:
            raise DataError("expected recordings of noise, got none")
    return Tracks(path, np.cumsum(lengths))


def _piece(track: Int16, n: int, rng: np.random.Generator) -> Float32:
    """Any n samples of a track, which goes on at its beginning where it ends."""
    start = int(rng.integers(len(track)))
    out = np.empty(n, np.float32)
    done = 0
    while done < n:
        part = track[start : start + n - done]
        out[done : done + len(part)] = part
        done += len(part)
        start = 0
    return out


def _int16(waveform: Waveform) -> Int16:
    """Scaled so that the peak is just below full scale; silence stays silence."""
    peak = float(np.abs(waveform).max(initial=0.0))
    scale = np.float32(32_000 / peak) if peak > 0 else np.float32(0)
    scaled: Int16 = (waveform * scale).astype(np.int16)
    return scaled
