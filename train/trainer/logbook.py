"""What a run writes down: CSV tables that a resumed run continues, and TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge_imputer.files import write_atomically

log = logging.getLogger(__name__)

Row = dict[str, str]


class Table:
    """A CSV file with a row an update, in ascending order.

    A row is in the file at once, for whoever watches the run, and safe from a power cut after the
    next `flush`. It may bring columns that earlier rows lacked; they are empty there. `resume`
    drops the rows after an update, and what a crash left of a row, so a resumed run leaves no gap
    and no repeat.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self._waiting: list[Row] = []
        self._end = 0  # bytes of the file that are whole rows
        self._synced = True

    def resume(self, update: int) -> None:
        """Go on after `update`; 0 begins a new table."""
        rows = [row for row in _rows(self.path) if int(row["update"]) <= update] if update else []
        if rows:
            self._rewrite(list(rows[0]), rows)
        else:
            self.columns = []
            self.path.unlink(missing_ok=True)

    def add(self, update: int, values: Mapping[str, float]) -> None:
        """One more row. One that cannot be written waits for `flush`, which says why."""
        row = {"update": str(update), **{name: f"{value:.9g}" for name, value in values.items()}}
        self._waiting.append(row)
        with suppress(OSError):
            self._write()

    def flush(self) -> None:
        """Write what waits, and see all rows on disk."""
        self._write()
        if not self._synced and self.path.is_file():  # somebody may have removed it
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        self._synced = True

    def _write(self) -> None:
        if not self._waiting:
            return
        columns = list(dict.fromkeys([*self.columns, *(c for row in self._waiting for c in row)]))
        if columns != self.columns or not self.path.is_file():
            self._rewrite(columns, [*_rows(self.path, self._end), *self._waiting])
        else:
            self._append(_text(columns, self._waiting))
        self._waiting = []

    def _append(self, data: bytes) -> None:
        with self.path.open("rb+") as file:
            file.truncate(self._end)  # without the part of a row that an earlier try left
            file.seek(self._end)
            file.write(data)
        self._end += len(data)
        self._synced = False

    def _rewrite(self, columns: list[str], rows: list[Row]) -> None:
        data = _text(columns, [{name: name for name in columns}, *rows])
        write_atomically(self.path, data)
        self.columns, self._end, self._synced = columns, len(data), True


def _text(columns: list[str], rows: list[Row]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _rows(path: Path, end: int | None = None) -> list[Row]:
    """Whole rows of a table, up to a line without an end or the zeros that a power cut left.

    Nothing after `end` bytes is read.
    """
    if not path.is_file():
        return []
    data = path.read_bytes()[:end].split(b"\0")[0]
    whole = data[: data.rfind(b"\n") + 1].decode()
    return list(csv.DictReader(io.StringIO(whole)))


class Logbook:
    """``train.csv`` and ``valid.csv`` in a run's folder, and the same for TensorBoard.

    Without TensorBoard installed the tables are all there is. Only one process of several writes.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.writes = writes
        self.train = Table(folder / "train.csv")
        self.valid = Table(folder / "valid.csv")
        self._folder = folder
        self._board: Any = None

    def resume(self, update: int) -> None:
        """Go on after `update`; 0 begins anew."""
        if not self.writes:
            return
        self.train.resume(update)
        self.valid.resume(update)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(
            self._folder / "tensorboard", purge_step=update + 1, flush_secs=5
        )

    def add(self, table: str, update: int, values: Mapping[str, float]) -> None:
        """One more row of the ``train`` or ``valid`` table."""
        if not self.writes:
            return
        (self.train if table == "train" else self.valid).add(update, values)
        if self._board is not None:
            with self._optional():
                for name, value in values.items():
                    self._board.add_scalar(f"{table}/{name}", value, update)

    def flush(self) -> None:
        """See all rows on disk."""
        if self.writes:
            self.train.flush()
            self.valid.flush()

    def close(self) -> None:
        """Write what waits and let go of the files."""
        try:
            self.flush()
        finally:
            if self._board is not None:
                with self._optional():
                    self._board.close()

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """TensorBoard's files are another look at the tables: no run ends because of them."""
        try:
            yield
        except OSError as error:  # of its own thread, some time ago
            log.warning("%s: no more is written for TensorBoard (%s)", self._folder, error)
            self._board = None
