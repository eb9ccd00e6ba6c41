"""Transcripts: word and character error rates by condition, and which errors they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.backends import Backend
from edge_imputer.bundle import Bundle
from edge_imputer.decoding import Language
from edge_imputer.errors import DataError
from edge_imputer.metrics import wilson_interval
from edge_imputer.recognizer import Recognizer

from .error_rates import Errors, character_errors, word_errors
from .journal import Entry
from .results import (
    AlignedExample,
    Comparison,
    Condition,
    FrequentError,
    RunInfo,
    TranscriptErrors,
    TranscriptReport,
    TranscriptRow,
)
from .rows import DataSet, Row, speaker_blocks
from .run import Heard, Runner, by_key, by_kind

N_EXAMPLES = 12


class Transcriber:
    """A bundle in a runtime, as `Runner.compute` for transcripts."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        n_steps: int | None = None,
        schedule: Sequence[int] | None = None,
        revisions: int | None = None,
        language: Language | None = None,
    ) -> None:
        self.sample_rate = bundle.spec.features.sample_rate
        self._recognizer = Recognizer(
            bundle,
            backend=backend,
            n_steps=n_steps,
            schedule=schedule,
            revisions=revisions,
            language=language,
        )

    def __call__(self, key: str, waveform: npt.NDArray[np.float32]) -> Entry:
        """Transcribe a clip as a stream that then ends."""
        found = self._recognizer.transcribe(waveform, sample_rate=self.sample_rate)
        return Entry.of_text(key, found)


@dataclass(frozen=True)
class _Decoded:
    """One condition: its clips, and errors of their words and characters."""

    condition: Condition
    heard: list[Heard]
    words: Errors
    characters: Errors


def evaluate_transcripts(
    runner: Runner,
    data: Sequence[DataSet],
    snrs_db: Sequence[float | None],
    info: RunInfo,
    *,
    by: Sequence[str] = (),
    other: Runner | None = None,
    other_name: str = "",
) -> TranscriptReport:
    """Word and character error rates of every condition.

    Parameters
    ----------
    runner : Runner
        Whose `compute` is a `Transcriber`.
    data : sequence of DataSet
        Rows without a transcript are left out.
    snrs_db : None for clean, or decibels
    info : RunInfo
        What was clear before running; skipped clips are added.
    by : keys of the manifests to break rates down by
    other : Runner, optional
        Another model, to compare on the same clips.
    other_name : str

    Raises
    ------
    DataError
        No row of any set has a transcript.
    """
    rows: list[TranscriptRow] = []
    errors: list[TranscriptErrors] = []
    comparisons: list[Comparison] = []
    notes = list(info.notes)
    for one in data:
        usable = [row for row in one.rows if (row.record.text or "").strip()]
        if len(usable) < len(one.rows):
            notes.append(
                f"{one.name} {one.split}: {len(one.rows) - len(usable)} of {len(one.rows)} clips "
                "have no transcript and are left out."
            )
        for snr_db in snrs_db:
            for decoded in _decode(runner, one, usable, snr_db):
                rows.append(_row(decoded.condition, decoded, info.seed))
                rows += _groups(decoded, by, info.seed)
                errors.append(_errors(decoded))
                if other is not None:
                    comparisons.append(_compare(decoded, other, one, other_name, info.seed))
    if not rows:
        raise DataError(
            "expected clips with a transcript to count errors in, found none in "
            f"{', '.join(f'{d.name} {d.split}' for d in data)}; give a manifest with texts, "
            "or another --split"
        )
    skipped = tuple(f"{name}: {why}" for name, why in runner.skipped.items())
    info = msgspec.structs.replace(info, notes=tuple(notes), skipped=skipped)
    return TranscriptReport(
        run=info, rows=tuple(rows), errors=tuple(errors), comparisons=tuple(comparisons)
    )


def _decode(
    runner: Runner, data: DataSet, usable: Sequence[Row], snr_db: float | None
) -> list[_Decoded]:
    heard = runner.run(data, snr_db, rows=usable)
    return [_align(condition, group) for condition, group in by_kind(data, heard, snr_db)]


def _align(condition: Condition, heard: list[Heard]) -> _Decoded:
    references = [" ".join((h.row.record.text or "").split()) for h in heard]
    hypotheses = [h.entry.text or "" for h in heard]
    return _Decoded(
        condition,
        heard,
        word_errors(references, hypotheses),
        character_errors(references, hypotheses),
    )


def _row(condition: Condition, decoded: _Decoded, seed: int) -> TranscriptRow:
    words, total = decoded.words, decoded.words.total
    blocks = speaker_blocks([h.row for h in decoded.heard])
    return TranscriptRow(
        condition=condition,
        n_clips=len(decoded.heard),
        wer=words.interval(seed=seed),
        wer_by_speaker=None if blocks is None else words.interval(seed=seed, blocks=blocks),
        n_speakers=None if blocks is None else len(set(blocks)),
        cer=decoded.characters.interval(seed=seed),
        exact=wilson_interval(int((words.counts == 0).sum()), len(words.counts)),
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
    )


def _groups(decoded: _Decoded, by: Sequence[str], seed: int) -> list[TranscriptRow]:
    return [
        _row(condition, _align(condition, heard), seed)
        for key in by
        for condition, heard in by_key(decoded.condition, decoded.heard, key)
    ]


def _errors(decoded: _Decoded) -> TranscriptErrors:
    """The most frequent errors, and the clips with most of them."""
    worst = np.argsort(-decoded.words.counts, kind="stable")
    examples = []
    for index in worst[:N_EXAMPLES]:
        if not decoded.words.counts[index]:
            break
        above, below = decoded.words.alignments[index].lines()
        clip = decoded.heard[index].row.record.audio
        examples.append(AlignedExample(clip=clip, reference=above, hypothesis=below))
    frequent = (
        FrequentError(kind=kind, reference=wanted, hypothesis=found, count=count)
        for kind, wanted, found, count in decoded.words.frequent()
    )
    return TranscriptErrors(
        condition=decoded.condition, frequent=tuple(frequent), examples=tuple(examples)
    )


def _compare(decoded: _Decoded, other: Runner, data: DataSet, name: str, seed: int) -> Comparison:
    rows = [h.row for h in decoded.heard]
    theirs = _align(decoded.condition, other.run(data, decoded.condition.snr_db, rows=rows))
    found = decoded.words.compare(theirs.words, seed=seed)
    return Comparison(
        condition=decoded.condition,
        other=name,
        difference=found.interval,
        p_value=found.p_value,
    )
