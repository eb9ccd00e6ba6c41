"""From scores to events: one a peak, never one a frame.

An event is a local maximum of a keyword's score with no better one of that keyword within the
refractory time (of equal ones the first counts). Which peaks these are does not depend on a
threshold, so that the events at *every* threshold are known at once: those whose score reaches
it. Hence misses never fall and false alarms never rise as the threshold does.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import SpecError

from ..data.transcripts import normalize

EVENT_FLOOR = 1e-3  # peaks below are not kept: a threshold there would fire all the time
MISSED = -1.0  # score of a keyword that was said and left no event


class ScoredEvent(msgspec.Struct, frozen=True, array_like=True):
    """A peak: index of the keyword, seconds into the clip, score."""

    keyword: int
    time_s: float
    score: float


def pick_peaks(
    scores: npt.NDArray[np.floating], min_gap: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.floating]]:
    """Peaks of one keyword's scores that are events.

    Parameters
    ----------
    scores : (T,)
    min_gap : int
        Frames; two peaks closer than this count as one, the better.

    Returns
    -------
    frames, scores : (n,), in time's order
    """
    changes = np.flatnonzero(np.diff(scores)) + 1
    starts = np.concatenate([[0], changes]) if len(scores) else np.zeros(0, np.intp)
    level = scores[starts].astype(np.float64)  # one value a run of equal scores
    around = np.concatenate([[-np.inf], level, [-np.inf]])
    is_peak = (level > around[:-2]) & (level > around[2:]) & (level >= EVENT_FLOOR)
    frames, peaks = starts[is_peak], level[is_peak]
    kept: list[int] = []
    for index in np.lexsort((frames, -peaks)):
        frame = int(frames[index])
        at = bisect_left(kept, frame)
        near = kept[max(0, at - 1) : at + 1]
        if all(abs(frame - other) >= min_gap for other in near):
            insort(kept, frame)
    chosen = np.array(kept, np.intp)
    return chosen, scores[chosen]


def pick_events(
    scores: npt.NDArray[np.float32], frame_s: float, refractory_s: float
) -> list[ScoredEvent]:
    """Events of all keywords in a trace of scores, by keyword, then time.

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
    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
        raise SpecError("expected keyword scores in [0, 1], got others; mend the detector's scores")
    # A hair less, so that an exact multiple of the frame is not rounded up by its float.
    min_gap = max(1, int(np.ceil(refractory_s / frame_s - 1e-6)))
    events = []
    for keyword in range(scores.shape[1]):
        frames, peaks = pick_peaks(scores[:, keyword], min_gap)
        events += [
            ScoredEvent(keyword, round(float(frame) * frame_s, 3), round(float(peak), 7))
            for frame, peak in zip(frames, peaks, strict=True)
        ]
    return events


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
