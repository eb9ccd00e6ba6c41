"""Which values a network's activations take on real audio, and the ranges that int8 is to cover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError

from .graph import Array, Graph
from .reference import Interpreter, zero_feeds

Range = tuple[float, float]
Method = Literal["min-max", "percentile", "mse"]

PERCENTILE = 99.99  # of an activation's values, that lie in its range
BINS = 2048  # of a histogram
SOFTMAX_REACH = 7.0  # below a row's largest, int8 weights are 0: exp(-7) is less than 1 / 512
SAMPLES = 100  # calls whose inputs are kept
SHRUNK = np.linspace(1.0, 0.3, 36)  # shares of the range that "mse" tries


class Histogram:
    """How often values were met, in bins of one width that doubles whenever they do not reach.

    Attributes
    ----------
    low, high : float
        True minimum and maximum.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._reach = 0.0  # bins cover [-reach, reach)
        self._counts = np.zeros(BINS, np.int64)

    def add(self, values: Array, *, count: bool = True) -> None:
        """Note finite values; without `count` their minimum and maximum only."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if count:
            self._count(values)

    def _count(self, values: Array) -> None:
        largest = max(-self.low, self.high)
        if not self._reach:
            self._reach = largest
        while largest > self._reach > 0:
            self._reach *= 2
            pairs = self._counts.reshape(-1, 2).sum(1)
            self._counts = np.pad(pairs, BINS // 4)
        if self._reach:
            at = ((values.ravel() / self._reach + 1) * (BINS / 2)).astype(np.int64)
            self._counts += np.bincount(np.minimum(at, BINS - 1), minlength=BINS)
        else:  # zeros only so far
            self._counts[BINS // 2] += values.size

    def percentile(self, share: float) -> Range:
        """The range without the (1 - share) / 2 of the values that are lowest, and highest."""
        total = np.cumsum(self._counts)
        cut = (1 - share) / 2 * total[-1]
        first = int(np.searchsorted(total, cut, side="right"))
        last = int(np.searchsorted(total, total[-1] - cut, side="left"))
        edges = self._edges()
        return max(self.low, float(edges[first])), min(self.high, float(edges[last + 1]))

    def least_error(self) -> Range:
        """The range whose 255 steps have the least mean square error, rounding and clipping."""
        edges = self._edges()
        error = partial(self._error, (edges[:-1] + edges[1:]) / 2)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        for _ in range(2):  # one end after the other, and once more
            high = min((float(s * high) for s in SHRUNK), key=lambda end: error(low, end))
            low = min((float(s * low) for s in SHRUNK), key=lambda end: error(end, high))
        return low, high

    def _error(self, centres: npt.NDArray[np.float64], low: float, high: float) -> float:
        """Sum of the squared errors of rounding and clipping to a range; `centres` of the bins."""
        beyond = centres - np.clip(centres, low, high)
        rounding = ((high - low) / 255) ** 2 / 12
        return float((self._counts * (beyond**2 + rounding * (beyond == 0))).sum())

    def _edges(self) -> npt.NDArray[np.float64]:
        return np.linspace(-self._reach, self._reach, BINS + 1)


class Calibration:
    """Ranges of every activation of one float graph.

    Parameters
    ----------
    graph : Graph
        Float.
    method : str
        "min-max": the true minimum and maximum; nothing is clipped, which is best where it can be
        afforded. "percentile": without the outermost values. "mse": where rounding and clipping
        together lose least.
    percentile : float
        Of the values that "percentile" covers, in percent.

    Attributes
    ----------
    n_calls : int
        Calls of the graph that were observed.
    samples : list of dict
        Inputs of the first `SAMPLES` calls, by name, without the states.
    """

    def __init__(
        self, graph: Graph, method: Method = "min-max", *, percentile: float = PERCENTILE
    ) -> None:
        if graph.quantised:
            raise ExportError(f"expected a float graph to calibrate, got {graph.name}, quantised")
        if method not in get_args(Method):
            raise ExportError(
                f"expected a method among {', '.join(get_args(Method))}, got {method!r}"
            )
        if not 50 < percentile <= 100:
            raise ExportError(f"expected a percentile above 50 and up to 100, got {percentile}")
        self.graph = graph
        self.method = method
        self.percentile = percentile
        self.n_calls = 0
        self.samples: list[dict[str, Array]] = []
        self._softmax_inputs = softmax_inputs(graph)
        self._interpreter = Interpreter(graph)
        known = activations(graph)
        self._seen = {name: Histogram() for name in graph.tensors if name in known}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the float graph on one set of inputs and note every activation's values."""
        values = self._interpreter.run(feeds)
        for name, histogram in self._seen.items():
            if not np.isfinite(values[name]).all():
                raise ExportError(
                    f"{self.graph.name}: {name} is not finite on calibration data; the features "
                    "or the weights hold NaN or infinity"
                )
            seen = values[name]
            if name in self._softmax_inputs:
                seen = np.maximum(seen, seen.max(-1, keepdims=True) - SOFTMAX_REACH)
            histogram.add(seen, count=self.method != "min-max")
        if len(self.samples) < SAMPLES:
            own = self.graph.inputs[: len(self.graph.inputs) - self.graph.n_states]
            self.samples.append({name: feeds[name].copy() for name in own})
        self.n_calls += 1
        return values

    def run_sequence(self, chunks: Iterable[Array]) -> list[dict[str, Array]]:
        """Run a streaming graph from its initial state over one sequence.

        Parameters
        ----------
        chunks : iterable of arrays
            Values of the first input, call by call; the other inputs must be states.

        Returns
        -------
        list of the outputs of every call, by name
        """
        feeds = zero_feeds(self.graph)
        results = []
        for chunk in chunks:
            values = self.run({**feeds, self.graph.inputs[0]: chunk})
            feeds.update({before: values[after] for before, after in self.graph.state_pairs})
            results.append({name: values[name] for name in self.graph.outputs})
        return results

    @property
    def ranges(self) -> dict[str, Range]:
        """Range of every activation, (minimum, maximum), by the method."""
        if self.n_calls == 0:
            raise ExportError(
                f"{self.graph.name}: expected at least one calibration call, got none; "
                "give calibration audio"
            )
        found = {name: self._range(histogram) for name, histogram in self._seen.items()}
        for name in self._softmax_inputs:  # what is masked must not come any nearer
            found[name] = (self._seen[name].low, found[name][1])
        return found

    def _range(self, histogram: Histogram) -> Range:
        if self.method == "percentile":
            return histogram.percentile(self.percentile / 100)
        if self.method == "mse":
            return histogram.least_error()
        return histogram.low, histogram.high


def activations(graph: Graph) -> set[str]:
    """What a float graph computes with, but constants and token ids."""
    return {n for n, t in graph.tensors.items() if t.data is None and t.dtype == "float32"}


def softmax_inputs(graph: Graph) -> set[str]:
    """Activations that nothing but softmax reads: `SOFTMAX_REACH` below a row's largest element
    is as good as infinitely far, so that their ranges reach just there and no further.

    A masked key, which is the lowest int8, is then out of reach of what calibration met, however
    narrow the range of the scores.
    """
    readers: dict[str, set[str]] = {}
    for op in graph.ops:
        for name in op.inputs:
            readers.setdefault(name, set()).add(op.kind)
    return {n for n, kinds in readers.items() if kinds == {"softmax"} and n not in graph.outputs}
