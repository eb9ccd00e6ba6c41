"""Calibrated ranges of a model's graphs, and the int8 graphs that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_imputer.errors import ExportError

from .calibration import Calibration, Range, activations
from .graph import Graph
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


def quantise_by(graphs: Sequence[Graph], ranges: Ranges) -> tuple[Graph, ...]:
    """The int8 forms of a model's float graphs.

    Each graph reads what the one before writes first exactly as it writes it: both have that scale.

    Parameters
    ----------
    graphs : float graphs
        In the order in which they run: encoder and head, or that of a keyword model alone.
    ranges : Ranges

    Raises
    ------
    ExportError
        On a graph without ranges, or on what `quantise` refuses.
    """
    done: list[Graph] = []
    for graph in graphs:
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
        fixed = {}
        if done:
            frames = done[-1].tensors[done[-1].outputs[0]].quant
            assert frames is not None  # of every activation of a quantised graph
            fixed = {graph.inputs[0]: frames}
        done.append(quantise(graph, ranges[graph.name], fixed))
    return tuple(done)
