"""The fused form of whole models: the tokens of the Python pipeline, in every runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edge_imputer.audio import read_audio
from edge_imputer.backends.onnx import OnnxModel
from edge_imputer.bundle import Bundle
from edge_imputer.cli import steps
from edge_imputer.cli.main import main
from edge_imputer.errors import ExportError, SpecError
from edge_imputer.export.build import build_graphs
from edge_imputer.export.fused.compose import fuse
from edge_imputer.export.fused.files import METADATA_KEY, FusedRecord, fuse_bundle, write_fused
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.reference import zero_feeds
from edge_imputer.export.sensitivity import Quantisation
from edge_imputer.export.simulate import calibrate_and_quantise
from edge_imputer.imputation import schedule as even
from edge_imputer.specs import ModelSpec
from edge_imputer.train.trainer import read_corpus, train

from .fused_cases import decode_fused, decode_pipeline, load, pcm16, talkative
from .graphs import OTHER_MODELS, model_spec, modules, small_model, waveforms
from .model_files import file_texts
from .training_cases import tiny_recipe, write_corpus

DIGITS = Path(__file__).parents[1] / "train" / "digits" / "audio"
PASSES = [*((even(k, 8), 0) for k in (1, 2, 4, 8)), ((5, 1, 1, 1), 0), ((8,), 1), ((4, 4), 1)]
FILES = ("model.onnx", "model.tflite")
MODELS = {
    "crnn": model_spec(),
    "two blocks": model_spec(chunk_blocks=2, order="non-blank-first"),
    "left to right": model_spec(order="left-to-right"),
    "revised": model_spec(schedule=(4,), revisions=2),
    "revised, no left context": model_spec(kernel=1, revisions=1),
    **OTHER_MODELS,
}


@cache
def speech() -> list[Array]:
    """A few digits, float32."""
    return [read_audio(path)[0] for path in sorted(DIGITS.rglob("*.ogg"))[::300]]


@pytest.fixture(scope="module")
def parts() -> tuple[ModelSpec, tuple[Graph, Graph]]:
    """The integers of a model with the default front end and blocks of 8, calibrated on speech."""
    spec = model_spec(n_mels=40, hidden=24, block_size=8, schedule=(8,))
    return spec, talkative(spec, speech())


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_decodes_as_the_pipeline_does(
    tmp_path: Path, micro: str, name: str
) -> None:
    """From float samples, by exact integers."""
    spec = MODELS[name]
    graphs = talkative(spec, waveforms(seconds=1.3))
    graph = fuse(*graphs, spec, pcm="float32")
    (waveform,) = waveforms(1, seconds=1.3, seed=5)
    got = decode_fused(graph, load(graph, "reference", tmp_path, micro), spec, waveform)
    separate = [load(part, "reference", tmp_path, micro) for part in graphs]
    models = separate[0], separate[1]
    tokens, log_probs = decode_pipeline(graphs, models, spec, waveform, spec.head.schedule)
    np.testing.assert_array_equal(got[0], tokens)
    np.testing.assert_allclose(got[1], log_probs, atol=1e-5)
    assert len(np.unique(tokens)) > 2


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert", "litert-reference", "micro"])
@pytest.mark.parametrize(("commits", "revisions"), PASSES, ids=str)
def test_speech_in_every_runtime(
    parts: tuple[ModelSpec, tuple[Graph, Graph]],
    tmp_path: Path,
    micro: str,
    runtime: str,
    commits: tuple[int, ...],
    revisions: int,
) -> None:
    """Of the fused file and of the pipeline, both in this runtime: the same tokens.

    Of features that are rounded to int8, one in many lies on an edge, where the last bit of a
    logarithm decides: hence not quite all.
    """
    spec, graphs = parts
    graph = fuse(*graphs, spec, schedule=commits, revisions=revisions)
    fused = load(graph, runtime, tmp_path, micro)
    separate = load(graphs[0], runtime, tmp_path, micro), load(graphs[1], runtime, tmp_path, micro)
    same: list[bool] = []
    written: set[int] = set()
    for waveform in map(pcm16, speech()):
        tokens, log_probs = decode_fused(graph, fused, spec, waveform)
        wanted, rows = decode_pipeline(graphs, separate, spec, waveform, commits, revisions)
        same += list(tokens == wanted)
        written |= set(wanted)
        np.testing.assert_allclose(log_probs, rows, atol=0.3)
    assert len(same) > 100
    assert len(written) > 4
    assert np.mean(same) >= 0.99


def test_zeros_are_silence_before_the_utterance(tmp_path: Path, micro: str) -> None:
    """What is decoded from states of zeros is what the pipeline makes of so much silence first."""
    model = small_model()
    graph = fuse(model.encoder, model.imputer, model.spec)
    fused = load(graph, "reference", tmp_path, micro)
    waveform = pcm16(waveforms(1, seconds=0.64, seed=2)[0])  # four chunks
    states = list(zero_feeds(graph).values())[1:]
    tokens = []
    for chunk in waveform.reshape(-1, model.spec.chunk_samples):
        found, _, *states = fused.run([chunk, *states])
        tokens.append(found)
    silence = np.zeros(model.spec.features.frame_length - model.spec.features.hop_length, np.int16)
    graphs = model.encoder, model.imputer
    separate = [load(part, "reference", tmp_path, micro) for part in graphs]
    wanted, _ = decode_pipeline(
        graphs,
        (separate[0], separate[1]),
        model.spec,
        np.concatenate([silence, waveform]),
        model.spec.head.schedule,
    )
    np.testing.assert_array_equal(np.concatenate(tokens), wanted[: 4 * 4])


def test_files_hold_the_model_and_say_how_to_call_it(tmp_path: Path) -> None:
    model = small_model()
    folders = tmp_path / "one", tmp_path / "two"
    records = [
        write_fused(
            folder,
            model.encoder,
            model.imputer,
            model.spec,
            schedule=(3, 1),
            revisions=1,
            licence="MIT",
        )
        for folder in folders
    ]
    for name in (*FILES, "model.json"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second
    text = (folders[0] / "model.json").read_text()
    record = msgspec.json.decode(text, type=FusedRecord)
    assert record == records[0]
    assert record.pcm == "int16"
    assert (record.schedule, record.revisions) == ((3, 1), 1)
    assert record.tokens == ("", " ", "a", "b", "c", "d")
    assert record.chunk_samples == 4 * 4 * 160
    assert record.lead_samples == 240
    for name in FILES:
        assert file_texts(folders[0] / name) == {
            METADATA_KEY: json.loads(text),
            "licence": "MIT",
            "labels": ["<blank>", " ", "a", "b", "c", "d"],
            "features": msgspec.to_builtins(model.spec.features),
        }
    graph = fuse(model.encoder, model.imputer, model.spec, schedule=(3, 1), revisions=1)
    left = model.spec.head.left_context
    assert graph.tensors["alignments.kept"].shape == (3 * left,)  # of the revision, too
    assert list(record.zeros) == graph.inputs[1:]
    for name, zero in record.zeros.items():
        quant = graph.tensors[name].quant
        assert zero == (0 if quant is None else quant.zero_point)


def test_a_bundle_is_fused_from_its_own_integers(untrained_bundle: Path, tmp_path: Path) -> None:
    record = fuse_bundle(untrained_bundle, tmp_path / "fused", pcm="float32")
    bundle = Bundle.load(untrained_bundle)
    assert (record.schedule, record.revisions) == (bundle.spec.head.schedule, 0)
    assert record.pcm == "float32"
    assert (tmp_path / "fused" / "model.tflite").stat().st_size < 400_000
    for name in FILES:
        assert file_texts(tmp_path / "fused" / name)["licence"] == bundle.manifest.licence
    with pytest.raises(ExportError, match="outside of the bundle"):
        fuse_bundle(bundle, bundle.path / "fused")
    assert Bundle.load(untrained_bundle).manifest == bundle.manifest


def changed(graph: Graph, name: str, **changes: Any) -> Graph:
    """The graph with another tensor in that place."""
    tensors = graph.tensors | {name: replace(graph.tensors[name], **changes)}
    return replace(graph, tensors=tensors)


def test_a_head_that_reads_no_alignment_is_written_too(tmp_path: Path) -> None:
    """CTC: its fused files hold what their graph does."""
    spec = model_spec(mixer="none", schedule=(4,))
    floats = build_graphs(*modules(spec), spec)
    write_fused(tmp_path, *calibrate_and_quantise(*floats, spec, waveforms()), spec)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.json",
        "model.onnx",
        "model.tflite",
    }


def test_int16_is_not_fused() -> None:
    spec = OTHER_MODELS["conformer"]
    floats = build_graphs(*modules(spec), spec)
    mixed = Quantisation(precision="mixed", snr_db=60)
    graphs = calibrate_and_quantise(*floats, spec, waveforms(), mixed)
    with pytest.raises(ExportError, match="encoder: expected int8 alone in a fused form"):
        fuse(*graphs, spec)


def test_what_does_not_fit_is_refused() -> None:
    model = small_model()
    spec, encoder, imputer = model.spec, model.encoder, model.imputer
    with pytest.raises(
        ExportError, match=r"encoder: expected a quantised graph .* quantise it first"
    ):
        fuse(model.float_encoder, imputer, spec)
    with pytest.raises(ExportError, match=r"samples of int16 or float32, got 'int8'"):
        fuse(encoder, imputer, spec, pcm="int8")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"encoder: expected features to be \(1, 4, 20, 1\)"):
        fuse(encoder, imputer, model_spec(n_mels=20))
    with pytest.raises(SpecError, match="sum to at least block_size 4"):
        fuse(encoder, imputer, spec, schedule=(1, 2))
    with pytest.raises(SpecError, match=r"revisions >= 0, .* got -1"):
        fuse(encoder, imputer, spec, revisions=-1)
    quant = imputer.tensors["logits"].quant
    with pytest.raises(ExportError, match="quantise them together"):
        fuse(encoder, changed(imputer, "encoder_window", quant=quant), spec)


def test_the_command_line_puts_it_into_the_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "N_CALIBRATION", 2)
    corpus = write_corpus(tmp_path / "tones")
    recipe = tiny_recipe("digits", "run.updates=1", "run.valid_every=1")
    data = read_corpus(corpus, recipe.data, 16_000)
    checkpoint = train(*data, recipe, tmp_path / "run", data_name="tones", progress=False)
    arguments = ["export", checkpoint, "--data", corpus, "--out", tmp_path / "bundle"]
    arguments += ["--fused", "--licence", "CC0-1.0"]
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0, capsys.readouterr().err
    bundle = Bundle.load(tmp_path / "bundle")
    assert {name for name in bundle.manifest.files if name.startswith("fused/")} == {
        "fused/model.json",
        "fused/model.onnx",
        "fused/model.tflite",
    }
    record = msgspec.json.decode(bundle.file("fused/model.json").read_bytes(), type=FusedRecord)
    path = bundle.file("fused/model.onnx")
    assert file_texts(path)["licence"] == bundle.manifest.licence == "CC0-1.0"
    feeds = []
    for value in onnx.load(str(path)).graph.input:
        kind = value.type.tensor_type
        shape = [axis.dim_value for axis in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds.append(np.full(shape, record.zeros.get(value.name, 0), dtype))
    assert feeds[0].shape == (record.chunk_samples,)
    tokens = OnnxModel(path).run(feeds)[0]
    assert tokens.shape == (bundle.spec.head.chunk_size,)
    assert set(tokens) <= set(range(len(record.tokens)))
