"""The C function that runs one graph: a call of a kernel for every operation, and its tables."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError
from edge_imputer.export.graph import Graph, Op
from edge_imputer.export.op_params import (
    SUM_LEFT_SHIFT,
    AccumulatorParams,
    MulParams,
    PadParams,
    ReluParams,
    SumParams,
    TableParams,
    constant_of,
    op_params,
)

from .c_text import Names, integers, struct, table
from .placement import Placement

PARAMETERS = {"features", "state", "encoder_out", "encoder_window", "alignment", "logits", "arena"}
LARGEST_DEPTH = 2**16  # up to here sums of uint8 times int8 products fit an int32


class Step:
    """Text of one C function and of the tables it reads.

    Parameters
    ----------
    graph : Graph
        Quantised.
    placement : Placement
        Where its tensors lie.
    signature : str
        Of the C function, whose parameters are the bases of the placement.
    result : str
        The C expression it returns, empty for none.
    """

    def __init__(
        self, graph: Graph, placement: Placement, signature: str, result: str = ""
    ) -> None:
        self.graph = graph
        self.placement = placement
        self.signature = signature
        self.result = result
        self.tables: list[str] = []
        self._body: list[str] = []
        self._variables = Names(PARAMETERS)
        self._constants = Names(set())
        self._declared: set[str] = set()
        for op in graph.ops:
            if op.output not in placement.views:
                self._comment(op)
                self._emit(op)
        for name, target in placement.copies:
            self._body.append(f"\n    /* {name}: an output */\n")
            self._call("edim_copy", str(target), self._read(name), self._size(name))

    def function(self) -> str:
        """The definition of the C function."""
        used = {at.base for at in self.placement.places.values()} | (
            {"arena"} if self.placement.scratch else set()
        )
        ignored = "" if "arena" in used else "    (void)arena;\n"
        result = f"\n    return {self.result};\n" if self.result else ""
        return f"{self.signature} {{\n{ignored}{''.join(self._body).lstrip(chr(10))}{result}}}\n"

    def _emit(self, op: Op) -> None:
        params = op_params(self.graph, op)
        if isinstance(params, AccumulatorParams):
            self._linear(op, params)
        elif isinstance(params, SumParams):
            self._sum(op, params)
        elif isinstance(params, MulParams):
            self._product(op, params)
        elif isinstance(params, TableParams):
            lut = self._table(f"{op.output}.table", params.table)
            self._elementwise(op, "edim_lookup", lut)
        elif isinstance(params, ReluParams):
            self._elementwise(op, "edim_relu", params.zero_point)
        elif isinstance(params, PadParams):
            self._pad(op, params)
        elif op.kind == "embedding":
            self._embedding(op)
        elif op.kind == "concat":
            self._concat(op)
        elif op.kind == "slice":
            self._slice(op)
        else:  # a reshape of a state, which may not be a view
            self._call("edim_copy", *self._moved(op), self._size(op.output))

    def _linear(self, op: Op, params: AccumulatorParams) -> None:
        """conv2d and fully_connected."""
        x, weight, bias = op.inputs
        data = constant_of(self.graph, weight, "int8")
        rows, depth = len(data), data[0].size
        if depth > LARGEST_DEPTH:
            raise ExportError(
                f"{weight}: expected at most {LARGEST_DEPTH} weights a row, got {depth}; an "
                "int32 accumulator could overflow"
            )
        name = op.output
        sums = data.reshape(rows, -1).sum(axis=1, dtype=np.int64).astype(np.int32)
        layer = self._struct(
            "edim_linear",
            name,
            {
                "weight": self._table(weight, data),
                "bias": self._table(bias, constant_of(self.graph, bias, "int32")),
                "weight_sum": self._table(f"{name}.weight_sum", sums),
                "multiplier": self._table(f"{name}.multiplier", _int32(params.multipliers)),
                "shift": self._table(f"{name}.shift", params.shifts.astype(np.int8)),
                "rows": rows,
                "depth": depth,
                "input_zero_point": params.input_zero_point,
                "output_zero_point": params.output_zero_point,
                "output_min": params.clamp[0],
            },
        )
        scratch = f"arena + {self.placement.scratch[name]}"
        if op.kind == "fully_connected":
            n = self.graph.tensors[x].shape[0]
            source, target = self._moved(op)
            self._call("edim_fully_connected", layer, source, n, target, scratch)
        else:
            conv = self._struct("edim_conv", f"{name}.window", self._geometry(op))
            self._call("edim_conv2d", layer, conv, *self._moved(op), scratch)

    def _geometry(self, op: Op) -> dict[str, object]:
        _, _, freq, channels = self.graph.tensors[op.inputs[0]].shape
        _, kernel_time, kernel_freq, _ = self.graph.tensors[op.inputs[1]].shape
        _, out_time, out_freq, _ = self.graph.tensors[op.output].shape
        return {
            "freq": freq,
            "channels": channels,
            "kernel_time": kernel_time,
            "kernel_freq": kernel_freq,
            "stride_time": op.attrs["stride"][0],
            "stride_freq": op.attrs["stride"][1],
            "out_time": out_time,
            "out_freq": out_freq,
        }

    def _sum(self, op: Op, params: SumParams) -> None:
        """add and sub."""
        if params.left_shift != SUM_LEFT_SHIFT:
            raise ExportError(f"{op.output}: expected a shift of {SUM_LEFT_SHIFT} bits")
        factors = zip(params.multipliers, params.shifts, strict=True)
        fields = dict(zip(("x", "y", "output"), map(integers, factors), strict=True))
        self._binary(op, "edim_sum", f"edim_{op.kind}", fields | _zero_points(params.zero_points))

    def _product(self, op: Op, params: MulParams) -> None:
        fields = {"output": integers((params.multiplier, params.shift))}
        self._binary(op, "edim_product", "edim_mul", fields | _zero_points(params.zero_points))

    def _binary(self, op: Op, kind: str, kernel: str, fields: dict[str, Any]) -> None:
        constants = self._struct(kind, op.output, fields)
        x, y = (self._read(name) for name in op.inputs)
        self._call(kernel, constants, x, y, self._size(op.output), self._write(op.output))

    def _elementwise(self, op: Op, kernel: str, constant: object) -> None:
        source, target = self._moved(op)
        self._call(kernel, constant, source, self._size(op.output), target)

    def _embedding(self, op: Op) -> None:
        ids, name = op.inputs
        data = constant_of(self.graph, name, "int8")
        rows, width = data.shape
        lut, n = self._table(name, data), prod(self.graph.tensors[ids].shape)
        source, target = self._moved(op)
        call = f"edim_embedding({lut}, {rows}, {width}, {source}, {n}, {target})"
        self._body.append(
            f"    if ({call} != 0) {{\n        return EDIM_TOKEN_OUT_OF_RANGE;\n    }}\n"
        )

    def _concat(self, op: Op) -> None:
        """One copy an input, into its part of the output."""
        shape = self.graph.tensors[op.output].shape
        axis = op.attrs["axis"] % len(shape)
        begin = 0
        for k, name in enumerate(op.inputs):
            part = self.graph.tensors[name].shape
            at = tuple(begin if a == axis else 0 for a in range(len(shape)))
            box = f"{op.output}.part{k}"
            source = self._read(name)
            self._copy(box, part, source, part, (0,) * len(part), self._write(op.output), shape, at)
            begin += part[axis]

    def _slice(self, op: Op) -> None:
        source, target = self._moved(op)
        shape, size = self.graph.tensors[op.inputs[0]].shape, tuple(op.attrs["size"])
        zeros = (0,) * len(size)
        box = f"{op.output}.box"
        self._copy(box, size, source, shape, tuple(op.attrs["begin"]), target, size, zeros)

    def _pad(self, op: Op, params: PadParams) -> None:
        source, target = self._moved(op)
        shape, padded = (self.graph.tensors[n].shape for n in (op.inputs[0], op.output))
        before = tuple(b for b, _ in op.attrs["paddings"])
        self._call("edim_fill", target, params.value, self._size(op.output))
        zeros = (0,) * len(shape)
        self._copy(f"{op.output}.box", shape, source, shape, zeros, target, padded, before)

    def _copy(
        self,
        name: str,
        size: tuple[int, ...],
        source: str,
        source_shape: tuple[int, ...],
        source_begin: tuple[int, ...],
        target: str,
        target_shape: tuple[int, ...],
        target_begin: tuple[int, ...],
    ) -> None:
        """Copy a box of `size` elements from within one tensor to within another."""
        source = _offset(source, source_shape, source_begin)
        target = _offset(target, target_shape, target_begin)
        size, source_strides, target_strides = _merge(size, source_shape, target_shape)
        if len(size) == 1:
            self._call("edim_copy", target, source, size[0])
            return
        if len(size) > 4:
            raise ExportError(f"{name}: expected a copy of at most 4 dimensions, got {size}")
        fill = 4 - len(size)
        box = self._struct(
            "edim_box",
            name,
            {
                "size": integers((1,) * fill + size),
                "source_stride": integers((0,) * fill + source_strides),
                "target_stride": integers((0,) * fill + target_strides),
            },
        )
        self._call("edim_copy_box", box, source, target)

    def _comment(self, op: Op) -> None:
        shapes = [self.graph.tensors[name] for name in op.inputs]
        inputs = ", ".join(f"{t.name} {t.shape}" for t in shapes if t.data is None)
        relu = ", relu" if op.attrs.get("relu") else ""
        output = self.graph.tensors[op.output]
        text = f"{op.output}: {op.kind}{relu} of {inputs} -> {output.shape}"
        self._body.append(f"\n    /* {text} */\n")

    def _call(self, function: str, *arguments: object) -> None:
        self._body.append(f"    {function}({', '.join(map(str, arguments))});\n")

    def _moved(self, op: Op) -> tuple[str, str]:
        """The C expressions of an operation's first input and of its output."""
        return self._read(op.inputs[0]), self._write(op.output)

    def _size(self, name: str) -> int:
        """Elements, which are bytes, of a tensor."""
        return prod(self.graph.tensors[name].shape)

    def _read(self, name: str) -> str:
        return self._pointer(name, "const int8_t *const")

    def _write(self, name: str) -> str:
        return self._pointer(name, "int8_t *const")

    def _pointer(self, name: str, kind: str) -> str:
        """The expression of a tensor's address; declares a variable at its first use."""
        at = self.placement.places[name]
        if at.offset == 0 and at.base not in ("arena", "state"):
            return at.base
        if name not in self._declared:
            self._declared.add(name)
            self._body.append(f"    {kind} {self._variables[name]} = {at};\n")
        return self._variables[name]

    def _table(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a table, once; returns its C name."""
        c_name = f"{self.graph.name}_{self._constants[name]}"
        text = table(c_name, values)
        if text not in self.tables:
            self.tables.append(text)
        return c_name

    def _struct(self, kind: str, name: str, fields: dict[str, Any]) -> str:
        """Add a constant struct; returns its address."""
        c_name = f"{self.graph.name}_{self._constants[name]}"
        self.tables.append(struct(kind, c_name, fields))
        return f"&{c_name}"


def _int32(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    return values.astype(np.int32)


def _zero_points(values: tuple[int, int, int]) -> dict[str, Any]:
    names = ("x_zero_point", "y_zero_point", "output_zero_point")
    return dict(zip(names, values, strict=True))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _offset(pointer: str, shape: tuple[int, ...], begin: tuple[int, ...]) -> str:
    offset = sum(b * s for b, s in zip(begin, _strides(shape), strict=True))
    return f"{pointer} + {offset}" if offset else pointer


def _merge(
    size: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Fold the dimensions of a box that are contiguous in both tensors.

    Returns
    -------
    size, source strides, target strides : tuples
        The strides of all dimensions but the last, which is contiguous.
    """
    merged: list[tuple[int, int, int]] = []  # (size, source stride, target stride), inner first
    triples = zip(size, _strides(source), _strides(target), strict=True)
    for n, from_stride, to_stride in reversed(list(triples)):
        if merged:
            inner, inner_from, inner_to = merged[-1]
            if n == 1:
                continue
            if (from_stride, to_stride) == (inner * inner_from, inner * inner_to):
                merged[-1] = (n * inner, inner_from, inner_to)
                continue
        merged.append((n, from_stride, to_stride))
    merged.reverse()
    return (
        tuple(n for n, _, _ in merged),
        tuple(s for _, s, _ in merged[:-1]),
        tuple(t for _, _, t in merged[:-1]),
    )
