"""Decoded results, one line a clip, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError
from edge_imputer.events import Final, Transcript


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model made of a clip: a transcript, or the events of keywords.

    Where a grammar said what may be said, also how sure it is, and what the text means.
    """

    key: str
    text: str | None = None
    events: tuple[tuple[int, float, float], ...] | None = None  # keyword, seconds, score
    confidence: float | None = None
    rules: tuple[tuple[str, str], ...] | None = None  # of `edge_imputer.events.Meaning`

    @classmethod
    def of_text(cls, key: str, said: Final | Transcript) -> Entry:
        """The entry of a text, with what a grammar makes of it."""
        if said.meaning is None:
            return cls(key=key, text=said.text)
        rules = said.meaning.rules
        return cls(key=key, text=said.text, confidence=said.confidence, rules=rules)


def entry_key(identity: str, waveform: npt.NDArray[np.float32]) -> str:
    """Hash of a model with its settings (`identity`), and of the very samples it hears.

    Noise that was mixed in is part of the samples: another SNR or seed is another key.
    """
    digest = hashlib.sha256(identity.encode() + b"\0")
    digest.update(np.ascontiguousarray(waveform, np.float32).tobytes())
    return digest.hexdigest()[:40]


class Journal:
    """A file of entries, appended to and read on opening. Used as a context.

    Parameters
    ----------
    path : Path
        Made if it is not there, with its folder.

    Raises
    ------
    DataError
        A line in its middle is no entry. A last line that was cut short is dropped: that is what
        a killed run leaves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, Entry] = {}
        self._read()
        self._file: BinaryIO = path.open("ab")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        """The entry of a key, if there is one."""
        return self._entries.get(key)

    def put(self, entry: Entry) -> None:
        """Append an entry; it is in the file when this returns."""
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()
        self._entries[entry.key] = entry

    def _read(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = msgspec.json.decode(line, type=Entry)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{self.path}, line {number}: not an entry of an evaluation's journal "
                    f"({error}); remove the file, or give another folder with --out"
                ) from error
            self._entries[entry.key] = entry
        if rest:
            os.truncate(self.path, len(content) - len(rest))
