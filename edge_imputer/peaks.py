"""From the scores of keywords to events: one a peak, never one a frame.

An event is a local maximum of a keyword's score with no better one of that keyword within the
refractory time; of equal ones the first counts. Which peaks these are does not depend on a
threshold, as long as it is below them: so evaluation knows the events at every threshold from one
pass, and a stream with one threshold finds exactly those of them that reach it. A peak is reported
once nothing that is still to come can be better: after the refractory time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
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
        Frames; two peaks of a keyword that are closer count as one, the better.

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
        self._frame = 0
        self._tracks = [_Track(self.min_gap) for _ in self._least]

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
        peaks = self._advance(levels)
        self._frame += len(scores)
        return peaks

    def finish(self) -> list[Peak]:
        """End the stream: the events that were waiting; then `reset`."""
        peaks = self._advance(np.full((self.min_gap + 1, len(self._least)), -np.inf))
        self.reset()
        return peaks

    def _advance(self, levels: Float64) -> list[Peak]:
        reached = set(np.flatnonzero((levels > -np.inf).any(0)).tolist())
        peaks = [
            Peak(keyword, frame, score)
            for keyword, track in enumerate(self._tracks)
            if keyword in reached or track.waits
            for frame, score in track.push(levels[:, keyword], self._frame)
        ]
        return sorted(peaks, key=lambda peak: (peak.frame, peak.keyword))


class _Track:
    """The scores of one keyword, -inf where they are too low, and the peaks not decided yet."""

    def __init__(self, min_gap: int) -> None:
        self._min_gap = min_gap
        self._pending: list[tuple[int, float]] = []  # in time's order
        # The unfinished run of equal levels at the end, and the level before it.
        self._before = self._level = -np.inf
        self._start = -1

    @property
    def waits(self) -> bool:
        """Whether something that was heard may still become an event."""
        return bool(self._pending) or self._level > -np.inf

    def push(self, levels: Float64, first_frame: int) -> list[tuple[int, float]]:
        """Take levels (T,) from `first_frame` on; the frames and scores of what is certain."""
        if not len(levels):
            return []
        self._find(levels, first_frame)
        # What comes can have a peak where the unfinished run starts, if it is high, or after it.
        end = first_frame + len(levels)
        kept, self._pending = decided(
            self._pending, self._min_gap, self._start if self._level > -np.inf else end
        )
        return kept

    def _find(self, levels: Float64, first_frame: int) -> None:
        """Append the local maxima that are complete now: a run of equal levels is one."""
        values = np.concatenate([[self._before, self._level], levels])
        frames = np.concatenate([[-1, self._start], first_frame + np.arange(len(levels))])
        changes = np.flatnonzero(values[1:] != values[:-1]) + 1
        runs = np.concatenate([[0], changes])
        height = values[runs]
        top = np.flatnonzero((height[1:-1] > height[:-2]) & (height[1:-1] > height[2:])) + 1
        found = zip(frames[runs[top]].tolist(), height[top].tolist(), strict=True)
        self._pending += found
        last = runs[-1]
        if len(runs) > 1:
            self._before = float(height[-2])
        self._level, self._start = float(values[last]), int(frames[last])


def decided(
    peaks: Sequence[tuple[int, float]], min_gap: int, horizon: int
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Which peaks are events for certain, and which wait.

    From the best to the worst: a peak is an event unless one that is better is near. It waits if
    one that is better and waits is near, or one may still come.

    Parameters
    ----------
    peaks : frames and scores, in time's order
    min_gap : int
        Frames; what is closer is near.
    horizon : int
        First frame that may still have a peak.

    Returns
    -------
    events, waiting : frames and scores, in time's order
        An event after a peak that waits is given back among the waiting.
    """
    kept: list[int] = []
    waiting: list[int] = []
    for frame, _ in sorted(peaks, key=lambda peak: (-peak[1], peak[0])):
        if _near(kept, frame, min_gap):
            continue
        open_ = frame + min_gap > horizon or _near(waiting, frame, min_gap)
        insort(waiting if open_ else kept, frame)
    first = waiting[0] if waiting else horizon
    events = {frame for frame in kept if frame < first}
    rest = {*kept, *waiting} - events
    return [p for p in peaks if p[0] in events], [p for p in peaks if p[0] in rest]


def _near(frames: Sequence[int], frame: int, min_gap: int) -> bool:
    """Whether one of the frames, which are sorted, is nearer than `min_gap`."""
    at = bisect_left(frames, frame)
    return any(abs(frame - other) < min_gap for other in frames[max(0, at - 1) : at + 1])
