"""What the trainer is given to train with the exported integers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from edge_imputer.frontend import Float32
from edge_imputer.frontends import frontend_of
from edge_imputer.specs import KeywordModelSpec, WindowedSpec
from edge_imputer.train.keyword_model import KeywordModel
from edge_imputer.train.tasks import KeywordTask, Task, build_task
from edge_imputer.train.tasks.speech import SpeechTask

from ..build import build_graphs, build_keyword_graph
from ..calibration import Calibration, Method
from ..graph import Graph
from ..ranges import Ranges
from ..simulate import calibrate
from .models import QuantisedEncoder, QuantisedHead, QuantisedKeywords, QuantisedSpeech


class ExportQuantiser:
    """`edge_imputer.train.quantisation.Quantiser`, by the graphs that are exported."""

    def ranges(self, task: Task, waveforms: Iterable[Float32], method: Method) -> Ranges:
        """As `Quantiser.ranges`."""
        if isinstance(task, KeywordTask):
            return keyword_ranges(task.model, waveforms, method)
        assert isinstance(task, SpeechTask)  # there are no others
        graphs = build_graphs(task.encoder, task.head, task.spec)
        return calibrate(*graphs, task.spec, waveforms, method)

    def quantised(self, task: Task, ranges: Ranges) -> Task:
        """As `Quantiser.quantised`."""
        twin = build_task(task.spec, task.settings)
        parts = dict([*task.named_children(), *task.named_buffers(recurse=False)])
        if isinstance(task, KeywordTask):
            parts["model"] = QuantisedKeywords(task.model, ranges)
        else:
            assert isinstance(task, SpeechTask)  # there are no others
            model = QuantisedSpeech(task.encoder, task.head, task.spec, ranges)
            parts["encoder"] = QuantisedEncoder(model, task.encoder.subsampling)
            parts["head"] = QuantisedHead(model, task.head)
        for name, part in parts.items():
            setattr(twin, name, part)
        twin.training = False  # of it alone: without dropout, which no exported graph has
        return twin


def keyword_ranges(
    model: KeywordModel, waveforms: Iterable[Float32], method: Method = "min-max"
) -> Ranges:
    """Ranges of what listening to real audio meets in a keyword model.

    Parameters
    ----------
    model : KeywordModel
    waveforms : iterable of float32 arrays, (n,)
        At the model's sample rate; each is a stream of its own.
    method : as `Calibration` takes it

    Raises
    ------
    ExportError
        On no audio.
    """
    graph = build_keyword_graph(model)
    calibration = Calibration(graph, method)
    frontend = frontend_of(model.spec.features)
    for waveform in waveforms:
        for sequence in _sequences(torch.from_numpy(frontend(waveform)), graph, model.spec):
            calibration.run_sequence(chunk.numpy() for chunk in sequence)
    return {graph.name: calibration.ranges}


def _sequences(
    features: torch.Tensor, graph: Graph, spec: KeywordModelSpec
) -> list[list[torch.Tensor]]:
    """Inputs (1, T, n_mels, 1) of a graph, call by call, of features (T, n_mels) that are padded.

    Windows are sequences by themselves, and overlap.
    """
    n = graph.tensors[graph.inputs[0]].shape[1]
    hop = spec.encoder.hop_frames if isinstance(spec.encoder, WindowedSpec) else n
    n_calls = max(1, 1 + -(-(len(features) - n) // hop))
    padded = F.pad(features, (0, 0, 0, (n_calls - 1) * hop + n - len(features)))
    calls = [padded[k * hop : k * hop + n][None, :, :, None] for k in range(n_calls)]
    return [[call] for call in calls] if spec.windowed else [calls]
