"""What `make bench-select` computes and writes, on a pool that takes no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_imputer.cli.main import main
from edge_imputer.cli.steps import corpus_folder
from edge_imputer.train.active import selection_benchmark as benchmark
from edge_imputer.train.active.selection_benchmark import (
    BY_SCORE,
    DEFAULT,
    WITHOUT_NETWORK,
    Bench,
    Row,
    figures,
)

from .processes import run_python


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), corpus_folder(None), sizes=(3, 6, 9))


def test_every_strategy_and_size_is_measured(bench: Bench) -> None:
    rows = bench.rows(("random", DEFAULT))
    cpu = [(row.strategy, row.n_clips) for row in rows if row.where == "one core (CPU time)"]
    of_default = [(DEFAULT, 6), (DEFAULT, 3), (DEFAULT, 9)]
    assert cpu == [(WITHOUT_NETWORK, 6), ("random", 6), *of_default]
    assert min(row.ms_per_clip for row in rows) > 0
    assert min(row.audio_s_per_s for row in rows) > 0
    assert bench.shards_agree()


def test_figures_are_of_the_middle_pool() -> None:
    where = "one core (CPU time)"
    rows = [Row(DEFAULT, n, where, ms, 9.0) for n, ms in ((3, 4.0), (6, 5.0), (9, 6.0))]
    rows += [Row(WITHOUT_NETWORK, 6, where, 1.0, 9.0), Row("random", 6, where, 2.0, 9.0)]
    rows += [Row(DEFAULT, 9, "a GPU", 0.1, 9.0)]
    assert figures(rows) == {
        "clips_per_s": 200.0,
        f"clips_per_s, {DEFAULT}": 200.0,
        "clips_per_s, random": 500.0,
        "clip_time_largest_over_smallest_pool": 1.5,
    }


def test_the_command_prints_and_writes_the_figures(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    rows = [Row(DEFAULT, 6, "one core (CPU time)", 5.0, 9.0)]
    monkeypatch.setattr(benchmark, "Bench", lambda folder, digits: bench)
    monkeypatch.setattr(bench, "rows", lambda: rows)
    grown = {(1_000_000,): 1.2345678, (1_000_000, BY_SCORE): 2.0}
    monkeypatch.setattr(benchmark, "growth_apart", lambda *args: grown[args])
    monkeypatch.setattr(benchmark, "choosing_figures", lambda: {"choosing": 3.0})
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "select", "--out", str(tmp_path)])
    assert stopped.value.code in (0, None)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "select.json").read_text())
    assert printed["bench"] == "select"
    assert printed["clips_per_s"] == 200.0
    assert printed["rss_growth_mb_1m_rows"] == 1.235
    assert printed[f"rss_growth_mb_1m_rows, {BY_SCORE}"] == 2.0
    assert printed["choosing"] == 3.0
    assert printed["two_shards_same"] is True
    assert printed["rows"][0]["strategy"] == DEFAULT


def test_choosing_takes_time_in_proportion_to_the_pool() -> None:
    found = benchmark.choosing_figures((1_000, 4_000, 16_000))
    assert min(found.values()) > 0
    assert "choosing_us_per_clip, 16000 clips" in found
    # 16 times the clips: what grows with their square would be there more than 10 times.
    assert found["choosing_time_largest_over_smallest_pool"] < 3


GROWTH = """
import tests.conftest
from edge_imputer.train.active.selection_benchmark import growth_mb
print(growth_mb({n}, {strategy!r}))
"""


@pytest.mark.parametrize("strategy", [DEFAULT, BY_SCORE])
def test_memory_is_measured_and_grows_with_the_rows(strategy: str) -> None:
    # 17 bytes a row of scores and 16 of the manifest beside them: 0.5 MB for 15,000 at least.
    assert 0.5 < float(run_python(GROWTH.format(n=15_000, strategy=strategy))) < 30


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [DEFAULT, BY_SCORE])
def test_a_million_rows_take_less_than_fifty_megabytes(strategy: str) -> None:
    assert float(run_python(GROWTH.format(n=1_000_000, strategy=strategy))) <= 50
