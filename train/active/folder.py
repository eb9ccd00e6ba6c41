"""Where a pool is: a manifest, or the recordings that a device saved; and some of its rows."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.audio import audio_length
from edge_imputer.errors import AudioError, DataError

from ..data import ClipRecord, Manifest, write_manifest
from ..data.manifest import MANIFEST_NAME, find_manifest, read_rows
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
    found = _Recordings(os.fspath(folder.resolve()))
    home = os.path.join(pool.resolve(), "")
    files = found.below(home)
    first = next(files, None)
    if first is None:
        endings = ", ".join(sorted(ENDINGS))
        nothing = f"{pool}: expected {MANIFEST_NAME} or recordings ({endings}), found neither"
        raise DataError("; ".join([nothing, *found.notes()]))
    files = chain([first], files)
    listed = folder / POOL_NAME
    if listed.is_file():
        added = _added(listed, home, files)
        return listed, [*found.notes(), *added]
    write_manifest(listed, _records(files))
    return listed, found.notes()


@dataclass
class _Recordings:
    """Lists recordings in the order of their paths, and counts what is left out.

    In memory are the names in one folder, and in those that it is in.
    """

    own: str  # folder that is passed over
    odd: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def below(self, folder: str) -> Iterator[str]:
        """Those below a folder, whose path ends with a slash; links to folders are not followed."""
        try:
            with os.scandir(folder) as entries:
                names = [_name(entry) for entry in entries]
        except OSError as error:
            self.closed.append(f"{folder} ({error.strerror})")
            return
        for name in sorted(filter(None, names)):
            path = folder + name
            if path.endswith(os.sep):
                if path[:-1] != self.own:
                    yield from self.below(path)
            elif _is_utf8(path):
                yield path
            else:
                self.odd.append(path)

    def notes(self) -> list[str]:
        """What to know of those that were left out."""
        notes = []
        if self.odd:
            notes.append(
                f"{len(self.odd)} recordings whose names are not UTF-8 are left out, such as "
                f"{os.fsencode(self.odd[0])!r}; rename them"
            )
        if self.closed:
            notes.append(
                f"{len(self.closed)} folders that cannot be listed are left out, such as "
                f"{self.closed[0]}"
            )
        return notes


def _name(entry: os.DirEntry[str]) -> str:
    """What a folder's entry is sorted by: a folder's ends with a slash, other files have none."""
    if entry.is_dir(follow_symlinks=False):
        return entry.name + os.sep
    return entry.name if os.path.splitext(entry.name)[1].lower() in ENDINGS else ""


def _is_utf8(path: str) -> bool:
    """Whether a manifest can name it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _added(listed: Path, home: str, files: Iterable[str]) -> list[str]:
    """What to know of files that are not in a list that was made before; both are in order."""
    known = _known(listed, home)
    old = next(known, None)
    n_new, such = 0, ""
    for file in files:
        while old is not None and old < file:
            old = next(known, None)
        if file != old:
            n_new, such = n_new + 1, such or file
    deque(known, maxlen=0)  # what is left of them is looked at too
    if not n_new:
        return []
    return [
        f"{n_new} recordings were added since {listed} was written, such as {such}, and are "
        "left out; to choose from all, give another name with --out"
    ]


def _known(listed: Path, home: str) -> Iterator[str]:
    """The files of a list."""
    for record in read_rows(listed, msgspec.json.Decoder(ClipRecord).decode):
        if not record.audio.startswith(home):
            raise DataError(
                f"{listed} lists recordings that are not in {home}; give another name with --out"
            )
        yield record.audio


def _records(files: Iterable[str]) -> Iterator[ClipRecord]:
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
