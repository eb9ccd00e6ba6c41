"""Which clips of a pool a model was trained on: by their place in a file, and by their sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edge_imputer.errors import AudioError

from ..data import ClipRecord, Manifest, read_clip
from .fingerprint import RATE, Fingerprinter, KnownPrints, Print
from .places import KnownPlaces, file_number

REASON = "in the training set"


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
        self._places = KnownPlaces()
        self._prints = KnownPrints()
        make = Fingerprinter()
        done, total = 0, sum(map(len, manifests))
        for part in manifests:
            for record in part:
                file = file_number(part.folder, record.audio)
                self._places.add(file, record.offset_s, record.duration_s)
                self._listen(part.folder, record, make)
                done += 1
                if progress is not None:
                    progress(done, total)

    def _listen(self, folder: Path, record: ClipRecord, make: Fingerprinter) -> None:
        try:
            waveform = read_clip(folder, record, RATE)
        except (AudioError, OSError):
            self.unreadable += 1
            return
        self._prints.add(make(waveform), len(waveform) / RATE)

    def has_place(self, folder: Path, record: ClipRecord) -> bool:
        """Whether the clip's part of its file was trained on, or some of it was."""
        file = file_number(folder, record.audio)
        return self._places.find(file, record.offset_s, record.duration_s) is not None

    def has_sound(self, print_: Print, seconds: float) -> bool:
        """Whether a recording of that fingerprint was trained on, be it from another file."""
        return self._prints.find(print_, seconds) is not None
