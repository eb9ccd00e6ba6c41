"""What an operating point may be said to do, in plain words, and what its data cannot support.

A claim of "at most so many false alarms" is supported if the one-sided 95 % Poisson limit of the
data that had no part in choosing the threshold keeps to it. No false alarm in 0.75 h bounds the
rate only below 4 an hour; below one in two hours takes at least 6 hours without any.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Literal

from .measured import FalseAlarmRate, Interval, Measured, OperatingPoint, Record
from .metrics.intervals import hours_needed


class Claim(Record, frozen=True, kw_only=True):
    """A sentence about a model, and whether the data bear it out."""

    text: str
    verdict: Literal["supported", "unsupported", "refuted"]
    why: str

    def __str__(self) -> str:
        head = "" if self.verdict == "supported" else f"{self.verdict.upper()}: "
        return f"{head}{self.text} ({self.why})"


def false_alarm_claim(rate: FalseAlarmRate, target: float) -> Claim:
    """The claim that false alarms are no more than `target` an hour, held against a count."""
    text = f"Fires wrongly at most {how_often(target)}."
    counted = f"{_times(rate.count)} in {rate.hours:.2f} h"
    if rate.upper <= target:
        why = f"{counted}: at 95 %, fewer than {at_most(rate.upper)} an hour"
        return Claim(text=text, verdict="supported", why=why)
    if rate.low > target:
        why = f"{counted}: at 95 %, more than {at_least(rate.low)} an hour"
        return Claim(text=text, verdict="refuted", why=why)
    why = (
        f"{counted} only says, at 95 %, fewer than {at_most(rate.upper)} an hour; the claim "
        f"needs at least {hours_needed(0, target):.1f} h without any"
    )
    return Claim(text=text, verdict="unsupported", why=why)


def operating_point_claims(point: OperatingPoint) -> list[Claim]:
    """What the manifest's operating point promises, sentence by sentence.

    First what was aimed at; then, if the data do not bear that out, what they do.
    """
    measured = point.reported_on
    target = point.target_fa_per_hour
    if measured is None or measured.false_alarms is None:
        if target is None:
            return []
        why = "no negatives were heard that had no part in choosing the threshold"
        text = f"Fires wrongly at most {how_often(target)}."
        return [Claim(text=text, verdict="unsupported", why=why)]
    rate = measured.false_alarms
    claims = [] if target is None else [false_alarm_claim(rate, target)]
    if not claims or claims[0].verdict != "supported":
        limit = at_most(rate.upper)
        text = f"Fires wrongly fewer than {limit} times an hour, at 95 % confidence."
        why = f"{_times(rate.count)} in {rate.hours:.2f} h"
        claims.append(Claim(text=text, verdict="supported", why=why))
    return claims


def operating_point_lines(point: OperatingPoint) -> list[str]:
    """The operating point for people: keywords, choice, figures, claims; one sentence a line."""
    thresholds = ", ".join(f"{k} at {v:.4g}" for k, v in point.thresholds.items())
    lines = [
        f"Listens for {thresholds}. Two events of a keyword are at least "
        f"{point.refractory_s:g} s apart."
    ]
    chosen = point.chosen_on
    if chosen is None:
        lines.append("The thresholds were given, not chosen on data.")
    else:
        target = point.target_fa_per_hour
        aim = "" if target is None else f" for at most {how_often(target)}"
        missed = "" if point.target_met else "; no threshold reaches that there"
        lines.append(f"Thresholds chosen{aim} on {_data(chosen)}: {_figures(chosen)}{missed}.")
    if point.reported_on is None:
        lines.append("It was not tried on other data.")
    else:
        lines.append(f"On other data, {_data(point.reported_on)}: {_figures(point.reported_on)}.")
    return lines + [str(claim) for claim in operating_point_claims(point)]


def how_often(per_hour: float) -> str:
    """``about once in 2 hours``, ``about 3 times an hour``."""
    if per_hour < 0.995:
        return f"about once in {rate_number(1 / per_hour)} hours"
    if per_hour < 1.005:
        return "about once an hour"
    return f"about {rate_number(per_hour)} times an hour"


def rate_text(rate: FalseAlarmRate) -> str:
    """``1.4 an hour (0.035 to 7.8; 1 in 0.72 h)``."""
    return (
        f"{rate_number(rate.per_hour)} an hour ({range_text(rate)}; "
        f"{rate.count} in {rate.hours:.2f} h)"
    )


def range_text(rate: FalseAlarmRate) -> str:
    """``0.035 to 7.8``: the two-sided interval of a rate."""
    return f"{at_least(rate.low)} to {at_most(rate.high)}"


def rate_number(value: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """A rate as all of them are shown: ``0.0031``, ``0.12``, ``1.2``, ``34``, ``120``.

    Two significant digits below ten, whole numbers above, no zeros at the end; `rounding` is one
    of `decimal`'s.
    """
    exact = Decimal(value)
    last_digit = Decimal(1).scaleb(min(0, exact.adjusted() - 1))
    text = f"{exact.quantize(last_digit, rounding):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def at_most(value: float) -> str:
    """An upper limit, never rounded below itself: what is written must be borne out as well."""
    return rate_number(value, ROUND_CEILING)


def at_least(value: float) -> str:
    """A lower limit, never rounded above itself."""
    return rate_number(value, ROUND_FLOOR)


def share_text(interval: Interval) -> str:
    """``2.5 % (0.8 to 6.9, n 120)``."""
    return (
        f"{100 * interval.value:.1f} % "
        f"({100 * interval.low:.1f} to {100 * interval.high:.1f}, n {interval.n})"
    )


def _figures(measured: Measured) -> str:
    parts = []
    if measured.frr is not None:
        parts.append(f"misses {share_text(measured.frr)}")
    if measured.false_alarms is not None:
        parts.append(f"false alarms {rate_text(measured.false_alarms)}")
    return ", ".join(parts) or "nothing measured"


def _data(measured: Measured) -> str:
    kinds = {"real": "recordings", "synthetic": "synthetic speech"}
    return (
        " and ".join(
            f"{kinds[source.kind]} of {source.name} {source.split} ({source.holds})"
            for source in measured.data
        )
        or "nothing"
    )


def _times(count: int) -> str:
    return {0: "no false alarm", 1: "1 false alarm"}.get(count, f"{count} false alarms")
