"""Fingerprints of recordings: the same one is known again in another file, format or loudness.

Signs of energy differences, as of Haitsma and Kalker 2002 ("A highly robust audio fingerprinting
system"), on a grid over the whole clip instead of by frame: 256 bits a clip, so that a pool of any
size is compared in memory.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edge_imputer.frontend import LogMel
from edge_imputer.specs import FeatureSpec

Waveform = npt.NDArray[np.float32]
Print = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

RATE = FeatureSpec().sample_rate  # of every fingerprint, whatever the model's is
N_SEGMENTS = 17  # of time; neighbours are compared
N_BANDS = 17
PRINT_BYTES = (N_SEGMENTS - 1) * (N_BANDS - 1) // 8
LOUD_FRAMES = 10  # loud is what so many frames, 0.1 s, reach: more than a click does
FLOOR = 5.5  # nats below that: what is fainter is noise of a codec
LEAST_BITS = 24  # a print with fewer is of next to nothing

# Of the bits that either has. docs/active_learning.md says how far copies and other clips are off.
NEAR = 0.35
LENGTHS_DIFFER = 0.05  # share; copies are about as long
LENGTHS_DIFFER_S = 0.06  # or that

_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def difference(prints: Print, print_: Print) -> npt.NDArray[np.float64]:
    """Share of bits that differ among those that either fingerprint has, (N, 32) -> (N,).

    Bits of silence are 0 in both, and say nothing; where one has hardly any, the share is 1.
    """
    differ, either, fewest = (
        _count(x.view(np.uint64)).sum(axis=-1, dtype=np.int32)
        for x in (prints ^ print_, prints | print_, prints)
    )
    fewest = np.minimum(fewest, _count(print_.view(np.uint64)).sum(dtype=np.int32))
    share: npt.NDArray[np.float64] = differ / np.maximum(either, 1)
    return np.where(fewest < LEAST_BITS, 1.0, share)


def _count(words: Words) -> npt.NDArray[np.uint8]:
    """Bits that are set, word by word."""
    found: npt.NDArray[np.uint8]
    if hasattr(np, "bitwise_count"):
        found = np.bitwise_count(words)
    else:  # numpy 1
        octets = np.ascontiguousarray(words)[..., None].view(np.uint8)
        found = _ONES[octets].sum(axis=-1, dtype=np.uint8)
    return found


class Fingerprinter:
    """Makes fingerprints of recordings at `RATE`."""

    def __init__(self) -> None:
        self._log_mel = LogMel(FeatureSpec())
        self._least = FeatureSpec().n_samples(N_SEGMENTS)

    def __call__(self, waveform: Waveform) -> Print:
        """256 bits of a recording (n,); one below 0.2 s is filled up with zeros.

        Returns
        -------
        print : uint8, (32,)
        """
        peak = float(np.abs(waveform).max(initial=0.0))
        padded = np.zeros(max(len(waveform), self._least), np.float32)
        padded[: len(waveform)] = waveform / np.float32(peak or 1.0)
        nats = self._log_mel(padded)
        loud = nats.max(axis=1)
        loud.sort()
        nats = np.maximum(nats, loud[-min(LOUD_FRAMES, len(loud))] - FLOOR)
        grid = _bands(_segments(nats))
        across = np.diff(grid, axis=1)
        return np.packbits(np.diff(across, axis=0) > 0)


def _segments(frames: Waveform) -> npt.NDArray[np.float64]:
    """Means of equal parts of the clip, borders between frames and all: (T, F) -> (17, F)."""
    sums = np.zeros((len(frames) + 1, frames.shape[1]))
    np.cumsum(frames, axis=0, out=sums[1:])
    borders = np.linspace(0, len(frames), N_SEGMENTS + 1)
    whole = np.minimum(borders.astype(np.int64), len(frames) - 1)
    at_borders = sums[whole] + (borders - whole)[:, None] * frames[whole]
    means: npt.NDArray[np.float64] = np.diff(at_borders, axis=0) * (N_SEGMENTS / len(frames))
    return means


def _bands(grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means of neighbouring mel bands: (17, F) -> (17, 17)."""
    return np.stack([part.mean(1) for part in np.array_split(grid, N_BANDS, axis=1)], axis=1)


class KnownPrints:
    """Fingerprints to look a recording up among; 42 bytes each.

    Nothing that is near is missed, for a time in proportion to those of about the length: 0.9 ms
    among 100,000.
    """

    def __init__(self) -> None:
        # Copies are about equally long, so they are looked for among those alone.
        self._by_length: dict[int, _Prints] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, print_: Print, seconds: float) -> int:
        """Keep a fingerprint; what is returned is its number, 0 first."""
        self._by_length.setdefault(_bin(seconds), _Prints()).add(print_, seconds, self._n)
        self._n += 1
        return self._n - 1

    def find(self, print_: Print, seconds: float) -> int | None:
        """Number of the nearest one that is the same recording; None: there is none."""
        best = (NEAR, self._n)  # what is no nearer than that is another recording
        slack = max(LENGTHS_DIFFER * seconds, LENGTHS_DIFFER_S)
        for place in range(_bin(max(0.0, seconds - slack)), _bin(seconds + slack) + 1):
            prints = self._by_length.get(place)
            if prints is not None:
                best = min(best, prints.nearest(print_, seconds, slack))
        return best[1] if best[1] < self._n else None


class _Prints:
    """Fingerprints of about one length, in arrays that double when they are full."""

    def __init__(self) -> None:
        self._words = np.zeros((PRINT_BYTES // 8, 4), np.uint64)  # a word of all prints in a row
        self._most = np.zeros(4, np.float32)  # shares of the bits that may differ, see `_most`
        self._seconds = np.zeros(4, np.float32)
        self._numbers = np.zeros(4, np.int32)
        self._n = 0

    def add(self, print_: Print, seconds: float, number: int) -> None:
        if self._n == len(self._seconds):
            for name in ("_words", "_most", "_seconds", "_numbers"):
                full = getattr(self, name)
                setattr(self, name, np.concatenate([full, np.zeros_like(full)], axis=-1))
        words = print_.view(np.uint64)
        self._words[:, self._n], self._most[self._n] = words, _most(words)
        self._seconds[self._n], self._numbers[self._n] = seconds, number
        self._n += 1

    def nearest(self, print_: Print, seconds: float, slack: float) -> tuple[float, int]:
        """Difference and number of the nearest one, the first on a tie; (inf, 0): none is near."""
        words = print_.view(np.uint64)
        differ = _count(self._words[0, : self._n] ^ words[0])
        differ += _count(self._words[1, : self._n] ^ words[1])  # half of the bits rules most out
        near = np.flatnonzero(differ <= self._most[: self._n] + _most(words))
        near = near[np.abs(self._seconds[near] - seconds) <= slack]
        if not len(near):
            return float("inf"), 0
        shares = difference(np.ascontiguousarray(self._words[:, near].T).view(np.uint8), print_)
        first = int(shares.argmin())
        return float(shares[first]), int(self._numbers[near[first]])


def _most(words: Words) -> float:
    """A print's part of the bits in which near ones differ at most.

    Of prints with a and b bits that differ in d, (a + b + d) / 2 are set in either: so at a share
    of `NEAR` d is NEAR / (2 - NEAR) of a + b.
    """
    return NEAR / (2 - NEAR) * int(_count(words).sum(dtype=np.int32)) + 1e-3  # of rounding


def _bin(seconds: float) -> int:
    """Bins of lengths 5 % wide, or 60 ms where that is more."""
    linear = LENGTHS_DIFFER_S / LENGTHS_DIFFER
    if seconds < linear:
        return int(seconds / LENGTHS_DIFFER_S)
    return int(linear / LENGTHS_DIFFER_S + math.log(seconds / linear) / math.log1p(LENGTHS_DIFFER))
