"""Figures of evaluation reports. Drawn without pyplot: nothing global, no display."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from edge_imputer.measured import Interval, OperatingPoint

from .results import Condition, Confusion, Curve, Histogram

_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#975a16", "#0987a0")


def det_plot(curves: Sequence[Curve], point: OperatingPoint) -> Figure:
    """Misses against false alarms an hour, with 95 % bands, and the operating point.

    The axis of false alarms is logarithmic; a threshold without any stands at its left end.
    """
    figure = _figure(11, 6)
    axes = figure.subplots()
    left = min(0.5 / c.points[0].false_alarms.hours for c in curves)
    top = 0.0
    for colour, curve in zip(_cycle(len(curves)), curves, strict=True):
        # Of the thresholds with equally many false alarms, the lowest misses fewest.
        best = {p.false_alarms.count: p for p in reversed(curve.points)}
        points = sorted(best.values(), key=lambda p: p.false_alarms.per_hour)
        x = [max(left, p.false_alarms.per_hour) for p in points]
        frr = [100 * p.frr.value for p in points]
        low, high = ([100 * getattr(p.frr, end) for p in points] for end in ("low", "high"))
        top = max(top, *high)
        name = f"{_short(curve.condition)} (n {points[0].frr.n})"
        axes.step(x, frr, where="post", color=colour, label=name, lw=1.6)
        axes.fill_between(x, low, high, step="post", color=colour, alpha=0.13, lw=0)
    reported = point.reported_on
    if reported is not None and reported.frr is not None and reported.false_alarms is not None:
        rate, frr_here = reported.false_alarms, reported.frr
        x_here = max(left, rate.per_hour)
        axes.errorbar(
            [x_here],
            [100 * frr_here.value],
            xerr=[[x_here - max(left, rate.low)], [rate.high - x_here]],
            yerr=[
                [100 * (frr_here.value - frr_here.low)],
                [100 * (frr_here.high - frr_here.value)],
            ],
            fmt="o",
            color="black",
            capsize=4,
            label="operating point, 95 % intervals",
        )
    if point.target_fa_per_hour is not None:
        axes.axvline(point.target_fa_per_hour, color="#888888", ls=":", lw=1.2, label="target")
    axes.set(
        xscale="log",
        xlabel="false alarms an hour (none: at the left end)",
        ylabel="missed keywords, % (FRR)",
    )
    axes.set_xlim(left=left * 0.9)
    axes.set_ylim(0, min(100.0, 5 + 1.1 * top))
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=9)
    return figure


def bar_plot(rows: Sequence[tuple[Condition, Interval]], ylabel: str) -> Figure:
    """One bar a noise condition, grouped by data set, with 95 % intervals."""
    figure = _figure(11, 4.2)
    axes = figure.subplots()
    noises = list(dict.fromkeys(c.noise for c, _ in rows))
    sets = list(dict.fromkeys((c.data, c.kind) for c, _ in rows))
    width = 0.8 / len(sets)
    for index, (name, colour) in enumerate(zip(sets, _cycle(len(sets)), strict=True)):
        mine = [(noises.index(c.noise), i) for c, i in rows if (c.data, c.kind) == name]
        x = np.array([at for at, _ in mine]) + width * (index - (len(sets) - 1) / 2)
        value = np.array([100 * i.value for _, i in mine])
        error = np.abs([[100 * i.low for _, i in mine], [100 * i.high for _, i in mine]] - value)
        axes.bar(x, value, width * 0.92, color=colour, label=f"{name[0]} ({name[1]})")
        axes.errorbar(x, value, yerr=error, fmt="none", color="black", capsize=3, lw=1)
    axes.set(xticks=range(len(noises)), xticklabels=noises, ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y", alpha=0.25)
    axes.legend(fontsize=9)
    return figure


def histogram_plot(histogram: Histogram, thresholds: Sequence[float]) -> Figure:
    """Scores of keywords that were said beside those of events where none was."""
    figure = _figure(11, 3.6)
    axes = figure.subplots()
    edges = np.array(histogram.edges)
    for counts, colour, label in (
        (histogram.negatives, _COLOURS[1], "events where none is said"),
        (histogram.positives, _COLOURS[0], "keywords that are said"),
    ):
        axes.stairs(counts, edges, fill=True, alpha=0.45, color=colour, label=label)
    for threshold in sorted(set(thresholds)):
        axes.axvline(threshold, color="black", ls="--", lw=1)
    axes.set(xlabel="score (dashed: threshold)", ylabel="how many", xlim=(0, 1))
    axes.set_yscale("symlog", linthresh=1)
    axes.legend(fontsize=9)
    return figure


def confusion_plot(confusion: Confusion) -> Figure:
    """Said by rows, fired by columns; the last column is nothing."""
    n = len(confusion.keywords)
    figure = _figure(min(11, 3 + 0.7 * n), min(10, 1.8 + 0.45 * n))
    axes = figure.subplots()
    counts = np.array(confusion.counts)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(counts > 0):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set(xticks=range(n + 1), yticks=range(n), yticklabels=confusion.keywords, ylabel="said")
    axes.set_xticklabels([*confusion.keywords, "(nothing)"], rotation=45, ha="right")
    axes.set_xlabel("fired")
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _cycle(n: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]


def _short(condition: Condition) -> str:
    return f"{condition.data}, {condition.kind}, {condition.noise}"
