"""Scores on disk: one JSON object a clip, appended block by block, so that a killed run goes on.

A pool is cut into blocks of `BLOCK` rows, and a shard has every N-th of them. What a batch holds
depends on its block alone; so scores are the same, bit for bit, for any number of shards, and in a
run that was interrupted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError, SpecError

from ..data.journal import writing

BLOCK = 64  # rows

_NAME = re.compile(r"scores-(\d+)-of-(\d+)\.jsonl")


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

    def __init__(
        self, folder: Path, shard: Shard, purpose: dict[str, Any], n_rows: int
    ) -> None:
        self.path = shard.file(folder)
        self.blocks = shard.blocks(n_rows)
        self.n_rows = shard.n_rows(n_rows)
        head = _head(purpose)
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            size, done = _resume(self.path, head, self.blocks, n_rows)
            self.blocks_done, self.rows_done, self._n_vectors = done
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, 0, os.SEEK_END)
            if not size:
                self._write(head)
        self._embeddings = _embedding_file(self.path)

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

    def _put(self, vectors: npt.NDArray[np.float32]) -> None:
        place = self._n_vectors * vectors.shape[1] * 4
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        descriptor = os.open(self._embeddings, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
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


def _head(purpose: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"scores": 1, **purpose}) + b"\n"


def _embedding_file(scores: Path) -> Path:
    return scores.with_suffix(".f32")


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
            raise _foreign(path, first, head)
        size = len(first)
        n_blocks = n_done = n_vectors = 0
        for block in blocks:
            rows = rows_of(block, n_rows)
            lines = [file.readline() for _ in rows]
            if not all(line.endswith(b"\n") for line in lines):
                break
            for line, row in zip(lines, rows, strict=True):
                n_vectors += _entry(path, line, row).vector >= 0
            size += sum(map(len, lines))
            n_done += len(rows)
            n_blocks += 1
    return size, (n_blocks, n_done, n_vectors)


def _entry(path: Path, line: bytes, row: int) -> Entry:
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


def _foreign(path: Path, found: bytes, head: bytes) -> DataError:
    try:
        theirs, ours = (msgspec.json.decode(h, type=dict[str, Any]) for h in (found, head))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return DataError(f"{path}: not a file of scores; give another name with --out")
    differ = ", ".join(key for key in ours if theirs.get(key) != ours[key]) or "more than these"
    return DataError(
        f"{path} holds scores that were made otherwise ({differ}); give another name with --out, "
        "or remove that file to score anew"
    )


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

    def __len__(self) -> int:
        return len(self.key)

    def entries(self, rows: npt.ArrayLike) -> Iterator[Entry]:
        """Entries of some rows, in the order given."""
        opened = [path.open("rb") for path in self._files]
        try:
            for row in np.asarray(rows).tolist():
                file = opened[row // BLOCK % len(opened)]
                file.seek(int(self._offsets[row]))
                yield _decode(file.readline())
        finally:
            for file in opened:
                file.close()

    def embeddings(self, entries: Sequence[Entry]) -> npt.NDArray[np.float32]:
        """Embeddings of some rows, (M, D).

        Raises
        ------
        DataError
            They are not there.
        """
        shard = np.array([entry.row // BLOCK % len(self._files) for entry in entries])
        place = np.array([entry.vector for entry in entries])
        found: npt.NDArray[np.float32] | None = None
        for index, path in enumerate(self._files):
            mine = shard == index
            if mine.any():
                vectors = _vectors(_embedding_file(path), self._n_vectors[index])
                if found is None:
                    found = np.empty((len(entries), vectors.shape[1]), np.float32)
                found[mine] = vectors[place[mine]]
        return np.zeros((0, 1), np.float32) if found is None else found


def _vectors(path: Path, n: int) -> npt.NDArray[np.float32]:
    size = path.stat().st_size if path.is_file() else 0
    if not n or not size or size % (4 * n):
        raise DataError(
            f"{path}: expected the embeddings of {n} clips, got {size} bytes; remove "
            f"{path.with_suffix('.jsonl').name} beside it and score anew"
        )
    return np.memmap(path, "<f4", "r", shape=(n, size // 4 // n))


def shards_in(folder: Path) -> list[Path]:
    """The files of a whole set of shards, in order.

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
    for of, parts in sorted(found.items()):
        if len(parts) == of:
            return [parts[index] for index in range(1, of + 1)]
    if not found:
        raise DataError(f"{folder}: expected scores, found none; score the shards first")
    of, parts = max(found.items(), key=lambda item: len(item[1]) / item[0])
    missing = next(k for k in range(1, of + 1) if k not in parts)
    raise DataError(
        f"{folder}: {len(parts)} of {of} shards are there; score the others, such as "
        f"--shard {missing}/{of}"
    )


def is_complete(path: Path, shard: Shard, purpose: dict[str, Any], n_rows: int) -> bool:
    """Whether a shard's file has all of its rows; reads it whole."""
    if not path.is_file():
        return False
    _, (n_blocks, _, _) = _resume(path, _head(purpose), shard.blocks(n_rows), n_rows)
    return n_blocks == len(shard.blocks(n_rows))


def read_in_order(
    files: Sequence[Path], purpose: dict[str, Any], n_rows: int
) -> Iterator[tuple[int, Entry]]:
    """Every entry in the pool's order, with its byte offset in its file.

    Raises
    ------
    DataError
        A file is of something else, or has not all of its rows.
    """
    head = _head(purpose)
    opened = [path.open("rb") for path in files]
    try:
        for path, file in zip(files, opened, strict=True):
            first = file.readline()
            if first != head:
                raise _foreign(path, first, head)
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
                yield offsets[index], _entry(files[index], line, row)
                offsets[index] += len(line)
    finally:
        for file in opened:
            file.close()
