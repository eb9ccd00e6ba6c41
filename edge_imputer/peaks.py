"""From the scores of keywords to events: one a peak, never one a frame.

A peak is a score that is better than the one before it and no worse than the one after it. The
first peak of a keyword that reaches its threshold is an event, and so is the next one that does and
is at least the refractory time after an event: what is sooner is suppressed, be it better. So an
event is known one score after its peak, and decided with nothing but the past.

Which peaks are events depends on the threshold, since what stays below it suppresses nothing. How
many there are is well-behaved all the same: they are the most peaks that reach the threshold and
stand the refractory time apart (taking the first that there is packs best), so that there are never
fewer at a lower threshold. `events_at_all` says what that comes to at every threshold at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from .errors import SpecError

EVENT_FLOOR = 1e-3  # peaks below are none: a threshold there would fire all the time
DIGITS = 7  # of a score that count: a threshold is written with as many

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Peak:
    """An event: index of the keyword, frame of its score, the score."""

    keyword: int
    frame: int
    score: float


def gap_frames(refractory_s: float, frame_s: float) -> int:
    """Least number of frames between two events of a keyword, at least 1."""
    # A hair less, so that an exact multiple of the frame is not rounded up by its float.
    return max(1, ceil(refractory_s / frame_s - 1e-6))


class PeakPicker:
    """Events of several keywords along a stream of scores, however it is cut.

    Parameters
    ----------
    thresholds : least score of an event, in 0..1, one a keyword
        At least `EVENT_FLOOR` in effect.
    min_gap : int
        Frames; a peak that is closer to the last event of its keyword is none.

    Raises
    ------
    SpecError
        A threshold that is not in 0..1, or a gap below 1.
    """

    def __init__(self, thresholds: Sequence[float], min_gap: int) -> None:
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise SpecError(f"expected thresholds from 0 to 1, got {list(thresholds)}")
        if min_gap < 1:
            raise SpecError(f"expected a gap of at least 1 frame, got {min_gap}")
        self.min_gap = min_gap
        self._least = np.maximum(np.asarray(thresholds, np.float64), EVENT_FLOOR)
        self.reset()

    def reset(self) -> None:
        """Start a new stream."""
        self._frame = 0  # of the next score
        self._last = np.full((2, len(self._least)), -np.inf)  # the two scores before it
        self._next = [0] * len(self._least)  # first frame that may have an event

    def another(self) -> PeakPicker:
        """One for another stream."""
        return PeakPicker(self._least.tolist(), self.min_gap)

    def push(self, scores: npt.NDArray[np.floating]) -> list[Peak]:
        """Take the next scores, (T, K) in 0..1: the events that are certain now, in time's order.

        Raises
        ------
        SpecError
            Scores that are not finite or not in 0..1; nothing of them was taken.
        """
        if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
            raise SpecError(
                "expected keyword scores in [0, 1], got others; mend the detector's scores"
            )
        levels: Float64 = np.asarray(np.round(scores.astype(np.float64), DIGITS), np.float64)
        levels[levels < self._least] = -np.inf
        return self._advance(levels)

    def finish(self) -> list[Peak]:
        """End the stream: the events that its last score is; then `reset`."""
        peaks = self._advance(np.full((1, len(self._least)), -np.inf))
        self.reset()
        return peaks

    def _advance(self, levels: Float64) -> list[Peak]:
        """Take levels (T, K), -inf where a score is too low."""
        seen = np.concatenate([self._last, levels])
        is_peak = (seen[1:-1] > seen[:-2]) & (seen[1:-1] >= seen[2:])
        events = []
        for at, keyword in np.argwhere(is_peak).tolist():
            frame = self._frame - 1 + at
            if frame >= self._next[keyword]:
                events.append(Peak(keyword, frame, float(seen[1 + at, keyword])))
                self._next[keyword] = frame + self.min_gap
        self._last = seen[-2:]
        self._frame += len(levels)
        return events


def events_at_all(scores: npt.NDArray[np.floating], min_gap: int) -> list[Peak]:
    """A whole recording's events at every threshold, by keyword, then time.

    As many of them reach a threshold as a `PeakPicker` with that threshold has events. Each is the
    peak at whose score there is one more; the best peak of a keyword is always one of them. The
    picker's own events may be other peaks that are near, so these may be closer than `min_gap`.

    Parameters
    ----------
    scores : (T, K) in 0..1
    min_gap : int
        Frames, as `PeakPicker` takes it.

    Raises
    ------
    SpecError
        As `PeakPicker.push`.
    """
    picker = PeakPicker([EVENT_FLOOR] * scores.shape[1], 1)
    by_keyword: dict[int, list[Peak]] = {}
    for peak in [*picker.push(scores), *picker.finish()]:
        by_keyword.setdefault(peak.keyword, []).append(peak)
    return [
        peak for keyword in sorted(by_keyword) for peak in _gained(by_keyword[keyword], min_gap)
    ]


def _gained(peaks: Iterable[Peak], min_gap: int) -> list[Peak]:
    """The peaks of one keyword that make the events one more as the threshold falls to them."""
    known: list[int] = []  # frames of the peaks that reach the threshold
    events: list[int] = []  # those of them that are events at it
    gained = []
    for peak in sorted(peaks, key=lambda peak: (-peak.score, peak.frame)):
        insort(known, peak.frame)
        first = bisect_left(events, peak.frame)
        if first and peak.frame < events[first - 1] + min_gap:
            continue
        # From here on other peaks are events, until one of them is an event already.
        moved, last = [peak.frame], len(events)
        for frame in _after(known, peak.frame, min_gap):
            at = bisect_left(events, frame)
            if at < len(events) and events[at] == frame:
                last = at
                break
            moved.append(frame)
        if len(moved) > last - first:
            gained.append(peak)
        events[first:last] = moved
    return sorted(gained, key=lambda peak: peak.frame)


def _after(frames: Sequence[int], frame: int, min_gap: int) -> Iterator[int]:
    """The events that follow one at `frame`, of peaks at these frames, which are sorted."""
    while (at := bisect_left(frames, frame + min_gap)) < len(frames):
        frame = frames[at]
        yield frame
