"""Post-training quantisation: ranges of real activations, then one int8 graph.

Activations are asymmetric int8 per tensor, over the true minimum and maximum that calibration
met (moving averages clip); weights symmetric int8 per output channel in [-127, 127]; biases
int32 (Jacob et al. 2018, arXiv:1712.05877; the TFLite int8 specification).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from .graph import SHARES_SCALE, Array, Graph, Op, Tensor
from .op_params import op_params
from .reference import Interpreter, zero_feeds

OUTPUT_QUANT = {  # fixed by TFLite; both ranges have no error at zero
    "sigmoid": QuantParams(scale=1 / 256, zero_point=-128),
    "tanh": QuantParams(scale=1 / 128, zero_point=0),
}
SATURATION = {"sigmoid": 6.5, "tanh": 3.25}  # beyond it the int8 output is its last step anyway
LARGEST_BIAS = 2**30  # leaves the accumulator as much for the products
Range = tuple[float, float]


class Calibration:
    """True minimum and maximum of every activation of one float graph.

    Attributes
    ----------
    n_calls : int
        Calls of the graph that were observed.
    """

    def __init__(self, graph: Graph) -> None:
        if graph.quantised:
            raise ExportError(f"expected a float graph to calibrate, got {graph.name}, quantised")
        self.graph = graph
        self.n_calls = 0
        self._ranges: dict[str, Range] = {}
        self._interpreter = Interpreter(graph)
        self._watched = [
            name for name, t in graph.tensors.items() if t.data is None and t.dtype == "float32"
        ]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the float graph on one set of inputs and note every activation's range."""
        values = self._interpreter.run(feeds)
        for name in self._watched:
            low, high = float(values[name].min()), float(values[name].max())
            if not np.isfinite([low, high]).all():
                raise ExportError(
                    f"{self.graph.name}: {name} is not finite on calibration data; the features "
                    "or the weights hold NaN or infinity"
                )
            known = self._ranges.get(name, (low, high))
            self._ranges[name] = (min(low, known[0]), max(high, known[1]))
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
        """Range of every activation, (minimum, maximum)."""
        if self.n_calls == 0:
            raise ExportError(
                f"{self.graph.name}: expected at least one calibration call, got none; "
                "give calibration audio"
            )
        return dict(self._ranges)


def params_of_range(low: float, high: float) -> QuantParams:
    """Int8 parameters that cover [low, high] and zero, with a real zero exactly representable."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255))
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        raise ExportError(f"expected a range of more than zero width, got [{low}, {high}]")
    return QuantParams(scale=scale, zero_point=int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def quantise(
    graph: Graph, ranges: Mapping[str, Range], fixed: Mapping[str, QuantParams] | None = None
) -> Graph:
    """The int8 form of a float graph.

    Parameters
    ----------
    graph : Graph
        Float.
    ranges : mapping from activation to (minimum, maximum)
        From `Calibration.ranges`.
    fixed : mapping from activation to parameters, optional
        Parameters that are given from outside, such as those of another graph's output.

    Raises
    ------
    ExportError
        On weights that are not finite, activations without a range or with a range of zero
        width (a dead layer), fixed parameters that contradict each other, or integers that
        could overflow.
    """
    if graph.quantised:
        raise ExportError(f"expected a float graph, got {graph.name}, which is quantised already")
    for tensor in graph.tensors.values():
        _check_constant(graph, tensor)
    params = _activation_params(graph, ranges, {**graph.structural_quant, **(fixed or {})})
    tensors = {
        name: replace(t, dtype="int8", quant=params[name]) if name in params else replace(t)
        for name, t in graph.tensors.items()
    }
    for op in graph.ops:
        if op.kind in ("conv2d", "fully_connected"):
            weight, bias = (graph.tensors[name] for name in op.inputs[1:])
            if tensors[weight.name].weight_scales is not None:
                raise ExportError(f"{weight.name}: expected one user, got two; copy the weight")
            x = params[op.inputs[0]]
            tensors[weight.name], tensors[bias.name] = _quantise_linear(weight, bias, x)
        elif op.kind == "embedding":
            name = op.inputs[1]
            tensors[name].data = _round_int8(graph.tensors[name].data, params[name])
    result = replace(
        graph,
        tensors=tensors,
        ops=list(graph.ops),
        inputs=list(graph.inputs),
        outputs=list(graph.outputs),
    )
    for op in result.ops:  # every run-time integer must exist and fit
        op_params(result, op)
    return result


def _check_constant(graph: Graph, tensor: Tensor) -> None:
    if tensor.data is None:
        return
    bad = int(np.size(tensor.data) - np.isfinite(tensor.data).sum())
    if bad or tensor.data.dtype != np.float32:
        raise ExportError(
            f"{graph.name}: expected finite float32 in {tensor.name}, got {tensor.data.dtype} "
            f"with {bad} values that are not finite; the checkpoint is damaged or diverged"
        )


def _activation_params(
    graph: Graph, ranges: Mapping[str, Range], fixed: Mapping[str, QuantParams]
) -> dict[str, QuantParams]:
    """Parameters of every activation and embedding table, one set a group that shares them."""
    given = dict(fixed)
    ranges = saturated_ranges(graph, ranges)
    unknown = set(given) - set(graph.tensors)
    if unknown:
        raise ExportError(f"{graph.name}: fixed parameters for unknown tensors {sorted(unknown)}")
    for op in graph.ops:
        if op.kind in OUTPUT_QUANT:
            _give(given, op.output, OUTPUT_QUANT[op.kind])
    params: dict[str, QuantParams] = {}
    for group in scale_groups(graph):
        wanted = {name: given[name] for name in group if name in given}
        if len(set(_pairs(wanted))) > 1:
            raise ExportError(
                f"{graph.name}: {group} must share one scale, but it is fixed to {wanted}"
            )
        shared = next(iter(wanted.values())) if wanted else _group_params(graph, group, ranges)
        params.update(dict.fromkeys(group, shared))
    return params


def saturated_ranges(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges without the parts that only saturate a sigmoid or a tanh.

    An activation that nothing but sigmoids (or tanhs) reads is cut to where their int8 output
    still changes: the integers that come out are the same, those that go in have finer steps.
    """
    readers: dict[str, set[str]] = {}
    for op in graph.ops:
        for name in op.inputs:
            readers.setdefault(name, set()).add(op.kind)
    cut = dict(ranges)
    for name, kinds in readers.items():
        (kind, *others) = kinds
        if others or kind not in SATURATION or name in graph.outputs or name not in cut:
            continue
        limit = SATURATION[kind]
        cut[name] = (max(cut[name][0], -limit), min(cut[name][1], limit))
    return cut


def _give(given: dict[str, QuantParams], name: str, params: QuantParams) -> None:
    if given.setdefault(name, params) != params:
        raise ExportError(f"{name}: its parameters are always {params}, got {given[name]}")


def _pairs(params: Mapping[str, QuantParams]) -> list[tuple[float, int]]:
    return [(p.scale, p.zero_point) for p in params.values()]


def _group_params(graph: Graph, group: list[str], ranges: Mapping[str, Range]) -> QuantParams:
    """Parameters over the union of a group's ranges."""
    found = []
    for name in group:
        data = graph.tensors[name].data
        if data is not None:  # an embedding table
            found.append((float(data.min()), float(data.max())))
        elif name in ranges:
            found.append(ranges[name])
        else:
            raise ExportError(f"{graph.name}: expected a calibrated range for {name}, got none")
    low, high = min(r[0] for r in found), max(r[1] for r in found)
    try:
        return params_of_range(low, high)
    except ExportError as error:
        raise ExportError(
            f"{graph.name}: {', '.join(group)}: {error}; the layer is dead or the calibration "
            "audio is silent"
        ) from error


def scale_groups(graph: Graph) -> list[list[str]]:
    """Activations that must share one scale: those tied by operations that do not requantise,
    by an embedding to its table, and by the streaming state."""
    parent = {
        name: name
        for name, tensor in graph.tensors.items()
        if tensor.data is None and tensor.dtype != "int32"
    }
    parent.update({op.inputs[1]: op.inputs[1] for op in graph.ops if op.kind == "embedding"})

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    ties = [(a, b) for op in graph.ops for a, b in _ties(op)] + graph.state_pairs
    for a, b in ties:
        parent[root(a)] = root(b)
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(root(name), []).append(name)
    return list(groups.values())


def _ties(op: Op) -> list[tuple[str, str]]:
    if op.kind == "embedding":
        return [(op.inputs[1], op.output)]
    return [(name, op.output) for name in op.inputs] if op.kind in SHARES_SCALE else []


def _quantise_linear(weight: Tensor, bias: Tensor, x: QuantParams) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution or a fully connected layer."""
    if weight.data is None or bias.data is None:
        raise ExportError(f"expected constants, got {weight.name} and {bias.name} without data")
    scales = weight_scales(weight.data, bias.data, x)
    rows = weight.data.reshape(len(scales), -1).astype(np.float64)
    q = np.clip(np.rint(rows / scales[:, np.newaxis].astype(np.float64)), -127, 127)
    bias_scales = float(x.scale) * scales.astype(np.float64)
    q_bias = np.rint(bias.data.astype(np.float64) / bias_scales)
    return (
        replace(
            weight,
            dtype="int8",
            data=q.astype(np.int8).reshape(weight.shape),
            weight_scales=scales,
        ),
        replace(bias, dtype="int32", data=q_bias.astype(np.int32)),
    )


def weight_scales(weight: Array, bias: Array, x: QuantParams) -> npt.NDArray[np.float32]:
    """Scale of every output channel, float32.

    The largest weight becomes 127. A channel of zeros, or one so small that its bias would not
    fit an int32, takes a larger scale: its weights round to fewer levels, its bias stays exact.
    """
    peak = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    least = np.abs(bias).astype(np.float64) / (float(x.scale) * LARGEST_BIAS)
    scales = np.maximum(peak / 127, least).astype(np.float32)
    usable = scales >= np.finfo(np.float32).tiny
    fallback = scales[usable].max() if usable.any() else np.float32(1 / 127)
    result: npt.NDArray[np.float32] = np.where(usable, scales, fallback).astype(np.float32)
    return result


def _round_int8(data: Array | None, params: QuantParams) -> npt.NDArray[np.int8]:
    if data is None:
        raise ExportError("expected an embedding table with data, got none")
    q = np.rint(data.astype(np.float64) / float(params.scale)) + params.zero_point
    clipped: npt.NDArray[np.int8] = np.clip(q, -128, 127).astype(np.int8)
    return clipped
