"""The one graph that every artefact is written from.

A `Graph` is a flat list of operations over named tensors, in NHWC layout and batch size 1, the
order of execution. It exists in two forms with the same operations:

- *float*: tensors carry no quantisation, weights are float32. `run_float` executes it.
- *quantised*: every activation has an int8 scale and zero point, weights are int8 per output
  channel, biases int32 with scale ``input_scale * weight_scale``. `run_int` executes it exactly.
  Sums may be int16 with zero point 0, between operations that requantise (see `precision`).

Operations (`Op.kind`), with the semantics of the TFLite operator of that name, but for how
accumulators are rounded (see `fixed_point`):

=================  =====================  =======================================================
kind               inputs                 attributes
=================  =====================  =======================================================
conv2d             x, weight, bias        stride (t, f), relu; x (1, T, F, Cin), valid padding,
                                          weight (Cout, KT, KF, Cin), output (1, T', F', Cout)
depthwise_conv2d   x, weight, bias        stride, dilation (t, f), relu; x (1, T, F, C), weight
                                          (1, KT, KF, C), output (1, T', F', C)
fully_connected    x, weight, bias        relu; x (N, K), weight (M, K), output (N, M)
batch_matmul       x, y                   x (B, N, K) by y (B, K, M), or with transposed by y
                                          (B, M, K); output (B, N, M)
add, sub, mul,     x, y                   shapes that broadcast; one may be a constant
minimum
sigmoid, tanh,     x                      output scales of sigmoid and tanh are fixed:
relu                                      (1/256, -128) and (1/128, 0)
softmax            x                      over the last axis; output scale (1/256, -128)
l2_norm            x                      divided by its length over the last axis; output scale
                                          (1/128, 0); zeros stay zeros
mean               x                      over the last axis, which stays with length 1
max_pool           x                      size and stride (t, f); x (1, T, F, C), valid padding
embedding          ids, table             ids int32 (N,), table (V, D), output (N, D)
concat             x...                   axis
slice              x                      begin, size
pad                x                      paddings ((before, after), ...); pads with real zero
reshape            x                      shape
transpose          x                      perm
requantise         x                      the same real values, int8 as int16 or the other way
=================  =====================  =======================================================

concat, slice, pad, reshape, transpose, max_pool, minimum and relu do not requantise: their inputs
and outputs share one scale.

A *fused* graph holds both forms side by side, and a few operations besides: see `fused`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.quantization import QuantParams

Array = npt.NDArray[Any]

KINDS = frozenset(
    "conv2d depthwise_conv2d fully_connected batch_matmul add sub mul minimum sigmoid tanh relu "
    "softmax l2_norm mean max_pool embedding concat slice pad reshape transpose requantise".split()
)
WIDE_KINDS = frozenset({"add", "sub", "requantise"})
"""Operations that know int16: `add` and `sub` if all three are, between tensors of one shape."""
SHARES_SCALE = frozenset(
    {"concat", "slice", "pad", "reshape", "transpose", "max_pool", "minimum", "relu"}
)
MOVES = frozenset({"concat", "slice", "pad", "reshape", "transpose", "embedding"})
"""Operations that move bytes, whatever they stand for."""
WEIGHT_AXIS = {"conv2d": 0, "depthwise_conv2d": 3, "fully_connected": 0}
"""Operations with weight and bias, and the weight's axis of output channels."""


@dataclass
class Tensor:
    """A named value: an activation, or a constant when `data` is set.

    `quant` is the quantisation of an activation or of an embedding table; `weight_scales`
    (float32, one an output channel) that of a weight; both None in a float graph. Token ids are
    int32 and never quantised.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"  # float32 | int8 | int16 | int32
    data: Array | None = None
    quant: QuantParams | None = None
    weight_scales: npt.NDArray[np.float32] | None = None


@dataclass
class Op:
    """One operation; `inputs` and `output` are tensor names."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """Operations in execution order, with named tensors.

    The last `n_states` inputs and the last `n_states` outputs are the streaming state: output k
    of one call is input k of the next. `structural_quant` holds int8 parameters that follow from
    the network's structure and are not calibrated; the tensors of `saturating` take the scale of
    those they share it with, and are cut to its range, such as a mask that leaves nothing; those
    of `wide` are int16 once the graph is quantised. Those of one group of `alike` take one scale
    though no operation ties them: they are one layer's, at several times.
    """

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    n_states: int = 0
    structural_quant: dict[str, QuantParams] = field(default_factory=dict)
    saturating: set[str] = field(default_factory=set)
    wide: set[str] = field(default_factory=set)
    alike: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def quantised(self) -> bool:
        """Whether activations are integers."""
        return all(self.is_integer(op) for op in self.ops)

    def is_integer(self, op: Op) -> bool:
        """Whether one operation computes integers; in a fused graph some do."""
        return self.tensors[op.output].quant is not None

    @property
    def state_pairs(self) -> list[tuple[str, str]]:
        """(input, output) names of the streaming state."""
        n = self.n_states
        return list(zip(self.inputs[-n:], self.outputs[-n:], strict=True)) if n else []

    def single_op(self, index: int) -> Graph:
        """A graph of one operation: its activations become inputs, its constants stay."""
        op = self.ops[index]
        names = list(dict.fromkeys([*op.inputs, op.output]))
        return Graph(
            name=f"{self.name}_{index:02d}_{op.kind}",
            tensors={name: replace(self.tensors[name]) for name in names},
            ops=[op],
            inputs=[n for n in dict.fromkeys(op.inputs) if self.tensors[n].data is None],
            outputs=[op.output],
        )


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one call, of convolutions and matrix products."""
    return sum(
        prod(graph.tensors[op.output].shape) * _depth(graph, op)
        for op in graph.ops
        if op.kind in WEIGHT_AXIS or op.kind == "batch_matmul"
    )


def _depth(graph: Graph, op: Op) -> int:
    """Products that an element of the output is the sum of."""
    if op.kind == "batch_matmul":
        return graph.tensors[op.inputs[0]].shape[-1]
    weight = graph.tensors[op.inputs[1]].shape
    return prod(weight) // weight[WEIGHT_AXIS[op.kind]]
