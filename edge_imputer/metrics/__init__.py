"""Error rates and their intervals."""

from .edits import Edits, edit_distance, edits
from .intervals import (
    clopper_pearson,
    false_alarm_rate,
    hours_needed,
    poisson_interval,
    wilson_interval,
)
from .resampling import (
    PairedDifference,
    bootstrap_interval,
    bootstrap_ratio,
    paired_change,
    paired_difference,
)

__all__ = [
    "Edits",
    "PairedDifference",
    "bootstrap_interval",
    "bootstrap_ratio",
    "clopper_pearson",
    "edit_distance",
    "edits",
    "false_alarm_rate",
    "hours_needed",
    "paired_change",
    "paired_difference",
    "poisson_interval",
    "wilson_interval",
]
