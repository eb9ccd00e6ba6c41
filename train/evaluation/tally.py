"""Keyword events of clips that were run, counted: occurrences, false alarms, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_imputer.measured import DataKind

from .events import MISSED, ScoredEvent, occurrence_scores, said_in
from .results import Condition, Confusion, Histogram, Miss, NearMiss
from .run import Heard
from .sweep import Scores

Float64 = npt.NDArray[np.float64]

N_LISTED = 50
N_BINS = 40


@dataclass(frozen=True)
class Occurrence:
    """A keyword that was said: index of the keyword, and the score up to which it is detected."""

    keyword: int
    score: float
    heard: Heard


@dataclass(frozen=True)
class Alarm:
    """An event where no keyword was said."""

    event: ScoredEvent
    heard: Heard


@dataclass(frozen=True)
class Positives:
    """Keywords said in one condition."""

    condition: Condition
    occurrences: tuple[Occurrence, ...]
    heard: tuple[Heard, ...]

    def scores(self, keyword: int | None = None) -> Float64:
        """Detection scores of one keyword, or of all, (P,)."""
        wanted = (o.score for o in self.occurrences if keyword in (None, o.keyword))
        return np.array(list(wanted), np.float64)


@dataclass(frozen=True)
class Negatives:
    """Events in audio without keywords, in one condition or in several of one kind."""

    condition: Condition
    alarms: tuple[Alarm, ...]
    heard: tuple[Heard, ...]

    @property
    def hours(self) -> float:
        """Of the clips, without what was put behind them."""
        return sum(one.seconds for one in self.heard) / 3600

    def scores(self, keyword: int | None = None) -> Float64:
        """Scores of one keyword's events, or of all, (N,)."""
        wanted = (a.event.score for a in self.alarms if keyword in (None, a.event.keyword))
        return np.array(list(wanted), np.float64)


def positives_of(
    condition: Condition, heard: Sequence[Heard], keywords: Sequence[str]
) -> Positives:
    """Match what is said in clips with their events; see `occurrence_scores`."""
    occurrences = [
        Occurrence(keyword, score, one)
        for one in heard
        for keyword, n_said in _said(one, keywords).items()
        for score in occurrence_scores(_events(one), keyword, n_said)
    ]
    return Positives(condition, tuple(occurrences), tuple(heard))


def negatives_of(condition: Condition, heard: Sequence[Heard]) -> Negatives:
    """Every event is a false alarm, at the thresholds that its score reaches."""
    alarms = tuple(Alarm(event, one) for one in heard for event in _events(one))
    return Negatives(condition, alarms, tuple(heard))


def pooled(negatives: Sequence[Negatives], kind: DataKind) -> Negatives | None:
    """Negatives of one kind and noise condition together: their hours add up."""
    parts = [n for n in negatives if n.condition.kind == kind and n.condition.by is None]
    if not parts:
        return None
    names = ", ".join(dict.fromkeys(n.condition.data for n in parts))
    first = parts[0].condition
    condition = Condition(data=names, split=first.split, kind=kind, snr_db=first.snr_db)
    return Negatives(
        condition,
        tuple(alarm for part in parts for alarm in part.alarms),
        tuple(one for part in parts for one in part.heard),
    )


def counted(
    positives: Positives | None, negatives: Negatives, keyword: int | None = None
) -> Scores:
    """What a sweep takes, of one keyword or of all."""
    said = np.zeros(0) if positives is None else positives.scores(keyword)
    return Scores(said, negatives.scores(keyword), negatives.hours)


def n_misses(positives: Positives, thresholds: Sequence[float]) -> int:
    """Keywords said that stay below their own threshold."""
    return sum(o.score < thresholds[o.keyword] for o in positives.occurrences)


def n_false_alarms(negatives: Negatives, thresholds: Sequence[float]) -> int:
    """Events that reach their keyword's threshold."""
    return sum(a.event.score >= thresholds[a.event.keyword] for a in negatives.alarms)


def confusion_of(
    positives: Positives, keywords: Sequence[str], thresholds: Sequence[float]
) -> Confusion:
    """What fired in clips that say one keyword, once: the best of those above its threshold."""
    counts = np.zeros((len(keywords), len(keywords) + 1), int)
    for one in positives.heard:
        said = _said(one, keywords)
        if sum(said.values()) != 1:
            continue
        fired = [e for e in _events(one) if e.score >= thresholds[e.keyword]]
        best = max(fired, key=lambda e: (e.score, e.keyword in said), default=None)
        counts[next(iter(said)), len(keywords) if best is None else best.keyword] += 1
    return Confusion(
        condition=positives.condition,
        keywords=tuple(keywords),
        counts=tuple(tuple(int(n) for n in row) for row in counts),
    )


def histogram_of(
    positives: Sequence[Positives], negatives: Sequence[Negatives], kind: DataKind
) -> Histogram:
    """Scores of one kind of speech; what left no event is in the first bin."""
    said = [p.scores() for p in positives if p.condition.kind == kind]
    alarms = [n.scores() for n in negatives if n.condition.kind == kind]
    edges = np.linspace(0, 1, N_BINS + 1)
    both = [
        np.histogram(np.maximum(0, np.concatenate([np.zeros(0), *part])), edges)[0]
        for part in (said, alarms)
    ]
    return Histogram(
        kind=kind,
        edges=tuple(edges.tolist()),
        positives=tuple(both[0].tolist()),
        negatives=tuple(both[1].tolist()),
    )


def near_misses(
    negatives: Sequence[Negatives], keywords: Sequence[str], thresholds: Sequence[float]
) -> tuple[NearMiss, ...]:
    """The best events where no keyword is said, best first."""
    found = [(alarm, n.condition) for n in negatives for alarm in n.alarms]
    found.sort(key=lambda item: (-item[0].event.score, item[0].heard.row.record.audio))
    return tuple(
        NearMiss(
            clip=alarm.heard.row.record.audio,
            condition=condition,
            time_s=alarm.event.time_s,
            keyword=keywords[alarm.event.keyword],
            score=alarm.event.score,
            fires=alarm.event.score >= thresholds[alarm.event.keyword],
            text=alarm.heard.row.record.text,
            label=alarm.heard.row.record.label,
        )
        for alarm, condition in found[:N_LISTED]
    )


def missed(
    positives: Sequence[Positives], keywords: Sequence[str], thresholds: Sequence[float]
) -> tuple[Miss, ...]:
    """Keywords that were said and do not fire, lowest scores first."""
    found = [
        (o, p.condition)
        for p in positives
        for o in p.occurrences
        if o.score < thresholds[o.keyword]
    ]
    found.sort(key=lambda item: (item[0].score, item[0].heard.row.record.audio))
    return tuple(
        Miss(
            clip=o.heard.row.record.audio,
            condition=condition,
            keyword=keywords[o.keyword],
            score=None if o.score == MISSED else o.score,
        )
        for o, condition in found[:N_LISTED]
    )


def _said(one: Heard, keywords: Sequence[str]) -> Mapping[int, int]:
    return said_in(one.row.record.text, one.row.record.label, keywords)


def _events(one: Heard) -> list[ScoredEvent]:
    return [ScoredEvent(*event) for event in one.entry.events or ()]
