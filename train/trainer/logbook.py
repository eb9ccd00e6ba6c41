"""What a run writes down: CSV tables that a resumed run continues, and TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint import write_atomically

log = logging.getLogger(__name__)

Row = dict[str, str]


class Table:
    """A CSV file with a row an update, in ascending order.

    A row may bring columns that earlier rows lacked; they are empty there. `resume` drops the rows
    after an update, and a row cut short by a crash, so a resumed run leaves no gap and no repeat.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self._waiting: list[Row] = []

    def resume(self, update: int) -> None:
        """Go on after `update`; 0 begins a new table."""
        rows = (
            [] if update == 0 else [row for row in _rows(self.path) if int(row["update"]) <= update]
        )
        self.columns = list(rows[0]) if rows else []
        if rows:
            self._rewrite(rows)
        else:
            self.path.unlink(missing_ok=True)

    def add(self, update: int, values: Mapping[str, float]) -> None:
        """One more row; it is on disk after the next `flush`."""
        row = {"update": str(update), **{name: f"{value:.9g}" for name, value in values.items()}}
        self._waiting.append(row)

    def flush(self) -> None:
        """Write what waits, and see it on disk."""
        if not self._waiting:
            return
        new = [name for row in self._waiting for name in row if name not in self.columns]
        rows, self._waiting = self._waiting, []
        if new:
            earlier = list(_rows(self.path)) if self.columns else []
            self.columns += list(dict.fromkeys(new))
            self._rewrite([*earlier, *rows])
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._text(rows))
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self, rows: list[Row]) -> None:
        header = ",".join(self.columns) + "\n"
        write_atomically(self.path, (header + self._text(rows)).encode())

    def _text(self, rows: list[Row]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()


def _rows(path: Path) -> list[Row]:
    """Whole rows of a table; a last line without its end is left out."""
    if not path.is_file():
        return []
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(whole)) if row["update"]]


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
        self._board = SummaryWriter(self._folder / "tensorboard", purge_step=update + 1)

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
