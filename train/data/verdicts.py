"""What becomes of checked clips: kept, kept with a warning, or dropped with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from edge_imputer.clip_checks import Finding

from .adapters import SourceClip
from .records import NOISE_LABEL, SILENCE_LABEL, UNKNOWN_SPEAKER, ClipRecord
from .transcripts import normalize, unknown_characters

SILENT_DB = -72.0  # dB of full scale: 8 steps of 16 bits
CLIPPED_SHARE = 0.001
STATED_TOLERANCE = (0.1, 0.02)  # seconds, or share, that metadata may be off by
N_EXAMPLES = 3

# Reasons that --keep turns into warnings. What cannot be decoded cannot be kept.
Soft = Literal["silent", "repeated", "duration", "characters", "no text"]
SOFT: tuple[Soft, ...] = ("silent", "repeated", "duration", "characters", "no text")
# The clip of a pair that is kept: a test split loses none to the training split.
_PRECEDENCE = {"test": 0, "valid": 1, "train": 2}


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of clips."""

    characters: str | None = None  # of transcripts; any if None
    remove_punctuation: bool = False
    min_s: float | None = None
    max_s: float | None = None
    keep: tuple[Soft, ...] = ()
    rate: int = 16_000  # a lower rate than this is worth a warning


class Dropped(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A line of ``dropped.jsonl``."""

    audio: str
    offset_s: float
    split: str
    text: str | None
    reason: str
    detail: str
    duration_s: float


class Tally(msgspec.Struct, kw_only=True):
    """How many clips something befell, and the first of them."""

    clips: int = 0
    hours: float = 0.0
    examples: list[str] = []

    def add(self, example: str, duration_s: float) -> None:
        """Count a clip."""
        self.clips += 1
        self.hours += duration_s / 3600
        if len(self.examples) < N_EXAMPLES:
            self.examples.append(example)


@dataclass
class Judge:
    """Decides about clips in the order of the corpus, and keeps count."""

    rules: Rules
    dropped: list[Dropped] = field(default_factory=list)
    warnings: dict[str, Tally] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    def records(
        self, clips: list[SourceClip], findings: Sequence[Finding], written: list[Finding]
    ) -> Iterator[tuple[int, ClipRecord]]:
        """Records of the clips that are kept, with their numbers.

        Parameters
        ----------
        clips, findings
            The corpus, and what was found of each clip.
        written
            What the record says of the audio: the finding itself, or that of a copy.
        """
        originals = self._originals(clips, findings)
        for number, (clip, finding, final) in enumerate(zip(clips, findings, written, strict=True)):
            text = None
            if clip.text is not None:
                text = normalize(clip.text, remove_punctuation=self.rules.remove_punctuation)
            reason = self._reason(clip, finding, text, originals.get(finding.digest))
            if reason is not None:
                self.dropped.append(
                    Dropped(
                        audio=clip.audio,
                        offset_s=clip.offset_s,
                        split=clip.split,
                        text=clip.text,
                        reason=reason[0],
                        detail=reason[1],
                        duration_s=finding.duration_s,
                    )
                )
                continue
            yield (
                number,
                ClipRecord(
                    audio=final.audio,
                    text=text,
                    speaker=clip.speaker,
                    split=clip.split,
                    duration_s=final.duration_s,
                    sample_rate=final.sample_rate,
                    label=clip.label,
                    engine=clip.engine,
                    offset_s=final.offset_s,
                ),
            )

    def _reason(
        self, clip: SourceClip, finding: Finding, text: str | None, original: SourceClip | None
    ) -> tuple[str, str] | None:
        """Why a clip is dropped, if it is: the reason and its particulars."""
        if finding.problem is not None:
            return finding.problem, finding.detail
        faults = list(self._faults(clip, finding, text, original))
        hard = [fault for fault in faults if fault[0] not in self.rules.keep]
        for reason, detail in faults:
            if hard:
                break
            self._warn(reason, clip, finding, detail)
        if not hard:
            self._look(clip, finding)
        return hard[0] if hard else None

    def _faults(
        self, clip: SourceClip, finding: Finding, text: str | None, original: SourceClip | None
    ) -> Iterator[tuple[str, str]]:
        rules, seconds = self.rules, finding.duration_s
        wordless = clip.label in (SILENCE_LABEL, NOISE_LABEL)
        if clip.stated_s is not None and clip.stated_s - seconds > _tolerance(clip.stated_s):
            yield "duration", f"{seconds:.2f} s, where the corpus says {clip.stated_s:.2f} s"
        if finding.peak_db < SILENT_DB and not wordless:
            yield "silent", f"peak {finding.peak_db:.0f} dBFS"
        if not wordless and rules.min_s is not None and seconds < rules.min_s:
            yield "too short", f"{seconds:.2f} s"
        if clip.label != NOISE_LABEL and rules.max_s is not None and seconds > rules.max_s:
            yield "too long", f"{seconds:.2f} s"
        if text == "":
            yield "no text", "the transcript is empty"
        if rules.characters is not None and text:
            unknown = unknown_characters(text, frozenset(rules.characters))
            if unknown:
                self.unknown.update(unknown)
                yield "characters", f"{''.join(sorted(unknown))!r} in {text!r}"
        if original is not None and original is not clip:
            other = "" if original.text == clip.text else f", whose text is {original.text!r}"
            yield "repeated", f"the audio of {original.name} ({original.split}){other}"

    def _look(self, clip: SourceClip, finding: Finding) -> None:
        """Warn of what does not keep a clip from being used."""
        if finding.clipped > CLIPPED_SHARE:
            self._warn("clipped", clip, finding, f"{100 * finding.clipped:.1f} % of the samples")
        if finding.sample_rate < self.rules.rate:
            self._warn("lower rate", clip, finding, f"{finding.sample_rate} Hz")
        stated = clip.stated_s
        if stated is not None and finding.duration_s - stated > _tolerance(stated):
            detail = f"{finding.duration_s:.2f} s, where the corpus says {stated:.2f} s"
            self._warn("longer than stated", clip, finding, detail)

    def _warn(self, kind: str, clip: SourceClip, finding: Finding, detail: str) -> None:
        self.warnings.setdefault(kind, Tally()).add(f"{clip.name}: {detail}", finding.duration_s)

    @staticmethod
    def _originals(clips: list[SourceClip], findings: Sequence[Finding]) -> dict[str, SourceClip]:
        """Of each recording the clip that stays: the first one of test, then valid, then train."""
        originals: dict[str, SourceClip] = {}
        for clip, finding in zip(clips, findings, strict=True):
            if finding.problem is not None or clip.label == SILENCE_LABEL:
                continue
            held = originals.setdefault(finding.digest, clip)
            if _PRECEDENCE[clip.split] < _PRECEDENCE[held.split]:
                originals[finding.digest] = clip
        return originals


def _tolerance(stated_s: float) -> float:
    seconds, share = STATED_TOLERANCE
    return max(seconds, share * stated_s)


def shared_speakers(records: list[ClipRecord]) -> dict[str, list[str]]:
    """Speakers who are in several splits, and these splits; "unknown" is nobody."""
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.speaker != UNKNOWN_SPEAKER and record.label not in (SILENCE_LABEL, NOISE_LABEL):
            splits.setdefault(record.speaker, set()).add(record.split)
    return {s: sorted(found) for s, found in sorted(splits.items()) if len(found) > 1}


def tally_of(dropped: list[Dropped]) -> dict[str, dict[str, Any]]:
    """Dropped clips by reason, the most frequent first."""
    reasons: dict[str, Tally] = {}
    for clip in dropped:
        reasons.setdefault(clip.reason, Tally()).add(
            f"{clip.audio}: {clip.detail}", clip.duration_s
        )
    ordered = sorted(reasons.items(), key=lambda item: (-item[1].clips, item[0]))
    return {reason: msgspec.structs.asdict(tally) for reason, tally in ordered}
