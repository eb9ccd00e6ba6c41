"""What `make bench-data` computes and writes, on a corpus that takes no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_imputer.cli.main import main
from edge_imputer.train.data import (
    Augmenter,
    AugmentSpec,
    NoiseBank,
    benchmark,
    write_manifest,
)
from edge_imputer.train.data.augment import colour_tracks
from edge_imputer.train.data.benchmark import FULL, Row, figures

from .processes import run_python
from .speech_cases import RATE, write_corpus


def test_every_augmentation_is_on_in_full() -> None:
    off = {name for name, value in vars_of(AugmentSpec()).items() if value == 0}
    # Recorded rooms cost what generated ones do.
    assert {name for name in off if not getattr(FULL, name)} == {"room_files"}
    shares = ("room", "clipping", "band_limit", "codec", "packet_loss", "low_pass")
    assert [getattr(FULL, name) for name in shares] == [1.0] * len(shares)
    assert FULL.quiet == 0
    assert 1.0 not in FULL.speeds
    noise = NoiseBank(colour_tracks(RATE, 0.0, 2.0), [np.ones(9, np.int16)], [np.ones(9, np.int16)])
    Augmenter(FULL, sample_rate=RATE, noises=noise)


def vars_of(spec: AugmentSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("words")
    write_corpus(folder)
    return benchmark.measure(folder, n_utterances=3, rounds=1)


def test_every_stage_is_measured_and_the_whole_is_their_sum(rows: list[Row]) -> None:
    cost = {row.stage: row.ms_per_s for row in rows}
    assert min(cost.values()) > 0
    codecs = [cost[f"codec, {name}"] for name in FULL.codecs]
    shared = ("speed", "room", "noise at SNR", "clipping", "band limit", "packet loss", "features")
    parts = cost["decode, WAV"] + np.mean(codecs) + sum(cost[name] for name in shared)
    assert cost["whole, WAV"] > 0.3 * parts
    assert cost["whole, Opus"] > cost["decode, Opus"]


def test_the_figure_is_the_whole_from_wav(rows: list[Row]) -> None:
    (whole,) = (row for row in rows if row.stage == "whole, WAV")
    assert figures(rows) == {"audio_s_per_cpu_s": 1000 / whole.ms_per_s}


def test_memory_is_measured_and_grows_with_the_rows() -> None:
    code = (
        "import tests.conftest\nfrom edge_imputer.train.data.benchmark import growth_mb\n"
        "print(growth_mb(200_000, 50))"
    )
    grown = float(run_python(code))
    # 200,000 rows of 16 bytes in the manifest, and two int32 in the plan: 4.6 MB at least.
    assert 4.5 < grown < 15


def test_memory_is_measured_of_what_training_does(tmp_path: Path, caplog) -> None:
    write_manifest(tmp_path, benchmark._rows(1000))
    benchmark._draw(tmp_path, 3)
    assert "left out 10 of 1000 clips (no transcript: 10)" in caplog.text


def test_the_command_prints_and_writes_the_figures(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda digits: rows)
    monkeypatch.setattr(benchmark, "growth_apart", lambda n: 1.2345678 if n == 1_000_000 else None)
    monkeypatch.setattr(sys, "argv", ["edge-imputer", "bench", "data", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "data.json").read_text())
    assert printed["bench"] == "data"
    assert printed["rss_growth_mb_1m_rows"] == 1.235
    assert printed["audio_s_per_cpu_s"] == pytest.approx(figures(rows)["audio_s_per_cpu_s"], 1e-3)
    assert [row["stage"] for row in printed["rows"]] == [row.stage for row in rows]


@pytest.mark.slow
def test_a_million_rows_take_less_than_fifty_megabytes() -> None:
    code = (
        "import tests.conftest\nfrom edge_imputer.train.data.benchmark import growth_mb\n"
        "print(growth_mb(1_000_000))"
    )
    assert float(run_python(code)) <= 50
