"""How near integers stay to float, node by node: which activation loses the most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edge_imputer.errors import ExportError
from edge_imputer.quantization import dequantize, quantize

from .graph import Array, Graph
from .op_params import quant_of
from .reference import Interpreter, zero_feeds


@dataclass(frozen=True)
class NodeFidelity:
    """One node of a graph, in integers against float.

    Attributes
    ----------
    output, kind : str
        Name of the node's output, and its operation.
    snr_db : float
        Signal to quantisation noise at this point, of all that came before as well.
    clipped : float
        Share of the elements at an end of their integers' range.
    """

    output: str
    kind: str
    snr_db: float
    clipped: float


class Run:
    """A graph with its states, which takes and gives real numbers in whatever form it is."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._interpreter, self._feeds = Interpreter(graph), zero_feeds(graph)

    def step(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every tensor of the next call, by name; `feeds` has float32 and int32 inputs."""
        for name, given in feeds.items():
            quant = self.graph.tensors[name].quant
            self._feeds[name] = given if quant is None else quantize(given, quant)
        values = self._interpreter.run(self._feeds)
        self._feeds.update({before: values[after] for before, after in self.graph.state_pairs})
        return values

    def real(self, values: Mapping[str, Array], name: str) -> Array:
        """One tensor of a call as real numbers."""
        quant = self.graph.tensors[name].quant
        return values[name] if quant is None else dequantize(values[name], quant)

    def __call__(self, feeds: Mapping[str, Array], name: str) -> Array:
        """The next call's tensor of that name, as real numbers."""
        return self.real(self.step(feeds), name)


def node_fidelity(
    floats: Graph, integers: Graph, chunks: Iterable[Array | Mapping[str, Array]]
) -> list[NodeFidelity]:
    """Run both forms over one sequence, each with its own states.

    Parameters
    ----------
    floats, integers : Graph
        The same graph, float and quantised; what requantises in the second is no node of its own.
    chunks : iterable of float32 arrays, or of such arrays by name
        Of the first input, or of all that are no states, call by call.

    Raises
    ------
    ExportError
        No chunk, or graphs that are not of one network.
    """
    kinds = {op.output: op.kind for op in floats.ops}
    own = [op.output for op in integers.ops if op.kind != "requantise"]
    if own != list(kinds):
        raise ExportError(f"expected one graph in two forms, got {floats.name}, {integers.name}")
    both = Run(floats), Run(integers)
    signal, noise, clipped = (dict.fromkeys(kinds, 0.0) for _ in "snc")
    reaches = {name: reach(integers, name) for name in kinds}
    n_calls = 0
    for chunk in chunks:
        feeds = chunk if isinstance(chunk, Mapping) else {floats.inputs[0]: chunk}
        real, steps = (run.step(feeds) for run in both)
        for name in signal:
            error = both[1].real(steps, name) - real[name]
            signal[name] += float(np.square(real[name], dtype=np.float64).sum())
            noise[name] += float(np.square(error, dtype=np.float64).sum())
            low, high = reaches[name]
            clipped[name] += float(np.mean((real[name] < low) | (real[name] > high)))
        n_calls += 1
    if not n_calls:
        raise ExportError(f"{floats.name}: expected at least one chunk, got none")
    return [
        NodeFidelity(name, kind, decibels(signal[name], noise[name]), clipped[name] / n_calls)
        for name, kind in kinds.items()
    ]


def decibels(signal: float, noise: float) -> float:
    """Ratio of two powers; infinite without noise."""
    return float(10 * np.log10(signal / noise)) if noise and signal else float("inf")


def reach(integers: Graph, name: str) -> tuple[float, float]:
    """What rounds to an integer of a tensor's; what lies beyond is clipped."""
    quant, limits = quant_of(integers, name), np.iinfo(integers.tensors[name].dtype)
    low, high = (quant.scale * (limit - quant.zero_point) for limit in (limits.min, limits.max))
    return low - quant.scale / 2, high + quant.scale / 2
