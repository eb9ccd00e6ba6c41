"""The fused form of keyword models: PCEN in a graph, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edge_imputer.backends.onnx import OnnxModel
from edge_imputer.errors import ExportError
from edge_imputer.export.build import build_keyword_graph
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.fused.files import FusedKeywordRecord, write_fused_keywords
from edge_imputer.export.fused.keywords import fuse_keywords
from edge_imputer.export.graph import Graph
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import zero_feeds
from edge_imputer.frontends import frontend_of
from edge_imputer.imputation import log_softmax
from edge_imputer.quantization import dequantize, quantize
from edge_imputer.specs import (
    AnyFeatureSpec,
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    KeywordModelSpec,
    MicroSpec,
    PcenSpec,
    WindowedCrnnSpec,
)
from edge_imputer.train.keyword_model import KeywordModel

from .fused_cases import RUNTIMES, load, pcm16
from .graphs import waveforms
from .model_files import file_texts


def keyword_model(features: AnyFeatureSpec) -> tuple[KeywordModelSpec, Graph]:
    """A streaming keyword model with random weights, calibrated on noise that swells."""
    spec = KeywordModelSpec(
        features=features,
        encoder=CrnnSpec(conv=(ConvSpec(channels=3), ConvSpec(channels=5)), hidden=10),
        keywords=("yes", "no"),
    )
    torch.manual_seed(0)
    graph = build_keyword_graph(KeywordModel(spec).eval())
    calibration = Calibration(graph)
    step = graph.tensors["features"].shape
    for waveform in waveforms():
        values = zero_feeds(graph)
        for rows in frontend_of(features)(waveform)[: 4 * 19].reshape(-1, *step):
            results = calibration.run(values | {"features": rows})
            values = {before: results[after] for before, after in graph.state_pairs}
    return spec, quantise(graph, calibration.ranges)


KEYWORD_FEATURES = {
    "log-mel": FeatureSpec(n_mels=12, mean=-8.0, std=3.0),
    "pcen": PcenSpec(n_mels=12),
    "no offset": PcenSpec(n_mels=12, delta=0.0, s=0.3),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", KEYWORD_FEATURES)
def test_keyword_models_score_as_their_parts_do(
    tmp_path: Path, micro: str, runtime: str, name: str
) -> None:
    """Front end in Python and graph in this runtime, against one file; silence comes first."""
    spec, graph = keyword_model(KEYWORD_FEATURES[name])
    fused = fuse_keywords(graph, spec)
    features = spec.features
    step = 4 * features.hop_length
    (noise,) = waveforms(1, seconds=0.8, seed=3)
    samples = pcm16(np.concatenate([np.zeros(2 * step), noise])[: 20 * step])
    start = np.zeros(features.frame_length - features.hop_length, np.int16)
    rows = frontend_of(features)(np.concatenate([start, samples]).astype(np.float32) / 32768)
    whole, parts = (load(g, runtime, tmp_path, micro) for g in (fused, graph))
    quants = [graph.tensors[end].quant for end in (graph.inputs[0], graph.outputs[0])]
    assert quants[0] is not None
    assert quants[1] is not None
    own, states = (list(zero_feeds(g).values())[1:] for g in (graph, fused))
    distance = []
    for k in range(20):
        image = quantize(rows[4 * k : 4 * k + 4].reshape(1, 4, 12, 1), quants[0])
        logits, *own = parts.run([image, *own])
        wanted = np.exp(log_softmax(dequantize(logits, quants[1])))
        got, *states = whole.run([samples[k * step : (k + 1) * step], *states])
        assert got.shape == wanted.shape
        distance.append(np.abs(got - wanted).max())
    assert max(distance) < 0.02
    assert np.median(distance) < 1e-5


def test_files_of_a_keyword_model(tmp_path: Path) -> None:
    spec, graph = keyword_model(PcenSpec(n_mels=12))
    record = write_fused_keywords(tmp_path / "fused", graph, spec, licence="MIT")
    text = (tmp_path / "fused" / "model.json").read_text()
    assert msgspec.json.decode(text, type=FusedKeywordRecord) == record
    assert record.classes == ("_unknown_", "yes", "no")
    assert record.smoothing_frames == 5
    for name in ("model.onnx", "model.tflite"):
        texts = file_texts(tmp_path / "fused" / name)
        assert (texts["licence"], texts["labels"]) == ("MIT", ["_unknown_", "yes", "no"])
        assert texts["features"] == msgspec.to_builtins(spec.features)
    assert record.chunk_samples == 640
    feeds = zero_feeds(fuse_keywords(graph, spec))
    assert list(record.zeros) == list(feeds)[1:]
    assert all(np.all(feeds[name] == zero) for name, zero in record.zeros.items())
    (probabilities, *_) = OnnxModel(tmp_path / "fused" / "model.onnx").run(list(feeds.values()))
    assert probabilities.sum() == pytest.approx(1.0)


def test_what_keyword_models_cannot_be_fused_is_said() -> None:
    spec, graph = keyword_model(PcenSpec(n_mels=12))
    changed = msgspec.structs.replace
    with pytest.raises(ExportError, match="got MicroSpec: the microfrontend computes in integers"):
        fuse_keywords(graph, changed(spec, features=MicroSpec()))
    with pytest.raises(ExportError, match="got centred ones, which read samples that have not"):
        fuse_keywords(graph, changed(spec, features=PcenSpec(n_mels=12, centred=True)))
    with pytest.raises(ExportError, match="12 bands in and 4 classes out, got 12 and 3"):
        fuse_keywords(graph, changed(spec, keywords=("yes", "no", "on")))
    windowed = KeywordModelSpec(
        features=PcenSpec(centred=True), encoder=WindowedCrnnSpec(n_classes=2), keywords=("yes",)
    )
    with pytest.raises(ExportError, match="got one over windows"):
        fuse_keywords(graph, windowed)
    with pytest.raises(ExportError, match=r"samples of int16 or float32, got 'int8'"):
        fuse_keywords(graph, spec, pcm="int8")  # type: ignore[arg-type]
