"""Manifests of any length, read lazily: the lines stay in the file, only their places are kept."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar, overload

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError
from edge_imputer.files import replacing

from .records import ClipRecord, Split

T = TypeVar("T")

MANIFEST_NAME = "manifest.jsonl"

_BLOCK = 1 << 20  # bytes read at a time while the file is indexed
_LONGEST_LINE = 1 << 24  # bytes; a longer one is no manifest's

ColumnName = Literal["speaker", "split", "label", "text", "engine", "sample_rate"]


class Column(NamedTuple):
    """One key of every row, its distinct values numbered in the order they first appear."""

    values: list[str | int | None]
    codes: npt.NDArray[np.int32]  # (N,) positions in `values`


class Manifest(Sequence[ClipRecord]):
    """The records of a corpus, in the order of its file.

    Opening reads the file once and checks every line; 16 bytes a row stay in memory, so a million
    rows cost 16 MB. A row is read from the file when it is asked for, by its place (``pread``):
    one manifest may be used by several threads, and by the workers of a data loader, forked or
    spawned.
    """

    def __init__(
        self,
        lines: _Lines,
        offsets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.uint32],
        durations: npt.NDArray[np.float32],
        places: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """Take an index that is already built; `open` is the way in."""
        self._lines = lines
        self._offsets = offsets
        self._lengths = lengths
        self._places = places  # of each row in offsets and lengths; None: they are in its order
        durations.flags.writeable = False
        self.durations = durations  # (N,) seconds

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        split: Split | None = None,
        rows: npt.NDArray[np.bool_] | None = None,
    ) -> Manifest:
        """Open a corpus.

        Parameters
        ----------
        path
            A folder with ``manifest.jsonl``, or a file of such lines; audio paths are then
            relative to the file's folder.
        split
            Keep the rows of this split only; there may be none.
        rows : bool (N,)
            Keep these rows of the file only: the others take no memory, not even for a moment.

        Raises
        ------
        DataError
            No manifest, a line that is not a record (its number is named), or no line at all.
        """
        file = find_manifest(path)
        offsets, lengths, durations = array("q"), array("I"), array("f")
        decode = msgspec.json.Decoder(ClipRecord).decode
        n_rows = 0
        with file.open("rb") as source:
            for offset, line, record in _decoded(file, source, decode):
                n_rows += 1
                if rows is not None and not rows[n_rows - 1]:
                    continue
                if split is None or record.split == split:
                    offsets.append(offset)
                    lengths.append(len(line))
                    durations.append(record.duration_s)
            state = os.fstat(source.fileno())
        if not n_rows:
            raise DataError(f"{file} has no lines; expected one JSON object a clip")
        return cls(
            _Lines(file, (state.st_size, state.st_mtime_ns)),
            np.frombuffer(offsets, np.int64) if offsets else np.zeros(0, np.int64),
            np.frombuffer(lengths, np.uint32) if lengths else np.zeros(0, np.uint32),
            np.frombuffer(durations, np.float32) if durations else np.zeros(0, np.float32),
        )

    @property
    def path(self) -> Path:
        """The file."""
        return self._lines.path

    @property
    def folder(self) -> Path:
        """The folder that audio paths are relative to."""
        return self.path.parent

    def __len__(self) -> int:
        return len(self.durations)

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Manifest: ...
    def __getitem__(self, index: int | slice) -> ClipRecord | Manifest:
        """Read row `index` from the file; a slice is another manifest."""
        if isinstance(index, slice):
            return self.where(np.arange(len(self))[index])
        return self._lines.decode(self._line(index))

    def __iter__(self) -> Iterator[ClipRecord]:
        for line in self._raw():
            yield self._lines.decode(line)

    def line(self, index: int) -> bytes:
        """Row `index` as it stands in the file, with the keys that records ignore."""
        return self._line(index)

    def where(self, rows: npt.ArrayLike) -> Manifest:
        """Return some of the rows.

        Neighbours cost no memory, whatever else is most of the rows 8 bytes a row, and less than
        half of them 16: they do not hold on to the others.

        Parameters
        ----------
        rows : bool (N,) or int (M,)
            A mask, or the rows wanted, in any order and as often as named.
        """
        chosen = np.asarray(rows)
        if not chosen.size:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or (chosen.dtype == bool and len(chosen) != len(self)):
            raise DataError(
                f"expected a mask of shape ({len(self)},) or row numbers of shape (M,), "
                f"got {chosen.dtype} of shape {chosen.shape}"
            )
        part = _neighbours(chosen, len(self)) or chosen
        durations, places = self.durations[part], self._places
        if places is not None:
            places = places[part]
        elif not isinstance(part, slice) and 2 * len(durations) >= len(self):
            places = np.arange(len(self), dtype=np.int32)[part]
        if places is None:
            return Manifest(self._lines, self._offsets[part], self._lengths[part], durations)
        if 2 * len(places) < len(self._offsets):
            offsets, lengths = self._offsets[places], self._lengths[places]
            return Manifest(self._lines, offsets, lengths, durations)
        return Manifest(self._lines, self._offsets, self._lengths, durations, places)

    def column(self, name: ColumnName) -> Column:
        """Read one key of all rows, as small integers: 4 bytes a row, and each value once.

        It takes a pass over the file, so keep what it returns.
        """
        numbers: dict[str | int | None, int] = {}
        codes = np.zeros(len(self), np.int32)
        kind = next(f.type for f in msgspec.structs.fields(ClipRecord) if f.name == name)
        optional: dict[str, Any] = {"default": None} if name in ("label", "engine") else {}
        partial: Any = msgspec.defstruct(
            "Partial", [(name, kind, msgspec.field(**optional))], gc=False
        )
        decode = msgspec.json.Decoder(partial).decode
        for row, line in enumerate(self._raw()):
            codes[row] = numbers.setdefault(getattr(decode(line), name), len(numbers))
        return Column(list(numbers), codes)

    def _raw(self) -> Iterator[bytes]:
        for index in range(len(self)):
            yield self._line(index)

    def _line(self, index: int) -> bytes:
        place = index if self._places is None else self._places[index]
        return self._lines.read(int(self._offsets[place]), int(self._lengths[place]))

    def __repr__(self) -> str:
        hours = float(self.durations.sum(dtype=np.float64)) / 3600
        return f"<Manifest of {len(self)} clips, {hours:.2f} h: {self.path}>"


def _neighbours(chosen: npt.NDArray[Any], n_rows: int) -> slice | None:
    """Rows that follow one another, as a slice; None where others lie between them."""
    if not chosen.size or chosen.dtype.kind not in "biu":
        return None
    if chosen.dtype == bool:
        first, last = int(chosen.argmax()), len(chosen) - int(chosen[::-1].argmax())
        return slice(first, last) if chosen[first:last].all() else None
    first, last = int(chosen[0]), int(chosen[-1]) + 1
    if (
        first < 0
        or last > n_rows
        or last - first != len(chosen)
        or not np.all(chosen[1:] - chosen[:-1] == 1)
    ):
        return None
    return slice(first, last)


class _Lines:
    """Random access to a file of lines. What is pickled opens the file anew."""

    def __init__(self, path: Path, state: tuple[int, int]) -> None:
        self.path = path
        self._state = state  # size and time of change when it was indexed
        self._descriptor: int | None = None
        self._decoder = msgspec.json.Decoder(ClipRecord)

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset`."""
        if self._descriptor is None:
            self._descriptor = self._open()
        return os.pread(self._descriptor, length, offset)

    def decode(self, line: bytes) -> ClipRecord:
        try:
            return self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._changed() from error

    def _open(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        state = os.fstat(descriptor)
        if (state.st_size, state.st_mtime_ns) != self._state:
            os.close(descriptor)
            raise self._changed()
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _changed(self) -> DataError:
        return DataError(
            f"{self.path} was changed since it was opened; open it again, and write manifests "
            "anew (write_manifest) instead of into the file that others read"
        )

    def __getstate__(self) -> tuple[Path, tuple[int, int]]:
        return self.path, self._state

    def __setstate__(self, saved: tuple[Path, tuple[int, int]]) -> None:
        self.__init__(*saved)  # type: ignore[misc]


def write_manifest(path: str | os.PathLike[str], records: Iterable[ClipRecord]) -> int:
    """Write records one a line, atomically: whoever reads sees the old file or the whole new one.

    Keys at their defaults (``engine``, ``label``, ``offset_s``) are left out.

    Parameters
    ----------
    path
        A folder (then its ``manifest.jsonl``), or a file to make or replace.

    Returns
    -------
    n_rows
    """
    file = Path(path)
    file = file / MANIFEST_NAME if file.is_dir() else file
    file.parent.mkdir(parents=True, exist_ok=True)
    n_rows = 0
    with replacing(file) as target:
        for record in records:
            target.write(_line(record))
            n_rows += 1
    return n_rows


_encode = msgspec.json.Encoder().encode
_DEFAULTS = {"engine": None, "label": None, "offset_s": 0.0}


def _line(record: ClipRecord) -> bytes:
    row = msgspec.structs.asdict(record)
    for key, value in _DEFAULTS.items():
        if row[key] == value:
            del row[key]
    return _encode(row) + b"\n"


def read_rows(path: str | os.PathLike[str], decode: Callable[[bytes], T]) -> Iterator[T]:
    """Rows of a manifest as something else than `ClipRecord`, read one at a time.

    Parameters
    ----------
    path
        As for `Manifest.open`.
    decode
        Makes a row of a line, by msgspec.

    Raises
    ------
    DataError
        No manifest, or a line that `decode` refuses: its number is named.
    """
    file = find_manifest(path)
    with file.open("rb") as source:
        for _, _, row in _decoded(file, source, decode):
            yield row


def find_manifest(path: str | os.PathLike[str]) -> Path:
    """The manifest of a corpus folder, or the file itself.

    Raises
    ------
    DataError
        There is none.
    """
    path = Path(path)
    file = path / MANIFEST_NAME if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"expected a corpus folder with {MANIFEST_NAME}, found none at {path}; see "
            "docs/corpora.md: `edge-imputer data prepare` makes one of the usual corpora"
        )
    return file


def _decoded(
    file: Path, source: BinaryIO, decode: Callable[[bytes], T]
) -> Iterator[tuple[int, bytes, T]]:
    """Byte offset, bytes and content of every line that is not blank."""
    for number, offset, line in _lines_of(file, source):
        try:
            row = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{file}, line {number}: {error}") from error
        yield offset, line, row


def _lines_of(file: Path, source: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Line number from 1, byte offset and bytes of every line that is not blank."""
    rest, start, number = b"", 0, 0  # `rest` begins at byte `start` of the file
    while block := source.read(_BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                yield number, start, line
            start += len(line) + 1
        if len(rest) > _LONGEST_LINE:
            raise DataError(
                f"{file}, line {number + 1}: longer than {_LONGEST_LINE} bytes; expected one JSON "
                "object a line, not one document"
            )
    if rest.strip():
        yield number + 1, start, rest
