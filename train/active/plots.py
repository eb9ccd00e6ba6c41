"""The plot of a selection: where the cut is, and how much of the pool lies above."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .choosing import Choice
    from .score_table import ScoreTable
    from .selection_report import SelectionReport

N_BINS = 60


def score_plot(table: ScoreTable, choice: Choice, report: SelectionReport) -> bytes:
    """Hours by score, those chosen marked; and hours with at least a score. A PNG."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    by_score, above = figure.subplots(1, 2)
    scored = table.state == 0
    key, hours = table.key[scored], table.seconds[scored] / np.float32(3600)
    edges = _edges(key)
    chosen = table.key[choice.rows], table.seconds[choice.rows] / 3600
    all_hours = np.histogram(key, edges, weights=hours)[0]
    by_score.stairs(all_hours, edges, fill=True, color="#4a5568", alpha=0.45, label="scored")
    by_score.stairs(
        np.histogram(chosen[0], edges, weights=chosen[1])[0],
        edges,
        fill=True,
        color="#2b6cb0",
        label="chosen",
    )
    unit = "score a second" if report.rank_by == "per_second" else "score"
    label = f"{unit} ({report.strategy})"
    by_score.set(xlabel=label, ylabel="hours", title="Hours by score")
    above.plot(edges[:-1], np.cumsum(all_hours[::-1])[::-1], color="#4a5568")
    above.axhline(report.chosen.hours, color="#2b6cb0", lw=1, label="chosen hours")
    above.set(xlabel=label, ylabel="hours", title="Hours with this score or more")
    for axes in (by_score, above):
        axes.axvline(report.cut, color="black", ls="--", lw=1, label="lowest chosen")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _edges(key: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Borders of the bins: from the lowest score to the highest, which may be equal."""
    low, high = float(key.min()), float(key.max())
    return np.linspace(low, high if high > low else low + 1.0, N_BINS + 1)
