"""Records of what was measured of a model, as the manifest of a bundle carries them."""

from __future__ import annotations

from typing import Literal

import msgspec

DataKind = Literal["real", "synthetic"]  # recordings of people, or generated speech


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record of a manifest: every key is written, none has a default."""


class Interval(Record, frozen=True, kw_only=True):
    """A measured proportion or rate with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


class FalseAlarmRate(Record, frozen=True, kw_only=True):
    """False alarms counted in hours of audio that hold no keyword.

    `low` to `high` is the exact two-sided 95 % Poisson interval of the rate; `upper` is its
    one-sided 95 % limit, which is what a claim of "at most so many" rests on.
    """

    count: int
    hours: float
    per_hour: float
    low: float
    high: float
    upper: float


class DataSource(Record, frozen=True, kw_only=True):
    """A split of one or more data sets of one kind, and what it was used for."""

    name: str
    split: str
    kind: DataKind
    holds: Literal["keywords", "negatives"]


class Measured(Record, frozen=True, kw_only=True):
    """How keywords did at fixed thresholds on some data."""

    data: tuple[DataSource, ...]
    frr: Interval | None  # share of spoken keywords that were missed
    false_alarms: FalseAlarmRate | None


class OperatingPoint(Record, frozen=True, kw_only=True):
    """Thresholds of certain keywords, how they were chosen, and what they do on other data."""

    thresholds: dict[str, float]  # keyword -> least score at which it fires
    target_fa_per_hour: float | None  # of all keywords together; None where thresholds were given
    target_met: bool  # whether the count on the data it was chosen on keeps to the target
    refractory_s: float  # least time between two events of one keyword
    chosen_on: Measured | None  # None where thresholds were given
    reported_on: Measured | None  # data that had no part in the choice; None if there was none
    seed: int
    created_by: str


class Metrics(Record, frozen=True, kw_only=True):
    """What was measured, on what. Nulls where nothing was measured."""

    data: str | None
    digit_accuracy: Interval | None  # exact transcripts of isolated held-out clips
    wer: Interval | None  # of sequences or sentences, by the bundle's own passes
    keyword_recall: Interval | None
    keyword_fa_per_hour: float | None
    negative_hours: float | None
