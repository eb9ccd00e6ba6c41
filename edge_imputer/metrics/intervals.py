"""Intervals of proportions and of rates at a 95 % level: Wilson, Clopper-Pearson, Poisson."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

from ..errors import DataError
from ..measured import FalseAlarmRate, Interval
from .special import beta_quantile, gamma_quantile

Z_95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval
_TAIL = 0.025


def wilson_interval(k: int, n: int) -> Interval:
    """Proportion k of n with its 95 % Wilson score interval (Wilson 1927).

    Raises
    ------
    DataError
        Not ``0 <= k <= n`` with n >= 1.
    """
    _check_proportion(k, n)
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


def clopper_pearson(k: int, n: int) -> Interval:
    """Proportion k of n with its exact 95 % interval (Clopper and Pearson 1934).

    It covers the truth at least 95 times in 100, whatever the truth is: what a share of missed
    keywords is stated with.

    Raises
    ------
    DataError
        Not ``0 <= k <= n`` with n >= 1.
    """
    _check_proportion(k, n)
    low, high = _clopper_pearson(k, n)
    return Interval(value=k / n, low=low, high=high, n=n)


def false_alarm_rate(count: int, hours: float) -> FalseAlarmRate:
    """False alarms an hour with their exact Poisson limits (Garwood 1936).

    Parameters
    ----------
    count : int
        Events, not frames.
    hours : float
        Of audio without a keyword.

    Raises
    ------
    DataError
        A negative count, or hours that are not positive.
    """
    if not (count >= 0 and 0 < hours < float("inf")):
        raise DataError(
            f"expected a count >= 0 and more than 0 hours of negatives, got {count} in {hours} h; "
            "a rate of false alarms needs audio in which no keyword is said"
        )
    low, high, upper = _poisson_limits(count)
    return FalseAlarmRate(
        count=count,
        hours=hours,
        per_hour=count / hours,
        low=low / hours,
        high=high / hours,
        upper=upper / hours,
    )


def poisson_interval(k: int, n: int) -> Interval:
    """Rate of k errors in n tokens with its exact 95 % Poisson limits; k may be above n.

    Raises
    ------
    DataError
        Not ``k >= 0`` and ``n >= 1``.
    """
    if not (k >= 0 and n >= 1):
        raise DataError(f"expected k >= 0 and n >= 1, got k = {k}, n = {n}")
    low, high, _ = _poisson_limits(k)
    return Interval(value=k / n, low=low / n, high=high / n, n=n)


def hours_needed(count: int, fa_per_hour: float) -> float:
    """Hours with `count` false alarms that bound their rate below `fa_per_hour` at 95 %.

    With none it is the rule of three: 3 / rate, 6 hours for 0.5 an hour.
    """
    if not (count >= 0 and fa_per_hour > 0):
        raise DataError(f"expected a count >= 0 and a rate > 0, got {count} and {fa_per_hour}")
    return _poisson_limits(count)[2] / fa_per_hour


@lru_cache(maxsize=1 << 16)
def _clopper_pearson(k: int, n: int) -> tuple[float, float]:
    low = beta_quantile(k, n - k + 1, _TAIL) if k else 0.0
    high = beta_quantile(k + 1, n - k, 1 - _TAIL) if k < n else 1.0
    return low, high


@lru_cache(maxsize=1 << 16)
def _poisson_limits(count: int) -> tuple[float, float, float]:
    """Two-sided low and high, one-sided upper limit of the mean of a Poisson count."""
    low = gamma_quantile(count, _TAIL) if count else 0.0
    high, upper = (gamma_quantile(count + 1, p) for p in (1 - _TAIL, 1 - 2 * _TAIL))
    return low, high, upper


def _check_proportion(k: int, n: int) -> None:
    if not (n >= 1 and 0 <= k <= n):
        raise DataError(f"expected 0 <= k <= n and n >= 1, got k = {k}, n = {n}")
