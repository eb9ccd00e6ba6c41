"""From mistakes to a better model: hard negatives, and the clips a deployed spotter saved."""

from .comparing import Comparison, RateComparison
from .continuing import continuing_recipe
from .improve import Improvement, ImproveReport, improve
from .mining import MinedRecord, MiningReport, Rules, mine
from .saved_clips import Collection, SavedClip, collect
from .spotters import Spotter, open_spotter

__all__ = [
    "Collection",
    "Comparison",
    "ImproveReport",
    "Improvement",
    "MinedRecord",
    "MiningReport",
    "RateComparison",
    "Rules",
    "SavedClip",
    "Spotter",
    "collect",
    "continuing_recipe",
    "improve",
    "mine",
    "open_spotter",
]
