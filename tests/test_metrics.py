"""Error rates against brute force, intervals against known values and simulation."""

from __future__ import annotations

from functools import cache
from math import comb, exp, factorial, fsum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.bundle import Interval
from edge_imputer.errors import DataError
from edge_imputer.metrics import (
    Edits,
    bootstrap_interval,
    bootstrap_ratio,
    clopper_pearson,
    edit_distance,
    edits,
    false_alarm_rate,
    hours_needed,
    paired_difference,
    poisson_interval,
    wilson_interval,
)
from edge_imputer.metrics.special import beta_i, beta_quantile, gamma_p, gamma_quantile

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


def test_edits_add_up_and_have_a_rate() -> None:
    total = edits("a b".split(), ["a"]) + edits(["c"], "c d".split())
    assert total == Edits(0, 1, 1, 3)
    assert total.rate == 2 / 3
    with pytest.raises(DataError, match="no error rate"):
        _ = Edits(0, 0, 1, 0).rate


def test_ratio_is_of_sums_not_a_mean_of_ratios() -> None:
    found = bootstrap_ratio([0, 1], [4, 1], n=5)
    assert (found.value, found.n) == (1 / 5, 5)
    errors, words = np.arange(20.0), np.full(20, 30.0)
    found = bootstrap_ratio(errors, words, n=600)
    assert found == bootstrap_ratio(errors, words, n=600)
    assert found != bootstrap_ratio(errors, words, n=600, seed=1)
    assert found.low < found.value < found.high


def test_ratio_needs_something_to_divide_by() -> None:
    for sizes in ([], [0.0]):
        with pytest.raises(DataError, match="at least one utterance"):
            bootstrap_ratio(sizes, sizes, n=0)
    with pytest.raises(DataError, match="at least two blocks"):
        bootstrap_ratio([1, 2], [3, 3], n=6, blocks=["a", "a"])


def test_blocks_that_err_alike_widen_the_interval() -> None:
    blocks = [f"speaker{i // 20}" for i in range(200)]
    errors = [float(i // 20 % 2) for i in range(200)]  # every other speaker is always wrong
    alone = bootstrap_ratio(errors, np.ones(200), n=200)
    blocked = bootstrap_ratio(errors, np.ones(200), n=200, blocks=blocks)
    assert blocked.value == alone.value == 0.5
    assert blocked.high - blocked.low > 2 * (alone.high - alone.low)


def test_blocks_of_one_are_utterances() -> None:
    rng = np.random.default_rng(0)
    errors, words = rng.integers(0, 3, 30), rng.integers(1, 9, 30)
    names = [f"{i:02d}" for i in range(30)]  # in the order that blocks are sorted
    plain = bootstrap_ratio(errors, words, n=30)
    assert bootstrap_ratio(errors, words, n=30, blocks=names) == plain


def test_paired_difference_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 10, 300)  # what is hard for one is hard for the other
    better, worse = hard, hard + (rng.random(300) < 0.2)
    words = np.full(300, 10.0)
    found = paired_difference(worse, better, words)
    assert found.interval.value == pytest.approx((worse - better).sum() / words.sum())
    assert found.interval.low > 0
    assert found.p_value < 0.01
    first, second = (bootstrap_ratio(e, words, n=3000) for e in (better, worse))
    assert second.low < first.high  # unpaired, they overlap
    swapped = paired_difference(better, worse, words).interval
    assert (swapped.low, swapped.high) == pytest.approx((-found.interval.high, -found.interval.low))


def test_paired_difference_of_the_same_system_is_nothing() -> None:
    found = paired_difference([1, 2, 0], [1, 2, 0], [5, 5, 5])
    assert (found.interval.value, found.interval.low, found.interval.high) == (0, 0, 0)
    assert found.p_value == 1.0
    with pytest.raises(DataError, match="3 and 2"):
        paired_difference([1, 2, 0], [1, 2], [5, 5, 5])


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_few_differences_are_no_evidence_however_often_resampled(n: int) -> None:
    first = [1] * n + [0] * 3
    found = paired_difference(first, [0] * (n + 3), [5] * (n + 3))
    assert found.p_value >= 2 * 0.5**n  # signs thrown at random agree as often
    found = paired_difference([1] * n, [0] * n, [5] * n)
    assert found.p_value == 2 * 0.5**n
    assert type(found.p_value) is float  # numpy's own is no JSON


def test_paired_bootstrap_finds_differences_by_chance_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    significant = 0
    for seed in range(200):
        first, second = rng.integers(0, 4, (2, 80))  # two equally good systems
        found = paired_difference(first, second, np.full(80, 8), n_resamples=200, seed=seed)
        significant += found.p_value < 0.05
        assert (found.interval.low > 0) <= (found.p_value < 0.06)
    assert 1 <= significant <= 24  # 5 % of 200, give or take four standard errors


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


# ------------------------------------------------------------------------------ exact intervals


@given(st.integers(1, 40), st.floats(1e-3, 80))
def test_gamma_is_the_tail_of_a_poisson(k: int, mean: float) -> None:
    """P(k, x) = Pr(Poisson(x) >= k), summed term by term."""
    below = fsum(exp(-mean) * mean**i / factorial(i) for i in range(k))
    assert gamma_p(k, mean) == pytest.approx(1 - below, abs=1e-12)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_beta_is_the_tail_of_a_binomial(a: int, b: int, x: float) -> None:
    """I_x(a, b) = Pr(Binomial(a + b - 1, x) >= a), summed term by term."""
    n = a + b - 1
    tail = fsum(comb(n, i) * x**i * (1 - x) ** (n - i) for i in range(a, n + 1))
    assert beta_i(a, b, x) == pytest.approx(tail, abs=1e-12)


@given(st.floats(0.5, 1e5), st.floats(1e-4, 0.9999))
@settings(deadline=None)
def test_quantiles_invert(a: float, p: float) -> None:
    assert gamma_p(a, gamma_quantile(a, p)) == pytest.approx(p, rel=1e-8)
    x = beta_quantile(a, a / 3 + 0.5, p)
    assert beta_i(a, a / 3 + 0.5, x) == pytest.approx(p, rel=1e-7)


@pytest.mark.parametrize(
    ("count", "low", "high", "upper"),
    # Tables of exact Poisson limits, after Garwood 1936; to the digits they are printed with
    [
        (0, 0.0, 3.6889, 2.9957),
        (1, 0.0253, 5.5716, 4.7439),
        (2, 0.2422, 7.2247, 6.2958),
        (5, 1.6235, 11.6683, 10.5130),
        (10, 4.7954, 18.3904, 16.9622),
        (100, 81.36, 121.63, 118.08),
    ],
)
def test_poisson_against_tables(count: int, low: float, high: float, upper: float) -> None:
    found = false_alarm_rate(count, 1.0)
    half = 5e-3 if count == 100 else 5.1e-5
    assert (found.low, found.high, found.upper) == pytest.approx((low, high, upper), abs=half)
    twice = false_alarm_rate(count, 2.0)
    assert twice.high == pytest.approx(found.high / 2)
    assert twice.per_hour == count / 2


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe 1998, table I, method 5, and Clopper and Pearson's own closed ends
    [
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
        (20, 20, 0.8316, 1.0),
    ],
)
def test_clopper_pearson_against_published_values(k: int, n: int, low: float, high: float) -> None:
    found = clopper_pearson(k, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert (found.value, found.n) == (k / n, n)


@given(st.integers(1, 100_000), st.data())
@settings(deadline=None)
def test_clopper_pearson_mirrors_and_brackets(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    found, mirrored = clopper_pearson(k, n), clopper_pearson(n - k, n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-9)


def test_exact_intervals_cover_at_least_as_often_as_they_say() -> None:
    """By enumeration: every outcome with its probability, for many truths."""
    n = 25
    intervals = [clopper_pearson(k, n) for k in range(n + 1)]
    for p in np.linspace(0.01, 0.99, 99):
        weights = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        inside = (w for w, i in zip(weights, intervals, strict=True) if i.low <= p <= i.high)
        assert sum(inside) >= 0.95
    rates = [false_alarm_rate(k, 1.0) for k in range(60)]
    for mean in np.linspace(0.1, 20, 100):
        weights = [exp(-mean) * mean**k / factorial(k) for k in range(60)]
        pairs = list(zip(weights, rates, strict=True))
        assert sum(w for w, r in pairs if r.low <= mean <= r.high) >= 0.95
        assert sum(w for w, r in pairs if mean <= r.upper) >= 0.95


def test_poisson_covers_simulated_alarms() -> None:
    rng = np.random.default_rng(0)
    truth, hours = 0.8, 5.0
    found = [false_alarm_rate(int(k), hours) for k in rng.poisson(truth * hours, 2000)]
    covered = np.mean([r.low <= truth <= r.high for r in found])
    assert covered >= 0.95 - 4 * (0.95 * 0.05 / 2000) ** 0.5


def test_poisson_interval_of_more_errors_than_tokens() -> None:
    found = poisson_interval(10, 5)
    assert (found.value, found.n) == (2.0, 5)
    assert (found.low, found.high) == pytest.approx((4.795 / 5, 18.390 / 5), rel=1e-3)
    for k, n in ((-1, 5), (0, 0)):
        with pytest.raises(DataError, match="n >= 1"):
            poisson_interval(k, n)


def test_hours_of_the_rule_of_three() -> None:
    assert false_alarm_rate(0, 0.75).upper == pytest.approx(4.0, abs=0.01)
    assert hours_needed(0, 0.5) == pytest.approx(6.0, abs=0.01)
    assert false_alarm_rate(0, hours_needed(0, 0.5)).upper == pytest.approx(0.5)
    assert hours_needed(3, 0.5) > hours_needed(0, 0.5)


@pytest.mark.parametrize(("count", "hours"), [(0, 0.0), (0, -1.0), (-1, 1.0), (0, float("inf"))])
def test_rates_without_hours_are_refused(count: int, hours: float) -> None:
    with pytest.raises(DataError, match="hours of negatives"):
        false_alarm_rate(count, hours)


def test_bad_proportions_and_targets_are_refused() -> None:
    with pytest.raises(DataError, match="k = 3, n = 2"):
        clopper_pearson(3, 2)
    with pytest.raises(DataError, match="rate > 0"):
        hours_needed(0, 0.0)
