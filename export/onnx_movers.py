"""Nodes of operations that move elements, which are the same for int8 and for float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from .graph import Op
from .parts import cut

if TYPE_CHECKING:
    from .onnx_emitter import Writer


def _embedding(w: Writer, op: Op) -> None:
    ids, table = (w.operand(name) for name in op.inputs)
    w.node("Gather", [table, ids], w.output(op), axis=0)


def _concat(w: Writer, op: Op) -> None:
    inputs = [w.operand(name) for name in op.inputs]
    w.node("Concat", inputs, w.output(op), axis=op.attrs["axis"])


def _slice(w: Writer, op: Op) -> None:
    """The only nodes with a name: onnxruntime 1.20 makes others' names out of it, fusing them."""
    begin, size = np.array(op.attrs["begin"]), np.array(op.attrs["size"])
    cut = np.flatnonzero(size != w.graph.tensors[op.inputs[0]].shape)
    cut = cut if cut.size else np.array([0])
    bounds = [w.ints(values) for values in (begin[cut], (begin + size)[cut], cut)]
    w.node("Slice", [w.operand(op.inputs[0]), *bounds], w.output(op), name=w.output(op))


def split(w: Writer, ops: tuple[Op, ...]) -> None:
    """Slices that are all of a tensor (see `parts`)."""
    axis, n_parts = cut(w.graph, ops[0])
    outputs = [w.output(op) for op in ops]
    attrs: dict[str, Any] = {"num_outputs": n_parts} if w.wide else {}  # opset 18 needs it
    x = w.operand(ops[0].inputs[0])
    w.nodes.append(helper.make_node("Split", [x], outputs, axis=axis, **attrs))


def _pad(w: Writer, op: Op) -> None:
    pads = np.array(op.attrs["paddings"]).T.ravel()  # all the befores, then all the afters
    w.node("Pad", [w.operand(op.inputs[0]), w.ints(pads), w.zero(op)], w.output(op))


def _reshape(w: Writer, op: Op) -> None:
    w.node("Reshape", [w.operand(op.inputs[0]), w.ints(op.attrs["shape"])], w.output(op))


def permuted(w: Writer, x: str, shape: tuple[int, ...], perm: tuple[int, ...], y: str) -> str:
    """Change the layout; where no byte moves, by a Reshape, which costs nothing."""
    if _same_order(shape, perm):
        return w.node("Reshape", [x, w.ints([shape[k] for k in perm])], y)
    return w.node("Transpose", [x], y, perm=perm)


def _same_order(shape: tuple[int, ...], perm: tuple[int, ...]) -> bool:
    """Whether a permutation moves only axes of length 1, so that no byte moves."""
    kept = [axis for axis in perm if shape[axis] > 1]
    return kept == sorted(kept)


def _transpose(w: Writer, op: Op) -> None:
    x = op.inputs[0]
    permuted(w, w.operand(x), w.graph.tensors[x].shape, op.attrs["perm"], w.output(op))


MOVERS: dict[str, Callable[[Writer, Op], None]] = {
    "embedding": _embedding,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
}
