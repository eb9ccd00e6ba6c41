"""Parts of files: which of those that are known overlaps another."""

from __future__ import annotations

import hashlib
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

APART_S = 0.05  # parts of a file that share less than that are apart
_BUCKETS = 1024


def file_number(folder: Path, audio: str, *, below: str = "/") -> int:
    """64 bits that tell a file from the others, whatever links lead to it.

    Parameters
    ----------
    folder, audio : the file
    below : resolved; of files below it the number is the same wherever it is mounted
    """
    try:
        path = os.path.relpath(os.path.realpath(folder / audio), below)
    except ValueError:  # a NUL in it: there is no such file
        path = audio
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "big")


class KnownPlaces:
    """Parts of files to look others up among; 20 bytes each."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Parts] = {}  # by file: few are looked at
        self._n = 0

    def add(self, file: int, start_s: float, seconds: float) -> int:
        """Keep a part; what is returned is its number, 0 first.

        Parameters
        ----------
        file : see `file_number`
        start_s, seconds : 0 seconds reach to the end of the file
        """
        self._buckets.setdefault(file % _BUCKETS, _Parts()).add(
            file, start_s, start_s + (seconds or np.inf), self._n
        )
        self._n += 1
        return self._n - 1

    def find(self, file: int, start_s: float, seconds: float) -> int | None:
        """Number of the first one that shares more than 0.05 s, or half of this; None: none."""
        parts = self._buckets.get(file % _BUCKETS)
        if parts is None:
            return None
        end_s, least = start_s + (seconds or np.inf), min(APART_S, (seconds or np.inf) / 2)
        return parts.overlapping(file, start_s, end_s, least)


@dataclass
class _Parts:
    """Parts of some files."""

    files: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[float] = field(default_factory=lambda: array("f"))
    ends: array[float] = field(default_factory=lambda: array("f"))
    numbers: array[int] = field(default_factory=lambda: array("i"))

    def add(self, file: int, start: float, end: float, number: int) -> None:
        self.files.append(file)
        self.starts.append(start)
        self.ends.append(end)
        self.numbers.append(number)

    def overlapping(self, file: int, start: float, end: float, least: float) -> int | None:
        mine = np.flatnonzero(np.frombuffer(self.files, np.uint64) == np.uint64(file))
        starts = np.frombuffer(self.starts, np.float32)[mine]
        ends = np.frombuffer(self.ends, np.float32)[mine]
        shared = np.flatnonzero(np.minimum(ends, end) - np.maximum(starts, start) > least)
        return self.numbers[mine[shared[0]]] if len(shared) else None
