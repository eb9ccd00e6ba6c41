"""Which clips of a pool a model was trained on: by their place in a file, and by their sound."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import AudioError

from ..data import ClipRecord, Manifest, read_clip
from .fingerprint import RATE, Fingerprinter, KnownPrints, Print

REASON = "in the training set"
_APART_S = 0.05  # parts of a file that share less than that are apart


class TrainedOn:
    """The clips of some manifests; 20 bytes each for their places and 42 for their sound.

    Parameters
    ----------
    manifests
        What was trained on, of all splits: a clip that is tested on is no better in a pool.
    progress
        Called with the clips done and the clips in all.

    Attributes
    ----------
    unreadable : int
        Clips that could not be read, which are then known by their place only.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.unreadable = 0
        self._places = _Places((part.folder, record) for part in manifests for record in part)
        self._prints = KnownPrints()
        make = Fingerprinter()
        done, total = 0, sum(map(len, manifests))
        for part in manifests:
            for record in part:
                self._listen(part.folder, record, make)
                done += 1
                if progress is not None:
                    progress(done, total)

    def _listen(self, folder: Path, record: ClipRecord, make: Fingerprinter) -> None:
        try:
            waveform = read_clip(folder, record, RATE)
        except AudioError:
            self.unreadable += 1
            return
        self._prints.add(make(waveform), len(waveform) / RATE)

    def has_place(self, folder: Path, record: ClipRecord) -> bool:
        """Whether the clip's part of its file was trained on, or some of it was."""
        return self._places.overlap(folder, record)

    def has_sound(self, print_: Print, seconds: float) -> bool:
        """Whether a recording of that fingerprint was trained on, be it from another file."""
        return self._prints.find(print_, seconds) is not None


class _Places:
    """Parts of files, sorted by file."""

    def __init__(self, clips: Iterable[tuple[Path, ClipRecord]]) -> None:
        files, starts, ends = array("Q"), array("f"), array("f")
        for folder, record in clips:
            files.append(_file_number(folder, record.audio))
            starts.append(record.offset_s)
            ends.append(record.offset_s + record.duration_s)
        of_file = np.array(files, np.uint64)
        order = np.argsort(of_file, kind="stable")
        self._files: npt.NDArray[np.uint64] = of_file[order]
        self._starts = np.array(starts, np.float32)[order]
        self._ends = np.array(ends, np.float32)[order]

    def overlap(self, folder: Path, record: ClipRecord) -> bool:
        number = np.uint64(_file_number(folder, record.audio))
        first = int(np.searchsorted(self._files, number, side="left"))
        last = int(np.searchsorted(self._files, number, side="right"))
        start, end = record.offset_s, record.offset_s + record.duration_s
        shared = np.minimum(self._ends[first:last], end) - np.maximum(
            self._starts[first:last], start
        )
        return bool((shared > min(_APART_S, record.duration_s / 2)).any())


def _file_number(folder: Path, audio: str) -> int:
    """64 bits that tell a file from the others, whatever links lead to it."""
    path = os.path.realpath(folder / audio)
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")
