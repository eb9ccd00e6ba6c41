"""What an evaluation found: the records of ``evaluation.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edge_imputer.claims import Claim
from edge_imputer.files import write_atomically
from edge_imputer.measured import DataKind, FalseAlarmRate, Interval, OperatingPoint

from .sweep import DetPoint


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Condition(_Result, frozen=True):
    """Clips that belong together: one data set, one kind of speech, one noise condition."""

    data: str
    split: str
    kind: DataKind
    snr_db: float | None  # None: as recorded
    by: str | None = None  # a key of the manifest, and its value
    group: str | None = None

    @property
    def noise(self) -> str:
        """``clean`` or ``10 dB``."""
        return "clean" if self.snr_db is None else f"{self.snr_db:g} dB"

    def __str__(self) -> str:
        group = "" if self.by is None else f", {self.by} {self.group}"
        return f"{self.data} {self.split}, {self.kind}, {self.noise}{group}"


class RunInfo(_Result, frozen=True):
    """What was run, so that it can be run again."""

    model: str
    model_identity: str
    command: str
    created_by: str
    seed: int
    settings: dict[str, str]
    data: tuple[str, ...]  # one line a data set
    skipped: tuple[str, ...]  # clips that could not be used, and why
    notes: tuple[str, ...]  # what a reader must know


class TranscriptRow(_Result, frozen=True):
    """Error rates in one condition."""

    condition: Condition
    n_clips: int
    wer: Interval
    wer_by_speaker: Interval | None  # speakers resampled; None where they are not known
    n_speakers: int | None
    cer: Interval
    exact: Interval
    substitutions: int
    deletions: int
    insertions: int


class Comparison(_Result, frozen=True):
    """A rate of this model (word errors, right commands) minus that of another, same clips."""

    condition: Condition
    other: str
    difference: Interval
    p_value: float


class FrequentError(_Result, frozen=True):
    """A word that was taken for another, left out or put in."""

    kind: Literal["substitution", "deletion", "insertion"]
    reference: str
    hypothesis: str
    count: int


class AlignedExample(_Result, frozen=True):
    """A clip with errors, reference and hypothesis under each other."""

    clip: str
    reference: str
    hypothesis: str


class TranscriptErrors(_Result, frozen=True):
    """Which errors were made in one condition."""

    condition: Condition
    frequent: tuple[FrequentError, ...]
    examples: tuple[AlignedExample, ...]


class TranscriptReport(_Result, frozen=True, tag_field="task", tag="transcripts"):
    """Everything about transcripts."""

    run: RunInfo
    rows: tuple[TranscriptRow, ...]
    errors: tuple[TranscriptErrors, ...]
    comparisons: tuple[Comparison, ...]


class MissRow(_Result, frozen=True):
    """Misses in one condition at the operating point; false alarms in the same noise."""

    condition: Condition
    frr: Interval
    negatives: str | None  # what the false alarms were counted in
    false_alarms: FalseAlarmRate | None


class FalseAlarmRow(_Result, frozen=True):
    """False alarms in one set of negatives at the operating point."""

    condition: Condition
    false_alarms: FalseAlarmRate


class KeywordRow(_Result, frozen=True):
    """One keyword: misses and false alarms, clean."""

    keyword: str
    kind: DataKind
    threshold: float
    frr: Interval | None  # None where it is never said
    false_alarms: FalseAlarmRate


class Curve(_Result, frozen=True):
    """A DET curve: one threshold for all keywords."""

    condition: Condition
    negatives: str
    points: tuple[DetPoint, ...]


class Confusion(_Result, frozen=True):
    """Which keyword fired in clips that say one keyword once; the last column is none."""

    condition: Condition
    keywords: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # (K, K + 1)


class Histogram(_Result, frozen=True):
    """Scores of keywords that were said and of events where none was, clean."""

    kind: DataKind
    edges: tuple[float, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


class NearMiss(_Result, frozen=True):
    """An event where no keyword is said."""

    clip: str
    condition: Condition
    time_s: float
    keyword: str
    score: float
    fires: bool  # at the operating point
    text: str | None
    label: str | None


class Miss(_Result, frozen=True):
    """A keyword that was said and did not fire."""

    clip: str
    condition: Condition
    keyword: str
    score: float | None  # None where it left no event at all


class KeywordReport(_Result, frozen=True, tag_field="task", tag="keywords"):
    """Everything about keywords."""

    run: RunInfo
    keywords: tuple[str, ...]
    operating_point: OperatingPoint
    claims: tuple[Claim, ...]
    misses: tuple[MissRow, ...]
    false_alarms: tuple[FalseAlarmRow, ...]
    by_keyword: tuple[KeywordRow, ...]
    curves: tuple[Curve, ...]
    confusions: tuple[Confusion, ...]
    histograms: tuple[Histogram, ...]
    near_misses: tuple[NearMiss, ...]
    missed: tuple[Miss, ...]


class SlotScores(_Result, frozen=True):
    """Slots of clips, said and heard; rates are None where nothing was heard or said.

    A slot is right, or wrong (heard with another value), missing (said and not heard at all) or
    spurious (heard and not said). Of right / (right + wrong + spurious) the precision is made, of
    right / (right + wrong + missing) the recall; F1 is their harmonic mean.
    """

    precision: Interval | None
    recall: Interval | None
    f1: Interval | None
    right: int
    wrong: int
    missing: int
    spurious: int


class CommandRow(_Result, frozen=True):
    """Commands of one condition, by intent and slots."""

    condition: Condition
    n_clips: int
    right: Interval  # clips with the intent and every slot right
    intent: Interval | None  # None where the data name none
    slots: SlotScores
    refused: Interval  # clips whose confidence is below the threshold
    accepted_right: Interval | None  # right ones of those that are not refused


class SlotRow(_Result, frozen=True):
    """One slot in one condition."""

    condition: Condition
    slot: str
    scores: SlotScores
    sayable: Interval | None  # values said that the grammar can say, of all that are said


class SlotError(_Result, frozen=True):
    """A value that was taken for another, missed or put in, and how often."""

    condition: Condition
    kind: Literal["wrong", "missing", "spurious"]
    slot: str
    said: str
    heard: str
    count: int


class CommandExample(_Result, frozen=True):
    """A clip that was not understood."""

    condition: Condition
    clip: str
    said: str  # intent and slots
    heard: str
    text: str
    confidence: float


class Refusal(_Result, frozen=True):
    """The least confidence at which a command is taken, and how it was chosen."""

    threshold: float
    chosen_on: str | None  # None: given
    n_clips: int | None
    n_wrong_taken: int | None  # on the clips it was chosen on
    n_right_refused: int | None


class CommandReport(_Result, frozen=True, tag_field="task", tag="slots"):
    """Everything about commands that are scored by their intent and slots."""

    run: RunInfo
    refusal: Refusal
    rows: tuple[CommandRow, ...]
    by_slot: tuple[SlotRow, ...]
    errors: tuple[SlotError, ...]
    examples: tuple[CommandExample, ...]
    comparisons: tuple[Comparison, ...]  # share of clips that are right


Report = TranscriptReport | KeywordReport | CommandReport


def write_json(path: Path, report: Report) -> Path:
    """Write everything that was found, whole or not at all, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    write_atomically(path, text)
    return path
