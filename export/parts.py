"""Slices that cut a tensor into equal parts, which files have as one operation with many outputs.

In a graph every operation has one output. In a file an operation costs more than what it does: so
what a graph has as n slices one after the other is one SPLIT in a .tflite file, and one Split in an
.onnx file. It gives the same tensors, under the same numbers and names.
"""

from __future__ import annotations

from .graph import Graph, Op


def in_parts(graph: Graph) -> list[tuple[Op, ...]]:
    """Operations in order, each by itself but for slices that together are all of a tensor."""
    groups, k = [], 0
    while k < len(graph.ops):
        _, n_parts = cut(graph, graph.ops[k])
        ops = tuple(graph.ops[k : k + n_parts])
        group = ops if _alike(graph, ops) else ops[:1]
        groups.append(group)
        k += len(group)
    return groups


def cut(graph: Graph, op: Op) -> tuple[int, int]:
    """Axis of a slice that is the first of n equal parts, and n; (0, 1) of any other operation."""
    if op.kind != "slice" or any(op.attrs["begin"]):
        return 0, 1
    whole, part = graph.tensors[op.inputs[0]].shape, op.attrs["size"]
    axes = [axis for axis, n in enumerate(whole) if part[axis] != n]
    if len(axes) != 1 or whole[axes[0]] % part[axes[0]]:
        return 0, 1
    return axes[0], whole[axes[0]] // part[axes[0]]


def _alike(graph: Graph, ops: tuple[Op, ...]) -> bool:
    """Whether operations are as many slices as parts, in their order."""
    first = ops[0]
    axis, n_parts = cut(graph, first)
    if len(ops) < n_parts:
        return False
    return all(
        (op.kind, op.inputs) == ("slice", first.inputs)
        and op.attrs["size"] == first.attrs["size"]
        and op.attrs["begin"] == _begin(first, axis, k)
        for k, op in enumerate(ops[1:], 1)
    )


def _begin(first: Op, axis: int, k: int) -> tuple[int, ...]:
    size = first.attrs["size"]
    return tuple(k * size[axis] if a == axis else 0 for a in range(len(size)))
