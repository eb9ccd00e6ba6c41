"""The Imputer whose alignment goes in before the whole encoder, as two graphs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_imputer.errors import SpecError
from edge_imputer.export.build import build_stack_graphs
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.parity import load_runtime
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import Interpreter, zero_feeds
from edge_imputer.specs import ImputerSpec
from edge_imputer.train.imputer_stack import ImputerStack

from .graphs import feed
from .test_lowering import FEATURES, SMALL_CONFORMER, TOKENS, attention

HEAD = ImputerSpec(mixer="encoder", block_size=4, schedule=(2, 2))
N_CHUNKS, N_PASSES = 6, 2


@cache
def stack() -> tuple[ImputerStack, Graph, Graph]:
    torch.manual_seed(4)
    model = ImputerStack(SMALL_CONFORMER, HEAD, FEATURES, TOKENS).eval()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.RMSNorm)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model, *build_stack_graphs(model)


def alignments() -> Array:
    """Of every chunk and pass; what the passes commit does not matter here."""
    ids = np.random.default_rng(0).integers(0, TOKENS.mask_id + 1, (N_CHUNKS, N_PASSES, 4))
    return ids.astype(np.int32)


class Step:
    """A graph in a stream, its states handed on."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.feeds = graph, zero_feeds(graph)
        self.interpreter = Interpreter(graph)

    def __call__(self, **inputs: Array) -> Array:
        values = self.interpreter.run({**self.feeds, **inputs})
        self.feeds |= {before: values[after] for before, after in self.graph.state_pairs}
        return values[self.graph.outputs[0]]


def chunks() -> torch.Tensor:
    n = SMALL_CONFORMER.step_features
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N_CHUNKS, 1, n, FEATURES.n_mels, generator=generator)


@torch.no_grad()
def test_a_stack_in_a_stream_computes_what_torch_does() -> None:
    """The stem once a chunk, the blocks once a pass, with that pass's own state."""
    model, encoder, imputer = stack()
    stem, passes = Step(encoder), [Step(imputer) for _ in range(N_PASSES)]
    kept = model.encoder.stem.initial_state(1)
    states = [model.initial_state() for _ in range(N_PASSES)]
    for chunk, ids in zip(chunks(), alignments(), strict=True):
        expected, kept = model.encoder.stem.step(chunk, kept)
        frames = stem(features=chunk.numpy()[..., np.newaxis])
        np.testing.assert_allclose(frames, expected[0].numpy(), atol=1e-5)
        for k, alignment in enumerate(ids):
            wanted, states[k] = model.step(
                expected, torch.from_numpy(alignment)[None].long(), states[k]
            )
            logits = passes[k](encoder_window=frames, alignment=alignment)
            size = max(1.0, float(wanted.abs().max()))  # norms have an epsilon in torch
            np.testing.assert_allclose(logits, wanted[0].numpy(), atol=1e-4 * size)


def test_the_alignment_reaches_the_logits() -> None:
    _, _, imputer = stack()
    frames = np.random.default_rng(0).standard_normal((4, SMALL_CONFORMER.d_model)).astype("f4")
    first, second = (
        Step(imputer)(encoder_window=frames, alignment=np.full(4, token, np.int32))
        for token in (TOKENS.mask_id, 1)
    )
    assert np.abs(first - second).max() > 0.01


@cache
def integers() -> Graph:
    _, encoder, imputer = stack()
    stem, calibration = Step(encoder), Calibration(imputer)
    feeds = zero_feeds(imputer)
    for chunk, ids in zip(chunks(), alignments(), strict=True):
        frames = stem(features=chunk.numpy()[..., np.newaxis])
        values = calibration.run({**feeds, "encoder_window": frames, "alignment": ids[0]})
        feeds |= {before: values[after] for before, after in imputer.state_pairs}
    return quantise(imputer, calibration.ranges)


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_a_pass_in_integers_runs_everywhere(runtime: str, tmp_path: Path) -> None:
    graph = integers()
    model = load_runtime(graph, runtime, tmp_path)
    inputs = feed(graph, np.random.default_rng(2))
    inputs["alignment"] %= TOKENS.mask_id + 1
    expected = Interpreter(graph).run(inputs)
    results = model.run([inputs[name] for name in graph.inputs])
    for name, result in zip(graph.outputs, results, strict=True):
        assert np.abs(result.astype(int) - expected[name]).max() <= 12


def test_a_stack_that_cannot_stream_is_refused() -> None:
    encoder = attention(direction="bidirectional", memory_blocks=None)
    with pytest.raises(SpecError, match="direction chunk or causal"):
        build_stack_graphs(ImputerStack(encoder, HEAD, FEATURES, TOKENS).eval())
