"""Scores on disk: one JSON object a clip, appended block by block, so that a killed run goes on.

A pool is cut into blocks of `BLOCK` rows, and a shard has every N-th of them. What a batch holds
depends on its block alone; so scores are the same, bit for bit, for any number of shards, and in a
run that was interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError, SpecError
from edge_imputer.files import write_atomically

from ..data.journal import writing

BLOCK = 64  # rows


class Shard(msgspec.Struct, frozen=True):
    """Part `index` of `of`, 1 first."""

    index: int = 1
    of: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """Read ``2/8``.

        Raises
        ------
        SpecError
            It is not of that form.
        """
        first, _, second = text.partition("/")
        if first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second):
            return Shard(int(first), int(second))
        raise SpecError(f"expected a shard such as 2/8, the second of eight, got {text!r}")

    def blocks(self, n_rows: int) -> range:
        """Numbers of its blocks."""
        return range(self.index - 1, -(-n_rows // BLOCK), self.of)

    def n_rows(self, n_rows: int) -> int:
        """How many of a pool's rows are its own."""
        return sum(len(rows_of(block, n_rows)) for block in self.blocks(n_rows))

    def file(self, folder: Path) -> Path:
        """Where its scores are."""
        return folder / f"scores-{self.index}-of-{self.of}.jsonl"


def rows_of(block: int, n_rows: int) -> range:
    """Rows of a block."""
    return range(block * BLOCK, min((block + 1) * BLOCK, n_rows))


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What became of a row of the pool.

    Attributes
    ----------
    row : int
    seconds : float
        Of its audio; by the manifest where that was not read.
    reason, detail : str
        Why it has no score, one of `REASONS`, and particulars; empty where it has one.
    score, per_second, text, confidence
        As `ClipScore`.
    print : str
        Its fingerprint, in hexadecimal digits.
    file, start
        Where it is, if it was read: its file's number, see `file_number`, and seconds into it.
    vector : int
        Place of its embedding in the shard's file of them, 0 first; -1: it has none.
    """

    row: int
    seconds: float
    reason: str = ""
    detail: str = ""
    score: float = 0.0
    per_second: float = 0.0
    text: str = ""
    confidence: float = 0.0
    print: str = ""
    file: int = 0
    start: float = 0.0
    vector: int = -1


class ScoreLog:
    """The scores of one shard, open for writing; a context.

    Parameters
    ----------
    folder : Path
    shard : Shard
    purpose : mapping
        What the scores hold for: model, pool, strategy and so on. It is the file's first line.
    n_rows : int
        Of the pool.

    Attributes
    ----------
    blocks : range
        All of the shard's.
    n_rows, rows_done, blocks_done : int
        Of the shard.

    Raises
    ------
    DataError
        The file holds scores of something else, or cannot be written.
    """

    def __init__(self, folder: Path, shard: Shard, purpose: dict[str, Any], n_rows: int) -> None:
        self.path = shard.file(folder)
        self.blocks = shard.blocks(n_rows)
        self.n_rows = shard.n_rows(n_rows)
        head = head_of(purpose)
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            size, done = _resume(self.path, head, self.blocks, n_rows)
            self.blocks_done, self.rows_done, self._n_vectors = done
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, 0, os.SEEK_END)
            if not size:
                self._write(head)
        self._head = head
        self._embeddings = embedding_file(self.path)
        self._mark_when_done()

    def __enter__(self) -> ScoreLog:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def add(
        self,
        entries: Sequence[Entry],
        embeddings: Mapping[int, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        """Append a block: it is with the operating system when this returns.

        Parameters
        ----------
        entries : of all rows of the next block, in their order
        embeddings : (D,) by place in `entries`, of strategies that choose by them

        Raises
        ------
        DataError
            The file cannot be written, or embeddings of blocks that are done are lost.
        """
        numbered = list(entries)
        if embeddings:
            for number, place in enumerate(sorted(embeddings), self._n_vectors):
                numbered[place] = msgspec.structs.replace(numbered[place], vector=number)
        with writing(self.path):
            if embeddings:  # before what says that they are there
                self._put(np.stack([embeddings[place] for place in sorted(embeddings)]))
            self._write(b"".join(msgspec.json.encode(e) + b"\n" for e in numbered))
        self.blocks_done += 1
        self.rows_done += len(entries)
        self._mark_when_done()

    def _mark_when_done(self) -> None:
        """Say that all is there, for those who wait: see `is_complete`."""
        mark = _mark_of(self.path)
        if self.rows_done == self.n_rows:
            write_atomically(mark, self._head)
        else:
            mark.unlink(missing_ok=True)

    def _put(self, vectors: npt.NDArray[np.float32]) -> None:
        place = self._n_vectors * vectors.shape[1] * 4
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        descriptor = os.open(self._embeddings, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size < place:  # else zeros would take the place of what is lost
                raise lost_embeddings(self._embeddings, self._n_vectors, size)
            os.ftruncate(descriptor, place)
            while data:
                written = os.pwrite(descriptor, data, place)
                place, data = place + written, data[written:]
        finally:
            os.close(descriptor)
        self._n_vectors += len(vectors)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def head_of(purpose: dict[str, Any]) -> bytes:
    """The first line of a file of scores."""
    return msgspec.json.encode({"scores": 3, **purpose}) + b"\n"


def embedding_file(scores: Path) -> Path:
    """Where the embeddings of a file of scores are, little-endian float32, row by row."""
    return scores.with_suffix(".f32")


def lost_embeddings(path: Path, n: int, size: int) -> DataError:
    """What is wrong with a file of embeddings that has not what the scores beside it say."""
    return DataError(
        f"{path}: expected the embeddings of {n} clips, got {size} bytes; remove "
        f"{path.with_suffix('.jsonl').name} beside it and score anew"
    )


def _resume(
    path: Path, head: bytes, blocks: range, n_rows: int
) -> tuple[int, tuple[int, int, int]]:
    """Bytes of the file that are good; the blocks, rows and embeddings in them."""
    if not path.is_file():
        return 0, (0, 0, 0)
    with path.open("rb") as file:
        first = file.readline()
        if first != head:
            if not first.endswith(b"\n"):  # killed while it was begun
                return 0, (0, 0, 0)
            raise foreign(path, first, head)
        size = len(first)
        n_blocks = n_done = n_vectors = 0
        for block in blocks:
            rows = rows_of(block, n_rows)
            lines = [file.readline() for _ in rows]
            if not all(line.endswith(b"\n") for line in lines):
                break
            for line, row in zip(lines, rows, strict=True):
                n_vectors += entry_of(path, line, row).vector >= 0
            size += sum(map(len, lines))
            n_done += len(rows)
            n_blocks += 1
    return size, (n_blocks, n_done, n_vectors)


def entry_of(path: Path, line: bytes, row: int) -> Entry:
    """The entry of a row."""
    try:
        found = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the line of row {row} is damaged ({error}); remove the file and run the "
            "same command again"
        ) from error
    if found.row != row:
        raise DataError(
            f"{path}: expected the score of row {row}, got that of row {found.row}; remove the "
            "file and run the same command again"
        )
    return found


_decode = msgspec.json.Decoder(Entry).decode


def foreign(path: Path, found: bytes, head: bytes) -> DataError:
    """What is wrong with a file of scores that begins otherwise."""
    try:
        theirs, ours = (msgspec.json.decode(h, type=dict[str, Any]) for h in (found, head))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return DataError(f"{path}: not a file of scores; give another name with --out")
    differ = ", ".join(key for key in ours if theirs.get(key) != ours[key]) or "more than these"
    return DataError(
        f"{path} holds scores that were made otherwise ({differ}); give another name with --out, "
        "or remove that file to score anew"
    )


def is_complete(path: Path, purpose: dict[str, Any]) -> bool:
    """Whether a shard's file has all of its rows, for what these scores are to hold for."""
    mark = _mark_of(path)
    return mark.is_file() and mark.read_bytes() == head_of(purpose)


def _mark_of(path: Path) -> Path:
    return path.with_suffix(".done")
