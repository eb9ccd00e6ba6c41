"""Builds the two float graphs from trained torch modules. The only place that reads torch weights.

The encoder's GRU is written out in operations that every runtime has as int8 kernels: the gates
as torch orders them (r, z, n), ``n = tanh(W_n x + b + r * (U_n h + c))`` and
``h' = n + z * (h - n)``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams
from edge_imputer.specs import CrnnSpec, ModelSpec

from .graph import Array, Graph, Op, Tensor

if TYPE_CHECKING:
    from torch import nn

    from edge_imputer.train.encoders import Encoder
    from edge_imputer.train.imputer import ImputerHead

FEATURES, ENCODER_OUT = "features", "encoder_out"
ENCODER_WINDOW, ALIGNMENT, LOGITS = "encoder_window", "alignment", "logits"


# A GRU's state is a mean of tanh outputs, so it takes their scale. The difference of the two is
# then a whole number d of steps, at most 255; its own step is 257 / 127 of theirs, so that
# d * 127 / 257 is never near a half, which runtimes round differently.
GRU_STATE = QuantParams(scale=1 / 128, zero_point=0)
GRU_GAP = QuantParams(scale=float(np.float32(257 / 127 / 128)), zero_point=0)


class GraphBuilder:
    """Appends operations to a graph and works out the shape of what they give."""

    def __init__(self, name: str) -> None:
        self.graph = Graph(name=name)

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> str:
        """Add an input."""
        self.graph.inputs.append(name)
        return self._tensor(Tensor(name, shape, dtype))

    def constant(self, name: str, data: Array) -> str:
        """Add a constant."""
        return self._tensor(Tensor(name, data.shape, str(data.dtype), data=data))

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

    def fully_connected(
        self, name: str, x: str, weight: Array, bias: Array, relu: bool = False
    ) -> str:
        """(N, K) by (M, K) -> (N, M)."""
        shape = (self.shape(x)[0], weight.shape[0])
        return self._linear("fully_connected", name, x, weight, bias, shape, {"relu": relu})

    def binary(self, kind: str, name: str, x: str, y: str) -> str:
        """add, sub or mul of two tensors of one shape."""
        if self.shape(x) != self.shape(y):
            raise ExportError(f"{name}: expected one shape, got {self.shape(x)}, {self.shape(y)}")
        return self._op(kind, (x, y), name, self.shape(x))

    def unary(self, kind: str, name: str, x: str) -> str:
        """sigmoid, tanh or relu."""
        return self._op(kind, (x,), name, self.shape(x))

    def embedding(self, name: str, ids: str, table: Array) -> str:
        """Rows of a table, (N,) -> (N, D)."""
        table_name = self.constant(f"{name}.table", table)
        shape = (*self.shape(ids), table.shape[1])
        return self._op("embedding", (ids, table_name), name, shape)

    def concat(self, name: str, xs: tuple[str, ...], axis: int) -> str:
        """Join along an axis."""
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
    ) -> str:
        constants = (self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias))
        return self._op(kind, (x, *constants), name, shape, **attrs)

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


def build_graphs(encoder: Encoder, head: ImputerHead, spec: ModelSpec) -> tuple[Graph, Graph]:
    """Float graphs of one encoder step and one pass of the Imputer head.

    Parameters
    ----------
    encoder : Encoder
        A `CrnnEncoder`: the others train, and are not exported yet.
    head : ImputerHead
        Of convolutions.
    spec : ModelSpec
        What both were built from.

    Returns
    -------
    encoder : Graph
        Inputs ``features`` (1, subsampling, n_mels, 1), then the states: one
        (1, left, F, C) a convolution that looks back, one (1, hidden) a GRU layer. Outputs
        ``encoder_out`` (1, hidden), then the next states.
    imputer : Graph
        Inputs ``encoder_window`` (window, d_model) and ``alignment`` int32 (window,); output
        ``logits`` (chunk_size, vocabulary_size).

    Raises
    ------
    ExportError
        If the modules and the specification do not belong together, or there is no graph for them.
    """
    spec.check()
    if not isinstance(spec.encoder, CrnnSpec) or spec.head.mixer != "conv":
        raise ExportError(
            "expected a CRNN encoder and a head of convolutions, which are what is exported so "
            f"far, got {type(spec.encoder).__name__} and a head of {spec.head.mixer!r}"
        )
    built_from = (encoder.spec, encoder.n_mels, head.spec)
    if built_from != (spec.encoder, spec.features.n_mels, spec.head):
        raise ExportError("expected modules built from this specification, got those of another")
    if head.vocabulary_size != spec.tokens.vocabulary_size:
        raise ExportError(
            f"expected a head with {spec.tokens.vocabulary_size} outputs, "
            f"got {head.vocabulary_size}"
        )
    readers = _Weights("encoder", encoder), _Weights("head", head)
    graphs = _build_encoder(readers[0], spec.encoder, spec), _build_imputer(readers[1], spec)
    for reader in readers:
        reader.check_all_read()
    return graphs


class _Weights:
    """Reads a module's weights by name, and knows in the end which ones nobody wanted."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._module = name, module
        self._arrays: dict[str, Array] = {
            key: value.detach().cpu().numpy() for key, value in module.state_dict().items()
        }
        self._unread = {key for key in self._arrays if not key.endswith("num_batches_tracked")}

    def read(self, key: str) -> Array:
        """One weight, float32."""
        self._unread.discard(key)
        weight: Array = self._arrays[key].astype(np.float32)
        return weight

    def normalised_conv(self, prefix: str) -> tuple[Array, Array]:
        """Weight and bias of ``prefix.conv`` with the batch norm ``prefix.norm`` folded in."""
        weight, bias = (self.read(f"{prefix}.conv.{key}") for key in ("weight", "bias"))
        gamma, beta, mean, variance = (
            self.read(f"{prefix}.norm.{key}").astype(np.float64)
            for key in ("weight", "bias", "running_mean", "running_var")
        )
        norm: Any = self._module.get_submodule(f"{prefix}.norm")
        factor = gamma / np.sqrt(variance + norm.eps)
        folded = weight * factor.reshape(-1, 1, 1, 1), (bias - mean) * factor + beta
        return folded[0].astype(np.float32), folded[1].astype(np.float32)

    def check_all_read(self) -> None:
        """Refuse a module that computes something the graph does not."""
        if self._unread:
            raise ExportError(
                f"expected to export every weight of the {self._name}, but nothing reads "
                f"{', '.join(sorted(self._unread))}: the module changed, and the exporter did not"
            )


def _build_encoder(weights: _Weights, crnn: CrnnSpec, spec: ModelSpec) -> Graph:
    g = GraphBuilder("encoder")
    n_freq = crnn.conv_freq(spec.features.n_mels)
    x = g.input(FEATURES, (1, crnn.subsampling, spec.features.n_mels, 1))
    channels = [1, *(layer.channels for layer in crnn.conv)]
    lefts = [layer.kernel_time - layer.stride_time for layer in crnn.conv]
    conv_states = [  # a convolution whose windows do not overlap in time keeps nothing
        g.input(f"conv{k}.state", (1, left, n_freq[k], channels[k])) if left else None
        for k, left in enumerate(lefts)
    ]
    gru_states = [g.input(f"gru{k}.state", (1, crnn.hidden)) for k in range(crnn.gru_layers)]
    next_states = []
    for k, (layer, state) in enumerate(zip(crnn.conv, conv_states, strict=True)):
        if state is not None:
            x = g.concat(f"conv{k}.input", (state, x), axis=1)
            begin = g.shape(x)[1] - lefts[k]
            next_states.append(g.slice(f"conv{k}.next_state", x, 1, begin, lefts[k]))
        x = g.pad(f"conv{k}.padded", x, 2, layer.kernel_freq // 2, layer.kernel_freq // 2)
        weight, bias = weights.normalised_conv(f"conv.{k}")
        weight = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
        stride = (layer.stride_time, layer.stride_freq)
        x = g.conv2d(f"conv{k}", x, weight, bias, stride, relu=True)
    x = g.reshape("conv.flat", x, (1, prod(g.shape(x))))
    for k, state in enumerate(gru_states):
        x = _gru_cell(g, f"gru{k}", x, state, weights)
        next_states.append(x)
    g.graph.outputs = [g.reshape(ENCODER_OUT, x, g.shape(x)), *next_states]
    g.graph.n_states = len(next_states)
    return g.graph


def _gru_cell(g: GraphBuilder, name: str, x: str, h: str, weights: _Weights) -> str:
    """One step of a GRU layer: (1, K), (1, H) -> (1, H)."""
    layer = name.removeprefix("gru")
    w_x, w_h, b_x, b_h = (
        weights.read(f"gru.{layer}.{kind}_l0")
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    n = g.shape(h)[1]
    gates_x = g.fully_connected(f"{name}.x", x, w_x, b_x)  # (1, 3H): r, z, n
    gates_h = g.fully_connected(f"{name}.h", h, w_h, b_h)
    rz = g.binary(
        "add",
        f"{name}.rz_sum",
        g.slice(f"{name}.x_rz", gates_x, 1, 0, 2 * n),
        g.slice(f"{name}.h_rz", gates_h, 1, 0, 2 * n),
    )
    rz = g.unary("sigmoid", f"{name}.rz", rz)
    r = g.slice(f"{name}.r", rz, 1, 0, n)
    z = g.slice(f"{name}.z", rz, 1, n, n)
    reset = g.binary("mul", f"{name}.reset", r, g.slice(f"{name}.h_n", gates_h, 1, 2 * n, n))
    candidate = g.binary(
        "add", f"{name}.n_sum", g.slice(f"{name}.x_n", gates_x, 1, 2 * n, n), reset
    )
    candidate = g.unary("tanh", f"{name}.n", candidate)
    gap = g.binary("sub", f"{name}.gap", h, candidate)
    g.graph.structural_quant |= {h: GRU_STATE, gap: GRU_GAP}
    kept = g.binary("mul", f"{name}.kept", z, gap)
    return g.binary("add", f"{name}.next_state", candidate, kept)


def _build_imputer(weights: _Weights, spec: ModelSpec) -> Graph:
    g = GraphBuilder("imputer")
    half, width, window = spec.head.kernel // 2, spec.head.width, spec.head.window
    frames = g.input(ENCODER_WINDOW, (window, spec.encoder.d_model))
    ids = g.input(ALIGNMENT, (window,), "int32")
    weight, bias = weights.read("input.weight"), weights.read("input.bias")
    projected = g.fully_connected("input", frames, weight, bias)
    tokens = g.embedding("tokens", ids, weights.read("embedding.weight"))
    x = g.binary("add", "frames", projected, tokens)
    x = g.reshape("frames.nhwc", x, (1, window, 1, width))
    for k in range(spec.head.depth):
        weight = weights.read(f"conv.{k}.weight").transpose(0, 2, 1)[:, :, np.newaxis]
        bias = weights.read(f"conv.{k}.bias")
        padded = g.pad(f"conv{k}.padded", x, 1, 0, half)
        y = g.conv2d(f"conv{k}", padded, np.ascontiguousarray(weight), bias, (1, 1), relu=True)
        kept = g.shape(y)[1]
        skip = g.slice(f"conv{k}.skip", x, 1, half, kept) if half else x
        x = g.binary("add", f"conv{k}.residual", skip, y)
    x = g.reshape("frames.flat", x, (spec.head.chunk_size, width))
    weight, bias = weights.read("output.weight"), weights.read("output.bias")
    g.graph.outputs = [g.fully_connected(LOGITS, x, weight, bias)]
    return g.graph


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one call, of convolutions and fully connected layers."""
    return sum(
        prod(graph.tensors[op.output].shape) * prod(graph.tensors[op.inputs[1]].shape[1:])
        for op in graph.ops
        if op.kind in ("conv2d", "fully_connected")
    )
