"""Where a pool is: a manifest, or the recordings that a device saved; and some of its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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


def pool_file(pool: Path, folder: Path) -> tuple[Path, list[str]]:
    """The manifest of a pool, and what to know of it.

    A folder of recordings is listed once: scores are of the rows of that list, so it stays as it is
    when recordings are added.

    Parameters
    ----------
    pool : a manifest, a corpus folder, or a folder of recordings: then its files, those in its
        folders too, are listed in their order
    folder : where the list is, or is written; what is below it is not of the pool

    Raises
    ------
    DataError
        There is nothing, or no recording; or the list is of another pool.
    """
    if not pool.is_dir() or (pool / MANIFEST_NAME).is_file():
        return find_manifest(pool), []
    home, own = pool.resolve(), folder.resolve()
    found = [p for p in home.rglob("*") if p.suffix.lower() in ENDINGS and own not in p.parents]
    files = sorted(str(p) for p in found if _is_utf8(p))
    notes = []
    if len(files) < len(found):
        odd = next(os.fsencode(p) for p in found if not _is_utf8(p))
        notes.append(
            f"{len(found) - len(files)} recordings whose names are not UTF-8 are left out, such as "
            f"{odd!r}; rename them"
        )
    if not files:
        endings = ", ".join(sorted(ENDINGS))
        nothing = f"{pool}: expected {MANIFEST_NAME} or recordings ({endings}), found neither"
        raise DataError("; ".join([nothing, *notes]))
    listed = folder / POOL_NAME
    if listed.is_file():
        return listed, [*notes, *_added(listed, home, files)]
    write_manifest(listed, _records(files))
    return listed, notes


def _is_utf8(path: Path) -> bool:
    """Whether a manifest can name it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _added(listed: Path, home: Path, files: Sequence[str]) -> list[str]:
    """What to know of files that are not in a list that was made before."""
    known = {record.audio for record in Manifest.open(listed)}
    if not all(Path(audio).is_relative_to(home) for audio in known):
        raise DataError(
            f"{listed} lists recordings that are not in {home}; give another name with --out"
        )
    new = [file for file in files if file not in known]
    if not new:
        return []
    return [
        f"{len(new)} recordings were added since {listed} was written, such as {new[0]}, and are "
        "left out; to choose from all, give another name with --out"
    ]


def _records(files: Sequence[str]) -> Iterator[ClipRecord]:
    for file in files:
        try:
            n_samples, rate = audio_length(file)
        except AudioError:  # it is looked at again, and reported, when it is to be scored
            n_samples, rate = 0, 1
        yield ClipRecord(
            audio=file,
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
