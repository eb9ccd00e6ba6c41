"""The files of a selection: chosen rows, figures, plot, page, tasks of labelling tools."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_imputer.errors import MissingExtraError, require
from edge_imputer.files import replacing, write_atomically

from .choosing import Choice
from .folder import PoolRows
from .label_tasks import write_tasks
from .page import Listed, write_listening_page
from .score_log import Entry
from .score_table import ScoreTable
from .selection_report import LeftOut, SelectionReport

if TYPE_CHECKING:
    from .selecting import SelectionOptions

REPORT_NAME = "report.json"
PLOT_NAME = "scores.png"
PAGE_NAME = "index.html"
PAGE_CLIPS = 300


class Outputs:
    """Writes what was chosen, and why."""

    def __init__(
        self,
        options: SelectionOptions,
        pool: PoolRows,
        table: ScoreTable,
        choice: Choice,
        left_out: LeftOut,
        report: SelectionReport,
    ) -> None:
        self.options = options
        self.pool = pool
        self.table = table
        self.choice = choice
        self.left_out = left_out
        self.report = report
        scored = table.key[table.state == 0]
        scored.sort()
        self._sorted = scored

    def write(self) -> None:
        """Write all of them; those that need matplotlib only where it is installed."""
        options, folder = self.options, self.options.folder
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.out) as file:
            for row in self.chosen(options.out.parent):
                file.write(msgspec.json.encode(row) + b"\n")
        if options.export is not None:
            write_tasks(options.export, self.chosen(folder), folder, self.report.keywords)
        plot = self._plot(folder)
        write_listening_page(
            folder / PAGE_NAME,
            self.report,
            self._listed(),
            plot=plot,
            embed=options.embed,
        )
        encoded = msgspec.json.format(msgspec.json.encode(self.report), indent=2)
        write_atomically(folder / REPORT_NAME, encoded + b"\n")

    def chosen(self, home: Path) -> Iterator[dict[str, Any]]:
        """Rows of the pool with what was found of them, the first to label first.

        Paths of audio lead from `home`, unless they are absolute.
        """
        entries = self.table.entries(self.choice.rows)
        for rank, entry in enumerate(entries, start=1):
            row: dict[str, Any] = msgspec.json.decode(self.pool.line(entry.row))
            yield {
                **row,
                "audio": self._path(row["audio"], home),
                "duration_s": entry.seconds,  # measured: a pool's 0 is "to the end of the file"
                "clip": clip_id(row["audio"], row.get("offset_s", 0.0), row["duration_s"]),
                "rank": rank,
                "score": entry.score,
                "per_second": entry.per_second,
                "better_than": self._better_than(entry),
                "strategy": self.options.strategy,
                "heard": entry.text,
                "confidence": entry.confidence,
            }

    def _path(self, audio: str, home: Path) -> str:
        if os.path.isabs(audio):
            return audio
        return os.path.relpath(self.pool.folder.resolve() / audio, home.resolve())

    def _better_than(self, entry: Entry) -> float:
        """Share of the scored clips that rank lower."""
        lower = np.searchsorted(self._sorted, np.float32(getattr(entry, self.options.rank_by)))
        return round(float(lower) / len(self._sorted), 6)

    def _plot(self, folder: Path) -> bytes | None:
        """The plot, which is written too; None without matplotlib."""
        try:
            require("matplotlib", extra="report")
        except MissingExtraError:
            return None
        from .plots import score_plot

        image = score_plot(self.table, self.choice, self.report)
        write_atomically(folder / PLOT_NAME, image)
        return image

    def _listed(self) -> Iterator[Listed]:
        """What the page shows: the first of the chosen, those just below, and what was left out."""
        for rank, entry in enumerate(self.table.entries(self.choice.rows[:PAGE_CLIPS]), start=1):
            yield self._of(entry, "chosen", f"rank {rank}, above {self._above(entry)}", rank)
        for entry in self.table.entries(self.choice.below):
            why = f"not chosen, though above {self._above(entry)}"
            yield self._of(entry, "just below", why)
        for reason, clips in self.left_out.shown.items():
            for clip in clips:
                yield Listed(self.pool.folder, self.pool[clip.row], reason, clip.detail or reason)

    def _above(self, entry: Entry) -> str:
        return f"{100 * self._better_than(entry):.1f} % of the pool"

    def _of(self, entry: Entry, reason: str, why: str, rank: int | None = None) -> Listed:
        return Listed(self.pool.folder, self.pool[entry.row], reason, why, entry, rank)


def clip_id(audio: str, offset_s: float, duration_s: float) -> str:
    """What tells a clip from the others of its pool, by its row there, wherever the audio is."""
    name = f"{audio}\0{float(offset_s):.6f}\0{float(duration_s):.6f}"
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
