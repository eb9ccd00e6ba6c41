"""`make bench-loss`, on shapes that take no time: its table, its figures, their names."""

from __future__ import annotations

import pytest

from edge_imputer.cli.benches import run_bench
from edge_imputer.train.objective import benchmark

FIGURES = (
    "speedup_vs_reduction_half_masked",
    "speedup_vs_torch_ctc_half_masked",
    "speedup_vs_torch_ctc_all_masked",
    "peak_memory_ratio",
    "max_grad_error_t1500",
    "torch_grad_error_t1500",
)


def test_bench_loss_prints_a_table_and_returns_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", ((3, 12, 6, 3), (2, 20, 8, 4)))
    monkeypatch.setattr(benchmark, "LONG", (2, 60, 6, 12))
    figures = run_bench("loss", None)
    printed = capsys.readouterr().out
    assert "3,12,6,3" in printed
    assert benchmark.describe() in printed
    assert set(FIGURES) <= set(figures)
    for name in FIGURES:
        assert figures[name] > 0
    assert figures["max_grad_error_t1500"] < 1e-5
    assert len(figures["rows"]) == 2 * 2 * len(benchmark.places())
    for row in figures["rows"]:
        assert set(row["ms"]) == set(benchmark.METHODS)


def test_random_partial_alignments_agree_with_their_targets() -> None:
    problem = benchmark.random_batch((4, 30, 9, 7), 0.5)
    for loss in (benchmark.ours, benchmark.reduction):
        assert loss(problem, problem.logits).isfinite()
