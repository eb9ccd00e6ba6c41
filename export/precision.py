"""Which activations are int16: what is written between operations of two precisions.

A sum of two activations is where int8 loses most: a residual stream is rounded to a 255th of its
range again at every branch, and keeps all of these errors to the end. In TFLite's int16x8 scheme
activations may be int16, symmetric. Of its operations only `add` and `sub` are used here, and
`requantise`, which changes the precision: every runtime has them, and all agree to a step
(docs/quantisation.md has the table). What multiplies stays int8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edge_imputer.errors import ExportError

from .graph import Graph, Op, Tensor

SUMS = frozenset({"add", "sub"})


def candidates(graph: Graph) -> list[str]:
    """Outputs that may be int16: sums of two activations of one shape, inside the graph."""
    ends = {*graph.inputs, *graph.outputs, *graph.structural_quant, *graph.saturating}
    ends.update(name for group in graph.alike for name in group)  # they have one scale together
    return [op.output for op in graph.ops if _is_sum(graph, op) and op.output not in ends]


def _is_sum(graph: Graph, op: Op) -> bool:
    tensors = [graph.tensors[name] for name in (*op.inputs, op.output)]
    alike = len({tensor.shape for tensor in tensors}) == 1
    return op.kind in SUMS and alike and all(tensor.data is None for tensor in tensors)


def widened(graph: Graph, names: Iterable[str]) -> Graph:
    """A float graph whose sums of these names will be int16.

    Where an operation of one precision reads a tensor of the other, a `requantise` stands before
    it: ``NAME.int8`` and ``NAME.int16``, once for all who read it.

    Parameters
    ----------
    graph : Graph
        Float.
    names : of `candidates`

    Raises
    ------
    ExportError
        A quantised graph, or a name that is no candidate.
    """
    if graph.quantised:
        raise ExportError(f"expected a float graph, got {graph.name}, which is quantised already")
    wide = set(names)
    if unknown := wide - set(candidates(graph)):
        raise ExportError(
            f"{graph.name}: expected sums of two activations of one shape, which are neither "
            f"inputs nor outputs, got {sorted(unknown)}"
        )
    result = replace(graph, tensors=dict(graph.tensors), ops=[], wide=wide.copy())
    for op in graph.ops:
        inputs = tuple(_read(result, name, op.output in wide) for name in op.inputs)
        result.ops.append(replace(op, inputs=inputs))
    return result


def _read(graph: Graph, name: str, wide: bool) -> str:
    """A tensor in the precision that its reader has; what converts it is appended."""
    tensor = graph.tensors[name]
    if tensor.data is not None or tensor.dtype == "int32" or (name in graph.wide) == wide:
        return name
    copy = f"{name}.int16" if wide else f"{name}.int8"
    if copy not in graph.tensors:
        graph.tensors[copy] = Tensor(copy, tensor.shape)
        graph.ops.append(Op("requantise", (name,), copy))
        if wide:
            graph.wide.add(copy)
    return copy
