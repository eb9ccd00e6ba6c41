"""Pictures of benchmarks and of `verify`, where there is one: ``NAME.png`` by ``NAME.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingExtraError, require
from .show import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_plot(name: str, figures: Mapping[str, Any], folder: Path) -> Path | None:
    """Draw the figures of a command; without matplotlib say so, and go on.

    Returns
    -------
    Path or None
        None if there is no picture of that name, or matplotlib is missing.
    """
    if name not in PLOTS:
        return None
    try:
        require("matplotlib", extra="report")
    except MissingExtraError as error:
        say(f"no picture: {error}")
        return None
    path = folder / f"{name}.png"
    PLOTS[name](figures).savefig(path, dpi=110)
    return path


def attention(figures: Mapping[str, Any]) -> Figure:
    """Time and memory against length, one line a method, on double logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    time, memory = figure.subplots(1, 2)
    rows = figures["rows"]
    rows = [row for row in rows if row["where"] == rows[0]["where"]]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        frames = [row["n_frames"] for row in mine]
        slope = figures.get(f"loglog_slope, {method}")
        label = method if slope is None else f"{method} (slope {slope:.2f})"
        style = {"ls": "--" if method.startswith("dense") else "-", "marker": "o", "ms": 4}
        time.plot(frames, [row["ms"] for row in mine], label=label, **style)
        memory.plot(frames, [row["memory_bytes"] / 2**20 for row in mine], label=method, **style)
    _label(time, "ms, forward and backward", rows[0]["where"])
    _label(memory, "MiB held at most", "Memory beyond the inputs")
    return figure


def _label(axes: Axes, unit: str, title: str) -> None:
    axes.set(xlabel="frames", ylabel=unit, title=title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda frames, _: f"{frames:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def verification(figures: Mapping[str, Any]) -> Figure:
    """Elements that differ by kind of layer and runtime; clips with one text by pair."""
    from matplotlib.figure import Figure

    kinds, pairs = figures["kinds"], figures["pairs"]
    names = sorted({row["kind"] for row in kinds})
    runtimes = list(dict.fromkeys(row["runtime"] for row in kinds))
    figure = Figure(figsize=(15, 1.5 + 0.4 * max(len(names), 8)), layout="constrained")
    layers, decoded = figure.subplots(1, 2)
    shares = np.full((len(names), len(runtimes)), np.nan)
    for row in kinds:
        at = names.index(row["kind"]), runtimes.index(row["runtime"])
        shares[at] = 100 * row["share"]
        text = "refused" if row["n_refused"] else f"{row['max_lsb']}"
        layers.text(at[1], at[0], text, ha="center", va="center")
    if kinds:
        most = max(1.0, float(np.nanmax(shares)))
        layers.imshow(shares, cmap="Reds", vmin=0, vmax=most, alpha=0.6)
    _ticks(layers, runtimes, names, "Most steps off, by layer; red: share of elements that differ")
    heard = list(dict.fromkeys(name for pair in pairs for name in (pair["first"], pair["second"])))
    same = np.full((len(heard), len(heard)), np.nan)
    for pair in pairs:
        at = heard.index(pair["first"]), heard.index(pair["second"])
        same[at] = 100 * pair["share"]
        decoded.text(at[1], at[0], f"{same[at]:.1f}", ha="center", va="center", size=8)
    decoded.imshow(same, cmap="Greens_r", vmin=90, vmax=100, alpha=0.6)
    _ticks(decoded, heard, heard, "% of clips with the same text")
    return figure


def _ticks(axes: Axes, across: list[str], down: list[str], title: str) -> None:
    axes.set_xticks(range(len(across)), across, rotation=30, ha="right")
    axes.set_yticks(range(len(down)), down)
    axes.set_aspect("auto")
    axes.set_title(title)


def quantisation(figures: Mapping[str, Any]) -> Figure:
    """Signal to noise from node to node, one panel a graph; the int16 sums are marked."""
    from matplotlib.figure import Figure

    graphs = figures["graphs"]
    figure = Figure(figsize=(13, 4.0 * len(graphs)), layout="constrained")
    for graph, axes in zip(graphs, figure.subplots(len(graphs), squeeze=False)[:, 0], strict=True):
        nodes = [(k, n) for k, n in enumerate(graph["nodes"]) if n["snr_db"] is not None]
        axes.plot([k for k, _ in nodes], [n["snr_db"] for _, n in nodes], marker=".", lw=0.7)
        wide = [(k, n["snr_db"]) for k, n in nodes if n["output"] in graph["choice"]["wide"]]
        if wide:
            axes.plot(*zip(*wide, strict=True), ls="", marker="o", mfc="none", label="int16")
            axes.legend(frameon=False)
        axes.set(xlabel="node", ylabel="signal to noise, dB", title=graph["graph"])
        axes.grid(alpha=0.3)
    return figure


PLOTS: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "attention": attention,
    "quantisation": quantisation,
    "verify": verification,
}
