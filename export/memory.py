"""Where activations lie while a graph runs: one arena, reused as tensors die.

Greedy by size: the largest block takes the lowest free offset among the blocks that live at the
same time (Pisarchyk and Lee 2020, arXiv:2001.03288, section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .graph import Graph

ALIGNMENT = 16  # bytes; the widest load of the kernels


@dataclass(frozen=True)
class Block:
    """Memory of `size` bytes, in use from operation `first` to operation `last`, both included."""

    size: int
    first: int
    last: int


def plan_blocks(blocks: Sequence[Block], alignment: int = ALIGNMENT) -> tuple[list[int], int]:
    """Lay blocks out so that none that live at the same time overlap.

    Returns
    -------
    offsets : list of int
        Of every block, in bytes, multiples of `alignment`.
    arena_bytes : int
        End of the last block, rounded up to `alignment`.
    """
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for index in sorted(range(len(blocks)), key=lambda k: (-blocks[k].size, k)):
        block = blocks[index]
        taken = sorted(
            (offsets[k], offsets[k] + blocks[k].size)
            for k in placed
            if blocks[k].first <= block.last and block.first <= blocks[k].last
        )
        offset = 0
        for start, end in taken:
            if offset + block.size <= start:
                break
            offset = max(offset, _round_up(end, alignment))
        offsets[index] = offset
        placed.append(index)
    ends = [offset + block.size for offset, block in zip(offsets, blocks, strict=True)]
    return offsets, _round_up(max(ends, default=0), alignment)


def plan(graph: Graph) -> tuple[dict[str, int], int]:
    """Arena offsets of a graph's intermediate tensors.

    Inputs and outputs are the caller's memory and not in the arena. A reshape of an intermediate
    tensor takes no memory of its own: it has the offset of its input.

    Returns
    -------
    offsets : dict from tensor name to offset in bytes
    arena_bytes : int
    """
    outside = {*graph.inputs, *graph.outputs}
    owner: dict[str, str] = {}  # tensor -> the tensor whose memory it is
    blocks: dict[str, Block] = {}
    for index, op in enumerate(graph.ops):
        for name in op.inputs:
            if name in owner:
                block = blocks[owner[name]]
                blocks[owner[name]] = Block(block.size, block.first, index)
        if op.output in outside:
            continue
        if op.kind == "reshape" and op.inputs[0] in owner:
            owner[op.output] = owner[op.inputs[0]]
            continue
        owner[op.output] = op.output
        blocks[op.output] = Block(tensor_bytes(graph, op.output), index, index)
    offsets, arena_bytes = plan_blocks(list(blocks.values()))
    of_block = dict(zip(blocks, offsets, strict=True))
    return {name: of_block[root] for name, root in owner.items()}, arena_bytes


def weight_bytes(graph: Graph) -> int:
    """Bytes of a graph's constants: weights, biases and tables."""
    return sum(t.data.nbytes for t in graph.tensors.values() if t.data is not None)


def tensor_bytes(graph: Graph, name: str) -> int:
    """Bytes of a tensor."""
    tensor = graph.tensors[name]
    return prod(tensor.shape) * {"int8": 1, "int16": 2, "float32": 4, "int32": 4}[tensor.dtype]


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
