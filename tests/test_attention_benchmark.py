"""What `make bench-attention` computes and writes, at lengths that take no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from edge_imputer.cli.main import main
from edge_imputer.train.benchmark import cpu_threads, peak_bytes
from edge_imputer.train.layers import benchmark
from edge_imputer.train.layers.attention import pattern_mask
from edge_imputer.train.layers.benchmark import DENSE, KEPT, SPARSE, Row, figures, flex_rule, sized


def test_blocks_are_near_the_square_root() -> None:
    blocks = [sized(SPARSE["local+fixed"], n).block for n in benchmark.LENGTHS]
    assert blocks == [32, 32, 64, 64, 128, 128, 256]
    for spec in SPARSE.values():
        for n in benchmark.LENGTHS:
            sized(spec, n).check(benchmark.HEADS * benchmark.WIDTH)
            assert n % sized(spec, n).block == 0


def test_figures_are_the_rows() -> None:
    power = {DENSE: 2.0, KEPT: 2.0, "local": 1.0, "fixed": 1.5, "strided": 1.4}
    power |= {"local+fixed": 1.45, "local+fixed, c = 8": 1.55}
    rows = [
        Row(method, n, None, "1 thread (CPU time)", (n / 1024) ** p, 0.0, 100 if p == 2 else 25)
        for method, p in power.items()
        for n in benchmark.LENGTHS
    ]
    rows += [Row(DENSE, n, None, "a GPU", 1e-9, 0.0, 1) for n in benchmark.LENGTHS]
    found = figures(rows)
    assert found["loglog_slope"] == pytest.approx(1.45)
    assert found["loglog_slope, dense"] == pytest.approx(2)
    assert found["loglog_slope, local"] == pytest.approx(1)
    assert found["speedup_vs_dense_4096"] == pytest.approx(4**0.55)
    assert found["memory_ratio_vs_dense_4096"] == 0.25


def test_flex_attention_would_compute_the_same() -> None:
    spec = sized(SPARSE["local+fixed"], 64)
    mask = create_mask(flex_rule(spec), None, None, 64, 64, device="cpu")
    assert torch.equal(mask[0, 0], pattern_mask(spec, 64)[0])


def test_peak_counts_what_is_held_at_once() -> None:
    def call() -> None:
        for _ in range(3):
            torch.ones(1_000_000).sum()

    with cpu_threads(1):
        assert 4_000_000 <= peak_bytes(call) < 4_100_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "LENGTHS", (64, 128))
    monkeypatch.setattr(benchmark, "SLOPE_FROM", 64)
    monkeypatch.setattr(benchmark, "COMPARED_AT", 128)
    monkeypatch.setattr(benchmark, "KEPT_TO", 128)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def bench(capsys: pytest.CaptureFixture[str], out: Path) -> str:
    """What the command prints."""
    with pytest.raises(SystemExit) as stop:
        main(["bench", "attention", "--out", str(out)])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_the_command_writes_figures_and_a_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    printed = json.loads(bench(capsys, tmp_path).splitlines()[-1])
    assert printed == json.loads((tmp_path / "attention.json").read_text())
    assert {"loglog_slope", "speedup_vs_dense_128", "memory_ratio_vs_dense_128"} <= set(printed)
    assert len(printed["rows"]) == 2 * (2 + len(SPARSE))
    assert all(row["ms"] > 0 and row["memory_bytes"] > 0 for row in printed["rows"])
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small")
def test_without_matplotlib_there_are_figures_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = bench(capsys, tmp_path)
    assert "no picture: matplotlib could not be imported" in out
    json.loads(out.splitlines()[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["attention.json"]
