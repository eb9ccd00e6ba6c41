"""What a study has found so far, one JSON object a line, so that it can be interrupted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from edge_imputer.errors import DataError

BASE = "base"  # in the place of a strategy: before anything is chosen


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a study.

    Attributes
    ----------
    strategy : str
        Or "base".
    seed, round : int
    hours : float
        Labelled, noise included.
    n_noise : int
        Pieces of noise among what was labelled.
    rows : tuple of int
        What is labelled, see `StudyCorpus`; the order is that of choosing.
    errors, totals : tuple of int
        Of every clip of the split test; see `count_errors`.
    """

    strategy: str
    seed: int
    round: int
    hours: float
    n_noise: int
    rows: tuple[int, ...]
    errors: tuple[int, ...]
    totals: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Share that is wrong: word error rate, or missed keywords."""
        return sum(self.errors) / max(1, sum(self.totals))


class StudyJournal:
    """A file of measured models, appended to and read on opening; a context.

    Parameters
    ----------
    path : Path
        Made if it is not there, with its folder.
    purpose : mapping
        What the measures hold for; the file's first line.

    Raises
    ------
    DataError
        The file is another study's, or no journal.
    """

    def __init__(self, path: Path, purpose: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._found: dict[tuple[str, int, int], Measured] = {}
        head = msgspec.json.encode({"study": 1, **purpose}, order="sorted") + b"\n"
        whole = self._read(head)
        self._file: BinaryIO = path.open("ab")
        os.truncate(path, whole)  # what a killed run left of a line
        if not whole:
            self._append(head)

    def __enter__(self) -> StudyJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def get(self, strategy: str, seed: int, number: int) -> Measured | None:
        """What was measured after that round, if it was."""
        return self._found.get((strategy, seed, number))

    def put(self, measured: Measured) -> None:
        """Append a measure; it is in the file when this returns."""
        self._append(msgspec.json.encode(measured) + b"\n")
        self._found[measured.strategy, measured.seed, measured.round] = measured

    def _append(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def _read(self, head: bytes) -> int:
        """Take what is there; how many bytes of the file are whole lines."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        lines = content.splitlines(keepends=True)
        if lines and lines[-1][-1:] != b"\n":
            content = content[: -len(lines.pop())]
        if not lines:
            return 0
        if lines[0] != head:
            raise DataError(
                f"{self.path} is of another study, of other data, plan or recipe; go on with the "
                "same ones, or give another folder with --out"
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                found = msgspec.json.decode(line, type=Measured)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{self.path}, line {number}: not a measure ({error})") from error
            self._found[found.strategy, found.seed, found.round] = found
        return len(content)
