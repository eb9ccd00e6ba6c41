"""The demo, end to end on a corpus folder: a few real clips, a few updates, every artefact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edge_imputer import train as train_package
from edge_imputer.bundle import Bundle
from edge_imputer.cli import measure, steps
from edge_imputer.cli.main import main

DIGITS = Path(train_package.__file__).parent / "digits"
VOICES = {"kokoro:af_bella": "train", "kokoro:bf_lily": "valid", "kokoro:am_puck": "test"}
RECIPE = """
[encoder]
kind = "crnn"
hidden = 16
conv = [{channels = 4}, {channels = 4}]
[task.head]
width = 8
[augment]
speeds = [1.0]
[batches]
size = 4
[run]
updates = 4
valid_every = 2
"""
FIGURES = {
    "digit_accuracy",
    "wer_k1",
    "wer_k2",
    "wer_k4",
    "wer_k8",
    "seconds_total",
    "us_per_step_onnx",
    "us_per_step_litert",
    "us_per_step_native",
    "transcripts_agree",
    "data",
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three voices of the shipped digits, in a folder of its own."""
    folder = tmp_path / "mine"
    rows = [json.loads(line) for line in (DIGITS / "manifest.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if row["speaker"] in VOICES]
    for row in chosen:
        target = folder / row["audio"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DIGITS / row["audio"], target)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "N_SEQUENCES", 3)
    monkeypatch.setattr(measure, "N_PARITY", 1)
    monkeypatch.setattr(steps, "N_CALIBRATION", 4)


def run_demo(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(["demo", *args])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    return figures


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("hold_out", [None, "kokoro:af_bella"])
def test_demo_on_a_corpus_folder(capsys, corpus, tmp_path, hold_out):
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    revised = RECIPE.replace("width = 8", "width = 8\nrevisions = 1")
    recipe.write_text(revised if hold_out else RECIPE)
    extra = ["--hold-out", hold_out] if hold_out else []
    if hold_out:  # somebody else must be left to learn from
        manifest = corpus / "manifest.jsonl"
        manifest.write_text(manifest.read_text().replace('"split": "test"', '"split": "train"'))
    figures = run_demo(
        capsys, "--data", str(corpus), "--out", str(out), "--config", str(recipe), *extra
    )
    assert set(figures) >= FIGURES
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["n_isolated"] == (30 if hold_out else 20)
    assert figures["data"].startswith("mine")
    assert (hold_out or "mine") in figures["data"]
    assert figures["wer_k8"] >= 0
    assert figures["native_equals_integers"] is True
    assert max(figures["layer_max_lsb"].values()) <= 1
    assert figures["us_per_step_native"] > 0
    report = (out / "report.html").read_text()
    assert "data:image/png;base64," in report
    assert "digit_accuracy" in report
    assert ("changes in passes of revision only" in report) == bool(hold_out)
    assert ("and what is committed never changes" in report) != bool(hold_out)
    bundle = Bundle.load(out / "bundle")
    assert bundle.manifest.keyword_threshold is not None
    assert bundle.manifest.metrics.digit_accuracy is not None
    assert bundle.manifest.metrics.digit_accuracy.n == figures["n_isolated"]
    assert bundle.manifest.licence == "unstated"  # only the owner of the data can state it


@pytest.mark.usefixtures("small")
def test_demo_without_a_validation_split(capsys, corpus, tmp_path):
    manifest = corpus / "manifest.jsonl"
    kept = [r for r in manifest.read_text().splitlines() if '"split": "valid"' not in r]
    # A test text that the model cannot spell is an error of the model, not of the demo.
    kept = [r.replace('"text": "six"', '"text": "jazz"') if "am_puck" in r else r for r in kept]
    manifest.write_text("".join(row + "\n" for row in kept))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    out = tmp_path / "out"
    figures = run_demo(
        capsys, "--data", str(corpus), "--out", str(out), "--config", str(recipe), "--seed", "2"
    )
    assert set(figures) >= FIGURES


def test_demo_says_what_is_missing_before_it_trains(capsys, corpus, monkeypatch, tmp_path):
    manifest = corpus / "manifest.jsonl"
    text = manifest.read_text()
    arguments = ["demo", "--data", str(corpus), "--out", str(tmp_path / "out")]

    def refusal() -> str:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        return capsys.readouterr().err

    manifest.write_text(text.replace('"split": "test"', '"split": "train"'))
    assert "'test'" in refusal()
    manifest.write_text(text)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in refusal()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_demo_of_the_shipped_digits(capsys, tmp_path):
    """The figures `make demo` promises; minutes long."""
    figures = run_demo(capsys, "--out", str(tmp_path))
    assert figures["digit_accuracy"] > 0.85
    assert figures["wer_k8"] < 0.15
    assert figures["wer_k8"] <= figures["wer_k1"] + 0.02
    assert figures["transcripts_agree"] >= 0.99
    assert figures["native_equals_integers"] is True
    assert max(figures["layer_max_lsb"].values()) <= 1
