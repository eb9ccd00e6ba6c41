"""A quantised graph in torch: the reference's integers exactly, and the float graph's gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import ExportError
from edge_imputer.export.build import build_encoder_graph, build_imputer_graph
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.lowering import untraced
from edge_imputer.export.qat.executor import QuantisedGraph
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import Interpreter, zero_feeds
from edge_imputer.train.imputer import ImputerHead

from .chains import STEPS, int_chain
from .graphs import FLOAT_LAYERS, LAYERS, Rng, feed, float_layer, raw_int_layer
from .test_lowering import HEADS, SMALL, features, head, modules, windows


def centred(graph: Graph, name: str, values: Array) -> Array:
    """Integers as the executor has them: int8 as steps from the zero point, ids as they are."""
    quant = graph.tensors[name].quant
    return values.astype(np.int64) - (0 if quant is None else quant.zero_point)


def batched(graph: Graph, calls: list[dict[str, Array]]) -> dict[str, torch.Tensor]:
    """Inputs of several calls as one batch of the executor's."""
    found = {}
    for name in calls[0]:
        rows = np.stack([centred(graph, name, call[name]) for call in calls])
        is_ids = graph.tensors[name].dtype == "int32"
        found[name] = torch.from_numpy(rows if is_ids else rows.astype(np.float32))
    return found


def assert_same(
    graph: Graph, got: Mapping[str, torch.Tensor], calls: list[dict[str, Array]]
) -> None:
    """Every activation of a batch is what the reference makes of every call."""
    interpreter = Interpreter(graph)
    wanted = [interpreter.run(call) for call in calls]
    for op in graph.ops:
        rows = np.stack([centred(graph, op.output, values[op.output]) for values in wanted])
        ours = got[op.output].detach().expand(rows.shape).numpy()
        np.testing.assert_array_equal(ours, rows, err_msg=f"{op.kind} {op.output}")


@pytest.mark.parametrize("kind", FLOAT_LAYERS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_every_operation_gives_the_references_integers(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = raw_int_layer(kind, rng)
    calls = [feed(graph, rng) for _ in range(3)]
    assert_same(graph, QuantisedGraph(graph, {}).run(batched(graph, calls)), calls)


INT8_STEPS = [kind for kind in STEPS if kind != "requantise"]


@given(
    kinds=st.lists(st.sampled_from(INT8_STEPS), min_size=2, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_chains_of_operations_give_the_references_integers(kinds: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    try:
        graph = int_chain(kinds, rng)
    except ExportError:  # an activation that is always zero
        return
    calls = [feed(graph, rng) for _ in range(3)]
    assert_same(graph, QuantisedGraph(graph, {}).run(batched(graph, calls)), calls)


@pytest.mark.parametrize("kind", sorted(set(LAYERS) - set(FLOAT_LAYERS) - {"requantise"}))
def test_int16_is_not_trained_with(kind: str) -> None:
    graph = raw_int_layer(kind, np.random.default_rng(0))
    with pytest.raises(ExportError, match="all int8 to train with, got int16 in"):
        QuantisedGraph(graph, {})


def int_encoder(name: str) -> tuple[Graph, dict[str, torch.Tensor], torch.nn.Module]:
    """A small encoder's int8 graph, its constants as functions of the weights, and the module."""
    module = modules(SMALL[name])
    graph, constants = untraced(build_encoder_graph(module, traced=True))
    calibration = Calibration(graph)
    calibration.run_sequence([c.numpy()[..., np.newaxis] for c in features(graph, 20, seed=5)])
    return quantise(graph, calibration.ranges), constants, module


def int_features(graph: Graph, rng: Rng, n: int) -> list[Array]:
    """Features that fill the range, and now and then pass it."""
    shape = graph.tensors["features"].shape
    return [rng.integers(-128, 128, shape).astype(np.int8) for _ in range(n)]


@pytest.mark.parametrize("name", SMALL)
def test_streams_of_every_encoder_give_the_references_integers(name: str) -> None:
    """Three utterances at once, over more steps than the attention remembers."""
    graph, constants, _ = int_encoder(name)
    n_steps, rng = 1 if not graph.n_states else 9, np.random.default_rng(7)
    streams = [int_features(graph, rng, n_steps) for _ in range(3)]
    calls = [{"features": stream[k]} for k in range(n_steps) for stream in streams]
    executor = QuantisedGraph(graph, constants)
    got = executor.run(batched(graph, calls), n_steps)["encoder_out"].detach()
    interpreter = Interpreter(graph)
    for row, stream in enumerate(streams):
        feeds = zero_feeds(graph)
        for k, chunk in enumerate(stream):
            values = interpreter.run({**feeds, "features": chunk})
            wanted = centred(graph, "encoder_out", values["encoder_out"])
            np.testing.assert_array_equal(got[k * len(streams) + row].numpy(), wanted, f"step {k}")
            feeds.update({before: values[after] for before, after in graph.state_pairs})


def int_head(name: str) -> tuple[Graph, dict[str, torch.Tensor], ImputerHead]:
    """A head's int8 graph, its constants as functions of the weights, and the module."""
    module, _ = head(name)
    graph, constants = untraced(build_imputer_graph(module, 10, traced=True))
    calibration = Calibration(graph)
    for one in windows(name, 20):
        calibration.run(one)
    return quantise(graph, calibration.ranges), constants, module


@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_the_references_integers(name: str) -> None:
    integers, constants, _ = int_head(name)
    rng = np.random.default_rng(8)
    calls = [
        {
            "encoder_window": rng.integers(-128, 128, one["encoder_window"].shape).astype(np.int8),
            "alignment": one["alignment"],
        }
        for one in windows(name, 4)
    ]
    assert_same(integers, QuantisedGraph(integers, constants).run(batched(integers, calls)), calls)


def test_sums_past_float32_are_exact() -> None:
    """Weights and inputs so large that float32 would lose the accumulators' last digits."""
    rng = np.random.default_rng(9)
    g = GraphBuilder("wide")
    g.input("x", (4, 1200))
    weight = rng.uniform(0.9, 1, (3, 1200)).astype(np.float32)
    g.graph.outputs = [
        g.fully_connected("y", "x", weight, rng.standard_normal(3).astype(np.float32))
    ]
    graph = quantise(g.graph, {"x": (0.0, 1.0), "y": (0.0, 1200.0)})
    calls = [{"x": rng.integers(100, 128, (4, 1200)).astype(np.int8)}]
    assert_same(graph, QuantisedGraph(graph, {}).run(batched(graph, calls)), calls)


# ------------------------------------------------------------------------------ gradients

SMOOTH = (
    "conv2d depthwise_conv2d fully_connected batch_matmul add sub mul mean sigmoid tanh softmax "
    "l2_norm"
).split()


def slopes(graph: Graph, feeds: dict[str, Array], of: str, weights: Array) -> Array:
    """Central differences of the weighted output of a float graph of one operation."""
    values = feeds[of] if of in feeds else graph.tensors[of].data
    assert values is not None
    found = np.zeros(values.shape)
    for place in np.ndindex(values.shape):
        ends = []
        for step in (1e-2, -1e-2):
            moved = values.copy()
            moved[place] += step
            tensors = {
                n: replace(t, data=moved) if n == of else t for n, t in graph.tensors.items()
            }
            changed = replace(graph, tensors=tensors) if of not in feeds else graph
            given = {n: moved if n == of else x for n, x in feeds.items()}
            y = Interpreter(changed).run(given)[graph.outputs[0]]
            ends.append(float((y.astype(np.float64) * weights).sum()))
        found[place] = (ends[0] - ends[1]) / 2e-2
    return found


@pytest.mark.parametrize("kind", SMOOTH)
def test_gradients_are_those_of_the_real_operation(kind: str) -> None:
    rng = np.random.default_rng(3)
    graph = float_layer(kind, rng)
    calibration = Calibration(graph)
    calls = [feed(graph, rng) for _ in range(4)]
    for one in calls:
        calibration.run(one)
    integers, output = quantise(graph, calibration.ranges), graph.outputs[0]
    constants = {
        name: torch.tensor(t.data, requires_grad=True)
        for name, t in graph.tensors.items()
        if t.data is not None
    }
    executor = QuantisedGraph(integers, constants)
    reals = {
        name: torch.tensor(x[None], requires_grad=x.dtype == np.float32)
        for name, x in calls[0].items()
    }
    steps = {
        n: executor.steps(n, x) if x.is_floating_point() else x.long() for n, x in reals.items()
    }
    out = executor.run(steps)[output]
    quant = integers.tensors[output].quant
    assert quant is not None
    weights = rng.standard_normal(out[0].shape).astype(np.float32)
    weights[np.abs(out[0].detach().numpy() + quant.zero_point + 0.5) == 127.5] = 0  # may be clipped
    (executor.real(output, out)[0] * torch.from_numpy(weights)).sum().backward()
    for name, leaf in {**constants, **reals}.items():
        if not leaf.requires_grad:
            continue
        wanted = slopes(graph, calls[0], name, weights)
        assert leaf.grad is not None
        error = leaf.grad.numpy().reshape(wanted.shape) - wanted
        assert np.linalg.norm(error) < 0.05 * np.linalg.norm(wanted), name


def test_there_is_no_gradient_where_the_output_is_cut() -> None:
    g = GraphBuilder("cut")
    g.input("x", (1, 3))
    g.graph.outputs = [g.binary("add", "y", "x", "x")]
    executor = QuantisedGraph(quantise(g.graph, {"x": (-4.0, 4.0), "y": (-2.0, 2.0)}), {})
    x = torch.tensor([[[0.5, 3.0, 9.0]]], requires_grad=True)
    out = executor.real("y", executor.run({"x": executor.steps("x", x)})["y"])
    out.sum().backward()
    np.testing.assert_allclose(out.detach()[0, 0], [1.0, 2.0, 2.0], atol=0.03)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad[0, 0], [2.0, 0.0, 0.0], atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"crnn-windowed", "cnn-windowed"}))
def test_every_weight_learns_what_it_would_in_float(name: str) -> None:
    """Over a whole stream, through its states."""
    graph, constants, module = int_encoder(name)
    chunks = features(graph, 6, seed=5)
    executor = QuantisedGraph(graph, constants)
    x = executor.steps("features", torch.cat(chunks)[:, None, :, :, None])
    out = executor.real("encoder_out", executor.run({"features": x}, len(chunks))["encoder_out"])
    wanted, _ = module(torch.cat(chunks, 1), torch.tensor([sum(c.shape[1] for c in chunks)]))
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    leaves = {n: p for n, p in module.named_parameters() if not n.startswith("ctc")}
    assert_same_gradients(
        leaves, (out.reshape(wanted.shape) * weights).sum(), (wanted * weights).sum()
    )


def assert_same_gradients(
    leaves: Mapping[str, torch.Tensor], ours: torch.Tensor, theirs: torch.Tensor
) -> None:
    """Gradients of two scalars that are finite, nowhere zero by mistake, and of one direction."""
    pair = [torch.autograd.grad(loss, list(leaves.values())) for loss in (ours, theirs)]
    for name, mine, other in zip(leaves, *pair, strict=True):
        assert torch.isfinite(mine).all(), name
        assert mine.abs().sum() > 0 or not other.abs().sum() > 1e-3, name
    mine, other = (torch.cat([g.flatten() for g in side]) for side in pair)
    assert torch.cosine_similarity(mine, other, 0) > 0.95


@pytest.mark.parametrize("name", HEADS)
def test_every_weight_of_a_head_learns_what_it_would_in_float(name: str) -> None:
    graph, constants, module = int_head(name)
    calls = windows(name, 6)
    executor = QuantisedGraph(graph, constants)
    frames = torch.from_numpy(np.stack([call["encoder_window"] for call in calls]))
    ids = torch.from_numpy(np.stack([call["alignment"] for call in calls])).long()
    steps = {"encoder_window": executor.steps("encoder_window", frames), "alignment": ids}
    out = executor.real("logits", executor.run(steps)["logits"])
    wanted = module.step(frames, ids)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    leaves = dict(module.named_parameters())
    assert_same_gradients(leaves, (out * weights).sum(), (wanted * weights).sum())
