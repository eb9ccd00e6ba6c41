"""Which clips of a pool a model was trained on: by their place in a file, and by their sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import AudioError
from edge_imputer.files import write_atomically

from ..data import ClipRecord, Manifest, read_clip
from ..data.journal import writing
from .fingerprint import PRINT_BYTES, RATE, Fingerprinter, KnownPrints, Print
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
    kept
        A file of their fingerprints, which is written if it is not there: those in it are not
        decoded again. Its name says of which manifests it is.

    Attributes
    ----------
    unreadable : int
        Clips that could not be read, which are then known by their place only.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        progress: Callable[[int, int], None] | None = None,
        kept: Path | None = None,
    ) -> None:
        total = sum(map(len, manifests))
        heard = _read(kept, total)  # 0 s: not heard yet, or it could not be read
        unheard = int((heard["seconds"] == 0).sum())
        self._places = KnownPlaces()
        self._prints = KnownPrints()
        make = Fingerprinter()
        for done, (folder, record) in enumerate(((m.folder, r) for m in manifests for r in m), 1):
            file = file_number(folder, record.audio)
            self._places.add(file, record.offset_s, record.duration_s)
            one = heard[done - 1]
            if not one["seconds"]:
                one["seconds"], one["print"] = _listen(folder, record, make)
            if one["seconds"]:
                self._prints.add(one["print"], float(one["seconds"]))
            if progress is not None:
                progress(done, total)
        self.unreadable = int((heard["seconds"] == 0).sum())
        if kept is not None and self.unreadable < unheard:
            _write(kept, heard)

    def has_place(self, folder: Path, record: ClipRecord) -> bool:
        """Whether the clip's part of its file was trained on, or some of it was."""
        file = file_number(folder, record.audio)
        return self._places.find(file, record.offset_s, record.duration_s) is not None

    def has_sound(self, print_: Print, seconds: float) -> bool:
        """Whether a recording of that fingerprint was trained on, be it from another file."""
        return self._prints.find(print_, seconds) is not None


_HEARD = np.dtype([("seconds", "<f4"), ("print", np.uint8, PRINT_BYTES)])


def _listen(folder: Path, record: ClipRecord, make: Fingerprinter) -> tuple[float, Print]:
    """Seconds and fingerprint of a clip; 0 seconds of one that cannot be read."""
    try:
        waveform = read_clip(folder, record, RATE)
    except (AudioError, OSError):
        return 0.0, np.zeros(PRINT_BYTES, np.uint8)
    return len(waveform) / RATE, make(waveform)


def _read(kept: Path | None, n: int) -> npt.NDArray[np.void]:
    """What is kept of so many clips, (N,) of `_HEARD`; zeros if that is nothing."""
    data = kept.read_bytes() if kept is not None and kept.is_file() else b""
    if len(data) != n * _HEARD.itemsize:
        data = bytes(n * _HEARD.itemsize)
    return np.frombuffer(bytearray(data), _HEARD)


def _write(kept: Path, heard: npt.NDArray[np.void]) -> None:
    with writing(kept):
        write_atomically(kept, heard.tobytes())
