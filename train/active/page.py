"""The listening page of a selection: every clip with a player, what the model heard, and why."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from edge_imputer.clip_checks import ClipTask, read_and_check, write_copy
from edge_imputer.report import escape, html_table, write_page

from ..data import ClipRecord
from .score_log import Entry
from .selection_report import SelectionReport

EMBEDDED_BYTES = 50_000_000  # in all; what is beyond is linked to
COLUMNS = ("rank", "listen", "the model hears", "why", "score a second", "confidence", "s", "clip")

SCRIPT = """
<script>
const rows = () => [...document.querySelectorAll('#clips tbody tr')];
document.getElementById('reason').onchange = event => {
  for (const row of rows())
    row.hidden = event.target.value !== '' && row.dataset.reason !== event.target.value;
};
document.querySelectorAll('#clips th').forEach((head, column) => {
  let up = false;
  head.onclick = () => {
    up = !up;
    const value = row => row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if ((x === '') !== (y === '')) return x === '' ? 1 : -1;
      const difference = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? difference : -difference;
    };
    const body = document.querySelector('#clips tbody');
    rows().sort(order).forEach(row => body.append(row));
  };
});
</script>
"""
STYLE = """
<style>
#clips th { cursor: pointer; } #clips td { text-align: left; vertical-align: middle; }
#clips audio { height: 2rem; width: 15rem; } #clips tr[hidden] { display: none; }
</style>
"""


@dataclass(frozen=True)
class Listed:
    """A clip of the page.

    Attributes
    ----------
    folder : that the record's path leads from
    record : ClipRecord
    reason : "chosen", "just below", or why it was left out
    why : in words
    entry : what was found of it, if it has a score
    rank : of the chosen
    """

    folder: Path
    record: ClipRecord
    reason: str
    why: str
    entry: Entry | None = None
    rank: int | None = None


def write_listening_page(
    path: Path,
    report: SelectionReport,
    clips: Iterable[Listed],
    *,
    plot: bytes | None = None,
    embed: bool = False,
) -> Path:
    """Write the page, and return its path.

    Parameters
    ----------
    path : of the page; links to audio are relative to its folder
    report : the selection's
    clips : in the order in which they are listed at first
    plot : a PNG
    embed : put the audio into the page, up to 50 MB in all
    """
    audio = _Audio(path.parent, embed)
    return write_page(path, f"What to label: {report.strategy}", _body(report, clips, plot, audio))


def _body(
    report: SelectionReport, clips: Iterable[Listed], plot: bytes | None, audio: _Audio
) -> Iterator[str]:
    yield STYLE
    yield f"<h1>What to label, by {escape(report.strategy)}</h1>"
    yield (
        f"<p>A clip is chosen where {escape(report.meaning)}: of {report.all.hours:.2f} h, "
        f"{report.chosen.clips} clips, {report.chosen.hours:.2f} h, are worth a label most.</p>"
    )
    yield "".join(f"<p>Note: {escape(line)}.</p>" for line in report.warnings)
    yield html_table(
        ["", "clips", "hours"],
        [
            ("pool", report.all.clips, f"{report.all.hours:.2f}"),
            ("scored", report.scored.clips, f"{report.scored.hours:.2f}"),
            ("chosen", report.chosen.clips, f"{report.chosen.hours:.2f}"),
            *(
                (f"left out: {reason}", tally.clips, f"{tally.hours:.2f}")
                for reason, tally in report.left_out.items()
            ),
        ],
    )
    if plot is not None:
        image = base64.b64encode(plot).decode()
        yield f'<img alt="Hours by score" src="data:image/png;base64,{image}">'
    lines, reasons = [], dict[str, int]()
    for clip in clips:
        reasons[clip.reason] = reasons.get(clip.reason, 0) + 1
        lines.append(_line(clip, audio))
    options = "".join(
        f'<option value="{escape(reason)}">{escape(reason)} ({n} listed)</option>'
        for reason, n in reasons.items()
    )
    yield "<h2>Listen</h2><p>Click a column to sort by it. Show "
    yield f'<select id="reason"><option value="">all</option>{options}</select></p>'
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    yield f'<table id="clips"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    facts = [("model", report.model), ("its hash", report.model_identity), ("seed", report.seed)]
    yield f"<h2>How this was made</h2><pre>{escape(report.command)}</pre>"
    yield html_table(["", "value"], [*facts, *report.settings.items()])
    yield SCRIPT


def _line(clip: Listed, audio: _Audio) -> str:
    entry = clip.entry
    cells = [
        "" if clip.rank is None else str(clip.rank),
        audio.player(clip.folder, clip.record),
        "" if entry is None else escape(entry.text),
        escape(clip.why),
        "" if entry is None else f"{entry.per_second:.4g}",
        "" if entry is None else f"{entry.confidence:.3f}",
        f"{clip.record.duration_s if entry is None else entry.seconds:.2f}",
        escape(clip.record.audio),
    ]
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr data-reason="{escape(clip.reason)}">{row}</tr>'


class _Audio:
    """Players: of links, or of the audio itself while there is room for it."""

    def __init__(self, home: Path, embed: bool) -> None:
        self._home = home.resolve()
        self._room = EMBEDDED_BYTES if embed else 0

    def player(self, folder: Path, record: ClipRecord) -> str:
        """Markup of a clip's player; nothing is loaded before it is played."""
        source = self._embedded(folder, record) if self._room > 0 else None
        if source is None:
            file = os.path.relpath(folder.resolve() / record.audio, self._home)
            end = record.offset_s + record.duration_s
            # Whatever the file goes on with; of one that cannot be read the length is not known.
            part = f"#t={record.offset_s:g},{end:g}" if record.duration_s else ""
            source = quote(file) + part
        return f'<audio controls preload="none" src="{escape(source)}"></audio>'

    def _embedded(self, folder: Path, record: ClipRecord) -> str | None:
        """The clip as a data URL; None if it cannot be read, or there is no more room."""
        task = ClipTask(
            audio=str(folder / record.audio),
            offset_s=record.offset_s,
            duration_s=record.duration_s or None,
        )
        finding, waveform = read_and_check(task)
        if finding.problem is not None:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            copy = write_copy(Path(scratch) / "clip.flac", waveform, finding.sample_rate, None)
        if len(copy) > self._room:
            return None
        self._room -= len(copy)
        return f"data:audio/flac;base64,{base64.b64encode(copy).decode()}"
