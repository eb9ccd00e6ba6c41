"""Data sets of an evaluation: their clips, read one at a time, and the keys of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_imputer.errors import DataError
from edge_imputer.measured import DataKind

from ..data import ClipRecord, Split

T = TypeVar("T")

UNKNOWN = "unknown"  # a speaker nobody knows
_MANIFEST = "manifest.jsonl"


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
    file = manifest_file(path)
    synthetic = synthetic or "synthetic" in file.resolve().parts
    rows = []
    for keys in raw_rows(file, dict[str, Any]):
        try:
            record = msgspec.convert(
                {**keys, "speaker": keys.get("speaker") or UNKNOWN}, ClipRecord
            )
        except msgspec.ValidationError as error:
            raise DataError(f"{file}: {error}, in the row of {keys.get('audio')!r}") from error
        if record.split == split:
            made = synthetic or record.engine is not None
            rows.append(Row(record, "synthetic" if made else "real", keys))
    return DataSet(file.resolve().parent.name, file.parent, split, tuple(rows))


def manifest_file(path: Path) -> Path:
    """The manifest of a corpus folder, or the file itself."""
    file = path / _MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"expected a corpus folder with {_MANIFEST}, or such a file, found none at {path}; "
            "see CONTRIBUTING.md, 'Add a corpus'"
        )
    return file


def raw_rows(file: Path, kind: type[T]) -> Iterator[T]:
    """Lines of a manifest as `kind`; the number of a line that is none is named."""
    decoder = msgspec.json.Decoder(kind)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{file}, line {number}: {error}") from error


def speaker_blocks(rows: Sequence[Row]) -> list[str] | None:
    """Speakers, one a row, to resample whole; None if one is unknown or there is only one."""
    speakers = [row.record.speaker for row in rows]
    if UNKNOWN in speakers or len(set(speakers)) < 2:
        return None
    return speakers
