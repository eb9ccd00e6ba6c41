"""Events in a trace of scores, and which of them were said.

What an event is, `edge_imputer.peaks` says, and how many there are at *every* threshold at once: as
many as have a score that reaches it. Hence misses never fall and false alarms never rise as the
threshold does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.peaks import events_at_all, gap_frames

from ..data.transcripts import normalize

MISSED = -1.0  # score of a keyword that was said and left no event
RULE = "first peaks"  # in the key of what is kept of a clip: events of another rule are not these


class ScoredEvent(msgspec.Struct, frozen=True, array_like=True):
    """One event more: index of the keyword, seconds into the clip, score at which it is there."""

    keyword: int
    time_s: float
    score: float


def pick_events(
    scores: npt.NDArray[np.float32], frame_s: float, refractory_s: float
) -> list[ScoredEvent]:
    """Events of all keywords in a trace of scores, by keyword, then time; see `events_at_all`.

    Parameters
    ----------
    scores : float32, (T, K)
    frame_s : float
        Seconds a frame.
    refractory_s : float
        Least time between two events of one keyword.

    Raises
    ------
    SpecError
        Scores that are not finite or not in [0, 1].
    """
    return [
        ScoredEvent(peak.keyword, round(peak.frame * frame_s, 3), peak.score)
        for peak in events_at_all(scores, gap_frames(refractory_s, frame_s))
    ]


def said_in(text: str | None, label: str | None, keywords: Sequence[str]) -> dict[int, int]:
    """How often each keyword is said in a clip, by its transcript.

    Where that has none of them the clip's label counts, as one keyword said once: a transcript may
    be missing, or spell otherwise. Case and punctuation do not matter: the folder ``hey_computer``,
    the text "Hey, computer!" and the keyword "hey computer" are the same words.
    """
    spoken = _words(text or "")
    wanted = [_words(keyword) for keyword in keywords]
    counts = {index: _count(words, spoken) for index, words in enumerate(wanted)}
    said = {index: count for index, count in counts.items() if count}
    if said or label is None or label.startswith("_"):  # "_silence_" is a class and no word
        return said
    named = _words(label)
    return {wanted.index(named): 1} if named and named in wanted else {}


def _words(text: str) -> list[str]:
    return normalize(text, remove_punctuation=True).split()


def _count(wanted: list[str], words: list[str]) -> int:
    n = len(wanted)
    return sum(words[i : i + n] == wanted for i in range(len(words) - n + 1)) if n else 0


def occurrence_scores(events: Iterable[ScoredEvent], keyword: int, n_said: int) -> list[float]:
    """Score of each time a keyword was said: it is detected at thresholds up to that.

    A clip that says it n times is matched with its n best events; what has none left is `MISSED`.
    """
    best = sorted((e.score for e in events if e.keyword == keyword), reverse=True)[:n_said]
    return best + [MISSED] * (n_said - len(best))
