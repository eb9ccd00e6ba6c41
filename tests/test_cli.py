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
from edge_imputer.cli.show import say, table

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


def test_revisions_are_no_fewer_than_none(capsys, untrained_bundle, clip):
    run(capsys, "transcribe", untrained_bundle, clip, "-k", "1", "--revisions", "2")
    spot = ("spot", "-w", "seven", "--threshold", "0.5")
    run(capsys, *spot, untrained_bundle, clip, "--revisions", "0")
    for command in ("transcribe", "spot"):
        with pytest.raises(SystemExit) as stop:
            main([command, str(untrained_bundle), str(clip), "--revisions", "-1"])
        assert stop.value.code == 2
        assert "--revisions" in capsys.readouterr().err


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
    assert str(path) in err


def test_every_clipped_file_is_named(capsys, untrained_bundle, tmp_path):
    paths = [tmp_path / "one.wav", tmp_path / "two.wav"]
    for path in paths:
        sf.write(path, np.full(RATE, 32767, np.int16), RATE, subtype="PCM_16")
    with pytest.raises(SystemExit) as stop:
        main(["transcribe", str(untrained_bundle), *map(str, paths)])
    warned = capsys.readouterr().err.splitlines()
    assert stop.value.code == 0
    assert len(warned) == 2
    for line, path in zip(warned, paths, strict=True):
        assert line.startswith(f"warning: {path} is clipped")


@pytest.mark.parametrize(
    "arguments", [("transcribe",), ("spot", "-w", "two", "--threshold", "0.000001")]
)
def test_a_bad_file_does_not_stop_the_others(capsys, untrained_bundle, clip, tmp_path, arguments):
    last = tmp_path / "last.wav"
    shutil.copy(clip, last)
    bad = [bad_audio(tmp_path, "truncated"), tmp_path / "missing.wav"]
    command, *options = arguments
    with pytest.raises(SystemExit) as stop:
        main([command, *map(str, (untrained_bundle, clip, *bad, last)), "--json", *options])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert {json.loads(line)["audio"] for line in out.splitlines()} == {str(clip), str(last)}
    errors = err.splitlines()
    assert len(errors) == 2
    for line, path in zip(errors, bad, strict=True):
        assert line.startswith("error: ")
        assert str(path) in line


def test_errors_of_the_file_system_are_one_line(capsys, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file where a folder must go")
    monkeypatch.setattr("edge_imputer.cli.benches.BENCHES", {"latency": lambda bundle: {}})
    line = refusal(capsys, "bench", "latency", "--out", tmp_path / "taken")
    assert line == f"error: {tmp_path / 'taken'}: File exists"


def test_texts_are_printed_verbatim(capsys):
    data = "[/noise] [bold]a[/bold] :cat: [link"
    say("said:", data)
    table(data, ["", data], [(data, data)])
    assert capsys.readouterr().out.count(data) == 5


def test_info_prints_a_name_verbatim(capsys, untrained_bundle, tmp_path):
    renamed = tmp_path / "renamed"
    shutil.copytree(untrained_bundle, renamed)
    manifest = json.loads((renamed / "manifest.json").read_text())
    (renamed / "manifest.json").write_text(json.dumps({**manifest, "name": "[/noise]"}))
    assert "[/noise]" in run(capsys, "info", renamed)


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
    assert manifest["schema_version"] == 5
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
        (("train", "none.toml"), "none.toml"),
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


def examples(text: str) -> list[str]:
    """Commands that a help shows, with all their arguments; the line of the usage is none."""
    lines = [line.strip().removeprefix("Example: ") for line in text.splitlines()]
    return [line for line in lines if line.startswith("edge-imputer ")]


def test_every_help_has_an_example(capsys):
    arguments = {
        "demo": "--data",
        "train": "--out",
        "export": ".ckpt",
        "transcribe": "clip.wav",
        "spot": "--keyword",
        "bench": "latency",
        "info": "bundle",
        "evaluate": "--data",
    }
    for command, argument in arguments.items():
        shown = examples(run(capsys, command, "--help"))
        assert any(e.startswith(f"edge-imputer {command} ") and argument in e for e in shown)
    assert len(examples(run(capsys, "--help"))) == 3


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (("transcribe", "BUNDLE", "CLIP", "--backend", "litert"), "ai_edge_litert", "litert"),
        (("export", "none.ckpt"), "onnx", "export"),
    ],
)
def test_missing_extra_is_one_line(untrained_bundle, clip, command, module, extra):
    paths = {"BUNDLE": str(untrained_bundle), "CLIP": str(clip)}
    program = (
        "import runpy, sys\n"
        "runpy.run_path('tests/conftest.py')\n"
        f"sys.modules[{module!r}] = None  # as if it were not installed\n"
        "from edge_imputer.cli.main import main\n"
        f"main({[paths.get(word, word) for word in command]!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith(f"pip install 'edge-imputer[{extra}]'")


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


def test_benchmarks_end_with_their_figures(capsys, untrained_bundle, tmp_path):
    """The last line is the JSON object that is also written to NAME.json."""
    out = run(capsys, "bench", "latency", "--bundle", untrained_bundle, "--out", tmp_path)
    latency = json.loads(out.splitlines()[-1])
    assert latency == json.loads((tmp_path / "latency.json").read_text())
    for backend in ("onnx", "onnx-float", "litert", "native"):
        times = latency[backend]
        assert times["encoder_us"] > 0
        assert times["step_us"] == pytest.approx(times["encoder_us"] + 8 * times["imputer_us"])
    out = run(capsys, "bench", "frontend", "--out", tmp_path)
    frontend = json.loads(out.splitlines()[-1])
    assert frontend == json.loads((tmp_path / "frontend.json").read_text())
    times = {frontend.pop(f"{name}_us_per_s") for name in ("batch", "streaming", "pcen", "micro")}
    assert min(times) > 0
