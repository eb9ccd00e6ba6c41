"""The float graphs compute what torch computes, whatever the specification."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch

from edge_imputer.errors import ExportError
from edge_imputer.export.build import build_graphs
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.graph import KINDS, macs
from edge_imputer.export.memory import weight_bytes
from edge_imputer.export.reference import Interpreter, run_float, run_int, zero_feeds
from edge_imputer.specs import (
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    ImputerSpec,
    ModelSpec,
    TokenSpec,
)

from .graphs import model_spec, modules

SPECS = {
    "default": model_spec(),
    "two GRU layers": model_spec(gru_layers=2),
    "no overlap in time": model_spec((ConvSpec(channels=4, kernel_time=2), ConvSpec(channels=3))),
    "long memory": model_spec((ConvSpec(channels=4, kernel_time=9), ConvSpec(channels=3))),
    "no padding, no striding": model_spec(
        (ConvSpec(channels=2, kernel_freq=1, stride_freq=1, stride_time=1, kernel_time=1),)
    ),
    "three convolutions, odd sizes": model_spec(
        (
            ConvSpec(channels=2, kernel_freq=5, stride_freq=3),
            ConvSpec(channels=3, kernel_time=4, stride_time=3, stride_freq=1),
            ConvSpec(channels=4, stride_time=1),
        ),
        n_mels=13,
    ),
    "wide kernel, two blocks a chunk": model_spec(kernel=5, chunk_blocks=2, depth=3),
    "head without context": model_spec(kernel=1, depth=1),
}


@pytest.mark.parametrize("name", SPECS)
def test_encoder_graph_equals_torch_step_by_step(name: str) -> None:
    spec = SPECS[name]
    torch_encoder, head = modules(spec)
    graph, _ = build_graphs(torch_encoder, head, spec)
    interpreter, feeds = Interpreter(graph), zero_feeds(graph)
    state = torch_encoder.initial_state()
    steps = torch.randn(6, 1, spec.encoder.subsampling, spec.features.n_mels)
    for chunk in steps:
        with torch.no_grad():
            out, state = torch_encoder.step(chunk, state)
        feeds["features"] = chunk.numpy()[..., np.newaxis]
        values = interpreter.run(feeds)
        np.testing.assert_allclose(values["encoder_out"], out[0].numpy(), atol=1e-5)
        feeds.update({before: values[after] for before, after in graph.state_pairs})
    kept = [s for s in state if s.numel()]
    assert len(kept) == graph.n_states
    for (before, _), tensor in zip(graph.state_pairs, kept, strict=True):
        x = tensor.numpy()
        x = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x[0]
        np.testing.assert_allclose(feeds[before], x, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_imputer_graph_equals_torch(name: str) -> None:
    spec = SPECS[name]
    encoder, head = modules(spec)
    _, graph = build_graphs(encoder, head, spec)
    window = torch.randn(1, spec.head.window, spec.encoder.d_model)
    ids = torch.randint(0, spec.tokens.mask_id + 1, (1, spec.head.window))
    with torch.no_grad():
        logits = head.step(window, ids)[0].numpy()
    feeds = {"encoder_window": window[0].numpy(), "alignment": ids[0].numpy().astype(np.int32)}
    np.testing.assert_allclose(run_float(graph, feeds)["logits"], logits, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_graphs_are_well_formed(name: str) -> None:
    spec = SPECS[name]
    for graph in build_graphs(*modules(spec), spec):
        known = {n for n, t in graph.tensors.items() if t.data is not None} | set(graph.inputs)
        values = Interpreter(graph).run(zero_feeds(graph))
        for op in graph.ops:
            assert op.kind in KINDS
            assert set(op.inputs) <= known  # in execution order
            known.add(op.output)
            assert values[op.output].shape == graph.tensors[op.output].shape
        assert known == set(graph.tensors)
        assert set(graph.outputs) <= known
        assert len(set(graph.outputs)) == len(graph.outputs)
        for before, after in graph.state_pairs:
            assert graph.tensors[before].shape == graph.tensors[after].shape


def test_default_model_is_as_large_as_its_specification_says() -> None:
    spec = ModelSpec(
        features=FeatureSpec(),
        encoder=CrnnSpec(),
        head=ImputerSpec(),
        tokens=TokenSpec(characters=tuple("efghinorstuvwxz ")),
    )
    encoder_module, head = modules(spec)
    encoder, imputer = build_graphs(encoder_module, head, spec)
    n_parameters = sum(
        p.numel()
        for module in (encoder_module, head)
        for name, p in module.named_parameters()
        if ".norm." not in name  # folded into the convolutions
    )
    assert (weight_bytes(encoder) + weight_bytes(imputer)) == 4 * n_parameters
    conv = 2 * 20 * 8 * 9 + 10 * 24 * 9 * 8
    assert macs(encoder) == conv + 3 * 128 * (240 + 128)
    assert macs(imputer) == 14 * 128 * 64 + (11 + 8) * 64 * 64 * 7 + 8 * 64 * 17
    assert [encoder.tensors[n].shape for n in encoder.inputs] == [
        (1, 4, 40, 1),
        (1, 1, 40, 1),
        (1, 1, 20, 8),
        (1, 128),
    ]
    assert prod(imputer.tensors["logits"].shape) == 8 * 17


def test_single_op_graph_computes_the_layer() -> None:
    spec = SPECS["default"]
    for graph in build_graphs(*modules(spec), spec):
        rng = np.random.default_rng(0)
        feeds = {
            name: (
                rng.integers(0, 5, graph.tensors[name].shape).astype(np.int32)
                if graph.tensors[name].dtype == "int32"
                else rng.standard_normal(graph.tensors[name].shape).astype(np.float32)
            )
            for name in graph.inputs
        }
        values = run_float(graph, feeds)
        for index, op in enumerate(graph.ops):
            layer = graph.single_op(index)
            alone = run_float(layer, {name: values[name] for name in layer.inputs})
            np.testing.assert_array_equal(alone[op.output], values[op.output])


def test_modules_of_another_specification_are_refused() -> None:
    spec = model_spec()
    for other in (model_spec(hidden=12), model_spec(n_mels=13), model_spec(width=9)):
        with pytest.raises(ExportError, match="expected modules built from this specification"):
            build_graphs(*modules(spec), other)
    fewer = ModelSpec(
        features=spec.features,
        encoder=spec.encoder,
        head=spec.head,
        tokens=TokenSpec(characters=("a",)),
    )
    with pytest.raises(ExportError, match="expected a head with 2 outputs, got 6"):
        build_graphs(*modules(spec), fewer)


def test_a_weight_that_the_graph_would_drop_is_refused() -> None:
    spec = model_spec()
    encoder, head = modules(spec)
    head.gain = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ExportError, match="every weight of the imputer, but nothing reads gain"):
        build_graphs(encoder, head, spec)


def test_builder_refuses_what_does_not_fit() -> None:
    g = GraphBuilder("g")
    x, y = g.input("x", (1, 3)), g.input("y", (1, 4))
    for kind in ("add", "sub", "mul", "minimum"):
        with pytest.raises(ExportError, match=r"shapes that broadcast, got \(1, 3\), \(1, 4\)"):
            g.binary(kind, "sum", x, y)
    with pytest.raises(ExportError, match="two tensors are named 'x'"):
        g.input("x", (1, 3))
    with pytest.raises(ExportError, match="expected positive dimensions"):
        g.slice("cut", x, 1, 0, 0)
    image = g.input("image", (1, 3, 3, 2))
    weight, bias = np.zeros((4, 3, 3, 1), np.float32), np.zeros(4, np.float32)
    with pytest.raises(ExportError, match="expected 2 input channels"):
        g.conv2d("conv", image, weight, bias, (1, 1), relu=True)
    with pytest.raises(ExportError, match=r"expected \(M, 3\), got \(4, 2\)"):
        g.fully_connected("linear", x, np.zeros((4, 2), np.float32), bias)
    for shape in ((1, 3, 3, 3), (2, 3, 3, 2)):
        with pytest.raises(ExportError, match=r"expected \(1, KT, KF, 2\), got"):
            g.depthwise_conv2d("depthwise", image, np.zeros(shape, np.float32), bias)
    a, b = g.input("a", (2, 3, 4)), g.input("b", (2, 4, 5))
    for other, transposed in ((a, False), (b, True)):
        with pytest.raises(ExportError, match=r"\(2, 3, 4\) and .* cannot be multiplied"):
            g.batch_matmul("product", a, other, transposed=transposed)
    with pytest.raises(ExportError, match="cannot be multiplied"):
        g.batch_matmul("product", a, g.input("one", (1, 4, 5)))


def test_windows_larger_than_the_input_are_refused() -> None:
    g = GraphBuilder("g")
    image, bias = g.input("image", (1, 3, 4, 2)), np.zeros(2, np.float32)
    for size in ((4, 1), (1, 5)):
        with pytest.raises(ExportError, match="pool: expected positive dimensions"):
            g.max_pool("pool", image, size, (1, 1))
    weight = np.zeros((1, 2, 3, 2), np.float32)
    for name, dilation in {"time": (3, 1), "freq": (1, 2)}.items():
        with pytest.raises(ExportError, match=f"{name}: expected positive dimensions"):
            g.depthwise_conv2d(name, image, weight, bias, dilation=dilation)


def test_shapes_of_what_is_computed() -> None:
    g = GraphBuilder("g")
    image = g.input("image", (1, 9, 8, 2))
    bias = np.zeros(2, np.float32)
    weight = np.zeros((1, 3, 2, 2), np.float32)
    plain = g.depthwise_conv2d("plain", image, weight, bias, stride=(2, 3))
    apart = g.depthwise_conv2d("apart", image, weight, bias, dilation=(4, 7))
    pooled = g.max_pool("pooled", image, (2, 3), (3, 2))
    assert [g.shape(name) for name in (plain, apart, pooled)] == [
        (1, 4, 3, 2),
        (1, 1, 1, 2),
        (1, 3, 3, 2),
    ]
    assert g.shape(g.transpose("turned", image, (3, 0, 2, 1))) == (2, 1, 8, 9)
    assert g.shape(g.mean("mean", image)) == (1, 9, 8, 1)
    scale = g.constant("scale", np.ones((8, 1), np.float32))
    assert g.shape(g.binary("mul", "scaled", "mean", scale)) == (1, 9, 8, 1)
    assert g.shape(g.binary("minimum", "least", "mean", image)) == (1, 9, 8, 2)
    assert g.shape(g.unary("softmax", "shares", image)) == g.shape(image)
    g.graph.outputs = ["shares"]
    values = run_float(g.graph, {"image": np.ones((1, 9, 8, 2), np.float32)})
    assert {name: values[name].shape for name in g.graph.tensors} == {
        name: tensor.shape for name, tensor in g.graph.tensors.items()
    }


def test_interpreter_refuses_wrong_inputs() -> None:
    spec = SPECS["default"]
    encoder, imputer = build_graphs(*modules(spec), spec)
    feeds = zero_feeds(imputer)
    with pytest.raises(ExportError, match="expected the inputs"):
        run_float(imputer, {"alignment": feeds["alignment"]})
    with pytest.raises(ExportError, match="expected encoder_window to be float32"):
        run_float(imputer, {**feeds, "encoder_window": feeds["encoder_window"][:-1]})
    outside = np.full_like(feeds["alignment"], spec.tokens.mask_id + 1)
    with pytest.raises(ExportError, match="expected token ids in"):
        run_float(imputer, {**feeds, "alignment": outside})
    with pytest.raises(ExportError, match="expected a quantised graph"):
        run_int(encoder, zero_feeds(encoder))
