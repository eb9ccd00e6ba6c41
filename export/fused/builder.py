"""Appends whole quantised graphs, and operations of float32 around them, to one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from ..builder import GraphBuilder
from ..graph import MOVES, Array, Graph, Op

LONGEST_CONCAT = 10  # inputs that TensorFlow Lite Micro takes


class FusedBuilder(GraphBuilder):
    """A `GraphBuilder` of int8 and float32 side by side.

    What moves elements keeps their type and scale.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._inlined: dict[tuple[object, ...], str] = {}

    def inline(self, graph: Graph, name: str, feeds: Mapping[str, str], call: str) -> list[str]:
        """Append a graph's operations; its outputs.

        What an earlier call computed from the very same tensors is not computed again, and
        constants are shared: the passes of a head differ only in what the alignment reaches.

        Parameters
        ----------
        graph : Graph
            Quantised.
        name : str
            What its constants are named after.
        feeds : mapping from its inputs to tensors here
        call : str
            What the activations of this call are named after.

        Raises
        ------
        ExportError
            If some of its activations are int16, for which the float part has no operators.
        """
        wide = [op.output for op in graph.ops if graph.tensors[op.output].dtype == "int16"]
        if wide:
            raise ExportError(
                f"{graph.name}: expected int8 alone in a fused form, got int16 in {len(wide)} "
                "activations; export with --precision int8, or without --fused"
            )
        names = dict(feeds)
        for key, tensor in graph.tensors.items():
            if tensor.data is not None:
                names[key] = f"{name}.{key}"
                self.graph.tensors[names[key]] = replace(tensor, name=names[key])
        for op in graph.ops:
            inputs = tuple(names[key] for key in op.inputs)
            known = self._inlined.setdefault((name, op.output, inputs), f"{call}.{op.output}")
            names[op.output] = known
            if known not in self.graph.tensors:
                self.graph.ops.append(Op(op.kind, inputs, known, op.attrs))
                self._tensor(replace(graph.tensors[op.output], name=known))
        return [names[key] for key in graph.outputs]

    def shared(self, name: str, data: Array) -> str:
        """A constant, the same one for all who ask by its name."""
        return name if name in self.graph.tensors else self.constant(name, data)

    def scalar(self, name: str, value: float) -> str:
        """A shared constant that broadcasts, float32 (1,)."""
        return self.shared(name, np.array([value], np.float32))

    def filter_bank(self, name: str, x: str, weight: Array, bias: Array, stride: int) -> str:
        """(1, T, 1, C) by weight (1, KT, 1, C * M) -> (1, T', 1, C * M)."""
        n_time = (self.shape(x)[1] - weight.shape[1]) // stride + 1
        attrs = {"stride": (stride, 1), "dilation": (1, 1)}
        shape = (1, n_time, 1, weight.shape[3])
        return self._linear("filter_bank", name, x, weight, bias, shape, attrs, "features.bank")

    def quantise(self, name: str, x: str, quant: QuantParams) -> str:
        """Float32 to int8."""
        return self._typed(self._op("quantise", (x,), name, self.shape(x)), "int8", quant)

    def cast(self, name: str, x: str, dtype: str) -> str:
        """The same numbers in another type."""
        return self._typed(self._op("cast", (x,), name, self.shape(x)), dtype)

    def lookup(self, name: str, ids: str, table: str) -> str:
        """Rows of a table that is a constant already, (N,) -> (N, D)."""
        shape = (*self.shape(ids), self.shape(table)[1])
        return self._op("embedding", (ids, table), name, shape)

    def reduce(self, kind: str, name: str, x: str) -> str:
        """sum or max over the last axis, which stays with length 1."""
        return self._op(kind, (x,), name, (*self.shape(x)[:-1], 1))

    def arg_max(self, name: str, x: str) -> str:
        """Where the last axis is largest, int32; the first place of equals."""
        return self._typed(self._op("arg_max", (x,), name, self.shape(x)[:-1]), "int32")

    def join(self, name: str, xs: Sequence[str], axis: int) -> str:
        """`concat` of any number, in parts where there are too many; one alone stays as it is."""
        parts = list(xs)
        for level in range(len(parts)):
            if len(parts) == 1:
                break
            groups = [parts[k : k + LONGEST_CONCAT] for k in range(0, len(parts), LONGEST_CONCAT)]
            parts = [
                self.concat(f"{name}.{level}.{k}" if len(groups) > 1 else name, tuple(group), axis)
                if len(group) > 1
                else group[0]
                for k, group in enumerate(groups)
            ]
        return parts[0]

    def rename(self, old: str, new: str) -> None:
        """Give an activation another name, wherever it is read."""
        tensor = self.graph.tensors.pop(old)
        self.graph.tensors[new] = replace(tensor, name=new)
        for op in self.graph.ops:
            op.inputs = tuple(new if name == old else name for name in op.inputs)
            op.output = new if op.output == old else op.output

    def _op(
        self, kind: str, inputs: tuple[str, ...], name: str, out: tuple[int, ...], **attrs: Any
    ) -> str:
        super()._op(kind, inputs, name, out, **attrs)
        if kind in MOVES:
            moved = self.graph.tensors[inputs[1 if kind == "embedding" else 0]]
            self._typed(name, moved.dtype, moved.quant)
        return name

    def _typed(self, name: str, dtype: str, quant: QuantParams | None = None) -> str:
        self.graph.tensors[name].dtype, self.graph.tensors[name].quant = dtype, quant
        return name


def int8_quant(graph: Graph, name: str) -> QuantParams:
    """Scale and zero point of a tensor of a graph that is to be fused."""
    tensor = graph.tensors[name]
    if not graph.quantised or tensor.quant is None or tensor.dtype != "int8":
        raise ExportError(
            f"{graph.name}: expected a quantised graph whose {name} is int8, got {tensor.dtype} in "
            f"a graph that is {'quantised' if graph.quantised else 'float'}; quantise it first"
        )
    return tensor.quant
