"""Error rates against brute force, intervals against known values and simulation."""

from __future__ import annotations

from functools import cache
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.bundle import Interval
from edge_imputer.errors import DataError
from edge_imputer.metrics import (
    Edits,
    bootstrap_interval,
    edit_distance,
    edits,
    wer,
    wilson_interval,
    word_edits,
)

SEQUENCES = st.text(alphabet="abc", max_size=7)


@cache
def distance(a: str, b: str) -> int:
    """Levenshtein distance by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    same = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(same, 1 + distance(a[1:], b), 1 + distance(a, b[1:]))


@given(SEQUENCES, SEQUENCES)
def test_edits_are_the_fewest_and_add_up(a: str, b: str) -> None:
    found = edits(a, b)
    assert found.errors == edit_distance(a, b) == distance(a, b)
    assert found.n_reference == len(a)
    assert found.insertions - found.deletions == len(b) - len(a)
    assert min(found.substitutions, found.deletions, found.insertions) >= 0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("one two three", "one two three", (0, 0, 0, 3)),
        ("one two three", "one too three", (1, 0, 0, 3)),
        ("one two three", "one three", (0, 1, 0, 3)),
        ("one two", "one oh two", (0, 0, 1, 2)),
        ("", "one", (0, 0, 1, 0)),
        ("one  two ", " one two", (0, 0, 0, 2)),
    ],
)
def test_word_edits(reference: str, hypothesis: str, expected: tuple[int, ...]) -> None:
    assert word_edits([reference], [hypothesis]) == [Edits(*expected)]


def test_wer_is_errors_over_all_words_not_a_mean_of_rates() -> None:
    found = wer(["one two three four", "five"], ["one two three four", "nine"])
    assert (found.value, found.n) == (1 / 5, 5)
    total = sum(word_edits(["a b", "c"], ["a", "c d"]), Edits(0, 0, 0, 0))
    assert total == Edits(0, 1, 1, 3)
    assert total.rate == 2 / 3


def test_wer_interval_is_seeded_and_brackets_the_value() -> None:
    references = ["one two three"] * 40
    hypotheses = ["one two three"] * 30 + ["one two"] * 10
    first, again = wer(references, hypotheses), wer(references, hypotheses)
    assert first == again
    assert first.low < first.value < first.high
    assert wer(references, references).high == 0.0


def test_wer_needs_pairs_and_references() -> None:
    with pytest.raises(DataError, match="2 references and 1 hypotheses"):
        wer(["a", "b"], ["a"])
    for references in ([], [""]):
        with pytest.raises(DataError, match="at least one utterance"):
            wer(references, references)
    with pytest.raises(DataError, match="no error rate"):
        _ = Edits(0, 0, 1, 0).rate


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        interval = bootstrap_interval(rng.normal(3.0, 1.0, 60).tolist(), n_resamples=300, seed=seed)
        covered += interval.low <= 3.0 <= interval.high
    assert 86 <= covered <= 100  # 95 % of 100, give or take four standard errors


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_bootstrap_stays_within_the_data(values: list[float]) -> None:
    found = bootstrap_interval(values, n_resamples=20)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found.n == len(values)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe 1998, table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(k: int, n: int, low: float, high: float) -> None:
    found = wilson_interval(k, n)
    assert (found.value, found.n) == (k / n, n)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 10**6), st.data())
def test_wilson_brackets_the_proportion(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    found = wilson_interval(k, n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    other = wilson_interval(n - k, n)
    assert found.low == pytest.approx(1 - other.high, abs=1e-12)


def test_wilson_covers_about_as_often_as_it_says() -> None:
    n = 30
    coverage = []
    for p in np.linspace(0.1, 0.9, 81):  # for one p it jumps with n, see Brown, Cai, DasGupta 2001
        within = [k for k in range(n + 1) if _within(wilson_interval(k, n), p)]
        coverage.append(sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in within))
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)


def _within(interval: Interval, p: float) -> bool:
    return interval.low <= p <= interval.high


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_proportion(k: int, n: int) -> None:
    with pytest.raises(DataError, match=f"k = {k}, n = {n}"):
        wilson_interval(k, n)
