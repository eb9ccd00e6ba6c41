"""Before and after, on clips that were not trained on: intervals, and whether it got worse."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from edge_imputer.errors import AudioError
from edge_imputer.measured import FalseAlarmRate, Interval, Record
from edge_imputer.metrics import clopper_pearson, false_alarm_rate

from ..data import ClipRecord, Manifest, read_clip
from ..data.records import NOISE_LABEL
from ..evaluation.events import said_in
from ..evaluation.journal import Journal, entry_key
from ..evaluation.torch_transcriber import open_transcriber
from .mining import events_of, holds_keyword
from .spotters import Spotter

Verdict = Literal["better", "the same", "worse"]
What = Literal["missed", "fires", "misspelt"]
CERTAIN = 0.05  # a change of this probability by chance, or less, is more than chance


class Comparison(Record, frozen=True, kw_only=True):
    """The same clips before and after.

    Attributes
    ----------
    what : "missed", of clips that say a keyword; "fires", of clips that say none; "misspelt", of
        clips whose transcript has a word wrong
    clips : what they are
    before, after : share that goes wrong, with its exact interval (Clopper and Pearson)
    mended, spoilt : clips that went wrong before only, and after only
    p_value : of as uneven a change by chance, exact sign test
    """

    what: What
    clips: str
    before: Interval
    after: Interval
    mended: int
    spoilt: int
    p_value: float

    @property
    def verdict(self) -> Verdict:
        """What happened to the share that goes wrong, certain or not."""
        if self.mended == self.spoilt:
            return "the same"
        return "better" if self.mended > self.spoilt else "worse"

    def __str__(self) -> str:
        n = self.mended + self.spoilt
        doubt = "" if self.p_value <= CERTAIN else ", which may be chance"
        changed = f" ({n} clips changed, p = {self.p_value:.2g}{doubt})" if n else ""
        return f"{self.clips}, {self.what}: {self.verdict}{changed}"


class RateComparison(Record, frozen=True, kw_only=True):
    """False alarms an hour of the same audio, before and after."""

    clips: str
    before: FalseAlarmRate
    after: FalseAlarmRate


@dataclass(frozen=True)
class Case:
    """A clip to measure on; `keyword` is what it says, None: nothing that should fire."""

    folder: Path
    record: ClipRecord
    keyword: int | None


@dataclass(frozen=True)
class Outcome:
    """What a model made of the cases: which went wrong, and how often it fired in all."""

    wrong: tuple[bool | None, ...]  # None: the clip cannot be read
    n_fires: int


def judge(
    spotter: Spotter, cases: Sequence[Case], journal: Journal, *, title: str, progress: bool = True
) -> Outcome:
    """Hear clips at the model's thresholds: a miss, or a fire where nothing is said, is wrong."""
    limits = [spotter.thresholds[word] for word in spotter.keywords]

    def heard(case: Case) -> tuple[bool, int]:
        events = events_of(spotter, case.folder, case.record, journal)
        fired = [e.keyword for e in events if e.score >= limits[e.keyword]]
        wrong = bool(fired) if case.keyword is None else case.keyword not in fired
        return wrong, len(fired)

    return _outcome(cases, heard, title, progress)


def judge_transcripts(
    spotter: Spotter, cases: Sequence[Case], journal: Journal, *, title: str, progress: bool = True
) -> Outcome:
    """Write clips down: any wrong word makes a transcript wrong."""
    transcriber, _ = open_transcriber(spotter.path)
    identity = f"transcripts {spotter.identity}"

    def read(case: Case) -> tuple[bool, int]:
        waveform = read_clip(case.folder, case.record, transcriber.sample_rate)
        key = entry_key(identity, waveform)
        entry = journal.get(key)
        if entry is None:
            entry = transcriber(key, waveform)
            journal.put(entry)
        return (entry.text or "").split() != (case.record.text or "").split(), 0

    return _outcome(cases, read, title, progress)


def _outcome(
    cases: Sequence[Case], judged: Callable[[Case], tuple[bool, int]], title: str, progress: bool
) -> Outcome:
    """What comes of cases that are judged one by one: wrong or not, and how often it fired."""
    found: list[tuple[bool | None, int]] = []
    console = Console(stderr=True)
    for case in track(cases, description=title, console=console, disable=not progress):
        try:
            found.append(judged(case))
        except AudioError:
            found.append((None, 0))
    return Outcome(tuple(wrong for wrong, _ in found), sum(n for _, n in found))


def compare(what: What, clips: str, before: Outcome, after: Outcome) -> Comparison | None:
    """Both outcomes of the same cases side by side; None where there is nothing to compare."""
    both = [
        (b, a)
        for b, a in zip(before.wrong, after.wrong, strict=True)
        if b is not None and a is not None
    ]
    if not both:
        return None
    mended = sum(b and not a for b, a in both)
    spoilt = sum(a and not b for b, a in both)
    return Comparison(
        what=what,
        clips=clips,
        before=clopper_pearson(sum(b for b, _ in both), len(both)),
        after=clopper_pearson(sum(a for _, a in both), len(both)),
        mended=mended,
        spoilt=spoilt,
        p_value=sign_test(mended, spoilt),
    )


def compare_rates(clips: str, hours: float, before: Outcome, after: Outcome) -> RateComparison:
    """Events an hour before and after, with exact Poisson intervals."""
    return RateComparison(
        clips=clips,
        before=false_alarm_rate(before.n_fires, hours),
        after=false_alarm_rate(after.n_fires, hours),
    )


def sign_test(mended: int, spoilt: int) -> float:
    """Two-sided probability of so uneven a split of the clips that changed, were both as likely.

    It is McNemar's test of paired proportions, exact.
    """
    n, few = mended + spoilt, min(mended, spoilt)
    tail: int = sum(comb(n, k) for k in range(few + 1))
    return float(min(1.0, 2 * tail / 2**n))


def cases_of(
    manifest: Manifest, keywords: Sequence[str], *, most: int, seed: int
) -> tuple[list[Case], list[Case]]:
    """Clips of a split that say one keyword once, and such that say none; at most so many of each.

    Clips without a transcript and label are left out, and noises to mix in.
    """
    said: list[Case] = []
    others: list[Case] = []
    rng = np.random.default_rng(seed)
    for row in rng.permutation(len(manifest)).tolist():
        record = manifest[row]
        if record.label == NOISE_LABEL or (record.text is None and record.label is None):
            continue
        counts = said_in(record.text, record.label, keywords)
        if sum(counts.values()) == 1 and len(said) < most:
            said.append(Case(manifest.folder, record, next(iter(counts))))
        elif not counts and len(others) < most and not holds_keyword(record, keywords):
            others.append(Case(manifest.folder, record, None))
        if min(len(said), len(others)) >= most:
            break
    return said, others


def transcribed(manifest: Manifest, *, most: int, seed: int) -> list[Case]:
    """Clips of a split that have a transcript; at most so many."""
    rows = np.random.default_rng(seed).permutation(len(manifest)).tolist()
    found = (manifest[row] for row in rows)
    cases = (Case(manifest.folder, one, None) for one in found if one.text is not None)
    return list(itertools.islice(cases, most))
