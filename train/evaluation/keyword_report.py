"""Keywords: misses beside false alarms, a threshold chosen on valid, everything else on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer import __version__
from edge_imputer.claims import operating_point_claims
from edge_imputer.errors import DataError
from edge_imputer.measured import DataKind, DataSource, Measured, OperatingPoint
from edge_imputer.metrics import clopper_pearson, false_alarm_rate

from . import tally
from .events import RULE, pick_events, said_in
from .journal import Entry
from .results import Curve, FalseAlarmRow, KeywordReport, KeywordRow, MissRow, RunInfo
from .rows import DataSet
from .run import Runner, by_key, by_kind
from .sweep import choose_threshold
from .systems import KeywordSystem
from .tally import Negatives, Positives, counted, pooled

KINDS: tuple[DataKind, ...] = ("real", "synthetic")


class KeywordScoring:
    """A keyword system, as `Runner.compute` for keywords: a clip's events at all thresholds."""

    def __init__(self, system: KeywordSystem, refractory_s: float) -> None:
        self.system = system
        self.refractory_s = refractory_s

    def identity(self, model: str) -> str:
        """Everything that a clip's events depend on; `model` says it of the system."""
        settings = [__version__, model, self.system.keywords, self.refractory_s, RULE]
        return f"keywords {msgspec.json.encode(settings).decode()}"

    def __call__(self, key: str, waveform: npt.NDArray[np.float32]) -> Entry:
        """Score a clip as a stream that then ends, once, and keep its peaks."""
        scores = self.system.score(waveform)
        events = pick_events(scores, self.system.frame_s, self.refractory_s)
        return Entry(key=key, events=tuple((e.keyword, e.time_s, e.score) for e in events))


@dataclass(frozen=True)
class Material:
    """Data sets of one split: what says keywords, and what does not."""

    positives: Sequence[DataSet]
    negatives: Sequence[DataSet]


@dataclass(frozen=True)
class Aim:
    """How thresholds come about: given, or chosen on `chosen_on` for a target."""

    target_fa_per_hour: float | None
    thresholds: Mapping[str, float] | None
    chosen_on: Material | None


@dataclass(frozen=True)
class _Noise:
    """Everything of one noise condition, by data set and kind."""

    snr_db: float | None
    positives: list[Positives]
    negatives: list[Negatives]

    def opposite(self, kind: DataKind) -> Negatives | None:
        """Negatives for positives of a kind: of the same kind, or else the other, which is said."""
        other: DataKind = "synthetic" if kind == "real" else "real"
        return pooled(self.negatives, kind) or pooled(self.negatives, other)


def evaluate_keywords(
    runner: Runner,
    keywords: Sequence[str],
    material: Material,
    aim: Aim,
    snrs_db: Sequence[float | None],
    info: RunInfo,
    *,
    refractory_s: float,
    by: Sequence[str] = (),
) -> KeywordReport:
    """Misses, false alarms and everything about them.

    Parameters
    ----------
    runner : Runner
        Whose `compute` is a `KeywordScoring`.
    keywords : in the order of the system's scores
    material : Material
        What is reported on; it has no part in the choice of a threshold.
    aim : Aim
    snrs_db : None for clean, which must be the first, then decibels
    info : RunInfo
        What was clear before running.
    refractory_s : float
    by : keys of the manifests to break rates down by

    Raises
    ------
    DataError
        No keyword is said in the data, there are no negatives, or none to choose a threshold on.
    """
    notes = list(info.notes)
    scenes = [_scene(runner, keywords, material, snr_db, notes) for snr_db in snrs_db]
    _check(scenes[0], material)
    point = _operating_point(runner, keywords, aim, scenes[0], info, refractory_s, notes)
    thresholds = [point.thresholds[keyword] for keyword in keywords]
    clean = scenes[0]
    info = msgspec.structs.replace(
        info,
        notes=tuple(dict.fromkeys(notes)),
        skipped=tuple(f"{name}: {why}" for name, why in runner.skipped.items()),
    )
    present = [k for k in KINDS if any(p.condition.kind == k for p in clean.positives)]
    return KeywordReport(
        run=info,
        keywords=tuple(keywords),
        operating_point=point,
        claims=tuple(operating_point_claims(point)),
        misses=tuple(row for s in scenes for row in _miss_rows(s, keywords, thresholds, by)),
        false_alarms=tuple(row for s in scenes for row in _alarm_rows(s, thresholds, by)),
        by_keyword=tuple(
            row for kind in present for row in _keyword_rows(clean, keywords, thresholds, kind)
        ),
        curves=tuple(curve for s in scenes for curve in _curves(s)),
        confusions=tuple(tally.confusion_of(p, keywords, thresholds) for p in clean.positives),
        histograms=tuple(
            tally.histogram_of(clean.positives, clean.negatives, kind)
            for kind in KINDS
            if kind in present or any(n.condition.kind == kind for n in clean.negatives)
        ),
        near_misses=tally.near_misses(clean.negatives, keywords, thresholds),
        missed=tally.missed(clean.positives, keywords, thresholds),
    )


def _scene(
    runner: Runner,
    keywords: Sequence[str],
    material: Material,
    snr_db: float | None,
    notes: list[str],
) -> _Noise:
    """Run one noise condition; rows that do not belong are left out and said in `notes`."""
    positives, negatives = [], []
    for data in material.positives:
        rows = [r for r in data.rows if said_in(r.record.text, r.record.label, keywords)]
        if len(rows) < len(data.rows):
            notes.append(
                f"{data.name} {data.split}: {len(data.rows) - len(rows)} of {len(data.rows)} clips "
                "say none of the keywords and are left out."
            )
        for condition, heard in by_kind(data, runner.run(data, snr_db, rows=rows), snr_db):
            positives.append(tally.positives_of(condition, heard, keywords))
    for data in material.negatives:
        rows = [r for r in data.rows if not said_in(r.record.text, r.record.label, keywords)]
        if len(rows) < len(data.rows):
            notes.append(
                f"{data.name} {data.split}: {len(data.rows) - len(rows)} of {len(data.rows)} clips "
                "say a keyword and are not counted as negatives."
            )
        unheard = sum(r.record.text is None and r.record.label is None for r in rows)
        if unheard:
            notes.append(
                f"{data.name} {data.split}: {unheard} negatives have no transcript; a keyword said "
                "in one of them counts as a false alarm."
            )
        for condition, heard in by_kind(data, runner.run(data, snr_db, rows=rows), snr_db):
            negatives.append(tally.negatives_of(condition, heard))
    return _Noise(snr_db, positives, negatives)


def _check(clean: _Noise, material: Material) -> None:
    if not any(p.occurrences for p in clean.positives):
        names = ", ".join(f"{d.name} {d.split}" for d in material.positives)
        raise DataError(
            f"expected clips that say a keyword, found none in {names}; give data whose texts or "
            "labels hold them, or another --split"
        )
    if not sum(n.hours for n in clean.negatives) > 0:
        names = ", ".join(f"{d.name} {d.split}" for d in material.negatives) or "no data set"
        raise DataError(
            f"expected audio without keywords to count false alarms in, found 0 hours in {names}; "
            "give --negatives MANIFEST: misses alone say nothing about a threshold"
        )


def _operating_point(
    runner: Runner,
    keywords: Sequence[str],
    aim: Aim,
    clean: _Noise,
    info: RunInfo,
    refractory_s: float,
    notes: list[str],
) -> OperatingPoint:
    chosen_on, target_met = None, True
    if aim.thresholds is not None:
        thresholds = dict(aim.thresholds)
    else:
        if aim.chosen_on is None or aim.target_fa_per_hour is None:
            raise DataError("expected thresholds, or data and a target to choose them by")
        valid = _scene(runner, keywords, aim.chosen_on, None, notes)
        negatives = pooled(valid.negatives, "real") or pooled(valid.negatives, "synthetic")
        if negatives is None or not negatives.hours > 0:
            names = ", ".join(f"{d.name} {d.split}" for d in aim.chosen_on.negatives)
            raise DataError(
                f"expected negatives to choose a threshold on, found none in {names}; give "
                "negatives that have this split, another --tune-split, or a --threshold"
            )
        positives = _best(valid.positives, negatives.condition.kind)
        if positives is None:
            names = ", ".join(f"{d.name} {d.split}" for d in aim.chosen_on.positives)
            raise DataError(
                "expected clips that say a keyword to choose a threshold on, found none in "
                f"{names}; give data that have this split, another --tune-split, or a --threshold"
            )
        choice = choose_threshold(counted(positives, negatives), aim.target_fa_per_hour)
        thresholds, target_met = dict.fromkeys(keywords, choice.threshold), choice.target_met
        chosen_on = _measured(positives, negatives, list(thresholds.values()))
    reported = _best(clean.positives, "real")
    assert reported is not None  # `_check` has seen to it
    return OperatingPoint(
        thresholds=thresholds,
        target_fa_per_hour=aim.target_fa_per_hour,
        target_met=target_met,
        refractory_s=refractory_s,
        chosen_on=chosen_on,
        reported_on=_measured(
            reported,
            clean.opposite(reported.condition.kind),
            [thresholds[keyword] for keyword in keywords],
        ),
        seed=info.seed,
        created_by=info.created_by,
    )


def _best(positives: Sequence[Positives], kind: DataKind) -> Positives | None:
    """Positives of a kind together, else those of the other kind; never both."""
    other: DataKind = "synthetic" if kind == "real" else "real"
    for wanted in (kind, other):
        parts = [p for p in positives if p.condition.kind == wanted and p.occurrences]
        if parts:
            names = ", ".join(dict.fromkeys(p.condition.data for p in parts))
            condition = msgspec.structs.replace(parts[0].condition, data=names)
            return Positives(
                condition,
                tuple(o for p in parts for o in p.occurrences),
                tuple(h for p in parts for h in p.heard),
            )
    return None


def _measured(
    positives: Positives | None, negatives: Negatives | None, thresholds: Sequence[float]
) -> Measured:
    data, frr, rate = [], None, None
    if positives is not None:
        frr = clopper_pearson(tally.n_misses(positives, thresholds), len(positives.occurrences))
        data.append(_source(positives, "keywords"))
    if negatives is not None:
        rate = false_alarm_rate(tally.n_false_alarms(negatives, thresholds), negatives.hours)
        data.append(_source(negatives, "negatives"))
    return Measured(data=tuple(data), frr=frr, false_alarms=rate)


def _source(part: Positives | Negatives, role: Literal["keywords", "negatives"]) -> DataSource:
    condition = part.condition
    return DataSource(name=condition.data, split=condition.split, kind=condition.kind, holds=role)


def _miss_rows(
    scene: _Noise, keywords: Sequence[str], thresholds: Sequence[float], by: Sequence[str]
) -> list[MissRow]:
    rows = []
    for positives in scene.positives:
        negatives = scene.opposite(positives.condition.kind)
        rate = (
            None
            if negatives is None
            else false_alarm_rate(tally.n_false_alarms(negatives, thresholds), negatives.hours)
        )
        groups = [positives]
        for key in by:
            parts = by_key(positives.condition, positives.heard, key)
            groups += [tally.positives_of(c, heard, keywords) for c, heard in parts]
        rows += [
            MissRow(
                condition=group.condition,
                frr=clopper_pearson(tally.n_misses(group, thresholds), len(group.occurrences)),
                negatives=None if negatives is None else str(negatives.condition),
                false_alarms=rate,
            )
            for group in groups
        ]
    return rows


def _alarm_rows(
    scene: _Noise, thresholds: Sequence[float], by: Sequence[str]
) -> list[FalseAlarmRow]:
    rows = []
    for negatives in scene.negatives:
        groups = [negatives]
        for key in by:
            parts = by_key(negatives.condition, negatives.heard, key)
            groups += [tally.negatives_of(c, heard) for c, heard in parts if len(parts) > 1]
        rows += [
            FalseAlarmRow(
                condition=group.condition,
                false_alarms=false_alarm_rate(tally.n_false_alarms(group, thresholds), group.hours),
            )
            for group in groups
            if group.hours > 0
        ]
    return rows


def _keyword_rows(
    clean: _Noise, keywords: Sequence[str], thresholds: Sequence[float], kind: DataKind
) -> list[KeywordRow]:
    positives, negatives = _best(clean.positives, kind), clean.opposite(kind)
    if positives is None or negatives is None:
        return []
    rows = []
    for index, keyword in enumerate(keywords):
        scores = counted(positives, negatives, index)
        threshold = thresholds[index]
        said = len(scores.positives)
        rows.append(
            KeywordRow(
                keyword=keyword,
                kind=kind,
                threshold=threshold,
                frr=clopper_pearson(int(scores.misses(threshold)), said) if said else None,
                false_alarms=false_alarm_rate(int(scores.false_alarms(threshold)), scores.hours),
            )
        )
    return rows


def _curves(scene: _Noise) -> list[Curve]:
    curves = []
    for positives in scene.positives:
        negatives = scene.opposite(positives.condition.kind)
        if negatives is not None and positives.occurrences:
            curves.append(
                Curve(
                    condition=positives.condition,
                    negatives=str(negatives.condition),
                    points=tuple(counted(positives, negatives).curve()),
                )
            )
    return curves
