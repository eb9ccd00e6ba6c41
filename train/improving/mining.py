"""Hard negatives: the sounds without a keyword that a trained model takes for one.

Arik et al. 2017 (arXiv:1703.05390, section 3) train until the model has converged, look for the
negatives that it scores high, and train on with these. What is found here is a corpus folder whose
rows are windows of the original recordings, with a label of their own (`HARD_LABEL`): a recipe
gives it a share of the updates.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import track

from edge_imputer.errors import AudioError, DataError, SpecError
from edge_imputer.measured import Record
from edge_imputer.peaks import EVENT_FLOOR

from ..data import ClipRecord, Manifest, read_clip, write_manifest
from ..data.records import HARD_LABEL
from ..data.transcripts import normalize
from ..evaluation.events import ScoredEvent, said_in
from ..evaluation.journal import Journal, entry_key
from ..evaluation.keyword_report import KeywordScoring
from ..evaluation.systems import SAMPLE_RATE
from .spotters import Spotter

log = logging.getLogger(__name__)

WINDOW_S = 2.0
AFTER_SHARE = 0.125  # of a window lies after its event: a score follows the sound it is of
PIECE_S = 60.0  # longer recordings are scored in pieces of that
LEAD_S = 5.0  # heard before each piece but the first; what fires in it belongs to the piece before


class MinedRecord(ClipRecord, frozen=True, kw_only=True):
    """A manifest's row of a mined window; other readers ignore what it adds."""

    keyword: str  # what the model took it for
    score: float


class Rules(Record, frozen=True, kw_only=True):
    """Which events are taken: all of these limits hold.

    Attributes
    ----------
    threshold : least score
    per_hour : most events an hour of what was heard, over all keywords; None: any number
    most : most events in all
    window_s : length of what is cut out around an event
    label : what the windows are called
    """

    threshold: float = 0.1
    per_hour: float | None = None
    most: int = 5000
    window_s: float = WINDOW_S
    label: str = HARD_LABEL

    def check(self) -> None:
        """Raise `SpecError` on limits that let nothing through, or windows that hold no word."""
        if not EVENT_FLOOR <= self.threshold <= 1:
            raise SpecError(
                f"expected a threshold from {EVENT_FLOOR} to 1, got {self.threshold}; what scores "
                "less is no event"
            )
        if self.most < 1 or (self.per_hour is not None and not self.per_hour > 0):
            raise SpecError(
                f"expected at least one event, got most {self.most} and per_hour {self.per_hour}"
            )
        if not 0.2 <= self.window_s <= 30:
            raise SpecError(f"expected a window of 0.2 to 30 s, got {self.window_s}")


class MiningReport(Record, frozen=True, kw_only=True):
    """What was listened to and what was found.

    Attributes
    ----------
    model, keywords, rules
    data : the manifests
    n_clips, hours : that were scored
    keyword_said : clips left out because their text or label holds a keyword
    without_text : clips without a transcript among those scored: a keyword may be in them
    unreadable : clip and reason
    n_events : of the threshold's score or more, before the other limits; those that share a
        window count once
    mined : highest score first
    """

    model: str
    keywords: tuple[str, ...]
    rules: Rules
    data: tuple[str, ...]
    n_clips: int
    hours: float
    keyword_said: int
    without_text: int
    unreadable: dict[str, str]
    n_events: int
    mined: tuple[MinedRecord, ...]

    def by_keyword(self) -> list[tuple[str, list[float]]]:
        """Scores of what was mined, by keyword, highest first."""
        found: dict[str, list[float]] = {word: [] for word in self.keywords}
        for one in self.mined:
            found[one.keyword].append(one.score)
        return list(found.items())


@dataclass(order=True)
class _Found:
    """An event, ordered for a heap: the least wanted first."""

    score: float
    order: tuple[int, float]  # minus the clip's number, minus the time: earlier ones are better
    record: MinedRecord = field(compare=False)


def mine(
    spotter: Spotter,
    negatives: Sequence[Manifest],
    out: Path,
    rules: Rules,
    *,
    journal: Journal,
    progress: bool = True,
) -> MiningReport:
    """Write a corpus folder of the negatives that a model scores highest.

    Parameters
    ----------
    spotter : the model
    negatives : recordings without its keywords; rows whose text or label holds one are left out
    out : the corpus folder, whose rows lead to the original audio
    rules : how many, which part of them
    journal : keeps what each recording gave, so that an interrupted run goes on where it was
    progress : show a bar

    Raises
    ------
    DataError
        Nothing to listen to, or no event that the rules let through.
    """
    rules.check()
    if any(part.folder.resolve() == out.resolve() for part in negatives):
        raise DataError(f"expected a folder of its own to write, got {out}, a corpus to mine")
    found, tally = _listen(spotter, negatives, rules, journal, progress=progress)
    if not tally.seconds:
        raise DataError(
            f"expected negatives that can be heard, got none: {tally.keyword_said} clips say a "
            f"keyword, {len(tally.unreadable)} cannot be read"
        )
    hours = tally.seconds / 3600
    limit = len(found)
    if rules.per_hour is not None:
        limit = min(limit, max(1, round(rules.per_hour * hours)))
    chosen = [one.record for one in sorted(found, reverse=True)[:limit]]
    if not chosen:
        raise DataError(
            f"no negative scores {rules.threshold:g} or more in {hours:.2f} h: there is nothing to "
            "learn from them; mine other recordings, or with a lower --threshold"
        )
    out.mkdir(parents=True, exist_ok=True)
    relative = [_relative(record, out) for record in chosen]
    write_manifest(out, relative)
    return MiningReport(
        model=spotter.path.name,
        keywords=spotter.keywords,
        rules=rules,
        data=tuple(part.path.resolve().parent.name for part in negatives),
        n_clips=tally.n_clips,
        hours=hours,
        keyword_said=tally.keyword_said,
        without_text=tally.without_text,
        unreadable=tally.unreadable,
        n_events=tally.n_events,
        mined=tuple(relative),
    )


@dataclass
class _Tally:
    n_clips: int = 0
    seconds: float = 0.0
    keyword_said: int = 0
    without_text: int = 0
    n_events: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def _listen(
    spotter: Spotter,
    negatives: Sequence[Manifest],
    rules: Rules,
    journal: Journal,
    *,
    progress: bool,
) -> tuple[list[_Found], _Tally]:
    """The best events, at most as many as the rules allow in all."""
    best: list[_Found] = []
    tally = _Tally()
    rows = ((part.folder, record) for part in negatives for record in part)
    total = sum(map(len, negatives))
    for number, (folder, record) in enumerate(_shown(rows, total, progress)):
        if holds_keyword(record, spotter.keywords):
            tally.keyword_said += 1
            continue
        try:
            events = events_of(spotter, folder, record, journal)
        except AudioError as error:
            name = str(folder / record.audio)
            log.warning("left out %s: %s", name, error)
            tally.unreadable[name] = str(error)
            continue
        tally.n_clips += 1
        tally.seconds += record.duration_s
        tally.without_text += record.text is None and record.label is None
        for one in _windows(spotter, folder, record, events, rules, number):
            tally.n_events += 1
            heapq.heappush(best, one)
            if len(best) > rules.most:
                heapq.heappop(best)
    return best, tally


def holds_keyword(record: ClipRecord, keywords: Sequence[str]) -> bool:
    """Whether a keyword is said, by the transcript or the label, whatever the punctuation."""
    plain = [normalize(word, remove_punctuation=True) for word in keywords]
    texts = [normalize(t, remove_punctuation=True) for t in (record.text, record.label) if t]
    return any(said_in(text, None, plain) for text in texts)


def events_of(
    spotter: Spotter, folder: Path, record: ClipRecord, journal: Journal
) -> list[ScoredEvent]:
    """Events of a recording at any threshold, seconds from its start; long ones piece by piece.

    Raises
    ------
    AudioError
        It cannot be read.
    """
    compute = KeywordScoring(spotter.system, spotter.refractory_s)
    found = []
    for start, lead, length in pieces(record.duration_s):
        part = msgspec.structs.replace(
            record, offset_s=record.offset_s + start - lead, duration_s=lead + length
        )
        waveform = read_clip(folder, part, SAMPLE_RATE)
        if start + length >= record.duration_s:  # as evaluation does: what is late counts too
            waveform = np.pad(waveform, (0, round(spotter.system.latency_s * SAMPLE_RATE)))
        key = entry_key(spotter.identity, waveform)
        entry = journal.get(key)
        if entry is None:
            entry = compute(key, waveform)
            journal.put(entry)
        for keyword, time_s, score in entry.events or ():
            if time_s >= lead:
                found.append(ScoredEvent(keyword, start - lead + time_s, score))
    return found


def pieces(duration_s: float) -> Iterator[tuple[float, float, float]]:
    """Start, seconds heard before it, and length of what a recording is scored in."""
    if duration_s <= 1.5 * PIECE_S:
        yield 0.0, 0.0, duration_s
        return
    n = round(duration_s / PIECE_S)
    length = duration_s / n
    for index in range(n):
        yield index * length, min(index * length, LEAD_S), length


def fires(
    spotter: Spotter, folder: Path, record: ClipRecord, rules: Rules, journal: Journal
) -> list[MinedRecord]:
    """Windows around what makes a model fire in one recording, or around its best event at least.

    Raises
    ------
    AudioError
        It cannot be read.
    """
    events = events_of(spotter, folder, record, journal)
    anything = msgspec.structs.replace(rules, threshold=EVENT_FLOOR)
    found = [one.record for one in _windows(spotter, folder, record, events, anything, 0)]
    loud = [one for one in found if one.score >= spotter.thresholds[one.keyword]]
    return loud or found[:1]


def _windows(
    spotter: Spotter,
    folder: Path,
    record: ClipRecord,
    events: Sequence[ScoredEvent],
    rules: Rules,
    number: int,
) -> list[_Found]:
    """Windows of a recording, best first; none overlaps a better one by half, of any keyword."""
    kept: list[_Found] = []
    for event in sorted(events, key=lambda e: (-e.score, e.time_s, e.keyword)):
        if event.score < rules.threshold:
            break
        row = window(folder, record, event, rules, spotter.keywords[event.keyword])
        if all(abs(row.offset_s - k.record.offset_s) >= 0.5 * row.duration_s for k in kept):
            kept.append(_Found(event.score, (-number, -event.time_s), row))
    return kept


def window(
    folder: Path, record: ClipRecord, event: ScoredEvent, rules: Rules, keyword: str
) -> MinedRecord:
    """What is cut out around an event: most of it before, and all of it inside the recording."""
    length = min(rules.window_s, record.duration_s)
    start = event.time_s - (1 - AFTER_SHARE) * length
    start = min(max(0.0, start), record.duration_s - length)
    values = {name: getattr(record, name) for name in ("speaker", "sample_rate", "engine")}
    return MinedRecord(
        audio=str((folder / record.audio).resolve()),
        text=None,  # the transcript is of more than the window
        split="train",
        duration_s=round(length, 6),
        offset_s=round(record.offset_s + start, 6),
        label=rules.label,
        keyword=keyword,
        score=event.score,
        **values,
    )


def _relative(record: MinedRecord, out: Path) -> MinedRecord:
    return msgspec.structs.replace(record, audio=os.path.relpath(record.audio, out.resolve()))


def _shown(
    rows: Iterable[tuple[Path, ClipRecord]], total: int, progress: bool
) -> Iterable[tuple[Path, ClipRecord]]:
    console = Console(stderr=True)
    return track(rows, description="Negatives", total=total, console=console, disable=not progress)
