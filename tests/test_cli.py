"""The command line: what it prints, and that every bad input is one line and exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from edge_imputer.bundle import Bundle
from edge_imputer.cli.main import main

RATE = 16_000


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    rng = np.random.default_rng(0)
    sf.write(path, rng.uniform(-0.3, 0.3, RATE), RATE, subtype="PCM_16")
    return path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Output of a command that must succeed."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return out


def refusal(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line of a command that must fail with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("backend", ["onnx", "onnx-float", "litert", "native"])
def test_transcribe_on_every_runtime(capsys, untrained_bundle, clip, backend):
    line = run(capsys, "transcribe", untrained_bundle, clip, "--backend", backend, "--json")
    answer = json.loads(line)
    assert answer["audio"] == str(clip)
    assert answer["duration_s"] == 1.0
    assert set(answer["text"]) <= set(" efghinorstuvwxz")


def test_transcribe_many_files_names_each(capsys, untrained_bundle, clip):
    lines = run(capsys, "transcribe", untrained_bundle, clip, clip, "-k", "2").splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{clip}: ") for line in lines)


def test_schedule_is_parsed(capsys, untrained_bundle, clip):
    run(capsys, "transcribe", untrained_bundle, clip, "--schedule", "5,1,1,1")
    for bad, message in (("5;1", "5,1,1,1"), ("1,1", "8")):
        line = refusal(capsys, "transcribe", untrained_bundle, clip, "--schedule", bad)
        assert message in line
    both = ("--schedule", "8", "--steps", "1")
    assert "leave one out" in refusal(capsys, "transcribe", untrained_bundle, clip, *both)


def test_resampling_must_be_asked_for(capsys, untrained_bundle, tmp_path):
    path = tmp_path / "8k.wav"
    sf.write(path, np.zeros(8_000), 8_000, subtype="PCM_16")
    line = refusal(capsys, "transcribe", untrained_bundle, path)
    assert "8000" in line
    assert "16000" in line
    assert "resample" in line
    run(capsys, "transcribe", untrained_bundle, path, "--resample")


def bad_audio(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, RATE).astype(np.float32)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "zero-length":
        sf.write(path, noise[:0], RATE)
    elif kind == "stereo":
        sf.write(path, np.stack([noise, noise], 1), RATE)
    elif kind == "nan":
        noise[100] = np.nan
        sf.write(path, noise, RATE, subtype="FLOAT")
    elif kind == "truncated":
        sf.write(path, noise, RATE, subtype="PCM_16")
        path.write_bytes(path.read_bytes()[: RATE // 2])
    elif kind == "text":
        path.write_text("this is no audio")
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "zero-length", "stereo", "nan", "truncated", "text"]
)
@pytest.mark.parametrize("command", ["transcribe", "spot"])
def test_bad_audio_is_one_line_that_names_the_file(
    capsys, untrained_bundle, tmp_path, kind, command
):
    path = bad_audio(tmp_path, kind)
    extra = ["--keyword", "seven", "--threshold", "0.5"] if command == "spot" else []
    assert str(path) in refusal(capsys, command, untrained_bundle, path, *extra)


def test_clipped_audio_is_a_warning_once(capsys, untrained_bundle, tmp_path):
    path = tmp_path / "clipped.wav"
    square = np.where(np.arange(RATE) % 160 < 80, 32767, -32768).astype(np.int16)
    sf.write(path, square, RATE, subtype="PCM_16")
    with pytest.raises(SystemExit) as stop:
        main(["transcribe", str(untrained_bundle), str(path)])
    _, err = capsys.readouterr()
    assert stop.value.code == 0
    assert err.count("warning: ") == 1
    assert "clip" in err


def test_bad_bundles_are_refused(capsys, untrained_bundle, clip, tmp_path):
    assert "manifest.json" in refusal(capsys, "info", tmp_path / "none")
    broken = tmp_path / "broken"
    shutil.copytree(untrained_bundle, broken)
    model = broken / "onnx/encoder.int8.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    assert "sha256" in refusal(capsys, "transcribe", broken, clip)
    model.unlink()
    assert "encoder.int8.onnx" in refusal(capsys, "transcribe", broken, clip)
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    assert "99" in refusal(capsys, "info", broken)


def test_unknown_letters_in_a_keyword(capsys, untrained_bundle, clip):
    line = refusal(capsys, "spot", untrained_bundle, clip, "-w", "jazz", "--threshold", "0.5")
    assert "'j'" in line


def test_spotting_needs_a_threshold(capsys, untrained_bundle, clip):
    assert "threshold" in refusal(capsys, "spot", untrained_bundle, clip, "-w", "seven")


def test_spot_prints_events(capsys, untrained_bundle, clip):
    arguments = ("-w", "seven", "-w", "two", "--threshold", "0.01", "--json")
    for line in run(capsys, "spot", untrained_bundle, clip, *arguments).splitlines():
        event = json.loads(line)
        assert event["text"] in ("seven", "two")
        assert event["event"] == "keyword"


def test_info_for_people_and_programs(capsys, untrained_bundle):
    manifest = json.loads(run(capsys, "info", untrained_bundle, "--json"))
    assert manifest["schema_version"] == 1
    text = run(capsys, "info", untrained_bundle)
    assert "efghinorstuvwxz" in text
    for graph in Bundle.load(untrained_bundle).manifest.graphs:
        assert str(graph.macs) in text
        assert str(graph.arena_bytes) in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "none.ckpt"), "none.ckpt"),
        (("train", "--data", "none"), "manifest.jsonl"),
        (("train", "--config", "none.toml"), "none.toml"),
        (("demo", "--hold-out", "nobody"), "nobody"),
        (("bench", "nothing"), "latency"),
    ],
)
def test_other_commands_refuse_bad_input(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *arguments)


def test_data_variable_finds_corpora(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_IMPUTER_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert str(tmp_path / "mine") in refusal(capsys, "train", "--data", "mine")


def test_every_help_has_an_example(capsys):
    for command in ("demo", "train", "export", "transcribe", "spot", "bench", "info"):
        assert f"edge-imputer {command}" in run(capsys, command, "--help")


def test_transcribe_loads_no_torch(untrained_bundle, clip):
    program = (
        "import sys\n"
        "from edge_imputer.cli.main import main\n"
        "try:\n"
        f"    main(['transcribe', {str(untrained_bundle)!r}, {str(clip)!r}])\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'lightning', 'onnx'}))\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
