"""`edge-imputer verify`: what it compares, what it finds, and how it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch

from edge_imputer.bundle import Bundle, file_records, write_manifest
from edge_imputer.cli.main import main
from edge_imputer.errors import BackendError, ExportError
from edge_imputer.export import verify as module
from edge_imputer.export.bundle import export_keyword_bundle
from edge_imputer.export.decoders import KINDS, Decoded
from edge_imputer.export.graph import Array
from edge_imputer.export.oracle import ORACLE
from edge_imputer.export.reference import Interpreter
from edge_imputer.export.runtimes import ALL_RUNTIMES, RUNTIMES
from edge_imputer.export.verify import FLOAT, INTEGERS, NATIVE, read_graphs, verify
from edge_imputer.firmware_bridge.keywords import write_native_keywords
from edge_imputer.specs import FeatureSpec, KeywordModelSpec, for_classes
from edge_imputer.train.keyword_model import KeywordModel

from .bundles import PROVENANCE
from .graphs import feeds, small_model, waveforms
from .test_lowering import SMALL

EVERY = (*RUNTIMES, NATIVE, FLOAT)  # that the tests' environment has for sure


@pytest.fixture
def bundle(small_bundle: Bundle) -> Bundle:
    return small_bundle


def altered(bundle: Bundle, folder: Path, file: str, data: bytes) -> Bundle:
    """A copy with another file in it, and a manifest that vouches for it."""
    shutil.copytree(bundle.path, folder)
    (folder / file).write_bytes(data)
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=file_records(folder)))
    return Bundle.load(folder)


def test_the_graphs_come_back_from_the_bundle(bundle: Bundle) -> None:
    encoder, imputer = read_graphs(bundle)
    model = small_model()
    for graph, expected in ((encoder, model.encoder), (imputer, model.imputer)):
        assert (graph.name, graph.n_states) == (expected.name, expected.n_states)
        (inputs,) = feeds(expected, np.random.default_rng(0), 1)
        results = [Interpreter(g).run(inputs) for g in (graph, expected)]
        for name in expected.outputs:
            np.testing.assert_array_equal(results[0][name], results[1][name])


def test_a_sound_bundle_is_within_every_tolerance(bundle: Bundle) -> None:
    seen = []
    found = verify(
        bundle,
        waveforms(),
        min_agreement=0,  # random weights: what they write down hangs on single steps
        min_float_agreement=0,
        progress=lambda items, label: seen.append((label, len(items))) or items,
    )
    assert found.exceeded == []
    assert set(found.absent) - {"tflite-micro", "tflite-runtime"} == {ORACLE}  # for its weights
    layered = [name for name in ALL_RUNTIMES if name not in found.absent]
    for graph in read_graphs(bundle):
        rows = found.layers[graph.name]
        assert [(r.op, r.runtime) for r in rows] == [
            (op.output, runtime) for op in graph.ops for runtime in layered
        ]
        assert all(row.n > 0 and row.max_lsb <= 1 for row in rows)
    decoded = [INTEGERS, *layered, NATIVE, FLOAT]
    assert [(p.first, p.second) for p in found.pairs] == [
        (a, b) for k, a in enumerate(decoded) for b in decoded[k + 1 :]
    ]
    assert all(pair.n == 3 and 0 <= pair.same <= 3 for pair in found.pairs)
    assert found.identical[NATIVE] == 1
    assert set(found.identical) == {*layered, NATIVE}
    assert seen == [("layers", 2), ("clips", len(decoded))]


def test_kinds_sum_the_layers_up(bundle: Bundle) -> None:
    found = verify(bundle, waveforms(1), runtimes=["litert-reference"], min_agreement=0)
    rows = [row for layers in found.layers.values() for row in layers]
    for kind in found.by_kind():
        mine = [row for row in rows if row.kind == kind.kind]
        assert kind.runtime == "litert-reference"
        assert kind.n == sum(row.n for row in mine)
        assert kind.max_lsb == max(row.max_lsb for row in mine)
        assert kind.share * kind.n == pytest.approx(sum(row.share * row.n for row in mine))
    assert any(kind.share > 0 for kind in found.by_kind())  # its kernels round twice


def test_files_of_two_models_are_told(bundle: Bundle, tmp_path: Path) -> None:
    """One weight of the .onnx file differs: no layer shows it, and perhaps no transcript."""
    file = "onnx/encoder.int8.onnx"
    model = onnx.load_from_string(bundle.file(file).read_bytes())
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    wrong = altered(bundle, tmp_path / "wrong", file, model.SerializeToString())
    found = verify(wrong, waveforms(1), runtimes=["onnxruntime"], min_agreement=0)
    assert len(found.exceeded) == 1
    assert "encoder.int8.onnx" in found.exceeded[0]


def test_c_code_of_another_model_is_told(bundle: Bundle, tmp_path: Path) -> None:
    file = "native/edim_model.c"
    text = bundle.file(file).read_text("utf-8")
    at = text.index("edim_imputer_step(const")
    copied = text[:at] + text[at:].replace(
        "    return EDIM_OK;", "    logits[0] ^= 64;\n    return EDIM_OK;"
    )
    wrong = altered(bundle, tmp_path / "wrong", file, copied.encode())
    found = verify(wrong, waveforms(1), runtimes=[NATIVE], min_agreement=0)
    assert found.identical == {NATIVE: 0}
    assert found.exceeded == ["native: gives the exact integers on 0.0% of the clips"]


def test_pairs_that_write_down_something_else_are_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[type(bundle.spec)]

    def deaf(bundle: Bundle, backend: Any) -> Callable[[Array], Decoded]:
        listen = kind.decoder(bundle, backend)
        return lambda x: replace(listen(x), text="?") if backend.name == "litert" else listen(x)

    monkeypatch.setitem(KINDS, type(bundle.spec), kind._replace(decoder=deaf))
    found = verify(bundle, waveforms(2), runtimes=["litert", "onnxruntime"], min_agreement=0.9)
    assert len(found.exceeded) == 2
    for line, other in zip(
        sorted(found.exceeded), ("integers and litert", "litert and"), strict=True
    ):
        assert line.startswith(other)
        assert "the same text for 0 of 2 clips, expected 90.0%" in line
    bounds = {
        p.second: p.bound
        for p in verify(
            bundle,
            waveforms(1),
            runtimes=["onnxruntime", FLOAT],
            min_agreement=0,
            min_float_agreement=0.3,
        ).pairs
    }
    assert bounds == {"onnxruntime": 0, FLOAT: 0.3}


def test_a_runtime_that_refuses_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise BackendError(f"no {path.name} for me")

    monkeypatch.setitem(
        ALL_RUNTIMES,
        "litert",
        replace(ALL_RUNTIMES["litert"], open=refuse),  # type: ignore[arg-type]
    )
    found = verify(bundle, waveforms(1), runtimes=["litert", "onnxruntime"], min_agreement=0)
    assert found.exceeded[0] == "litert: no encoder.tflite for me"
    n_layers = sum(len(graph.ops) for graph in read_graphs(bundle))
    assert len(found.exceeded) == 1 + n_layers
    assert {row.n_refused > 0 for row in found.by_kind() if row.runtime == "litert"} == {True}
    assert {row.n_refused for row in found.by_kind() if row.runtime == "onnxruntime"} == {0}
    assert all("litert" not in (pair.first, pair.second) for pair in found.pairs)


def test_a_layer_that_is_off_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tolerance", lambda runtime, kind: -1)
    found = verify(bundle, waveforms(1), runtimes=["onnxruntime"], min_agreement=0)
    encoder = read_graphs(bundle)[0]
    first = encoder.ops[0]
    assert found.exceeded[0] == (
        f"onnxruntime: encoder, {first.output} ({first.kind}): 0 steps off, at most -1"
    )


@pytest.mark.parametrize(
    ("clips", "runtimes", "message"),
    [
        (0, EVERY, "expected at least one clip"),
        (1, (), "expected runtimes among onnxruntime, .* got none"),
        (1, ("litert", "tensorrt"), r"expected runtimes among .* got \['tensorrt'\]"),
    ],
)
def test_bad_arguments(bundle: Bundle, clips: int, runtimes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        verify(bundle, waveforms()[:clips], runtimes=runtimes)


# ------------------------------------------------------------------------------ keyword models


@pytest.mark.parametrize("encoder", ["tcn", "cnn-windowed"])
def test_a_keyword_bundle_is_within_every_tolerance(encoder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    keywords = ("yes", "no")
    spec = KeywordModelSpec(
        features=FeatureSpec(), encoder=for_classes(SMALL[encoder], 3), keywords=keywords
    )
    bundle = export_keyword_bundle(
        tmp_path / "bundle",
        model=KeywordModel(spec).eval(),
        provenance=PROVENANCE,
        calibration=waveforms(),
        name="words",
        licence="Apache-2.0",
        emitters=[lambda graph, folder: write_native_keywords(graph, spec.step_features, folder)],
    )
    found = verify(bundle, waveforms(), min_agreement=0, min_float_agreement=0)
    assert found.exceeded == []
    assert set(found.layers) == {"keywords"}
    assert found.identical[NATIVE] == 1
    assert {FLOAT, NATIVE, "litert"} <= {pair.second for pair in found.pairs}


def test_the_keyword_that_is_heard_best_is_the_text() -> None:
    class Stream:
        def __init__(self, spec: object, backend: object) -> None:
            pass

        def score(self, waveform: Array) -> Array:
            return np.array([[0.2, 0.1], [0.55, 0.3], [0.1, 0.4]], np.float32) * waveform[0]

    spec = KeywordModelSpec(features=FeatureSpec(), encoder=SMALL["tcn"], keywords=("yes", "no"))
    point = SimpleNamespace(thresholds={"no": 0.25})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_imputer.export.decoders.KeywordStream", Stream)
        for operating_point, texts in ((None, ["yes", ""]), (point, ["no", ""])):
            manifest = SimpleNamespace(operating_point=operating_point)
            bundle: Any = SimpleNamespace(spec=spec, manifest=manifest)
            decode = KINDS[KeywordModelSpec].decoder(bundle, None)
            assert [decode(np.array([level])).text for level in (1.0, 0.5)] == texts


# ------------------------------------------------------------------------------ the command


def run(bundle: Bundle, out: Path, *options: str) -> int:
    """Exit code of the command, on two of the shipped digits."""
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(bundle.path), "--clips", "2", "--out", str(out), *options])
    assert isinstance(stop.value.code, int)
    return stop.value.code


RELAXED = ("--min-agreement", "0", "--min-float-agreement", "0")


def test_the_command_prints_tables_and_writes_json_and_a_picture(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGE_IMPUTER_TFLITE_PYTHON", str(tmp_path / "nowhere"))
    assert run(bundle, tmp_path / "out", *RELAXED) == 0
    printed = capsys.readouterr().out
    for text in ("fully_connected", "litert-reference", "pair by pair", "native 100.0%"):
        assert text in printed
    assert "Not tried: tflite-runtime: expected a python at" in printed
    assert "Every tolerance is kept." in printed
    figures = json.loads((tmp_path / "out" / "verify.json").read_text("utf-8"))
    assert figures["exceeded"] == []
    assert set(figures["layers"]) == {"encoder", "imputer"}
    assert figures["pairs"][0]["share"] in (0, 0.5, 1)
    assert {"kind", "runtime", "max_lsb", "share", "n", "tolerance"} <= set(figures["kinds"][0])
    assert (tmp_path / "out" / "verify.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_ends_with_1_where_a_tolerance_is_exceeded(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "tolerance", lambda runtime, kind: -1)
    options = ("--runtime", "onnxruntime", *RELAXED)
    assert run(bundle, tmp_path, *options) == 1
    assert "EXCEEDED onnxruntime: encoder, " in capsys.readouterr().out
    assert run(bundle, tmp_path, *options, "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["exceeded"]) > 10


def test_the_command_refuses_a_runtime_that_there_is_not(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, tmp_path, "--runtime", "tensorrt") == 2
    assert "expected runtimes among onnxruntime" in capsys.readouterr().err


def test_few_clips_of_many_are_no_evidence() -> None:
    pair = module.PairAgreement("a", "b", 110, 108, 0.99)
    assert module._pairs_off([pair]) == []
    assert len(module._pairs_off([replace(pair, same=100)])) == 1


def test_clips_shorter_than_a_step(bundle: Bundle) -> None:
    short, longer = np.zeros(10, np.float32), waveforms(1)[0]
    assert not verify(bundle, [short, longer], runtimes=["litert"]).exceeded
