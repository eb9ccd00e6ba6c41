"""What the trainer is given to train with the exported integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from edge_imputer.frontend import Float32
from edge_imputer.frontends import frontend_of
from edge_imputer.specs import KeywordModelSpec, WindowedSpec
from edge_imputer.train.keyword_model import KeywordModel
from edge_imputer.train.tasks import KeywordTask, Task, build_task
from edge_imputer.train.tasks.speech import SpeechTask

from ..build import build_graphs, build_keyword_graph
from ..calibration import Calibration, Method
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
    heard = [frontend(waveform) for waveform in waveforms]  # (T, n_mels) each
    for call in _windows(heard, model.spec) if model.spec.windowed else ():
        calibration.run({graph.inputs[0]: call})
    for features in () if model.spec.windowed else heard:
        n = graph.tensors[graph.inputs[0]].shape[1]
        padded = np.pad(features, ((0, -len(features) % n), (0, 0)))
        calibration.run_sequence(
            np.split(padded[np.newaxis, :, :, np.newaxis], len(padded) // n, 1)
        )
    return {graph.name: calibration.ranges}


def _windows(heard: list[Float32], spec: KeywordModelSpec) -> Iterator[Float32]:
    """Windows (1, T, n_mels, 1) of all features one after another, and of the silence around them.

    So every place of a window meets speech, however short the clips are.
    """
    assert isinstance(spec.encoder, WindowedSpec)
    n, hop = spec.encoder.window_frames, spec.encoder.hop_frames
    stream = np.pad(np.concatenate(heard), ((n - hop, n - hop), (0, 0)))
    for at in range(0, len(stream) - n + 1, hop):
        yield stream[np.newaxis, at : at + n, :, np.newaxis]
