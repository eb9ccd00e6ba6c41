"""What an improved model is measured on: clips kept back, valid splits; before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data import Manifest
from ..evaluation.journal import Journal
from .comparing import (
    Case,
    Comparison,
    Outcome,
    RateComparison,
    What,
    cases_of,
    compare,
    compare_rates,
    judge,
    judge_transcripts,
    transcribed,
)
from .mining import holds_keyword
from .saved_clips import Collection
from .spotters import Spotter

TRANSCRIPTS = "valid, transcripts"
MOST_VALID = 2000  # clips of the valid split that are heard, of those with a keyword and without


class Measuring:
    """The clips that a model hears before and after.

    Parameters
    ----------
    saved : of which those kept back are heard
    keywords : the model's
    data : the corpus it was trained on, for its valid split
    negatives : corpora that are mined, for their valid splits
    seed : of the choice, where the valid split is larger than `MOST_VALID`
    writes_text : whether the model does: then its transcripts of the valid split are compared too
    progress : show bars
    """

    def __init__(
        self,
        saved: Collection,
        keywords: Sequence[str],
        *,
        data: Path,
        negatives: Sequence[Path],
        seed: int,
        writes_text: bool,
        progress: bool,
    ) -> None:
        self._progress = progress
        self._collected: dict[str, bool] = {}  # whether there are any of that kind
        home = Path()
        self._cases: dict[str, list[Case]] = {}
        for name, misses in (("false fires", False), ("misses", True)):
            self._collected[name] = any((c.keyword is not None) == misses for c in saved.clips)
            self._cases[name] = [
                Case(home, c.record(), keywords.index(c.keyword) if c.keyword else None)
                for c in saved.some(misses=misses, kept_back=True)
            ]
        valid = Manifest.open(data, split="valid")
        said, others = cases_of(valid, keywords, most=MOST_VALID, seed=seed)
        self._cases |= {"valid, keywords": said, "valid, others": others}
        if writes_text:
            self._cases[TRANSCRIPTS] = transcribed(valid, most=MOST_VALID, seed=seed)
        self._rated: set[str] = set()  # counted by the hour
        for path in negatives:
            part = Manifest.open(path, split="valid")
            rows = [r for r in part if not holds_keyword(r, keywords)]
            name = f"negatives {part.folder.resolve().name}"
            while name in self._cases:
                name += "'"
            self._cases[name] = [Case(part.folder, r, None) for r in rows]
            self._rated.add(name)

    def hear(self, spotter: Spotter, journal: Journal, title: str) -> dict[str, Outcome]:
        """Every set of clips through a model."""
        return {
            name: (judge_transcripts if name == TRANSCRIPTS else judge)(
                spotter, cases, journal, title=f"{title}: {name}", progress=self._progress
            )
            for name, cases in self._cases.items()
            if cases
        }

    def compare(
        self, before: dict[str, Outcome], after: dict[str, Outcome]
    ) -> tuple[tuple[Comparison, ...], tuple[RateComparison, ...]]:
        """Shares of clips that go wrong, and false alarms an hour."""
        shares, rates = [], []
        for name, cases in self._cases.items():
            if not cases:
                continue
            if name in self._rated:
                heard = zip(cases, before[name].wrong, strict=True)
                hours = sum(c.record.duration_s for c, w in heard if w is not None) / 3600
                if hours:
                    rates.append(compare_rates(name, hours, before[name], after[name]))
                continue
            what: What = "fires" if cases[0].keyword is None else "missed"
            if name == TRANSCRIPTS:
                what = "misspelt"
            kept = f"kept-back {name}" if name in self._collected else name
            if one := compare(what, kept, before[name], after[name]):
                shares.append(one)
        return tuple(shares), tuple(rates)

    def unmeasured(self) -> tuple[str, ...]:
        """Sets without a clip to measure on."""
        return tuple(
            name
            for name, cases in self._cases.items()
            if not cases and self._collected.get(name, True)
        )
