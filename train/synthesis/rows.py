"""Rows of a corpus in the making: its manifest, and a journal of what was made since.

The manifest is written when a run ends, be it by an error. One that is killed leaves the journal,
which holds what it made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from edge_imputer.errors import SynthesisError
from edge_imputer.files import write_atomically

MANIFEST = "manifest.jsonl"
JOURNAL = "manifest.part.jsonl"  # rows made since the manifest was last written


class Row(Protocol):
    """A struct of msgspec that says which file it is about."""

    @property
    def audio(self) -> str:
        """The clip's path in the corpus folder."""


R = TypeVar("R", bound=Row)


def read_journaled(out: Path, kind: type[R], what: str) -> list[R]:
    """Rows of the manifest and of the journal that an interrupted run left; none at first.

    Parameters
    ----------
    out : the corpus folder
    kind : the rows' type
    what : a row in words, such as ``a synthetic clip``

    Raises
    ------
    SynthesisError
        A manifest that this package did not write.
    """
    rows = []
    for name in (MANIFEST, JOURNAL):
        path = out / name
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                if line:
                    rows.append(msgspec.json.decode(line, type=kind))
            except msgspec.DecodeError as error:
                if name == JOURNAL and number == len(lines):
                    continue  # the line that was being written when the run was killed
                raise SynthesisError(
                    f"{path}, line {number}: expected {what} ({error}); use a folder of its own"
                ) from error
    return rows


@contextmanager
def journaled(out: Path, rows: dict[str, R]) -> Iterator[Callable[[R], None]]:
    """Add to `rows`, by audio file: each is on record at once, and in the manifest in the end.

    Yields
    ------
    add : called with a row whose clip is there
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / JOURNAL
    try:
        with path.open("ab") as journal:
            journal.truncate(_whole(path))

            def add(row: R) -> None:
                rows[row.audio] = row
                journal.write(msgspec.json.encode(row) + b"\n")
                journal.flush()

            yield add
    finally:
        write_lines(out / MANIFEST, [rows[audio] for audio in sorted(rows)])
        path.unlink(missing_ok=True)


def _whole(path: Path) -> int:
    """Bytes of the lines that have an end: a row after half a line would be lost with it."""
    return path.read_bytes().rfind(b"\n") + 1


def write_lines(path: Path, lines: Iterable[object]) -> None:
    """Write a JSON object a line, all of them or none."""
    write_atomically(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
