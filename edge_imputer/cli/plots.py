"""Pictures of benchmarks, for those that have one: ``NAME.png`` beside ``NAME.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError, require
from .show import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_plot(figures: Mapping[str, Any], folder: Path) -> Path | None:
    """Draw what `run_bench` measured; without matplotlib say so, and go on.

    Returns
    -------
    Path or None
        None if this benchmark has no picture, or matplotlib is missing.
    """
    name = figures["bench"]
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
}
