"""Models whose forward pass is their exported graph: in place of the float ones in a task."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.errors import ExportError
from edge_imputer.specs import ModelSpec, WindowedSpec
from edge_imputer.train.encoders import Encoder
from edge_imputer.train.encoders.windowed import WindowedEncoder
from edge_imputer.train.imputer import ImputerHead
from edge_imputer.train.keyword_model import KeywordModel

from ..build import build_graphs, build_keyword_graph
from ..graph import Graph
from ..lowering import untraced
from ..ranges import Ranges, quantise_by
from .executor import QuantisedGraph


def quantised_graphs(
    traced: tuple[Graph, ...], ranges: Ranges, device: torch.device
) -> list[QuantisedGraph]:
    """What runs a model's graphs with the integers that its export has, given these ranges."""
    floats, constants = zip(*(untraced(graph) for graph in traced), strict=True)
    return [
        QuantisedGraph(graph, held, device)
        for graph, held in zip(quantise_by(floats, ranges), constants, strict=True)
    ]


def run_stream(graph: QuantisedGraph, features: Tensor, lengths: Tensor) -> Tensor:
    """First output of a streaming graph over whole utterances, as real numbers.

    Parameters
    ----------
    graph : QuantisedGraph
    features : (B, T, n_mels)
    lengths : (B,)
        Feature frames; what stands after them is silence to the graph.

    Returns
    -------
    Tensor (B, T', d), for T feature frames and those that make the last step whole
    """
    source, output = graph.graph.inputs[0], graph.graph.outputs[0]
    _, step, n_mels, _ = graph.graph.tensors[source].shape
    batch, n_frames, _ = features.shape
    n_steps = -(-n_frames // step)
    beyond = torch.arange(n_frames, device=features.device) >= lengths[:, None]
    features = features.masked_fill(beyond[:, :, None], 0)
    features = F.pad(features, (0, 0, 0, n_steps * step - n_frames))
    chunks = features.view(batch, n_steps, 1, step, n_mels, 1).transpose(0, 1).flatten(0, 1)
    steps = graph.run({source: graph.steps(source, chunks)}, n_steps)[output]
    frames = graph.real(output, steps)
    frames = frames.reshape(n_steps, batch, *frames.shape[1:])  # (steps, B, T', d)
    return frames.transpose(0, 1).flatten(1, 2)


class QuantisedSpeech:
    """Both graphs of a model that writes down speech, as of its present weights.

    Parameters
    ----------
    encoder : Encoder
    head : ImputerHead
    spec : ModelSpec
    ranges : Ranges
    """

    def __init__(
        self, encoder: Encoder, head: ImputerHead, spec: ModelSpec, ranges: Ranges
    ) -> None:
        self._modules, self._ranges = (encoder, head), ranges
        self._spec = spec
        self._graphs: list[QuantisedGraph] = []

    def encode(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Encoder frames (B, T', d); the weights of now are those of the head's passes, too."""
        graphs = build_graphs(*self._modules, self._spec, traced=True)
        self._graphs = quantised_graphs(graphs, self._ranges, features.device)
        return run_stream(self._graphs[0], features, lengths)

    def head_step(self, encoder_window: Tensor, alignment_window: Tensor) -> Tensor:
        """One pass of the head: as `ImputerHead.step`."""
        if not self._graphs:
            raise ExportError("expected the encoder to run before its head, which reads its frames")
        graph = self._graphs[1]
        frames, ids = graph.graph.inputs
        feeds = {frames: graph.steps(frames, encoder_window), ids: alignment_window}
        return graph.real(graph.graph.outputs[0], graph.run(feeds)[graph.graph.outputs[0]])


class QuantisedEncoder(nn.Module):
    """An encoder's graph over whole utterances; it has no weights of its own."""

    def __init__(self, model: QuantisedSpeech, subsampling: int) -> None:
        super().__init__()
        self._model, self._subsampling = model, subsampling

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, n_mels) and (B,) -> (B, T', d) and (B,), as every `Encoder`."""
        with torch.autocast(x.device.type, enabled=False):
            out = self._model.encode(x.float(), lengths)
        return out[:, : x.shape[1] // self._subsampling], lengths // self._subsampling


class QuantisedHead(ImputerHead):
    """A head whose `step` is its graph; it has no weights of its own."""

    def __init__(self, model: QuantisedSpeech, head: ImputerHead) -> None:
        nn.Module.__init__(self)
        self._model = model
        self.spec, self.vocabulary_size = head.spec, head.vocabulary_size
        self.blank_id, self.mask_id = head.blank_id, head.mask_id

    def step(self, encoder_window: Tensor, alignment_window: Tensor) -> Tensor:
        """As `ImputerHead.step`."""
        with torch.autocast(encoder_window.device.type, enabled=False):
            return self._model.head_step(encoder_window.float(), alignment_window)


class _Windows(nn.Module):
    """A keyword model's graph over windows: (N, window_frames, n_mels) -> (N, n_classes)."""

    def __init__(self, model: KeywordModel, ranges: Ranges) -> None:
        super().__init__()
        self._model, self._ranges = (model,), ranges
        self._graph: QuantisedGraph | None = None

    def refresh(self, device: torch.device) -> None:
        """Take the weights of now."""
        graph = build_keyword_graph(*self._model, traced=True)
        (self._graph,) = quantised_graphs((graph,), self._ranges, device)

    def forward(self, windows: Tensor) -> Tensor:
        assert self._graph is not None  # `refresh` goes before every batch
        lengths = torch.full(windows.shape[:1], windows.shape[1], device=windows.device)
        return run_stream(self._graph, windows, lengths)[:, 0]


class QuantisedKeywords(nn.Module):
    """A keyword model's graph over whole utterances, in place of a `KeywordModel`.

    Attributes
    ----------
    classifier : Identity
        What it encodes are logits already.
    """

    def __init__(self, model: KeywordModel, ranges: Ranges) -> None:
        super().__init__()
        self.spec = model.spec
        self.classifier = nn.Identity()
        self._model, self._ranges = (model,), ranges  # a tuple: their weights are not this one's
        self._windows: WindowedEncoder | None = None
        if isinstance(model.spec.encoder, WindowedSpec):
            network = _Windows(model, ranges)
            self._windows = WindowedEncoder(model.spec.encoder, model.spec.features, network)

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T', C) and their numbers (B,) of features (B, T, n_mels) of `lengths` (B,)."""
        with torch.autocast(features.device.type, enabled=False):
            return self._encode(features.float(), lengths)

    def _encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self._windows is not None:
            cast(_Windows, self._windows.network).refresh(features.device)
            return self._windows.forward(features, lengths)
        graph = build_keyword_graph(*self._model, traced=True)
        (executor,) = quantised_graphs((graph,), self._ranges, features.device)
        unit = self.spec.encoder.subsampling
        features = F.pad(features, (0, 0, 0, max(0, unit - features.shape[1])))
        logits = run_stream(executor, features, lengths)
        return logits[:, : max(1, -(-features.shape[1] // unit))], lengths // unit

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`."""
        return self.encode(x, lengths)
