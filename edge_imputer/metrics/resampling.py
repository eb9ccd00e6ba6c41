"""Percentile bootstrap (Efron 1979) of ratios: over utterances, over speakers, of differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..measured import Interval

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedDifference:
    """How much one ratio differs from another, measured on the same utterances.

    Attributes
    ----------
    interval : of first minus second; n counts what was resampled
    p_value : two-sided, the share of resamples on the other side of zero, doubled; with d units
        that differ at least 2 / 2^d, how often random signs would all agree
    """

    interval: Interval
    p_value: float


def bootstrap_interval(
    values: Sequence[float], *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Mean of one value an utterance, with its 95 % percentile-bootstrap interval."""
    numbers = np.asarray(values, np.float64)
    return bootstrap_ratio(
        numbers, np.ones_like(numbers), n_resamples=n_resamples, seed=seed, n=numbers.size
    )


def bootstrap_ratio(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    *,
    n: int,
    n_resamples: int = 1000,
    seed: int = 0,
    blocks: Sequence[str] | None = None,
) -> Interval:
    """Ratio of two sums over utterances, such as errors over words, with its 95 % interval.

    Parameters
    ----------
    numerator, denominator : (N,)
        One value an utterance.
    n : int
        What the interval states as its number of trials.
    n_resamples, seed : int
    blocks : sequence of str, optional
        One name an utterance, such as its speaker: whole blocks are resampled then, since
        utterances of one speaker err alike.

    Raises
    ------
    DataError
        The denominators sum to nothing, or there is one block only.
    """
    top, bottom = _in_blocks(numerator, denominator, blocks)
    ratios = _resampled_ratios(top, bottom, n_resamples, seed)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Interval(value=float(top.sum() / bottom.sum()), low=float(low), high=float(high), n=n)


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    denominator: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    blocks: Sequence[str] | None = None,
) -> PairedDifference:
    """Ratio of `first` minus ratio of `second` over one `denominator`, by a paired bootstrap.

    Every resample draws the same utterances for both systems, so that what is hard for both does
    not widen the interval (Bisani and Ney 2004).

    Parameters
    ----------
    first, second, denominator : (N,)
        One value an utterance: errors of both systems, and words.
    n_resamples, seed, blocks : as `bootstrap_ratio` has them
    """
    ours, theirs = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(ours) != len(theirs):
        raise DataError(
            f"expected both systems on the same utterances, got {len(ours)} and {len(theirs)}"
        )
    difference = ours - theirs
    top, bottom = _in_blocks(difference, denominator, blocks)
    draws = _resampled_ratios(top, bottom, n_resamples, seed)
    return _judged(float(top.sum() / bottom.sum()), draws, top)


def paired_change(
    first: npt.ArrayLike, second: npt.ArrayLike, *, n_resamples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Sum of `first` by that of `second`, minus 1: -0.1 is a tenth less. By a paired bootstrap.

    Every resample draws utterances and runs, the same ones for both systems: another test set and
    other seeds of training might have been had. With few runs the interval is still too narrow.

    Parameters
    ----------
    first, second : (R, N)
        Errors of both systems in R runs on N utterances; a run of one has its counterpart, such
        as the same seed, in the other.
    n_resamples, seed : int

    Raises
    ------
    DataError
        The shapes differ, or `second` has nothing.
    """
    ours, theirs = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 2 or not theirs.sum():
        raise DataError(
            "expected errors of both systems of one shape, (R, N), and some of the second, got "
            f"{ours.shape} and {theirs.shape}, {theirs.sum():g} in all"
        )
    n_runs, n = ours.shape
    rng = np.random.default_rng(seed)
    draws = np.empty(n_resamples)
    for k in range(n_resamples):
        clips = rng.multinomial(n, np.full(n, 1 / n))
        runs = rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs))
        total = float(runs @ (theirs @ clips))
        draws[k] = float(runs @ (ours @ clips)) / max(total, 1.0) - 1
    return _judged(float(ours.sum() / theirs.sum() - 1), draws, (ours - theirs).sum(0))


def _judged(value: float, draws: Float64, differences: Float64) -> PairedDifference:
    """What was measured with what its resamples say; `differences` of the units, (N,)."""
    low, high = np.quantile(draws, (0.025, 0.975))
    beyond = min((draws <= 0).mean(), (draws >= 0).mean())
    # No resample beyond zero does not make the chance nothing: one more would have been one.
    # Nor do resamples of a few differences with one sign: each of them may be chance.
    by_chance = 0.5 ** np.count_nonzero(differences)
    p_value = min(1.0, 2 * float(max(beyond, 1 / (len(draws) + 1), by_chance)))
    interval = Interval(value=value, low=float(low), high=float(high), n=len(differences))
    return PairedDifference(interval, p_value)


def _in_blocks(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    blocks: Sequence[str] | None,
) -> tuple[Float64, Float64]:
    """Sums by block, or the utterances themselves."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if not bottom.sum() > 0:
        raise DataError("expected at least one utterance with a reference, got none to resample")
    if blocks is None:
        return top, bottom
    names, index = np.unique(np.asarray(blocks), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"expected at least two blocks to resample, got {names.tolist()}")
    member = np.asarray(index)[:, None] == np.arange(len(names))  # (N, blocks)
    return top @ member, bottom @ member


def _resampled_ratios(top: Float64, bottom: Float64, n_resamples: int, seed: int) -> Float64:
    """Ratio of sums over resampled units; a draw of empty references only has none."""
    n = len(top)
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(n_resamples):  # one draw a time: memory stays at n
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        total = counts @ bottom
        if total > 0:
            ratios.append(float(counts @ top / total))
    return np.array(ratios)
