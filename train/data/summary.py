"""What a manifest holds: hours, speakers, labels, characters, lengths, and leaks across splits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np

from .manifest import Manifest
from .records import UNKNOWN_SPEAKER

SPLITS = ("train", "valid", "test")
EDGES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0)
N_EXAMPLES = 5


class SplitSummary(msgspec.Struct, kw_only=True):
    """One split."""

    clips: int
    hours: float
    speakers: int  # known ones
    without_text: int
    longest_s: float


class Leak(msgspec.Struct, kw_only=True):
    """What a split shares with another."""

    splits: tuple[str, str]
    speakers: int
    texts: int
    clips_with_such_texts: int  # of the second split
    examples: list[str]  # speakers, then texts


class Summary(msgspec.Struct, kw_only=True):
    """See `summarize`."""

    splits: dict[str, SplitSummary]
    labels: dict[str, dict[str, int]]  # clips by label and split
    characters: dict[str, int]
    durations: list[tuple[float, float | None, int]]  # from, to (seconds), clips
    sample_rates: dict[str, int]
    leaks: list[Leak]


def summarize(manifest: Manifest) -> Summary:
    """Read a manifest once and count.

    Speakers and texts are kept once each; a corpus of a million sentences takes some 100 MB.
    """
    speakers: dict[str, set[str]] = {}
    texts: dict[str, Counter[str]] = {}
    facts: dict[str, SplitSummary] = {}
    labels: dict[str, Counter[str]] = {}
    characters: Counter[str] = Counter()
    rates: Counter[str] = Counter()
    for record in manifest:
        fact = facts.setdefault(
            record.split, SplitSummary(clips=0, hours=0, speakers=0, without_text=0, longest_s=0)
        )
        fact.clips += 1
        fact.hours += record.duration_s / 3600
        fact.longest_s = max(fact.longest_s, record.duration_s)
        rates[str(record.sample_rate)] += 1
        if record.speaker != UNKNOWN_SPEAKER:
            speakers.setdefault(record.split, set()).add(record.speaker)
        if record.text is None:
            fact.without_text += 1
        else:
            texts.setdefault(record.split, Counter())[record.text] += 1
            characters.update(record.text)
        if record.label is not None:
            labels.setdefault(record.label, Counter())[record.split] += 1
    for split, fact in facts.items():
        fact.speakers = len(speakers.get(split, ()))
    return Summary(
        splits={split: facts[split] for split in SPLITS if split in facts},
        labels={label: dict(counts) for label, counts in sorted(labels.items())},
        characters=dict(characters.most_common()),
        durations=_histogram(manifest),
        sample_rates=dict(rates.most_common()),
        leaks=_leaks(speakers, texts),
    )


def _histogram(manifest: Manifest) -> list[tuple[float, float | None, int]]:
    counts, _ = np.histogram(manifest.durations, [*EDGES_S, np.inf])
    ends: list[float | None] = [*EDGES_S[1:], None]
    return [(a, b, int(n)) for a, b, n in zip(EDGES_S, ends, counts, strict=True) if n]


def _leaks(speakers: dict[str, set[str]], texts: dict[str, Counter[str]]) -> list[Leak]:
    """What each pair of splits has in common; pairs that share nothing are left out."""
    leaks = []
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        known = speakers.get(a, set()) & speakers.get(b, set())
        there: Any = texts.get(b, Counter())
        said = texts.get(a, Counter()).keys() & there.keys()
        if known or said:
            leaks.append(
                Leak(
                    splits=(a, b),
                    speakers=len(known),
                    texts=len(said),
                    clips_with_such_texts=sum(there[text] for text in said),
                    examples=sorted(known)[:N_EXAMPLES] + sorted(said)[:N_EXAMPLES],
                )
            )
    return leaks
