"""Data sets of an evaluation: their clips, and all keys of their rows.

A `Manifest` knows the keys of `ClipRecord` alone and asks for all of them. Here rates are broken
down by any key that a row has, and a row may lack its speaker: test sets come from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge_imputer.measured import DataKind

from ..data import ClipRecord, Split
from ..data.manifest import find_manifest, read_rows
from ..data.records import UNKNOWN_SPEAKER, record_of_anyone


@dataclass(frozen=True)
class Row:
    """One clip of a data set: its record, whether people speak in it, and all its keys."""

    record: ClipRecord
    kind: DataKind
    keys: Mapping[str, Any]

    def group(self, key: str) -> str:
        """The value of a key, as text; "(none)" where the row has none."""
        value = self.keys.get(key)
        return "(none)" if value is None else str(value)


@dataclass(frozen=True)
class DataSet:
    """The rows of one split of a corpus."""

    name: str
    folder: Path
    split: Split
    rows: tuple[Row, ...]

    @property
    def kinds(self) -> list[DataKind]:
        """Kinds of speech in it, recordings first."""
        present = {row.kind for row in self.rows}
        order: tuple[DataKind, ...] = ("real", "synthetic")
        return [kind for kind in order if kind in present]


def open_data_set(path: Path, split: Split, *, synthetic: bool = False) -> DataSet:
    """Read the rows of a split; their audio stays where it is.

    A row is synthetic speech if it names its ``engine``, if a folder of its path is called
    ``synthetic``, or if `synthetic` says so of the whole set.

    Raises
    ------
    DataError
        No manifest, or a line that is not a record. A split without rows is no error.
    """
    file = find_manifest(path)
    synthetic = synthetic or "synthetic" in file.resolve().parts
    rows = []
    for record, keys in read_rows(file, _record_and_keys):
        if record.split == split:
            made = synthetic or record.engine is not None
            rows.append(Row(record, "synthetic" if made else "real", keys))
    return DataSet(file.resolve().parent.name, file.parent, split, tuple(rows))


def _record_and_keys(line: bytes) -> tuple[ClipRecord, dict[str, Any]]:
    keys = msgspec.json.decode(line, type=dict[str, Any])
    return record_of_anyone(keys), keys


def speaker_blocks(rows: Sequence[Row]) -> list[str] | None:
    """Speakers, one a row, to resample whole; None if one is unknown or there is only one."""
    speakers = [row.record.speaker for row in rows]
    if UNKNOWN_SPEAKER in speakers or len(set(speakers)) < 2:
        return None
    return speakers
