"""Every encoder and head as a graph: in float what torch computes, in int8 what runtimes do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edge_imputer.errors import ExportError
from edge_imputer.export.build import (
    build_encoder_graph,
    build_imputer_graph,
    build_keyword_graph,
)
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.lowering import LOWERINGS, Lowering
from edge_imputer.export.onnx_emitter import write_onnx
from edge_imputer.export.parity import RUNTIMES, load_runtime, same_arrays
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import Interpreter, zero_feeds
from edge_imputer.export.tflite_emitter import write_tflite
from edge_imputer.quantization import dequantize, quantize
from edge_imputer.specs import (
    PRESETS,
    AttentionSpec,
    ConformerSpec,
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    ImputerSpec,
    KeywordModelSpec,
    TcnSpec,
    TokenSpec,
    WindowedCnnSpec,
    WindowedCrnnSpec,
    for_classes,
)
from edge_imputer.specs.windowed import WindowedSpec
from edge_imputer.train.encoders import Encoder, build_encoder
from edge_imputer.train.imputer import ImputerHead
from edge_imputer.train.keyword_model import KeywordModel
from edge_imputer.train.layers.norm import MaskedBatchNorm1d

FEATURES = FeatureSpec()
TOKENS = TokenSpec(characters=tuple(" abcde"))
SMALL_CONFORMER = ConformerSpec(
    d_model=16,
    n_layers=2,
    subsampling_channels=4,
    kernel=5,
    attention=AttentionSpec(heads=2, block=4, left_context=3, memory_blocks=3, summaries=1),
)


def attention(**changes: object) -> ConformerSpec:
    spec = msgspec.structs.replace(SMALL_CONFORMER.attention, **changes)
    return msgspec.structs.replace(SMALL_CONFORMER, attention=spec)


SMALL = {
    "crnn": CrnnSpec(conv=(ConvSpec(channels=3), ConvSpec(channels=5)), hidden=10, gru_layers=2),
    "tcn": TcnSpec(channels=8, stacks=((1, 2), (1, 4))),
    "tcn, last stack": TcnSpec(channels=8, stacks=((1, 2), (1, 4)), sum_stacks=False),
    "conformer": SMALL_CONFORMER,
    "conformer, layer norm": msgspec.structs.replace(SMALL_CONFORMER, norm="layer"),
    "conformer, local": attention(pattern="local", memory_blocks=None),
    "conformer, fixed": attention(pattern="fixed", left_context=0),
    "conformer, strided": attention(pattern="strided", left_context=0),
    "conformer, causal": attention(direction="causal"),
    "conformer, self-conditioned": msgspec.structs.replace(
        SMALL_CONFORMER, intermediate_ctc=(1,), self_conditioned=True, n_tokens=7
    ),
    "conformer, branches": msgspec.structs.replace(
        SMALL_CONFORMER, intermediate_ctc=(1,), n_tokens=7
    ),
    "crnn-windowed": WindowedCrnnSpec(channels=4, hidden=4, dense=8, window_frames=90),
    "cnn-windowed": WindowedCnnSpec(channels=(4, 6), linear=6, dense=8),
}
HEADS = {
    "conv": ImputerSpec(width=12, depth=2),
    "attention": ImputerSpec(mixer="attention", width=16, heads=2, depth=2),
    "none": ImputerSpec(mixer="none", schedule=(8,)),
}


def modules(spec: object, seed: int = 0) -> Encoder:
    """An encoder of random weights, those of the normalisation too, in evaluation mode."""
    torch.manual_seed(seed)
    encoder = build_encoder(spec, FEATURES).eval()
    for module in encoder.modules():
        if isinstance(module, MaskedBatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 1)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.2, 3)
        if isinstance(module, (nn.RMSNorm, nn.LayerNorm)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return encoder


def expected(encoder: Encoder, chunks: list[torch.Tensor]) -> list[Array]:
    """What torch makes of a stream of steps, or of windows one by one."""
    outs = []
    with torch.no_grad():
        if isinstance(encoder.spec, WindowedSpec):
            return [encoder.network(chunk).numpy() for chunk in chunks]
        state = encoder.initial_state()
        for chunk in chunks:
            out, state = encoder.step(chunk, state)
            outs.append(out[0].numpy())
    return outs


def features(graph: Graph, n: int, seed: int = 1) -> list[torch.Tensor]:
    _, n_frames, n_mels, _ = graph.tensors["features"].shape
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, n_frames, n_mels, generator=generator) for _ in range(n)]


def stream(graph: Graph, chunks: list[Array]) -> list[Array]:
    """The graph's outputs, its states handed on."""
    interpreter, feeds, outs = Interpreter(graph), zero_feeds(graph), []
    for chunk in chunks:
        values = interpreter.run({**feeds, "features": chunk})
        feeds.update({before: values[after] for before, after in graph.state_pairs})
        outs.append(values["encoder_out"])
    return outs


def check_float(spec: object, n: int) -> Graph:
    encoder = modules(spec)
    graph = build_encoder_graph(encoder)
    chunks = features(graph, n)
    for wanted, got in zip(
        expected(encoder, chunks),
        stream(graph, [chunk.numpy()[..., np.newaxis] for chunk in chunks]),
        strict=True,
    ):
        # Norms have an epsilon of 1e-5 in torch, and none in the graph.
        atol = (1e-4 if isinstance(spec, ConformerSpec) else 1e-5) * max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(got, wanted, atol=float(atol))
    return graph


@pytest.mark.parametrize("name", SMALL)
def test_a_graph_computes_what_torch_does(name: str) -> None:
    """Step by step, over more steps than the attention remembers."""
    check_float(SMALL[name], 8)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_graph(name: str) -> None:
    check_float(PRESETS[name], 2)


@cache
def head(name: str) -> tuple[ImputerHead, Graph]:
    torch.manual_seed(2)
    module = ImputerHead(10, HEADS[name], TOKENS).eval()
    return module, build_imputer_graph(module, 10)


def windows(name: str, n: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(3)
    window = HEADS[name].window
    return [
        {
            "encoder_window": rng.standard_normal((window, 10)).astype(np.float32),
            "alignment": rng.integers(0, TOKENS.mask_id + 1, window).astype(np.int32),
        }
        for _ in range(n)
    ]


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_a_graph(name: str) -> None:
    module, graph = head(name)
    interpreter = Interpreter(graph)
    for feeds in windows(name, 4):
        frames, ids = (torch.from_numpy(feeds[key])[None] for key in graph.inputs)
        with torch.no_grad():
            wanted = module.step(frames, ids.long())[0].numpy()
        np.testing.assert_allclose(interpreter.run(feeds)["logits"], wanted, atol=1e-5)


# ------------------------------------------------------------------------------ integers


@cache
def quantised(name: str) -> tuple[Graph, Graph, tuple[dict[str, Array], ...]]:
    """Float and int8 graph of a small encoder, and feeds of a stream in integers."""
    graph = build_encoder_graph(modules(SMALL[name]))
    chunks = [c.numpy()[..., np.newaxis] for c in features(graph, 40, seed=5)]
    calibration = Calibration(graph)
    calibration.run_sequence(chunks)
    integers = quantise(graph, calibration.ranges)
    quant = integers.tensors["features"].quant
    assert quant is not None
    interpreter, feeds, all_feeds = Interpreter(integers), zero_feeds(integers), []
    for chunk in chunks[:12]:
        feeds = {**feeds, "features": quantize(chunk, quant)}
        all_feeds.append(feeds)
        values = interpreter.run(feeds)
        feeds = feeds | {before: values[after] for before, after in integers.state_pairs}
    return graph, integers, tuple(all_feeds)


@pytest.mark.parametrize("name", SMALL)
def test_integers_follow_the_float_graph(name: str) -> None:
    graph, integers, feeds = quantised(name)
    quants = [integers.tensors[key].quant for key in ("features", "encoder_out")]
    assert all(quants)
    chunks = [dequantize(one["features"], quants[0]) for one in feeds]  # type: ignore[arg-type]
    wanted = np.stack(stream(graph, chunks))
    interpreter = Interpreter(integers)
    got = np.stack([interpreter.run(one)["encoder_out"] for one in feeds])
    error = dequantize(got, quants[1]) - wanted  # type: ignore[arg-type]
    assert 10 * np.log10(np.square(wanted).mean() / np.square(error).mean()) > 18  # decibels


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", SMALL)
def test_runtimes_compute_the_integers(name: str, runtime: str, tmp_path: Path) -> None:
    """Over a whole graph a step of difference in one layer becomes a few, in some elements."""
    _, graph, feeds = quantised(name)
    model = load_runtime(graph, runtime, tmp_path)
    interpreter, differences = Interpreter(graph), []
    for inputs in feeds:
        values = interpreter.run(inputs)
        results = model.run([inputs[key] for key in graph.inputs])
        for key, result in zip(graph.outputs, results, strict=True):
            assert result.dtype == np.int8
            assert result.shape == values[key].shape
            differences.append(np.abs(result.astype(int) - values[key]).ravel())
    steps = np.concatenate(differences)
    # TFLite's reference kernels round twice, in every layer; a window's frames are layers too.
    attends, twice = "conformer" in name, runtime == "litert-reference"
    deep = attends or name == "crnn-windowed"
    assert steps.max() <= (12 if attends else 4)
    assert (steps > 1).mean() < (0.2 if deep and twice else 0.05 if twice else 0.02)


@pytest.mark.parametrize("name", SMALL)
def test_files_hold_the_same_arrays(name: str, tmp_path: Path) -> None:
    _, graph, _ = quantised(name)
    write_onnx(graph, tmp_path / "x.onnx")
    write_tflite(graph, tmp_path / "x.tflite")
    same_arrays(graph, tmp_path / "x.onnx", tmp_path / "x.tflite")


def test_a_stream_begins_without_keys() -> None:
    """What is remembered of a stream that has just begun is not seen: one step knows its own."""
    graph = build_encoder_graph(modules(SMALL_CONFORMER))
    feeds = zero_feeds(graph)
    names = [name for name in feeds if name.startswith("block1.attention.kv.")]
    assert len(names) == 2
    first = features(graph, 1)[0].numpy()[..., np.newaxis]
    values = Interpreter(graph).run({**feeds, "features": first})
    noise = {name: np.full_like(feeds[name], 50.0) for name in names}
    again = Interpreter(graph).run({**feeds, **noise, "features": first})
    np.testing.assert_array_equal(values["encoder_out"], again["encoder_out"])


# ------------------------------------------------------------------------------ refusals


def test_a_module_without_an_entry_names_itself() -> None:
    low = Lowering("encoder")
    with pytest.raises(ExportError, match=r"got Bilinear; there are lowerings for .*TcnBlock"):
        low(nn.Bilinear(2, 2, 2), "layer", low.g.input("x", (1, 2)))
    assert nn.Linear in LOWERINGS


def test_heads_that_may_see_nothing_are_refused() -> None:
    split = attention(head_mode="split")
    with pytest.raises(ExportError, match="head_mode merged"):
        build_encoder_graph(modules(split))


def test_a_state_without_a_successor_is_refused() -> None:
    low = Lowering("encoder")
    low.state("lost.state", (1, 2))
    with pytest.raises(ExportError, match=r"nothing is kept in the states \['lost.state'\]"):
        low.finish(["lost.state"])


KEYWORDS = ("yes", "no", "go")


@pytest.mark.parametrize(
    "name", sorted(name for name, spec in SMALL.items() if not getattr(spec, "n_tokens", None))
)
def test_keyword_model_graph_equals_torch(name: str) -> None:
    encoder = for_classes(SMALL[name], len(KEYWORDS) + 1)
    model = KeywordModel(KeywordModelSpec(features=FEATURES, encoder=encoder, keywords=KEYWORDS))
    model.eval()
    graph = build_keyword_graph(model)
    interpreter, feeds, state = Interpreter(graph), zero_feeds(graph), model.initial_state()
    n_frames = graph.tensors[graph.inputs[0]].shape[1]
    steps = 1 if model.spec.windowed else 4
    for x in torch.randn(steps, 1, n_frames, FEATURES.n_mels):
        with torch.no_grad():
            if model.spec.windowed:
                expected, _ = model(x, torch.tensor([n_frames]))
            else:
                expected, state = model.step(x, state)
        values = interpreter.run({**feeds, graph.inputs[0]: x.numpy()[..., np.newaxis]})
        np.testing.assert_allclose(values[graph.outputs[0]], expected[0].numpy(), atol=1e-4)
        feeds.update({before: values[after] for before, after in graph.state_pairs})
