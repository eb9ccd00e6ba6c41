"""What the trainer is given to train with the exported integers."""

from __future__ import annotations

from collections.abc import Iterable

from edge_imputer.frontend import Float32
from edge_imputer.train.tasks import KeywordTask, Task, build_task
from edge_imputer.train.tasks.speech import SpeechTask

from ..build import build_graphs, build_keyword_graph
from ..calibration import Method
from ..ranges import Ranges, ranges_of
from ..simulate import calibrated, calibrated_keywords
from .models import QuantisedEncoder, QuantisedHead, QuantisedKeywords, QuantisedSpeech


class ExportQuantiser:
    """`edge_imputer.train.quantisation.Quantiser`, by the graphs that are exported."""

    def ranges(self, task: Task, waveforms: Iterable[Float32], method: Method) -> Ranges:
        """As `Quantiser.ranges`."""
        if isinstance(task, KeywordTask):
            graph = build_keyword_graph(task.model)
            return ranges_of(calibrated_keywords(graph, task.model.spec, waveforms, method))
        assert isinstance(task, SpeechTask)  # there are no others
        graphs = build_graphs(task.encoder, task.head, task.spec)
        return ranges_of(*calibrated(*graphs, task.spec, waveforms, method))

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
