"""What a study says: curves, areas, hours saved, and whether a difference is more than chance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.measured import Interval
from edge_imputer.metrics import PairedDifference, paired_change

from .study_journal import BASE, Measured

RANDOM = "random"


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """After a round, over all seeds.

    Attributes
    ----------
    hours : float
        Labelled, the mean.
    rate : float
        Share that is wrong, the mean of the seeds'.
    low, high : float
        The best and the worst seed's.
    noise : float
        Pieces of noise that were labelled, the mean.
    """

    hours: float
    rate: float
    low: float
    high: float
    noise: float


class AgainstRandom(msgspec.Struct, frozen=True, kw_only=True):
    """How a strategy compares with labelling at random, at equal hours.

    Attributes
    ----------
    relative : Interval
        Errors of all rounds by random's, minus 1: -0.1 is a tenth fewer. By a paired bootstrap
        over the clips of the test and the seeds.
    relative_at_end : Interval
        The same of the last round.
    p_value : float
        Of the first, two-sided. It knows nothing of other strategies that were tried.
    by_seed : tuple of float
        `relative` of each seed.
    """

    relative: Interval
    relative_at_end: Interval
    p_value: float
    by_seed: tuple[float, ...]


class StrategyCurve(msgspec.Struct, frozen=True, kw_only=True):
    """A strategy's curve.

    Attributes
    ----------
    strategy : str
    points : tuple of CurvePoint
        The base first.
    area : float
        Under the curve, by the hours it spans: the mean share that is wrong on the way.
    hours_to_random : float or None
        Labelled where the curve first is as low as random's last point; None: never, or there is
        no random to compare with.
    against_random : AgainstRandom or None
    """

    strategy: str
    points: tuple[CurvePoint, ...]
    area: float
    hours_to_random: float | None = None
    against_random: AgainstRandom | None = None


class StudyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table ``active_study``; `wer` is the share of missed keywords of such models."""

    strategy: str
    hours: float
    wer: float
    seed: int


class StudyReport(msgspec.Struct, frozen=True, kw_only=True):
    """``study.json``.

    Attributes
    ----------
    what : "wer" or "missed keywords", see `count_errors`
    curves : tuple of StrategyCurve
        The lowest area first.
    active_study : tuple of StudyRow
    best : str
        The strategy with the lowest area.
    command, created_by : str
    """

    what: str
    best: str
    curves: tuple[StrategyCurve, ...]
    active_study: tuple[StudyRow, ...]
    command: str = ""
    created_by: str = ""


def study_report(
    found: Sequence[Measured], *, what: str, command: str = "", created_by: str = ""
) -> StudyReport:
    """Make the report of everything that a study measured.

    Parameters
    ----------
    found : of `run_study`
    what, command, created_by : see `StudyReport`
    """
    runs = _runs(found)
    points = {strategy: _points(seeds) for strategy, seeds in runs.items()}
    curves = []
    for strategy, curve in points.items():
        goal = points[RANDOM][-1].rate if RANDOM in points else None
        versus = None
        if RANDOM in runs and strategy != RANDOM:
            versus = _against(runs[strategy], runs[RANDOM])
        curves.append(
            StrategyCurve(
                strategy=strategy,
                points=curve,
                area=_area(curve),
                hours_to_random=None if goal is None else _hours_to(curve, goal),
                against_random=versus,
            )
        )
    curves.sort(key=lambda curve: curve.area)
    return StudyReport(
        what=what,
        best=curves[0].strategy,
        curves=tuple(curves),
        active_study=tuple(
            StudyRow(strategy=m.strategy, hours=m.hours, wer=round(m.rate, 6), seed=m.seed)
            for m in found
        ),
        command=command,
        created_by=created_by,
    )


def _runs(found: Sequence[Measured]) -> dict[str, list[list[Measured]]]:
    """For each strategy, for each seed, the rounds in their order, the base first."""
    bases = {m.seed: m for m in found if m.strategy == BASE}
    runs: dict[str, dict[int, list[Measured]]] = {}
    for measured in sorted(found, key=lambda m: m.round):
        if measured.strategy != BASE:
            seeds = runs.setdefault(measured.strategy, {})
            seeds.setdefault(measured.seed, [bases[measured.seed]]).append(measured)
    return {name: [seeds[seed] for seed in sorted(seeds)] for name, seeds in runs.items()}


def _points(seeds: Sequence[Sequence[Measured]]) -> tuple[CurvePoint, ...]:
    points = []
    for after in zip(*seeds, strict=True):
        rates = [m.rate for m in after]
        points.append(
            CurvePoint(
                hours=float(np.mean([m.hours for m in after])),
                rate=float(np.mean(rates)),
                low=min(rates),
                high=max(rates),
                noise=float(np.mean([m.n_noise for m in after])),
            )
        )
    return tuple(points)


def _area(curve: Sequence[CurvePoint]) -> float:
    """Mean height by the trapezoids under the points."""
    hours = np.array([point.hours for point in curve])
    rates = np.array([point.rate for point in curve])
    return float((np.diff(hours) * (rates[1:] + rates[:-1]) / 2).sum() / (hours[-1] - hours[0]))


def _hours_to(curve: Sequence[CurvePoint], goal: float) -> float | None:
    """Where straight lines between the points first come down to the goal."""
    if curve[0].rate <= goal:
        return curve[0].hours
    for before, after in itertools.pairwise(curve):
        if after.rate <= goal:
            share = (before.rate - goal) / (before.rate - after.rate)
            return before.hours + share * (after.hours - before.hours)
    return None


def _against(
    ours: Sequence[Sequence[Measured]], theirs: Sequence[Sequence[Measured]]
) -> AgainstRandom:
    """Clips are resampled with all their rounds, which err alike; and seeds."""
    first, second = _errors(ours), _errors(theirs)
    rounds = _change(first, second)
    return AgainstRandom(
        relative=rounds.interval,
        relative_at_end=_change(_errors(ours, last=1), _errors(theirs, last=1)).interval,
        p_value=rounds.p_value,
        by_seed=tuple((first.sum(1) / np.maximum(second.sum(1), 1) - 1).tolist()),
    )


def _errors(runs: Sequence[Sequence[Measured]], last: int | None = None) -> npt.NDArray[np.int64]:
    """Of every seed and clip, (S, N): of all rounds, or of the last ones."""
    first = 1 if last is None else -last
    return np.array([np.sum([m.errors for m in run[first:]], axis=0) for run in runs])


def _change(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> PairedDifference:
    if not second.sum():
        return PairedDifference(Interval(value=0.0, low=0.0, high=0.0, n=first.shape[1]), 1.0)
    return paired_change(first, second)
