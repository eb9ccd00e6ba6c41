"""Calibrated ranges of a model's graphs, and the int8 graphs that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from .calibration import Calibration, Range, activations
from .graph import Graph
from .op_params import quant_of
from .quantize import quantise

Ranges = Mapping[str, Mapping[str, Range]]
"""(minimum, maximum) of every activation, by graph and activation."""


def ranges_of(*calibrations: Calibration) -> Ranges:
    """What calibration found, by graph.

    Raises
    ------
    ExportError
        On no audio.
    """
    return {calibration.graph.name: calibration.ranges for calibration in calibrations}


def quantise_in_order(
    graphs: Sequence[Graph], one: Callable[[Graph, Mapping[str, QuantParams]], Graph]
) -> tuple[Graph, ...]:
    """The integer forms of a model's float graphs, in the order in which they run.

    Each graph reads what the one before writes first exactly as it writes it: both have that scale.

    Parameters
    ----------
    graphs : float graphs
        Encoder and head, or that of a keyword model alone.
    one : callable
        A float graph, and the parameters of its input that are given -> its integer form.
    """
    done: list[Graph] = []
    for graph in graphs:
        fixed = {}
        if done:
            fixed = {graph.inputs[0]: quant_of(done[-1], done[-1].outputs[0])}
        done.append(one(graph, fixed))
    return tuple(done)


def quantise_by(graphs: Sequence[Graph], ranges: Ranges) -> tuple[Graph, ...]:
    """The int8 forms of a model's float graphs.

    Parameters
    ----------
    graphs : as `quantise_in_order` takes them
    ranges : Ranges

    Raises
    ------
    ExportError
        On a graph without ranges, or on what `quantise` refuses.
    """

    def one(graph: Graph, fixed: Mapping[str, QuantParams]) -> Graph:
        if graph.name not in ranges:
            raise ExportError(
                f"expected calibrated ranges of {graph.name}, got those of "
                f"{', '.join(sorted(ranges)) or 'nothing'}: they belong to another kind of model"
            )
        missing = activations(graph) - set(ranges[graph.name])
        if missing:
            raise ExportError(
                f"{graph.name}: expected ranges of {min(missing)} and others, got none: they "
                "are of another version's graph; tune the model again with --init-from"
            )
        return quantise(graph, ranges[graph.name], fixed)

    return quantise_in_order(graphs, one)
