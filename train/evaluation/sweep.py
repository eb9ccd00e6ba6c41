"""All thresholds at once: misses and false alarms as the threshold rises, and the choice of one."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError
from edge_imputer.measured import FalseAlarmRate, Interval
from edge_imputer.metrics import clopper_pearson, false_alarm_rate

Float64 = npt.NDArray[np.float64]

MAX_POINTS = 200  # of a curve
THRESHOLD_DECIMALS = 4


class DetPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One threshold: the share of missed keywords beside the false alarms an hour."""

    threshold: float
    frr: Interval
    false_alarms: FalseAlarmRate


@dataclass(frozen=True)
class Scores:
    """What a sweep needs.

    Attributes
    ----------
    positives : (P,)
        Score of every keyword that was said, `MISSED` where it left no event.
    negatives : (N,)
        Score of every event in audio without keywords.
    hours : of that audio
    """

    positives: Float64
    negatives: Float64
    hours: float

    def misses(self, thresholds: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """Keywords that were said and stay below each threshold."""
        return np.searchsorted(np.sort(self.positives), thresholds, side="left")

    def false_alarms(self, thresholds: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """Events in audio without keywords that reach each threshold."""
        below = np.searchsorted(np.sort(self.negatives), thresholds, side="left")
        counts: npt.NDArray[np.intp] = len(self.negatives) - below
        return counts

    def at(self, threshold: float) -> DetPoint:
        """Both rates at one threshold, with exact intervals.

        Raises
        ------
        DataError
            No positive, or no hours of negatives.
        """
        return DetPoint(
            threshold=threshold,
            frr=clopper_pearson(int(self.misses(threshold)), len(self.positives)),
            false_alarms=false_alarm_rate(int(self.false_alarms(threshold)), self.hours),
        )

    def curve(self, max_points: int = MAX_POINTS) -> list[DetPoint]:
        """The DET curve, thresholds rising: every one at which a rate changes, or some.

        These are spread evenly along the curve as it is drawn, false alarms on a logarithmic axis:
        of the thresholds themselves almost all lie where everything fires.
        """
        scores = np.concatenate([self.positives, self.negatives, [0.0, 1.0]])
        thresholds = np.unique(scores[scores >= 0])
        if len(thresholds) > max_points:
            alarms = np.log1p(self.false_alarms(thresholds))
            missed = self.misses(thresholds) / max(1, len(self.positives))
            along = (alarms[0] - alarms) / max(1e-9, alarms[0]) + missed
            even = np.linspace(along[0], along[-1], max_points)
            chosen = np.unique(np.searchsorted(along, even))
            thresholds = thresholds[chosen]
        return [self.at(float(threshold)) for threshold in thresholds]


@dataclass(frozen=True)
class Choice:
    """A threshold, and whether the data it was chosen on keep to the target."""

    threshold: float
    target_met: bool


def choose_threshold(scores: Scores, target_fa_per_hour: float) -> Choice:
    """The threshold that misses fewest keywords with at most so many false alarms an hour.

    Of the thresholds that miss equally many, it is the middle of the range between the best event
    that must not fire and the worst keyword that still should. Where even a threshold of 1 fires
    too often, it is 1, and the target is not met.

    Raises
    ------
    DataError
        A target that is not positive and finite, no hours of negatives, or no positives, without
        which any threshold above the false alarms is as good as any other.
    """
    if not 0 < target_fa_per_hour < inf:
        raise DataError(
            f"expected a finite target of false alarms an hour > 0, got {target_fa_per_hour}"
        )
    if not 0 < scores.hours < inf:
        raise DataError(
            f"expected negatives to choose a threshold on, got {scores.hours:g} hours of them; "
            "give audio without keywords in the split that thresholds are chosen on, or "
            "thresholds of your own"
        )
    if not len(scores.positives):
        raise DataError(
            "expected keywords that were said to choose a threshold on, got none; give clips that "
            "say them in the split that thresholds are chosen on, or thresholds of your own"
        )
    allowed = floor(target_fa_per_hour * scores.hours + 1e-9)
    negatives = np.sort(scores.negatives)[::-1]
    lowest = float(negatives[allowed]) if allowed < len(negatives) else 0.0
    if lowest >= 1:
        return Choice(1.0, False)
    above = scores.positives[scores.positives > lowest]
    high = float(above.min()) if above.size else lowest
    units = 10**THRESHOLD_DECIMALS
    steps = round((lowest + high) / 2 * units)
    while steps / units <= lowest:  # rounding must not let it fire
        steps += 1
    threshold = steps / units
    return Choice(min(threshold, 1.0), bool(scores.false_alarms(min(threshold, 1.0)) <= allowed))
