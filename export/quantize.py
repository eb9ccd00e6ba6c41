"""Post-training quantisation: ranges of real activations, then one graph of integers.

Activations are asymmetric int8 per tensor, over the true minimum and maximum that calibration
met (moving averages clip); weights symmetric int8 per output channel in [-127, 127]; biases
int32 (Jacob et al. 2018, arXiv:1712.05877; the TFLite int8 specification). Activations that
`precision` makes int16 are symmetric, as in TFLite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from .calibration import Range
from .graph import SHARES_SCALE, WEIGHT_AXIS, Array, Graph, Op, Tensor
from .op_params import op_params

OUTPUT_QUANT = {  # fixed by TFLite; both ranges have no error at zero
    "sigmoid": QuantParams(scale=1 / 256, zero_point=-128),
    "tanh": QuantParams(scale=1 / 128, zero_point=0),
    "softmax": QuantParams(scale=1 / 256, zero_point=-128),
    "l2_norm": QuantParams(scale=1 / 128, zero_point=0),
}
EVERYTHING: Range = (-np.inf, np.inf)
PASSED_ON = frozenset({"slice", "reshape", "transpose", "concat", "requantise"})
"""Operations whose output holds their operands' values, and nothing else."""
SATURATION = {"sigmoid": 6.5, "tanh": 3.25}  # beyond it the int8 output is its last step anyway
WIDE_HEADROOM = 4.0  # of int16: two of its bits, so that nothing that is met later saturates
LARGEST_BIAS = 2**30  # leaves the accumulator as much for the products


def params_of_range(low: float, high: float) -> QuantParams:
    """Int8 parameters that cover [low, high] and zero, with a real zero exactly representable."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255))
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        raise ExportError(f"expected a range of more than zero width, got [{low}, {high}]")
    return QuantParams(scale=scale, zero_point=int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def wide_params_of_range(low: float, high: float) -> QuantParams:
    """Int16 parameters, symmetric, that cover `WIDE_HEADROOM` times [low, high]."""
    scale = float(np.float32(WIDE_HEADROOM * max(-low, high) / 32767))
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        raise ExportError(f"expected a range of more than zero width, got [{low}, {high}]")
    return QuantParams(scale=scale, zero_point=0)


def quantise(
    graph: Graph, ranges: Mapping[str, Range], fixed: Mapping[str, QuantParams] | None = None
) -> Graph:
    """The form of a float graph in integers: int8, and int16 what is in `Graph.wide`.

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
        name: replace(t, dtype=_dtype(graph, name), quant=params[name])
        if name in params
        else replace(t)
        for name, t in graph.tensors.items()
    }
    seen: dict[str, QuantParams] = {}  # by weight: steps of a layer may share one
    for op in graph.ops:
        if op.kind in WEIGHT_AXIS:
            weight, bias = (graph.tensors[name] for name in op.inputs[1:])
            x = params[op.inputs[0]]
            if seen.setdefault(weight.name, x) != x:
                raise ExportError(
                    f"{weight.name}: expected one scale of what it is multiplied with, got "
                    f"{seen[weight.name]} and {x}; copy the weight"
                )
            tensors[weight.name], tensors[bias.name] = _quantise_linear(
                weight, bias, x, WEIGHT_AXIS[op.kind]
            )
    for name, quant in params.items():
        data = graph.tensors[name].data
        if data is not None:
            tensors[name].data = _round_int8(data, quant)
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
    """Parameters of every activation and of constants like them, one set a group that shares."""
    given = dict(fixed)
    copies = {op.output: op.inputs[0] for op in graph.ops if op.kind == "requantise"}
    ranges = {**{copy: ranges[x] for copy, x in copies.items() if x in ranges}, **ranges}
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
    for copy, x in copies.items():
        if copy in graph.wide:  # an int16 copy of an int8 tensor has all its values, exactly
            params[copy] = QuantParams(scale=params[x].scale / 128, zero_point=0)
    return params


def _dtype(graph: Graph, name: str) -> str:
    return "int16" if name in graph.wide else "int8"


def saturated_ranges(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges without the parts that only saturate a sigmoid or a tanh.

    An activation that nothing but sigmoids (or tanhs) reads is cut to where their int8 output
    still changes: the integers that come out are the same, those that go in have finer steps. So is
    one that only gets there through operations that move it, or as a term of a sum, where the other
    term's range is added: a GRU's gates saturate far below what its input may give them.
    """
    needed: dict[str, Range] = dict.fromkeys(graph.outputs, EVERYTHING)
    for op in reversed(graph.ops):
        for position, name in enumerate(op.inputs):
            low, high = _needed(op, position, needed.get(op.output, EVERYTHING), ranges)
            others = needed.get(name, (low, high))
            needed[name] = min(low, others[0]), max(high, others[1])
    return {
        name: (max(low, needed[name][0]), min(high, needed[name][1])) if name in needed else found
        for name, found in ranges.items()
        for low, high in [found]
    }


def _needed(op: Op, position: int, output: Range, ranges: Mapping[str, Range]) -> Range:
    """What of an operand's range matters, where `output` is what matters of the output's."""
    if op.kind in SATURATION:
        return -SATURATION[op.kind], SATURATION[op.kind]
    if op.kind in PASSED_ON:
        return output
    other = op.inputs[1 - position] if op.kind == "add" else ""
    if other in ranges:  # whatever the other term is, beyond these the sum is beyond the output's
        return output[0] - ranges[other][1], output[1] - ranges[other][0]
    return EVERYTHING


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
        if name in graph.saturating:
            continue
        if data is not None:  # an embedding table, or what is added to an activation
            found.append((float(data.min()), float(data.max())))
        elif name in ranges:
            found.append(ranges[name])
        else:
            raise ExportError(f"{graph.name}: expected a calibrated range for {name}, got none")
    if not found:
        raise ExportError(f"{graph.name}: {group} all saturate: nothing gives them a scale")
    low, high = min(r[0] for r in found), max(r[1] for r in found)
    try:
        wide = not graph.wide.isdisjoint(group)
        return wide_params_of_range(low, high) if wide else params_of_range(low, high)
    except ExportError as error:
        raise ExportError(
            f"{graph.name}: {', '.join(group)}: {error}; the layer is dead or the calibration "
            "audio is silent"
        ) from error


def scale_groups(graph: Graph) -> list[list[str]]:
    """Activations that must share one scale: those tied by operations that do not requantise,
    by an embedding to its table, by the streaming state, and those that the graph has as alike.
    Constants that are computed with like activations are among them."""
    read = {name for op in graph.ops if op.kind not in WEIGHT_AXIS for name in op.inputs}
    parent = {
        name: name
        for name, tensor in graph.tensors.items()
        if tensor.dtype != "int32" and (tensor.data is None or name in read)
    }

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    ties = [(a, b) for op in graph.ops for a, b in _ties(op)] + graph.state_pairs
    ties += [(names[0], name) for names in graph.alike for name in names[1:]]
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


def _quantise_linear(
    weight: Tensor, bias: Tensor, x: QuantParams, axis: int
) -> tuple[Tensor, Tensor]:
    """Weight and bias of an operation of `WEIGHT_AXIS`, with its axis of output channels."""
    if weight.data is None or bias.data is None:
        raise ExportError(f"expected constants, got {weight.name} and {bias.name} without data")
    rows = np.moveaxis(weight.data, axis, 0)
    scales = weight_scales(rows, bias.data, x)
    steps = scales.astype(np.float64).reshape(-1, *[1] * (rows.ndim - 1))
    q = np.moveaxis(np.clip(np.rint(rows.astype(np.float64) / steps), -127, 127), 0, axis)
    bias_scales = float(x.scale) * scales.astype(np.float64)
    q_bias = np.rint(bias.data.astype(np.float64) / bias_scales)
    return (
        replace(
            weight,
            dtype="int8",
            data=np.ascontiguousarray(q.astype(np.int8)),
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
