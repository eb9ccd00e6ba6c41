"""Choosing clips that differ, under a budget of seconds; and what scores cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import DataError, SpecError
from edge_imputer.train.active import STRATEGIES, choose_diverse, diversity
from edge_imputer.train.active.benchmark import time_strategies

from .test_tasks import CASES, batch, task


def pool(n: int, seed: int = 0, dimensions: int = 4) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(n, dimensions)).astype(np.float32)
    return embeddings, rng.random(n) + 0.1, rng.uniform(1, 9, n)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.floats(0, 400), st.integers(0, 99), st.integers(1, 7))
def test_the_budget_is_kept_and_used(n, budget, seed, picks):
    embeddings, weights, durations = pool(n, seed)
    chosen = choose_diverse(embeddings, weights, durations, budget, seed, picks=picks)
    assert len(set(chosen.tolist())) == len(chosen)
    left = budget - durations[chosen].sum()
    assert left >= 0
    rest = np.setdiff1d(np.arange(n), chosen)
    assert (durations[rest] > left).all()  # nothing that would still fit
    again = choose_diverse(embeddings, weights, durations, budget, seed, picks=picks)
    assert chosen.tolist() == again.tolist()


def test_the_order_is_drawn_by_weight_and_distance():
    """The first two of many runs, against the probabilities of all pairs."""
    embeddings = np.array([[1, 0], [3, 0], [0, 2], [0, 2.5]], np.float32)
    weights, durations = np.array([1.0, 0.5, 2.0, 1.0]), np.ones(4)
    n = 8_000
    counts = np.zeros((4, 4))
    for seed in range(n):
        first, second = choose_diverse(embeddings, weights, durations, 2, seed)
        counts[first, second] += 1
    first_mass = weights * (embeddings**2).sum(1)
    for i in range(4):
        near = ((embeddings - embeddings[i]) ** 2).sum(1)
        near = weights * np.minimum(near, (embeddings**2).sum(1))
        p = first_mass[i] / first_mass.sum() * near / near.sum()
        assert np.abs(counts[i] - n * p).max() < 4.5 * np.sqrt(n * 0.25 * p.max() + 1)


def test_doubles_come_last_and_what_weighs_nothing_after_them():
    rng = np.random.default_rng(3)
    ones = rng.normal(size=(10, 64)).astype(np.float32) * 30
    embeddings = np.repeat(ones, 4, 0)
    weights = np.ones(40)
    weights[4:8] = 0
    for seed in range(20):
        chosen = choose_diverse(embeddings, weights, np.ones(40), 1000, seed).tolist()
        assert sorted({row // 4 for row in chosen[:9]}) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
        assert sorted(chosen) == [*range(40)]
        assert sorted(chosen[36:]) == [4, 5, 6, 7]
        assert choose_diverse(embeddings, 0 * weights, np.ones(40), 5.0, seed).size == 5
    nothing = choose_diverse(np.zeros((5, 3), np.float32), np.ones(5), np.ones(5), 3, 0)
    assert len(nothing) == 3


def test_memory_maps_are_read_in_chunks(tmp_path, monkeypatch):
    embeddings, weights, durations = pool(500, 4)
    whole = choose_diverse(embeddings, weights, durations, 300, 5)
    np.save(tmp_path / "e.npy", embeddings)
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    monkeypatch.setattr(diversity, "CHUNK", 64)
    assert choose_diverse(mapped, weights, durations, 300, 5).tolist() == whole.tolist()


def test_clusters_are_all_visited():
    """Of 20 clusters, one of them with nine tenths of the clips, where random misses some."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 16)) * 20
    cluster = np.where(rng.random(2000) < 0.9, 0, rng.integers(0, 20, 2000))
    embeddings = (centres[cluster] + rng.normal(size=(2000, 16))).astype(np.float32)
    chosen = choose_diverse(embeddings, np.ones(2000), np.ones(2000), 20, 1)
    assert len(set(cluster[chosen])) >= 18
    assert len(set(cluster[rng.choice(2000, 20)])) <= 8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"embeddings": np.zeros(4)}, r"embeddings \(N, D\) with N weights"),
        ({"weights": np.ones(3)}, r"got \(4, 2\), \(3,\) and \(4,\)"),
        ({"weights": np.array([1, 1, -1, 1])}, "weights: expected finite"),
        ({"weights": np.array([1, np.nan, 1, 1])}, "weights: expected finite"),
        ({"durations": np.array([1, 0, 1, 1])}, "durations: expected finite seconds above 0"),
        ({"budget_s": -1.0}, "a budget of 0 s or more"),
        ({"budget_s": float("nan")}, "a budget of 0 s or more"),
        ({"picks": 0}, "1 pick or more"),
        ({"embeddings": np.array([[0, 1], [np.nan, 1], [0, 0], [1, 1]])}, "finite embeddings"),
    ],
)
def test_what_makes_no_sense_is_refused(change, reason):
    given = {
        "embeddings": np.ones((4, 2), np.float32),
        "weights": np.ones(4),
        "durations": np.ones(4),
        "budget_s": 1.0,
        "seed": 0,
    }
    with pytest.raises(SpecError, match=reason):
        choose_diverse(**{**given, **change})


def test_every_strategy_is_timed():
    found = time_strategies(task(*CASES["ctc"]).float(), [float_batch(), float_batch()])
    assert set(found) == set(STRATEGIES)
    assert all(rate > 0 for rate in found.values())
    assert found["random"] > found["egl"]
    with pytest.raises(DataError, match="expected clips"):
        time_strategies(task(*CASES["ctc"]), [])


def float_batch() -> Any:
    b = batch((160, 96, 64, 32))
    b.features = b.features.float()
    return b
