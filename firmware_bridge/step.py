"""The C function that runs one graph: a call of a kernel for every operation, and its tables."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError
from edge_imputer.export.graph import WEIGHT_AXIS, Graph, Op
from edge_imputer.export.op_params import (
    SUM_LEFT_SHIFT,
    AccumulatorParams,
    MatmulParams,
    MeanParams,
    MoveParams,
    MulParams,
    NormParams,
    PadParams,
    ReluParams,
    RequantiseParams,
    SoftmaxParams,
    SumParams,
    TableParams,
    constant_of,
    op_params,
)

from .c_function import CFunction
from .c_text import integers
from .placement import Placement
from .strides import Dimension, boxes, broadcast, filled, offset, transposed

LARGEST_DEPTH = 2**16  # up to here sums of uint8 times int8 products fit an int32


class Step(CFunction):
    """The C function of a whole graph: a call of a kernel for every operation."""

    def __init__(
        self, graph: Graph, placement: Placement, signature: str, result: str = ""
    ) -> None:
        super().__init__(graph, placement, signature, result)
        for op in graph.ops:
            if op.output not in placement.views:
                self._comment(op)
                self._emit(op)
        for name, target in placement.copies:
            self._body.append(f"\n    /* {name}: an output */\n")
            self._call("edim_copy", str(target), self._read(name), self._bytes(name))

    def _emit(self, op: Op) -> None:
        params = op_params(self.graph, op)
        if isinstance(params, MoveParams):
            _MOVES[op.kind](self, op)
        else:
            _COMPUTES[type(params)](self, op, params)

    def _linear(self, op: Op, params: AccumulatorParams) -> None:
        """conv2d, depthwise_conv2d and fully_connected."""
        x, weight, bias = op.inputs
        data, axis = constant_of(self.graph, weight, "int8"), WEIGHT_AXIS[op.kind]
        rows = data.shape[axis]
        depth = data.size // rows
        if depth > LARGEST_DEPTH:
            raise ExportError(
                f"{weight}: expected at most {LARGEST_DEPTH} weights a row, got {depth}; an "
                "int32 accumulator could overflow"
            )
        name = op.output
        summed = tuple(k for k in range(data.ndim) if k != axis)
        layer = self._struct(
            "edim_linear",
            name,
            {
                "weight": self._table(weight, data),
                "bias": self._table(bias, constant_of(self.graph, bias, "int32")),
                "weight_sum": self._table(f"{name}.weight_sum", data.sum(summed, np.int32)),
                "multiplier": self._table(f"{name}.multiplier", _int32(params.multipliers)),
                "shift": self._table(f"{name}.shift", params.shifts.astype(np.int8)),
                "rows": rows,
                "depth": depth,
                "input_zero_point": params.input_zero_point,
                "output_zero_point": params.output_zero_point,
                "output_min": params.clamp[0],
            },
        )
        source, target = self._moved(op)
        if op.kind == "fully_connected":
            n = self.graph.tensors[x].shape[0]
            scratch = self._scratch(op)
            self._call("edim_fully_connected", layer, source, n, target, scratch)
            return
        fields = self._geometry(op, self.graph.tensors[weight].shape[1:3])
        if op.kind == "conv2d":
            conv = self._struct("edim_conv", f"{name}.window", fields)
            self._call("edim_conv2d", layer, conv, source, target, self._scratch(op))
        else:
            window = self._window(op, fields, op.attrs["dilation"])
            self._call("edim_depthwise_conv2d", layer, window, source, target)

    def _geometry(self, op: Op, kernel: tuple[int, ...]) -> dict[str, object]:
        _, _, freq, channels = self.graph.tensors[op.inputs[0]].shape
        _, out_time, out_freq, _ = self.graph.tensors[op.output].shape
        return {
            "freq": freq,
            "channels": channels,
            "kernel_time": kernel[0],
            "kernel_freq": kernel[1],
            "stride_time": op.attrs["stride"][0],
            "stride_freq": op.attrs["stride"][1],
            "out_time": out_time,
            "out_freq": out_freq,
        }

    def _window(self, op: Op, fields: dict[str, object], dilation: tuple[int, int]) -> str:
        apart = {"dilation_time": dilation[0], "dilation_freq": dilation[1]}
        return self._struct("edim_window", f"{op.output}.window", fields | apart)

    def _max_pool(self, op: Op) -> None:
        window = self._window(op, self._geometry(op, op.attrs["size"]), (1, 1))
        self._call("edim_max_pool", window, *self._moved(op))

    def _matmul(self, op: Op, params: MatmulParams) -> None:
        (batch, n, depth), (*_, columns) = (
            self.graph.tensors[name].shape for name in (op.inputs[0], op.output)
        )
        fields = {
            "output": integers((params.multiplier, params.shift)),
            **_zero_points(params.zero_points),
            "batch": batch,
            "n": n,
            "depth": depth,
            "columns": columns,
            "transposed": int(op.attrs["transposed"]),
        }
        matmul = self._struct("edim_matmul", op.output, fields)
        x, y = (self._read(name) for name in op.inputs)
        self._call("edim_batch_matmul", matmul, x, y, self._write(op.output), self._scratch(op))

    def _sum(self, op: Op, params: SumParams) -> None:
        """add and sub."""
        dtype = self.graph.tensors[op.output].dtype
        if params.left_shift != SUM_LEFT_SHIFT[dtype]:
            raise ExportError(f"{op.output}: expected a shift of {SUM_LEFT_SHIFT[dtype]} bits")
        factors = zip(params.multipliers, params.shifts, strict=True)
        fields = dict(zip(("x", "y", "output"), map(integers, factors), strict=True))
        kernel = f"edim_{op.kind}16" if dtype == "int16" else f"edim_{op.kind}"
        self._binary(op, "edim_sum", kernel, fields | _zero_points(params.zero_points))

    def _requantise(self, op: Op, params: RequantiseParams) -> None:
        fields = {
            "output": integers((params.multiplier, params.shift)),
            "input_zero_point": params.zero_points[0],
            "output_zero_point": params.zero_points[1],
        }
        wide = self.graph.tensors[op.output].dtype == "int16"
        constant = self._struct("edim_rescale", op.output, fields)
        self._elementwise(op, "edim_widen" if wide else "edim_narrow", constant)

    def _product(self, op: Op, params: MulParams) -> None:
        fields = {"output": integers((params.multiplier, params.shift))}
        self._binary(op, "edim_product", "edim_mul", fields | _zero_points(params.zero_points))

    def _minimum(self, op: Op) -> None:
        self._elements(op, "edim_minimum")

    def _binary(self, op: Op, kind: str, kernel: str, fields: dict[str, Any]) -> None:
        self._elements(op, kernel, self._struct(kind, op.output, fields))

    def _elements(self, op: Op, kernel: str, *constants: str) -> None:
        """Call an elementwise kernel of two inputs, in the form that repeats them where it must."""
        x, y, shape = (self.graph.tensors[name].shape for name in (*op.inputs, op.output))
        dimensions = broadcast(shape, x, y)
        inputs = [self._read(name) for name in op.inputs]
        target = self._write(op.output)
        if dimensions == [(self._size(op.output), 1, 1)]:
            self._call(kernel, *constants, *inputs, self._size(op.output), target)
            return
        name = f"{op.output}.shape"
        values = zip(("size", "x_stride", "y_stride"), filled(name, dimensions), strict=True)
        fields = {key: integers(value) for key, value in values}
        spread = self._struct("edim_broadcast", name, fields)
        self._call(f"{kernel}_broadcast", *constants, spread, *inputs, target)

    def _lookup(self, op: Op, params: TableParams) -> None:
        """sigmoid and tanh."""
        self._elementwise(op, "edim_lookup", self._table(f"{op.output}.table", params.table))

    def _relu(self, op: Op, params: ReluParams) -> None:
        self._elementwise(op, "edim_relu", params.zero_point)

    def _softmax(self, op: Op, params: SoftmaxParams) -> None:
        self._rowwise(op, "edim_softmax", self._table(f"{op.output}.table", params.table))

    def _norm(self, op: Op, params: NormParams) -> None:
        self._rowwise(op, "edim_l2_norm", params.zero_point)

    def _rowwise(self, op: Op, kernel: str, constant: object) -> None:
        source, target = self._moved(op)
        depth = self.graph.tensors[op.output].shape[-1]
        self._call(kernel, constant, source, self._size(op.output) // depth, depth, target)

    def _mean(self, op: Op, params: MeanParams) -> None:
        fields = {
            "output": integers((params.multiplier, params.shift)),
            "input_zero_point": params.zero_points[0],
            "output_zero_point": params.zero_points[1],
            "depth": self.graph.tensors[op.inputs[0]].shape[-1],
        }
        average = self._struct("edim_average", op.output, fields)
        source, target = self._moved(op)
        self._call("edim_mean", average, source, self._size(op.output), target)

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

    def _transpose(self, op: Op) -> None:
        dimensions = transposed(self.graph.tensors[op.inputs[0]].shape, op.attrs["perm"])
        self._copy_dimensions(f"{op.output}.box", dimensions, *self._moved(op))

    def _reshape(self, op: Op) -> None:
        """Of a state or a constant, which cannot be a view."""
        source, target = self._moved(op)
        self._call("edim_copy", target, source, self._size(op.output))

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
        dimensions = boxes(size, source_shape, target_shape)
        source = _plus(source, offset(source_shape, source_begin))
        target = _plus(target, offset(target_shape, target_begin))
        self._copy_dimensions(name, dimensions, source, target)

    def _copy_dimensions(
        self, name: str, dimensions: list[Dimension], source: str, target: str
    ) -> None:
        if [first for _, first, _ in dimensions] == [1]:
            self._call("edim_copy", target, source, dimensions[0][0])
            return
        size, source_strides, target_strides = filled(name, dimensions)
        box = self._struct(
            "edim_box",
            name,
            {
                "size": integers(size),
                "source_stride": integers(source_strides),
                "target_stride": integers(target_strides[:3]),
            },
        )
        self._call("edim_copy_box", box, source, target)


def _int32(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    return values.astype(np.int32)


def _zero_points(values: tuple[int, int, int]) -> dict[str, Any]:
    names = ("x_zero_point", "y_zero_point", "output_zero_point")
    return dict(zip(names, values, strict=True))


def _plus(pointer: str, elements: int) -> str:
    return f"{pointer} + {elements}" if elements else pointer


_COMPUTES: dict[type, Callable[[Step, Op, Any], None]] = {
    AccumulatorParams: Step._linear,
    MatmulParams: Step._matmul,
    SumParams: Step._sum,
    RequantiseParams: Step._requantise,
    MulParams: Step._product,
    MeanParams: Step._mean,
    SoftmaxParams: Step._softmax,
    NormParams: Step._norm,
    TableParams: Step._lookup,
    ReluParams: Step._relu,
    PadParams: Step._pad,
}
_MOVES: dict[str, Callable[[Step, Op], None]] = {
    "embedding": Step._embedding,
    "concat": Step._concat,
    "slice": Step._slice,
    "reshape": Step._reshape,
    "transpose": Step._transpose,
    "minimum": Step._minimum,
    "max_pool": Step._max_pool,
}
