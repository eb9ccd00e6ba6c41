"""What was found out about clips so far, on disk, so that an interrupted run can go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_imputer.clip_checks import ClipTask, Finding
from edge_imputer.errors import DataError

JOURNAL_NAME = "journal.jsonl"

Key = tuple[str, float, "float | None"]


def key_of(task: ClipTask) -> Key:
    """What tells a clip from the others: its file, and its part of it."""
    return task.audio, task.offset_s, task.duration_s


class Journal:
    """Findings in the order they were made, one JSON object a line; a line is whole or ignored.

    The first line says for what the findings hold: another corpus, or copies in another format,
    start a new journal.
    """

    def __init__(self, folder: Path, purpose: dict[str, object]) -> None:
        self.path = folder / JOURNAL_NAME
        head = msgspec.json.encode({"journal": 1, **purpose}) + b"\n"
        self.findings: dict[Key, Finding] = {}
        self._descriptor = -1
        with writing(self.path):
            whole = self._read(head)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._descriptor, whole)
            if not whole:
                self._write(head)

    def _read(self, head: bytes) -> int:
        """Take the findings that are there; return how many bytes of the file are good."""
        if not self.path.is_file():
            return 0
        decode = msgspec.json.Decoder(Finding).decode
        with self.path.open("rb") as lines:
            if lines.readline() != head:
                return 0
            whole = len(head)
            for line in lines:
                try:
                    finding = decode(line) if line.endswith(b"\n") else None
                except (msgspec.DecodeError, UnicodeDecodeError):
                    finding = None
                if finding is None:  # the run ended while it was written
                    break
                self._take(finding)
                whole += len(line)
        return whole

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _take(self, finding: Finding) -> None:
        self.findings[(finding.audio, finding.offset_s, finding.part_s)] = finding

    def known(self, task: ClipTask, stamp: tuple[int, int]) -> Finding | None:
        """What is known of a clip, if its file is there and has not changed since."""
        finding = self.findings.get(key_of(task))
        if finding is None or finding.problem == "missing":
            return None
        return finding if (finding.size, finding.changed_ns) == stamp else None

    def add(self, findings: list[Finding]) -> None:
        """Keep findings: they are with the operating system when this returns."""
        with writing(self.path):
            self._write(b"".join(msgspec.json.encode(f) + b"\n" for f in findings))
        for finding in findings:
            self._take(finding)

    def close(self) -> None:
        """Close the file; everything is in it already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says how to go on."""
    try:
        yield
    except OSError as error:
        named = error.filename or path
        raise DataError(
            f"could not write {named} ({error.strerror or error}); make room or name another "
            "folder, then run the same command again: the clips checked so far are kept in "
            f"{JOURNAL_NAME} and are not checked twice"
        ) from error
