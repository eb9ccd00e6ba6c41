"""The bundle writer: whole or not at all, consistent, and loud about anything that was altered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_imputer.bundle import Bundle, Interval, Manifest, Metrics
from edge_imputer.errors import BundleIntegrityError, ExportError, MissingExtraError
from edge_imputer.export import bundle as bundle_module
from edge_imputer.export.build import build_graphs
from edge_imputer.export.bundle import NO_METRICS, update_metrics
from edge_imputer.export.card import model_card
from edge_imputer.export.graph import Graph
from edge_imputer.export.memory import plan
from edge_imputer.export.parity import same_arrays
from edge_imputer.export.reference import zero_feeds
from edge_imputer.export.simulate import (
    calibrate_and_quantise,
    graph_record,
    reference_backend,
)
from edge_imputer.firmware_bridge.emit import write_native
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.recognizer import Recognizer

from .bundles import PROVENANCE, export_small
from .graphs import OTHER_MODELS, model_spec, modules, small_model, waveforms

MODEL_FILES = {
    "onnx/encoder.onnx",
    "onnx/encoder.int8.onnx",
    "onnx/imputer.onnx",
    "onnx/imputer.int8.onnx",
    "tflite/encoder.tflite",
    "tflite/imputer.tflite",
}
SOURCES = {
    f"native/{name}.{ending}"
    for name in ("edge_imputer", "edim_kernels", "edim_model")
    for ending in "ch"
}
METRICS = Metrics(
    data="two recordings",
    digit_accuracy=Interval(value=0.975, low=0.9512, high=0.99, n=200),
    wer=Interval(value=0.04, low=0.02, high=0.07, n=300),
    keyword_recall=None,
    keyword_fa_per_hour=0.0,
    negative_hours=1.5,
)


@pytest.fixture
def bundle(small_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may spoil."""
    shutil.copytree(small_bundle.path, tmp_path / "copy")
    return Bundle.load(tmp_path / "copy")


def test_bundle_holds_every_file_and_nothing_else(bundle: Bundle) -> None:
    listed = set(bundle.manifest.files)
    assert listed == MODEL_FILES | SOURCES | {"MODEL_CARD.md"}
    found = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()}
    assert found == listed | {"manifest.json"}
    assert bundle.spec == model_spec()
    assert bundle.manifest.provenance == PROVENANCE
    assert bundle.manifest.metrics == NO_METRICS
    assert bundle.manifest.keyword_threshold is None


def test_manifest_describes_the_graphs(bundle: Bundle) -> None:
    model = small_model()
    graphs = model.encoder, model.imputer
    for graph in graphs:
        record = bundle.manifest.graph(graph.name)
        assert record == graph_record(graph, record.arena_bytes)
        assert record.arena_bytes >= plan(graph)[1]
        assert [r.name for r in record.inputs] == graph.inputs
        assert [r.name for r in record.outputs] == graph.outputs
        for tensor in (*record.inputs, *record.outputs):
            assert tensor.shape == graph.tensors[tensor.name].shape
            assert tensor.quant == graph.tensors[tensor.name].quant
            assert (tensor.quant is None) == (tensor.dtype == "int32")
        onnx_file = bundle.file(f"onnx/{graph.name}.int8.onnx")
        same_arrays(graph, onnx_file, bundle.file(f"tflite/{graph.name}.tflite"))
    record = bundle.manifest.graph("encoder")
    states = record.inputs[-record.n_states :], record.outputs[-record.n_states :]
    for before, after in zip(*states, strict=True):
        assert (before.shape, before.quant) == (after.shape, after.quant)
    assert set(zero_feeds(graphs[0])) == {r.name for r in record.inputs}


def test_export_is_deterministic(small_bundle: Bundle, tmp_path: Path) -> None:
    assert export_small(tmp_path / "again").manifest == small_bundle.manifest


def test_recogniser_runs_on_the_bundle(bundle: Bundle) -> None:
    for backend in ("onnx", "onnx-float", "litert"):
        recognizer = Recognizer(bundle, backend=backend)
        transcript = recognizer.transcribe(waveforms(1)[0], sample_rate=16_000)
        assert set(transcript.text) <= set(bundle.spec.tokens.characters)


@pytest.mark.parametrize("name", sorted(MODEL_FILES | {"MODEL_CARD.md"}))
def test_altered_or_missing_file_is_refused(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        Bundle.load(bundle.path)
    path.unlink()
    with pytest.raises(BundleIntegrityError, match="missing"):
        Bundle.load(bundle.path)


def test_emitters_write_into_the_bundle_and_state_their_memory(tmp_path: Path) -> None:
    seen: list[str] = []

    def silent(encoder: Graph, imputer: Graph, folder: Path) -> None:
        seen.extend([encoder.name, imputer.name])
        (folder / "native").mkdir()
        (folder / "native" / "model.c").write_text("/* integers */\n")

    def telling(encoder: Graph, imputer: Graph, folder: Path) -> Mapping[str, int]:
        assert encoder.quantised
        assert imputer.quantised
        return {"encoder": 4321}

    bundle = export_small(tmp_path / "out", emitters=(silent, telling))
    assert seen == ["encoder", "imputer"]
    assert bundle.file("native/model.c").read_text() == "/* integers */\n"
    arenas = [bundle.manifest.graph(name).arena_bytes for name in ("encoder", "imputer")]
    assert arenas == [4321, plan(small_model().imputer)[1]]


def test_failed_export_leaves_nothing_and_spares_the_old_bundle(tmp_path: Path) -> None:
    def failing(encoder: Graph, imputer: Graph, folder: Path) -> None:
        raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        export_small(tmp_path / "out", emitters=(failing,))
    assert list(tmp_path.iterdir()) == []
    first = export_small(tmp_path / "out")
    with pytest.raises(ExportError, match="no"):
        export_small(tmp_path / "out", name="other", emitters=(failing,))
    assert Bundle.load(tmp_path / "out").manifest == first.manifest
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_bundle_is_replaced_whole(tmp_path: Path) -> None:
    export_small(tmp_path / "out")
    (tmp_path / "out" / "stray.txt").write_text("left over")
    bundle = export_small(tmp_path / "out", name="second")
    assert bundle.manifest.name == "second"
    assert not (tmp_path / "out" / "stray.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_not_a_bundle_is_left_alone(tmp_path: Path) -> None:
    folder, file = tmp_path / "photos", tmp_path / "file"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    file.write_text("text")
    for target in (folder, file):
        with pytest.raises(ExportError, match="is not a bundle"):
            export_small(target)
    assert (folder / "cat.jpg").read_bytes() == b"cat"
    assert file.read_text() == "text"
    (tmp_path / "empty").mkdir()
    assert export_small(tmp_path / "empty" / "deep" / "out").manifest.name == "small"
    assert export_small(tmp_path / "empty" / "deep" / "out").manifest.name == "small"


def test_no_calibration_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="give calibration audio"):
        export_small(tmp_path / "out", calibration=[])
    assert list(tmp_path.iterdir()) == []


def test_diverged_weights_are_refused(tmp_path: Path) -> None:
    spec = model_spec()
    encoder, head = modules(spec)
    with np.errstate(all="ignore"):
        head.output.weight.data[0, 0] = np.nan
        with pytest.raises(ExportError, match="not finite"):
            export_small(tmp_path / "out", encoder=encoder, head=head)
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, *, extra: str) -> None:
        raise MissingExtraError(f"{module}; pip install 'edge-imputer[{extra}]'")

    monkeypatch.setattr(bundle_module, "require", missing)
    with pytest.raises(MissingExtraError, match=r"edge-imputer\[export\]"):
        export_small(tmp_path / "out")


def test_metrics_are_put_into_manifest_and_card_together(bundle: Bundle) -> None:
    updated = update_metrics(bundle.path, METRICS, 0.625)
    assert Bundle.load(bundle.path).manifest == updated.manifest
    assert (updated.manifest.metrics, updated.manifest.keyword_threshold) == (METRICS, 0.625)
    before, after = bundle.manifest.files, updated.manifest.files
    assert {n for n in after if after[n] != before[n]} == {"MODEL_CARD.md"}
    assert set(after) == set(before)
    card = updated.file("MODEL_CARD.md").read_text("utf-8")
    assert card == model_card(updated.manifest)
    for text in ("97.50%", "95.12% to 99.00%", "two recordings", "0.6250", "1.50 h"):
        assert text in card
    assert "| keyword recall | not measured |" in card
    assert "fewer than 2 an hour" in card  # three alarms' worth of nothing in 1.5 hours
    raw = json.loads((bundle.path / "manifest.json").read_text())
    assert raw["metrics"]["keyword_recall"] is None  # nulls are written


def test_metrics_of_an_altered_bundle_are_refused(bundle: Bundle) -> None:
    (bundle.path / "tflite" / "encoder.tflite").write_bytes(b"")
    manifest = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(BundleIntegrityError):
        update_metrics(bundle.path, METRICS, None)
    assert (bundle.path / "manifest.json").read_bytes() == manifest


def test_strangers_files_do_not_become_part_of_the_bundle(bundle: Bundle) -> None:
    (bundle.path / "notes.txt").write_text("mine")
    assert "notes.txt" not in update_metrics(bundle.path, METRICS, None).manifest.files


def test_card_says_what_the_manifest_says(bundle: Bundle) -> None:
    manifest = bundle.manifest
    card = bundle.file("MODEL_CARD.md").read_text("utf-8")
    assert card == model_card(msgspec.structs.replace(manifest, files={}))
    assert card.count("not measured") == 5
    assert "Nothing was measured yet." in card
    for text in (
        "# small",
        "`a` `b` `c` `d`",
        f"{manifest.graph('imputer').macs:,}",
        f"{manifest.graph('encoder').arena_bytes:,}",
        "`gru0.next_state`",
        "noise that swells",
        "ab" * 32,
        "every 40 ms",
        "chunks of 160 ms in 3 passes",
    ):
        assert text in card
    for line in card.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_card_counts_revisions_among_the_passes(bundle: Bundle) -> None:
    spec = bundle.spec
    head = msgspec.structs.replace(spec.head, schedule=(4,), revisions=1)
    changed = msgspec.structs.replace(spec, head=head)
    card = model_card(msgspec.structs.replace(bundle.manifest, spec=changed))
    assert "chunks of 160 ms in 2 passes, of which 1 of revision." in card


def test_card_escapes_what_would_break_its_tables() -> None:
    spec, _, _, encoder, imputer = small_model()
    manifest = Manifest(
        schema_version=5,
        minimum_runtime_version="0.1.0",
        name="x",
        spec=spec,
        graphs=(graph_record(encoder), graph_record(imputer)),
        keyword_threshold=None,
        operating_point=None,
        metrics=NO_METRICS,
        licence="Apache-2.0",
        provenance=msgspec.structs.replace(PROVENANCE, data="a|b\nc"),
        files={},
    )
    assert "| data | a\\|b c |" in model_card(manifest)


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_every_kind_of_model_is_exported_and_decodes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From samples to committed chunks: the exact integers, and three runtimes of one bundle."""
    monkeypatch.setenv("EDGE_IMPUTER_CACHE", str(tmp_path / "cache"))
    spec = OTHER_MODELS[name]
    encoder, head = modules(spec)
    made = export_small(
        tmp_path / "bundle", encoder=encoder, head=head, spec=spec, emitters=(write_native,)
    )
    floats = build_graphs(encoder, head, spec)
    exact = reference_backend(*calibrate_and_quantise(*floats, spec, waveforms()), spec)
    (waveform,) = waveforms(1, seconds=1.2, seed=4)
    chunks = {
        backend if isinstance(backend, str) else backend.name: StreamingDecoder(
            made, backend=backend
        ).decode(waveform)
        for backend in (exact, "native", "onnx", "litert", "onnx-float")
    }
    wanted = chunks.pop("reference")
    for one, other in zip(wanted, chunks.pop("native"), strict=True):
        np.testing.assert_array_equal(one.log_probs, other.log_probs)
    step = made.manifest.graph("imputer").outputs[0].quant
    assert step is not None
    for found in chunks.values():
        assert len(found) == len(wanted)
        for one, other in zip(wanted, found, strict=True):
            assert np.abs(one.log_probs - other.log_probs).mean() < 12 * step.scale
