"""The curves of a study: what is wrong, against the hours that were labelled."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from .study_report import RANDOM, StudyReport


def study_plot(report: StudyReport) -> bytes:
    """A line a strategy, with its best and worst seed. A PNG."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for curve in report.curves:
        hours = [point.hours for point in curve.points]
        rates = [100 * point.rate for point in curve.points]
        is_random = curve.strategy == RANDOM
        (line,) = axes.plot(
            hours,
            rates,
            marker="o",
            ms=4,
            color="black" if is_random else None,
            ls="--" if is_random else "-",
            label=f"{curve.strategy} (area {100 * curve.area:.2f})",
        )
        low, high = ([100 * getattr(p, end) for p in curve.points] for end in ("low", "high"))
        axes.fill_between(hours, low, high, color=line.get_color(), alpha=0.08, lw=0)
    axes.set(xlabel="hours labelled", ylabel=f"{report.what}, %", title="Active learning")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
