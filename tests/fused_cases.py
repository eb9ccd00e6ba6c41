"""Drives a fused graph chunk by chunk, in every runtime, and the pipeline beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edge_imputer.backends.stepper import Model, Stepper
from edge_imputer.export.build import build_graphs
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.parity import load_runtime
from edge_imputer.export.reference import Interpreter, zero_feeds
from edge_imputer.export.simulate import calibrate_and_quantise, graph_record, reference_backend
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.specs import ModelSpec

from .graphs import modules

RUNTIMES = ("reference", "onnxruntime", "litert", "litert-reference", "micro")


class Called:
    """A function of named inputs as a loaded model."""

    def __init__(self, graph: Graph, run: Callable[[dict[str, Array]], list[Array]]) -> None:
        self.graph, self._run = graph, run

    def run(self, inputs: list[Array]) -> list[Array]:
        return self._run(dict(zip(self.graph.inputs, inputs, strict=True)))


def load(graph: Graph, runtime: str, folder: Path, micro: str) -> Model:
    """A graph in one of `RUNTIMES`."""
    if runtime == "reference":
        interpreter = Interpreter(graph)

        def run(inputs: dict[str, Array]) -> list[Array]:
            values = interpreter.run(inputs)
            return [values[name] for name in graph.outputs]

        return Called(graph, run)  # type: ignore[return-value]
    return load_runtime(graph, micro if runtime == "micro" else runtime, folder)


def decode_fused(
    graph: Graph, model: Model, spec: ModelSpec, waveform: Array
) -> tuple[Array, Array]:
    """Tokens and log-probabilities of an utterance, primed so that frames are the pipeline's."""
    states = list(zero_feeds(graph).values())[1:]
    lead = spec.features.frame_length - spec.features.hop_length
    padded = np.zeros(spec.padded_samples(len(waveform)), waveform.dtype)
    padded[: len(waveform)] = waveform
    if lead:
        states[0][-lead:] = padded[:lead]
    chunks = []
    for chunk in padded[lead:].reshape(-1, spec.chunk_samples):
        tokens, log_probs, *states = model.run([chunk, *states])
        chunks.append((tokens, log_probs))
    tokens, log_probs = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return tokens, log_probs


class Described:
    """What decoding asks of a model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec


def decode_pipeline(
    graphs: tuple[Graph, Graph],
    models: tuple[Model, Model],
    spec: ModelSpec,
    waveform: Array,
    schedule: tuple[int, ...],
    revisions: int | None = None,
) -> tuple[Array, Array]:
    """The same by the Python pipeline, over the encoder and the head in one of `RUNTIMES`."""
    records = graph_record(graphs[0]), graph_record(graphs[1])
    backend = Stepper("separate", spec, records, models, quantised=True)
    decoder = StreamingDecoder(
        Described(spec), backend=backend, schedule=schedule, revisions=revisions
    )
    chunks = decoder.push(waveform, sample_rate=spec.features.sample_rate) + decoder.flush()
    tokens = np.concatenate([chunk.alignment for chunk in chunks])
    rows = np.concatenate([chunk.log_probs for chunk in chunks])
    return tokens, rows[np.arange(len(tokens)), tokens]


def pcm16(waveform: Array) -> Array:
    """Float samples in -1..1 as int16."""
    return np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)


def talkative(spec: ModelSpec, audio: list[Array]) -> tuple[Graph, Graph]:
    """The integers of a model with random weights that writes all of its tokens.

    Weights are large, and the output's bias takes out what every frame has in common.
    """
    encoder, head = modules(spec)
    with torch.no_grad():
        for name, weight in (*encoder.named_parameters(), *head.named_parameters()):
            if weight.dim() > 1 and "norm" not in name:
                weight.mul_(2)
    floats = build_graphs(encoder, head, spec)
    decoder = StreamingDecoder(Described(spec), backend=reference_backend(*floats, spec))
    rows = [chunk.log_probs for waveform in audio for chunk in decoder.decode(waveform)]
    with torch.no_grad():
        head.output.bias.sub_(torch.from_numpy(np.concatenate(rows).mean(0)))
    return calibrate_and_quantise(*build_graphs(encoder, head, spec), spec, audio)
