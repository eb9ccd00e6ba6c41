"""Error rates and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from .bundle import Interval
from .errors import DataError

Float64 = npt.NDArray[np.float64]

Z_95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Edits:
    """Least edits that turn references into hypotheses."""

    substitutions: int
    deletions: int
    insertions: int
    n_reference: int

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference token: the word error rate, where tokens are words."""
        if not self.n_reference:
            raise DataError("expected at least one reference token, got none: no error rate exists")
        return self.errors / self.n_reference

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.n_reference + other.n_reference,
        )


def edits(reference: Sequence[object], hypothesis: Sequence[object]) -> Edits:
    """Levenshtein alignment of two sequences.

    Of the alignments with the fewest edits, one with the most substitutions is counted.
    """
    # cost[j] = (errors, deletions + insertions, deletions) of the prefix seen against j tokens
    cost = [(j, j, 0) for j in range(len(hypothesis) + 1)]
    for i, wanted in enumerate(reference, start=1):
        diagonal, cost[0] = cost[0], (i, i, i)
        for j, found in enumerate(hypothesis, start=1):
            up, left = cost[j], cost[j - 1]
            cost[j] = min(
                (diagonal[0] + (wanted != found), diagonal[1], diagonal[2]),
                (up[0] + 1, up[1] + 1, up[2] + 1),
                (left[0] + 1, left[1] + 1, left[2]),
            )
            diagonal = up
    errors, indels, deletions = cost[-1]
    return Edits(errors - indels, deletions, indels - deletions, len(reference))


def edit_distance(reference: Sequence[object], hypothesis: Sequence[object]) -> int:
    """Fewest substitutions, deletions and insertions between two sequences."""
    return edits(reference, hypothesis).errors


def word_edits(references: Sequence[str], hypotheses: Sequence[str]) -> list[Edits]:
    """Edits of every utterance, words split at white space; their sum is the test set's.

    Raises
    ------
    DataError
        Not one hypothesis a reference.
    """
    if len(references) != len(hypotheses):
        raise DataError(
            f"expected one hypothesis a reference, got {len(references)} references and "
            f"{len(hypotheses)} hypotheses"
        )
    return [
        edits(reference.split(), hypothesis.split())
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]


def wer(
    references: Sequence[str], hypotheses: Sequence[str], *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Word error rate of a test set with its 95 % percentile-bootstrap interval over utterances.

    ``value`` is all word edits over all reference words, ``n`` the reference words.
    """
    per_utterance = word_edits(references, hypotheses)
    errors = np.array([one.errors for one in per_utterance], np.float64)
    words = np.array([one.n_reference for one in per_utterance], np.float64)
    value, low, high = _bootstrap_ratio(errors, words, n_resamples=n_resamples, seed=seed)
    return Interval(value=value, low=low, high=high, n=int(words.sum()))


def bootstrap_interval(
    values: Sequence[float], *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Mean of one value an utterance, with its 95 % percentile-bootstrap interval."""
    numbers = np.asarray(values, np.float64)
    value, low, high = _bootstrap_ratio(
        numbers, np.ones_like(numbers), n_resamples=n_resamples, seed=seed
    )
    return Interval(value=value, low=low, high=high, n=numbers.size)


def _bootstrap_ratio(
    numerator: Float64, denominator: Float64, *, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    """Ratio of sums and its 2.5 % and 97.5 % quantiles over resampled utterances."""
    if not denominator.sum() > 0:
        raise DataError("expected at least one utterance with a reference, got none to resample")
    n = numerator.size
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(n_resamples):  # one draw a time: memory stays at n
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        total = counts @ denominator
        if total > 0:  # a draw of empty references only has no rate
            ratios.append(float(counts @ numerator / total))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(numerator.sum() / denominator.sum()), float(low), float(high)


def wilson_interval(k: int, n: int) -> Interval:
    """Proportion k of n with its 95 % Wilson score interval (Wilson 1927).

    Raises
    ------
    DataError
        Not ``0 <= k <= n`` with n >= 1.
    """
    if not (n >= 1 and 0 <= k <= n):
        raise DataError(f"expected 0 <= k <= n and n >= 1, got k = {k}, n = {n}")
    p, z2 = k / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At k = 0 and k = n the end is exact; rounding must not put it past the value.
    return Interval(
        value=p,
        low=0.0 if k == 0 else centre - half,
        high=1.0 if k == n else centre + half,
        n=n,
    )
