"""Where a pool is: a manifest, or the recordings that a device saved; and some of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_imputer.audio import audio_length
from edge_imputer.errors import AudioError, DataError

from ..data import ClipRecord, Manifest, write_manifest
from ..data.manifest import MANIFEST_NAME, find_manifest
from ..data.records import UNKNOWN_SPEAKER

ENDINGS = frozenset({".wav", ".flac", ".ogg", ".mp3"})
POOL_NAME = "pool.jsonl"


def pool_file(pool: Path, folder: Path) -> Path:
    """The manifest of a pool.

    Parameters
    ----------
    pool : a manifest, a corpus folder, or a folder of recordings: then its files, those in its
        folders too, are listed in their order
    folder : where the list is written

    Raises
    ------
    DataError
        There is nothing, or no recording.
    """
    if not pool.is_dir() or (pool / MANIFEST_NAME).is_file():
        return find_manifest(pool)
    files = sorted(p for p in pool.resolve().rglob("*") if p.suffix.lower() in ENDINGS)
    if not files:
        endings = ", ".join(sorted(ENDINGS))
        raise DataError(
            f"{pool}: expected {MANIFEST_NAME} or recordings ({endings}), found neither"
        )
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / POOL_NAME
    write_manifest(listed, _records(files))
    return listed


def _records(files: list[Path]) -> Iterator[ClipRecord]:
    for file in files:
        try:
            n_samples, rate = audio_length(file)
        except AudioError:  # it is looked at again, and reported, when it is to be scored
            n_samples, rate = 0, 1
        yield ClipRecord(
            audio=str(file),
            text=None,
            speaker=UNKNOWN_SPEAKER,
            split="train",
            duration_s=round(n_samples / rate, 6),
            sample_rate=rate,
        )


class PoolRows:
    """Some rows of a pool, by their numbers in it; the others take no memory.

    Parameters
    ----------
    file : the pool's manifest
    n_rows : of the pool
    *rows : numbers, (K,) each, in any order
    """

    def __init__(self, file: Path, n_rows: int, *rows: npt.ArrayLike) -> None:
        wanted = np.zeros(n_rows, bool)
        for some in rows:
            wanted[np.asarray(some, np.int64)] = True
        self._rows = np.flatnonzero(wanted).astype(np.int32)
        self._manifest = Manifest.open(file, rows=wanted)
        self.folder = self._manifest.folder

    def __getitem__(self, row: int) -> ClipRecord:
        return self._manifest[self._place(row)]

    def line(self, row: int) -> bytes:
        """The row as it stands in the file."""
        return self._manifest.line(self._place(row))

    def _place(self, row: int) -> int:
        return int(np.searchsorted(self._rows, row))
