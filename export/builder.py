"""Appends operations to a graph and works out the shape of what they give."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_imputer.errors import ExportError

from .graph import Array, Graph, Op, Tensor

MOST_JOINED = 10  # inputs of a concat: TFLite Micro takes no more


class GraphBuilder:
    """Appends operations to a graph and works out the shape of what they give."""

    def __init__(self, name: str) -> None:
        self.graph = Graph(name=name)

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> str:
        """Add an input."""
        self.graph.inputs.append(name)
        return self._tensor(Tensor(name, shape, dtype))

    def constant(self, name: str, data: Array) -> str:
        """Add a constant; a copy, in C order."""
        return self._tensor(Tensor(name, data.shape, str(data.dtype), data=data.copy()))

    def conv2d(
        self, name: str, x: str, weight: Array, bias: Array, stride: tuple[int, int], relu: bool
    ) -> str:
        """Valid convolution; weight (Cout, KT, KF, Cin)."""
        _, n_time, n_freq, channels = self.shape(x)
        if channels != weight.shape[3]:
            raise ExportError(f"{name}: expected {channels} input channels, got {weight.shape}")
        n_time = (n_time - weight.shape[1]) // stride[0] + 1
        n_freq = (n_freq - weight.shape[2]) // stride[1] + 1
        attrs = {"stride": stride, "relu": relu}
        shape = (1, n_time, n_freq, weight.shape[0])
        return self._linear("conv2d", name, x, weight, bias, shape, attrs)

    def depthwise_conv2d(
        self,
        name: str,
        x: str,
        weight: Array,
        bias: Array,
        *,
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        relu: bool = False,
    ) -> str:
        """Valid convolution of each channel by itself; weight (1, KT, KF, C)."""
        _, *size, channels = self.shape(x)
        if weight.shape[0] != 1 or channels != weight.shape[3]:
            raise ExportError(f"{name}: expected (1, KT, KF, {channels}), got {weight.shape}")
        n_time, n_freq = (
            (n - (kernel - 1) * apart - 1) // step + 1
            for n, kernel, step, apart in zip(
                size, weight.shape[1:3], stride, dilation, strict=True
            )
        )
        attrs = {"stride": stride, "dilation": dilation, "relu": relu}
        shape = (1, n_time, n_freq, channels)
        return self._linear("depthwise_conv2d", name, x, weight, bias, shape, attrs)

    def max_pool(self, name: str, x: str, size: tuple[int, int], stride: tuple[int, int]) -> str:
        """The largest of every window of (1, T, F, C), none of which reaches over the edge."""
        _, *length, channels = self.shape(x)
        n_time, n_freq = (
            (n - window) // step + 1 for n, window, step in zip(length, size, stride, strict=True)
        )
        shape = (1, n_time, n_freq, channels)
        return self._op("max_pool", (x,), name, shape, size=size, stride=stride)

    def batch_matmul(self, name: str, x: str, y: str, *, transposed: bool = False) -> str:
        """(B, N, K) by (B, K, M), or by (B, M, K) with `transposed` -> (B, N, M)."""
        (batch, n, depth), (other_batch, *rest) = self.shape(x), self.shape(y)
        other_depth, m = reversed(rest) if transposed else rest
        if (batch, depth) != (other_batch, other_depth):
            raise ExportError(f"{name}: {self.shape(x)} and {self.shape(y)} cannot be multiplied")
        return self._op("batch_matmul", (x, y), name, (batch, n, m), transposed=transposed)

    def fully_connected(
        self,
        name: str,
        x: str,
        weight: Array,
        bias: Array,
        relu: bool = False,
        *,
        constants: str = "",
    ) -> str:
        """(N, K) by (M, K) -> (N, M); layers with the same `constants` share weight and bias."""
        n, depth = self.shape(x)
        if weight.shape[1:] != (depth,):
            raise ExportError(f"{name}: expected (M, {depth}), got {weight.shape}")
        shape = (n, weight.shape[0])
        attrs = {"relu": relu}
        return self._linear(
            "fully_connected", name, x, weight, bias, shape, attrs, constants or name
        )

    def binary(self, kind: str, name: str, x: str, y: str) -> str:
        """add, sub, mul or minimum of two tensors whose shapes broadcast."""
        try:
            shape = np.broadcast_shapes(self.shape(x), self.shape(y))
        except ValueError:
            raise ExportError(
                f"{name}: expected shapes that broadcast, got {self.shape(x)}, {self.shape(y)}"
            ) from None
        return self._op(kind, (x, y), name, shape)

    def unary(self, kind: str, name: str, x: str) -> str:
        """sigmoid, tanh, relu, softmax or l2_norm."""
        return self._op(kind, (x,), name, self.shape(x))

    def requantise(self, name: str, x: str) -> str:
        """The same values in the other precision: one of the two is in `Graph.wide`."""
        return self._op("requantise", (x,), name, self.shape(x))

    def mean(self, name: str, x: str) -> str:
        """Over the last axis, which stays with length 1."""
        return self._op("mean", (x,), name, (*self.shape(x)[:-1], 1))

    def embedding(self, name: str, ids: str, table: Array) -> str:
        """Rows of a table, (N,) -> (N, D)."""
        table_name = self.constant(f"{name}.table", table)
        shape = (*self.shape(ids), table.shape[1])
        return self._op("embedding", (ids, table_name), name, shape)

    def concat(self, name: str, xs: tuple[str, ...], axis: int) -> str:
        """Join along an axis; more than `MOST_JOINED` tensors by several operations."""
        while len(xs) > MOST_JOINED:  # the front ones become one, which counts as one of the next
            front = f"{name}.front{len(xs)}"
            xs = (self.concat(front, xs[:MOST_JOINED], axis), *xs[MOST_JOINED:])
        shape = list(self.shape(xs[0]))
        shape[axis] = sum(self.shape(x)[axis] for x in xs)
        return self._op("concat", xs, name, tuple(shape), axis=axis)

    def slice(self, name: str, x: str, axis: int, begin: int, size: int) -> str:
        """A range of one axis; the whole of the others."""
        shape = self.shape(x)
        begins = tuple(begin if k == axis else 0 for k in range(len(shape)))
        sizes = tuple(size if k == axis else n for k, n in enumerate(shape))
        return self._op("slice", (x,), name, sizes, begin=begins, size=sizes)

    def pad(self, name: str, x: str, axis: int, before: int, after: int) -> str:
        """Real zeros around one axis; nothing is added to the graph where there are none."""
        if before == after == 0:
            return x
        shape = self.shape(x)
        pads = tuple((before, after) if k == axis else (0, 0) for k in range(len(shape)))
        padded = tuple(n + sum(p) for n, p in zip(shape, pads, strict=True))
        return self._op("pad", (x,), name, padded, paddings=pads)

    def reshape(self, name: str, x: str, shape: tuple[int, ...]) -> str:
        """The same elements in another shape."""
        return self._op("reshape", (x,), name, shape, shape=shape)

    def transpose(self, name: str, x: str, perm: tuple[int, ...]) -> str:
        """The axes in another order."""
        shape = self.shape(x)
        return self._op("transpose", (x,), name, tuple(shape[k] for k in perm), perm=perm)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor added before."""
        return self.graph.tensors[name].shape

    def _linear(
        self,
        kind: str,
        name: str,
        x: str,
        weight: Array,
        bias: Array,
        shape: tuple[int, ...],
        attrs: dict[str, Any],
        constants: str = "",
    ) -> str:
        named = {f"{constants or name}.weight": weight, f"{constants or name}.bias": bias}
        for key, data in named.items():
            if key not in self.graph.tensors:
                self.constant(key, data)
        return self._op(kind, (x, *named), name, shape, **attrs)

    def _op(
        self, kind: str, inputs: tuple[str, ...], name: str, out: tuple[int, ...], **attrs: Any
    ) -> str:
        self.graph.ops.append(Op(kind, inputs, name, attrs))
        return self._tensor(Tensor(name, out))

    def _tensor(self, tensor: Tensor) -> str:
        if tensor.name in self.graph.tensors:
            raise ExportError(f"{self.graph.name}: two tensors are named {tensor.name!r}")
        if any(n < 1 for n in tensor.shape):
            raise ExportError(f"{tensor.name}: expected positive dimensions, got {tensor.shape}")
        self.graph.tensors[tensor.name] = tensor
        return tensor.name
