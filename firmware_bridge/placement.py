"""Where every tensor of a graph lies while the C code runs: a caller's buffer, or the arena.

Reshapes, contiguous slices and transpositions that move no byte are views and cost nothing. An
output is computed in place in the caller's buffer where nothing still reads what lies there, else
it is copied at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from edge_imputer.errors import ExportError
from edge_imputer.export.graph import Graph, Op
from edge_imputer.export.memory import Block, plan_blocks, tensor_bytes

TILE, SHALLOW = 4, 16  # EDIM_TILE and EDIM_SHALLOW in edim_kernels.h


@dataclass(frozen=True)
class Place:
    """An address: a parameter of the C function, and bytes from its start."""

    base: str
    offset: int

    def __str__(self) -> str:
        """The C expression of it."""
        return f"{self.base} + {self.offset}" if self.offset else self.base


@dataclass
class Placement:
    """The memory plan of one graph.

    Attributes
    ----------
    places : dict
        Of every tensor that is not a constant.
    views : dict
        Outputs of operations that compute nothing: name -> (source, offset in bytes).
    scratch : dict
        Arena offset of an operation's scratch memory, by output name.
    copies : list of (tensor, place)
        Outputs to copy to the caller's buffer at the end.
    arena_bytes : int
    """

    places: dict[str, Place]
    views: dict[str, tuple[str, int]] = field(default_factory=dict)
    scratch: dict[str, int] = field(default_factory=dict)
    copies: list[tuple[str, Place]] = field(default_factory=list)
    arena_bytes: int = 0


def place(graph: Graph, inputs: dict[str, Place], outputs: dict[str, Place]) -> Placement:
    """Lay out a quantised graph.

    Parameters
    ----------
    graph : Graph
    inputs, outputs : dict from tensor name to Place
        Where the caller gives and takes them. Inputs and outputs of the streaming state may lie
        in the same memory; nothing else may.
    """
    views = _views(graph, {name for name, _ in graph.state_pairs})
    plan = Placement(places=dict(inputs), views=views)
    made = {op.output: i for i, op in enumerate(graph.ops)}
    last = _last_reads(graph, views)
    for name, target in outputs.items():
        root, _ = _root(views, name)
        if root in inputs and inputs[root].base == target.base:
            raise ExportError(f"{graph.name}: expected {name} to be computed, it is an input")
        overwritten = [n for n, p in inputs.items() if p == target]
        free = all(last.get(n, -1) < made.get(root, -1) for n in overwritten)
        whole = root in made and prod(graph.tensors[root].shape) == prod(graph.tensors[name].shape)
        if whole and free and root not in plan.places:
            plan.places[root] = target
        else:
            plan.copies.append((name, target))
            last[root] = len(graph.ops)
    _place_in_arena(graph, plan, last)
    for name in views:
        root, offset = _root(views, name)
        at = plan.places[root]
        plan.places[name] = Place(at.base, at.offset + offset)
    return plan


def contiguous_offset(op: Op, shape: tuple[int, ...]) -> int | None:
    """First element of a slice of a tensor of `shape`, or None where it is not contiguous."""
    begin: tuple[int, ...] = tuple(op.attrs["begin"])
    size: tuple[int, ...] = tuple(op.attrs["size"])
    cut = next((axis for axis, n in enumerate(size) if n != 1), len(size))
    if size[cut + 1 :] != shape[cut + 1 :]:
        return None
    return sum(b * prod(shape[axis + 1 :]) for axis, b in enumerate(begin))


def keeps_order(op: Op, shape: tuple[int, ...]) -> bool:
    """Whether a transposition of a tensor of `shape` moves only axes of length 1: no byte moves."""
    kept = [axis for axis in op.attrs["perm"] if shape[axis] > 1]
    return kept == sorted(kept)


def scratch_bytes(graph: Graph, op: Op) -> int:
    """What EDIM_FULLY_CONNECTED_SCRATCH and its like say of an operation; 0 where it needs none."""
    if op.kind == "batch_matmul":
        return TILE * graph.tensors[op.inputs[0]].shape[2] if op.attrs["transposed"] else 0
    if op.kind not in ("conv2d", "fully_connected"):
        return 0
    rows, *inner = graph.tensors[op.inputs[1]].shape
    shallow = op.kind == "conv2d" and prod(inner) < SHALLOW
    return (rows if shallow else TILE) * prod(inner)


def _views(graph: Graph, states: set[str]) -> dict[str, tuple[str, int]]:
    """Outputs that need no memory. A state is never viewed: it may be overwritten meanwhile."""
    copied = states | {name for name, tensor in graph.tensors.items() if tensor.data is not None}
    views: dict[str, tuple[str, int]] = {}
    for op in graph.ops:
        source = op.inputs[0]
        shape = graph.tensors[source].shape
        offset: int | None = None
        if op.kind == "reshape" or (op.kind == "transpose" and keeps_order(op, shape)):
            offset = 0
        elif op.kind == "slice":
            offset = contiguous_offset(op, shape)
        if offset is not None and _root(views, source)[0] not in copied:
            views[op.output] = (source, offset)
    return views


def _root(views: dict[str, tuple[str, int]], name: str) -> tuple[str, int]:
    """The tensor whose memory `name` lies in, and where."""
    offset = 0
    while name in views:
        name, step = views[name]
        offset += step
    return name, offset


def _last_reads(graph: Graph, views: dict[str, tuple[str, int]]) -> dict[str, int]:
    """Index of the last operation that reads the memory of a tensor."""
    last: dict[str, int] = {}
    for i, op in enumerate(graph.ops):
        if op.output not in views:
            last.update((_root(views, name)[0], i) for name in op.inputs)
    return last


def _place_in_arena(graph: Graph, plan: Placement, last: dict[str, int]) -> None:
    """Give every tensor that has no place yet, and every scratch memory, a part of the arena."""
    blocks: dict[str, Block] = {}
    for i, op in enumerate(graph.ops):
        scratch = scratch_bytes(graph, op)
        if scratch:
            blocks[f"{op.output} scratch"] = Block(scratch, i, i)
        if op.output not in plan.views and op.output not in plan.places:
            size = tensor_bytes(graph, op.output)
            blocks[op.output] = Block(size, i, max(i, last.get(op.output, i)))
    offsets, plan.arena_bytes = plan_blocks(list(blocks.values()))
    for name, offset in zip(blocks, offsets, strict=True):
        if name.endswith(" scratch"):
            plan.scratch[name.removesuffix(" scratch")] = offset
        else:
            plan.places[name] = Place("arena", offset)
