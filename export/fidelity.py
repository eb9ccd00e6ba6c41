"""How near int8 stays to float, node by node: which activation loses the most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edge_imputer.errors import ExportError
from edge_imputer.quantization import dequantize, quantize

from .graph import Array, Graph
from .op_params import quant_of
from .reference import Interpreter, zero_feeds


@dataclass(frozen=True)
class NodeFidelity:
    """One node of a graph, in int8 against float.

    Attributes
    ----------
    output, kind : str
        Name of the node's output, and its operation.
    snr_db : float
        Signal to quantisation noise at this point, of all that came before as well.
    clipped : float
        Share of the elements at an end of the int8 range.
    """

    output: str
    kind: str
    snr_db: float
    clipped: float


def node_fidelity(floats: Graph, integers: Graph, chunks: Iterable[Array]) -> list[NodeFidelity]:
    """Run both forms over one sequence, each with its own states.

    Parameters
    ----------
    floats, integers : Graph
        The same graph, float and quantised; its inputs but the first are states.
    chunks : iterable of float32 arrays
        Of the first input, call by call.

    Raises
    ------
    ExportError
        No chunk, or graphs that are not of one network.
    """
    if [op.output for op in floats.ops] != [op.output for op in integers.ops]:
        raise ExportError(f"expected one graph in two forms, got {floats.name}, {integers.name}")
    both = Interpreter(floats), Interpreter(integers)
    feeds = [zero_feeds(floats), zero_feeds(integers)]
    signal, noise, clipped = (dict.fromkeys((op.output for op in floats.ops), 0.0) for _ in "snc")
    n_calls, first = 0, floats.inputs[0]
    for chunk in chunks:
        feeds[0][first] = chunk
        feeds[1][first] = quantize(chunk, quant_of(integers, first))
        real, steps = (run.run(feed) for run, feed in zip(both, feeds, strict=True))
        for name in signal:
            error = dequantize(steps[name], quant_of(integers, name)) - real[name]
            signal[name] += float(np.square(real[name], dtype=np.float64).sum())
            noise[name] += float(np.square(error, dtype=np.float64).sum())
            clipped[name] += float(np.mean(np.abs(steps[name].astype(int) * 2 + 1) == 255))
        for feed, values in zip(feeds, (real, steps), strict=True):
            feed.update({before: values[after] for before, after in floats.state_pairs})
        n_calls += 1
    if not n_calls:
        raise ExportError(f"{floats.name}: expected at least one chunk, got none")
    return [
        NodeFidelity(
            op.output,
            op.kind,
            decibels(signal[op.output], noise[op.output]),
            clipped[op.output] / n_calls,
        )
        for op in floats.ops
    ]


def decibels(signal: float, noise: float) -> float:
    """Ratio of two powers; infinite without noise."""
    return float(10 * np.log10(signal / noise)) if noise and signal else float("inf")
