"""The scores of a whole pool, joined of its shards: compact arrays, and the rest on disk."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError

from .junk import REASONS
from .score_log import (
    BLOCK,
    Entry,
    embedding_file,
    entry_of,
    foreign,
    head_of,
    is_complete,
    lost_embeddings,
    rows_of,
)

RankBy = Literal["per_second", "score"]

_NAME = re.compile(r"scores-(\d+)-of-(\d+)\.jsonl")


class ScoreTable:
    """The scores of a whole pool: 17 bytes a row in memory, the rest is read when asked for.

    Attributes
    ----------
    key : float32, (N,)
        What clips are ranked by.
    seconds : float32, (N,)
    state : uint8, (N,)
        Places in `REASONS`; 0: the row has a score.
    """

    def __init__(
        self,
        files: Sequence[Path],
        key: npt.NDArray[np.float32],
        seconds: npt.NDArray[np.float32],
        state: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        n_vectors: Sequence[int],
    ) -> None:
        self._files = files
        self._n_vectors = n_vectors  # of each file
        self.key, self.seconds, self.state = key, seconds, state
        self._offsets = offsets  # (N,) bytes into the row's own file

    @classmethod
    def read(
        cls,
        files: Sequence[Path],
        purpose: dict[str, Any],
        n_rows: int,
        *,
        rank_by: RankBy = "per_second",
        see: Callable[[Entry], None] | None = None,
    ) -> ScoreTable:
        """Join the shards of a pool.

        Parameters
        ----------
        files : of all shards, in order
        purpose : what they are to hold for, see `ScoreLog`
        n_rows : of the pool
        rank_by : which of an entry's scores clips are ranked by
        see : called with every entry, in the pool's order

        Raises
        ------
        DataError
            A file is of something else, or has not all of its rows.
        """
        numbers = {reason: number for number, reason in enumerate(REASONS)}
        key, seconds = array("f"), array("f")
        state, offsets = array("B"), array("q")
        n_vectors = [0] * len(files)
        for offset, entry in read_in_order(files, purpose, n_rows):
            key.append(getattr(entry, rank_by))
            seconds.append(entry.seconds)
            state.append(numbers[entry.reason])
            offsets.append(offset)
            if entry.vector >= 0:
                n_vectors[entry.row // BLOCK % len(files)] += 1
            if see is not None:
                see(entry)
        return cls(
            files,
            np.frombuffer(key, np.float32),
            np.frombuffer(seconds, np.float32),
            np.frombuffer(state, np.uint8),
            np.frombuffer(offsets, np.int64),
            n_vectors,
        )

    def __len__(self) -> int:
        return len(self.key)

    def entries(self, rows: npt.ArrayLike) -> Iterator[Entry]:
        """Entries of some rows, in the order given."""
        opened = [path.open("rb") for path in self._files]
        try:
            for row in np.asarray(rows).tolist():
                file = opened[row // BLOCK % len(opened)]
                file.seek(int(self._offsets[row]))
                yield entry_of(self._files[row // BLOCK % len(opened)], file.readline(), row)
        finally:
            for file in opened:
                file.close()

    def embeddings(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Embeddings of some rows, (M, D).

        They are read one by one: of a memory map every page that is touched would stay.

        Raises
        ------
        DataError
            They are not there.
        """
        wanted = np.asarray(rows, np.int64)
        shard = wanted // BLOCK % len(self._files)
        place = np.fromiter((e.vector for e in self.entries(wanted)), np.int64, len(wanted))
        found: npt.NDArray[np.float32] | None = None
        for index, path in enumerate(self._files):
            mine = np.flatnonzero(shard == index)
            if not len(mine):
                continue
            vectors = embedding_file(path)
            width = _width(vectors, self._n_vectors[index])
            if found is None:
                found = np.empty((len(wanted), width), "<f4")
            with vectors.open("rb", buffering=0) as file:
                for row in mine[np.argsort(place[mine])]:  # in the order of the disk
                    file.seek(4 * width * int(place[row]))
                    file.readinto(found[row])
        return np.zeros((0, 1), np.float32) if found is None else found


def _width(path: Path, n: int) -> int:
    """Numbers of each of so many embeddings."""
    size = path.stat().st_size if path.is_file() else 0
    if not n or not size or size % (4 * n):
        raise lost_embeddings(path, n, size)
    return size // 4 // n


def read_in_order(
    files: Sequence[Path], purpose: dict[str, Any], n_rows: int
) -> Iterator[tuple[int, Entry]]:
    """Every entry in the pool's order, with its byte offset in its file.

    Raises
    ------
    DataError
        A file is of something else, or has not all of its rows.
    """
    head = head_of(purpose)
    opened = [path.open("rb") for path in files]
    try:
        for path, file in zip(files, opened, strict=True):
            first = file.readline()
            if first != head:
                raise foreign(path, first, head)
        offsets = [len(head)] * len(files)
        for block in range(-(-n_rows // BLOCK)):
            index = block % len(files)
            for row in rows_of(block, n_rows):
                line = opened[index].readline()
                if not line.endswith(b"\n"):
                    raise DataError(
                        f"{files[index]}: ends before row {row} of {n_rows}; go on with --shard "
                        f"{index + 1}/{len(files)}"
                    )
                yield offsets[index], entry_of(files[index], line, row)
                offsets[index] += len(line)
    finally:
        for file in opened:
            file.close()


def shards_in(folder: Path, purpose: dict[str, Any]) -> list[Path]:
    """The files of a whole set of shards, in order; one whose shards are all scored, if any.

    Parameters
    ----------
    folder : Path
    purpose : what they are to hold for, see `ScoreLog`

    Raises
    ------
    DataError
        There is none, or one is missing.
    """
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("scores-*.jsonl"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.setdefault(int(match[2]), {})[int(match[1])] = path
    whole = [
        [parts[index] for index in range(1, of + 1)]
        for of, parts in sorted(found.items())
        if len(parts) == of
    ]
    if whole:
        scored = (files for files in whole if all(is_complete(f, purpose) for f in files))
        return next(scored, whole[0])
    if not found:
        raise DataError(f"{folder}: expected scores, found none; score the shards first")
    of, parts = max(found.items(), key=lambda item: len(item[1]) / item[0])
    missing = next(k for k in range(1, of + 1) if k not in parts)
    raise DataError(
        f"{folder}: {len(parts)} of {of} shards are there; score the others, such as "
        f"--shard {missing}/{of}"
    )
