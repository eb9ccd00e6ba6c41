"""What quantisation cost a graph: noise node by node, and what int16 mended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .calibration import Calibration
from .fidelity import NodeFidelity, Run, node_fidelity
from .graph import Array, Graph
from .sensitivity import Choice


@dataclass(frozen=True)
class GraphReport:
    """One graph in integers against float, on what calibration met first.

    Attributes
    ----------
    graph : str
    calibration : str
        How ranges were found.
    n_calls : int
        Calls that were compared, states handed on.
    snr_db : float
        At the first output.
    kl : float
        Mean over rows of the first output of the Kullback-Leibler divergence, in nats, of their
        softmax in integers from that in float; means something of logits.
    choice : Choice
    nodes : list of NodeFidelity
        In the order of execution, without those that are meant to be cut to the range of others,
        such as masks.
    """

    graph: str
    calibration: str
    n_calls: int
    snr_db: float
    kl: float
    choice: Choice
    nodes: list[NodeFidelity]

    def figures(self) -> dict[str, Any]:
        """All of it as JSON takes it: a ratio that is infinite, without noise, is null."""
        nodes = [asdict(node) | {"snr_db": _finite(node.snr_db)} for node in self.nodes]
        return asdict(self) | {"snr_db": _finite(self.snr_db), "nodes": nodes}


def graph_report(calibration: Calibration, integers: Graph, choice: Choice) -> GraphReport:
    """Compare both forms of a graph on the inputs that calibration kept."""
    floats, samples = calibration.graph, calibration.samples
    nodes = node_fidelity(floats, integers, samples)
    output = floats.outputs[0]
    cut = floats.saturating | {op.output for op in floats.ops if op.kind == "minimum"}
    return GraphReport(
        graph=floats.name,
        calibration=calibration.method,
        n_calls=len(samples),
        snr_db=next(node.snr_db for node in nodes if node.output == output),
        kl=_divergence(floats, integers, samples, output),
        choice=choice,
        nodes=[node for node in nodes if node.output not in cut],
    )


def _divergence(
    floats: Graph, integers: Graph, samples: Sequence[Mapping[str, Array]], output: str
) -> float:
    runs = Run(floats), Run(integers)
    pairs = [[_log_softmax(run(sample, output)) for run in runs] for sample in samples]
    return float(np.mean([(np.exp(p) * (p - q)).sum(-1) for p, q in pairs]))


def _log_softmax(x: Array) -> Array:
    shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def table(reports: Sequence[GraphReport]) -> str:
    """The same as a page of Markdown."""
    lines = ["# Quantisation", ""]
    for report in reports:
        lines += [
            f"## {report.graph}",
            "",
            f"Ranges by {report.calibration}; {report.n_calls} calls; signal to noise "
            f"{report.snr_db:.1f} dB at the output, divergence {report.kl:.2g} nats.",
            "",
            _sums(report.choice),
            "",
            "| node | operation | signal to noise, dB | clipped, % |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {n.output} | {n.kind} | {n.snr_db:.1f} | {100 * n.clipped:.2f} |"
            for n in report.nodes
        ]
        lines.append("")
    return "\n".join(lines)


def _sums(choice: Choice) -> str:
    if not choice.wide:
        return "All activations are int8."
    parts = ", ".join(f"{name} ({choice.alone_db[name]:.1f})" for name in choice.wide)
    return (
        f"All in int8 it was {choice.int8_snr_db:.1f} dB. These sums are int16; in brackets what "
        f"would be left if one were int8 and all the others int16: {parts}."
    )
