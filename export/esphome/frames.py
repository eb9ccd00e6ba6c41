"""A quantised graph in the operations and the layout that ESPHome's devices run.

Every activation becomes (1, T, 1, C): frames one after the other, whatever a frame holds in the
last axis. Fully connected layers are convolutions of one frame then, of whose weights every version
of Espressif's kernels reads one scale an output channel; reshapes and ReLUs that change nothing go.
No integer is computed otherwise than before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edge_imputer.errors import ExportError

from ..graph import Graph, Op
from ..op_params import op_params, quant_of

FRAMES, SCORE = "feature_frames", "wake_score"  # what goes in and comes out
Shape = tuple[int, ...]


def as_frames(graph: Graph) -> Graph:
    """The same integers from feature frames (1, T, n_mels) to one score (1, 1).

    Parameters
    ----------
    graph : Graph
        Quantised, of `build_wake_word_graph`. Its states keep their names and their order.

    Raises
    ------
    ExportError
        On an operation that devices do not have, or that is not one of frames in a row.
    """
    return _Rewriter(graph).run()


def frame_shape(shape: Shape) -> Shape:
    """Shape of frames in a row: (T, C), (1, T, 1, C) or (1, T, F, 1) -> (1, T, 1, C)."""
    if len(shape) == 2:
        return (1, shape[0], 1, shape[1])
    if len(shape) == 4 and shape[0] == 1 and 1 in shape[2:]:
        return (1, shape[1], 1, shape[2] * shape[3])
    raise ExportError(f"expected frames in a row, such as (1, T, 1, C), got the shape {shape}")


class _Rewriter:
    """Rewrites the operations of a graph one by one."""

    def __init__(self, graph: Graph) -> None:
        self.old = graph
        self.new = Graph(graph.name, n_states=graph.n_states)
        self.same: dict[str, str] = {}  # what is left out -> what it is equal to

    def run(self) -> Graph:
        """The whole graph."""
        new, (features, *states) = self.new, self.old.inputs
        for name in self.old.inputs:
            self._activation(name)
        _, n_frames, _, n_mels = new.tensors[features].shape
        self._view(features, FRAMES, (1, n_frames, n_mels))
        new.ops.append(_reshaped(new, FRAMES, features))
        for op in self.old.ops:
            if op.kind not in _REWRITE:
                raise ExportError(
                    f"{op.output}: expected an operation among {', '.join(sorted(_REWRITE))}, "
                    f"which ESPHome's devices can run, got {op.kind}"
                )
            if rewritten := _REWRITE[op.kind](self, op):
                self._append(rewritten)
        score, *after = (self.same.get(name, name) for name in self.old.outputs)
        if new.tensors[score].shape != (1, 1, 1, 1):
            raise ExportError(f"{score}: expected one score, got {self.shape(score)} of them")
        self._view(score, SCORE, (1, 1))
        new.ops.append(_reshaped(new, score, SCORE))
        new.inputs, new.outputs = [FRAMES, *states], [SCORE, *after]
        for op in new.ops:  # scales that are shared, integers that fit
            op_params(new, op)
        return new

    def shape(self, name: str) -> Shape:
        """Shape that an activation had."""
        return self.old.tensors[name].shape

    def refuse(self, op: Op, why: str) -> ExportError:
        """The error of an operation that is not one of frames."""
        return ExportError(f"{op.output}: expected {why}, got another {op.kind}")

    def constant(self, name: str, shape: Shape) -> None:
        """Take a constant over, in another shape."""
        tensor = self.old.tensors[name]
        assert tensor.data is not None
        self.new.tensors[name] = replace(tensor, shape=shape, data=tensor.data.reshape(shape))

    def _activation(self, name: str) -> None:
        self._view(name, name, frame_shape(self.shape(name)))

    def _view(self, of: str, name: str, shape: Shape) -> None:
        """An activation like another one, in another shape."""
        tensor = self.new.tensors.get(of, self.old.tensors[of])
        self.new.tensors[name] = replace(tensor, name=name, shape=shape)

    def _append(self, op: Op) -> None:
        self._activation(op.output)
        inputs = tuple(self.same.get(name, name) for name in op.inputs)
        self.new.ops.append(replace(op, inputs=inputs))


def _reshaped(graph: Graph, x: str, output: str) -> Op:
    return Op("reshape", (x,), output, {"shape": graph.tensors[output].shape})


def _reshape(w: _Rewriter, op: Op) -> None:
    before, after = (frame_shape(w.shape(name)) for name in (op.inputs[0], op.output))
    if before != after:
        raise w.refuse(op, "a reshape that leaves frames as they are")
    w.same[op.output] = w.same.get(op.inputs[0], op.inputs[0])


def _relu(w: _Rewriter, op: Op) -> None:
    if quant_of(w.old, op.output).zero_point != -128:
        raise w.refuse(op, "a ReLU of what has no negative int8, so that it changes nothing")
    w.same[op.output] = w.same.get(op.inputs[0], op.inputs[0])


def _conv2d(w: _Rewriter, op: Op) -> Op:
    """Over whole frames: its weights stay in their order, all bands are channels."""
    x, weight, bias = op.inputs
    c_out, taps, bands, channels = w.shape(weight)
    if w.shape(x)[2] != bands:
        raise w.refuse(op, "a convolution over all bands of a frame")
    w.constant(weight, (c_out, taps, 1, bands * channels))
    w.constant(bias, w.shape(bias))
    return replace(op, attrs={**op.attrs, "stride": (op.attrs["stride"][0], 1)})


def _fully_connected(w: _Rewriter, op: Op) -> Op:
    _, weight, bias = op.inputs
    c_out, depth = w.shape(weight)
    w.constant(weight, (c_out, 1, 1, depth))
    w.constant(bias, w.shape(bias))
    return replace(op, kind="conv2d", attrs={"stride": (1, 1), "relu": op.attrs["relu"]})


def _depthwise_conv2d(w: _Rewriter, op: Op) -> Op:
    x, *constants = op.inputs
    if w.shape(x)[2] != 1:
        raise w.refuse(op, "a depthwise convolution over time")
    for name in constants:
        w.constant(name, w.shape(name))
    return op


def _add(w: _Rewriter, op: Op) -> Op:
    if any(w.old.tensors[name].data is not None for name in op.inputs):
        raise w.refuse(op, "activations on both sides")
    return op


def _concat(w: _Rewriter, op: Op) -> Op:
    if len(w.shape(op.output)) != 4 or op.attrs["axis"] != 1:
        raise w.refuse(op, "frames put one after the other")
    return op


def _slice(w: _Rewriter, op: Op) -> Op:
    shape, size, begin = w.shape(op.inputs[0]), op.attrs["size"], op.attrs["begin"]
    if len(shape) != 4 or (size[0], *size[2:]) != (shape[0], *shape[2:]):
        raise w.refuse(op, "a part of the frames, each of them whole")
    return replace(op, attrs={"begin": begin, "size": frame_shape(size)})


_REWRITE: dict[str, Callable[[_Rewriter, Op], Op | None]] = {
    "reshape": _reshape,
    "relu": _relu,
    "conv2d": _conv2d,
    "fully_connected": _fully_connected,
    "depthwise_conv2d": _depthwise_conv2d,
    "add": _add,
    "concat": _concat,
    "slice": _slice,
    "sigmoid": lambda w, op: op,
}
