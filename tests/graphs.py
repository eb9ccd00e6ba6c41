"""Random graphs to test the exporter with: single layers of every kind, and whole small models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from edge_imputer.export.build import build_graphs
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.graph import KINDS, SHARES_SCALE, WEIGHT_AXIS, Array, Graph
from edge_imputer.export.quantize import OUTPUT_QUANT, quantise
from edge_imputer.export.simulate import calibrate_and_quantise
from edge_imputer.quantization import QuantParams
from edge_imputer.specs import (
    AttentionSpec,
    ConformerSpec,
    ConvSpec,
    CrnnSpec,
    EncoderSpec,
    FeatureSpec,
    ImputerSpec,
    ModelSpec,
    TcnSpec,
    TokenSpec,
)
from edge_imputer.train.encoders import Encoder, build_encoder
from edge_imputer.train.imputer import ImputerHead
from edge_imputer.train.layers.norm import MaskedBatchNorm1d

FLOAT_LAYERS = tuple(sorted(KINDS - {"requantise"}))
LAYERS = (*FLOAT_LAYERS, "requantise", "wide_add", "wide_sub")
Rng = np.random.Generator


def model_spec(
    conv: tuple[ConvSpec, ...] = (ConvSpec(channels=3), ConvSpec(channels=5)),
    *,
    n_mels: int = 12,
    gru_layers: int = 1,
    hidden: int = 10,
    encoder: EncoderSpec | None = None,
    **head: object,
) -> ModelSpec:
    """A small model, a CRNN unless an encoder is given; `head` are fields of `ImputerSpec`."""
    fields: dict[str, object] = {"width": 8, "depth": 2, "kernel": 3, "block_size": 4}
    fields |= {"schedule": (2, 1, 1)} | head
    return ModelSpec(
        features=FeatureSpec(n_mels=n_mels, mean=-8.0, std=3.0),
        encoder=encoder or CrnnSpec(conv=conv, gru_layers=gru_layers, hidden=hidden),
        head=ImputerSpec(**fields),  # type: ignore[arg-type]
        tokens=TokenSpec(characters=(" ", "a", "b", "c", "d")),
    )


OTHER_MODELS = {
    "tcn": model_spec(
        encoder=TcnSpec(channels=8, stacks=((1, 2), (1, 4))), mixer="attention", heads=2
    ),
    "conformer": model_spec(
        encoder=ConformerSpec(
            d_model=16,
            n_layers=2,
            subsampling_channels=4,
            kernel=5,
            attention=AttentionSpec(heads=2, block=4, left_context=3, memory_blocks=3),
        )
    ),
    "ctc": model_spec(mixer="none", schedule=(4,)),
}
"""Models of the other encoders and heads, one of each."""


def modules(spec: ModelSpec, seed: int = 0) -> tuple[Encoder, ImputerHead]:
    """Untrained modules with random weights, those of the normalisation too."""
    torch.manual_seed(seed)
    encoder = build_encoder(spec.encoder, spec.features).eval()
    for module in encoder.modules():
        if isinstance(module, MaskedBatchNorm1d):
            for tensor, low, high in (
                (module.weight, 0.5, 2),
                (module.bias, -0.5, 1),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.2, 3),
            ):
                assert tensor is not None
                torch.nn.init.uniform_(tensor, low, high)
    return encoder, ImputerHead(spec.encoder.d_model, spec.head, spec.tokens).eval()


def waveforms(n: int = 3, seconds: float = 0.8, seed: int = 0) -> list[Array]:
    """Noise that swells and fades, float32."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, int(16_000 * seconds), dtype=np.float32)
    return [
        (0.3 * np.sin(np.pi * t) ** 2 * rng.standard_normal(t.size)).astype(np.float32) * level
        for level in np.geomspace(0.05, 1, n).astype(np.float32)
    ]


class SmallModel(NamedTuple):
    """One model in both forms."""

    spec: ModelSpec
    float_encoder: Graph
    float_imputer: Graph
    encoder: Graph
    imputer: Graph


@cache
def small_model() -> SmallModel:
    """The same small model every time; not to be modified."""
    spec = model_spec()
    floats = build_graphs(*modules(spec), spec)
    return SmallModel(spec, *floats, *calibrate_and_quantise(*floats, spec, waveforms()))


def feed(graph: Graph, rng: Rng) -> dict[str, Array]:
    """Random inputs: the whole int8 range, normal float32, ids that the table has."""
    rows = [graph.tensors[op.inputs[1]].shape[0] for op in graph.ops if op.kind == "embedding"]
    feeds: dict[str, Array] = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        if tensor.dtype == "int8":
            feeds[name] = rng.integers(-128, 128, tensor.shape).astype(np.int8)
        elif tensor.dtype == "int16":
            feeds[name] = rng.integers(-32768, 32768, tensor.shape).astype(np.int16)
        elif tensor.dtype == "int32":
            feeds[name] = rng.integers(0, min(rows), tensor.shape).astype(np.int32)
        else:
            feeds[name] = rng.standard_normal(tensor.shape).astype(np.float32)
    return feeds


def float_layer(kind: str, rng: Rng) -> Graph:
    """A float graph of one operation with random shape, attributes and weights."""
    g = GraphBuilder(kind)
    g.graph.outputs = [_ADD[kind](g, rng)]
    return g.graph


def int_layer(kind: str, rng: Rng) -> Graph:
    """A quantised graph of one operation, calibrated on inputs of random scale and offset."""
    graph = float_layer(kind, rng)
    calibration = Calibration(graph)
    scale, offset = np.float32(rng.uniform(0.05, 8)), np.float32(rng.normal())
    for _ in range(4):
        feeds = feed(graph, rng)
        calibration.run(
            {name: x * scale + offset if x.dtype == np.float32 else x for name, x in feeds.items()}
        )
    return quantise(graph, calibration.ranges)


def raw_int_layer(kind: str, rng: Rng) -> Graph:
    """A quantised graph of one operation with arbitrary scales, zero points and integers."""
    graph = float_layer(kind, rng)
    op = graph.ops[0]
    shared = _quant(rng)
    for tensor in graph.tensors.values():
        if tensor.dtype == "float32" and (tensor.data is None or kind not in WEIGHT_AXIS):
            tensor.quant = shared if kind in SHARES_SCALE or kind == "embedding" else _quant(rng)
            tensor.dtype = "int8"
            if tensor.name in graph.wide:
                tensor.dtype = "int16"
                tensor.quant = _wide_quant(rng)
            if tensor.data is not None:
                tensor.data = rng.integers(-128, 128, tensor.shape).astype(np.int8)
    if kind in OUTPUT_QUANT:
        graph.tensors[op.output].quant = OUTPUT_QUANT[kind]
    if kind in WEIGHT_AXIS:
        weight, bias = (graph.tensors[name] for name in op.inputs[1:])
        weight.data = rng.integers(-127, 128, weight.shape).astype(np.int8)
        weight.weight_scales = (10 ** rng.uniform(-4, 0, bias.shape[0])).astype(np.float32)
        bias.data = rng.integers(-(2**18), 2**18, bias.shape).astype(np.int32)
        weight.dtype, bias.dtype = "int8", "int32"
    return graph


def block_of_everything(rng: Rng) -> Graph:
    """A quantised graph with an operation of every kind: attention, convolutions, a state."""
    frames, width, heads = 6, 8, 2
    g = GraphBuilder("block")
    ids, x = g.input("ids", (frames,), "int32"), g.input("x", (frames, width))
    state = g.input("past.state", (1, 2, 1, width))
    x = g.binary("add", "embedded", x, g.embedding("tokens", ids, _normal(rng, 5, width)))
    qkv = g.fully_connected("qkv", x, _normal(rng, 3 * width, width), _normal(rng, 3 * width))
    parts = []
    for k in range(3):
        part = g.slice(f"part{k}", qkv, 1, k * width, width)
        part = g.reshape(f"split{k}", part, (frames, heads, width // heads))
        parts.append(g.transpose(f"heads{k}", part, (1, 0, 2)))
    scores = g.batch_matmul("scores", parts[0], parts[1], transposed=True)
    bound = g.constant("bound", np.triu(np.full((1, frames, frames), 9.0, np.float32)) - 4.5)
    weights = g.unary("softmax", "weights", g.binary("minimum", "masked", scores, bound))
    seen = g.transpose("frames", g.batch_matmul("seen", weights, parts[2]), (1, 0, 2))
    joined = g.reshape("joined", seen, (frames, width))
    wide = [g.requantise(f"{name}.wide", name) for name in (x, joined)]
    wide.append(g.binary("add", "residual", *wide))
    g.graph.wide |= set(wide)
    x = g.requantise("narrow", wide[-1])
    x = g.unary("l2_norm", "direction", g.binary("sub", "centred", x, g.mean("mean", x)))
    x = g.binary("mul", "scaled", x, g.constant("gain", _normal(rng, 1, width)))
    rows = g.concat("rows", (state, g.reshape("image", x, (1, frames, 1, width))), 1)
    after = g.slice("past.after", rows, 1, frames, 2)
    weight = _normal(rng, 1, 2, 1, width)
    rows = g.depthwise_conv2d("depthwise", rows, weight, _normal(rng, width), dilation=(2, 1))
    weight = _normal(rng, width, 1, 1, width)
    rows = g.conv2d("pointwise", rows, weight, _normal(rng, width), (1, 1), relu=False)
    rows = g.pad("padded", g.unary("relu", "relu", rows), 2, 1, 1)
    x = g.transpose("channels", g.max_pool("pooled", rows, (2, 2), (2, 1)), (0, 3, 2, 1))
    out = g.binary("mul", "out", g.unary("tanh", "tanh", x), g.unary("sigmoid", "sigmoid", x))
    g.graph.outputs, g.graph.n_states = [out, after], 1
    calibration = Calibration(g.graph)
    for inputs in feeds(g.graph, rng, 4):
        calibration.run(inputs)
    return quantise(g.graph, calibration.ranges)


def _quant(rng: Rng) -> QuantParams:
    zero_point = int(rng.choice([-128, -1, 0, 127, int(rng.integers(-128, 128))]))
    return QuantParams(scale=float(np.float32(10 ** rng.uniform(-3, 1))), zero_point=zero_point)


def _wide_quant(rng: Rng) -> QuantParams:
    return QuantParams(scale=float(np.float32(10 ** rng.uniform(-5, -1))), zero_point=0)


def feeds(graph: Graph, rng: Rng, n: int = 3) -> Iterator[dict[str, Array]]:
    """Several random inputs."""
    return (feed(graph, rng) for _ in range(n))


def _normal(rng: Rng, *shape: int) -> Array:
    return (rng.standard_normal(shape) * rng.uniform(0.05, 2)).astype(np.float32)


def _shape(rng: Rng) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 7, rng.integers(2, 5)))


def _conv2d(g: GraphBuilder, rng: Rng) -> str:
    kernel, stride = rng.integers(1, 4, 2), rng.integers(1, 3, 2)
    size = kernel + rng.integers(0, 5, 2)
    c_in, c_out = (int(c) for c in rng.integers(1, 9, 2))
    x = g.input("x", (1, int(size[0]), int(size[1]), c_in))
    weight = _normal(rng, c_out, int(kernel[0]), int(kernel[1]), c_in)
    relu = bool(rng.integers(2))
    return g.conv2d("y", x, weight, _normal(rng, c_out), (int(stride[0]), int(stride[1])), relu)


def _fully_connected(g: GraphBuilder, rng: Rng) -> str:
    n, k, m = (int(i) for i in rng.integers(1, 20, 3))
    x = g.input("x", (n, k))
    relu = bool(rng.integers(2))
    return g.fully_connected("y", x, _normal(rng, m, k), _normal(rng, m), relu)


def _depthwise_conv2d(g: GraphBuilder, rng: Rng) -> str:
    kernel, stride, dilation = rng.integers(1, 4, 2), rng.integers(1, 3, 2), rng.integers(1, 3, 2)
    if (dilation > 1).any():  # TFLite has no stride beside it
        stride = np.ones(2, int)
    size = (kernel - 1) * dilation + 1 + rng.integers(0, 5, 2)
    channels = int(rng.integers(1, 20))
    return g.depthwise_conv2d(
        "y",
        g.input("x", (1, int(size[0]), int(size[1]), channels)),
        _normal(rng, 1, int(kernel[0]), int(kernel[1]), channels),
        _normal(rng, channels),
        stride=(int(stride[0]), int(stride[1])),
        dilation=(int(dilation[0]), int(dilation[1])),
        relu=bool(rng.integers(2)),
    )


def _batch_matmul(g: GraphBuilder, rng: Rng) -> str:
    batch, n, depth, m = (int(i) for i in rng.integers(1, 12, 4))
    transposed = bool(rng.integers(2))
    y = (batch, m, depth) if transposed else (batch, depth, m)
    x = g.input("a", (batch, n, depth))
    return g.batch_matmul("y", x, g.input("b", y), transposed=transposed)


def _max_pool(g: GraphBuilder, rng: Rng) -> str:
    size, stride = rng.integers(1, 4, 2), rng.integers(1, 4, 2)
    length = size + rng.integers(0, 5, 2)
    x = g.input("x", (1, int(length[0]), int(length[1]), int(rng.integers(1, 9))))
    return g.max_pool("y", x, (int(size[0]), int(size[1])), (int(stride[0]), int(stride[1])))


def _transpose(g: GraphBuilder, rng: Rng) -> str:
    shape = _shape(rng)
    return g.transpose("y", g.input("x", shape), tuple(map(int, rng.permutation(len(shape)))))


def _binary(kind: str, g: GraphBuilder, rng: Rng) -> str:
    """Of one shape, or broadcast; or with a constant."""
    shape = _shape(rng)
    other = tuple(n if rng.random() < 0.7 else 1 for n in shape) if rng.random() < 0.5 else shape
    x = g.input("a", shape)
    if rng.random() < 0.3:
        return g.binary(kind, "y", x, g.constant("b", _normal(rng, *other)))
    return g.binary(kind, "y", x, g.input("b", other))


def _wide_binary(kind: str, g: GraphBuilder, rng: Rng) -> str:
    """In int16: both inputs and the output, of one shape."""
    shape = _shape(rng)
    g.graph.wide |= {"a", "b", "y"}
    return g.binary(kind, "y", g.input("a", shape), g.input("b", shape))


def _requantise(g: GraphBuilder, rng: Rng) -> str:
    """From int8 to int16, or the other way."""
    g.graph.wide.add(str(rng.choice(["x", "y"])))
    return g.requantise("y", g.input("x", _shape(rng)))


def _embedding(g: GraphBuilder, rng: Rng) -> str:
    n, rows, width = (int(i) for i in rng.integers(1, 12, 3))
    return g.embedding("y", g.input("ids", (n,), "int32"), _normal(rng, rows, width))


def _concat(g: GraphBuilder, rng: Rng) -> str:
    shape = _shape(rng)
    axis = int(rng.integers(len(shape)))
    longer = tuple(n + (k == axis) for k, n in enumerate(shape))
    return g.concat("y", (g.input("a", shape), g.input("b", longer)), axis)


def _slice(g: GraphBuilder, rng: Rng) -> str:
    shape = _shape(rng)
    axis = int(rng.integers(len(shape)))
    begin = int(rng.integers(shape[axis]))
    size = int(rng.integers(1, shape[axis] - begin + 1))
    return g.slice("y", g.input("x", shape), axis, begin, size)


def _pad(g: GraphBuilder, rng: Rng) -> str:
    shape = _shape(rng)
    before, after = int(rng.integers(1, 3)), int(rng.integers(3))
    return g.pad("y", g.input("x", shape), int(rng.integers(len(shape))), before, after)


def _reshape(g: GraphBuilder, rng: Rng) -> str:
    shape = _shape(rng)
    return g.reshape("y", g.input("x", shape), (shape[-1], int(np.prod(shape[:-1]))))


_ADD = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "fully_connected": _fully_connected,
    "batch_matmul": _batch_matmul,
    "minimum": lambda g, rng: _binary("minimum", g, rng),
    "softmax": lambda g, rng: g.unary("softmax", "y", g.input("x", _shape(rng))),
    "l2_norm": lambda g, rng: g.unary("l2_norm", "y", g.input("x", _shape(rng))),
    "mean": lambda g, rng: g.mean("y", g.input("x", _shape(rng))),
    "max_pool": _max_pool,
    "transpose": _transpose,
    "add": lambda g, rng: _binary("add", g, rng),
    "sub": lambda g, rng: _binary("sub", g, rng),
    "mul": lambda g, rng: _binary("mul", g, rng),
    "sigmoid": lambda g, rng: g.unary("sigmoid", "y", g.input("x", _shape(rng))),
    "tanh": lambda g, rng: g.unary("tanh", "y", g.input("x", _shape(rng))),
    "relu": lambda g, rng: g.unary("relu", "y", g.input("x", _shape(rng))),
    "embedding": _embedding,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "requantise": _requantise,
    "wide_add": lambda g, rng: _wide_binary("add", g, rng),
    "wide_sub": lambda g, rng: _wide_binary("sub", g, rng),
}
